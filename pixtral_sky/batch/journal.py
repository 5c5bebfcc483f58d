"""What a batch has done: a file of answers, one of failures, a JSON line each, and a record of the options.

- A line is whole or absent: one that a full disk cuts is removed at once, one that a kill or a power cut
  cuts, by the next run.
- A kill loses no line that was written.
- A power cut loses at most the last group, which is not synced yet: GROUP lines, or those of GROUP_SECONDS,
  whichever is less. Their items are asked again.
- Two runs never write one file: a lock, which ends with its process, refuses the second.
- A file that somebody removes, replaces or cuts meanwhile ends the run.

The id of a line is its ``custom_id`` if it has one (OpenAI's batch format), else its ``id``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from pixtral_sky import files
from pixtral_sky.errors import PixtralSkyError, UsageError
from pixtral_sky.text import counted, os_reason, shown

GROUP = 64  # lines
GROUP_SECONDS = 0.2
READ_BYTES = 2**18  # at a time
SHOWN = 40  # characters of an option's value in a message
NAMED = 2  # inputs in a message


class _Line(msgspec.Struct, gc=False):
    """The fields that are read of a line."""

    id: str = ""
    custom_id: str | None = None


_read_lines = msgspec.json.Decoder(_Line).decode_lines


class Journal:
    """A file of JSON lines to append to, locked for this process, and created if missing. Thread-safe.

    Raises PixtralSkyError when another run has it; all methods do when the disk fails or is full.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._mutex = threading.Lock()
        self._unsynced = 0  # lines
        self._since = 0.0  # when the first of them came
        self._lines = 0  # that it should have; those of before count once ``ids`` has read them
        with self._errors("opened"):
            self._file = _open_locked(path)
            self._size = os.fstat(self._file).st_size

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ids(self) -> Iterator[list[str]]:
        """The ids of its lines, many at a time. Read them all before the first ``append``.

        A power cut leaves an incomplete last line, or a damaged line in the last group: it is moved, with all
        that follows, into a file beside (``.torn``). Raises UsageError for any other damaged line.
        """
        with self._errors("read"), open(self.path, "rb") as file:
            position = number = 0  # good bytes and lines
            rest = b""
            while data := file.read(READ_BYTES):
                data = rest + data
                whole, rest = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
                good, found = _ids(whole)
                yield found
                number += len(found)
                position += good
                self._lines = number
                if good < len(whole):
                    after = data.count(b"\n", good) + sum(1 for _ in file)
                    if after > GROUP:
                        raise UsageError(
                            f"{self.path}, line {number + 1:,}, is not a line of a batch.",
                            "Take it out, or begin anew, with this file kept aside: --fresh",
                        )
            if position < self._size:
                self._cut(position)

    def _cut(self, position: int) -> None:
        private = functools.partial(os.open, mode=0o600)
        with open(self.path, "rb") as file, open(f"{self.path}.torn", "ab", opener=private) as aside:
            file.seek(position)
            aside.write(file.read() + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._file, position)
        os.fsync(self._file)
        self._size = position

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line. From now on it survives a kill, and once its group is synced, a power cut."""
        data = _encoded(line)
        with self._mutex, self._errors("written"):
            if self._file < 0:
                raise PixtralSkyError(f"{self.path} is closed.")
            try:
                written = os.write(self._file, data)
                while written < len(data):  # the disk is full, so the next write raises
                    written += os.write(self._file, data[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise
            self._size += len(data)
            self._lines += 1
            self._since = self._since if self._unsynced else self._clock()
            self._unsynced += 1
            if self._unsynced >= GROUP:
                self._sync()

    def tick(self) -> None:
        """Sync a group that is GROUP_SECONDS old. Call it often.

        Raises PixtralSkyError, too, when somebody else has removed, replaced or cut the file.
        """
        with self._mutex, self._errors("written"):
            if self._file < 0:
                return
            if lost := self._lost():
                raise PixtralSkyError(f"{self.path} {lost}", "The same command asks again what is lost.")
            if self._unsynced and self._clock() - self._since >= GROUP_SECONDS:
                self._sync()

    def _lost(self) -> str:
        """What has been done to the file, and how many lines are lost by it; else ""."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return f"was removed, and {counted(self._lines, 'line')} with it."
        if not os.path.samestat(there, os.fstat(self._file)):
            return f"was replaced: lost is what the new file lacks of {counted(self._lines, 'line')}."
        if there.st_size >= self._size:
            return ""
        with open(self.path, "rb") as file:
            left = sum(line.endswith(b"\n") for line in file)
        return f"was cut: lost are {self._lines - left:,} of {counted(self._lines, 'line')}."

    def _sync(self) -> None:
        os.fsync(self._file)
        self._unsynced = 0

    def close(self) -> None:
        with self._mutex, self._errors("written"):
            if self._file < 0:
                return
            try:
                if self._unsynced:
                    self._sync()
            finally:
                os.close(self._file)  # unlocks it
                self._file = -1

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise PixtralSkyError(
                f"Another run writes {self.path}.", "Wait for its end, or write elsewhere: -o FILE"
            ) from error
        except OSError as error:
            hint = {
                "opened": "Write elsewhere: -o FILE"
                if isinstance(error, PermissionError)
                else "Write to a disk of this machine: -o FILE",
                "written": "Nothing in it is torn. When that is mended, the same command goes on.",
            }.get(what, "")
            raise PixtralSkyError(f"{self.path} cannot be {what}: {os_reason(error)}.", hint) from error


def _open_locked(path: Path) -> int:
    """Open and lock the file that is at ``path`` now: another run may set it aside meanwhile.

    A new one has the mode 0600, as what pictures show may be private.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UsageError(f"{path} is not a regular file, which a batch goes on with.", "-o FILE")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    _sync_folder(path)  # makes a new file durable
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _ids(lines: bytes) -> tuple[int, list[str]]:
    """The number of good bytes from the first line on, and the ids of those lines."""
    with contextlib.suppress(msgspec.DecodeError):
        found = [line.custom_id or line.id for line in _read_lines(lines)]
        if all(found) and len(found) == lines.count(b"\n"):
            return len(lines), found
    good, found = 0, []
    for line in lines.split(b"\n")[:-1]:
        # json is slow, but takes half a surrogate pair, which a file's name may have.
        try:
            values = json.loads(line)
            identity = values.get("custom_id") or values["id"]
        except (ValueError, LookupError, AttributeError, RecursionError):
            break
        if not isinstance(identity, str) or not identity:
            break
        good += len(line) + 1
        found.append(identity)
    return good, found


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, in an answer or a file's name
        return json.dumps(line).encode() + b"\n"


@dataclass(frozen=True)
class Paths:
    """The files of a batch: ``out`` for the answers, ``errors`` for the failures."""

    out: Path
    errors: Path

    @property
    def record(self) -> Path:
        """The file of the inputs, and of the options that change the answers."""
        return self.out.with_name(f"{self.out.name}.run.json")


class Ledger:
    """The answers and failures of a batch, open to append to. Closed by ``with`` or ``close()``.

    ``options`` (readable, nothing secret) are those that change an answer or an id; ``inputs`` (origins, in
    any order) are what the ids stand for. The record keeps both. Others than those of the last run are
    refused, unless ``resume`` goes on all the same, or ``fresh`` begins anew and sets the old files aside:
    out.jsonl.1, .2 and so on.

    Failed items are not asked again, unless ``retry_errors`` sets the file of failures aside.

    Raises UsageError when the options are refused, and PixtralSkyError as a Journal does.
    """

    def __init__(
        self,
        paths: Paths,
        options: Mapping[str, Any],
        *,
        inputs: Iterable[str] = (),
        resume: bool = False,
        fresh: bool = False,
        retry_errors: bool = False,
    ) -> None:
        self.paths = paths
        inputs = sorted(set(inputs))
        self.notices: list[str] = []  # for the user, about the files that were found
        self._seen: set[str] = set()  # ids
        self.done_before = self.failed_before = 0
        with contextlib.ExitStack() as stack:
            # Locked before anything is read or moved. A file that is set aside stays locked until its
            # successor is.
            self.out = stack.enter_context(Journal(paths.out))
            self.errors = stack.enter_context(Journal(paths.errors))
            stack.callback(self._tidy)
            begun = paths.out.stat().st_size or paths.errors.stat().st_size
            if begun and not (resume or fresh):
                self._check(options, inputs)
            if fresh or retry_errors:
                # The failures first: a kill between the two loses nothing.
                self.errors = stack.enter_context(self._anew(self.errors))
                self.out = stack.enter_context(self._anew(self.out)) if fresh else self.out
            _write_record(paths.record, options, inputs)
            self.done_before = self._take_in(self.out)
            self.failed_before = self._take_in(self.errors)
            stack.pop_all()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, identity: str) -> bool:
        """Whether the item was done, or failed, before this run."""
        return identity in self._seen

    def tick(self) -> None:
        """``Journal.tick`` for both files."""
        self.out.tick()
        self.errors.tick()

    def close(self) -> None:
        try:
            self._tidy()
            self.out.close()
        finally:
            self.errors.close()

    def _tidy(self) -> None:
        """Remove an empty file of failures."""
        with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
            if not self.paths.errors.stat().st_size:
                self.paths.errors.unlink()

    def _take_in(self, journal: Journal) -> int:
        lines = 0
        size = journal.path.stat().st_size
        for ids in journal.ids():
            lines += len(ids)
            self._seen.update(ids)
        if cut := size - journal.path.stat().st_size:
            self.notices.append(
                f"{journal.path} ended in a torn line: {cut:,} bytes are in {journal.path}.torn."
            )
        return lines

    def _anew(self, journal: Journal) -> Journal:
        """Set a journal's file aside, and return an empty one in its place; itself if it is empty."""
        path = journal.path
        if not path.stat().st_size:
            return journal
        names = (path.with_name(f"{path.name}.{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        self.notices.append(f"{path} of before is {aside} now.")
        new = Journal(path)
        journal.close()
        return new

    def _check(self, options: Mapping[str, Any], inputs: list[str]) -> None:
        """Raises UsageError when the answers are of other inputs or options, or of unknown ones."""
        anew = "Begin anew, with the old file kept aside: --fresh"
        hint = f"Go on all the same: --resume. {anew}"
        try:
            record = json.loads(self.paths.record.read_bytes())
            before = dict(record["options"])
        except (OSError, ValueError, LookupError, TypeError):
            raise UsageError(
                f"{self.paths.out} is there, and the record of how it was made, {self.paths.record}, is not.",
                hint,
            ) from None
        changed = [
            _difference(name, before.get(name), options.get(name))
            for name in dict.fromkeys([*options, *before])
            if before.get(name) != options.get(name)
        ]
        were = record.get("inputs", inputs)  # those of old are not known
        if were != inputs:
            changed.append(f"the inputs were {_listed(were, inputs)} and are {_listed(inputs, were)}")
            hint = (
                "Go on, where an id that is there counts as done: --resume. "
                f"{anew}. Keep both: another -o FILE"
            )
        if changed:
            raise UsageError(f"{self.paths.out} was made in another way: {', '.join(changed)}.", hint)


def _listed(inputs: list[str], others: list[str]) -> str:
    """The first inputs, those first that are not among the ``others``, and how many more there are."""
    known = set(others)
    ordered = [each for each in inputs if each not in known] or inputs
    names = [shown(each) for each in ordered[:NAMED]]
    more = len(inputs) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _difference(name: str, before: Any, now: Any) -> str:
    """What has become of an option. Of a schema, only that: it has many lines."""
    if isinstance(before, dict) and isinstance(now, dict):
        return f"{name} has another content"
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    if value in ("", None):
        return "none"
    if isinstance(value, dict):
        return "given"
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(f"{text[:SHOWN]}..." if len(text) > SHOWN else text) if isinstance(value, str) else text


def _write_record(path: Path, options: Mapping[str, Any], inputs: list[str]) -> None:
    """Write the record atomically, with the mode 0600, as prompts may be private."""
    try:
        with files.whole(path) as file:
            json.dump({"options": dict(options), "inputs": inputs}, file, indent=1)
        _sync_folder(path)
    except OSError as error:
        raise PixtralSkyError(f"{path} cannot be written: {os_reason(error)}.") from error
