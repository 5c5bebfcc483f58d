"""Ask about many items at once, and write the answers into the ledger: see ``Batch``.

An item is done once its line is in the ledger. What is in flight when a run ends is asked again by the next
run. Memory does not grow with the items: few are prepared ahead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

from pixtral_sky.batch import openai_format
from pixtral_sky.batch.concurrency import MOST, Limiter
from pixtral_sky.batch.inputs import Walked
from pixtral_sky.batch.items import BadInput, Defaults, Item, failure, result
from pixtral_sky.batch.journal import Ledger
from pixtral_sky.client.messages import longer_context
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import (
    BrokenAnswer,
    Busy,
    Failed,
    LimitError,
    PixtralSkyError,
    SchemaError,
    Unauthorized,
    Unreachable,
    Untrusted,
    UsageError,
)

if TYPE_CHECKING:
    from pixtral_sky.client.client import Client
    from pixtral_sky.pictures.picture import Picture

PATIENCE_SECONDS = 300.0  # for all attempts of a request to begin: nobody waits, and a replica takes minutes
GRACE_SECONDS = 20.0  # for what is in flight when the run is told to stop
TICK_SECONDS = 0.1

# The most attempts of an item, by their error. Nothing of the answers was used, so it is safe to ask again.
# A broken answer or a 5xx counts only if the server answers another question right after it.
TRIES: dict[type[PixtralSkyError], int] = {BrokenAnswer: 3, Failed: 3, SchemaError: 2}
AGAIN_SECONDS = 2.0  # before the next attempt after those; twice that before the one after it
FAILING_SECONDS = 5.0  # between two attempts, one at a time, while the server answers nothing
GONE = 3  # requests in a row that never began: the endpoint is gone
REFUSED = 100  # items in a row that were refused: they are not the reason

# Threads that compute, one a core; 16 outrun any endpoint. A photo of 12 megapixels takes each 60 MB.
PREPARERS = min(max(len(os.sched_getaffinity(0)), 2), 16)
READY = 2 * PREPARERS  # bodies that wait to be sent
HELD_BYTES = 64 * 2**20  # of bodies that wait or are in flight: about 100 large pictures


@dataclass(frozen=True)
class Job:
    """What is to be done. Each call of ``walk`` gives all items; ``shard`` (1, 4) is the first share of 4.

    ``max_model_len`` is the endpoint's, in tokens of prompt and answer; None when it is unknown.
    """

    walk: Callable[[], Iterable[Item | BadInput]]
    defaults: Defaults
    schema: Schema | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    concurrency: int | None = None
    max_model_len: int | None = None
    walked: Walked = field(default_factory=Walked)  # by ``walk``, when it comes to its end

    def left(self, ledger: Ledger) -> Iterator[Item | BadInput]:
        """The items that are left: of this share, not in the ledger, up to the limit."""
        left = (each for each in self.walk() if in_shard(each.id, self.shard) and each.id not in ledger)
        return islice(left, self.limit)


def in_shard(identity: str, shard: tuple[int, int]) -> bool:
    """Whether the item is in share I of N; the same on every machine and in every run."""
    index, shards = shard
    if shards == 1:
        return True
    hashed = blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed, "big") % shards == index - 1


@dataclass
class Tally:
    """The counts of a run so far."""

    done: int = 0
    failed: int = 0
    images: int = 0  # of the items that are done
    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_of_several: int = 0  # of the images: the first frame or page of a file that has more
    cut_off: int = 0  # answers that ended at max_tokens
    again: int = 0  # asked once more
    in_flight: int = 0
    to_do: int | None = None  # all items of this run; None: not known yet
    failure: str = ""  # the reason of the last that failed
    trouble: str = ""  # the last notice of a retry, until the next answer
    stopping: bool = False  # it waits for what is in flight, GRACE_SECONDS at most
    stopped_by: int = 0  # the signal that ended it early


@dataclass
class _Work:
    """An item, its body, and its failed attempts."""

    item: Item
    body: dict[str, Any] = field(default_factory=dict)
    size: int = 0  # bytes of the body
    first_of_several: int = 0  # as in Tally
    has_schema: bool = False  # its answer has to fit the job's schema
    tries: dict[type[PixtralSkyError], int] = field(default_factory=dict)


class _Stopped(PixtralSkyError):
    """The run ends while a request waits for its next attempt."""


class Batch:
    """One run of a job. ``run`` it once, with a client that never asks again by itself (``again=0``).

    ``trouble`` takes the client's notices of retries, and ``pause`` makes its pauses.

    Some threads prepare bodies (read and shrink pictures), others send as many at once as the limiter allows;
    ``run`` supervises them. One lock guards all that they share.
    """

    def __init__(self, job: Job, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._ledger, self._clock = job, ledger, clock
        self._limiter = Limiter(job.concurrency)
        self.tally = Tally()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # one more can be prepared
        self._work = threading.Condition(self._lock)  # one more can be sent
        self._walking = threading.Lock()  # for the iterator below, which may wait for a disk
        self._items = job.left(ledger)
        self._exhausted = False
        self._again: deque[_Work] = deque()
        self._ready: deque[_Work] = deque()
        self._preparing = 0
        self._pausing = 0  # requests that wait for their next attempt
        self._wakes = threading.Condition(self._lock)  # they need not wait any longer
        self._held = 0  # bytes of bodies that wait or are in flight
        self._gone = self._refused = 0  # in a row
        self._failing_since: float | None = None  # the server fails, whatever it is asked
        self._stopping = False  # nothing more is begun
        self._is_left = False  # the run has ended, and what is in flight no longer matters
        self._fatal: BaseException | None = None
        self._signals: list[int] = []

    def run(self, client: Client, watch: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Do the job, and call ``watch`` ten times a second. For the main thread, which gets the signals.

        SIGINT or SIGTERM ends it once what is in flight is done, within GRACE_SECONDS; a second one, at once.

        Raises PixtralSkyError when it cannot go on: the ledger cannot be written, the key is refused, the
        endpoint is gone or refuses everything. All that is done until then is in the ledger.
        """
        for _ in range(PREPARERS):
            self._thread(self._prepare_all)
        if "-" not in self._job.walked.arguments:  # standard input cannot be walked twice
            self._thread(self._count)
        try:
            with self._handlers():
                self._watch_over(client, watch)
        finally:
            self._is_left = True
            self._stop()
        if self._fatal:
            raise self._fatal
        self._ledger.tick()
        if self._signals and not self._is_over():
            self.tally.stopped_by = self._signals[0]
        else:
            self.tally.to_do = self.tally.done + self.tally.failed
        return self.tally

    def _watch_over(self, client: Client, watch: Callable[[Tally], None]) -> None:
        senders, deadline = 0, float("inf")
        while not (self._fatal or self._is_over()):
            if self._signals and not self._stopping:
                deadline = self._clock() + GRACE_SECONDS
                self.tally.stopping = True
                self._stop()
            in_flight = self.tally.in_flight
            impatient = len(self._signals) > 1 or self._clock() > deadline
            if self._stopping and (impatient or not in_flight):
                return
            while senders < min(self._limiter.limit + self._pausing, MOST) and not self._stopping:
                senders += 1
                self._thread(self._send_all, client)
            self._ledger.tick()
            with self._lock:  # the limit may have risen
                self._work.notify(max(self._limiter.limit - in_flight, 0))
            watch(self.tally)
            time.sleep(TICK_SECONDS)

    @property
    def hooks(self) -> dict[str, Any]:
        """What its client calls."""
        return {"notify": self.trouble, "sleep": self.pause}

    def trouble(self, notice: str) -> None:
        """Take the client's notice of a retry."""
        with self._lock:
            self._limiter.busy(self._clock(), taken=self.tally.in_flight - 1)
            self.tally.trouble = notice

    def pause(self, seconds: float) -> None:
        """Sleep in a thread that sends. If the limiter allows it, another request goes meanwhile.

        Raises _Stopped when the run ends.
        """
        with self._lock:
            if not self._limiter.spares():
                self._wakes.wait_for(lambda: self._stopping, seconds)
            else:
                self.tally.in_flight -= 1
                self._pausing += 1
                self._work.notify()
                self._wakes.wait_for(lambda: self._stopping, seconds)
                self._wait_until(self._may_send)
                self._pausing -= 1
                self.tally.in_flight += 1
            if self._stopping:
                raise _Stopped("The run ends.")

    def _thread(self, target: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                self._end(error)

        # Daemons: the end of the run does not wait for their answers.
        threading.Thread(target=guarded, daemon=True).start()

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        """Only note the signals, so that no line is cut."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda number, _: self._signals.append(number)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _is_over(self) -> bool:
        with self._lock:
            return self._nothing_left()

    def _nothing_left(self) -> bool:
        waiting = self._again or self._ready or self._preparing or self._pausing or self.tally.in_flight
        return self._exhausted and not waiting

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._room.notify_all()
            self._work.notify_all()
            self._wakes.notify_all()

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._fatal = self._fatal or error
        self._stop()

    def _count(self) -> None:
        number = sum(1 for _ in self._job.left(self._ledger))
        with self._lock:
            self.tally.to_do = number

    # Preparing

    def _prepare_all(self) -> None:
        while True:
            with self._room:
                self._room.wait_for(lambda: self._stopping or self._nothing_left() or self._has_room())
                if self._stopping or self._nothing_left():
                    return
                self._preparing += 1
            work = self._next()
            with self._lock:
                self._preparing -= 1
                if work:
                    self._held += work.size
                    self._ready.append(work)
                    self._work.notify()
                else:
                    self._room.notify_all()

    def _next(self) -> _Work | None:
        """The next item, prepared; None when it has failed, or none is left."""
        with self._lock:
            work = self._again.popleft() if self._again else None
        if not work:
            with self._walking:
                each = next(self._items, None)
            if each is None:
                self._exhausted = True
                return None
            if isinstance(each, BadInput):
                self._fail(each, each.reason)
                return None
            work = _Work(each)
        try:
            self._prepare(work)
        except Exception as error:  # whatever it is, other items may be good
            self._fail(work.item, error)
            return None
        return work

    def _has_room(self) -> bool:
        full = len(self._ready) + self._preparing >= READY or self._held >= HELD_BYTES
        return bool(self._again or not self._exhausted) and not full

    def _prepare(self, work: _Work) -> None:
        pictures: list[Picture] = []
        work.body = work.item.body(self._job.defaults, pictures.append)
        work.first_of_several = sum(bool(picture.part) for picture in pictures)
        work.size = _size(work.body)
        schema, length = self._job.schema, self._job.max_model_len
        work.has_schema = schema is not None and work.body.get("response_format") == schema.response_format
        tokens = work.item.tokens(work.body)
        needed = tokens + max(work.body.get(name) or 0 for name in openai_format.LIMITS)
        if length and tokens and needed > length:
            raise LimitError(
                f"Pictures and answer need {needed:,} tokens, and this endpoint has {length:,} for all.",
                f"Lower --max-tokens or --per-request{longer_context(needed)}.",
            )

    # Sending

    def _send_all(self, client: Client) -> None:
        while work := self._take():
            self._send(client, work)
            with self._lock:
                self.tally.in_flight -= 1
                self._held -= work.size
                self._room.notify()
                if self._nothing_left():
                    self._room.notify_all()
                    self._work.notify_all()

    def _take(self) -> _Work | None:
        """Wait for the next request that the limiter allows; None at the end."""
        with self._lock:
            if not self._wait_until(lambda: self._may_send() if self._ready else None):
                return None
            self.tally.in_flight += 1
            self._room.notify()
            return self._ready.popleft()

    def _wait_until(self, may_send: Callable[[], float | None]) -> bool:
        """Wait until ``may_send`` lets a request start; False at the end of the run."""
        while not self._stopping and not self._nothing_left():
            seconds = may_send()
            if seconds == 0:
                return True
            self._work.wait(seconds)
        return False

    def _may_send(self) -> float | None:
        """Seconds until a request may start, by the limiter; None while too many are in flight."""
        limit = self._limiter.limit if self._failing_since is None else 1
        return self._limiter.wait(self._clock()) if self.tally.in_flight < limit else None

    def _send(self, client: Client, work: _Work) -> None:
        body, work.body = work.body, {}  # a retry prepares the item again
        begun = self._clock()
        try:
            document = client.send(body)
            seconds = self._clock() - begun
            if self._job.schema and work.has_schema:
                choice = document["choices"][0]
                text, reason = choice["message"].get("content") or "", choice.get("finish_reason") or ""
                self._job.schema.check(text, reason, self._job.defaults.max_tokens)
        except _Stopped:
            self._undone(work)
            return
        except PixtralSkyError as error:
            if not self._is_left:  # after that, an error is of the closed client
                self._was_not_answered(client, work, error)
            return
        self._ledger.out.append(result(work.item, document, seconds, self._job.defaults))
        self._was_answered(work, document, seconds)

    def _was_not_answered(self, client: Client, work: _Work, error: PixtralSkyError) -> None:
        match error:
            case Unauthorized() | Untrusted():
                raise error
            case Busy() | Unreachable():
                self._never_began(work, error)
            case SchemaError():
                self._ask_again(work, error)
            case BrokenAnswer() | Failed():
                self._broke_off(client, work, error)
            case _:
                self._fail(work.item, error)
                self._was_refused(error)

    def _was_answered(self, work: _Work, document: dict[str, Any], seconds: float) -> None:
        usage = document.get("usage") or {}
        with self._lock:
            self._limiter.answered(self._clock(), seconds)
            self._gone = self._refused = 0
            self._failing_since = None
            self.tally.done += 1
            self.tally.images += work.item.images
            self.tally.first_of_several += work.first_of_several
            self.tally.prompt_tokens += usage.get("prompt_tokens") or 0
            self.tally.answer_tokens += usage.get("completion_tokens") or 0
            self.tally.cut_off += document["choices"][0].get("finish_reason") == "length"
            self.tally.trouble = ""

    def _never_began(self, work: _Work, error: Busy | Unreachable) -> None:
        """The client has used up its retries."""
        with self._lock:
            self._limiter.busy(self._clock(), error.retry_after if isinstance(error, Busy) else 0.0)
            self._gone += 1
            self._again.append(work)
            if self._gone < GONE:
                return
        raise error

    def _undone(self, work: _Work) -> None:
        with self._lock:
            self._again.append(work)

    def _broke_off(self, client: Client, work: _Work, error: BrokenAnswer | Failed) -> None:
        """It is the item's fault only if the server answers others: a server that dies fails for seconds."""
        if client.answers(pictures=work.item.images > 0):
            try:
                self.pause(AGAIN_SECONDS * 2 ** work.tries.get(type(error), 0))
            except _Stopped:
                self._undone(work)
            else:
                self._ask_again(work, error)
            return
        with self._lock:
            now = self._clock()
            self._failing_since = now if self._failing_since is None else self._failing_since
            self._limiter.busy(now, FAILING_SECONDS)
            self.tally.again += 1
            self.tally.trouble = f"{error.what} Trying again in {FAILING_SECONDS:.0f} s"
            self._again.append(work)
            if now - self._failing_since < PATIENCE_SECONDS:
                return
        raise error

    def _ask_again(self, work: _Work, error: BrokenAnswer | Failed | SchemaError) -> None:
        kind = type(error)
        work.tries[kind] = work.tries.get(kind, 0) + 1
        with self._lock:
            self._gone = 0
            self._failing_since = None
            if kind is not SchemaError:
                self._limiter.lost(self._clock())
            if work.tries[kind] < TRIES[kind]:
                self.tally.again += 1
                self._again.append(work)
                return
        self._fail(work.item, error)
        if kind is Failed:
            self._was_refused(error)

    def _was_refused(self, error: PixtralSkyError) -> None:
        with self._lock:
            self._gone = 0
            self._refused += 1
            if self._refused < REFUSED:
                return
        raise PixtralSkyError(
            f"The last {REFUSED} were refused, one after the other: {error.what}",
            "When that is mended: the same command with --retry-errors",
        )

    def _fail(self, item: Item | BadInput, error: Exception | str) -> None:
        """Record a failure that is not retried."""
        self._ledger.errors.append(failure(item, error))
        with self._lock:
            self.tally.failed += 1
            self.tally.failure = str(error)


def _size(value: Any) -> int:
    """Characters of all the strings in a body."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_size, value)) if isinstance(value, list) else 0


def shard(text: str) -> tuple[int, int]:
    """``I/N`` as numbers. Raises UsageError.

    >>> shard("2/8")
    (2, 8)
    """
    index, _, shards = text.partition("/")
    if index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards):
        return int(index), int(shards)
    raise UsageError(f"--shard {text!r} is no share.", "The second of eight: --shard 2/8")
