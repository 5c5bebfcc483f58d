"""When requests arrive: in a day of a pattern, or in a trace."""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pixtral_sky.errors import UsageError
from pixtral_sky.text import os_reason

DAY = 86_400.0  # seconds
PATTERNS = ("steady", "day-night", "burst")
# Seconds. A burst is longer than the start of a replica, or no autoscaler could help.
BURST_SECONDS, BURST_EVERY = 1800.0, 10_800.0
MOST_QPS = 100.0  # 9 million requests a day, which take minutes to simulate
LONGEST_DAYS = 31
EXAMPLE = "For example: pixtral-sky capacity --pattern day-night --qps 1..9"

Rate = Callable[[float], float]  # queries per second at a second


@dataclass(frozen=True)
class Load:
    title: str
    arrivals: Sequence[float]  # sorted, in seconds from 0
    seconds: float

    @property
    def days(self) -> float:
        return self.seconds / DAY


def load(trace: Path | None, pattern: str | None, qps: str | None, seed: int) -> Load:
    """The requests of a CSV file, or of a day of a pattern. Raises UsageError."""
    if trace and pattern is not None:
        raise UsageError("The load is a CSV of times, or a pattern: not both.", "Leave one of them out")
    if not trace and pattern is None:
        raise UsageError("The load is a CSV of times, or a pattern.", EXAMPLE)
    if trace and qps is not None:
        raise UsageError("--qps is of a pattern; a trace has its own.", EXAMPLE)
    if trace:
        times = read_csv(trace)
        if times[-1] > LONGEST_DAYS * DAY:
            raise UsageError(
                f"{trace} spans {times[-1] / DAY:,.0f} days, and {LONGEST_DAYS} are simulated at most.",
                "Times are seconds since the epoch, or ISO 8601.",
            )
        return Load(str(trace), times, times[-1])
    if pattern not in PATTERNS:
        raise UsageError(f"There is no pattern {pattern!r}.", f"There are {', '.join(PATTERNS)}.")
    example = f"For example: --pattern {pattern} --qps {'5' if pattern == 'steady' else '1..9'}"
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(?:\.\.(\d{1,9}(?:\.\d+)?))?", qps or "", re.ASCII)
    if not found or (found[2] is None) != (pattern == "steady"):
        raise UsageError(
            f"{pattern} takes queries per second as {'one number' if pattern == 'steady' else 'LOW..HIGH'}"
            f"{'' if qps is None else f', not {qps!r}'}.",
            example,
        )
    low, high = float(found[1]), float(found[2] or found[1])
    if low > high:
        raise UsageError(f"--qps is LOW..HIGH, and {found[1]} is more than {found[2]}.", example)
    if not 0 < high <= MOST_QPS:
        most = "" if found[2] is None else "HIGH of "
        raise UsageError(f"{most}--qps is more than 0, and {MOST_QPS:g} at most, not {qps}.", example)
    rates = {
        "steady": steady(high),
        "day-night": day_night(low, high, DAY),
        "burst": burst(low, high, BURST_SECONDS, BURST_EVERY),
    }
    times = arrivals(rates[pattern], DAY, seed)
    if not times:
        raise UsageError("At this rate no request comes in a day.", "Give a higher --qps.")
    return Load(f"{pattern}, {qps} queries/s", times, DAY)


def steady(qps: float) -> Rate:
    return lambda _: qps


def step(low: float, high: float, start: float, end: float) -> Rate:
    """``high`` from ``start`` to ``end``, and ``low`` otherwise."""
    return lambda second: high if start <= second < end else low


def day_night(low: float, high: float, day: float = DAY) -> Rate:
    """A wave: ``low`` when the day begins and ends, ``high`` in its middle."""
    return lambda second: low + (high - low) * (1 - math.cos(2 * math.pi * second / day)) / 2


def burst(low: float, high: float, length: float, every: float) -> Rate:
    """``high`` for the last ``length`` seconds of every ``every`` seconds, and ``low`` otherwise."""
    return lambda second: high if second % every >= every - length else low


def arrivals(rate: Rate, seconds: float, seed: int | None = None) -> list[float]:
    """When requests of that rate arrive: evenly spaced, or with a ``seed`` by a Poisson process."""
    chance = random.Random(seed)  # noqa: S311, nothing secret
    times, due = [], 0.0
    gap = 0.5 if seed is None else chance.expovariate(1.0)  # in the middle of its share of time
    for second in range(math.ceil(seconds)):
        qps = rate(float(second))
        if qps < 0:
            raise ValueError(f"a rate is 0 or more, not {qps}")
        left = qps
        while due + left >= gap:
            left -= gap - due
            times.append(second + (1 - left / qps))
            due, gap = 0.0, 1.0 if seed is None else chance.expovariate(1.0)
        due += left
    return [time for time in times if time < seconds]


def warmed(arrivals: Sequence[float], seconds: float) -> list[float]:
    """The load with a copy of its first ``seconds`` before second 0."""
    return [time - seconds for time in arrivals[: bisect_left(arrivals, seconds)]] + list(arrivals)


def read_csv(path: Path) -> list[float]:
    """When requests arrived, sorted, in seconds from the first: the first column of a CSV file.

    A time is seconds since the epoch, or ISO 8601 (UTC where it names no zone). The first line may be a
    header. Raises UsageError.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {os_reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no CSV file: {error}.") from error
    times = []
    for number, line in enumerate(lines, 1):
        if cell := line.partition(",")[0].strip().strip('"'):
            try:
                times.append(_timestamp(cell))
            except ValueError:
                if number > 1:
                    raise UsageError(f"{path}, line {number}: {cell!r} is no time.") from None
    if not times:
        raise UsageError(f"{path} has no times.", "Its first column: seconds since the epoch, or ISO 8601.")
    first = min(times)
    return sorted(time - first for time in times)


def _timestamp(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no Z
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds
