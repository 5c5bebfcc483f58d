"""What was measured: the times of each answer, and the figures of a step. Pure.

The definitions are those of `vllm bench serve` (vLLM 0.32, ``vllm/benchmarks/serve.py``), so that figures
can be compared: the first token comes with the first chunk of an answer; the time per token is that of the
others; a rate is what was answered, over the seconds from the first request to the end of the last answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pixtral_sky.errors import UsageError

PERCENTILES = (50, 90, 99)
# Of a core. Python runs one thread at a time, so at 1 it can do no more, and from here on threads wait.
BUSY = 0.7
LATE_SHARE = 0.1  # of the time to the first token: lateness that distorts it
FEW = 5  # answers for each request at once: with less, the end of a step weighs, where fewer are in flight
SLO_NAMES = {"ttft": "first", "tpot": "per_token", "e2e": "whole"}


@dataclass(frozen=True)
class Sample:
    """One answer. Times are seconds from the request."""

    first: float  # to the first token
    whole: float
    prompt_tokens: int
    answer_tokens: int

    @property
    def per_token(self) -> float:
        """Seconds for each token after the first; 0 where there is only one."""
        return (self.whole - self.first) / (self.answer_tokens - 1) if self.answer_tokens > 1 else 0.0


@dataclass(frozen=True)
class Failure:
    """The failures of one kind: how many, and the words of the first."""

    count: int
    first: str


@dataclass(frozen=True)
class Step:
    """What was measured with ``concurrency`` requests at once, for ``seconds``."""

    concurrency: int
    samples: Sequence[Sample] = field(repr=False)
    seconds: float
    images: int  # in a request
    failures: Mapping[str, Failure] = field(default_factory=dict)  # by the name of the error
    cpu: float = 0.0  # of a core, that bench itself took
    late: float = 0.0  # seconds: how late this machine woke a thread of bench, at the 90th percentile
    stopped: str = ""  # why it ended early; empty: it did not

    @property
    def failed(self) -> int:
        return sum(each.count for each in self.failures.values())

    @property
    def requests(self) -> float:
        """Answered requests a second."""
        return len(self.samples) / self.seconds if self.seconds else 0.0

    @property
    def pictures(self) -> float:
        """Pictures a second."""
        return self.requests * self.images

    @property
    def tokens(self) -> float:
        """Tokens of answers a second."""
        return self.answer_tokens / self.seconds if self.seconds else 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(each.prompt_tokens for each in self.samples)

    @property
    def answer_tokens(self) -> int:
        return sum(each.answer_tokens for each in self.samples)

    @property
    def first(self) -> list[float]:
        return [each.first for each in self.samples]

    @property
    def per_token(self) -> list[float]:
        return [each.per_token for each in self.samples if each.answer_tokens > 1]

    @property
    def whole(self) -> list[float]:
        return [each.whole for each in self.samples]

    @property
    def is_own_limit(self) -> bool:
        """Whether bench was so busy that its figures are its own, and not the server's."""
        return self.cpu >= BUSY

    @property
    def is_late(self) -> bool:
        """Whether this machine was so busy that it made the times longer."""
        return bool(self.samples) and self.late > LATE_SHARE * percentile(self.first, 50)

    @property
    def is_short(self) -> bool:
        return len(self.samples) < FEW * self.concurrency

    def goodput(self, slo: Mapping[str, float]) -> float:
        """Requests a second that met all of ``slo``: seconds by the names of Sample's times."""
        good = sum(all(getattr(each, name) <= most for name, most in slo.items()) for each in self.samples)
        return good / self.seconds if self.seconds else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` percent are, interpolated as numpy does; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def slo(text: str) -> dict[str, float]:
    """The seconds of ``ttft=2,tpot=0.1,e2e=10``, by the names of Sample's times. Raises UsageError."""
    found = {}
    for word in filter(None, text.split(",")):
        name, _, value = word.strip().partition("=")
        if name not in SLO_NAMES or not re.fullmatch(r"\d{1,6}(\.\d+)?|\.\d+", value) or not float(value):
            raise UsageError(
                f"--slo takes seconds above 0 for ttft, tpot and e2e, not {word.strip()!r}.",
                "For example: --slo ttft=2,tpot=0.1",
            )
        found[SLO_NAMES[name]] = float(value)
    return found
