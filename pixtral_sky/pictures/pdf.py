"""Pages of PDFs as pictures. Needs pypdfium2, the extra ``pdf``."""

from __future__ import annotations

import logging
import os
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.extras import install
from pixtral_sky.pictures.picture import EXTENSIONS, Picture, open_file
from pixtral_sky.text import shown

if TYPE_CHECKING:
    from PIL import Image

_PAGE = re.compile(r"(.*\.pdf)#page=([1-9][0-9]{0,6})", re.DOTALL | re.IGNORECASE)

# PDFium is not thread-safe: a document is opened, used and closed under this lock. Left to the garbage
# collector, it would be closed in any thread.
_LOCK = threading.Lock()


def is_pdf(path: str) -> bool:
    """Whether it is a PDF, by its extension."""
    return path.lower().endswith(".pdf")


def is_picture_name(path: str) -> bool:
    """Whether it is a picture or a PDF, by its extension."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS or is_pdf(path)  # noqa: PTH122


def split(text: str) -> tuple[str, int]:
    """The path and the page of ``a.pdf#page=3``; page 0 for a path alone."""
    found = _PAGE.fullmatch(text)
    return (found[1], int(found[2])) if found else (text, 0)


def file_of(text: str) -> str:
    """The path before whatever stands behind the ``#`` of ``a.pdf#...``; another ``text`` as it is."""
    found = re.fullmatch(r"(.*?\.pdf)#.*", text, re.DOTALL | re.IGNORECASE)
    return found[1] if found else text


def check_page(text: str) -> None:
    """Raise PictureError for a PDF that exists, and what follows its ``#`` is no page: ``a.pdf#page=1-2``."""
    path = file_of(text)
    if path != text and not split(text)[1] and os.path.isfile(path):  # noqa: PTH113 (Path's raises errors)
        file = shown(shlex.quote(path))
        raise PictureError(
            f"{shown(text)}: {shown(text[len(path) :])} is no page.",
            f"Give pages one by one: {file}#page=1 {file}#page=2; all of them: {file}",
        )


def pages(path: str) -> int:
    """The number of pages. Raises PictureError when the PDF cannot be read, is broken or is encrypted."""
    with _document(path) as document:
        return len(document)


def page(path: str, number: int) -> Picture:
    """Page ``number``, from 1, drawn in whole patches, 1024 pixels on its longer side.

    The server does not scale this size, so text stays sharp. Its filter, without antialiasing, tears the thin
    strokes of a larger picture.

    Raises PictureError as ``pages`` does, and when there is no such page.
    """
    name = f"{shown(path)}#page={number}"
    with _document(path) as document:
        if not 1 <= number <= len(document):
            raise PictureError(f"{name}: it has {len(document)} pages.")
        try:
            image = _drawn(document, number - 1)
        except Exception as error:  # PDFium's own, and any that a senseless size leads to
            raise PictureError(f"{name} is damaged: {shown(str(error))}.") from error
    file = BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return Picture(name, *image.size, "image/jpeg", file.getvalue())


def _drawn(document: Any, index: int) -> Image.Image:
    import pypdfium2  # type: ignore[import-untyped]
    from pypdfium2 import raw

    document.init_forms()  # to draw what was filled in
    page = document[index]
    try:
        width, height = page.get_size()
        scale = pixtral.BOX / max(width, height)
        columns, rows = pixtral.fit(max(round(width * scale), 1), max(round(height * scale), 1))
        bitmap = pypdfium2.PdfBitmap.new_native(columns, rows, raw.FPDFBitmap_BGR)
        try:
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, columns, rows)
            where = (bitmap, page, 0, 0, columns, rows, 0, raw.FPDF_ANNOT)
            raw.FPDF_RenderPageBitmap(*where)
            if document.formenv:
                raw.FPDF_FFLDraw(document.formenv, *where)
            return bitmap.to_pil()  # type: ignore[no-any-return]
        finally:
            bitmap.close()
    finally:
        page.close()


@contextmanager
def _document(path: str) -> Iterator[Any]:
    """The open document, locked for this thread."""
    name = shown(path)
    try:
        import pypdfium2
    except ImportError as error:
        raise PictureError(f"{name} is a PDF.", install("pdf")) from error
    logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # below: forms that it cannot draw
    with open_file(path) as file, _LOCK:
        try:
            # An open file, as PDFium takes only paths in UTF-8.
            document = pypdfium2.PdfDocument(file)
        except pypdfium2.PdfiumError as error:
            if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
                hint = "Take it off: qpdf --decrypt --password=PASSWORD IN.pdf OUT.pdf"
                raise PictureError(f"{name} needs a password.", hint) from error
            raise PictureError(f"{name} is not a PDF that can be read.") from error
        try:
            yield document
        finally:
            document.close()
