"""Files that are written: checked before, and whole."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pixtral_sky.errors import UsageError
from pixtral_sky.text import os_reason


def check_new(path: Path, option: str) -> None:
    """As `check_writable`, for a file that may not be there yet."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already.", f"Give {option} another name.")
    check_writable(path, option)


def check_writable(path: Path, option: str) -> None:
    """Raise UsageError where ``path``, which ``option`` names, cannot be written."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{path} is a directory.", f"Give {option} the name of a file.")
    if not folder.is_dir():
        raise UsageError(f"There is no directory {folder}.", f"Run: mkdir -p {shlex.quote(str(folder))}")
    try:
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {os_reason(error)}.", f"Give {option} a file in a directory of yours."
        ) from error


@contextmanager
def whole(path: Path, **options: Any) -> Iterator[IO[Any]]:
    """Open a new file of mode 0600, as ``open(**options)`` does, that replaces ``path`` when the block ends.

    When the block raises, ``path`` keeps its old content.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(handle, "w", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
