"""Pictures as other programs write them: each is seen right, or refused with its reason.

Formats, depths, photometrics, orientations and damage, all of one scene. What Pillow cannot write is made
here, byte by byte.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFilter, PngImagePlugin

from pixtral_sky.errors import PictureError
from pixtral_sky.pictures import prepare
from tests.support.pictures import saved

WIDTH, HEIGHT = 192, 144
CUT = r"^x is cut off\. Copy or download it again\.$"
UNKNOWN = r"^x is damaged, or of a kind that cannot be read\. Save it anew, as a PNG or JPEG\.$"
ODD = r"^x is of a kind that cannot be read\. Save it anew, as a PNG or JPEG\.$"
SINCE_13 = int(PIL.__version__.split(".")[0]) >= 13  # what Pillow reads since then
THUMBNAIL = r"^x: only its thumbnail can be read\. Save it anew, as a PNG or JPEG\.$"


def drawn() -> Image.Image:
    """Sky, grass, sun and a black mark at the top left, a little noisy: no turn and no negative is like it."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, HEIGHT // 2, WIDTH, HEIGHT), fill=(60, 120, 50))
    draw.ellipse((WIDTH // 8, HEIGHT // 8, WIDTH // 3, HEIGHT // 2), fill=(240, 220, 60))
    draw.rectangle((4, 4, 40, 12), fill=(0, 0, 0))
    noise = np.random.default_rng(0).integers(-6, 7, (HEIGHT, WIDTH, 3))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), int)
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


SCENE = drawn()
GRAY = np.asarray(SCENE.convert("L"))
JPEG, PNG = saved(SCENE, "JPEG", quality=92), saved(SCENE, "PNG")
PROGRESSIVE = saved(SCENE, "JPEG", quality=92, progressive=True)

Case = tuple[str, bytes, "Image.Image | str"]  # its name, the file, and what is seen or the error


# TIFF

Value = tuple[int, int, list[int] | bytes]  # tag, type, values


def page(data: bytes, bits: int, photometric: int, *more: Value, end: str = "<", at: int = 8, **given: int) -> bytes:  # fmt: skip
    """A page of a TIFF, its directory at ``at``.

    ``given``: samples, format, compression, width, height; next, whether another page follows.
    """
    samples, size = given.get("samples", 1), (given.get("width", WIDTH), given.get("height", HEIGHT))
    entries: list[Value] = [
        (256, 4, [size[0]]), (257, 4, [size[1]]), (258, 3, [bits] * samples), (259, 3, [1]),
        (262, 3, [photometric]), (273, 4, []), (277, 3, [samples]), (278, 4, [size[1]]), (279, 4, [len(data)]),
        (339, 3, [given.get("format", 1)] * samples), *more,
    ]  # fmt: skip
    if given.get("compression"):
        entries[3] = (259, 3, [given["compression"]])
    entries.sort(key=lambda entry: entry[0])
    base = at + 2 + 12 * len(entries) + 4
    blob, rows = b"", []
    for tag, kind, values in entries:
        raw = (
            values if isinstance(values, bytes) else struct.pack(end + "HI"[kind == 4] * len(values), *values)
        )
        if len(raw) > 4:
            rows.append((tag, kind, len(values), struct.pack(end + "I", base + len(blob))))
            blob += raw + b"\0" * (len(raw) % 2)
        else:
            rows.append((tag, kind, max(len(values), 1), raw.ljust(4, b"\0")))
    start = base + len(blob)
    head = struct.pack(end + "H", len(rows))
    for tag, kind, count, value in rows:
        value = struct.pack(end + "I", start) if tag == 273 else value
        head += struct.pack(end + "HHI", tag, kind, count) + value
    following = start + len(data) if given.get("next") else 0
    return head + struct.pack(end + "I", following) + blob + data


def tiff(data: bytes, bits: int, photometric: int, *more: Value, end: str = "<", **given: int) -> bytes:
    head = b"II*\0" if end == "<" else b"MM\0*"
    return head + struct.pack(end + "I", 8) + page(data, bits, photometric, *more, end=end, **given)


def twelve(values: Any) -> bytes:
    """Two values in three bytes."""
    a, b = values[:, 0::2], values[:, 1::2]
    return np.dstack([a >> 4, (a & 15) << 4 | b >> 8, b & 255]).astype(np.uint8).tobytes()


def grays() -> Iterator[Case]:
    """Depths and polarities of gray TIFFs."""
    deep = GRAY.astype(np.uint16) * 257
    for end, name in (("<", "little"), (">", "big")):
        yield f"16 bits, {name}", tiff(deep.astype(end + "u2").tobytes(), 16, 1, end=end), GRAY
        inverse = (65535 - deep).astype(end + "u2").tobytes()
        little = end == "<"
        yield f"16 bits, white is 0, {name}", tiff(inverse, 16, 0, end=end), GRAY if little else UNKNOWN
        floats = (GRAY / 255).astype(end + "f4").tobytes()
        yield f"floats to 1, {name}", tiff(floats, 32, 1, format=3, end=end), GRAY
        wide = (GRAY.astype(np.uint32) * 0x01010101).astype(end + "u4").tobytes()
        yield f"32 bits, {name}", tiff(wide, 32, 1, end=end), stretched(GRAY) if little else UNKNOWN
        for kind, bits, layout in (("f4", 32, 3), ("i2", 16, 2), ("i4", 32, 2), ("u2", 16, 1)):
            values = (GRAY.astype(float) * (257 if kind == "u2" else 1)).astype(end + kind)
            packed = zlib.compress(values.tobytes())
            yield (
                f"{kind}, packed, {name}",
                tiff(packed, bits, 1, end=end, format=layout, compression=8),
                GRAY,
            )
    yield "12 bits", tiff(twelve(GRAY.astype(int) * 4095 // 255), 12, 1), GRAY
    yield "12 bits, white is 0", tiff(twelve(4095 - GRAY.astype(int) * 4095 // 255), 12, 0), UNKNOWN
    yield "8 bits, white is 0", tiff((255 - GRAY).tobytes(), 8, 0), GRAY
    four = GRAY // 17
    for photometric, values in ((1, four), (0, 15 - four)):
        packed = (values[:, 0::2] << 4 | values[:, 1::2]).astype(np.uint8).tobytes()
        yield f"4 bits, photometric {photometric}", tiff(packed, 4, photometric), four * 17
    black = GRAY > 127
    for photometric, bits in ((1, black), (0, ~black)):
        yield f"1 bit, photometric {photometric}", tiff(np.packbits(bits, 1).tobytes(), 1, photometric), black * 255  # fmt: skip
    signed = (GRAY.astype("<i2") * 4 - 300).tobytes()
    yield "16 bits, signed", tiff(signed, 16, 1, format=2), stretched(GRAY)
    heights = (GRAY * 4.0).astype("<f4").tobytes()
    yield "floats of any range", tiff(heights, 32, 1, format=3), stretched(GRAY)
    yield "floats, white is 0", tiff((1 - GRAY / 255).astype("<f4").tobytes(), 32, 0, format=3), GRAY
    yield "64 bits", tiff((GRAY / 255).astype("<f8").tobytes(), 64, 1, format=3), UNKNOWN


def gaps() -> Iterator[Case]:
    """Floats and integers of which some say that there is no value."""
    wanted = GRAY.copy()
    wanted[:10, :10] = 255
    for name, value, tag in (
        ("NaN", np.nan, b""), ("infinity", np.inf, b""), ("minus infinity", -np.inf, b""), ("nodata", -9999, b"-9999\0"),
        ("least float", -3.4028234663852886e38, b"-3.4028234663852886e+38\0"), ("nan as nodata", np.nan, b"nan\0"),
    ):  # fmt: skip
        floats = GRAY.astype("<f4")
        floats[:10, :10] = value
        more: list[Value] = [(42113, 2, tag)] if tag else []
        yield f"floats with {name}", tiff(floats.tobytes(), 32, 1, *more, format=3), wanted
    nothing = np.full((HEIGHT, WIDTH), np.nan, "<f4").tobytes()
    yield "floats, none", tiff(nothing, 32, 1, format=3), np.full_like(GRAY, 255)
    shorts = GRAY.astype("<i2")
    shorts[:10, :10] = -32768
    yield "integers with nodata", tiff(shorts.tobytes(), 16, 1, (42113, 2, b"-32768 \0"), format=2), wanted


def stretched(gray: Any) -> Any:
    gray = gray.astype(float)
    return (gray - gray.min()) * 255 / (gray.max() - gray.min())


def colors() -> Iterator[Case]:
    """Color TIFFs."""
    for compression in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        yield f"RGB, {compression}", saved(SCENE, "TIFF", compression=compression), SCENE
    yield "YCbCr", saved(SCENE.convert("YCbCr"), "TIFF"), SCENE if SINCE_13 else ODD
    yield "YCbCr, lzw", saved(SCENE.convert("YCbCr"), "TIFF", compression="tiff_lzw"), SCENE
    few = np.zeros((HEIGHT // 2, WIDTH // 2, 6), np.uint8).tobytes()  # four of Y share their colors
    yield (
        "YCbCr, few colors",
        tiff(few, 8, 6, (530, 3, [2, 2]), samples=3),
        ODD,
    )
    yield "CMYK", saved(SCENE.convert("CMYK"), "TIFF"), SCENE
    lab = ImageCms.profileToProfile(
        SCENE, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab
    yield "Lab", saved(lab, "TIFF"), SCENE
    yield "a palette", saved(SCENE.quantize(256), "TIFF"), SCENE
    deep = np.asarray(SCENE, np.uint16) * 257
    yield "RGB, 16 bits", tiff(deep.astype("<u2").tobytes(), 16, 2, samples=3), SCENE
    yield "RGB, 16 bits, big", tiff(deep.astype(">u2").tobytes(), 16, 2, end=">", samples=3), SCENE
    yield "RGB, floats", tiff((deep / 65535).astype("<f4").tobytes(), 32, 2, samples=3, format=3), UNKNOWN
    white = Image.composite(SCENE, Image.new("RGB", SCENE.size, "white"), half())
    straight, alpha = np.asarray(SCENE), np.asarray(half())[..., None]
    yield "RGBA", tiff(np.concatenate([straight, alpha], -1).tobytes(), 8, 2, (338, 3, [2]), samples=4), white
    ahead = np.concatenate([straight * (alpha // 255), alpha], -1).tobytes()
    yield "RGBA, multiplied", tiff(ahead, 8, 2, (338, 3, [1]), samples=4), white
    pair = np.dstack([GRAY * (alpha[..., 0] // 255), alpha[..., 0]]).tobytes()
    yield (
        "gray and alpha, multiplied",
        tiff(pair, 8, 1, (338, 3, [1]), samples=2),
        white.convert("L") if SINCE_13 else UNKNOWN,
    )


def half() -> Image.Image:
    """Opaque on the left."""
    mask = Image.new("L", SCENE.size, 0)
    mask.paste(255, (0, 0, WIDTH // 2, HEIGHT))
    return mask


def raw_files() -> Iterator[Case]:
    """TIFFs whose first page is a thumbnail."""
    small, full = SCENE.resize((48, 36)).tobytes(), SCENE.tobytes()
    first = page(small, 8, 2, (254, 4, [1]), (50706, 1, b"\1\4\0\0"), samples=3, width=48, height=36, next=1)
    head = b"II*\0\x08\0\0\0" + first
    yield "a DNG with a page", head + page(full, 8, 2, samples=3, at=len(head)), SCENE
    sensor = page(GRAY.tobytes(), 8, 32803, at=len(head))
    yield "a DNG with a sensor's page", head + sensor, THUMBNAIL
    inner = tiff(small, 8, 2, (254, 4, [1]), (330, 4, [8]), samples=3, width=48, height=36)
    yield "a DNG with its page inside", inner, THUMBNAIL
    yield "marked a thumbnail, and alone", tiff(full, 8, 2, (254, 4, [1]), samples=3), SCENE


# PNG


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)  # fmt: skip


def pngs() -> Iterator[Case]:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    yield "3 MB of text", saved(SCENE, "PNG", pnginfo=text), SCENE
    many = PngImagePlugin.PngInfo()
    for index in range(70):
        many.add_text(f"part {index}", "y" * 1_000_000, zip=True)
    yield "70 MB of text", saved(SCENE, "PNG", pnginfo=many), SCENE
    for name, extra in (
        ("a bad checksum", chunk(b"tEXt", b"Comment\0hello", 12345)), ("a cut profile", chunk(b"iCCP", b"icc")),
        ("an empty size", chunk(b"pHYs", b"")), ("a bad turn", chunk(b"eXIf", turn(6)[6:], 1)), ("nonsense", chunk(b"zzZz", b"\0")),
        ("a broken animation", chunk(b"acTL", b"\0\0\0\2")), ("a cut time", chunk(b"tIME", b"\1")), ("gamma", chunk(b"gAMA", b"")),
    ):  # fmt: skip
        yield f"PNG with {name}", PNG[:33] + extra + PNG[33:], SCENE
    yield "PNG with a film behind it", PNG + bytes(5 * 2**20), SCENE
    yield "PNG without its end", PNG[:-12], SCENE
    yield "half a PNG", PNG[: len(PNG) // 2], CUT
    broken = bytearray(PNG)
    broken[len(PNG) // 2] ^= 1
    yield "PNG with a bit flipped", bytes(broken), "^x is damaged"
    for bits in (1, 2, 4):
        levels = GRAY >> (8 - bits)
        spread = np.unpackbits(levels[..., None], 2)[..., 8 - bits :].reshape(HEIGHT, -1)
        rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(spread, 1))
        yield f"PNG, {bits} bits", png(bits, 0, rows), levels * (255 // (2**bits - 1))
    deep = (np.asarray(SCENE, np.uint16) * 257).astype(">u2")
    yield "PNG, RGB of 16 bits", png(16, 2, b"".join(b"\0" + row.tobytes() for row in deep)), SCENE
    gray = (GRAY.astype(np.uint16) * 257).astype(">u2")
    yield "PNG, gray of 16 bits", png(16, 0, b"".join(b"\0" + row.tobytes() for row in gray)), GRAY
    again = np.dstack([gray, np.full_like(gray, 65535)])
    yield "PNG, gray and alpha of 16 bits", png(16, 4, b"".join(b"\0" + row.tobytes() for row in again)), GRAY
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><r tiff:Orientation="3"/></x:xmpmeta>')
    yield "PNG turned by XMP", saved(SCENE.rotate(180), "PNG", pnginfo=xmp), SCENE


def png(bits: int, color: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, 0))
    return PNG[:8] + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# JPEG


def turn(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)


def jpegs() -> Iterator[Case]:
    for name, data in (("JPEG", JPEG), ("progressive JPEG", PROGRESSIVE)):
        yield name, data, SCENE
        yield f"{name} without its end", data[:-2], SCENE
        yield f"{name} without half of its end", data[:-1], SCENE
        yield f"{name} with a film behind it", data + bytes(9999), SCENE
        yield f"{name} with another behind it", data + JPEG, SCENE
        for part in (0.2, 0.5, 0.95 if data is JPEG else 0.4):
            cut = data[: int(len(data) * part)]
            yield f"{part} of a {name}", cut, CUT
            for end in (b"", b"\xff\xfe\0\4hi", b"\xff\xe0"):
                yield f"{part} of a {name}, {end.hex()} and an end", cut + end + b"\xff\xd9" + bytes(99), CUT
    for name, options in (
        ("4:4:4", {"subsampling": 0}), ("restarts", {"restart_marker_rows": 1}), ("RGB", {"keep_rgb": True}),
        ("comment", {"comment": b"\xff\xd9" * 9}),
    ):  # fmt: skip
        yield f"JPEG, {name}", saved(SCENE, "JPEG", quality=92, **options), SCENE
    yield "gray JPEG", saved(SCENE.convert("L"), "JPEG", quality=92), GRAY
    yield "CMYK JPEG", saved(SCENE.convert("CMYK"), "JPEG", quality=92), SCENE
    yield "filled JPEG", JPEG[:-2] + b"\xff\xff" + JPEG[-2:], SCENE
    at = JPEG.index(b"\xff\xc0") + 4
    yield "JPEG, 12 bits", JPEG[:at] + b"\x0c" + JPEG[at + 1 :], UNKNOWN


# The rest


def others() -> Iterator[Case]:
    turns = [None, *(getattr(Image.Transpose, name) for name in (
        "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270",
    ))]  # fmt: skip
    for orientation, undone in enumerate(turns, 1):
        stored = SCENE if undone is None else SCENE.transpose(undone)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield f"{kind} turned by {orientation}", saved(stored, kind, quality=92, exif=exif), SCENE
    for kind in ("WEBP", "AVIF", "GIF", "BMP", "MPO"):
        more = {"quality": 92} if kind != "BMP" else {}
        yield kind, saved(SCENE, kind, **more), SCENE
        yield f"half of {kind}", saved(SCENE, kind, **more)[:1500], r"^x is (damaged|cut off|not a picture)"
    yield (
        "BMP of 1 bit",
        saved(SCENE.convert("L").point(lambda v: 255 * (v > 127), "1"), "BMP"),
        (GRAY > 127) * 255,
    )
    yield "BMP of a palette", saved(SCENE.quantize(256), "BMP"), SCENE
    for kind in ("PNG", "WEBP"):
        image = SCENE.copy()
        image.putalpha(255)
        yield f"opaque {kind}", saved(image, kind, lossless=True), SCENE


CASES = [case for group in (grays, gaps, colors, raw_files, pngs, jpegs, others) for case in group()]


@pytest.mark.parametrize(("name", "data", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_each_is_seen_right_or_refused_with_its_reason(name: str, data: bytes, wanted: Any) -> None:
    if isinstance(wanted, str):
        with pytest.raises(PictureError, match=wanted):
            prepare.prepare(data, "x")
        return
    picture = prepare.prepare(data, "x")
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (picture.width, picture.height) == SCENE.size
        assert image.getexif().get(0x0112, 1) == 1
        seen = np.asarray(image.convert("RGB"), float)
    right = np.asarray(wanted if not isinstance(wanted, Image.Image) else wanted.convert("RGB"), float)
    right = right if right.ndim == 3 else np.repeat(right[..., None], 3, -1)
    assert abs(seen.mean() - right.mean()) < 3, (seen.mean(), right.mean())
    assert np.abs(seen - right).mean() < 8, np.abs(seen - right).mean()


def test_where_a_jpeg_is_cut() -> None:
    """All of it is there but a block or two, or it is refused."""
    for image in (SCENE, SCENE.convert("L"), Image.new("RGB", (160, 90))):
        data = saved(image, "JPEG", quality=92)
        for missing in range(14, 160, 4):
            with pytest.raises(PictureError, match="cut off"):
                prepare.prepare(data[:-missing] + b"\xff\xd9", "x")


def test_what_is_sent_is_sound_too() -> None:
    """As the server reads it with Pillow."""
    for data in (JPEG[:-2], PROGRESSIVE[:-2], JPEG + bytes(9), PNG[:33] + chunk(b"iCCP", b"icc") + PNG[33:]):
        sent = prepare.prepare(data, "x").data
        assert sent in (JPEG, PROGRESSIVE, PNG)
