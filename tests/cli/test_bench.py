"""`pixtral-sky bench`: what it says, its files, and what it refuses."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import yaml

from pixtral_sky.bench import load
from pixtral_sky.bench.figures import Sample, Step
from pixtral_sky.bench.load import Bench
from pixtral_sky.bench.questions import Questions
from pixtral_sky.client.client import Client
from pixtral_sky.deploy import machines, store
from pixtral_sky.errors import SkyError, UsageError
from pixtral_sky.planning import measured
from tests.support import golden
from tests.support.command_line import KEY, Run, imports, run_main
from tests.support.ctrl_c import ctrl_c
from tests.support.deployments import running, service
from tests.support.fake_endpoint import FakeEndpoint, stalls, status, timed

SMALL = ("--images", 1, "--size", "32x32", "--prompt-tokens", 8, "--answer-tokens", 5)
SAID = r"""To URL: (?P<steps>.*) each, after a round that is not counted.
A request: 1 picture of 32x32, 14 tokens in all, and an answer of 5. It takes GPU time from others who ask there.
  the first request +\d\.\d s
"""
TINY = [{"id": "pixtral", "max_model_len": 32768, "root": "/cache/pixtral-sky/tiny-pixtral"}]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setattr(load, "WATCH_SECONDS", 0.005)
    monkeypatch.setattr(load, "FAILED_SECONDS", 0.005)
    monkeypatch.chdir(tmp_path)
    return partial(run_main, monkeypatch, capsys, "bench")


def behind(monkeypatch, **fields):
    """SkyPilot knows these machines."""
    monkeypatch.setattr(machines, "behind", lambda name: machines.Machines(**fields))


def cells(line):
    return re.split(r" {2,}", line.strip())


def test_the_table(run):
    with FakeEndpoint([timed(0.04, 0.01)]) as fake:
        result = run(*SMALL, "-c", "1,4", "--requests", 12, "--endpoint", fake.url, "--price-per-hour", 3.6)
    head, one, four = map(cells, result.out.splitlines())
    assert head == [
        "AT ONCE",
        "REQUESTS/S",
        "PICTURES/S",
        "TOKENS/S",
        "FIRST TOKEN",
        "PER TOKEN",
        "WHOLE",
        "$/1,000 PICTURES",
    ]
    assert (one[0], four[0]) == ("1", "4")
    assert 1.5 * float(one[1]) < float(four[1])
    assert float(one[1]) == float(one[2])
    assert float(one[-1]) == pytest.approx(1 / float(one[2]), rel=0.2), "a tenth of a cent a second"
    middle, most, slowest = map(float, one[4].split("/"))
    assert 0.04 <= middle <= most <= slowest
    assert middle < 0.1
    assert result.code == 0
    found = re.match(SAID.replace("URL", re.escape(fake.url)), result.err)
    assert found, result.err
    assert found["steps"] == "1, 4 requests at once, 12 requests"
    assert "  4 at once: 12 answers in 0." in result.err
    assert "No knee was found: throughput still gains at the most that was measured.\n" in result.err
    assert "Warning: Few answers at 4 at once: " in result.err


def test_until_the_knee(run, monkeypatch):
    """An endpoint that answers two at once, 20 ms each."""

    def measure(self, at_once, length):
        rate = min(at_once, 2) * 50
        whole = at_once / rate
        return Step(at_once, [Sample(whole / 5, whole, 14, 5)] * 5 * rate, 5.0, images=1)

    monkeypatch.setattr(Bench, "measure", measure)
    with FakeEndpoint([timed()]) as fake:
        given = ("--endpoint", fake.url, "--slo", "ttft=0.005", "--price-per-hour", 2)
        result = run(*SMALL, *given, "--plot", "knee.svg", "-o", "knee.json")
    assert result.code == 0
    golden.check("bench", re.sub(r"\d+\.\d s$", "0.0 s", result.out + result.err, flags=re.M), url=fake.url)
    assert json.loads(Path("knee.json").read_text())["knee"] == 2
    assert "2 at once, the knee" in Path("knee.svg").read_text()


def test_the_file_is_one_that_plan_takes(run):
    with FakeEndpoint([timed(0.01)]) as fake:
        given = ("-c", "1,2", "--requests", 10, "--gpus", "l4:2", "--precision", "FP8", "--slo", "e2e=9")
        result = run(*SMALL, *given, "--endpoint", fake.url, "-o", "l4.json", "--json")
    assert result.code == 0
    found = json.loads(Path("l4.json").read_text())
    assert found == json.loads(result.out)
    taken = measured.measurement(json.dumps(found), "l4.json", images=1)
    assert (taken.gpus, taken.precision, taken.rate, taken.answer) == (
        "L4:2",
        "fp8",
        found["request_throughput"],
        5,
    )
    wanted = {
        "images": 1,
        "size": "32x32",
        "prompt_tokens": 8,
        "answer_tokens": 5,
        "slo": {"e2e": 9},
        "max_concurrency": 2,
    }
    assert found.items() >= wanted.items()
    assert (
        found["request_goodput"]
        == found["request_throughput"]
        == max(each["request_throughput"] for each in found["steps"])
    )
    assert [each["max_concurrency"] for each in found["steps"]] == [1, 2]
    assert (
        found["completed"],
        found["failed"],
        found["total_input_tokens"],
        found["total_output_tokens"],
    ) == (10, 0, 1000, 50)
    assert found["median_e2el_ms"] == found["p50_e2el_ms"] >= found["p50_ttft_ms"] >= 10
    assert found["duration"] == pytest.approx(10 / found["request_throughput"])


@pytest.mark.parametrize("by", ["the model's card", "what is remembered"])
def test_a_rehearsal_is_marked_and_no_measurement_of_gpus(run, by, tmp_path):
    with FakeEndpoint(
        [timed()], models=TINY if by == "the model's card" else [{"id": "pixtral"}], key=KEY
    ) as fake:
        if by == "what is remembered":
            store.remember(running(url=fake.url))
        given = ("--endpoint", fake.url, "--api-key", KEY) if by == "the model's card" else ()
        result = run(*SMALL, *given, "-c", 1, "--requests", 5, "-o", "file.json", "--gpus", "L4:2")
        refused = run(*SMALL, *given, "-c", 1, "--requests", 5, "--write", "my.yaml", "--gpus", "L4:2")
    assert result.code == 0
    assert (
        "Warning: These are figures of a rehearsal: a tiny model with random weights, on a CPU. "
        in result.err
    )
    with pytest.raises(
        UsageError, match=r"^file\.json was measured on a rehearsal: a tiny model with random"
    ):
        measured.measurement(Path("file.json").read_text(), "file.json", images=1)
    assert refused.error == "A rehearsal says nothing of what a replica carries. Without --write my.yaml"
    assert (refused.code, Path("my.yaml").exists()) == (2, False)


def test_failures_are_said_loudly(run):
    script = [timed()] * 3 + [status(503), status(429), timed()]
    with FakeEndpoint(script) as fake:
        result = run(*SMALL, "-c", 1, "--requests", 5, "--endpoint", fake.url)
    assert result.code == 1
    assert cells(result.out.splitlines()[0])[-1] == "FAILED"
    assert cells(result.out.splitlines()[1])[-1] == "2"
    assert f"Warning: With 1 at once, 2 requests FAILED (Busy): {fake.url} is busy (503).\n" in result.err
    assert result.err.endswith("Error: 2 of 5 requests failed.\n")


def test_an_endpoint_that_takes_no_such_request(run):
    error = {"error": {"message": "At most 4 image(s) may be provided in one prompt.", "code": 400}}
    with FakeEndpoint([status(400, error)]) as fake:
        result = run(*SMALL, "-c", 1, "--endpoint", fake.url)
        assert len(fake.asked) == 1
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("Error: At most 4 image(s) may be provided in one prompt.\n")


def test_ctrl_c_shows_what_was_measured(run):
    script = [timed(0.002)] * 22 + [stalls(20)]
    with FakeEndpoint(script) as fake, ctrl_c(lambda: len(fake.asked) > 22):
        result = run(*SMALL, "-c", "1,2,4", "--requests", 10, "--endpoint", fake.url, "-o", "part.json")
    assert result.code == 130
    rows = [cells(line) for line in result.out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("1", rows[1][-1]), ("2", "interrupted")]
    found = json.loads(Path("part.json").read_text())
    assert (found["max_concurrency"], found["completed"], found["steps"][1]["stopped"]) == (
        1,
        10,
        "interrupted",
    )


def test_answers_that_are_shorter_than_they_should_be(run):
    def short(exchange):
        exchange.request.json["max_tokens"] = 2
        timed()(type(exchange)(exchange._handler, Shorter(exchange.request), exchange._released))

    with FakeEndpoint([short]) as fake:
        result = run(*SMALL, "-c", 1, "--requests", 5, "--endpoint", fake.url)
    assert (
        "Warning: With 1 at once, answers had 2 tokens, not 5: the endpoint ends them itself.\n" in result.err
    )


class Shorter:
    """A request that asks for two tokens."""

    def __init__(self, request):
        self.json = {**request.json, "max_tokens": 2}


def test_a_service_file(run, monkeypatch):
    behind(monkeypatch, kind="service", gpus="L4:2", precision="fp8", replicas=2, hourly=2.8)
    with FakeEndpoint([timed(0.01)]) as fake:
        result = run(
            *SMALL, "-c", 2, "--requests", 10, "--endpoint", fake.url, "--write", "my.yaml", "-o", "two.json"
        )
    assert result.code == 0, result.err
    text = Path("my.yaml").read_text()
    made, found = yaml.safe_load(text), json.loads(Path("two.json").read_text())
    target = made["service"]["replica_policy"]["target_qps_per_replica"]
    assert target == pytest.approx(found["request_throughput"] / 2, rel=0.01)
    assert target <= found["request_throughput"] / 2
    assert measured.measurement(json.dumps(found), "two.json", 1).rate == found["request_throughput"] / 2
    assert f"target_qps_per_replica: {target} # of L4:2, measured: what 2 at once bring\n" in text
    assert made["resources"]["accelerators"] == ["L4:2"]
    assert (made["envs"]["PRECISION"], made["envs"]["MAX_IMAGES"]) == ("fp8", 4)
    assert "# Written by: pixtral-sky bench --images 1 " in text
    assert (
        "Warning: SkyServe's autoscaler sees these requests, and may start replicas, which cost money.\n"
        in result.err
    )
    assert "Next:  pixtral-sky serve up --file my.yaml\n" in result.err


def test_without_gpus_no_service_file(run):
    with FakeEndpoint([timed()]) as fake:
        result = run(*SMALL, "--endpoint", fake.url, "--write", "my.yaml")
        assert fake.asked == []
    assert (
        result.error
        == "What a replica carries holds for its GPUs, and those are not known. For example: --gpus L4:2"
    )


def test_the_price_of_a_cluster(run, monkeypatch):
    behind(monkeypatch, kind="cluster", gpus="L4:2", precision="bf16", hourly=1.4)
    with FakeEndpoint([timed(0.01)]) as fake:
        result = run(*SMALL, "-c", 1, "--requests", 5, "--json", "--endpoint", fake.url)
    found = json.loads(result.out)
    assert (found["gpus"], found["precision"], found["usd_per_hour"]) == ("L4:2", "bf16", 1.4)
    assert found["usd_per_1000_images"] == pytest.approx(1400 / 3600 / found["image_throughput"])


def test_where_skypilot_cannot_be_asked(run, fake, monkeypatch):
    fake._steps = [timed()]
    service(url=fake.url)

    def refuse(name):
        raise SkyError("SkyPilot is away.")

    monkeypatch.setattr(machines.services, "record", refuse)
    result = run(*SMALL, "-c", 1, "--requests", 5)
    assert result.code == 0
    assert result.err.startswith("Warning: Its machines and their price are not known: SkyPilot is away.\n")


@pytest.mark.parametrize(("given", "says"), [
    (["--size", "big"], "'big' is no size of a picture, in pixels. For example: --size 1920x1080"),
    (["--seconds", 0], "--seconds is a number above 0, not 0. For example: --seconds 30"),
    (["--seconds", "nan"], "--seconds is a number above 0, not nan. For example: --seconds 30"),
    (["--seconds", 5, "--requests", 5], "A step ends after --seconds, or after --requests. Give one of the two."),
    (["--requests", 5, "-c", 6], "--concurrency takes numbers from 1 to 5, as --requests 5 are all of a step, or auto; not '6'. For example: --concurrency 1,4,16"),
    (["--slo", "fast"], "--slo takes seconds above 0 for ttft, tpot and e2e, not 'fast'. For example: --slo ttft=2,tpot=0.1"),
    (["--gpus", "L4:2,L4:4"], "--gpus names one machine, not L4:2,L4:4. For example: --gpus L4:2"),
    (["--gpus", "L4:3"], "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
    (["--precision", "both"], "--precision is bf16 or fp8 here, not 'both'."),
    (["--price-per-hour", "nan"], "--price-per-hour is a number of dollars, not nan."),
    (["--plot", "x.gif"], "x.gif is no name of a picture that can be drawn. For example: --plot x.png"),
    (["-o", "no/x.json"], "There is no directory no. Run: mkdir -p no"),
    (["-o", "."], ". is a directory. Give --out the name of a file."),
    (["--write", "there.yaml"], "there.yaml is there already. Give --write another name."),
    ([], "No deployment named 'pixtral' is remembered here. Start one: pixtral-sky launch, or pixtral-sky rehearse --keep. Or PIXTRAL_ENDPOINT=URL"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_sent(run, monkeypatch, given, says):
    monkeypatch.setattr(Client, "models", lambda self: pytest.fail("it was asked"))
    monkeypatch.setattr(Questions, "__init__", lambda *_: pytest.fail("pictures were drawn"))
    Path("there.yaml").touch()
    result = run(*given)
    assert (result.code, result.error) == (2, says)


def test_the_help_is_quick():
    out, modules = imports("bench", "--help")
    assert "auto: until the knee" in out
    assert modules.isdisjoint(
        {"sky", "PIL", "httpx", "rich", "yaml", "matplotlib", "numpy", "pydantic", "httpcore"}
    )
