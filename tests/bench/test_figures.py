"""The figures of a step, by the definitions of `vllm bench serve`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from pixtral_sky.bench.figures import Failure, Sample, Step, percentile, slo
from pixtral_sky.errors import UsageError

SAMPLES = [Sample(0.5, 2.5, 1000, 21), Sample(1.0, 2.0, 1010, 11), Sample(2.0, 2.0, 990, 1)]
STEP = Step(2, SAMPLES, 10.0, images=3, failures={"Busy": Failure(2, "It is busy.")})


@given(some.lists(some.floats(0, 1e6), min_size=1), some.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_those_of_numpy(values, share):
    assert percentile(values, share) == pytest.approx(np.percentile(values, share))


def test_the_rates():
    assert (STEP.requests, STEP.pictures, STEP.tokens) == (0.3, pytest.approx(0.9), 3.3)
    assert (STEP.prompt_tokens, STEP.answer_tokens, STEP.failed) == (3000, 33, 2)
    assert (STEP.first, STEP.whole) == ([0.5, 1.0, 2.0], [2.5, 2.0, 2.0])
    assert STEP.per_token == [0.1, 0.1], "an answer of one token has none"


@pytest.mark.parametrize(("wanted", "good"), [
    ({"first": 1.0}, 0.2), ({"first": 0.4}, 0.0), ({"whole": 2.0}, 0.2), ({"first": 1.0, "whole": 2.0}, 0.1),
    ({"per_token": 0.05}, 0.1), ({}, 0.3),
])  # fmt: skip
def test_goodput(wanted, good):
    assert STEP.goodput(wanted) == good


def test_nothing_measured():
    none = Step(2, [], 0.0, images=1)
    assert (none.requests, none.tokens, none.goodput({}), none.failed, none.is_late) == (0, 0, 0, 0, False)
    assert percentile([], 50) == 0


def test_what_is_doubtful():
    assert not STEP.is_own_limit
    assert Step(2, SAMPLES, 10.0, 3, cpu=0.75).is_own_limit
    assert Step(2, SAMPLES, 10.0, 3, late=0.2).is_late
    assert not Step(2, SAMPLES, 10.0, 3, late=0.05).is_late
    assert STEP.is_short
    assert not Step(2, SAMPLES * 4, 10.0, 3).is_short


def test_slo():
    assert slo("ttft=2,tpot=0.1, e2e=10") == {"first": 2, "per_token": 0.1, "whole": 10}
    assert slo("") == {}


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=", "ttft=0", "ttft=-1", "ttft=nan", "ttft=inf", "itl=1", "ttft=2s", "2"]
)
def test_what_is_no_slo(text):
    with pytest.raises(UsageError) as error:
        slo(text)
    assert str(error.value) == (
        f"--slo takes seconds above 0 for ttft, tpot and e2e, not {text!r}. For example: --slo ttft=2,tpot=0.1"
    )
