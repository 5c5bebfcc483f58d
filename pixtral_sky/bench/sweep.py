"""Which numbers of requests at once are measured, and where the knee is. Pure.

The **knee** is the least concurrency past which throughput hardly gains while latency grows: for each larger
one that was measured, requests a second are less than GAIN of what would be in proportion, and the median of
whole answers is longer. So from a knee at 16, 32 at once answer less than 10% more requests a second, and 64
less than 30% more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.bench.figures import Step, percentile
from pixtral_sky.errors import UsageError

GAIN = 0.1  # of a proportional gain
SURE = 2  # larger concurrencies that have to agree before `auto` ends


def concurrencies(text: str, requests: int | None = None) -> list[int] | None:
    """The numbers of ``4`` or ``1,4,16``, sorted; None for ``auto``. Raises UsageError.

    ``requests`` are all of a step, which cannot be fewer than those at once.
    """
    if text.strip() == "auto":
        return None
    words = [word.strip() for word in text.split(",")]
    most = min(MOST, requests or MOST)
    if not all(word.isascii() and word.isdecimal() and 1 <= int(word) <= most for word in words):
        why = f", as --requests {requests} are all of a step" if most < MOST else ""
        raise UsageError(
            f"--concurrency takes numbers from 1 to {most}{why}, or auto; not {text!r}.",
            "For example: --concurrency 1,4,16",
        )
    return sorted(set(map(int, words)))


def steps(measure: Callable[[int], Step], wanted: Sequence[int] | None, most: int = MOST) -> Iterator[Step]:
    """Measure at each concurrency; without ``wanted``, at 1, 2, 4... up to ``most``, until the knee is sure.

    Ends after a step that was stopped, and without ``wanted`` after one that had failures, or whose limit was
    bench itself: a larger one would have more of that.
    """
    done: list[Step] = []
    for concurrency in wanted or _doubled(most):
        done.append(measure(concurrency))
        yield done[-1]
        if done[-1].stopped:
            return
        if not wanted and (done[-1].failed or done[-1].is_own_limit or _is_sure(done)):
            return


def _doubled(most: int) -> list[int]:
    return [2**each for each in range(most.bit_length())]


def _is_sure(done: Sequence[Step]) -> bool:
    found = knee(done)
    return found is not None and sum(each.concurrency > found.concurrency for each in done) >= SURE


def knee(done: Sequence[Step]) -> Step | None:
    """The knee; None if throughput still gains at the largest concurrency.

    Steps that were stopped, that had failures or whose limit was bench itself are not looked at.
    """
    good = [each for each in done if each.samples and not (each.failed or each.stopped or each.is_own_limit)]
    for step in good:
        larger = [each for each in good if each.concurrency > step.concurrency]
        if larger and all(_is_past(step, each) for each in larger):
            return step
    return None


def _is_past(step: Step, larger: Step) -> bool:
    in_proportion = larger.concurrency / step.concurrency - 1
    return larger.requests < step.requests * (1 + GAIN * in_proportion) and (
        percentile(larger.whole, 50) > percentile(step.whole, 50)
    )


def best(done: Sequence[Step], slo: Mapping[str, float]) -> Step | None:
    """The step that stands for the endpoint: the knee; without one, that with the most requests a second.

    With an ``slo``, that with the most requests a second that meet it. Steps that had failures or were
    stopped stand for it only where there is no other. None where nothing was answered.
    """
    answered = [each for each in done if each.samples]
    whole = [each for each in answered if not (each.failed or each.stopped)] or answered
    if slo:
        return max(whole, key=lambda each: each.goodput(slo), default=None)
    return knee(done) or max(whole, key=lambda each: each.requests, default=None)
