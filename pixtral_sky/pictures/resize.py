"""The server's filter, with Pillow alone: OpenCV's bicubic, which has no antialiasing.

OpenCV's kernel (INTER_CUBIC) has the parameter a = -0.75. Pillow has no such kernel: ``resize`` has
a = -0.5 and antialiasing; ``transform`` has no antialiasing, and a = -1. A kernel is linear in a: three parts
of a = -1 and one of a = 0, which is a smooth step between the two nearest pixels, make a = -0.75, except for
a small product of the differences in both directions. Against OpenCV's it has 53 dB (PSNR) or more
(tests/pictures/test_fidelity.py).

Boxes are (left, upper, right, lower) in pixels of the picture, sizes are (columns, rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from PIL import Image, ImageChops
from PIL.Image import Resampling, Transform

# A sample of the rows stands for the whole: one in 8 rows of the blocks of 8 x 8 pixels that a JPEG has.
BLOCK = 8
SAMPLED = 8
GOLDEN = 0.618  # steps of this size spread evenly

# The mean square that the two roundings of ``shrink`` lose.
ROUNDED = 0.3
# A picture with a smaller share of black and white values has lost little by clipping.
SATURATED = 1 / 500
NOTABLE = 0.3
# Rows that are made at a time of a picture that must be converted before it is shrunk.
BAND = 64

_WHITE = [0] * 255 + [255]
_BLACK = [0] + [255] * 255

# Half of the contrast in 8 bits, which leaves room for what the filter puts below 0 and above 255.
ROOM = 1 / 2
ZERO = 64
_NARROW = [round(ZERO + value * ROOM) for value in range(256)]

Crop = Callable[[int, int], Image.Image]  # returns the rows from the first to before the second


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``image``, in mode L or RGB, at ``size``."""
    return _cubic(image, (0.0, 0.0, float(image.width), float(image.height)), size)


def shrink_bands(crop: Crop, width: int, height: int, size: tuple[int, int]) -> Image.Image:
    """The picture of ``width`` x ``height`` pixels whose rows ``crop`` returns, at ``size``.

    Besides the picture it needs the memory of a few rows.
    """
    columns, rows = size
    bands = [
        (first, _band(crop, width, height, size, first, min(first + BAND, rows)))
        for first in range(0, rows, BAND)
    ]
    whole = Image.new(bands[0][1].mode, (columns, rows))
    for first, band in bands:
        whole.paste(band, (0, first))
    return whole


def lost(crop: Crop, width: int, height: int, shrunk: Image.Image) -> float:
    """The mean square of the error of ``shrunk``, made by ``shrink``, against what the server would see.

    In levels of 0 to 255 in RGB, estimated from some rows.
    """
    return ROUNDED + _overshoot(crop, width, height, shrunk)


def _overshoot(crop: Crop, width: int, height: int, shrunk: Image.Image) -> float:
    """The part of the error that comes of clipping to 0 and 255.

    The filter goes beyond them at sharp edges of black and white, and the server feeds that to its model.
    """
    values = sample(shrunk).histogram()
    if sum(values[0::256]) + sum(values[255::256]) < sum(values) * SATURATED:
        return 0.0

    def narrow(upper: int, lower: int) -> Image.Image:
        return crop(upper, lower).point(_NARROW * (len(values) // 256))

    for every in (4 * SAMPLED, 1):  # all of it where there is something
        total = count = 0.0
        for first, last in sampled(shrunk.height, every):
            band = _band(narrow, width, height, shrunk.size, first, last)
            for value, times in enumerate(band.histogram()):
                shown = (value % 256 - ZERO) / ROOM
                outside = max(-shown, shown - 255)
                # Less than two levels are rounding, which is down on the whole.
                total += times * (outside + 0.25) ** 2 if outside >= 2 else 0
                count += times
        if total < count * NOTABLE:
            break
    return total / count


def sampled(rows: int, every: int = SAMPLED) -> Iterator[tuple[int, int]]:
    """Pick one block of rows in ``every``: its first row, and the one after its last."""
    for group in range(math.ceil(rows / BLOCK / every)):
        # At uneven distances, as lines of text are evenly spaced.
        block = every * group + int((0.5 + group * GOLDEN) % 1 * every)
        first = min(block, (rows - 1) // BLOCK) * BLOCK
        yield first, min(first + BLOCK, rows)


def sample(image: Image.Image) -> Image.Image:
    """The rows that ``sampled`` picks, one below the other."""
    bands = list(sampled(image.height))
    rows = Image.new(image.mode, (image.width, sum(last - first for first, last in bands)))
    at = 0
    for first, last in bands:
        rows.paste(image.crop((0, first, image.width, last)), (0, at))
        at += last - first
    return rows


def _band(crop: Crop, width: int, height: int, size: tuple[int, int], first: int, last: int) -> Image.Image:
    """The rows ``first`` to ``last`` of the picture at ``size``."""
    columns, rows = size
    scale = height / rows
    # The filter reaches two pixels further on each side.
    upper, lower = max(int(first * scale) - 2, 0), min(int(last * scale) + 3, height)
    box = (0.0, first * scale - upper, float(width), last * scale - upper)
    return _cubic(crop(upper, lower), box, (columns, last - first))


def _cubic(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Resize ``box`` of ``image`` with a = -0.75."""
    sharp = _transform(image, box, size, Resampling.BICUBIC)
    # Not Image.blend(), which truncates where this rounds.
    mixed = Image.composite(sharp, _smooth(image, box, size), Image.new("L", size, 191))
    # What was clipped in ``sharp`` before the mixing is black or white after it.
    channels = len(image.getbands())
    mixed = ImageChops.lighter(mixed, sharp.point(_WHITE * channels))
    return ImageChops.darker(mixed, sharp.point(_BLACK * channels))


def _smooth(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Resize with a = 0, from the four nearest pixels."""
    left, upper, right, lower = box
    if right - left < size[0] or lower - upper < size[1]:
        # Enlarged to whole patches, it would need pixels beyond the border.
        return _transform(image, box, size, Resampling.BILINEAR)
    across = Image.frombytes("L", (size[0], 1), _weights(left, right, size[0])).resize(
        size, Resampling.NEAREST
    )
    down = Image.frombytes("L", (1, size[1]), _weights(upper, lower, size[1])).resize(
        size, Resampling.NEAREST
    )
    pairs = []
    for y in (-0.5, 0.5):
        one, other = (
            _transform(image, (left + x, upper + y, right + x, lower + y), size, Resampling.NEAREST)
            for x in (-0.5, 0.5)
        )
        pairs.append(Image.composite(other, one, across))
    return Image.composite(pairs[1], pairs[0], down)


def _weights(start: float, end: float, count: int) -> bytes:
    """The weight, of 255, of the pixel behind each of ``count`` positions from ``start`` to ``end``."""
    scale = (end - start) / count
    offsets = [(start + (index + 0.5) * scale - 0.5) % 1 for index in range(count)]
    return bytes(round(255 * d * d * (3 - 2 * d)) for d in offsets)


def _transform(
    image: Image.Image, box: tuple[float, ...], size: tuple[int, int], filter_: Resampling
) -> Image.Image:
    left, upper, right, lower = box
    matrix = ((right - left) / size[0], 0, left, 0, (lower - upper) / size[1], upper)
    return image.transform(size, Transform.AFFINE, matrix, filter_)
