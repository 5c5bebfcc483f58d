"""Encode pictures with a bounded loss: a mean square error in levels of 0 to 255.

A JPEG rounds each of 8 x 8 frequencies to a multiple of a step. The usual tables have a step for each
frequency, to hide the loss from people. A model sees all frequencies: one step for all makes the loss
predictable, and the file smaller at the same loss.
"""

from __future__ import annotations

import math
from io import BytesIO

from PIL import Image, ImageChops

# 40 dB (PSNR) are 255^2 / 10^4 = 6.5; the rest is a margin for rows that are not sampled.
LOSS = 6.2

# The squared change of R, G and B together for a change of 1 in Cb and in Cr (JFIF).
BLUE, RED = 0.344**2 + 1.772**2, 1.402**2 + 0.714**2
# Rounding to a step of 1 loses 1/12 in each of Y, Cb and Cr; this is the loss in R, G and B.
ROUNDED = (3 + BLUE + RED) / 3 / 12
LEVELS = 2 * ROUNDED + 1 / 12  # lost at any step: by both color conversions, and by rounding R, G and B

FINEST, COARSEST = 2.0, 16.0

# A drawing, page or screen has few colors, and one fills an eighth. Lossless, it is often smaller than
# as a JPEG.
COLORS, FILLED = 2**14, 1 / 8
WEBP_SIDE = 16_383  # pixels, the format's limit


def step(image: Image.Image, loss: float) -> float | None:
    """The largest step, a multiple of 1/2, that loses at most ``loss`` of ``image`` (mode L or RGB).

    None when even the finest loses more. ``image`` may be a ``resize.sample`` of a larger one.

    The first step is the right one for noise. Other pictures lose less, so larger steps are tried: twice the
    step usually loses at most four times as much.
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

    A step of n + 1/2 alternates n and n + 1.
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
