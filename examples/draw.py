"""Draws the two example pictures: python examples/draw.py [DIRECTORY]

They are ours, with text and numbers to ask about, and look the same wherever they are drawn: Pillow
brings the font.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

HOURS = {
    "Jan": 412,
    "Feb": 388,
    "Mar": 530,
    "Apr": 617,
    "May": 584,
    "Jun": 742,
    "Jul": 695,
    "Aug": 458,
    "Sep": 803,
    "Oct": 921,
    "Nov": 876,
    "Dec": 349,
}

# What, how many, and the price of one in cents.
BOUGHT = (
    ("Sourdough bread", 1, 420),
    ("Oat milk 1 l", 2, 229),
    ("Bananas", 6, 35),
    ("Cheddar 200 g", 1, 379),
    ("Ground coffee 250 g", 1, 649),
    ("Dark chocolate", 3, 189),
    ("Cherry tomatoes", 2, 199),
    ("Sparkling water", 4, 85),
)
CASH = 4000  # cents


def font(size: float) -> ImageFont.FreeTypeFont:
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def chart() -> Image.Image:
    """A bar chart, 1200 x 800 pixels."""
    ink, gray, grid, blue, orange = "#1f2933", "#616e7c", "#e4e7eb", "#3b7dd8", "#f0803c"
    image = Image.new("RGB", (1200, 800), "white")
    draw = ImageDraw.Draw(image)
    left, right, top, bottom, most = 110, 1160, 150, 690, 1000
    draw.text((left, 38), "GPU hours per month, 2024", ink, font(40))
    draw.text((left, 92), "Research cluster, all users. The busiest month is orange.", gray, font(22))

    def height(hours: int) -> float:
        return bottom - hours / most * (bottom - top)

    for hours in range(0, most + 1, 200):
        draw.line((left, height(hours), right, height(hours)), ink if hours == 0 else grid, 2)
        draw.text((left - 14, height(hours)), f"{hours:,}", gray, font(22), anchor="rm")
    step = (right - left) / len(HOURS)
    for number, (month, hours) in enumerate(HOURS.items()):
        middle = left + (number + 0.5) * step
        color = orange if hours == max(HOURS.values()) else blue
        draw.rectangle((middle - 29, height(hours), middle + 29, bottom - 1), color)
        # A white rim keeps the number off the lines of the grid.
        draw.text(
            (middle, height(hours) - 8),
            str(hours),
            ink,
            font(22),
            anchor="ms",
            stroke_width=4,
            stroke_fill="white",
        )
        draw.text((middle, bottom + 32), month, ink, font(22), anchor="ms")
    draw.text(((left + right) / 2, 760), "Month", gray, font(24), anchor="mm")
    # Text is drawn level; the label of this axis is turned after that.
    label = Image.new("RGB", (200, 34), "white")
    ImageDraw.Draw(label).text((100, 17), "GPU hours", gray, font(24), anchor="mm")
    image.paste(label.transpose(Image.Transpose.ROTATE_90), (8, (top + bottom) // 2 - 100))
    return image


def receipt() -> Image.Image:
    """A receipt of a shop, as scanned a little askew, 700 x 1100 pixels."""
    ink, paper_color = 45, 247
    paper = Image.new("L", (560, 1020), paper_color)
    draw = ImageDraw.Draw(paper)
    left, middle, right = 44, 280, 516

    def row(y: int, start: str, end: str, size: float = 24) -> None:
        draw.text((left, y), start, ink, font(size), anchor="ls")
        draw.text((right, y), end, ink, font(size), anchor="rs")

    def rule(y: int) -> None:
        for x in range(left, right, 12):
            draw.line((x, y, x + 6, y), ink, 2)

    def money(cents: int) -> str:
        return f"{cents // 100}.{cents % 100:02}"

    draw.text((middle, 76), "GREEN CORNER MARKET", ink, font(36), anchor="ms")
    draw.text((middle, 112), "14 Harbour Street, Port Ellery", ink, font(22), anchor="ms")
    draw.text((middle, 142), "Tel. 555-0142", ink, font(22), anchor="ms")
    row(196, "2024-09-11  17:42", "Receipt 004718", 22)
    rule(218)
    y = 260
    for what, count, price in BOUGHT:
        row(y, what, money(count * price))
        if count > 1:
            y += 28
            draw.text((left + 24, y), f"{count} x {money(price)}", ink, font(20), anchor="ls")
        y += 40
    rule(y - 8)
    total = sum(count * price for _, count, price in BOUGHT)
    row(y + 42, "TOTAL  EUR", money(total), 36)
    row(y + 92, "Cash", money(CASH))
    row(y + 126, "Change", money(CASH - total))
    rule(y + 150)
    draw.text((middle, y + 196), "Thank you, and see you soon!", ink, font(24), anchor="ms")
    # A bar code, of no meaning.
    chance = random.Random(4718)
    x = 110
    while x < 446:
        width = chance.choice((2, 3, 5))
        draw.rectangle((x, y + 218, x + width - 1, y + 266), ink)
        x += width + chance.choice((2, 3, 4))

    # On a table, with a shadow; and the unevenness of print, paper and lens.
    image = Image.new("L", (700, 1100), 168)
    mask = Image.new("L", paper.size, 255)
    paper, mask = (sheet.rotate(1.2, Image.Resampling.BICUBIC, expand=True) for sheet in (paper, mask))
    place = (700 - paper.width) // 2, (1100 - paper.height) // 2
    shadow = Image.new("L", image.size)
    shadow.paste(mask.point(lambda value: value * 0.45), (place[0] + 8, place[1] + 10))
    image.paste(70, (0, 0), shadow.filter(ImageFilter.GaussianBlur(12)))
    image.paste(paper, place, mask)
    noise = Image.frombytes("L", (350, 550), chance.randbytes(350 * 550)).resize(image.size)
    image = Image.blend(image.filter(ImageFilter.GaussianBlur(0.5)), noise, 0.05)
    # Warm light: what is white is a little yellow.
    light = [image.point(lambda value, tint=tint: min(255, value * tint)) for tint in (1.04, 1.02, 0.97)]
    return Image.merge("RGB", light)


def main(directory: Path) -> None:
    chart().save(directory / "chart.png", optimize=True)
    receipt().save(directory / "receipt.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
