"""What is sent for pictures of every kind, and for what is none. Every picture is made here."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import runpy
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, TiffImagePlugin

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.extras import install
from pixtral_sky.pictures import prepare
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import read_picture
from pixtral_sky.text import shown
from tests.support.pictures import saved

EXAMPLES = Path(__file__).parents[2] / "examples"
RED, GREEN, BLUE, YELLOW = (220, 20, 30), (20, 200, 40), (30, 40, 220), (230, 220, 10)


def corners(width: int = 96, height: int = 64) -> Image.Image:
    """Red and green above, blue and yellow below."""
    image = Image.new("RGB", (width, height), RED)
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), GREEN)
    draw.rectangle((0, height // 2, width // 2 - 1, height), BLUE)
    draw.rectangle((width // 2, height // 2, width, height), YELLOW)
    return image


@functools.cache
def scene(width: int, height: int) -> Image.Image:
    """Smooth shapes with a little grain, as in a photo, up to all four borders."""
    coarse = Image.effect_noise((width // 8 + 1, height // 8 + 1), 90)
    channels = [
        coarse.rotate(turn).resize((width, height), Image.Resampling.BICUBIC) for turn in (0, 90, 180)
    ]
    photo = Image.merge("RGB", channels).filter(ImageFilter.GaussianBlur(3))
    grain = Image.effect_noise((width, height), 40).filter(ImageFilter.GaussianBlur(1.5)).convert("RGB")
    return Image.blend(photo, grain, 0.1)


def decoded(picture: Picture) -> Image.Image:
    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert image.size == (picture.width, picture.height)
        assert f"image/{(image.format or '').lower()}" == picture.media_type
        assert image.getexif().get(0x0112, 1) == 1
        return image.convert("RGB")


def near(actual: object, expected: tuple[int, int, int], most: int = 24) -> bool:
    assert isinstance(actual, tuple)
    return all(abs(a - e) <= most for a, e in zip(actual, expected, strict=True))


def assert_corners(picture: Picture, expected: list[tuple[int, int, int]]) -> None:
    image = decoded(picture)
    x, y = image.width - 5, image.height - 5
    for place, color in zip([(4, 4), (x, 4), (4, y), (x, y)], expected, strict=True):
        assert near(image.getpixel(place), color), (place, image.getpixel(place), color)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def refused(data: bytes, name: str = "a.jpg") -> PictureError:
    with pytest.raises(PictureError) as caught:
        prepare.prepare(data, name)
    assert name in caught.value.what
    assert "\n" not in str(caught.value)
    return caught.value


# As it is


@pytest.mark.parametrize(
    ("image", "kind", "media_type"),
    [
        (corners(), "JPEG", "image/jpeg"),
        (corners(), "PNG", "image/png"),
        (corners(), "WEBP", "image/webp"),
        (corners().convert("L"), "JPEG", "image/jpeg"),
        (corners().convert("L"), "PNG", "image/png"),
        (corners(1024, 1024), "PNG", "image/png"),
        (corners().quantize(16), "PNG", "image/png"),
        (corners().convert("1"), "PNG", "image/png"),
        (corners().convert("RGBA"), "PNG", "image/png"),
        (corners(1600, 900).convert("RGBA"), "PNG", "image/png"),
    ],
)
def test_what_needs_no_change_is_sent_byte_for_byte(image: Image.Image, kind: str, media_type: str) -> None:
    data = saved(image, kind)
    picture = prepare.prepare(data, "a.gif")  # the extension says nothing
    assert picture.data == data
    assert (picture.name, picture.width, picture.height) == ("a.gif", *image.size)
    assert picture.media_type == media_type
    assert picture.tokens == pixtral.image_tokens(*image.size)
    assert picture.data_url() == f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    assert "data" not in repr(picture)


def test_a_film_behind_a_small_picture_is_not_sent() -> None:
    data = saved(corners(), "JPEG") + bytes(prepare.MAX_AS_IS)
    picture = prepare.prepare(data, "motion.jpg")
    assert len(picture.data) < 10_000
    assert_corners(picture, [RED, GREEN, BLUE, YELLOW])


# Every kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("size", [(96, 64), (1200, 800)])
def test_every_kind_is_read(kind: str, size: tuple[int, int]) -> None:
    picture = prepare.prepare(saved(corners(*size), kind), "x")
    shrunk = max(size) > 1024 and kind not in ("PNG", "WEBP")
    assert (picture.width, picture.height) == (pixtral.fit(*size) if shrunk else size)
    assert picture.tokens == pixtral.image_tokens(*size)
    assert_corners(picture, [RED, GREEN, BLUE, YELLOW])


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(corners(256, 128)).save(file, quality=90)
    picture = prepare.prepare(file.getvalue(), "IMG_1.HEIC")
    assert (picture.width, picture.height, picture.media_type) == (256, 128, "image/png")
    assert_corners(picture, [RED, GREEN, BLUE, YELLOW])
    assert refused(file.getvalue()[:300], "IMG_1.HEIC")


def test_a_turned_heic_is_turned_once() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = prepare.prepare(saved(corners(256, 128), "HEIF", exif=exif.tobytes()), "IMG_1.HEIC")
    assert (picture.width, picture.height) == (128, 256)
    assert_corners(picture, [BLUE, RED, YELLOW, GREEN])


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix"])
def test_heic_without_its_plugin_names_the_command(brands: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refused(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(99), "IMG_1.HEIC")
    assert "HEIC" in error.what
    assert error.hint == install("heic")


def test_avif_needs_no_heic_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert_corners(prepare.prepare(saved(corners(), "AVIF"), "x"), [RED, GREEN, BLUE, YELLOW])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_the_first_of_many_frames_alone_is_sent(kind: str) -> None:
    more = [Image.new("RGB", (96, 64), color) for color in ("black", "white")]
    data = saved(corners(), kind, save_all=True, append_images=more)
    picture = prepare.prepare(data, "x")
    assert picture.media_type == "image/png"
    with Image.open(io.BytesIO(picture.data)) as image:
        assert getattr(image, "n_frames", 1) == 1
    assert_corners(picture, [RED, GREEN, BLUE, YELLOW])


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "PPM"])
def test_other_kinds_are_refused(kind: str) -> None:
    assert "not a picture" in refused(saved(corners(), kind)).what


@pytest.mark.parametrize("size", [(96, 64), (1200, 40)])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_what_of_an_animation_or_a_document_is_sent(kind: str, size: tuple[int, int]) -> None:
    first, *more = (Image.new("RGB", size, color) for color in ("red", "black", "white"))
    noun = "pages" if kind == "TIFF" else "frames"
    many = saved(first, kind, save_all=True, append_images=more)
    assert prepare.prepare(many, "x").part == f"the first of 3 {noun}"
    assert prepare.prepare(saved(first, kind), "x").part == ""


def test_a_thumbnail_is_no_page_and_a_photos_preview_no_frame() -> None:
    small = Image.new("RGB", (12, 8))
    marked = TiffImagePlugin.ImageFileDirectory_v2()
    marked[254] = 1
    small.encoderinfo = {"tiffinfo": marked}  # of this page alone
    thumbnail = saved(corners(), "TIFF", save_all=True, append_images=[small])
    assert prepare.prepare(thumbnail, "x").part == ""
    assert prepare.prepare(saved(corners(), "MPO", save_all=True, append_images=[small]), "x").part == ""


def test_damage_behind_the_page_that_is_sent_is_nobodys_matter() -> None:
    data = bytearray(saved(corners(), "TIFF", save_all=True, append_images=[corners()]))
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        second = image.tag_v2.next
    data[second:] = b"\xff" * (len(data) - second)
    assert_corners(prepare.prepare(bytes(data), "x"), [RED, GREEN, BLUE, YELLOW])


SVG = b"<?xml version='1.0'?>\n<!-- <svg> -->\n<!DOCTYPE svg PUBLIC '' [<!ENTITY a 'b'>]>\n<svg xmlns=''/>"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("d/a clip.mp4", b"\0\0\0\x18ftypisom", "a video. Take pictures from it: ffmpeg -i 'd/a clip.mp4' -vf fps=1/5 'a clip'-%03d.jpg"),
        ("clip.MOV", b"nonsense", "a video. Take pictures from it: ffmpeg -i clip.MOV "),
        ("clip", b"\0\0\0\x14ftypqt  ", "a video. Take pictures from it: ffmpeg -i FILE.mp4 -vf fps=1/5 FILE-%03d.jpg"),
        ("https://h/d/clip.webm", b"\x1a\x45\xdf\xa3", "a video. Take pictures from it: ffmpeg -i clip.webm "),
        ("clip.avi", b"RIFF\1\2\3\4AVI LIST", "a video."),
        ("logo.svg", SVG, "an SVG drawing. Draw it: rsvg-convert -w 1024 logo.svg -o logo.png"),
        ("logo", b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing. Draw it: rsvg-convert -w 1024 FILE.svg "),
        ("logo.svgz", b"\x1f\x8b", "an SVG drawing."),
        ("a.cr2", b"II*\0\x10\0\0\0CR\2\0", "a raw file of a camera. Develop it: darktable-cli a.cr2 a.jpg"),
        ("a.NEF", b"MM\0*\0\0\0\x08\0\0", "a raw file of a camera."),
        ("a.cr3", b"\0\0\0\x18ftypcrx ", "a raw file of a camera."),
        ("a.psd", b"8BPS\0\1", "a Photoshop file. Convert it: convert a.psd'[0]' a.png"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript. Draw it: gs "),
        ("a.docx", b"PK\3\4" + bytes(26) + b"[Content_Types].xml", "an Office document. Make a PDF of it, and give that: soffice --convert-to pdf a.docx"),
        ("a.ppt", b"\xd0\xcf\x11\xe0", "an Office document."),
        ("a.jxl", b"\xff\x0a", "a JPEG XL picture. Convert it: djxl a.jxl a.png"),
        ("a.jp2", b"\0\0\0\x0cjP  ", "a JPEG 2000 picture."),
        ("a.bin", b"%PDF-1.7", "a PDF. Give it as a file whose name ends in .pdf."),
    ],
)  # fmt: skip
def test_what_is_mistaken_for_a_picture_is_named_with_what_helps(name: str, data: bytes, says: str) -> None:
    with pytest.raises(PictureError) as caught:
        prepare.prepare(data, name)
    assert str(caught.value).startswith(f"{name} is {says}")


@pytest.mark.parametrize("name", ["x.mp4", "x.svg", "x.docx", "x.nef"])
def test_a_picture_of_a_misleading_name_is_one(name: str) -> None:
    assert_corners(prepare.prepare(saved(corners(), "PNG"), name), [RED, GREEN, BLUE, YELLOW])
    cut = saved(corners(), "PNG")[:60]
    with pytest.raises(PictureError, match=r"is cut off\."):
        prepare.prepare(cut, name)


def test_a_page_that_seems_to_be_a_drawing_for_long_is_looked_at_in_no_time() -> None:
    began = time.monotonic()
    for data in (b"<!---->" * 600, b"<?" * 2000, b" " * 4096, b"<!--" * 1000, b"<!DOCTYPE svg [" * 250):
        refused(data + b"x")
    assert time.monotonic() - began < 1


# Colors


def test_cmyk() -> None:
    picture = prepare.prepare(saved(corners().convert("CMYK"), "JPEG", quality=95), "x")
    assert picture.media_type == "image/png"
    assert_corners(picture, [RED, GREEN, BLUE, YELLOW])


def mean(picture: Picture) -> float:
    band = decoded(picture).convert("L").tobytes()
    return sum(band) / len(band)


def test_16_bit_gray_keeps_its_brightness() -> None:
    values = [i * 65535 // 9999 for i in range(10_000)]
    rows = b"".join(
        b"\0" + b"".join(struct.pack(">H", v) for v in values[i : i + 100]) for i in range(0, 10_000, 100)
    )
    assert mean(prepare.prepare(png(100, 100, 16, 0, rows), "x")) == pytest.approx(127.5, abs=1)
    # With a transparent color, too: the gray is what counts.
    picture = prepare.prepare(png(100, 100, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 0))), "x")
    assert mean(picture) == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [
        ("I", 0, 255),
        ("I", 0, 65535),
        ("I", -5000, 900_000),
        ("F", 0.0, 1.0),
        ("F", 0.0, 255.0),
        ("F", -3.0, 9.5),
    ],
)
def test_wide_gray_is_brought_to_8_bits(mode: str, low: float, high: float) -> None:
    image = Image.new(mode, (64, 64), low)
    image.paste(high, (32, 0, 64, 64))
    picture = decoded(prepare.prepare(saved(image, "TIFF"), "x"))
    assert picture.getpixel((4, 4)) == (0, 0, 0)
    assert picture.getpixel((60, 4)) == (255, 255, 255)


@pytest.mark.parametrize("value", [-7.0, float("nan"), float("inf")])
def test_gray_without_a_range_is_no_crash(value: float) -> None:
    assert prepare.prepare(saved(Image.new("F", (8, 8), value), "TIFF"), "x").width == 8


def test_a_large_16_bit_picture_is_shrunk() -> None:
    picture = prepare.prepare(saved(Image.new("I;16", (1500, 20), 30_000), "PNG"), "x")
    assert (picture.width, picture.height) == pixtral.fit(1500, 20)
    assert mean(picture) == pytest.approx(30_000 / 257, abs=2)


def test_1_bit() -> None:
    image = Image.new("1", (40, 40), 1)
    image.paste(0, (0, 0, 20, 40))
    for kind in ("PNG", "TIFF", "BMP"):
        picture = decoded(prepare.prepare(saved(image, kind), "x"))
        assert (picture.getpixel((3, 3)), picture.getpixel((33, 3))) == ((0, 0, 0), (255, 255, 255))


def transparent(mode: str) -> bytes:
    """Left half opaque gray (or red), right half fully transparent over black."""
    if mode == "P":
        image = Image.new("P", (64, 32), 0)
        image.putpalette([*RED, 0, 0, 0])
        image.paste(1, (32, 0, 64, 32))
        return saved(image, "PNG", transparency=b"\xff\x00")
    if mode == "GIF":
        image = Image.new("P", (64, 32), 0)
        image.putpalette([*RED, 0, 0, 0])
        image.paste(1, (32, 0, 64, 32))
        return saved(image, "GIF", transparency=1)
    if mode in ("RGB", "L", "1"):  # one color is the transparent one
        image = Image.new(mode, (64, 32), 255 if mode != "RGB" else RED)
        image.paste(0 if mode != "RGB" else (0, 0, 0), (32, 0, 64, 32))
        return saved(image, "PNG", transparency=0 if mode != "RGB" else (0, 0, 0))
    image = Image.new(mode, (64, 32), (90, 255) if mode == "LA" else (*RED, 255))
    image.paste((0, 0) if mode == "LA" else (0, 0, 0, 0), (32, 0, 64, 32))
    return saved(image, "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "GIF", "RGB", "L", "1"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    picture = prepare.prepare(transparent(mode), "x")
    image = decoded(picture)
    left = {"LA": (90, 90, 90), "L": (255, 255, 255), "1": (255, 255, 255)}.get(mode, RED)
    assert image.getpixel((5, 5)) == left
    assert image.getpixel((60, 5)) == (255, 255, 255)
    with Image.open(io.BytesIO(picture.data)) as sent:
        assert not sent.has_transparency_data


def test_half_transparent_is_half_white() -> None:
    image = decoded(prepare.prepare(saved(Image.new("RGBA", (20, 20), (0, 0, 0, 128)), "WEBP"), "x"))
    assert near(image.getpixel((9, 9)), (127, 127, 127), 2)


def test_a_large_transparent_picture() -> None:
    picture = prepare.prepare(saved(Image.new("RGBA", (1200, 40), (0, 0, 0, 0)), "PNG"), "x")
    assert near(decoded(picture).getpixel((500, 5)), (255, 255, 255), 2)


def test_16_bit_rgb_with_a_transparent_color() -> None:
    rows = (b"\0" + struct.pack(">HHH", 65535, 0, 0) * 20) * 20
    data = png(20, 20, 16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert decoded(prepare.prepare(data, "x")).getpixel((5, 5)) == (255, 0, 0)


# EXIF


UPRIGHT = {
    1: [RED, GREEN, BLUE, YELLOW],
    2: [GREEN, RED, YELLOW, BLUE],
    3: [YELLOW, BLUE, GREEN, RED],
    4: [BLUE, YELLOW, RED, GREEN],
    5: [RED, BLUE, GREEN, YELLOW],
    6: [BLUE, RED, YELLOW, GREEN],
    7: [YELLOW, GREEN, BLUE, RED],
    8: [GREEN, YELLOW, RED, BLUE],
}


@pytest.mark.parametrize(
    ("kind", "size", "orientation"),
    [
        *(("JPEG", size, orientation) for size in ((96, 64), (1200, 600)) for orientation in UPRIGHT),
        *(("AVIF", (96, 64), orientation) for orientation in UPRIGHT),  # which has marks of its own for it
        *((kind, (96, 64), 6) for kind in ("PNG", "WEBP", "TIFF")),
        ("TIFF", (1200, 600), 6),
    ],
)
def test_pictures_are_turned_upright(kind: str, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = prepare.prepare(saved(corners(*size), kind, exif=exif), "x")
    upright = size if orientation < 5 else size[::-1]
    assert (picture.width, picture.height) == (pixtral.fit(*upright) if max(size) > 1024 else upright)
    assert_corners(picture, UPRIGHT[orientation])


def test_what_is_stored_anew_says_nothing_but_pixels() -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    exif[0x0112] = 3
    for size in ((64, 64), (1100, 64)):
        data = saved(
            corners(*size), "JPEG", exif=exif, comment=b"SECRET", icc_profile=b"SECRET", xmp=b"SECRET"
        )
        assert data.count(b"SECRET") == 4
        assert b"SECRET" not in prepare.prepare(data, "x").data


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    for junk in (b"Exif\0\0", b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", b"Exif\0\0II" + bytes(range(99))):
        data = saved(corners(), "JPEG", exif=junk)
        assert prepare.prepare(data, "x").data == data


# Size


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_the_size_sent_costs_the_same_tokens(width: int, height: int) -> None:
    sent = pixtral.fit(width, height)
    assert pixtral.image_tokens(*sent) == pixtral.image_tokens(width, height)
    assert pixtral.fit(*sent) == sent  # the server leaves it alone
    assert pixtral.fit(height, width) == sent[::-1]  # shrunk and turned is turned and shrunk


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2500), st.integers(1, 400), st.booleans())
def test_tokens_are_those_of_the_original(width: int, height: int, tall: bool) -> None:
    size = (height, width) if tall else (width, height)
    picture = prepare.prepare(saved(Image.new("L", size, 99), "BMP"), "x")
    assert picture.tokens == pixtral.image_tokens(*size)
    assert max(picture.width, picture.height) <= 1024


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1), (1025, 1024)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    picture = prepare.prepare(saved(Image.new("RGB", size, RED), "BMP"), "x")
    assert (picture.width, picture.height) == (pixtral.fit(*size) if max(size) > 1024 else size)
    image = decoded(picture)
    for place in [(0, 0), (image.width - 1, image.height - 1), (image.width // 2, image.height // 2)]:
        assert near(image.getpixel(place), RED, 4)


# None that can be sent


def test_empty() -> None:
    assert refused(b"").what == "a.jpg is empty."


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("size", [(300, 200), (1040, 300)])
def test_truncated(kind: str, size: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(scene(*size), kind)
    for part in (0.1, 0.5, 0.9):
        refused(data[: int(len(data) * part)])
    assert capfd.readouterr() == ("", "")  # the decoders in C keep quiet, too


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate"])
def test_a_truncated_compressed_tiff(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(scene(300, 200), "TIFF", compression=compression)
    for part in (0.1, 0.5, 0.9):
        refused(data[: int(len(data) * part)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_noise_in_a_file_is_an_error_or_a_picture(kind: str) -> None:
    whole = saved(scene(64, 48), kind)
    for at in range(0, min(len(whole), 1200), 23):
        data = bytearray(whole)
        data[at : at + 4] = b"\xff\x00\xff\xf7"
        with contextlib.suppress(PictureError):  # it, and nothing else
            assert prepare.prepare(bytes(data), "x.tif").tokens


def test_what_is_no_picture() -> None:
    assert "PNG" in refused(b"Dear all,\nplease find attached").hint
    assert "HTML" in refused(b"\n<!doctype html><svg></svg>").hint


def test_a_decompression_bomb() -> None:
    error = refused(png(20_000, 20_000, 8, 2, b""))
    assert "178,956,970 pixels" in error.what


def test_a_large_picture_is_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # warns from here, refuses from twice that
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert prepare.prepare(saved(corners(), "PNG"), "x").width == 96
    assert not shown


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare, "_upload", fail)
    assert "memory" in refused(saved(corners(), "PNG")).what


def test_a_name_that_would_move_the_cursor() -> None:
    with pytest.raises(PictureError) as caught:
        prepare.prepare(b"", "a\n\x1b[2J\udcff.jpg")
    assert caught.value.what == "a\ufffd\ufffd[2J\ufffd.jpg is empty."
    assert len(shown("x" * 9999)) == 160


# The examples


def test_the_examples_are_what_their_script_draws(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / "draw.py"))["main"](tmp_path)
    for name in ("chart.png", "receipt.jpg"):
        committed = EXAMPLES / name
        assert committed.stat().st_size < 250_000
        with Image.open(committed) as ours, Image.open(tmp_path / name) as drawn:
            assert (ours.size, ours.mode, ours.format) == (drawn.size, drawn.mode, drawn.format)
        assert read_picture(committed).tokens > 1000


def test_the_receipt_adds_up() -> None:
    script = runpy.run_path(str(EXAMPLES / "draw.py"))
    assert sum(count * price for _, count, price in script["BOUGHT"]) == 3421 <= script["CASH"]
