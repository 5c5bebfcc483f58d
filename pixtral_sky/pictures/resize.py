"""The server's filter, OpenCV's bicubic without antialiasing, by Pillow alone.

OpenCV's kernel (INTER_CUBIC) has the parameter a = -0.75. Pillow's ``resize`` has a = -0.5 and antialiasing;
its ``transform`` has a = -1 and no antialiasing. A kernel is linear in a, so three parts of a = -1 and one
part of a = 0 (a smooth step between the two nearest pixels) make a = -0.75, except for a small product of the
differences in both directions. Against OpenCV's the result has 53 dB (PSNR) or more
(tests/pictures/test_fidelity.py).

Boxes are (left, upper, right, lower) in pixels of the picture, sizes are (columns, rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from PIL import Image, ImageChops
from PIL.Image import Resampling, Transform

BLOCK = 8  # pixels a side of a JPEG's blocks
SAMPLED = 8  # one row of blocks in so many stands for the whole
GOLDEN = 0.618  # steps of this size spread evenly

ROUNDED = 0.3  # the mean square error of the two roundings in ``shrink``
SATURATED = 1 / 500  # with a smaller share of black and white values, clipping loses little
NOTABLE = 0.3  # a mean square error by clipping that is worth measuring on all rows
BAND = 64  # rows at a time, of a picture that is converted before it is shrunk

_WHITE = [0] * 255 + [255]
_BLACK = [0] + [255] * 255

# Half the contrast leaves room in 8 bits for what the filter puts below 0 and above 255.
ROOM = 1 / 2
ZERO = 64
_NARROW = [round(ZERO + value * ROOM) for value in range(256)]

Crop = Callable[[int, int], Image.Image]  # (first, last) -> the rows from first to before last


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``image``, in mode L or RGB, at ``size``."""
    return _cubic(image, (0.0, 0.0, float(image.width), float(image.height)), size)


def shrink_bands(crop: Crop, width: int, height: int, size: tuple[int, int]) -> Image.Image:
    """The same for ``width`` x ``height`` pixels whose rows ``crop`` returns, a few at a time."""
    rows = size[1]
    starts = range(0, rows, BAND)
    return _stacked([_band(crop, width, height, size, at, min(at + BAND, rows)) for at in starts])


def lost(crop: Crop, width: int, height: int, shrunk: Image.Image) -> float:
    """The mean square error of ``shrunk``, made by ``shrink``, against what the server would see.

    In levels of 0 to 255 in RGB, estimated from some rows. Most of it comes from clipping: at sharp edges of
    black and white the filter goes below 0 and above 255, and the server feeds that to its model.
    """
    values = sample(shrunk).histogram()
    if sum(values[0::256]) + sum(values[255::256]) < sum(values) * SATURATED:
        return ROUNDED

    def narrow(upper: int, lower: int) -> Image.Image:
        return crop(upper, lower).point(_NARROW * (len(values) // 256))

    for every in (4 * SAMPLED, 1):  # all rows only where some show a notable error
        total = count = 0.0
        for first, last in _sampled(shrunk.height, every):
            band = _band(narrow, width, height, shrunk.size, first, last)
            for value, times in enumerate(band.histogram()):
                shown = (value % 256 - ZERO) / ROOM
                outside = max(-shown, shown - 255)
                # Less than two levels are rounding, which goes down on average.
                total += times * (outside + 0.25) ** 2 if outside >= 2 else 0
                count += times
        if total < count * NOTABLE:
            break
    return ROUNDED + total / count


def _sampled(rows: int, every: int = SAMPLED) -> Iterator[tuple[int, int]]:
    """Pick one row of blocks in ``every``: its first row of pixels, and the one after its last."""
    for group in range(math.ceil(rows / BLOCK / every)):
        # The distances are uneven because lines of text are evenly spaced.
        block = every * group + int((0.5 + group * GOLDEN) % 1 * every)
        first = min(block, (rows - 1) // BLOCK) * BLOCK
        yield first, min(first + BLOCK, rows)


def sample(image: Image.Image) -> Image.Image:
    """The rows that ``_sampled`` picks, one below the other."""
    return _stacked([image.crop((0, first, image.width, last)) for first, last in _sampled(image.height)])


def _stacked(bands: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new(bands[0].mode, (bands[0].width, sum(band.height for band in bands)))
    at = 0
    for band in bands:
        whole.paste(band, (0, at))
        at += band.height
    return whole


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
    # Image.blend() would truncate; this rounds.
    mixed = Image.composite(sharp, _smooth(image, box, size), Image.new("L", size, 191))
    # A value that was clipped in ``sharp`` stays black or white in the mix.
    channels = len(image.getbands())
    mixed = ImageChops.lighter(mixed, sharp.point(_WHITE * channels))
    return ImageChops.darker(mixed, sharp.point(_BLACK * channels))


def _smooth(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Resize with a = 0, from the four nearest pixels."""
    left, upper, right, lower = box
    if right - left < size[0] or lower - upper < size[1]:
        # Enlarged to whole patches, the filter below would need pixels beyond the border.
        return _transform(image, box, size, Resampling.BILINEAR)
    across = _weights(left, right, (size[0], 1)).resize(size, Resampling.NEAREST)
    down = _weights(upper, lower, (1, size[1])).resize(size, Resampling.NEAREST)
    pairs = []
    for y in (-0.5, 0.5):
        one, other = (
            _transform(image, (left + x, upper + y, right + x, lower + y), size, Resampling.NEAREST)
            for x in (-0.5, 0.5)
        )
        pairs.append(Image.composite(other, one, across))
    return Image.composite(pairs[1], pairs[0], down)


def _weights(start: float, end: float, line: tuple[int, int]) -> Image.Image:
    """A ``line`` (n x 1 or 1 x n) with the weight, of 255, of the pixel behind each position on it."""
    count = line[0] * line[1]
    scale = (end - start) / count
    offsets = [(start + (index + 0.5) * scale - 0.5) % 1 for index in range(count)]
    return Image.frombytes("L", line, bytes(round(255 * d * d * (3 - 2 * d)) for d in offsets))


def _transform(
    image: Image.Image, box: tuple[float, ...], size: tuple[int, int], filter_: Resampling
) -> Image.Image:
    left, upper, right, lower = box
    matrix = ((right - left) / size[0], 0, left, 0, (lower - upper) / size[1], upper)
    return image.transform(size, Transform.AFFINE, matrix, filter_)
