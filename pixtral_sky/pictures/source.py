"""Where a picture is, and how it is read: a file, a page of a PDF, a URL, or standard input."""

from __future__ import annotations

import base64
import binascii
import os
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from pixtral_sky import __version__
from pixtral_sky.errors import PictureError
from pixtral_sky.pictures import kinds
from pixtral_sky.pictures.names import bare, check_scheme, is_data_url, is_url, local
from pixtral_sky.pictures.picture import Picture, open_file
from pixtral_sky.text import os_reason, shown

MIB = 2**20
MAX_FILE = 512 * MIB
MAX_DOWNLOAD = 64 * MIB
WAIT_SECONDS = 30  # for the connection, and between two parts of a download
DOWNLOAD_SECONDS = 300  # for all of it


@dataclass(frozen=True)
class Source:
    """Where one picture is.

    ``location`` is a path, ``-`` (standard input), a data: or an http(s) URL; ``page``, from 1, is for a PDF.
    ``name`` is what the output of a batch calls it; ``data`` is the content, where it has been read.
    """

    location: str = field(repr=False)  # a URL may hold a password
    page: int = 0
    name: str = ""
    data: bytes | None = field(default=None, repr=False)

    @property
    def is_url(self) -> bool:
        return is_url(self.location)

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.location == "-":
            return "standard input"
        if is_data_url(self.location):
            return "the data: URL"
        if self.is_url:
            return bare(self.location) or "the URL"
        return f"{self.location}#page={self.page}" if self.page else self.location

    def read(self) -> Picture:
        """Load and prepare it. Raises PictureError.

        A URL is downloaded on this machine, never by the server.
        """
        if self.page:
            from pixtral_sky.pictures import pdf

            return pdf.page(self.location, self.page)

        data = self._load() if self.data is None else self.data
        from pixtral_sky.pictures.prepare import prepare  # slow: Pillow; a mistyped path fails before it

        return prepare(data, self.label)

    def _load(self) -> bytes:
        if self.location == "-":
            return read_stdin()
        if is_data_url(self.location):
            return decode(self.location)
        if self.is_url:
            return _download(self.location)
        check_scheme(self.location)
        return _read_file(self.location)


def read_picture(source: str | os.PathLike[str] | bytes) -> Picture:
    """Make a picture of ``source``: the path of a file, a URL, or the content of a file.

    URLs are those of http(s):, file: and data:.

    JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and, with the extra ``heic``, HEIC; of an animation the first frame.
    A URL is downloaded on this machine.

    Raises PictureError when it cannot be read or downloaded, is no picture, is damaged or is too large: a
    file of more than 512 MiB, a download of more than 64 MiB, or more than 178,956,970 pixels.
    """
    if isinstance(source, bytes):
        from pixtral_sky.pictures.prepare import prepare

        return prepare(source, "the picture")
    if not source:
        raise PictureError("An empty path is no picture.")
    return Source(local(os.fspath(source))).read()


def read_stdin() -> bytes:
    """The content of standard input. Raises PictureError."""
    if sys.stdin is None:  # the caller closed it
        raise PictureError("Standard input is closed, and '-' is what comes on it.")
    data = sys.stdin.buffer.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise PictureError(f"Standard input is larger than {MAX_FILE // MIB} MiB.", "Make it smaller first.")
    return data


def _read_file(path: str) -> bytes:
    name = shown(path)
    with open_file(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                if kind := kinds.of(file.read(kinds.HEAD), path):
                    raise kinds.error(kind, path)
                raise PictureError(f"{name} is larger than {MAX_FILE // MIB} MiB.", "Make it smaller first.")
            return file.read()
        except OSError as error:
            raise PictureError(f"{name} cannot be read: {os_reason(error)}.") from error


def decode(url: str) -> bytes:
    """The content of a data: URL (RFC 2397). Raises PictureError."""
    head, comma, body = url.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        content = unquote_to_bytes(body)
        if not head.lower().endswith(";base64"):
            return content
        content = b"".join(content.split()).rstrip(b"=")
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(
            f"The data: URL is malformed: {error}.", "It looks like data:image/png;base64,iVBORw0..."
        ) from error


def _download(url: str) -> bytes:
    import httpx

    name = shown(bare(url) or "the URL")
    hint = "Download it yourself, and give the file."
    # Uncompressed: pictures are compressed already, and MAX_DOWNLOAD then counts true bytes.
    headers = {"User-Agent": f"pixtral-sky/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    try:
        with httpx.stream("GET", url, headers=headers, timeout=WAIT_SECONDS, follow_redirects=True) as answer:
            if not answer.is_success:
                reason = shown(f"{answer.status_code} {answer.reason_phrase}".strip())
                is_gone = answer.status_code in (404, 410)
                raise PictureError(f"{name} answers {reason}.", "Is the address right?" if is_gone else hint)
            if answer.headers.get("content-encoding", "identity") != "identity":
                # Nobody asked for it, and a few bytes can become gigabytes.
                raise PictureError(f"{name} sends a compressed answer.", hint)
            content = bytearray()
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > MAX_DOWNLOAD:
                    raise PictureError(f"{name} is larger than {MAX_DOWNLOAD // MIB} MiB.", hint)
                if time.monotonic() > deadline:
                    raise PictureError(f"{name} takes longer than {DOWNLOAD_SECONDS} s to download.", hint)
            return bytes(content)
    except httpx.TimeoutException as error:
        raise PictureError(f"{name} does not answer within {WAIT_SECONDS} s.", hint) from error
    except httpx.ConnectError as error:
        raise PictureError(f"{name} cannot be reached: {shown(str(error))}.", hint) from error
    # The text of these may quote the URL. ImportError: a SOCKS proxy without its package.
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
        raise PictureError(f"{name} cannot be downloaded ({type(error).__name__}).", hint) from error
