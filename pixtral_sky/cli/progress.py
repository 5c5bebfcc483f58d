"""The progress of a batch: a bar on a terminal, a line a minute elsewhere, a summary at the end."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pixtral_sky import output
from pixtral_sky.batch.runner import GRACE_SECONDS, Tally
from pixtral_sky.cli import common
from pixtral_sky.text import counted

LINE_SECONDS = 60.0  # between two lines, where there is no terminal
RECENT_SECONDS = 60.0  # the window of the rates
SAMPLE_SECONDS = 1.0


class Progress:
    """Shows ``tally``. ``price`` is the endpoint's, in USD an hour; None when it is unknown."""

    def __init__(
        self, tally: Tally, price: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tally, self._price, self._clock = tally, price, clock
        self._begun = clock()
        self._samples: deque[tuple[float, int, int, int]] = deque([(self._begun, 0, 0, 0)])
        self._line_at = self._begun + LINE_SECONDS
        self._has_said_stopping = False

    @property
    def seconds(self) -> float:
        return self._clock() - self._begun

    @property
    def cost(self) -> float | None:
        """USD so far."""
        return None if self._price is None else self._price * self.seconds / 3600

    def sample(self) -> None:
        """Record the current counts. Call it often."""
        now, tally = self._clock(), self._tally
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            tokens = tally.prompt_tokens + tally.answer_tokens
            self._samples.append((now, tally.done + tally.failed, tally.images, tokens))
        while len(self._samples) > 2 and now - self._samples[1][0] > RECENT_SECONDS:
            self._samples.popleft()

    def text(self) -> str:
        """The progress in one line."""
        tally = self._tally
        (begin, ended, images, tokens), (end, *last) = self._samples[0], self._samples[-1]
        span = end - begin
        words = [f"{tally.done:,}{f' of {tally.to_do:,}' if tally.to_do is not None else ''} done"]
        words += [f"{tally.failed:,} failed"] if tally.failed else []
        words += [f"{tally.in_flight} in flight"]
        if span and last[0] > ended:
            words += [f"{(last[1] - images) / span:,.1f} pictures/s"]
            words += [f"{(last[2] - tokens) / span:,.0f} tokens/s"]
            if tally.to_do is not None:
                left = tally.to_do - tally.done - tally.failed
                words += [f"{common.minutes(left * span / (last[0] - ended))} left"]
        words += [f"{self.cost:,.2f} USD"] if self.cost is not None else []
        return ", ".join(words) + (f"; {tally.trouble}" if tally.trouble else "")

    @contextmanager
    def shown(self) -> Iterator[Callable[[Tally], None]]:
        """Yields a function that shows the progress; call it often."""
        if output.quiet:
            yield lambda _: None
        elif output.at_terminal() and not os.environ.get("NO_COLOR"):
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(24), TextColumn("{task.description}", markup=False))
            with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("", total=None)

                def draw(tally: Tally) -> None:
                    self.sample()
                    if stopping := self._stopping():
                        bar.console.print(stopping, markup=False, highlight=False)
                    ended = tally.done + tally.failed
                    bar.update(task, total=tally.to_do, completed=ended, description=self.text())

                yield draw
        else:
            yield self._say

    def _stopping(self) -> str:
        """Once, what is waited for when the run was told to stop; else ""."""
        if self._has_said_stopping or not (self._tally.stopping and self._tally.in_flight):
            return ""
        self._has_said_stopping = True
        requests = counted(self._tally.in_flight, "request")
        return f"It waits for {requests}, {GRACE_SECONDS:.0f} s at most. To end at once: Ctrl-C again."

    def _say(self, _: Tally) -> None:
        self.sample()
        if stopping := self._stopping():
            output.say(stopping)
        if self._clock() >= self._line_at:
            self._line_at += LINE_SECONDS
            output.say(self.text())

    def summary(self) -> dict[str, Any]:
        """The counts, for programs."""
        tally, seconds, cost = self._tally, self.seconds, self.cost
        tokens = tally.prompt_tokens + tally.answer_tokens
        names = ("done", "failed", "images", "first_of_several", "prompt_tokens", "answer_tokens", "cut_off")
        counted = {name: getattr(tally, name) for name in names} | {
            "asked_again": tally.again,
            "seconds": round(seconds, 3),
            "images_per_second": round(tally.images / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 3),
        }
        return counted if cost is None else {**counted, "cost_usd": round(cost, 4)}

    def say_the_end(self) -> None:
        """Say the counts in a line or two."""
        tally, seconds = self._tally, self.seconds
        if tally.done:
            rate = f"{tally.images / seconds:,.1f}/s"
            pictures = f"{counted(tally.images, 'picture')} in {common.minutes(seconds)} ({rate})"
            tokens = f"{counted(tally.prompt_tokens, 'token')} in prompts, {tally.answer_tokens:,} in answers"
            cost = f", {self.cost:,.2f} USD" if self.cost is not None else ""
            output.say(f"{counted(tally.done, 'answer')} about {pictures}: {tokens}{cost}.")
            if tally.first_of_several:
                were = "was" if tally.first_of_several == 1 else "were"
                pictures = counted(tally.first_of_several, "picture")
                output.say(f"{pictures} {were} the first frame or page of several in a file.")
        elif tally.to_do == 0:
            output.say("There is nothing left to do.")
        if tally.cut_off:
            were = "was" if tally.cut_off == 1 else "were"
            output.warn(f"{counted(tally.cut_off, 'answer')} {were} cut off at --max-tokens.")
