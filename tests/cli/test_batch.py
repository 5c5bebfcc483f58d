"""``pixtral-sky batch`` from its arguments to its files, against a fake endpoint; killed at any moment."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixtral_sky import errors, output
from pixtral_sky.batch import runner
from pixtral_sky.cli import progress
from tests.conftest import ROOT
from tests.support import fake_endpoint as fake
from tests.support.command_line import KEY, Result, Run, run_main
from tests.support.fake_endpoint import Exchange, FakeEndpoint, says
from tests.support.journey import Journey


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``pixtral-sky batch`` in a directory with a picture, with the key; no run may show it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setattr(runner, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(output, "quiet", False)
    Image.new("RGB", (32, 32), "red").save("red.png")

    def run(endpoint: FakeEndpoint | None, *arguments: str, stdin: bytes = b"") -> Result:
        where = ["--endpoint", endpoint.url] if endpoint else []
        return run_main(monkeypatch, capsys, "batch", *where, *arguments, stdin=stdin)

    return run


def manifest(count: int, path: Path = Path("list.jsonl")) -> str:
    """A file of so many items, each with a question of its own about red.png."""
    items = ({"id": f"i{n}", "images": ["red.png"], "prompt": f"item {n}"} for n in range(count))
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return str(path)


def question(exchange: Exchange) -> str:
    return str(exchange.request.json["messages"][-1]["content"][0]["text"])


def echo(exchange: Exchange) -> None:
    says("About ", question(exchange))(exchange)


def lines(path: Path | str) -> list[dict[str, Any]]:
    """Those of a file, which has to end with a whole one."""
    text = Path(path).read_text() if Path(path).exists() else ""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def count_of(path: str) -> int:
    """The whole lines of a file that may be written at this moment."""
    return Path(path).read_bytes().count(b"\n") if Path(path).exists() else 0


def check(
    count: int, failed: Sequence[str] = (), out: str = "out.jsonl", errors: str = "out.errors.jsonl"
) -> None:
    """Every item is there once, in one of the files, with its own answer."""
    answers = lines(out)
    names = Counter(line["id"] for line in [*answers, *lines(errors)])
    assert names == Counter(f"i{number}" for number in range(count))
    assert {line["id"] for line in lines(errors)} == set(failed)
    assert all(line["answer"] == f"About item {line['id'][1:]}" for line in answers)


# One run


def test_a_folder_of_pictures(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (32, 32), color).save(tmp_path / "photos" / f"{color}.png")
    with FakeEndpoint([echo], key=KEY) as endpoint:
        result = run(endpoint, "photos", "-o", "out.jsonl", "-p", "What color?", "--system", "Be short.", "--max-tokens", "9", "--temperature", "0")  # fmt: skip
    assert (result.code, result.out) == (0, "")
    assert re.fullmatch(
        r"3 answers about 3 pictures in 0 s \([0-9.]+/s\): 1,980 tokens in prompts, 36 in answers\.\n",
        result.err,
    )
    answers = {line["id"]: line for line in lines("out.jsonl")}
    assert set(answers) == {"photos/red.png", "photos/green.png", "photos/blue.png"}
    assert answers["photos/red.png"]["answer"] == "About What color?"
    assert answers["photos/red.png"]["usage"] == fake.USAGE
    for request in endpoint.asked:
        assert request.json["messages"][0] == {"role": "system", "content": "Be short."}
        assert (request.json["max_tokens"], request.json["temperature"]) == (9, 0)
        assert (request.json["model"], request.json["stream"]) == ("pixtral", True)


def test_openais_format(run: Run) -> None:
    bodies = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": f"item {n}"}]}]} for n in (0, 1)
    ]
    entries = [
        {"custom_id": f"i{n}", "method": "POST", "url": "/v1/chat/completions", "body": bodies[n]}
        for n in (0, 1)
    ]
    Path("requests.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, "requests.jsonl", "-o", "out.jsonl").code == 0
        found = {line["custom_id"]: line["response"]["body"] for line in lines("out.jsonl")}
        assert found["i1"]["choices"][0]["message"]["content"] == "About item 1"
        again = run(endpoint, "requests.jsonl", "-o", "out.jsonl")
    assert again.err == "Before this: 2 done, 0 failed.\nThere is nothing left to do.\n"
    assert len(endpoint.asked) == 2


def test_standard_input(run: Run) -> None:
    manifest(3)
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, "-", "-o", "out.jsonl", stdin=Path("list.jsonl").read_bytes()).code == 0
    check(3)


def test_some_fail(run: Run) -> None:
    def behave(exchange: Exchange) -> None:
        bad = question(exchange) in ("item 3", "item 7")
        (fake.vllm_error(400, "Too long.") if bad else echo)(exchange)

    with FakeEndpoint([behave]) as endpoint:
        result = run(endpoint, manifest(10), "-o", "out.jsonl")
    assert result.code == 1
    assert result.err.endswith(
        "Error: 2 failed: out.errors.jsonl says why. To ask them again: --retry-errors\n"
    )
    check(10, failed=["i3", "i7"])
    assert lines("out.errors.jsonl")[0]["error"] == {"type": "Refused", "message": "Too long."}
    with FakeEndpoint([echo]) as endpoint:
        # They are not asked again, and have failed still.
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl").code == 1
        assert not endpoint.asked
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl", "--retry-errors").code == 0
    check(10)
    assert len(lines("out.errors.jsonl.1")) == 2


def test_the_only_failure_is_said(run: Run) -> None:
    Path("cut.png").write_bytes(Path("red.png").read_bytes()[:60])
    with FakeEndpoint([echo]) as endpoint:
        result = run(endpoint, "red.png", "cut.png", "-o", "out.jsonl")
    assert result.code == 1
    assert result.err.endswith(
        "\nError: 1 failed: cut.png is cut off. Copy or download it again. When that is mended: "
        "--retry-errors. The reason is in out.errors.jsonl, too.\n"
    )


def test_a_missing_file_has_the_exit_code_of_the_other_commands(run: Run) -> None:
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "red.png", "none.png", "-o", "out.jsonl")
        assert not endpoint.requests
    assert (result.code, result.error) == (1, "none.png: no such file or folder.")


def test_one_bad_file_costs_its_own_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind of input."""
    Path("p/locked").mkdir(parents=True)
    Path("p/good.png").write_bytes(Path("red.png").read_bytes())
    Path("p/cut.png").write_bytes(Path("red.png").read_bytes()[:60])
    Path("p/broken.pdf").write_bytes(b"%PDF-nonsense")
    Path("p/clip.png").write_bytes(b"\0\0\0\x18ftypisom")
    manifest = [
        {"images": ["red.png"]},
        {"images": ["gone.png"]},
        {"images": 1},
        {"images": ["s3://b/a.png"]},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in manifest)
    Path("list.jsonl").write_text(f"{text}nonsense\n")
    scandir = os.scandir

    def deny(path: Any) -> Any:  # root may read all
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with FakeEndpoint([echo]) as endpoint:
        result = run(endpoint, "p", "list.jsonl", "p/good.png", "p/c*.png", "-o", "out.jsonl")
    assert result.code == 1
    assert {line["id"] for line in lines("out.jsonl")} == {"p/good.png", "red.png"}
    said = {line["id"]: line["error"]["message"] for line in lines("out.errors.jsonl")}
    assert said == {
        "p/cut.png": "p/cut.png is cut off. Copy or download it again.",
        "p/clip.png": "p/clip.png is a video. Take pictures from it: "
        "ffmpeg -i FILE.mp4 -vf fps=1/5 FILE-%03d.jpg",
        "p/broken.pdf": "p/broken.pdf is not a PDF that can be read.",
        "p/locked": "p/locked cannot be read: Permission denied.",
        "gone.png": "gone.png: no such file.",
        "list.jsonl#line=3": 'list.jsonl, line 3: "images" has to be a list with at least one path or URL.',
        "list.jsonl#line=4": "list.jsonl, line 4: s3://b/a.png is not read here. Copy it here: "
        "aws s3 cp s3://b/a.png .",
        "list.jsonl#line=5": "list.jsonl, line 5: it is no JSON (Expecting value, column 1).",
        "p/good.png#again=2": "p/good.png is given twice.",
        "p/cut.png#again=2": "p/cut.png is given twice.",
        "p/clip.png#again=2": "p/clip.png is given twice.",
    }


def test_animations_and_documents_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "AGAIN_SECONDS", 0.01)
    more = [Image.new("RGB", (32, 32), color) for color in ("green", "blue")]
    Image.new("RGB", (32, 32)).save("a.gif", save_all=True, append_images=more)
    Image.new("RGB", (32, 32)).save("b.tif", save_all=True, append_images=more)
    url = "data:image/gif;base64," + base64.b64encode(Path("a.gif").read_bytes()).decode()
    content = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": url}}]
    request = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": content}]}}  # fmt: skip
    Path("requests.jsonl").write_text(json.dumps(request))
    said = "2 pictures were the first frame or page of several in a file."
    # One that is asked again is counted once.
    with FakeEndpoint([fake.streams("a", end=False), echo]) as endpoint:
        result = run(endpoint, "red.png", "a.gif", "b.tif", "-o", "out.jsonl", "--json")
        assert said in result.err.splitlines()
        assert json.loads(result.out)["first_of_several"] == 2
        assert (
            json.loads(run(endpoint, "requests.jsonl", "-o", "o2.jsonl", "--json").out)["first_of_several"]
            == 1
        )


def test_the_summary_as_json(run: Run) -> None:
    with FakeEndpoint([says("Red", finish_reason="length")]) as endpoint:
        result = run(
            endpoint, manifest(4), "-o", "out.jsonl", "--json", "--price-per-hour", "3600", "--limit", "3"
        )
    summary = json.loads(result.out)
    assert result.code == 0
    assert "Warning: 3 answers were cut off at --max-tokens." in result.err
    assert summary.pop("seconds") == pytest.approx(summary["cost_usd"], abs=0.2)
    assert summary.pop("images_per_second") * summary.pop("cost_usd") == pytest.approx(3, rel=0.5)
    assert summary.pop("tokens_per_second") > 0
    assert summary == {
        "complete": True, "done": 3, "failed": 0, "images": 3, "first_of_several": 0, "prompt_tokens": 1980, "answer_tokens": 36, "cut_off": 3,
        "asked_again": 0, "done_before": 0, "failed_before": 0, "skipped": {}, "out": "out.jsonl", "errors": None, "csv": None,
    }  # fmt: skip


def test_a_schema_and_a_table(run: Run) -> None:
    schema = {"type": "object", "properties": {"shop": {"type": "string"}, "total": {"type": "number"}}}
    Path("s.json").write_text(json.dumps({**schema, "required": ["total"]}))
    with FakeEndpoint([says('{"total": 7.5, "shop": "A, B"}')]) as endpoint:
        assert run(endpoint, manifest(2), "-o", "out.jsonl", "--schema", "s.json", "--csv").code == 0
    with open("out.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "shop", "total"]
    assert sorted(rows[1:]) == [["i0", "A, B", "7.5"], ["i1", "A, B", "7.5"]]
    with FakeEndpoint([says("A bill")]) as endpoint:
        options = [manifest(3), "-o", "out.jsonl", "--fresh"]
        assert run(endpoint, *options, "--limit", "2").code == 0
    with FakeEndpoint([says('{"total": 7.5}')]) as endpoint:
        result = run(endpoint, *options[:3], "--resume", "--schema", "s.json", "--csv")
    assert "Warning: out.csv: 2 of 3 rows have an id only, as the answer is not of --schema." in result.err
    with FakeEndpoint([says('{"total": "much"}'), says("{}")]) as endpoint:
        result = run(endpoint, manifest(1), "-o", "bad.jsonl", "--schema", "s.json", "--concurrency", "1")
    assert result.code == 1
    assert lines("bad.errors.jsonl")[0]["error"] == {
        "type": "SchemaError",
        "message": "The answer does not fit the schema: $: 'total' is a required property.",
        "answer": "{}",
    }
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list.jsonl"], "Missing option '--out'"),
        (["-o", "out.jsonl"], "Missing argument 'INPUT...'"),
        (["list.jsonl", "-o", "out.jsonl", "--shard", "3/2"], "--shard '3/2' is no share."),
        (["list.jsonl", "-o", "out.jsonl", "--concurrency", "many"], "--concurrency takes auto, or a number"),
        (["list.jsonl", "-o", "out.jsonl", "--concurrency", "257"], "a number from 1 to 256"),
        (["list.jsonl", "-o", "out.jsonl", "--errors", "./out.jsonl"], "cannot go to one file"),
        (["red.png", "-o", "red.png", "--fresh"], "red.png is no name for a file of JSON lines."),
        (["red.png", "-o", "any.json", "--resume"], "any.json is there, and is no file of a batch."),
        (["list.jsonl", "-o", "out.jsonl", "--resume", "--fresh"], "--fresh begins anew. Give one of them."),
        (["list.jsonl", "-o", "out.jsonl", "--csv"], "--csv makes columns of the properties in --schema"),
        (["list.jsonl", "-o", "out.jsonl", "--csv", "--schema", "none.json"], "none.json"),
        (["list.jsonl", "-o", "out.jsonl", "--csv", "--schema", "any.json"], "no properties"),
        (["list.jsonl", "-o", "out.jsonl", "--limit", "0"], "limit"),
        (["list.jsonl", "-o", "out.jsonl", "--per-request", "0"], "per-request"),
    ],
)
def test_exit_code_2(arguments: list[str], reason: str, run: Run) -> None:
    Path("any.json").write_text("{}")
    manifest(2)
    with FakeEndpoint() as endpoint:
        result = run(endpoint, *arguments)
        assert not endpoint.requests
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert not Path("out.jsonl").exists()


def test_a_wrong_key_ends_it_with_one_line(run: Run) -> None:
    with FakeEndpoint(key="another") as endpoint:
        result = run(endpoint, manifest(9), "-o", "out.jsonl")
    assert result.code == 1
    assert "does not take this key (401)." in result.error


def test_an_endpoint_that_goes_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE_SECONDS", 0.5)
    gone = threading.Event()

    def behave(exchange: Exchange) -> None:
        if count_of("out.jsonl") >= 5:
            gone.set()
        (fake.drops() if gone.is_set() else echo)(exchange)

    with FakeEndpoint([behave]) as endpoint:
        result = run(endpoint, manifest(50), "-o", "out.jsonl", "--concurrency", "2")
    assert result.code == 1
    done = len(lines("out.jsonl"))
    assert re.search(
        rf"\nError: http://\S+ hangs up without an answer to a request of 0\.0 MiB\. .*\. {done} done in this "
        r"run\. Is it|.*The same command goes on\.\n$",
        result.err,
    )
    assert f" {done} done in this run." in result.err
    assert result.err.endswith(" The same command goes on.\n")
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl").code == 0
    check(50)


def is_small(exchange: Exchange) -> bool:
    """Whether it is the question that tells whether the server answers any."""
    return bool(exchange.request.json["max_tokens"] == 1)


def died(exchange: Exchange) -> None:
    fake.vllm_error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")(
        exchange
    )


@pytest.mark.parametrize("end", [fake.drops(), fake.vllm_error(500, "EngineCore encountered an issue.")])
def test_a_server_that_goes_down_takes_no_item_with_it(
    end: fake.Behaviour, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while a dying engine answers 500, and breaks off what it was streaming, in each way that there is."""
    monkeypatch.setattr(runner, "PATIENCE_SECONDS", 3)
    monkeypatch.setattr(runner, "FAILING_SECONDS", 0.1)
    gone = threading.Event()
    error = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
    deaths = [died, fake.streams("Ab", end=False), fake.streams(error), fake.streams("Ab", error), died] * 3

    def behave(exchange: Exchange) -> None:
        if count_of("out.jsonl") >= 8:
            gone.set()
        (echo if not gone.is_set() else deaths.pop() if deaths else end)(exchange)

    with FakeEndpoint([behave]) as endpoint:
        result = run(endpoint, manifest(50), "-o", "out.jsonl", "--concurrency", "8")
    assert result.code == 1
    assert result.err.endswith(" The same command goes on.\n")
    assert lines("out.errors.jsonl") == []
    done = len(lines("out.jsonl"))
    assert 8 <= done <= 16
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl").code == 0
        assert len(endpoint.asked) == 50 - done
    check(50)


def test_an_item_at_which_the_server_fails_is_written_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "AGAIN_SECONDS", 0.05)

    def behave(exchange: Exchange) -> None:
        (says("Hi") if is_small(exchange) else died if question(exchange) == "item 3" else echo)(exchange)

    with FakeEndpoint([behave]) as endpoint:
        result = run(endpoint, manifest(10), "-o", "out.jsonl")
        small = [request.json for request in endpoint.asked if request.json["max_tokens"] == 1]
    assert result.code == 1
    check(10, failed=["i3"])
    assert lines("out.errors.jsonl")[0]["error"]["type"] == "Failed"
    assert len(small) == runner.TRIES[errors.Failed]
    assert small[0]["messages"][0]["content"][1]["type"] == "image_url", "as the item has a picture"


def test_an_endpoint_that_refuses_half_of_all_costs_twice_the_time_at_most(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the number at once is left to it: tests/batch/test_concurrency.py."""
    pause, rude = runner.Batch.pause, random.Random(1)
    # For the answers of 0.04 s, all is as short as it is for those of 1 s.
    monkeypatch.setattr("pixtral_sky.batch.concurrency.PER_SECOND", 25 * 150)
    monkeypatch.setattr(runner.Batch, "pause", lambda self, seconds: pause(self, seconds / 25))

    def behave(exchange: Exchange) -> None:
        exchange.wait(0.04)
        echo(exchange)

    def refuses(exchange: Exchange) -> None:
        refused = fake.status(rude.choice((429, 503)))
        (refused if rude.random() < 0.5 else behave)(exchange)

    seconds = []
    for number, endpoint_does in enumerate((behave, refuses)):
        with FakeEndpoint([endpoint_does]) as endpoint:
            out = f"out{number}.jsonl"
            result = run(endpoint, manifest(300), "-o", out, "--concurrency", "8", "--json")
            assert result.code == 0
            seconds.append(json.loads(result.out)["seconds"])
            check(300, out=out)
    assert seconds[1] < 2 * seconds[0]


# Going on, or not


def test_other_options_are_noticed(run: Run) -> None:
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, manifest(4), "-o", "out.jsonl", "--limit", "2").code == 0
        for option, value, was in (
            ("--prompt", "Why?", "'Describe this image in detail please.' and is 'Why?'"),
            ("--system", "Be short.", "none and is 'Be short.'"),
            ("--max-tokens", "9", "512 and is 9"),
            ("--temperature", "0", "0.7 and is 0"),
            ("--per-request", "2", "1 and is 2"),
        ):
            result = run(endpoint, "list.jsonl", "-o", "out.jsonl", option, value)
            assert result.code == 2
            assert f"out.jsonl was made in another way: {option} was {was}" in result.error
            assert result.error.endswith(
                "Go on all the same: --resume. Begin anew, with the old file kept aside: --fresh"
            )
        Path("s.json").write_text('{"type": "object"}')
        assert (
            "--schema was none and is given."
            in run(endpoint, "list.jsonl", "-o", "out.jsonl", "--schema", "s.json").error
        )
        assert len(endpoint.asked) == 2
        # What changes neither an answer nor an id may change.
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl", "--concurrency", "2", "--limit", "1").code == 0
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl", "--max-tokens", "9", "--resume").code == 0
        check(4)
        assert endpoint.asked[-1].json["max_tokens"] == 9
        fresh = run(endpoint, "list.jsonl", "-o", "out.jsonl", "--fresh")
    assert fresh.code == 0
    assert "out.jsonl of before is out.jsonl.1 now.\n" in fresh.err
    check(4)
    check(4, out="out.jsonl.1")
    with FakeEndpoint([echo], models=[{"id": "another"}]) as endpoint:
        assert (
            "the model was 'pixtral' and is 'another'" in run(endpoint, "list.jsonl", "-o", "out.jsonl").error
        )


def test_other_inputs_are_noticed(run: Run, tmp_path: Path) -> None:
    """An id is the same picture in all lines of a file."""
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "1.png").write_bytes(Path("red.png").read_bytes())
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, "a/1.png", "-o", "out.jsonl").code == 0
        for others in (["b/1.png"], ["a"], ["a/*.png"], ["a/1.png", "b/1.png"]):
            result = run(endpoint, *others, "-o", "out.jsonl")
            assert result.code == 2
            assert f"the inputs were {tmp_path}/a/1.png and are {tmp_path}/" in result.error
        assert run(endpoint, f"file://{tmp_path}/b/../a/1.png", "-o", "out.jsonl").code == 0  # the same
        assert len(endpoint.asked) == 1
        assert run(endpoint, "b", "-o", "out.jsonl", "--resume").code == 0
        assert [line["id"] for line in lines("out.jsonl")] == ["1.png", "b/1.png"]


def test_shares_are_together_all(run: Run) -> None:
    """Each by a process of its own, all at once, against one endpoint."""
    manifest(60)
    with FakeEndpoint([echo]) as endpoint:
        parts = [
            start(endpoint, "list.jsonl", "-o", f"part{index}.jsonl", "--shard", f"{index}/3")
            for index in (1, 2, 3)
        ]
        assert [part.wait(30) for part in parts] == [0, 0, 0]
        for part in parts:
            part.communicate()
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl").code == 0
    check(60)
    found = [line["id"] for index in (1, 2, 3) for line in lines(f"part{index}.jsonl")]
    assert sorted(found) == sorted(line["id"] for line in lines("out.jsonl"))


# Killed, interrupted, full


def start(endpoint: FakeEndpoint, *arguments: str, file_size: int = 0) -> subprocess.Popen[str]:
    """``pixtral-sky batch`` in a process of its own. ``file_size``: no file can become larger (bytes)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIXTRAL_API_KEY": KEY}

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.Popen(
        [sys.executable, "-m", "pixtral_sky", "batch", "--endpoint", endpoint.url, *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=small if file_size else None,
    )  # fmt: skip


def until(what: Callable[[], Any], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("count", "kills"),
    [
        pytest.param(250, 4),
        pytest.param(10_000, 20, marks=[pytest.mark.serve, pytest.mark.timeout(600)]),
    ],
)
def test_killed_at_any_moment_and_once_by_a_full_disk(run: Run, count: int, kills: int) -> None:
    """Every item is in one of the files, once; and no line is torn."""
    chance = random.Random()
    bad = [f"i{number}" for number in range(5, count, 50)]

    def behave(exchange: Exchange) -> None:
        text = question(exchange)
        refused = f"i{text.removeprefix('item ')}" in bad
        (fake.vllm_error(400, "Too long.") if refused else echo)(exchange)

    arguments = (manifest(count), "-o", "out.jsonl")
    with FakeEndpoint([behave]) as endpoint:
        for number in range(kills):
            if number == kills // 2:
                # A little more than there is: it is full soon.
                size = Path("out.jsonl").stat().st_size + 40 * count // kills
                with start(endpoint, *arguments, file_size=size) as process:
                    assert process.stderr is not None
                    assert process.wait(60) == 1
                    error = process.stderr.read().splitlines()[-1]
                assert error.startswith("Error: out.jsonl cannot be written: File too large. ")
                assert error.endswith("When that is mended, the same command goes on.")
                assert lines("out.jsonl")
            with start(endpoint, *arguments) as process:
                wanted = count_of("out.jsonl") + chance.randrange(count // (kills + 2))
                until(lambda wanted=wanted: count_of("out.jsonl") >= wanted)  # type: ignore[misc]
                time.sleep(chance.uniform(0, 0.08))
                process.send_signal(signal.SIGKILL)
        before = count_of("out.jsonl") + count_of("out.errors.jsonl")
        assert 0 < before < count, "it was not killed in the middle"
        asked = len(endpoint.asked)
        result = run(endpoint, *arguments)
        assert len(endpoint.asked) - asked == count - before, "exactly the rest"
    assert result.code == 1
    check(count, failed=bad)


@pytest.mark.serve
@pytest.mark.timeout(300)
def test_memory_stays_flat(run: Run) -> None:
    """Photos of 12 megapixels, and many items: the process that prepares and sends them stays small."""
    photo = Image.effect_noise((400, 300), 64).resize((4000, 3000), Image.Resampling.BICUBIC).convert("RGB")
    photo.save("photo.jpg", quality=90)
    names = ["photo.jpg" if number % 20 == 0 else "red.png" for number in range(4000)]
    items = [
        {"id": f"i{number}", "images": [name], "prompt": f"item {number}"}
        for number, name in enumerate(names)
    ]
    Path("list.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    with FakeEndpoint([echo]) as endpoint, start(endpoint, "list.jsonl", "-o", "out.jsonl") as process:
        most = 0
        while process.poll() is None:
            found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            most = max(most, int(found[1]) if found else 0)  # none of a process that has just ended
            time.sleep(0.05)
    assert process.returncode == 0
    check(len(items))
    print(f"{most / 1024:.0f} MiB at the most")
    assert most < 300 * 1024


def test_a_second_run_on_the_same_file_is_refused(run: Run) -> None:
    def slow(exchange: Exchange) -> None:
        exchange.wait(0.2)
        echo(exchange)

    with FakeEndpoint([slow]) as endpoint:
        arguments = (manifest(12), "-o", "out.jsonl", "--concurrency", "4")
        with start(endpoint, *arguments) as first:
            until(lambda: count_of("out.jsonl"))
            second = run(endpoint, *arguments)
            assert first.wait(20) == 0
    assert second.code == 1
    assert second.error == "Another run writes out.jsonl. Wait for its end, or write elsewhere: -o FILE"
    check(12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(run: Run, number: signal.Signals) -> None:
    def slow(exchange: Exchange) -> None:
        exchange.wait(0.3)
        echo(exchange)

    with FakeEndpoint([slow]) as endpoint:
        arguments = (manifest(60), "-o", "out.jsonl", "--concurrency", "4", "--json")
        with start(endpoint, *arguments) as process:
            until(lambda: count_of("out.jsonl"))
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        assert process.returncode == 128 + number
        done = len(lines("out.jsonl"))
        assert err.splitlines()[-1] == f"Stopped: {done} done in this run. The same command goes on."
        assert json.loads(out)["complete"] is False
        assert len(endpoint.asked) == done, "what was on its way is done"
    with FakeEndpoint([echo]) as endpoint:
        assert run(endpoint, *arguments).code == 0
        assert len(endpoint.asked) == 60 - done
    check(60)


def test_the_journey(run: Run) -> None:
    """As docs/journeys/batch.md has it: four have an answer, and four are on their way, when it is interrupted."""
    Path("photos").mkdir()
    for number in range(1, 13):
        Image.new("RGB", (64, 48), (number * 20, 0, 0)).save(f"photos/{number}.png")
    page, go_on, begun = Journey("batch"), threading.Event(), itertools.count()

    def slow(exchange: Exchange) -> None:
        if next(begun) >= 4:
            go_on.wait(20)
        says("A dark red rectangle.")(exchange)

    with FakeEndpoint([slow]) as endpoint:
        with start(endpoint, *page.next()[1:]) as process:
            until(lambda: count_of("out.jsonl") == 4 and len(endpoint.asked) == 8)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # until it has said what it waits for
            go_on.set()
            out, err = process.communicate(timeout=20)
        assert process.returncode == 130
        page.check(out + err)
        page.check(f"{count_of('out.jsonl')} out.jsonl")
        for _ in range(2):
            again = run(endpoint, *page.next()[1:])
            assert again.code == 0
            page.check(again.out + again.err)
        assert len(endpoint.asked) == 12, "nothing was asked twice"
    assert not page.left


def test_the_second_ctrl_c_ends_it_at_once(run: Run) -> None:
    with FakeEndpoint([fake.stalls(30)]) as endpoint:
        with start(endpoint, manifest(20), "-o", "out.jsonl") as process:
            until(lambda: len(endpoint.asked) >= 8)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            begun = time.monotonic()
            out, err = process.communicate(timeout=20)
        assert time.monotonic() - begun < 3
    assert (process.returncode, out) == (130, "")
    assert err == (
        "It waits for 8 requests, 20 s at most. To end at once: Ctrl-C again.\n"
        "Stopped: 0 done in this run. The same command goes on.\n"
    )
    assert lines("out.jsonl") == lines("out.errors.jsonl") == []


def removed(out: Path) -> None:
    out.unlink()


def replaced(out: Path) -> None:
    Path("other").write_text("")
    Path("other").rename(out)


def cut(out: Path) -> None:
    os.truncate(out, out.read_bytes().index(b"\n") + 1)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (removed, r"was removed, and \d+ lines with it\."),
        (replaced, r"was replaced: lost is what the new file lacks of \d+ lines\."),
        (cut, r"was cut: lost are \d+ of \d+ lines\."),
    ],
)
@pytest.mark.parametrize("at_the_end", [False, True])
def test_its_file_is_taken_away_while_it_runs(
    does: Callable[[Path], None], said: str, at_the_end: bool, run: Run
) -> None:
    """Also when all is answered at that moment: never an exit code 0."""
    count, asked = 40, [0]

    def behave(exchange: Exchange) -> None:
        asked[0] += 1
        if asked[0] == (count if at_the_end else 20):
            does(Path("out.jsonl"))
        exchange.wait(0.01)
        echo(exchange)

    with FakeEndpoint([behave]) as endpoint:
        result = run(endpoint, manifest(count), "-o", "out.jsonl", "--concurrency", "2", "--json")
        assert result.code == 1
        assert json.loads(result.out)["complete"] is False
        last = result.err.splitlines()[-1]
        assert re.fullmatch(
            rf"Error: out\.jsonl {said} \d+ done in this run\. The same command asks again what is lost\.",
            last,
        )
        if not at_the_end:
            assert len(endpoint.asked) < 36, "it ends at once"
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl", "--resume").code == 0
    check(count)


def test_its_files_are_the_users_alone(run: Run) -> None:
    def behave(exchange: Exchange) -> None:
        (fake.vllm_error(400, "No.") if question(exchange) == "item 1" else echo)(exchange)

    with FakeEndpoint([behave]) as endpoint:
        assert run(endpoint, manifest(2), "-o", "out.jsonl").code == 1
        with Path("out.jsonl").open("a") as file:
            file.write('{"id": "torn')
        assert run(endpoint, "list.jsonl", "-o", "out.jsonl").code == 1
    names = ("out.jsonl", "out.errors.jsonl", "out.jsonl.run.json", "out.jsonl.torn")
    assert {name: Path(name).stat().st_mode & 0o777 for name in names} == dict.fromkeys(names, 0o600)


@pytest.mark.parametrize(
    ("given", "stdin", "reason"),
    [
        (["empty"], b"", "There is nothing to ask about in empty. Give pictures, folders with some"),
        (
            ["notes"],
            b"",
            "about in notes. Skipped, being no pictures: 3 files (2 .txt, 1 without an extension).",
        ),
        (["empty", "blank.jsonl"], b"", "There is nothing to ask about in empty, blank.jsonl. Give"),
        (["-"], b"", "There is nothing to ask about in standard input. Give"),
        (["-"], b"\xff\xd8\xff\xe0\0\x10JFIF", "JSON lines there. About one picture: pixtral-sky ask -"),
        (["-"], b"\n\n", "There is nothing to ask about in standard input. Give"),
    ],
)
def test_nothing_is_given(given: list[str], stdin: bytes, reason: str, run: Run) -> None:
    for folder in ("empty", "notes"):
        Path(folder).mkdir()
    for name in ("a.txt", "B.TXT", "README", ".hidden"):
        Path("notes", name).touch()
    Path("blank.jsonl").write_text("\n")
    with FakeEndpoint([echo]) as endpoint:
        result = run(endpoint, *given, "-o", "out.jsonl", stdin=stdin)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err.splitlines()[-1]


def test_what_is_skipped_is_said(run: Run) -> None:
    Path("photos/inner").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "inner/c.mov", "inner/d"):
        Path("photos", name).touch()
    Image.new("RGB", (32, 32), "red").save("photos/inner/red.png")
    said = "Skipped, being no pictures: 4 files (2 .txt, 1 .mov, 1 without an extension)."
    with FakeEndpoint([echo]) as endpoint:
        result = run(endpoint, "photos", "-o", "out.jsonl", "--json")
        assert said in result.err
        assert json.loads(result.out)["skipped"] == {".txt": 2, ".mov": 1, "without an extension": 1}
        assert said in run(endpoint, "photos/*", "-o", "glob.jsonl").err
        assert "1 answer about 1 picture in " in result.err


# What is shown meanwhile


def test_a_line_a_minute(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.3)
    monkeypatch.setattr(progress, "SAMPLE_SECONDS", 0.05)

    def slow(exchange: Exchange) -> None:
        exchange.wait(0.05)
        echo(exchange)

    with FakeEndpoint([slow]) as endpoint:
        result = run(
            endpoint, manifest(40), "-o", "out.jsonl", "--concurrency", "2", "--price-per-hour", "36"
        )
    said = result.err.splitlines()
    assert 2 <= len(said) <= 8
    assert re.fullmatch(
        r"\d+ of 40 done, [12] in flight, \d+\.\d pictures/s, [\d,]+ tokens/s, \d+ s left, 0\.\d\d USD",
        said[1],
    )


def test_a_bar_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def slow(exchange: Exchange) -> None:
        exchange.wait(0.05)
        echo(exchange)

    with FakeEndpoint([slow]) as endpoint:
        result = run(endpoint, manifest(40), "-o", "out.jsonl", "--concurrency", "4")
    assert result.code == 0
    assert "of 40 done" in result.err
    check(40)


def test_quiet(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeEndpoint([echo]) as endpoint:
        arguments = ("--quiet", "batch", manifest(3), "-o", "out.jsonl", "--endpoint", endpoint.url)
        result = run_main(monkeypatch, capsys, *arguments)
    assert (result.code, result.out, result.err) == (0, "", "")
