"""What is uploaded for a picture that Pillow has opened. See ``picture.prepare``, which promises it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

from PIL import Image
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from pixtral_sky import pixtral
from pixtral_sky.pictures import encode, resize
from pixtral_sky.pictures.turbo import Turbo

MIB = 2**20

# Pixels of 1024 x 1024 are 3 MiB. A file larger than this carries something else, such as the film of a
# "motion photo", and is not sent as it is.
MAX_AS_IS = 4 * MIB
AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

# Pixels of a picture that goes up at its own size. An encoder without loss takes a second for so many.
MAX_WHOLE = 16_000_000

# Colors that the simpler filter for them has lost so much of are shrunk again, by the better one.
COLORS_LOST = 2.5

TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

# Blocks of 16 MiB that Pillow keeps for the next picture: a photo of 12 megapixels has three. To get fresh
# ones from the system takes longer than a third of decoding it.
BLOCKS = 8

# The modules whose warnings are not shown.
QUIET = r"(PIL|pillow_heif)\b"

TURBO = Turbo()
_SET_UP = threading.Lock()

Upload = tuple[int, int, str, bytes]  # width, height, media type, file


def set_up_pillow() -> None:
    """Pillow for large pictures, and without its warnings: of damage that does not matter, and of size.

    ``warnings.catch_warnings`` is not for threads, so the filter stays. It is put back when someone has put
    another one before it.
    """
    with _SET_UP:
        ours = warnings.filters[0] if warnings.filters else None
        if ours is None or ours[0] != "ignore" or getattr(ours[3], "pattern", "") != QUIET:
            warnings.filterwarnings("ignore", module=QUIET)
        arena = Image.core  # type: ignore[attr-defined]
        if arena.get_blocks_max() == 0:  # else PILLOW_BLOCKS_MAX has set it
            arena.set_blocks_max(BLOCKS)


def upload(image: Image.Image, data: bytes) -> Upload:
    """What goes up for ``image``, opened from the file ``data``."""
    if max(image.size) > pixtral.BOX:
        return _large(image, data)
    image.load()
    turn = _turn(image)
    media_type = _as_is(image, data, turn, image.mode)
    if media_type:
        return *image.size, media_type, data
    image = _turned(_plain(image)(image), turn)
    return *image.size, "image/png", encode.png(image)


def _large(image: Image.Image, data: bytes) -> Upload:
    mode = image.mode
    small, lost = _shrunk(image, data)
    turn = _turn(image)
    left = encode.LOSS - lost
    drawn = encode.drawn(small)
    # A photo is much the same all over; of a page, some rows tell little of the others.
    step = encode.step(small if drawn else resize.sample(small), left)
    if step is None and (left < 0 or not drawn):
        whole = _whole(image, data, turn, mode)
        if whole:
            return whole
    small = _turned(small, turn)
    files = []
    if drawn:
        files.append(("image/webp", encode.webp(small)))
    if step is not None or not drawn:
        files.append(("image/jpeg", encode.jpeg(small, step or encode.FINEST)))
    return *small.size, *min(files, key=lambda file: len(file[1]))


def _shrunk(image: Image.Image, data: bytes) -> tuple[Image.Image, float]:
    """``image`` at the size ``model.fit``, where the server leaves it alone, and what that has lost."""
    width, height = image.size
    if isinstance(image, JpegImageFile) and image.mode in ("L", "RGB"):
        if TURBO.pays(width * height):
            found = TURBO.shrink(data, image.mode, image.size, pixtral.fit(width, height))
            if found:
                return found
        if _colors_halved(image):
            image.draft("YCbCr", None)
    image.load()
    width, height = image.size  # after load(), which turns a TIFF
    size = pixtral.fit(width, height)
    plain = _plain(image)

    def crop(upper: int, lower: int) -> Image.Image:
        return plain(image.crop((0, upper, width, lower)))

    if image.mode not in ("L", "RGB", "YCbCr") or image.has_transparency_data:
        small = resize.shrink_bands(crop, width, height, size)
    else:
        small = resize.shrink(image, size)
    lost = resize.lost(crop, width, height, small)
    if small.mode == "YCbCr" and lost > COLORS_LOST:
        small = resize.shrink(image.convert("RGB"), size)
        lost = resize.lost(crop, width, height, small)
    return small, lost


def _colors_halved(image: JpegImageFile) -> bool:
    """Whether it is Y, Cb and Cr, with one value of the colors for 2 x 2 pixels, as most JPEGs are."""
    # Three channels can be R, G and B too, which Adobe's marker says, or their names.
    return (
        get_sampling(image) == 2
        and [layer[0] for layer in image.layer] == [1, 2, 3]
        and image.info.get("adobe_transform", 1) == 1
    )


def _whole(image: Image.Image, data: bytes, turn: Transpose | None, mode: str) -> Upload | None:
    """``image`` at its own size, without any loss; None when that is too much."""
    if image.width * image.height > MAX_WHOLE or max(image.size) > encode.WEBP_SIDE:
        return None
    files = []
    media_type = _as_is(image, data, turn, mode)
    if media_type:
        files.append((media_type, data))
    if media_type != "image/jpeg":  # which is smaller than what keeps all of its noise
        image = _turned(_plain(image)(image), turn)
        file = encode.webp(image)
        if len(file) <= MAX_AS_IS:
            files.append(("image/webp", file))
    return (*image.size, *min(files, key=lambda file: len(file[1]))) if files else None


def _as_is(image: Image.Image, data: bytes, turn: Transpose | None, mode: str) -> str | None:
    """The media type of ``data`` when it can go up byte for byte; ``mode`` is what its file has."""
    plain = mode in ("RGB", "L") and turn is None and not image.has_transparency_data
    if plain and getattr(image, "n_frames", 1) == 1 and len(data) <= MAX_AS_IS:
        return AS_IS.get(image.format or "")
    return None


def _turn(image: Image.Image) -> Transpose | None:
    """What turns it upright. After load(), which itself turns a TIFF."""
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is common, and no reason to refuse a picture
        return None


def _turned(image: Image.Image, turn: Transpose | None) -> Image.Image:
    """It upright, and nothing but pixels: Pillow would write a comment or a color profile to the new file."""
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def _plain(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What brings ``image``, or a part of it, to mode L, RGB or YCbCr, on white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        return _on_white
    if image.mode in ("L", "RGB", "YCbCr"):
        return lambda part: part
    mode = "L" if image.mode == "1" else "RGB"
    return lambda part: part.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, (0, 0), image)
    return white


def _eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What brings gray of 16 or 32 bits, or of floats, to mode L.

    Pillow's own conversion makes all above 255 white.
    """
    low, white = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        least, most = image.getextrema()
        assert isinstance(least, (int, float))
        assert isinstance(most, (int, float))
        if least < 0 or most > 65535:
            # Nothing says what is black and what is white.
            low, white = least, most
        else:
            # The least of the usual ranges that holds all values.
            white = 65535 if most > 255 else 255 if image.mode == "I" or most > 1 else 1
    scale = 255 / (white - low or 1)
    offset = 0.5 - low * scale  # half, as the conversion cuts
    return lambda part: part.convert("F").point(lambda value: value * scale + offset).convert("L")
