"""Anything that a user calls a picture, made into what is sent: 8 bits a channel, as few bytes as will do.

The server would shrink a large picture itself, by the same rule and with the same filter. It is done
here so that less is uploaded, and so that what is sent is known to be a whole picture. What the model
sees of it is within 40 dB (PSNR) of what it would see of the original.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from pixtral_sky import __version__, pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.extras import install

MIB = 2**20
MAX_FILE = 512 * MIB
MAX_DOWNLOAD = 64 * MIB
WAIT_SECONDS = 30  # for the connection, and for each piece of a download
DOWNLOAD_SECONDS = 300  # for all of it

# What Pillow may try. Not EPS and the like: those run a program, or are a bug away from it. An MPO is a
# JPEG to this list. Those that Pillow has loaded from the start come first: the rest take it 20 ms.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
    )
)
KINDS = "Pictures are JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC files."

# The first bytes of what people take for pictures, and what to do about each.
LOOKALIKES = (
    (b"%PDF", "It is a PDF; make pictures of its pages: pdftoppm -r 100 -png FILE page"),
    (b"<", "It is HTML or SVG; save it as a PNG or JPEG."),
)


@dataclass(frozen=True)
class Picture:
    """A picture as it is sent: ``width`` x ``height`` pixels, upright, in a file of type ``media_type``."""

    name: str
    width: int
    height: int
    media_type: str
    data: bytes = field(repr=False)

    @property
    def tokens(self) -> int:
        """Prompt tokens that it costs. The same as for the original: the server shrinks by the same rule."""
        return pixtral.image_tokens(self.width, self.height)

    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def shown(name: str) -> str:
    """``name`` fit for one line of a terminal: nothing that moves the cursor, at most 160 characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 160 else f"{text[:100]}...{text[-57:]}"


def a_directory(path: str) -> PictureError:
    """The error for a directory given as a picture."""
    name = shown(path)
    return PictureError(f"{name} is a directory.", f"Give the pictures in it: '{name.rstrip('/')}/*.jpg'")


def is_url(text: str) -> bool:
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def read(source: str, *, stdin: Callable[[], bytes]) -> Picture:
    """The picture at ``source``: a local path, ``-`` (what ``stdin`` returns), a data: or an http(s) URL.

    A URL is downloaded here, not by the server: what this machine can reach, and nothing else, is sent.

    Raises PictureError.
    """
    if source == "-":
        return prepare(stdin(), "standard input")
    if source[:5].lower() == "data:":
        return prepare(_decode(source), "the data: URL")
    if is_url(source):
        return prepare(_download(source), _bare(source))
    return prepare(_load(Path(source)), source)


def prepare(data: bytes, name: str) -> Picture:
    """What to send for the picture file ``data``; ``name`` is what messages call it.

    A JPEG, PNG or WebP that the model can see as it is goes up byte for byte, with whatever its file says
    besides the pixels: EXIF, and in it the place where it was taken. All others are turned upright, laid
    on white where they are transparent, and stored anew, which leaves nothing but pixels: those over 1024
    a side are shrunk to ``model.fit`` (JPEG; WebP where that is smaller), the rest keep their size (PNG).
    Of an animation or a document it is the first frame.

    Black on white with sharp edges cannot be shrunk here: the server's filter makes what is whiter than
    white of it, which no file holds. Up to 16 megapixels of it go up at their own size (as it is, or WebP).

    For threads. Pillow releases the interpreter for most of the time. From the first picture on, this
    process shows no warnings of Pillow.

    Memory, at its highest, besides ``data``: 6 bytes a pixel, 7 to 10 for a progressive JPEG, 13 for what
    goes up at its own size as WebP. 12 megapixels need 70 MB, the largest picture 1.1 GB. 128 MiB stay with
    Pillow for the next picture, and with the ``fast`` extra two of the largest JPEGs (3 bytes a pixel).

    Raises PictureError when ``data`` is no picture, is damaged, or is larger than 178,956,970 pixels.
    """
    name = shown(name)
    if not data:
        raise PictureError(f"{name} is empty.")
    formats = _formats(data, name)

    from PIL import Image, UnidentifiedImageError

    from pixtral_sky.pictures import prepare as pixels

    pixels.set_up_pillow()
    try:
        with Image.open(BytesIO(data), formats=formats) as image:
            return Picture(name, *pixels.upload(image, data))
    except UnidentifiedImageError as error:
        hint = next((hint for start, hint in LOOKALIKES if data.lstrip().startswith(start)), KINDS)
        raise PictureError(f"{name} is not a picture.", hint) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has more than 178,956,970 pixels.", "Make it smaller first.") from error
    except MemoryError as error:
        raise PictureError(f"{name} needs more memory than there is.", "Make it smaller first.") from error
    except Exception as error:  # decoders that are fed with anything raise anything
        raise PictureError(f"{name} is damaged: {shown(str(error)) or type(error).__name__}.") from error


def _formats(data: bytes, name: str) -> tuple[str, ...]:
    """The formats that Pillow may try on ``data``: with HEIF, which takes a plugin, when it is one."""
    # An ISO media file says what it is in its first box: b"ftyp", the main brand, a version, and all brands.
    if data[4:8] != b"ftyp":
        return FORMATS
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    brands = {box[i : i + 4] for i in range(0, len(box), 4)}
    if not any(brand.startswith((b"hei", b"hev")) for brand in brands):
        return FORMATS
    try:
        import pillow_heif
    except ImportError as error:
        raise PictureError(f"{name} is a HEIC picture.", install("heic")) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _load(path: Path) -> bytes:
    name = shown(str(path))
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise a_directory(str(path))
        if not stat.S_ISREG(status.st_mode):
            # To open a pipe or a device may wait forever.
            raise PictureError(f"{name} is not a regular file.", "Pipe it in, and give '-' as the picture.")
        if status.st_size > MAX_FILE:
            raise PictureError(f"{name} is larger than {MAX_FILE // MIB} MiB.", "Make it smaller first.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise PictureError(f"{name} cannot be read: {reason}.") from error


def _decode(url: str) -> bytes:
    """The content of a data: URL (RFC 2397)."""
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


def _bare(url: str) -> str:
    """``url`` as it may be printed: without user, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # not a number when a password with a slash is taken for it
    except ValueError:
        return "the URL"
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def _download(url: str) -> bytes:
    import httpx

    name = _bare(url)
    hint = "Download it yourself, and give the file."
    # Not compressed: pictures are already, and it keeps the sizes honest.
    headers = {"User-Agent": f"pixtral-sky/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    try:
        with httpx.stream("GET", url, headers=headers, timeout=WAIT_SECONDS, follow_redirects=True) as answer:
            if not answer.is_success:
                reason = shown(f"{answer.status_code} {answer.reason_phrase}".strip())
                raise PictureError(f"{name} answers {reason}.", hint)
            if answer.headers.get("content-encoding", "identity") != "identity":
                # It was not asked for, and a few bytes of it can be gigabytes.
                raise PictureError(f"{name} sends a compressed answer.", hint)
            content = bytearray()
            for piece in answer.iter_raw():
                content += piece
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
