"""`pixtral-sky bench` beside `vllm bench serve`: on a server of known times, at the ceiling, on a rehearsal.

Both ask the same server at the same time, so that whatever else the machine does, both see it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.bench import report
from pixtral_sky.bench.figures import Sample, Step
from pixtral_sky.bench.load import Bench, Length
from pixtral_sky.bench.questions import WORDS
from pixtral_sky.bench.report import Subject
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import FRAME_TOKENS
from pixtral_sky.deploy.resolve import endpoint_of
from pixtral_sky.memory import Workload
from pixtral_sky.rehearsal import checkpoint, engine
from tests.conftest import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
KEY = "the-key-of-both"
Round = tuple[Step, dict[str, Any]]  # ours, and the result of theirs
MIDDLE = ("request_throughput", "output_throughput", "p50_ttft_ms", "p50_tpot_ms", "p50_e2el_ms")
SLOW = ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")


class Theirs:
    """`vllm bench serve` in a process of its own."""

    def __init__(self, venv: Path) -> None:
        command = [str(venv / "bin/python"), str(Path(__file__).with_name("their_bench.py"))]
        environ = {**engine.environment(), "HF_HUB_OFFLINE": "1"}
        self.model = checkpoint.tiny(venv)
        self.process = subprocess.Popen(
            command,
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.begun = threading.Event()

    def run(self, endpoint: Endpoint, concurrency: int, requests: int, work: Workload) -> dict[str, Any]:
        """One run, with random pictures; ``begun`` is set when it has warmed up."""
        arguments = {
            "backend": "openai-chat",
            "base-url": endpoint.url,
            "endpoint": endpoint.chat_path,
            "header": f"Authorization=Bearer {endpoint.key}",
            "model": endpoint.model,
            "tokenizer": self.model,
            "tokenizer-mode": "mistral",
            "dataset-name": "random-mm",
            "random-input-len": work.text,
            "random-output-len": work.answer,
            "random-range-ratio": 0,
            "random-mm-base-items-per-request": work.images,
            "random-mm-num-mm-items-range-ratio": 0,
            "random-mm-limit-mm-per-prompt": '{"image": 4, "video": 0}',
            "random-mm-bucket-config": f"{{({work.height}, {work.width}, 1): 1.0}}",
            "num-prompts": requests,
            "max-concurrency": concurrency,
            "num-warmups": concurrency,
            "temperature": 0.7,
            "percentile-metrics": "ttft,tpot,e2el",
            "metric-percentiles": "50,90,99",
            "seed": time.time_ns() % 2**31,
        }
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        self.begun.clear()
        self.process.stdin.write(json.dumps([*words, "--disable-tqdm", "--save-detailed"]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("Starting main benchmark run"):
                self.begun.set()
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise AssertionError("it has ended")


@pytest.fixture(scope="module")
def theirs(venv: Path) -> Iterator[Theirs]:
    one = Theirs(venv)
    with one.process:
        yield one
        one.process.kill()


@contextmanager
def stub(*times: float) -> Iterator[Endpoint]:
    command = [sys.executable, str(ROOT / "benchmarks/stub.py"), *map(str, times)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Endpoint.at(f"http://127.0.0.1:{int(process.stdout.readline())}", KEY)
        finally:
            process.kill()


def ours(endpoint: Endpoint, concurrency: int, requests: int, work: Workload) -> dict[str, Any]:
    return figures(Bench(endpoint, work).measure(concurrency, Length(requests=requests)))


def together(theirs: Theirs, endpoint: Endpoint, concurrency: int, requests: int, work: Workload) -> Round:
    """A run of each, at the same time."""
    results: dict[str, Any] = {}
    bench = Bench(endpoint, work)

    def run():
        results["theirs"] = theirs.run(endpoint, concurrency, requests, work)

    thread = threading.Thread(target=run)
    thread.start()
    assert theirs.begun.wait(240)
    step = bench.measure(concurrency, Length(requests=requests))
    thread.join()
    own, other = figures(step), results["theirs"]
    assert (own["completed"], own["failed"]) == (other["completed"], other["failed"]) == (requests, 0)
    assert own["total_output_tokens"] == other["total_output_tokens"] == requests * work.answer
    return step, other


def figures(step: Step) -> dict[str, Any]:
    """As in the file."""
    work = Workload(step.images)
    return report.document([step], step, Subject(work, "pixtral"))


def pooled(steps: list[Step]) -> dict[str, Any]:
    """The figures of several steps as if they were one."""
    samples = [sample for step in steps for sample in step.samples]
    return figures(Step(steps[0].concurrency, samples, sum(step.seconds for step in steps), steps[0].images))


def their_step(found: dict[str, Any]) -> Step:
    columns = (found[name] for name in ("ttfts", "latencies", "input_lens", "output_lens"))
    samples = [Sample(*each) for each in zip(*columns, strict=True)]
    return Step(found["max_concurrency"], samples, found["duration"], 1)


def agree(own: dict[str, float], other: dict[str, float], names: tuple[str, ...], within: float) -> None:
    ratios = {name: own[name] / other[name] for name in names}
    print({name: round(ratio, 3) for name, ratio in ratios.items()})  # seen with -s
    assert ratios == pytest.approx(dict.fromkeys(names, 1.0), rel=within)


def test_on_a_server_of_known_times(theirs):
    work = Workload(1, 128, 128, text=50, answer=20)
    with stub(0.3, 0.02, work.answer) as endpoint:
        rounds = [together(theirs, endpoint, 8, 64, work) for _ in range(3)]
    # The median of three, as the machine may be busy in one.
    own, other = (
        {name: statistics.median(each[name] for each in found) for name in MIDDLE + SLOW}
        for found in ([figures(step) for step, _ in rounds], [other for _, other in rounds])
    )
    agree(own, other, MIDDLE + SLOW, within=0.1)
    assert not any(step.is_own_limit for step, _ in rounds)


def test_the_ceiling(theirs):
    """With bodies of the same size: theirs are of harder noise."""
    work = {"text": 50, "answer": 1}
    with stub() as endpoint:
        other = theirs.run(endpoint, 64, 1_000, Workload(1, 640, 640, **work))
        own = ours(endpoint, 64, 2_000, Workload(1, 1024, 1024, **work))
    assert (own["failed"], other["failed"]) == (0, 0)
    print(own["request_throughput"], other["request_throughput"])
    assert own["request_throughput"] > 1.5 * other["request_throughput"]
    assert own["client_limited"]


def test_on_a_rehearsal(theirs, running):
    """Two who ask one engine fall into step, and one may wait for the other each time: so they begin anew."""
    work = Workload(1, 256, 256, text=50, answer=24)
    rounds = [together(theirs, endpoint_of(running), 1, 10, work) for _ in range(8)]
    own, other = pooled([step for step, _ in rounds]), pooled([their_step(found) for _, found in rounds])
    agree(own, other, MIDDLE, within=0.1)
    # The slowest of 80 are chance.
    agree(own, other, SLOW, within=0.35)
    assert own["total_input_tokens"] == 80 * (work.prompt + FRAME_TOKENS), "a word is a token"


def test_the_file_has_what_theirs_has(theirs):
    """But for what is only in a file with --save-detailed, and names of their own."""
    work = Workload(1, 64, 64, text=8, answer=2)
    with stub(0.001, 0.001, 2) as endpoint:
        other = theirs.run(endpoint, 1, 2, work)
        own = ours(endpoint, 1, 2, work)
    detailed = {
        "input_lens",
        "output_lens",
        "ttfts",
        "itls",
        "latencies",
        "start_times",
        "queue_times",
        "errors",
    }
    of_their_own = {
        "generated_texts",
        "tokenizer_id",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "rtfx",
    }
    assert other.keys() - own.keys() <= detailed | of_their_own
    same = (
        "backend",
        "endpoint_type",
        "label",
        "model_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "completed",
    )
    assert [own[name] for name in same] == [other[name] for name in same]


def test_each_word_is_one_token(running):
    with Client(endpoint_of(running)) as client:
        for words in (WORDS, WORDS[::-1]):
            usage = client.complete([" ".join(words)], max_tokens=1)["usage"]
            assert usage["prompt_tokens"] == len(WORDS) + FRAME_TOKENS
