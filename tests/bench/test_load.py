"""The load on an endpoint: what is sent, what is counted, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pixtral_sky.bench import load
from pixtral_sky.bench.figures import percentile
from pixtral_sky.bench.load import Bench, Length
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import Unauthorized
from pixtral_sky.memory import Workload
from tests.conftest import ROOT
from tests.support.command_line import KEY
from tests.support.ctrl_c import ctrl_c
from tests.support.fake_endpoint import FakeEndpoint, drops, stalls, status, timed

SMALL = Workload(images=1, width=32, height=32, text=8, answer=5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(load, "WATCH_SECONDS", 0.005)
    monkeypatch.setattr(load, "FAILED_SECONDS", 0.005)


def measure(fake, concurrency, length, workload=SMALL):
    return Bench(fake.endpoint(), workload, seed=1).measure(concurrency, length)


def test_what_is_sent():
    with FakeEndpoint([timed()], key=KEY) as fake:
        step = measure(fake, 2, Length(requests=6))
    assert (len(step.samples), step.failed, step.stopped) == (6, 0, "")
    assert len(fake.asked) == 6 + 2, "each place asks once before"
    bodies = [request.json for request in fake.asked]
    for body in bodies:
        assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["stream"]) == (
            5,
            5,
            True,
            True,
        )
    contents = [body["messages"][0]["content"] for body in bodies]
    for kind in ("text", "image_url"):
        assert len({str(part[kind]) for content in contents for part in content if part["type"] == kind}) == 8


def test_times():
    with FakeEndpoint([timed(first=0.06, per_token=0.02)]) as fake:
        step = measure(fake, 4, Length(requests=12))
    assert 0.06 <= percentile(step.first, 50) < 0.15
    assert 0.02 <= percentile(step.per_token, 50) < 0.05
    assert 0.14 <= percentile(step.whole, 50) < 0.3
    assert 3 * 0.14 <= step.seconds < 1.5
    assert {(each.prompt_tokens, each.answer_tokens) for each in step.samples} == {(100, 5)}
    assert not step.is_own_limit


def test_seconds_begin_after_the_warm_up_and_last_until_the_last_answer():
    with FakeEndpoint([timed(0.4), timed(0.15)]) as fake:
        step = measure(fake, 1, Length(seconds=0.25))
    # At 0 and at 0.15; the one before took 0.4.
    assert len(step.samples) == 2
    assert 0.3 <= step.seconds < 0.4
    assert max(step.whole) < 0.25


def test_without_a_warm_up():
    with FakeEndpoint([timed()]) as fake:
        step = Bench(fake.endpoint(), SMALL).measure(2, Length(requests=4), warm_up=False)
        assert len(step.samples) == len(fake.asked) == 4


def test_seconds_and_requests():
    with FakeEndpoint([timed()]) as fake:
        assert len(measure(fake, 1, Length(5.0, 3)).samples) == 3
        assert len(measure(fake, 1, Length(0.05, 10**6)).samples) < 10**3


def test_failures_by_kind_and_nothing_is_tried_again():
    script = [timed(), drops(), status(429), status(503), status(400), timed()]
    with FakeEndpoint(script) as fake:
        step = measure(fake, 1, Length(requests=7))
        assert len(fake.asked) == 1 + 7
    assert {kind: each.count for kind, each in step.failures.items()} == {
        "Unreachable": 1,
        "Busy": 2,
        "NotAnAPI": 1,
    }
    assert step.failures["Busy"].first == f"{fake.url} is busy (429)."
    assert len(step.samples) == 3


def test_an_endpoint_that_only_fails_ends_the_step():
    with FakeEndpoint([status(503)]) as fake:
        step = measure(fake, 2, Length(seconds=60))
    assert step.samples == ()
    assert step.stopped == f"the last {step.failed} requests failed"
    assert load.FAILING <= step.failed <= load.FAILING + 4


def test_ctrl_c_keeps_what_was_measured():
    with FakeEndpoint([timed()] * 6 + [stalls(20)]) as fake, ctrl_c(lambda: len(fake.asked) > 6):
        begin = time.monotonic()
        step = measure(fake, 1, Length(requests=9))
    assert time.monotonic() - begin < 3
    assert (step.stopped, len(step.samples), step.failed) == ("interrupted", 5, 0)
    assert 0 < step.seconds < 2


def test_ctrl_c_in_the_warm_up():
    with FakeEndpoint([stalls(20)]) as fake, ctrl_c(lambda: len(fake.asked) == 3):
        step = measure(fake, 3, Length(seconds=9))
    assert (step.stopped, step.samples, step.seconds) == ("interrupted", (), 0.0)


def test_the_first_request_says_what_is_wrong():
    with FakeEndpoint(key=KEY) as fake, pytest.raises(Unauthorized):
        Bench(fake.endpoint(key="other"), SMALL).try_once()
    with FakeEndpoint([timed(prompt=77)]) as fake:
        assert Bench(fake.endpoint(), SMALL).try_once().prompt_tokens == 77


def test_it_knows_its_own_ceiling():
    """Against a server in another process that answers at once."""
    command = [sys.executable, str(ROOT / "benchmarks" / "stub.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            bench = Bench(Endpoint.at(url), Workload(1, 256, 256, 20, 1))
            step = bench.measure(8, Length(seconds=0.4))
        finally:
            server.kill()
    assert step.requests > 100
    assert step.is_own_limit, f"{step.cpu:.0%} of a core"
