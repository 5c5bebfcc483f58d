"""Pixels as the model takes them: upright, 8 bits a channel, on white where they are transparent."""

from __future__ import annotations

import math
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

# Tags of TIFF; GDAL_NODATA is a number in ASCII.
BITS, PHOTOMETRIC, SAMPLE_FORMAT, GDAL_NODATA = 258, 262, 339, 42113
WHITE_IS_ZERO = 0

BAND = 64  # rows at a time
LARGEST = 3.4e38  # of a float of 32 bits, nearly


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
    if image.mode == "LAB":  # Pillow converts it by its color management alone
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, rgb, "LAB", "RGB").apply
    mode = "L" if image.mode == "1" else "RGB"
    return lambda part: part.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, (0, 0), image)
    return white


def _eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that scales gray of more than 8 bits to mode L; Pillow's clips at 255.

    A pixel without a value (NaN, infinite, GDAL's "no data") becomes white.
    """
    from PIL import ImageMath

    tags = getattr(image, "tag_v2", {})
    bits, kind = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0]
    nothing = _number(tags.get(GDAL_NODATA, ""))
    wraps = image.mode == "I" and (bits, kind) == (32, 1)  # Pillow reads unsigned integers as signed ones

    def read(part: Image.Image) -> tuple[Image.Image, Image.Image]:
        """The values of a part, in mode F, and a mask of those that are none."""
        if part.mode == "I;16B":  # which cannot become floats at once
            part = part.convert("I")
        values = part.convert("F")
        if wraps:
            values = ImageMath.lambda_eval(lambda args: args["v"] + (args["v"] < 0) * 2**32, v=values)
        if image.mode != "F" and math.isnan(nothing):
            return values, Image.new("L", values.size)
        found = ImageMath.lambda_eval(
            # Neither infinity nor NaN is 0 when subtracted from itself.
            lambda args: (args["v"] - args["v"] == 0) * (args["v"] != nothing),
            v=values,
        )
        return values, found.convert("L").point([255] + [0] * 255)

    low, white = (0.0, 2.0**bits - 1) if image.mode.startswith("I;16") else _range(image, read)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        low, white = white, low
    scale = 255 / (white - low or 1)
    offset = 0.5 - low * scale  # 0.5: the conversion truncates

    def convert(part: Image.Image) -> Image.Image:
        values, missing = read(part)
        gray = values.point(lambda value: value * scale + offset).convert("L")
        gray.paste(255, mask=missing)
        return gray

    return convert


def _range(
    image: Image.Image, read: Callable[[Image.Image], tuple[Image.Image, Image.Image]]
) -> tuple[float, float]:
    """The values of black and white: of the smallest usual range that holds all, else the least and most."""
    least, most = LARGEST, -LARGEST
    for upper in range(0, image.height, BAND):
        values, missing = read(image.crop((0, upper, image.width, min(upper + BAND, image.height))))
        values.paste(least, mask=missing)
        least = min(least, _extreme(values, 0))
        values.paste(most, mask=missing)
        most = max(most, _extreme(values, 1))
    if least < 0 or most > 255:
        return least, most
    return 0, 1 if image.mode == "F" and most <= 1 else 255


def _extreme(values: Image.Image, which: int) -> float:
    found = values.getextrema()[which]
    assert isinstance(found, float)
    return found


def _number(text: str) -> float:
    """The number that ``text`` is, or NaN, which equals no value."""
    try:
        return float(text.strip("\0 "))
    except ValueError:
        return math.nan
