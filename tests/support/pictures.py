"""Pictures of the kinds that people send, drawn from a seed: photos, scans, screens and diagrams.

And what the server's model sees of one: mistral-common's resize, on OpenCV.
"""

from __future__ import annotations

import io
import math
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from pixtral_sky import pixtral

WORDS = [
    "lorem", "ipsum", "dolor", "sit", "amet", "consetetur", "sadipscing", "elitr", "sed", "diam",
    "nonumy", "eirmod", "tempor", "invidunt", "ut", "labore", "et", "dolore", "magna", "aliquyam",
    "erat", "voluptua", "at", "vero", "eos", "accusam", "justo", "duo", "dolores", "rebum", "stet",
    "clita", "kasd", "no", "sea",
]  # fmt: skip


def photo(
    seed: int,
    width: int = 4032,
    height: int = 3024,
    *,
    detail: float = 1.0,
    slope: float = 1.25,
    noise: float = 3.0,
    sharpen: int = 80,
) -> Image.Image:
    """Textures that are alike at all scales, walls with windows, branches, letters; blur, grain, sharpening.

    ``slope``: by what power the contrast falls with the frequency; ``noise``: of the sensor, in levels.
    """
    rng = np.random.default_rng(seed)
    texture, tint = fractal(rng, width, height, slope), fractal(rng, width, height, 1.9)
    sky = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    channels = [
        top + (bottom - top) * sky + texture * 34 * detail + tint * shade
        for top, bottom, shade in ((70, 170, 14), (110, 140, 0), (190, 90, -12))
    ]
    image = Image.fromarray(eight_bits(np.stack(channels, -1)))
    draw, scale = ImageDraw.Draw(image), width / 4032

    def length(low: float, high: float) -> int:
        return max(int(rng.uniform(low, high) * scale), 1)

    for _ in range(9):
        left, foot, wide, tall = length(0, 4032), length(1000, 3024), length(200, 600), length(300, 1100)
        wall = tuple(int(value) for value in rng.integers(20, 230, 3))
        behind = image.crop((left, foot - tall, left + wide, foot))
        image.paste(Image.blend(behind, Image.new("RGB", behind.size, wall), 0.7), (left, foot - tall))
        for y in range(foot - tall + length(20, 21), foot, length(60, 61)):
            for x in range(left + length(15, 16), left + wide, length(45, 46)):
                lit = 120 if rng.random() < 0.2 else 0
                pane = tuple(int(value) // 2 + lit for value in rng.integers(0, 255, 3))
                draw.rectangle((x, y, x + length(22, 23), y + length(34, 35)), fill=pane)
    for _ in range(140):
        x, y, angle = float(length(0, 4032)), float(length(0, 1500)), rng.uniform(0, math.tau)
        for _ in range(8):
            angle += rng.normal(0, 0.4)
            reach = length(20, 120)
            end = (x + reach * math.cos(angle), y + reach * math.sin(angle))
            draw.line((x, y, *end), fill=(40, 30, 20), width=length(2, 9))
            x, y = end
    draw.text((width // 3, height // 2), "MARKET STREET 42", font=font(160 * scale), fill=(250, 250, 240))
    image = image.filter(ImageFilter.GaussianBlur(0.9))
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * noise
    image = Image.fromarray(eight_bits(np.asarray(image, np.float32) + grain))
    return image.filter(ImageFilter.UnsharpMask(1.2, sharpen, 2))


def scan(
    seed: int,
    width: int = 2480,
    height: int = 3508,
    *,
    size: int = 42,
    color: bool = False,
    noise: float = 2.0,
    blur: float = 1.0,
    cleaned: bool = False,
) -> Image.Image:
    """A page of text on A4 at 300 dpi, as a scanner gives it; ``cleaned``: its paper made white."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (width, height), 246)
    draw, edge, letters = ImageDraw.Draw(page), width // 10, font(size)
    y = edge
    while y < height - edge:
        draw.text((edge, y), line(rng, letters, width - 2 * edge), font=letters, fill=25)
        y += round(size * (1.45 if rng.random() < 0.92 else 2.4))
    page = page.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(page, np.float32) + np.linspace(-6, 4, width, dtype=np.float32)
    pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * noise
    if color:
        pixels = np.stack([pixels, pixels - 3, pixels - 9], -1)
        pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * noise * 0.6
    if cleaned:
        pixels = (pixels - 60) * 255 / 165
    return Image.fromarray(eight_bits(pixels))


def screen(
    seed: int,
    width: int = 1920,
    height: int = 1080,
    *,
    size: int = 15,
    dark: bool = False,
    film: bool = True,
) -> Image.Image:
    """A window with a list, text, charts and, as ``film``, a photo in it."""
    rng = np.random.default_rng(seed)
    if dark:
        back, text, panel = (30, 30, 34), (212, 212, 212), (45, 45, 52)
        colors = [(86, 156, 214), (206, 145, 120), (106, 153, 85), (197, 134, 192)]
    else:
        back, text, panel = (255, 255, 255), (32, 33, 36), (241, 243, 244)
        colors = [(26, 115, 232), (60, 64, 67), (217, 48, 37), (24, 128, 56)]
    image, letters = Image.new("RGB", (width, height), back), font(size)
    draw, side, aside = ImageDraw.Draw(image), width // 6, int(width * 0.72)
    draw.rectangle((0, 0, width, size * 4), fill=panel)
    draw.rectangle((0, size * 4, side, height), fill=panel)
    for y in range(size * 5, height, size * 2):
        draw.text((size, y), f"{rng.choice(WORDS)} {y}", font=letters, fill=text)
    for y in range(size * 5, height - size, round(size * 1.5)):
        indent = side + size * int(rng.integers(2, 6))
        words = line(rng, letters, int(rng.uniform(0.2, 1) * (aside - indent - size)))
        fill = text if rng.random() < 0.7 else colors[int(rng.integers(4))]
        draw.text((indent, y), words, font=letters, fill=fill)
    for index, color in enumerate(colors):
        top, tall = size * 6 + index * (height // 5), height // 6
        draw.rounded_rectangle((aside, top, width - size, top + tall), 8, fill=panel, outline=color)
        step = (width - aside - 3 * size) / 40
        heights = rng.uniform(0.2, 0.9, 41)
        points = [(aside + size + step * k, top + tall * (1 - v)) for k, v in enumerate(heights)]
        draw.line(points, fill=color, width=2)
    if film:
        texture = fractal(rng, width // 5, height // 5, 1.4)
        tones = [middle + texture * range_ for middle, range_ in ((128, 40), (120, 30), (100, 25))]
        image.paste(Image.fromarray(eight_bits(np.stack(tones, -1))), (aside, height - height // 4))
    return image


def diagram(
    seed: int, width: int = 2400, height: int = 1600, *, stroke: int = 4, size: int = 34
) -> Image.Image:
    """Boxes with words, and lines between them, drawn at twice the size for smooth edges."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width * 2, height * 2), "white")
    draw, wide, tall = ImageDraw.Draw(image), width * 2 // 7, height * 2 // 8
    corners = [
        (column * width * 2 // 5 + wide // 4, row * height * 2 // 4 + tall // 3)
        for row in range(4)
        for column in range(5)
    ]
    for x, y in corners:
        for other in rng.integers(0, len(corners), 2):
            ends = (
                (x + wide // 2, y + tall // 2),
                (corners[other][0] + wide // 2, corners[other][1] + tall // 2),
            )
            draw.line(ends, fill=(90, 90, 90), width=stroke * 2)
    fills = [(219, 234, 254), (220, 252, 231), (254, 243, 199), (254, 226, 226)]
    for index, (x, y) in enumerate(corners):
        box = (x, y, x + wide, y + tall)
        draw.rounded_rectangle(box, 32, fill=fills[index % 4], outline=(30, 41, 59), width=stroke * 2)
        label = f"{rng.choice(WORDS)} {index}"
        draw.text((x + size, y + tall // 3), label, font=font(size * 2), fill=(15, 23, 42))
    return image.resize((width, height), Image.Resampling.BOX)


def fractal(rng: np.random.Generator, width: int, height: int, slope: float) -> Any:
    """Noise whose amplitude falls with the ``slope``-th power of the frequency; mean 0, deviation 1."""
    squares = np.fft.rfftfreq(width)[None, :] ** 2 + np.fft.fftfreq(height)[:, None] ** 2
    squares[0, 0] = np.inf
    waves = rng.standard_normal((*squares.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise = np.fft.irfft2(waves * squares.astype(np.float32) ** (-slope / 2), (height, width))
    return (noise / noise.std()).astype(np.float32)


def line(rng: np.random.Generator, letters: Any, width: int) -> str:
    """Words that are at most ``width`` pixels long."""
    words = str(rng.choice(WORDS))
    while letters.getlength(longer := f"{words} {rng.choice(WORDS)}") < width:
        words = longer
    return words


def font(size: float) -> Any:
    return ImageFont.load_default(max(size, 4))


def eight_bits(values: Any) -> Any:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(width: int = 32, height: int = 16, kind: str = "PNG") -> bytes:
    """A file that is red all over."""
    return saved(Image.new("RGB", (width, height), "red"), kind)


def seen(image: Image.Image) -> Any:
    """What the server feeds its model: height x width x 3 floats, some below 0 and above 255.

    mistral-common 1.13.1, ``transform_image``; only that we turn pictures upright first.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode != "RGB":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "WHITE")
        white.paste(image, (0, 0), image)
        image = white.convert("RGB")
    size = pixtral.fit(*image.size)
    return cv2.resize(np.array(image, dtype=np.float32), size, interpolation=cv2.INTER_CUBIC)


def psnr(actual: Any, wanted: Any) -> float:
    """In dB, of levels of 0 to 255; 99 when there is no difference."""
    error = float(np.mean(np.square(np.asarray(actual, np.float32) - np.asarray(wanted, np.float32))))
    return 10 * math.log10(255**2 / error) if error else 99.0


def fidelity(sent: bytes, original: bytes) -> float:
    """How well what the model sees of the file ``sent`` is what it would see of the ``original``, in dB."""
    with Image.open(io.BytesIO(sent)) as ours, Image.open(io.BytesIO(original)) as theirs:
        return psnr(seen(ours), seen(theirs))
