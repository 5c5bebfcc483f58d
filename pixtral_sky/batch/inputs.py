"""The arguments of a batch, the files that they lead to, and the names of these in its output."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import kinds, pdf
from pixtral_sky.pictures.names import bare, check_scheme, is_data_url, is_url, local, spellings
from pixtral_sky.pictures.source import Source
from pixtral_sky.text import counted, is_unicode, natural, os_reason, shown

SHOWN = 8  # kinds of files that were skipped
MANIFESTS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Input:
    """Where items come from."""

    kind: Literal["folder", "file", "glob", "manifest"]
    path: str
    base: str  # the folder, absolute, that ids are relative to
    named: bool = True  # whether all its ids begin with the last part of ``path``
    matches: Sequence[str] = ()  # of a glob
    skipped: Sequence[str] = ()  # what it matches besides, and is neither picture nor PDF


@dataclass
class Walked:
    """What the last walk of the ``arguments`` that came to its end has found."""

    arguments: Sequence[str] = ()
    items: int | None = None  # None: none has
    skipped: Counter[str] = field(default_factory=Counter)  # files in folders and globs, by ``kind``

    def check(self) -> None:
        """Raise UsageError if it has found no item."""
        if self.items == 0:
            names = ", ".join("standard input" if each == "-" else shown(each) for each in self.arguments)
            raise UsageError(
                f"There is nothing to ask about in {names}. {self.said_skipped()}".strip(),
                "Give pictures, folders with some, globs, PDFs, or JSON lines.",
            )

    def said_skipped(self) -> str:
        """The files that were skipped, in one line; "" if none were."""
        kinds = [f"{number:,} {kind}" for kind, number in self.skipped.most_common(SHOWN)]
        kinds += ["..."] if len(self.skipped) > SHOWN else []
        files = counted(self.skipped.total(), "file")
        return f"Skipped, being no pictures: {files} ({', '.join(kinds)})." if kinds else ""


def parse(argument: str) -> list[Input]:
    """The input of an argument, or an input for each manifest that a glob matches.

    Its path may be spelled as one of ``ask``. Raises PictureError when it leads to nothing, and UsageError.
    """
    if argument == "-":
        return [Input("manifest", "-", "")]
    path, mode = _locate(argument)
    if mode is None:
        return _expand(path)
    absolute = os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")
    parent = str(Path(absolute).parent)
    if stat.S_ISDIR(mode):
        named = _is_named(path)
        return [Input("folder", path.rstrip("/") or "/", parent if named else absolute, named)]
    if not is_manifest(path):
        if stat.S_ISREG(mode) and not pdf.is_picture_name(path):
            _check_content(path)
        return [Input("file", path, parent)]
    if not stat.S_ISREG(mode):  # it cannot be read twice
        raise UsageError(f"{shown(argument)} is not a regular file.", "Pipe it in, and give '-'.")
    return [Input("manifest", path, parent)]


def _check_content(path: str) -> None:
    """Raise PictureError for a file that is neither called as a picture is, nor begins as one."""
    try:
        with open(path, "rb") as file:
            head = file.read(kinds.HEAD)
    except OSError as error:
        raise PictureError(f"{shown(path)} cannot be read: {os_reason(error)}.") from error
    if found := kinds.of(head, path):
        raise kinds.error(found, path)
    if not kinds.is_picture(head):
        raise PictureError(
            f"{shown(path)} is not a picture.",
            "Give pictures, PDFs, or JSON lines in a file that ends in .jsonl. "
            "A folder, or a glob in quotes, skips all else.",
        )


def origin(argument: str) -> str:
    """What an argument means, however it is spelled and wherever it is given.

    Two with one origin give the same ids. It is the absolute path (and "/." where ids begin without the
    folder's name), or the pattern with its fixed part absolute; "-" for standard input. Raises as ``parse``.
    """
    if argument == "-":
        return "-"
    path, mode = _locate(argument)
    if mode is None:
        fixed = _fixed(path)
        return f"{os.path.abspath(fixed)}/{Path(path).relative_to(fixed)}"  # noqa: PTH100
    absolute = os.path.abspath(path)  # noqa: PTH100
    return absolute if _is_named(path) or not stat.S_ISDIR(mode) else f"{absolute}/."


def _locate(argument: str) -> tuple[str, int | None]:
    """The path of an argument and its mode; None for a pattern."""
    if is_url(argument) or is_data_url(argument):
        raise UsageError(
            f"{shown(argument)} is no file or folder.", 'Put it into a manifest: {"images": ["https://..."]}'
        )
    if not argument.strip():
        raise UsageError("An empty argument is no file or folder.")
    try:
        check_scheme(argument)
    except PictureError as error:
        raise PictureError(
            error.what, "Copy its pictures here, or mount it as examples/batch.yaml does."
        ) from error
    for spelling in spellings(argument):
        # Path.expanduser fails for a user who does not exist.
        path = os.path.expanduser(local(spelling))  # noqa: PTH111
        try:
            return path, Path(path).stat().st_mode
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a NUL
            raise PictureError(f"{shown(argument)}: {os_reason(error)}.") from error
    if glob.has_magic(path):
        return path, None
    raise PictureError(f"{shown(argument)}: no such file or folder.")


def _is_named(folder: str) -> bool:
    """Whether its ids begin with its name; for "." and ".." they do not."""
    return Path(folder).name not in ("", "..")


def _fixed(pattern: str) -> str:
    """The folder in which all matches are."""
    while glob.has_magic(pattern):
        pattern = str(Path(pattern).parent)
    return pattern


def _expand(pattern: str) -> list[Input]:
    base = os.path.abspath(_fixed(pattern))  # noqa: PTH100
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute path)
    found = sorted((_in_folder("", path) for path in found), key=natural)
    if is_manifest(pattern):
        manifests = [each for path in found if Path(path).is_file() for each in parse(path)]
        if manifests:
            return [replace(each, base=base, named=False) for each in manifests]
    folders = "**" not in pattern  # "**" enters folders by itself
    skipped = [path for path in found if not pdf.is_picture_name(path) and not Path(path).is_dir()]
    found = [path for path in found if pdf.is_picture_name(path) or (folders and Path(path).is_dir())]
    if not found:
        raise PictureError(f"{shown(pattern)}: no picture, PDF or folder matches.")
    return [Input("glob", pattern, base, named=False, matches=found, skipped=skipped)]


def with_common_base(inputs: list[Input]) -> list[Input]:
    """Give the inputs one base if two files could get the same id otherwise. See ``walk``."""
    files = [each for each in inputs if each.path != "-"]
    names = {Path(each.path).name for each in files}
    if len(files) < 2 or (len(names) == len(files) and all(each.named for each in files)):
        return inputs
    base = os.path.commonpath([each.base for each in files])
    return [replace(each, base=base) for each in inputs]


def is_manifest(path: str) -> bool:
    return path.lower().endswith(MANIFESTS)


def kind(path: str) -> str:
    """What a file that is no picture is called when it is counted: its extension."""
    return shown(os.path.splitext(path)[1].lower()) or "without an extension"  # noqa: PTH122


def relative(path: str, base: str) -> str:
    """``path`` relative to the folder ``base``; "" for ``base`` itself."""
    found = os.path.relpath(path, base)
    return "" if found == "." else found


def id_of(path: str) -> str:
    """The name of a relative path in ids and in the output: see ``walk``."""
    if is_unicode(path):
        return path
    # A path has bytes that are not UTF-8 as U+DC80 to U+DCFF.
    odd = {code: f"%{code - 0xDC00:X}" for code in range(0xDC80, 0xDD00)}
    return f"file:{path.translate(odd | {ord('%'): '%25'})}"


def source(text: str, folder: str) -> Source:
    """A picture that a manifest in ``folder`` names: a path, a URL, or a page of a PDF, ``a.pdf#page=3``.

    Raises PictureError for a URL that is not read here.
    """
    if is_data_url(text):
        return Source(text)
    if is_url(text):
        return Source(text, name=bare(text))
    check_scheme(text)
    path, page = pdf.split(local(text))
    if path.startswith("~/"):
        path = os.path.expanduser(path)  # noqa: PTH111
    return Source(_in_folder(folder, path), page, text)


def _in_folder(folder: str, path: str) -> str:
    """``path`` in the ``folder``, "" for the working directory."""
    if path.startswith("/"):
        return path
    # The "./" is for a file that is called "-", or begins as a URL does.
    odd = path == "-" or re.match(r"[a-z][a-z0-9+.-]*:", path, re.IGNORECASE)
    return f"{folder or '.'}/{path}" if folder or odd else path


def files_in(top: str, skipped: Counter[str]) -> Iterator[tuple[str, OSError | None]]:
    """The paths, relative to the folder ``top``, of all pictures and PDFs in it; hidden ones are left out.

    Other files are counted in ``skipped``, by kind.

    A path with an error is a folder that cannot be read, "" for ``top`` itself. A folder's files come first,
    in natural order, then its folders; folders behind symbolic links come last of all. No folder is entered
    twice: a loop of links ends, and a folder that is reached without a link keeps that name.

    Memory holds the names of the current folder only: 60 bytes and the name each, twice that while sorting.
    """
    entered: set[tuple[int, int]] = set()
    folders, links = [""], deque[str]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = Path(f"{top}/{folder}").stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            files, inner, linked = _list(f"{top}/{folder}", skipped)
        except OSError as error:
            yield folder, error
            continue
        start = f"{folder}/" if folder else ""
        for name in files:
            yield f"{start}{name}", None
        folders += (f"{start}{name}" for name in reversed(inner))
        links += (f"{start}{name}" for name in linked)


def _list(folder: str, skipped: Counter[str]) -> tuple[list[str], list[str], list[str]]:
    """A folder's pictures and PDFs, folders, and links to folders, in natural order. Raises OSError."""
    names: tuple[list[str], list[str], list[str]] = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                names[1 + entry.is_symlink()].append(entry.name)
            elif pdf.is_picture_name(entry.name):
                names[0].append(entry.name)
            else:
                skipped[kind(entry.name)] += 1
    for each in names:
        each.sort(key=natural)
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link
        return False
