"""What the arguments of a batch lead to on the disk, and what the files there are called in its output."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pixtral_sky.batch import tree
from pixtral_sky.errors import UsageError
from pixtral_sky.pictures import pdf, picture
from pixtral_sky.pictures.picture import shown

MANIFESTS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Place:
    """Where items come from."""

    kind: Literal["folder", "file", "glob", "manifest"]
    path: str
    base: str  # the folder, absolute, that ids are relative to
    named: bool = True  # whether all its ids begin with the last part of ``path``
    matches: Sequence[str] = ()  # of a glob


def of(argument: str) -> list[Place]:
    """What an argument leads to: one place, or each manifest of a glob of them. Raises UsageError."""
    if argument == "-":
        return [Place("manifest", "-", "")]
    if picture.is_url(argument) or argument[:5].lower() == "data:":
        raise UsageError(
            f"{shown(argument)} is no file or folder.", 'Put it into a manifest: {"images": ["https://..."]}'
        )
    if not argument.strip():
        raise UsageError("An empty argument is no file or folder.")
    path = os.path.expanduser(argument)  # noqa: PTH111 (Path.expanduser fails for a user who does not exist)
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL
        if isinstance(error, FileNotFoundError) and glob.has_magic(path):
            return _globbed(path)
        reason = "no such file or folder" if isinstance(error, FileNotFoundError) else why(error)
        raise UsageError(f"{shown(argument)}: {reason}.") from error
    absolute = os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")
    parent = str(Path(absolute).parent)
    if stat.S_ISDIR(mode):
        # "." is not to begin ids with what the folder happens to be called.
        named = Path(path).name not in ("", "..")
        return [Place("folder", path.rstrip("/") or "/", parent if named else absolute, named)]
    if not is_manifest(path):
        return [Place("file", path, parent)]
    if not stat.S_ISREG(mode):  # it is read twice
        raise UsageError(f"{shown(argument)} is not a regular file.", "Pipe it in, and give '-'.")
    return [Place("manifest", path, parent)]


def _globbed(pattern: str) -> list[Place]:
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = str(Path(fixed).parent)
    base = os.path.abspath(fixed)  # noqa: PTH100
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute path)
    # A file may be called "-", or as URLs begin.
    found = [path if path.startswith("/") else f"./{path}" for path in found]
    found.sort(key=lambda path: (tree.natural(path), path))
    if is_manifest(pattern):
        places = [place for path in found if Path(path).is_file() for place in of(path)]
        if places:
            return [replace(place, base=base, named=False) for place in places]
    folders = "**" not in pattern  # which goes into them itself
    found = [path for path in found if is_wanted(path) or (folders and Path(path).is_dir())]
    if not found:
        raise UsageError(f"{shown(pattern)}: no picture, PDF or folder matches.")
    return [Place("glob", pattern, base, named=False, matches=found)]


def based(places: list[Place]) -> list[Place]:
    """With a common base, where those that they have would let two files get one id. See ``items.walk``."""
    files = [place for place in places if place.path != "-"]
    names = {Path(place.path).name for place in files}
    if len(files) < 2 or (len(names) == len(files) and all(place.named for place in files)):
        return places
    base = os.path.commonpath([place.base for place in files])
    return [replace(place, base=base) for place in places]


def is_manifest(path: str) -> bool:
    return path.lower().endswith(MANIFESTS)


def is_pdf(path: str) -> bool:
    return path.lower().endswith(pdf.EXTENSION)


def is_wanted(path: str) -> bool:
    """Whether it is a picture or a PDF, by its extension."""
    return os.path.splitext(path)[1].lower() in picture.EXTENSIONS or is_pdf(path)  # noqa: PTH122


def why(error: Exception) -> str:
    """What the system says of a file, without its name."""
    return getattr(error, "strerror", None) or "not a path"


def relative(path: str, base: str) -> str:
    """The way to ``path`` from the folder ``base``; "" when it is that."""
    way = os.path.relpath(path, base)
    return "" if way == "." else way


def name(path: str) -> str:
    """What a relative path is called in ids and in the output: see ``items.walk``."""
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 are in a path as U+DC80 to U+DCFF
        odd = {code: f"%{code - 0xDC00:X}" for code in range(0xDC80, 0xDD00)}
        return f"file:{path.translate(odd | {ord('%'): '%25'})}"
    return path
