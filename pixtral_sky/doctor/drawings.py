"""Draws the pictures of the check of answers. The constants are what the pictures show.

A picture is the same each time, in Pillow's own font, and has at most 1024 pixels a side: the model sees it
unscaled.
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

INK, GRAY, LINE = "#1f2933", "#52606d", "#cbd2d9"
PALETTE = {"blue": "#1d5fc4", "orange": "#f08c1a", "red": "#d62828", "green": "#2a9d3a"}

SIGN = 7394
COLOURS = {"circle": "blue", "triangle": "red", "square": "green"}
# Their centres, in pixels.
STARS = ((110, 120), (330, 95), (545, 200), (190, 360), (470, 390))
DOTS = ((215, 225), (420, 270), (335, 430))
DEPARTURE, PIER = "6:45", 9
BARS = {"Lima": 410, "Cairo": 525, "Oslo": 640, "Quito": 300, "Delhi": 575}
BOUGHT = {"Olive oil": 890, "Rye bread": 465, "Apples 1 kg": 280, "Goat cheese": 525}  # cents
TAX_PERCENT = 10
CASH = 3000  # cents
CORNERS = {"top left": "circle", "top right": "star", "bottom left": "square", "bottom right": "triangle"}
YEARS = (2022, 2023, 2024)
VISITORS = {
    "Athens": (2315, 2508, 2467),
    "Bergen": (894, 931, 1012),
    "Lima": (1118, 1204, 1377),
    "Nairobi": (1560, 1489, 1603),
}
ROW = ("circle", "star", "triangle", "square")
MISSING = "triangle"  # of the row, in the second picture of it
MENU = {"Tea": 240, "Coffee": 320, "Cake": 450, "Soup": 590}  # cents


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def subtotal() -> int:
    return sum(BOUGHT.values())


def tax() -> int:
    return subtotal() * TAX_PERCENT // 100


def total() -> int:
    return subtotal() + tax()


def sign() -> Image.Image:
    """The plate of a house: a name and a number."""
    image, draw = _canvas(640, 400, "#dfe3e8")
    draw.rounded_rectangle((60, 50, 580, 350), 24, "#123a7a", "white", 8)
    draw.text((320, 125), "LINDEN LANE", "white", _font(44), anchor="mm")
    draw.text((320, 235), str(SIGN), "white", _font(130), anchor="mm")
    return image


def colours() -> Image.Image:
    """Shapes side by side, each in its own colour."""
    image, draw = _canvas(720, 320)
    for number, (shape, colour) in enumerate(COLOURS.items()):
        _shape(draw, shape, 130 + 230 * number, 160, 80, PALETTE[colour])
    return image


def stars() -> Image.Image:
    """Stars, and fewer dots between them."""
    image, draw = _canvas(640, 500)
    for x, y in STARS:
        _shape(draw, "star", x, y, 55, PALETTE["orange"])
    for x, y in DOTS:
        _shape(draw, "circle", x, y, 30, PALETTE["blue"])
    return image


def notice() -> Image.Image:
    """White words on a dark board."""
    image, draw = _canvas(800, 440, "#243b2f")
    draw.text((400, 90), "FERRY TO MARLOW", "white", _font(56), anchor="mm")
    draw.line((120, 140, 680, 140), "white", 3)
    draw.text((400, 205), f"Departs {DEPARTURE} from pier {PIER}", "white", _font(40), anchor="mm")
    draw.text((400, 275), "Be there ten minutes earlier.", "#dce8e0", _font(30), anchor="mm")
    draw.text((400, 345), "Bicycles travel free of charge.", "#dce8e0", _font(30), anchor="mm")
    return image


def chart() -> Image.Image:
    """A bar chart, with the value above each bar."""
    image, draw = _canvas(800, 560)
    left, right, top, bottom = 90, 760, 110, 480
    draw.text((left, 30), "Umbrellas sold, by city", INK, _font(34))

    def height(value: int) -> float:
        return bottom - value / 700 * (bottom - top)

    for value in range(0, 701, 100):
        draw.line((left, height(value), right, height(value)), INK if value == 0 else LINE, 2)
        draw.text((left - 12, height(value)), str(value), GRAY, _font(20), anchor="rm")
    step = (right - left) / len(BARS)
    for number, (city, value) in enumerate(BARS.items()):
        middle = left + (number + 0.5) * step
        draw.rectangle((middle - 40, height(value), middle + 40, bottom - 2), PALETTE["blue"])
        above = (middle, height(value) - 10)
        # The rim keeps the number off the lines of the grid.
        draw.text(above, str(value), INK, _font(24), "ms", stroke_width=4, stroke_fill="white")
        draw.text((middle, bottom + 36), city, INK, _font(26), anchor="ms")
    return image


def receipt() -> Image.Image:
    """A receipt with a subtotal, a tax, a total, cash and change."""
    image, draw = _canvas(560, 700, "#fbfaf5")
    draw.text((280, 60), "HARBOUR DELI", INK, _font(40), anchor="mm")
    draw.text((280, 105), "3 May, 14:20", GRAY, _font(24), anchor="mm")
    y = 125

    def row(left: str, right: str, size: float = 28) -> None:
        nonlocal y
        y += round(size * 1.65)
        draw.text((50, y), left, INK, _font(size), anchor="ls")
        draw.text((510, y), right, INK, _font(size), anchor="rs")

    def rule() -> None:
        nonlocal y
        y += 22
        draw.line((50, y, 510, y), GRAY, 2)

    for what, cents in BOUGHT.items():
        row(what, money(cents))
    rule()
    row("Subtotal", money(subtotal()))
    row(f"Tax {TAX_PERCENT}%", money(tax()))
    row("TOTAL", money(total()), 38)
    rule()
    row("Cash", money(CASH))
    row("Change", money(CASH - total()))
    return image


def corners() -> Image.Image:
    """A shape in each corner, all of one colour."""
    image, draw = _canvas(600, 600)
    for place, shape in CORNERS.items():
        x, y = 130 if "left" in place else 470, 130 if "top" in place else 470
        _shape(draw, shape, x, y, 75, INK)
    draw.rectangle((10, 10, 589, 589), None, LINE, 3)
    return image


def table() -> Image.Image:
    """Visitors by city and year."""
    image, draw = _canvas(900, 480)
    draw.text((50, 35), "Visitors of the museum", INK, _font(36))
    draw.rectangle((50, 105, 850, 165), "#e4e7eb")
    across = [430, 630, 830]
    for x, heading in zip([70, *across], ["City", *map(str, YEARS)], strict=True):
        draw.text((x, 135), heading, INK, _font(30), anchor="lm" if heading == "City" else "rm")
    for number, (city, visitors) in enumerate(VISITORS.items()):
        y = 200 + 66 * number
        draw.text((70, y), city, INK, _font(30), anchor="lm")
        for x, value in zip(across, visitors, strict=True):
            draw.text((x, y), f"{value:,}", INK, _font(30), anchor="rm")
        draw.line((50, y + 33, 850, y + 33), LINE, 2)
    return image


def row(missing: str = "") -> Image.Image:
    """The shapes of ROW, and a gap where one is ``missing``."""
    image, draw = _canvas(900, 300)
    for number, (shape, colour) in enumerate(zip(ROW, PALETTE.values(), strict=True)):
        if shape != missing:
            _shape(draw, shape, 120 + 220 * number, 150, 75, colour)
    return image


def menu() -> Image.Image:
    """Goods and their prices."""
    image, draw = _canvas(600, 520, "#fdf6e3")
    draw.text((300, 75), "CAFE AURORA", INK, _font(48), anchor="mm")
    draw.line((70, 125, 530, 125), GRAY, 3)
    for number, (what, cents) in enumerate(MENU.items()):
        y = 190 + 80 * number
        draw.text((70, y), what, INK, _font(38), anchor="lm")
        draw.text((530, y), f"${money(cents)}", INK, _font(38), anchor="rm")
    return image


def _canvas(width: int, height: int, paper: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), paper)
    return image, ImageDraw.Draw(image)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shape(draw: ImageDraw.ImageDraw, name: str, x: float, y: float, radius: float, colour: str) -> None:
    """Draw a shape around (x, y)."""
    if name == "circle":
        draw.circle((x, y), radius, colour)
    elif name == "square":
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), colour)
    elif name == "triangle":
        draw.polygon(((x, y - radius), (x - radius, y + radius), (x + radius, y + radius)), colour)
    else:
        # A star of five points; the corners between them are 0.382 as far out, as in a pentagram.
        corners = [(math.pi * number / 5, radius * (0.382 if number % 2 else 1)) for number in range(10)]
        draw.polygon([(x + far * math.sin(at), y - far * math.cos(at)) for at, far in corners], colour)
