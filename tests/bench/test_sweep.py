"""Where the knee is, on curves whose knee is known, and which steps `auto` takes to find it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pixtral_sky.bench import sweep
from pixtral_sky.bench.figures import Failure, Sample, Step
from pixtral_sky.errors import UsageError

Curve = Callable[[int], float]  # requests a second at a concurrency


def step(concurrency: int, rate: float, **more) -> Step:
    """As of a closed loop, where a request takes concurrency / rate."""
    whole = concurrency / rate
    samples = [Sample(whole / 5, whole, 100, 10)] * round(rate * 1000)
    return Step(concurrency, samples, 1000.0, images=1, **more)


def auto(curve: Curve, **more) -> list[Step]:
    return list(sweep.steps(lambda concurrency: step(concurrency, curve(concurrency), **more), None))


def measured(done: list[Step]) -> list[int]:
    return [each.concurrency for each in done]


def at(found: Step | None) -> int | None:
    return found and found.concurrency


@pytest.mark.parametrize(("curve", "at_once", "steps"), [
    (lambda c: min(c, 8) * 1.0, 8, 32),                # so many places, and no more
    (lambda c: min(c, 100) * 1.0, 128, 256),           # between two steps: the one above
    (lambda c: min(c, 1) * 1.0, 1, 4),                 # one at a time
    (lambda c: 10 * c / (c + 4), 32, 128),             # doubling brings 10% at 4.5 times its half
    (lambda c: c**0.9, None, 256),                     # it gains all the way
    (lambda c: min(c, 16) * 1.0 - max(c - 16, 0) / 50, 16, 64),  # it gets worse
    (lambda c: 3.0 if c == 2 else min(c, 16) * 1.0 + 2, 16, 64),   # a bad step, and better ones after it
])  # fmt: skip
def test_the_knee_of_a_curve(curve, at_once, steps):
    done = auto(curve)
    assert at(sweep.knee(done)) == at_once
    assert measured(done) == [2**each for each in range(steps.bit_length())]


@pytest.mark.parametrize("seed", range(10))
def test_noise_of_a_few_percent_moves_it_by_a_step_at_most(seed):
    chance = random.Random(seed)
    done = auto(lambda c: min(c, 16) * chance.uniform(0.97, 1.03))
    assert at(sweep.knee(done)) in (16, 32)


def test_latency_has_to_grow():
    """Where it does not, more at once cost nobody anything."""
    quick = [Sample(0.1, 0.5, 100, 10)] * 1000
    done = [step(1, 1.0), Step(2, quick, 1000.0, 1)]
    assert sweep.knee(done) is None


def test_a_single_step_has_no_knee():
    assert sweep.knee([step(4, 1.0)]) is None
    assert at(sweep.best([step(4, 1.0)], {})) == 4


def test_a_step_with_failures_ends_the_search():
    def measure(concurrency):
        failures = {"Busy": Failure(3, "busy")} if concurrency == 16 else {}
        return step(concurrency, min(concurrency, 4) * 1.0, failures=failures)

    done = list(sweep.steps(lambda c: measure(c) if c > 2 else step(c, c * 1.0), None))
    assert (measured(done), at(sweep.knee(done))) == ([1, 2, 4, 8, 16], 4)


def test_where_bench_is_the_limit_is_no_knee():
    def measure(concurrency):
        return step(concurrency, min(concurrency, 8) * 1.0, cpu=0.9 if concurrency > 8 else 0.1)

    done = list(sweep.steps(measure, None))
    assert (measured(done), sweep.knee(done)) == ([1, 2, 4, 8, 16], None)


def test_what_was_stopped_ends_it_and_counts_for_nothing():
    def measure(concurrency):
        return step(concurrency, 1.0, stopped="interrupted" if concurrency == 4 else "")

    done = list(sweep.steps(measure, [1, 4, 16]))
    assert (measured(done), sweep.knee(done), at(sweep.best(done, {}))) == ([1, 4], None, 1)


def test_the_step_that_stands_for_it():
    done = auto(lambda c: min(c, 8) * 1.0)
    assert at(sweep.best(done, {})) == 8
    # Beyond 8, an answer takes longer than a second.
    assert at(sweep.best(done, {"whole": 1.0})) == 8
    assert at(sweep.best(auto(lambda c: 10 * c / (c + 4)), {"whole": 1.0})) == 4
    assert sweep.best([Step(1, [], 1.0, 1)], {}) is None
    failed = [step(2, 2.0, failures={"Busy": Failure(1, "busy")}), step(1, 1.0)]
    assert at(sweep.best(failed, {})) == 1
    assert at(sweep.best(failed[:1], {})) == 2


def test_concurrencies():
    assert sweep.concurrencies("auto") is None
    assert sweep.concurrencies("4") == [4]
    assert sweep.concurrencies("16, 1,4,1") == [1, 4, 16]
    assert sweep.concurrencies("8", requests=8) == [8]


@pytest.mark.parametrize(("text", "requests", "most"), [
    ("", None, "256,"), ("0", None, "256,"), ("257", None, "256,"), ("-1", None, "256,"), ("1,", None, "256,"), ("x", None, "256,"),
    ("1.5", None, "256,"), ("\u0663", None, "256,"), ("9", 8, "8, as --requests 8 are all of a step,"),
])  # fmt: skip
def test_what_is_no_concurrency(text, requests, most):
    with pytest.raises(UsageError) as error:
        sweep.concurrencies(text, requests)
    assert str(error.value) == (
        f"--concurrency takes numbers from 1 to {most} or auto; not {text!r}. For example: --concurrency 1,4,16"
    )


def test_auto_sends_no_more_at_once_than_all_requests():
    done = list(sweep.steps(lambda c: step(c, c * 1.0), None, most=20))
    assert measured(done) == [1, 2, 4, 8, 16]
