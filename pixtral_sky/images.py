"""Anything that a user calls a picture, made into what is sent: at most 1024 x 1024 pixels, 8 bits a channel.

The server would shrink a large picture itself, by the same rule and with the same filter. It is done
here so that less is uploaded, and so that what is sent is known to be a whole picture.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from pixtral_sky import __version__, model
from pixtral_sky.errors import PictureError

if TYPE_CHECKING:
    from PIL import Image

MIB = 2**20
MAX_FILE = 512 * MIB
MAX_DOWNLOAD = 64 * MIB
WAIT_SECONDS = 30  # for the connection, and for each piece of a download
DOWNLOAD_SECONDS = 300  # for all of it

# Pixels of 1024 x 1024 are 3 MiB. A file larger than this carries something else, such as the film of a
# "motion photo", and is not sent as it is.
MAX_AS_IS = 4 * MIB
AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

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
        return model.image_tokens(self.width, self.height)

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
    a side are shrunk to ``model.fit`` (JPEG), the rest keep their size (PNG). Of an animation or a
    document it is the first frame.

    Not for threads: while it runs, the process shows no warnings.

    Raises PictureError when ``data`` is no picture, is damaged, or is larger than 178,956,970 pixels.
    """
    name = shown(name)
    if not data:
        raise PictureError(f"{name} is empty.")
    formats = _formats(data, name)

    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of damage that does not matter, and of pictures half as large as it takes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=formats) as image:
                return _prepare(image, data, name)
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
        raise PictureError(f"{name} is a HEIC picture.", "pip install 'pixtral-sky[heic]'") from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _prepare(image: Image.Image, data: bytes, name: str) -> Picture:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()
    try:
        # After load(), which itself turns a TIFF.
        turn = turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is common, and no reason to refuse a picture
        turn = None
    large = max(image.size) > model.BOX

    media_type = AS_IS.get(image.format or "")
    if (
        media_type
        and image.mode in ("RGB", "L")
        and not (large or turn is not None or image.has_transparency_data)
        and getattr(image, "n_frames", 1) == 1
        and len(data) <= MAX_AS_IS
    ):
        return Picture(name, *image.size, media_type, data)

    image = _plain(image)
    if large:
        image = _shrink(image)
    if turn is not None:  # the same as before shrinking, but less to turn
        image = image.transpose(turn)
    # Pillow would write some of it to the new file: a comment, a color profile that no longer fits.
    image.info = {}
    file = BytesIO()
    if large:
        image.save(file, "JPEG", quality=95, subsampling=0)
    else:
        image.save(file, "PNG")
    return Picture(name, *image.size, "image/jpeg" if large else "image/png", file.getvalue())


def _plain(image: Image.Image) -> Image.Image:
    """It in mode L or RGB, on white."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, (0, 0), image)
        return white
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits, or of floats, in mode L. Pillow's own conversion makes all above 255 white."""
    bits16 = image.mode.startswith("I;16")
    gray = image.convert("F")
    low, high = gray.getextrema()
    assert isinstance(low, float)
    assert isinstance(high, float)
    if not bits16 and (low < 0 or high > 65535):
        # Nothing says what is black and what is white.
        scale = 255 / (high - low or 1)
    else:
        low = 0.0
        # The least of the usual ranges that holds all values.
        white = 65535 if bits16 or high > 255 else 255 if image.mode == "I" or high > 1 else 1
        scale = 255 / white
    offset = 0.5 - low * scale  # half, as the conversion cuts
    return gray.point(lambda value: value * scale + offset).convert("L")


def _shrink(image: Image.Image) -> Image.Image:
    """It at the size ``model.fit``, where the server leaves it alone.

    The server's filter is bicubic without antialiasing (cv2.INTER_CUBIC), and so is this one. Pillow's
    resize() averages over all pixels instead, and shows the model a smoother picture than it learned from.
    """
    from PIL.Image import Resampling, Transform

    width, height = image.size
    columns, rows = model.fit(width, height)
    matrix = (width / columns, 0, 0, 0, height / rows, 0)
    return image.transform((columns, rows), Transform.AFFINE, matrix, Resampling.BICUBIC)


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
