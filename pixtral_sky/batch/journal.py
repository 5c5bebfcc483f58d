"""What a batch has done: two files of JSON lines, one an answer and one a failure, and a record beside them.

What is promised of them:

- A line is written whole, in one write, or it is not there: what a full disk has cut is taken back at once,
  and what a kill or a power cut has cut, by the next run.
- Whoever is killed loses nothing that was written: the system has it.
- A power cut loses at most the last group, which the disk was not told to keep yet: GROUP lines or what came
  in GROUP_SECONDS, whichever is less. These items are then asked again.
- Two runs never write one file: the second is refused, by a lock that ends with its process.

The id of a line is its ``custom_id`` where it has one (OpenAI's batch format), else its ``id``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pixtral_sky import files
from pixtral_sky.errors import PixtralSkyError, UsageError

GROUP = 64  # lines
GROUP_SECONDS = 0.2
READ_BYTES = 2**18  # of a file at a time

SHOWN = 40  # characters of an option's value in a message


class _Line(msgspec.Struct, gc=False):
    """All that is read of a line."""

    id: str = ""
    custom_id: str | None = None


_read_lines = msgspec.json.Decoder(_Line).decode_lines


def digests(ids: list[str]) -> list[int]:
    """128 bits of each id, for this process only: some 80 bytes each in a set, however long the id.

    Two of Python's own 64-bit hashes take half the time of one of hashlib.
    """
    return [hash(each) << 64 ^ hash("+" + each) for each in ids]


class Journal:
    """One file of JSON lines that grows, for this process alone; made when it is not there. For threads.

    Raises PixtralSkyError when another run has it, and, in all that it does, when the disk fails or is full.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._mutex = threading.Lock()
        self._unsynced = 0  # lines
        self._since = 0.0  # when the first of them came
        with self._errors("opened"):
            self._file = _open_locked(path)
            self._size = os.fstat(self._file).st_size

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ids(self) -> Iterator[list[str]]:
        """The ids of its lines, many at a time. Read it to its end before the first ``append``.

        A tail that is no whole line, or a damaged line in the last group, is what a power cut leaves: it is
        cut off, with what follows it, and kept in a file beside (``.torn``). Raises UsageError for any other.
        """
        with self._errors("read"), open(self.path, "rb") as file:
            position = number = 0  # bytes and lines that are good
            rest = b""
            while data := file.read(READ_BYTES):
                data = rest + data
                whole, rest = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
                good, found = _ids(whole)
                yield found
                number += len(found)
                position += good
                if good < len(whole):
                    after = data.count(b"\n", good) + sum(1 for _ in file)
                    if after > GROUP:
                        raise UsageError(
                            f"{self.path}, line {number + 1:,}, is none of a batch.",
                            "Take it out, or begin anew, with this file kept aside: --fresh",
                        )
            if position < self._size:
                self._cut(position)

    def _cut(self, position: int) -> None:
        with open(self.path, "rb") as file, open(f"{self.path}.torn", "ab") as aside:
            file.seek(position)
            aside.write(file.read() + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._file, position)
        os.fsync(self._file)
        self._size = position

    def append(self, line: Mapping[str, Any]) -> None:
        """Write it. On return, it survives this process; on the return of ``sync``, a power cut."""
        data = _encoded(line)
        with self._mutex, self._errors("written"):
            if self._file < 0:
                raise PixtralSkyError(f"{self.path} is closed.")
            try:
                written = os.write(self._file, data)
                while written < len(data):  # the disk is full, which the next write says
                    written += os.write(self._file, data[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise
            self._size += len(data)
            self._since = self._since if self._unsynced else self._clock()
            self._unsynced += 1
            if self._unsynced >= GROUP:
                self._sync()

    def tick(self) -> None:
        """Call it often: it has the disk keep a group that is GROUP_SECONDS old."""
        with self._mutex, self._errors("written"):
            if self._unsynced and self._clock() - self._since >= GROUP_SECONDS:
                self._sync()

    def sync(self) -> None:
        """The disk keeps all that was written."""
        with self._mutex, self._errors("written"):
            self._sync()

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = 0

    def close(self) -> None:
        with self._mutex, self._errors("written"):
            try:
                if self._file >= 0:
                    self._sync()
            finally:
                if self._file >= 0:
                    os.close(self._file)  # and the lock ends
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
                "opened": "Write to a disk of this machine: -o FILE",
                "written": "Nothing in it is torn. When that is mended, the same command goes on.",
            }.get(what, "")
            raise PixtralSkyError(f"{self.path} cannot be {what}: {error.strerror}.", hint) from error


def _open_locked(path: Path) -> int:
    """The file, open and locked: the one that is at ``path`` now, not one that was set aside meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UsageError(f"{path} is not a regular file, which a batch goes on with.", "-o FILE")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    _sync_folder(path)  # a file that was just made is durable with its folder
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
    """How many bytes of the lines are good from the first on, and the ids in them."""
    with contextlib.suppress(msgspec.DecodeError):
        found = [line.custom_id or line.id for line in _read_lines(lines)]
        if all(found) and len(found) == lines.count(b"\n"):
            return len(lines), found
    good, found = 0, []
    for line in lines.split(b"\n")[:-1]:
        # The slow way, which takes more: half of a surrogate pair is JSON, and may be in a file's name.
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
    except UnicodeEncodeError:  # half of a surrogate pair: a model may say it, and a file's name have it
        return json.dumps(line).encode() + b"\n"


@dataclass(frozen=True)
class Paths:
    """The files of a batch whose answers go to ``out``."""

    out: Path
    errors: Path

    @property
    def record(self) -> Path:
        """How the answers were made: the options that change them."""
        return self.out.with_name(f"{self.out.name}.run.json")


class Ledger:
    """The answers and failures of a batch, open to be gone on with. Closed by ``with`` or ``close()``.

    ``options`` (readable, nothing secret) are those that change an answer or an id. They are kept in the
    record; a run with others is refused, unless it is told to go on all the same (``resume``) or to begin
    anew (``fresh``), which sets the old files aside: out.jsonl.1, .2 and so on.

    What failed has failed for good and is not asked again, but with ``retry_errors``, which sets the file of
    the failures aside.

    Raises UsageError when it is refused, and PixtralSkyError as a Journal does.
    """

    def __init__(
        self,
        paths: Paths,
        options: Mapping[str, Any],
        *,
        resume: bool = False,
        fresh: bool = False,
        retry_errors: bool = False,
    ) -> None:
        self.paths = paths
        self.notices: list[str] = []  # what a person should know of what was found
        self._seen: set[int] = set()
        self.done_before = self.failed_before = 0
        with contextlib.ExitStack() as stack:
            # Locked before anything is judged or moved, and the one that is moved as well as the new one.
            self.out = stack.enter_context(Journal(paths.out))
            self.errors = stack.enter_context(Journal(paths.errors))
            stack.callback(self._tidy)
            begun = paths.out.stat().st_size or paths.errors.stat().st_size
            if begun and not (resume or fresh):
                self._check(options)
            if fresh or retry_errors:
                # The failures first: whoever is killed between the two has lost nothing.
                self.errors = stack.enter_context(self._anew(self.errors))
                self.out = stack.enter_context(self._anew(self.out)) if fresh else self.out
            _write_record(paths.record, options)
            self.done_before = self._take_in(self.out)
            self.failed_before = self._take_in(self.errors)
            stack.pop_all()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, identity: str) -> bool:
        """Whether the item of that id was done, or failed, before this run."""
        return digests([identity])[0] in self._seen

    def tick(self) -> None:
        """As Journal.tick, for both files."""
        self.out.tick()
        self.errors.tick()

    def close(self) -> None:
        try:
            self._tidy()
            self.out.close()
        finally:
            self.errors.close()

    def _tidy(self) -> None:
        """Without failures, there is no file of them."""
        with contextlib.suppress(FileNotFoundError):  # somebody has taken it away
            if not self.paths.errors.stat().st_size:
                self.paths.errors.unlink()

    def _take_in(self, journal: Journal) -> int:
        lines = 0
        size = journal.path.stat().st_size
        for ids in journal.ids():
            lines += len(ids)
            self._seen.update(digests(ids))
        if cut := size - journal.path.stat().st_size:
            self.notices.append(
                f"{journal.path} ended in a torn line: {cut:,} bytes are in {journal.path}.torn."
            )
        return lines

    def _anew(self, journal: Journal) -> Journal:
        """An empty one in its place; itself if it is empty already."""
        path = journal.path
        if not path.stat().st_size:
            return journal
        aside = next(
            name
            for number in range(1, 10**6)
            if not (name := path.with_name(f"{path.name}.{number}")).exists()
        )
        path.rename(aside)
        self.notices.append(f"{path} of before is {aside} now.")
        new = Journal(path)
        journal.close()
        return new

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raises UsageError when the answers of before were made in another way, or nobody knows how."""
        ways = "Go on all the same: --resume. Begin anew, with the old file kept aside: --fresh"
        try:
            before = dict(json.loads(self.paths.record.read_bytes())["options"])
        except (OSError, ValueError, LookupError, TypeError):
            raise UsageError(
                f"{self.paths.out} is there, and the record of how it was made, {self.paths.record}, is not.",
                ways,
            ) from None
        changed = [
            f"{name} was {_shown(before.get(name))} and is {_shown(options.get(name))}"
            for name in dict.fromkeys([*options, *before])
            if before.get(name) != options.get(name)
        ]
        if changed:
            raise UsageError(f"{self.paths.out} was made in another way: {', '.join(changed)}.", ways)


def _shown(value: Any) -> str:
    if value in ("", None):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(f"{text[:SHOWN]}..." if len(text) > SHOWN else text) if isinstance(value, str) else text


def _write_record(path: Path, options: Mapping[str, Any]) -> None:
    """Whole or not at all, in a file of mode 0600, as a prompt may be nobody else's business."""
    try:
        with files.whole(path) as file:
            json.dump({"options": dict(options)}, file, indent=1)
        _sync_folder(path)
    except OSError as error:
        raise PixtralSkyError(f"{path} cannot be written: {error.strerror}.") from error
