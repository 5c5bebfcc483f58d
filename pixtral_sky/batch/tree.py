"""Folders, with all that is in them, in an order that is the same each time."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path


def natural(name: str) -> str:
    """A key that sorts a2 before a10, and A before b. A string, as a folder may have a million names."""
    return re.sub(r"[0-9]+", lambda digits: f"{len(digits[0].lstrip('0')):03}{digits[0]}", name.casefold())


def files(top: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, OSError | None]]:
    """The paths, relative to the folder ``top``, of all files in it whose names are ``wanted``.

    With an error it is a folder that cannot be read, "" for ``top`` itself. Hidden files and folders are
    left out. Of a folder come first its files in natural order, then its folders; at the end of all come
    those behind symbolic links. No folder is entered twice, so that a loop of links ends, and what is also
    there by itself keeps its own name.

    Of the folder that it is in, and no other, the names of the files are in memory: 60 bytes each and the
    name, and as much again while they are sorted.
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
            names, inner, linked = _names(f"{top}/{folder}", wanted)
        except OSError as error:
            yield folder, error
            continue
        start = f"{folder}/" if folder else ""
        for name in names:
            yield f"{start}{name}", None
        folders += (f"{start}{name}" for name in reversed(inner))
        links += (f"{start}{name}" for name in linked)


def _names(folder: str, wanted: Callable[[str], bool]) -> tuple[list[str], list[str], list[str]]:
    """Its files, its folders, and its links to folders, each in natural order. Raises OSError."""
    names: tuple[list[str], list[str], list[str]] = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                names[1 + entry.is_symlink()].append(entry.name)
            elif wanted(entry.name):
                names[0].append(entry.name)
    for each in names:
        each.sort(key=lambda name: (natural(name), name))
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to nowhere, in one of the many ways
        return False
