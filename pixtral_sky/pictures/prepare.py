"""The file of a picture -> what is sent: 8 bits a channel, in few bytes.

The server shrinks a large picture by the same rule and with the same filter. To shrink it here uploads less,
and finds a damaged file before it is sent. What the model sees is within 40 dB (PSNR) of what it would see of
the original.
"""

from __future__ import annotations

import threading
import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.extras import install
from pixtral_sky.pictures import container, encode, kinds, resize
from pixtral_sky.pictures.picture import FORMATS, SAVE_ANEW, Picture
from pixtral_sky.pictures.pixels import plain, turn_of, turned
from pixtral_sky.pictures.turbo import Turbo
from pixtral_sky.text import shown

KINDS = "Pictures are JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC files."
WEB_PAGE = "It is HTML or XML; save what it shows as a PNG or JPEG."

KNOWN = (container.PNG, container.JPEG, b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# 1024 x 1024 pixels are 3 MiB. A larger file carries something else, such as the film of a "motion photo".
MAX_AS_IS = 4 * 2**20
# A larger picture whose file is this small goes up as it is, as to write a screen or page anew without loss
# takes longer than to upload it. A JPEG does not: to shrink it is quick, and makes it several times smaller.
SMALL_FILE = 2**20
PLAIN = ("RGB", "L", "P", "1", "RGBA")  # of these the server makes RGB as is done here
AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

# Pixels of a picture that is sent at its own size: the lossless encoder takes a second for so many.
MAX_FULL_SIZE = 16_000_000

# Blocks of 16 MiB that Pillow keeps for the next picture; a photo of 12 megapixels has three. Fresh ones from
# the system take longer than a third of decoding it.
BLOCKS = 8

QUIET = r"(PIL|pillow_heif)\b"  # the modules whose warnings are not shown

TURBO = Turbo()
_SET_UP = threading.Lock()

Upload = tuple[int, int, str, bytes]  # width, height, media type, file


def prepare(data: bytes, name: str) -> Picture:
    """What to send for the picture file ``data``; ``name`` is what messages call it.

    A JPEG, PNG or WebP that the model can see unchanged is sent byte for byte, with what its file says
    besides the pixels: EXIF, and in it the location where it was taken; but without a PNG's other texts, and
    what follows the end of a file. So is a larger PNG or WebP whose file has at most 1 MiB. Any other is
    turned upright, laid on white where it is transparent, and stored anew without such data: over 1024 a side
    it is shrunk to ``pixtral.fit`` (JPEG, or WebP where that is smaller), else it keeps its size (PNG). Of an
    animation the first frame is taken, of a document the first page that is no thumbnail.

    Black on white with sharp edges cannot be shrunk here: the server's filter makes values whiter than white
    of it, which no file holds. Up to 16 megapixels, it is sent at its own size (as it is, or WebP).

    Thread-safe; Pillow releases the interpreter most of the time. From the first picture on, this process
    shows no warnings of Pillow.

    Peak memory besides ``data``: 6 bytes a pixel, 7 to 10 for a progressive JPEG, 13 for a WebP at full size.
    12 megapixels need 70 MB, the largest picture 1.1 GB. Pillow keeps 128 MiB for the next picture, and the
    ``fast`` extra two of the largest JPEGs (3 bytes a pixel).

    Raises PictureError when ``data`` is no picture, is damaged, is cut off, or has more than 178,956,970
    pixels.
    """
    if not data:
        raise PictureError(f"{shown(name)} is empty.")
    _set_up_pillow()
    try:
        return _prepared(data, shown(name))
    except PictureError as error:
        if kind := kinds.of(data[: kinds.HEAD], name):
            raise kinds.error(kind, name) from error
        raise


def _prepared(data: bytes, name: str) -> Picture:
    formats = _formats(data, name)
    frames = container.png_frames(data)
    try:
        data, whole = container.sound(data)
        with Image.open(BytesIO(whole), formats=formats) as image:
            part = _part(image, name, whole, frames)
            return Picture(name, *_upload(image, data), part)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(KNOWN):
            raise PictureError(f"{name} is damaged, or of a kind that cannot be read.", SAVE_ANEW) from error
        hint = WEB_PAGE if data.lstrip().startswith(b"<") else KINDS
        raise PictureError(f"{name} is not a picture.", hint) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has more than 178,956,970 pixels.", "Make it smaller first.") from error
    except MemoryError as error:
        raise PictureError(f"{name} needs more memory than there is.", "Make it smaller first.") from error
    except Exception as error:  # decoders raise anything on damaged input
        if "truncated" in str(error).lower():
            raise PictureError(f"{name} is cut off.", "Copy or download it again.") from error
        raise PictureError(f"{name} is damaged: {shown(str(error)) or type(error).__name__}.") from error


def _part(image: Image.Image, name: str, data: bytes, frames: int) -> str:
    """``Picture.part`` of ``data``; ``frames`` are a PNG's. Goes to the page of a TIFF that is meant."""
    noun = "frame"
    if image.format == "TIFF":
        from pixtral_sky.pictures import tiff  # slow: Pillow loads that plugin only for such a file

        frames, noun = tiff.open_page(image, name, data), "page"
    elif image.format in ("GIF", "WEBP", "AVIF"):
        frames = getattr(image, "n_frames", 1)
    return f"the first of {frames:,} {noun}s" if frames > 1 else ""


def _formats(data: bytes, name: str) -> tuple[str, ...]:
    """The formats that Pillow may try on ``data``; HEIF takes a plugin, which is loaded for it alone."""
    # The first box of an ISO media file: its size, b"ftyp", the main brand, a version, and all brands.
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


def _set_up_pillow() -> None:
    """Set Pillow up for large pictures, and mute its warnings of harmless damage and of size.

    The filter stays, as ``warnings.catch_warnings`` is not thread-safe. It is put first again where another
    one was put before it.
    """
    with _SET_UP:
        first = warnings.filters[0] if warnings.filters else None
        if first is None or first[0] != "ignore" or getattr(first[3], "pattern", "") != QUIET:
            warnings.filterwarnings("ignore", module=QUIET)
        arena = Image.core  # type: ignore[attr-defined]
        if arena.get_blocks_max() == 0:  # PILLOW_BLOCKS_MAX has not set it
            arena.set_blocks_max(BLOCKS)


def _upload(image: Image.Image, data: bytes) -> Upload:
    """What is sent for ``image``, opened from the file ``data``."""
    if max(image.size) > pixtral.BOX:
        return _large(image, data)
    image.load()
    turn = turn_of(image)
    if media_type := _as_is(image, data, turn):
        return *image.size, media_type, data
    image = turned(plain(image)(image), turn)
    return *image.size, "image/png", encode.png(image)


def _large(image: Image.Image, data: bytes) -> Upload:
    if len(data) <= SMALL_FILE and image.format in ("PNG", "WEBP") and _may_keep_size(image):
        image.load()
        if media_type := _as_is(image, data, turn_of(image)):
            return *image.size, media_type, data
    small, lost = _shrunk(image, data)
    turn = turn_of(image)
    left = encode.LOSS - lost
    drawn = encode.drawn(small)
    # A few rows of a photo stand for the others; those of a page do not.
    step = encode.step(small if drawn else resize.sample(small), left)
    if step is None and (left < 0 or not drawn) and (full := _full_size(image, data, turn)):
        return full
    small = turned(small, turn)
    files = []
    if drawn:
        files.append(("image/webp", encode.webp(small)))
    if step is not None or not drawn:
        files.append(("image/jpeg", encode.jpeg(small, step or encode.FINEST)))
    return *small.size, *_smallest(files)


def _shrunk(image: Image.Image, data: bytes) -> tuple[Image.Image, float]:
    """``image`` at the size ``pixtral.fit``, which the server keeps, and what that has lost."""
    width, height = image.size
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and TURBO.pays(width * height):
        found = TURBO.shrink(data, image.mode, image.size, pixtral.fit(width, height))
        if found:
            return found
    image.load()
    width, height = image.size  # after load(), which turns a TIFF
    size = pixtral.fit(width, height)
    convert = plain(image)

    def crop(upper: int, lower: int) -> Image.Image:
        return convert(image.crop((0, upper, width, lower)))

    if image.mode not in ("L", "RGB") or image.has_transparency_data:
        small = resize.shrink_bands(crop, width, height, size)
    else:
        small = resize.shrink(image, size)
    return small, resize.lost(crop, width, height, small)


def _full_size(image: Image.Image, data: bytes, turn: Transpose | None) -> Upload | None:
    """``image`` at its own size, lossless; None when that is too large."""
    if not _may_keep_size(image):
        return None
    files = []
    if media_type := _as_is(image, data, turn):
        files.append((media_type, data))
    if media_type != "image/jpeg":  # a lossless file of a JPEG is larger, as it keeps all the noise
        image = turned(plain(image)(image), turn)
        file = encode.webp(image)
        if len(file) <= MAX_AS_IS:
            files.append(("image/webp", file))
    return (*image.size, *_smallest(files)) if files else None


def _may_keep_size(image: Image.Image) -> bool:
    return image.width * image.height <= MAX_FULL_SIZE and max(image.size) <= encode.WEBP_SIDE


def _smallest(files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    return min(files, key=lambda file: len(file[1]))


def _as_is(image: Image.Image, data: bytes, turn: Transpose | None) -> str | None:
    """The media type of ``data`` when it can be sent byte for byte. Call it after load()."""
    media_type = AS_IS.get(image.format or "")
    if not media_type or len(data) > MAX_AS_IS or image.mode not in PLAIN or turn is not None:
        return None
    is_whole = getattr(image, "n_frames", 1) == 1 and not _is_transparent(image)
    return media_type if is_whole else None


def _is_transparent(image: Image.Image) -> bool:
    if image.mode == "RGBA":  # as programs store screens, whether anything shines through or not
        return image.getchannel("A").getextrema() != (255, 255)
    return image.has_transparency_data
