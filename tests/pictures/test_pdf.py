"""Pages of PDFs as the model gets them."""

from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.extras import install
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.picture import Picture
from tests.support import pdfs

RED_BELOW = b"1 0 0 rg 0 0 612 396 re f"  # PDFs count from below


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.pdf"


def decoded(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    assert image.size == (picture.width, picture.height)
    return image.convert("RGB")


def fails(call, *arguments) -> str:
    with pytest.raises(PictureError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((612, 792), (800, 1024)),  # US letter: 791 pixels, in whole patches
        ((792, 612), (1024, 800)),
        ((595.28, 841.89), (736, 1024)),  # A4
        ((50, 50), (1024, 1024)),
        ((14_400, 14_400), (1024, 1024)),
        ((10_000, 1), (1024, 16)),
    ],
)
def test_a_page_is_drawn_as_large_as_the_model_sees(file, size, drawn):
    file.write_bytes(pdfs.made(b"", size=size))
    picture = pdf.page(str(file), 1)
    assert (picture.width, picture.height) == drawn == pixtral.fit(*drawn)
    assert (picture.name, picture.media_type) == (f"{file}#page=1", "image/jpeg")
    assert decoded(picture).getpixel((3, 3)) == (255, 255, 255)


def test_what_is_drawn(file):
    file.write_bytes(pdfs.made(b"", RED_BELOW))
    assert pdf.pages(str(file)) == 2
    image = decoded(pdf.page(str(file), 2))
    assert image.getpixel((400, 500)) == (255, 255, 255)
    red, green, blue = image.getpixel((400, 524))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15
    assert decoded(pdf.page(str(file), 1)).getpixel((400, 524)) == (255, 255, 255)


def test_a_page_that_is_turned(file):
    file.write_bytes(pdfs.made(RED_BELOW, page=b"/Rotate 90"))
    picture = pdf.page(str(file), 1)
    assert (picture.width, picture.height) == (1024, 800)
    assert decoded(picture).getpixel((1000, 10)) == (255, 255, 255)
    assert decoded(picture).getpixel((10, 10))[1] < 15  # type: ignore[index]


def test_a_form_with_what_was_filled_in(file):
    look = b"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Length 27 >>\nstream\n0 0 1 rg 0 0 612 792 re f  \nendstream"
    widget = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (x) /F 4 /Rect [0 0 612 792] /AP << /N 3 0 R >> >>"
    made = pdfs.made(
        b"", page=b"/Annots [4 0 R]", catalog=b"/AcroForm << /Fields [4 0 R] >>", more=(look, widget)
    )
    file.write_bytes(made)
    red, _, blue = decoded(pdf.page(str(file), 1)).getpixel((400, 500))  # type: ignore[misc]
    assert blue > 240 > 100 > red


def test_thin_strokes_stay_whole(file):
    """148 lines of half a point: each is there, as dark as one pixel."""
    lines = b" ".join(b"%d 0 m %d 792 l S" % (x, x) for x in range(10, 600, 4))
    file.write_bytes(pdfs.made(b"0.5 w " + lines))
    image = decoded(pdf.page(str(file), 1)).convert("L")
    row = [image.getpixel((x, 500)) for x in range(800)]
    dark = sum(255 - value for value in row) / 255  # type: ignore[operator]
    assert abs(dark - 148) < 5


def test_300_pages_by_threads(file):
    contents = [b"%g g 0 0 612 792 re f" % (number / 300) for number in range(300)]
    file.write_bytes(pdfs.made(*contents))
    assert pdf.pages(str(file)) == 300
    numbers = [1, 300, 150, 75, 225, 299, 2, 100]
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda number: pdf.page(str(file), number), numbers))
    for number, picture in zip(numbers, pages, strict=True):
        gray = decoded(picture).getpixel((400, 500))[0]  # type: ignore[index]
        assert abs(gray - 255 * (number - 1) / 300) < 4


def test_no_thread_is_let_in_while_another_is_at_it(file, monkeypatch):
    file.write_bytes(pdfs.made(b"", b""))
    inside, drawn = [], pdf._drawn

    def slow(document, index):
        inside.append(1)
        assert sum(inside) == 1
        threading.Event().wait(0.02)
        image = drawn(document, index)
        inside.append(-1)
        return image

    monkeypatch.setattr(pdf, "_drawn", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: pdf.page(str(file), number), [1, 2, 1, 2]))


def test_no_such_page(file):
    file.write_bytes(pdfs.made(b"", b""))
    assert fails(pdf.page, str(file), 3) == f"{file}#page=3: it has 2 pages."


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7\n", b"hello", b"%PDF-1.7\n" + bytes(2000), pdfs.made()])
def test_what_is_no_pdf(file, data):
    file.write_bytes(data)
    assert fails(pdf.pages, str(file)) == f"{file} is not a PDF that can be read."


def test_encrypted(file):
    file.write_bytes(pdfs.encrypted())
    said = fails(pdf.pages, str(file))
    assert said.startswith(f"{file} needs a password. Take it off: qpdf")
    assert fails(pdf.page, str(file), 1) == said


def test_cut_off_in_the_middle(file):
    data = pdfs.made(*[RED_BELOW] * 20)
    file.write_bytes(data[: len(data) // 2])
    assert fails(pdf.pages, str(file)) == f"{file} is not a PDF that can be read."


def test_what_can_be_mended_is(file):
    file.write_bytes(pdfs.made(b"", b"").replace(b"startxref\n", b"startxref\n1"))
    assert pdf.pages(str(file)) == 2
    assert pdf.page(str(file), 2).width == 800


def test_what_is_no_file(tmp_path):
    assert (
        fails(pdf.pages, str(tmp_path))
        == f"{tmp_path} is a directory. Give the pictures in it: '{tmp_path}/*.jpg'"
    )
    assert fails(pdf.pages, f"{tmp_path}/b.pdf") == f"{tmp_path}/b.pdf: no such file."
    assert fails(pdf.pages, "a\0b.pdf").endswith("cannot be read: not a path.")
    assert "File name too long" in fails(pdf.pages, "x" * 300 + ".pdf")


def test_a_name_that_is_not_utf8(tmp_path):
    file = f"{tmp_path}/caf\udce9.pdf"
    Path(file).write_bytes(pdfs.made(b""))
    assert pdf.page(file, 1).name == f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}.pdf#page=1"


def test_without_pypdfium2(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    assert fails(pdf.pages, str(file)) == f"{file} is a PDF. {install('pdf')}"
