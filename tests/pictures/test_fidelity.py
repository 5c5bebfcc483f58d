"""The model sees of what we upload what it would see of the original: 40 dB and more, for every kind."""

from __future__ import annotations

import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.pictures import encode, prepare, resize
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.turbo import Turbo
from tests.support import pictures
from tests.support.pictures import fidelity, psnr, saved, seen

PHOTO = pictures.photo(1, 1360, 1020)
SCREEN = pictures.screen(2, 1366, 768, size=13)
# Black on white with sharp edges: what is whiter than white fits into no file.
PAGE = pictures.screen(3, 1366, 768, size=13, film=False).convert("L").point(lambda v: 0 if v < 160 else 255)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow alone, whatever was prepared before; and no file is small enough to go up as it is."""
    monkeypatch.setattr(prepare, "TURBO", Turbo(worth=10**12))
    monkeypatch.setattr(prepare, "SMALL_FILE", 0)


@pytest.fixture
def turbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``fast`` extra from the first picture on."""
    monkeypatch.setattr(prepare, "TURBO", Turbo(worth=0))


def prepared(data: bytes, *, least: float = 40.0) -> Picture:
    picture = prepare.prepare(data, "x")
    assert fidelity(picture.data, data) >= least
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (picture.width, picture.height)
        assert picture.tokens == pixtral.image_tokens(*image.size)
    return picture


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", **{"quality": 90, "subsampling": 2, **options})


# Every class


@pytest.mark.parametrize(
    ("detail", "slope", "noise", "sharpen"), [(1.3, 1.1, 4, 120), (0.6, 1.25, 8, 60), (0.8, 1.5, 1.5, 80)]
)
def test_photos(detail: float, slope: float, noise: float, sharpen: int) -> None:
    photo = pictures.photo(4, 1280, 960, detail=detail, slope=slope, noise=noise, sharpen=sharpen)
    assert prepared(jpeg(photo)).media_type == "image/jpeg"


@pytest.mark.parametrize("cleaned", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_scans(color: bool, cleaned: bool) -> None:
    page = pictures.scan(5, 900, 1273, size=22, blur=0.7, color=color, cleaned=cleaned)
    for data in (jpeg(page), saved(page, "PNG")):
        assert prepared(data)


@pytest.mark.parametrize("dark", [False, True])
def test_screens(dark: bool) -> None:
    assert prepared(saved(pictures.screen(6, 1366, 768, size=13, dark=dark), "PNG"))


@pytest.mark.parametrize("stroke", [2, 5])
def test_diagrams(stroke: int) -> None:
    data = saved(pictures.diagram(7, 1400, 1000, stroke=stroke, size=20), "PNG")
    assert prepared(data).media_type == "image/webp"


def test_what_cannot_be_shrunk_goes_up_at_its_own_size() -> None:
    data = saved(PAGE, "PNG")
    size = pixtral.fit(*PAGE.size)
    shrunk = resize.shrink(PAGE, size)
    assert psnr(np.array(shrunk), seen(PAGE)[..., 0]) < 35
    picture = prepared(data, least=99)
    assert ((picture.width, picture.height), picture.media_type) == (PAGE.size, "image/webp")
    assert len(picture.data) < len(data)
    assert picture.tokens == pixtral.image_tokens(*size)


def test_a_small_file_without_loss_goes_up_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for data in (saved(SCREEN, "PNG"), saved(PAGE, "PNG"), saved(SCREEN, "WEBP", lossless=True)):
        picture = prepared(data, least=99)
        assert picture.data == data
        assert picture.tokens == pixtral.image_tokens(1366, 768)
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (saved(SCREEN, "PNG", exif=turned), jpeg(PHOTO), saved(SCREEN.resize((16_384, 9)), "PNG")):
        assert prepared(data).data != data
    data = saved(SCREEN, "PNG")
    with pytest.raises(PictureError, match="cut off"):
        prepare.prepare(data[: len(data) // 2], "x")
    monkeypatch.setattr(prepare, "SMALL_FILE", len(data) - 1)
    assert prepared(data).data != data


def test_a_jpeg_that_cannot_be_shrunk_goes_up_as_it_is() -> None:
    upright, turned = jpeg(PAGE), Image.Exif()
    assert prepare.prepare(upright, "x").data == upright
    turned[0x0112] = 6
    assert prepared(jpeg(PAGE, exif=turned)).height == PAGE.width


def test_too_large_to_go_up_at_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MAX_FULL_SIZE", 10**6)
    picture = prepare.prepare(saved(PAGE, "PNG"), "x")
    assert (picture.width, picture.height) == pixtral.fit(*PAGE.size)


# Every kind of pixel


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_with_all_or_fewer_colors(subsampling: int) -> None:
    # Sharp edges between colors of the same brightness, where only the colors tell.
    stripes = Image.new("RGB", (1300, 900))
    stripes.putdata(
        [(200, 60, 90) if (x // 3 + y // 3) % 2 else (60, 127, 60) for y in range(900) for x in range(1300)]
    )
    prepared(jpeg(stripes, subsampling=subsampling))


def test_a_jpeg_of_red_green_and_blue() -> None:
    prepared(jpeg(PHOTO, subsampling=0, keep_rgb=True))


def test_cmyk() -> None:
    prepared(jpeg(PHOTO.convert("CMYK"), quality=95))


def test_gray() -> None:
    with Image.open(io.BytesIO(prepared(jpeg(PHOTO.convert("L"))).data)) as image:
        assert image.mode == "L"


def test_16_bits() -> None:
    gray = PHOTO.convert("L")
    deep = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    picture = prepare.prepare(saved(deep, "PNG"), "x")
    with Image.open(io.BytesIO(picture.data)) as image:
        assert psnr(seen(image), seen(gray)) > 40


def test_a_palette() -> None:
    prepared(saved(PHOTO.quantize(200, method=Image.Quantize.FASTOCTREE), "GIF"))


def test_transparent() -> None:
    image = PHOTO.copy()
    image.putalpha(PHOTO.convert("L").rotate(180))
    prepared(saved(image, "PNG"))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared(jpeg(PHOTO.resize((1200, 900)), exif=exif))


# The filter


def rows_of(image: Image.Image) -> resize.Crop:
    return lambda first, last: image.crop((0, first, image.width, last))


@pytest.mark.parametrize("size", [(1300, 950), (700, 2048), (1030, 790), (4000, 9), (1025, 1024)])
def test_the_filter_is_that_of_the_server(size: tuple[int, int]) -> None:
    image = PHOTO.resize(size)
    wanted = np.clip(seen(image), 0, 255)
    border = np.ones(wanted.shape[:2], bool)
    border[2:-2, 2:-2] = False
    shrunk = np.array(resize.shrink(image, pixtral.fit(*size)))
    for where in (slice(None), border):
        assert psnr(shrunk[where], wanted[where]) > (50 if size[1] > 800 else 45)


def test_shrunk_in_bands_is_the_same() -> None:
    size = pixtral.fit(*PHOTO.size)
    bands = resize.shrink_bands(rows_of(PHOTO), *PHOTO.size, size)
    assert psnr(np.array(bands), np.array(resize.shrink(PHOTO, size))) > 55


def test_what_is_lost_is_known() -> None:
    for image in (PHOTO, SCREEN, PAGE):
        shrunk = resize.shrink(image, pixtral.fit(*image.size))
        lost = resize.lost(rows_of(image), *image.size, shrunk)
        wanted = seen(image)
        actual = np.asarray(shrunk, np.float32).reshape(*wanted.shape[:2], -1)
        truth = float(np.mean((actual - wanted) ** 2))
        assert truth / 1.6 - 0.3 < lost < truth * 1.6 + 0.3


@pytest.mark.parametrize("loss", [2.0, 3.0, 6.0])
def test_a_jpeg_loses_no_more_than_it_may(loss: float) -> None:
    noise = Image.effect_noise((800, 600), 90).convert("RGB")
    for image in (noise, PHOTO, SCREEN):
        step = encode.step(image, loss)
        assert step is not None
        with Image.open(io.BytesIO(encode.jpeg(image, step))) as file:
            lost = float(np.mean((np.array(file, np.float32) - np.array(image, np.float32)) ** 2))
        assert lost < loss * 1.05
    assert encode.step(PHOTO, 0.5) is None


# The fast extra


def test_the_fast_extra_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (jpeg(PHOTO), jpeg(PHOTO.convert("L")), jpeg(PHOTO, progressive=True)):
        monkeypatch.setattr(prepare, "TURBO", Turbo(worth=10**12))
        one = seen(Image.open(io.BytesIO(prepared(data).data)))
        monkeypatch.setattr(prepare, "TURBO", Turbo(worth=0))
        assert psnr(seen(Image.open(io.BytesIO(prepared(data).data))), one) > 39


def test_the_fast_extra_shrinks_as_pillow_does() -> None:
    fast, size = Turbo(worth=0), pixtral.fit(*PHOTO.size)
    for mode in ("RGB", "L"):
        data = jpeg(PHOTO.convert(mode))
        found = fast.shrink(data, mode, PHOTO.size, size)
        assert found
        with Image.open(io.BytesIO(data)) as image:
            assert psnr(np.array(found[0]), np.array(resize.shrink(image, size))) > 50


@pytest.mark.usefixtures("turbo")
def test_the_fast_extra_turns_and_refuses_as_pillow_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = jpeg(PHOTO, exif=exif)
    assert prepared(data).height == 1024
    for end in (b"", b"\xff\xd9"):
        with pytest.raises(PictureError, match=r"^x is cut off"):
            prepare.prepare(data[: len(data) // 2] + end, "x")
    prepared(data + bytes(99))
    assert prepare.prepare(data[:-2], "x").data == prepare.prepare(data, "x").data
    prepared(jpeg(PHOTO.convert("CMYK")))


def test_the_fast_extra_waits_until_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    turbo = Turbo()
    assert [turbo.pays(12_000_000) for _ in range(7)] == [False] * 5 + [True] * 2
    turbo.installed = False
    assert not turbo.pays(12_000_000)


# Threads


def test_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO.width * PHOTO.height - 1)  # warns of it
    good, cut = jpeg(PHOTO), jpeg(PHOTO)[:9000]
    # "Corrupt EXIF data"
    warned = jpeg(PHOTO.crop((0, 0, 96, 64)), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    small = saved(Image.new("RGB", (64, 48), "red"), "PNG")
    wanted = {data: prepare.prepare(data, "x").data for data in (good, warned, small)}
    filters, gate, shown = list(warnings.filters), threading.Barrier(8), []
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **kwargs: shown.append(args))

    def work(index: int) -> None:
        gate.wait()
        for turn in range(6):
            data = (good, cut, warned, small)[(index + turn) % 4]
            if data is cut:
                with pytest.raises(PictureError, match=r"^x is cut off"):
                    prepare.prepare(data, "x")
            else:
                assert prepare.prepare(data, "x").data == wanted[data]

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(work, range(8)):
            pass
    assert not shown
    assert warnings.filters == filters  # nothing was put there twice, and nothing taken away


def test_our_own_warnings_are_shown() -> None:
    prepare.prepare(jpeg(PHOTO), "x")
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)
