"""Files that are mistaken for pictures, and what makes pictures of them."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath
from typing import NamedTuple

from pixtral_sky.errors import PictureError
from pixtral_sky.text import shown

HEAD = 4096  # bytes that tell what a file is
# How the files begin that are read here. Patterns are compiled when they are first used.
_PICTURE = rb"\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF....WEBP|\0...ftyp"
_TIFF = rb"II[*+]\0|MM\0[*+]"


class Kind(NamedTuple):
    """What such a file is; its ``extensions``, how it begins (a pattern), and what to do.

    ``is_tiff``: it may be a TIFF, as a picture may.
    """

    what: str
    extensions: tuple[str, ...]
    begins: bytes
    help: str  # with {file} and {stem}
    is_tiff: bool = False


KINDS = (
    Kind(
        "a video",
        (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"),
        # ISO media of other brands than pictures have, Matroska, AVI, MPEG, ASF, Flash, Ogg.
        rb"\0...ftyp(?!hei|hev|mif1|msf1|avi[fos]|crx )|\0...(?:moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI "
        rb"|\0\0\x01[\xba\xb3]|\x30\x26\xb2\x75|FLV\x01|OggS\0",
        "Take pictures from it: ffmpeg -i {file} -vf fps=1/5 {stem}-%03d.jpg",
    ),
    Kind(
        "an SVG drawing",
        (".svg", ".svgz"),
        # No alternative matches what another one does, so that the time is linear.
        rb"(?:\xef\xbb\xbf)?(?:\s|<\?(?:(?!\?>).)*\?>|<!--(?:(?!-->).)*-->"
        rb"|<!DOCTYPE\s+svg[^>\[]*(?:\[[^\]]*\]\s*)?>)*<(?:svg:)?svg[\s>/]",
        "Draw it: rsvg-convert -w 1024 {file} -o {stem}.png",
    ),
    Kind(
        "a raw file of a camera",
        (".cr2", ".cr3", ".nef", ".nrw", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
        rb"II\*\0....CR|\0...ftypcrx |FUJIFILMCCD-RAW|IIR[OS]\x08\0|IIU\0|MMOR\0",
        "Develop it: darktable-cli {file} {stem}.jpg",
        is_tiff=True,
    ),
    Kind("a Photoshop file", (".psd", ".psb"), rb"8BPS\0", "Convert it: convert {file}'[0]' {stem}.png"),
    Kind(
        "PostScript",
        (".eps", ".ps"),
        rb"%!PS|\xc5\xd0\xd3\xc6",
        "Draw it: gs -q -dEPSCrop -sDEVICE=png16m -r150 -o {stem}-%d.png {file}",
    ),
    Kind(
        "an Office document",
        (".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".odp", ".ods", ".rtf"),
        rb"\xd0\xcf\x11\xe0|PK\x03\x04.{26}(?:\[Content_Types\]|mimetypeapplication/vnd\.oasis)|\{\\rtf",
        "Make a PDF of it, and give that: soffice --convert-to pdf {file}",
    ),
    Kind("a JPEG XL picture", (".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL ", "Convert it: djxl {file} {stem}.png"),
    Kind(
        "a JPEG 2000 picture",
        (".jp2", ".j2k", ".jpx"),
        rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        "Convert it: convert {file} {stem}.png",
    ),
    Kind(
        "a text",
        (".txt", ".md"),
        rb"(?!)",  # by its name alone: any bytes may begin a text
        "If its words are the question: pixtral-sky ask - < {file}",
    ),
    Kind("a PDF", (), rb"%PDF", "Give it as a file whose name ends in .pdf."),
)

EXTENSIONS = frozenset(extension for kind in KINDS for extension in kind.extensions)


def of(head: bytes, name: str) -> Kind | None:
    """What the file is that begins with ``head``: by its content, else by its ``name``; None: no Kind."""
    if found := next((kind for kind in KINDS if re.match(kind.begins, head, re.DOTALL)), None):
        return found
    extension = PurePath(name).suffix.lower()
    found = next((kind for kind in KINDS if extension in kind.extensions), None)
    if found and found.is_tiff:
        return None if re.match(_PICTURE, head, re.DOTALL) else found
    return None if is_picture(head) else found


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` may be a picture that is read here."""
    return re.match(_PICTURE + b"|" + _TIFF, head, re.DOTALL) is not None


def error(kind: Kind, name: str) -> PictureError:
    """The error for a file of this kind."""
    file = name.rpartition("/")[2] if "://" in name else name
    if PurePath(file).suffix.lower() not in EXTENSIONS:  # standard input, or a file of a misleading name
        file = f"FILE{next(iter(kind.extensions), '')}"
    stem = PurePath(file).stem
    hint = kind.help.format(file=shlex.quote(shown(file)), stem=shlex.quote(shown(stem)))
    return PictureError(f"{shown(name)} is {kind.what}.", hint)
