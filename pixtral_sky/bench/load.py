"""Puts a load on an endpoint, and measures it: a step of so many requests at once, again and again."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pixtral_sky.bench.figures import Failure, Sample, Step, percentile
from pixtral_sky.bench.questions import Questions
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.memory import Workload

TICK_SECONDS = 0.02  # between two looks at how late this machine is
WATCH_SECONDS = 0.1
FAILED_SECONDS = 1.0  # before the next request of a place whose last one failed
FAILING = 20  # failures in a row, besides one for each request at once: the step is stopped
CLOSING_SECONDS = 5.0  # for requests in flight to notice that they were given up


@dataclass(frozen=True)
class Length:
    """A step sends for ``seconds``, or so many ``requests``, or until the first of both.

    What is in flight then is waited for.
    """

    seconds: float | None = None
    requests: int | None = None

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.requests is None else f"{self.requests:,} requests"


class Bench:
    """A load of requests like ``workload`` on ``endpoint``. Closed by ``with``.

    ``measure`` puts as many requests at once on it as it is told: each place asks again as soon as it has its
    answer. No request is tried again, and each has a question of its own; the answers are as long as the
    workload says, whatever the model would say. Before a step begins, each place asks once, which warms up
    and is not counted. Ctrl-C ends a step: what is in flight is given up, and what was measured is kept.
    """

    def __init__(self, endpoint: Endpoint, workload: Workload, seed: int | None = None) -> None:
        self._endpoint, self._workload = endpoint, workload
        self._questions = Questions(workload, time.time_ns() if seed is None else seed)
        self._numbers = itertools.count()  # next() is atomic
        self._fields: dict[str, Any] = {"ignore_eos": True}
        self._fields |= dict.fromkeys(("max_tokens", "min_tokens"), workload.answer)

    def try_once(self) -> Sample:
        """One request, tried again as `ask` does: whether the endpoint answers, and takes such requests.

        Raises PixtralSkyError.
        """
        with Client(self._endpoint) as client:
            return self._ask(client)

    def measure(self, concurrency: int, length: Length, *, warm_up: bool = True) -> Step:
        """Measure a step. For the main thread, which gets the Ctrl-C."""
        with Client(self._endpoint, budget=0, connections=concurrency) as client:
            return _Run(self, client, concurrency, length, warm_up).step()

    def _ask(self, client: Client) -> Sample:
        answer = client.ask(self._questions[next(self._numbers)], **self._fields)
        for _ in answer:
            pass
        counts = [int(answer.usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Sample(answer.seconds_to_chunk or answer.seconds, answer.seconds, *counts)

    @property
    def images(self) -> int:
        return self._workload.images


class _Run:
    """One step."""

    def __init__(self, bench: Bench, client: Client, concurrency: int, length: Length, warm_up: bool) -> None:
        self._bench, self._client = bench, client
        self._concurrency, self._length, self._warms_up = concurrency, length, warm_up
        self._left = itertools.count()  # the numbers of requests that were begun
        self._samples: list[Sample] = []
        self._failures: dict[str, Failure] = {}
        self._in_a_row = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stopped = ""
        self._begun = self._ended = 0.0
        self._cpu = 0.0  # seconds that this process had used when the clock began
        self._warm = threading.Barrier(concurrency, self._start_the_clock)

    def step(self) -> Step:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._concurrency)]
        with _lateness() as late:
            try:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    time.sleep(WATCH_SECONDS)
                    if self._stopped:
                        break
                cpu = time.process_time() - self._cpu
            except KeyboardInterrupt:
                self._stopped, cpu = "interrupted", time.process_time() - self._cpu
            self._give_up()
            until = time.monotonic() + CLOSING_SECONDS
            for thread in threads:
                thread.join(max(until - time.monotonic(), 0))
        with self._lock:
            seconds = self._ended - self._begun if self._ended else 0.0
            return Step(
                concurrency=self._concurrency,
                samples=tuple(self._samples),
                seconds=seconds,
                images=self._bench.images,
                failures=dict(self._failures),
                cpu=cpu / seconds if seconds else 0.0,
                late=percentile([each for at, each in late if at >= self._begun], 90),
                stopped=self._stopped,
            )

    def _start_the_clock(self) -> None:
        self._cpu, self._begun = time.process_time(), time.monotonic()

    def _give_up(self) -> None:
        self._over.set()
        self._warm.abort()
        self._client.close()

    def _work(self) -> None:
        """One place: warm up, then ask until the step is over."""
        if self._warms_up:
            with contextlib.suppress(PixtralSkyError):  # what fails here fails again
                self._bench._ask(self._client)
        try:
            self._warm.wait()
        except threading.BrokenBarrierError:
            return
        while not self._over.is_set() and self._is_one_left():
            try:
                sample = self._bench._ask(self._client)
            except PixtralSkyError as error:
                self._failed(error)
                self._over.wait(FAILED_SECONDS)
            else:
                with self._lock:
                    self._samples.append(sample)
                    self._in_a_row = 0
                    self._ended = time.monotonic()

    def _is_one_left(self) -> bool:
        seconds, requests = self._length.seconds, self._length.requests
        if seconds is not None and time.monotonic() - self._begun >= seconds:
            return False
        return requests is None or next(self._left) < requests

    def _failed(self, error: PixtralSkyError) -> None:
        if self._over.is_set():  # it was given up
            return
        kind = type(error).__name__
        with self._lock:
            before = self._failures.get(kind, Failure(0, error.what))
            self._failures[kind] = replace(before, count=before.count + 1)
            self._ended = time.monotonic()
            self._in_a_row += 1
            if self._in_a_row >= FAILING + self._concurrency:
                self._stopped = f"the last {self._in_a_row} requests failed"


@contextlib.contextmanager
def _lateness() -> Iterator[list[tuple[float, float]]]:
    """Watches how late this machine wakes a thread: pairs of the time and the seconds."""
    found: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            before = time.monotonic()
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            found.append((now, now - before - TICK_SECONDS))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
