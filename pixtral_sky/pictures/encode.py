"""Encodes pictures with a bounded loss: the mean square of the errors in levels of 0 to 255.

A JPEG rounds each of 8 x 8 frequencies to a multiple of a step. The usual tables have a step for each
frequency, to hide the loss from people. A model sees all frequencies: with one step for all, the loss is
predictable, and at the same loss the file is smaller.
"""

from __future__ import annotations

import math
from io import BytesIO

from PIL import Image, ImageChops

# 40 dB (PSNR) are 255^2 / 10^4 = 6.5; the rest is a margin for rows that are not sampled.
LOSS = 6.2

# The square of what a difference of 1 in Cb and in Cr makes in R, G and B together (JFIF).
BLUE, RED = 0.344**2 + 1.772**2, 1.402**2 + 0.714**2
# Rounding to a step of 1 loses 1/12 in each of Y, Cb and Cr; this is its share in R, G and B. It happens
# twice in any case, in both color conversions, and R, G and B are rounded once at the end.
ROUNDED = (3 + BLUE + RED) / 3 / 12
LEVELS = 2 * ROUNDED + 1 / 12

FINEST, COARSEST = 2.0, 16.0

# A drawing, page or screen has few colors, one of which fills an eighth. Lossless, it is often smaller than a
# JPEG.
COLORS, FILLED = 2**14, 1 / 8
WEBP_SIDE = 16_383  # pixels, the format's limit


def step(image: Image.Image, loss: float) -> float | None:
    """The largest step, a multiple of 1/2, that loses at most ``loss`` of ``image`` (mode L or RGB).

    None when even the finest loses more. ``image`` may be a sample of a larger one, as of ``resize.sample``.

    On noise a step loses what ``ROUNDED`` says, and elsewhere less. Larger ones are tried from there: twice
    the step loses, most often, at most four times as much.
    """
    best = tried = _halves(math.sqrt(max(loss - LEVELS, 0) / ROUNDED))
    if best < FINEST:
        return None
    for _ in range(3):
        with Image.open(BytesIO(jpeg(image, tried))) as file:
            difference = ImageChops.difference(image, file).histogram()
        lost = sum(times * (value % 256) ** 2 for value, times in enumerate(difference)) / sum(difference)
        if lost > loss:
            break
        best, tried = tried, min(_halves(tried * math.sqrt(loss / max(lost, LEVELS))), COARSEST)
        if tried <= best:
            break
    return best


def _halves(step: float) -> float:
    return int(step * 2) / 2


def jpeg(image: Image.Image, step: float) -> bytes:
    """``image`` (mode L or RGB) with one ``step`` for all frequencies, and no chroma subsampling.

    A step of n + 1/2 is n and n + 1 by turns.
    """
    table = [int(step), int(step + 0.5)] * 32
    return _saved(image, "JPEG", qtables=[table, table], subsampling=0)


def png(image: Image.Image) -> bytes:
    return _saved(image, "PNG")


def webp(image: Image.Image) -> bytes:
    """``image`` (mode L or RGB; at most WEBP_SIDE a side), lossless."""
    return _saved(image, "WEBP", lossless=True, method=2, quality=50)


def drawn(image: Image.Image) -> bool:
    """Whether ``image`` (mode L or RGB) looks like a drawing, a page or a screen."""
    colors = image.getcolors(COLORS) or []
    return max((times for times, _ in colors), default=0) > image.width * image.height * FILLED


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
