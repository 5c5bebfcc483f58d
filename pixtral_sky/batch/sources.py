"""Where a picture of a batch is: a file, a page of a PDF, a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from pixtral_sky.pictures import pdf
from pixtral_sky.pictures import picture as images
from pixtral_sky.pictures.picture import Picture

_PAGE = re.compile(r"(.*\.pdf)#page=([1-9][0-9]{0,6})", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where one picture is, and what the output calls it."""

    name: str  # "" for a data: URL
    where: str = field(repr=False)  # as ``picture.read`` takes it, or the path of a PDF
    page: int = 0  # of the PDF, from 1

    def read(self) -> Picture:
        """Raises PictureError."""
        if self.page:
            return pdf.page(self.where, self.page)
        return images.read(self.where, stdin=bytes)


def given(picture: str, folder: str) -> Source:
    """What a manifest in ``folder`` calls a picture: a path, a URL, or page 3 of a PDF, ``a.pdf#page=3``."""
    if picture[:5].lower() == "data:":
        return Source("", picture)
    if images.is_url(picture):
        return Source(_bare(picture), picture)
    if page := _PAGE.fullmatch(picture):
        return Source(picture, _path(folder, page[1]), int(page[2]))
    return Source(picture, _path(folder, picture))


def _bare(url: str) -> str:
    """Without user, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # not a number when a password with a slash is taken for it
    except ValueError:
        return ""  # it cannot be read, either
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _path(folder: str, path: str) -> str:
    return path if path.startswith("/") else f"{folder}/{path}"
