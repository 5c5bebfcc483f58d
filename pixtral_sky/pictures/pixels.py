"""Pixels as the model takes them: upright, 8 bits a channel, on white where they are transparent."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from PIL.Image import Transpose

# By the orientation of EXIF.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Transpose | None:
    """What turns ``image`` upright. Call it after load(), which turns a TIFF by itself."""
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is common, and the picture is still good
        return None


def turned(image: Image.Image, turn: Transpose | None) -> Image.Image:
    """``image`` upright, without the comment and color profile that Pillow would write into a file."""
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def plain(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that brings ``image``, or a part of it, to mode L or RGB, on white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        return _on_white
    if image.mode in ("L", "RGB"):
        return lambda part: part
    mode = "L" if image.mode == "1" else "RGB"
    return lambda part: part.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, (0, 0), image)
    return white


def _eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that scales gray of 16 or 32 bits, or of floats, to mode L; Pillow's clips at 255."""
    low, white = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        least, most = image.getextrema()
        assert isinstance(least, (int, float))
        assert isinstance(most, (int, float))
        if least < 0 or most > 65535:  # no usual range: the darkest is black, the brightest white
            low, white = least, most
        else:  # the smallest usual range that holds all values
            white = 65535 if most > 255 else 255 if image.mode == "I" or most > 1 else 1
    scale = 255 / (white - low or 1)
    offset = 0.5 - low * scale  # 0.5: the conversion truncates
    return lambda part: part.convert("F").point(lambda value: value * scale + offset).convert("L")
