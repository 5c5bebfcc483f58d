"""On the real vLLM, through the gateway, started by the script of pixtral.yaml as it stands."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from PIL import Image

from pixtral_sky.cli import app
from pixtral_sky.cli.rehearse import QUESTION
from pixtral_sky.client.client import Client
from pixtral_sky.client.messages import messages
from pixtral_sky.client.schema import Schema
from pixtral_sky.deploy.resolve import endpoint_of
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.doctor import answers
from pixtral_sky.errors import RehearsalError
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.prepare import prepare
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS, MODEL, image_tokens
from pixtral_sky.rehearsal import process as rehearsal
from tests.conftest import ROOT
from tests.real.engine.asked import drawn, family, request
from tests.server.test_gateway import TRICKS
from tests.support.journey import Journey

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

ASCII_ART = "Turn this logo into ASCII art."
WORDS = 660 - 650  # of the prompt that is published with its 660 tokens: all but the 400x400 picture


@pytest.fixture
def client(running) -> Iterator[Client]:
    with Client(endpoint_of(running), budget=0) as client:
        yield client


def test_a_warm_engine_is_ready_in_45_seconds(ready):
    print(f"ready in {ready[1]:.1f} s")
    assert ready[1] < 45


def test_the_published_example_is_660_tokens(client):
    picture = prepare(drawn(400, 400), "logo.png")
    response = client.complete(messages([ASCII_ART, picture]), max_tokens=1)
    assert response["usage"]["prompt_tokens"] == 660


@pytest.mark.parametrize(("width", "height"), [
    (1, 1), (16, 16), (17, 16), (100, 30), (640, 480), (1023, 1023), (1024, 1024), (1025, 1024), (1024, 1041),
    (1920, 1080), (2480, 3508), (3000, 4000), (1366, 768), (1, 3000), (3000, 1), (333, 777),
])  # fmt: skip
def test_a_picture_costs_what_the_arithmetic_says(client, width, height):
    original = drawn(width, height)
    ours = prepare(original, "picture.png")
    untouched = Picture("picture.png", width, height, "image/png", original)
    expected = WORDS + image_tokens(width, height)
    for picture in (ours, untouched):  # what we send, and what the server would have made of the original
        response = client.complete(messages([ASCII_ART, picture]), max_tokens=1)
        assert response["usage"]["prompt_tokens"] == expected


def test_four_full_pictures_fit(client):
    picture = prepare(drawn(1024, 1024), "full.png")
    response = client.complete(messages(["Compare.", *[picture] * 4]), max_tokens=4)
    assert response["usage"]["prompt_tokens"] > 4 * MAX_IMAGE_TOKENS


def test_words_and_pictures_arrive_in_order(running):
    small, large = (prepare(drawn(*size), "x.png") for size in ((32, 16), (48, 32)))
    body = {
        "model": "pixtral",
        "messages": messages(["alpha", small, "beta", large, "gamma"]),
        "return_token_strs": True,
    }
    status, answer = request(running, "POST", "/tokenize", body)
    assert status == 200, answer
    tokens = json.loads(answer)["tokens"]
    img, break_, end = 10, 12, 13  # [IMG], [IMG_BREAK] and [IMG_END] of the tokenizer
    runs = [token if token in (img, break_, end) else 0 for token in tokens]
    first = [img, img, end]
    second = [img, img, img, break_, img, img, img, end]
    at = next(i for i in range(len(runs)) if runs[i : i + 3] == first)
    then = next(i for i in range(at + 3, len(runs)) if runs[i : i + 8] == second)
    between = runs[at + 3 : then]
    assert between
    assert set(between) == {0}
    text = "".join(json.loads(answer)["token_strs"])
    assert re.search(r"alpha.*beta.*gamma", text, re.S)
    assert text.index("alpha") < len("".join(json.loads(answer)["token_strs"][:at])) <= text.index("beta")


def test_an_answer_streams(client):
    answer = client.ask(messages(["Say something long."]), max_tokens=200, ignore_eos=True)
    pieces = list(answer)
    assert len(pieces) > 5
    assert answer.seconds_to_first < answer.seconds / 2  # it was not held back and sent at once
    assert answer.usage["completion_tokens"] == 200
    assert "".join(pieces) == answer.text


def test_random_weights_know_no_answer(client):
    """All pictures of `doctor --answers` are taken, two in a request as well; right is none."""
    answered = list(answers.ask(client))
    assert [each.question for each in answered] == list(answers.QUESTIONS)
    assert not [str(each) for each in answered if each.right]


@pytest.mark.parametrize("model", ["pixtral", MODEL])
def test_both_names_answer(running, model):
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    assert request(running, "POST", "/v1/chat/completions", body)[0] == 200


def test_a_schema_is_kept(client):
    schema = Schema(ROOT / "examples" / "receipt.schema.json")
    receipt = prepare((ROOT / "examples" / "receipt.jpg").read_bytes(), "receipt.jpg")
    for _ in range(5):
        answer = client.ask(
            messages(["Read this receipt.", receipt]), max_tokens=200, response_format=schema.response_format
        )
        text = "".join(answer)
        schema.check(text, answer.finish_reason, 200)


def test_a_batch_of_200_pictures(running, tmp_path, monkeypatch):
    """All are answered, and each one's tokens are those that were forecast."""
    random = Random(4711)
    sizes: dict[str, tuple[int, int]] = {}
    (tmp_path / "pictures").mkdir()
    for number in range(200):
        size = random.choice([(640, 480), (100, 30), (333, 777), (random.randint(1, 1500), 400)])
        sizes[f"pictures/{number}.png"] = size
        (tmp_path / f"pictures/{number}.png").write_bytes(drawn(*size))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXTRAL_ENDPOINT", running.url)
    monkeypatch.setenv("PIXTRAL_API_KEY", running.key)

    def batch(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["pixtral-sky", "batch", *arguments, "-o", "out.jsonl"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 0
        return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]

    lines = batch("pictures", "-p", ASCII_ART, "--max-tokens", "2")
    assert {line["id"]: line["usage"]["prompt_tokens"] for line in lines} == {
        name: WORDS + image_tokens(*size) for name, size in sizes.items()
    }
    assert len(lines) == 200

    Path("receipts").mkdir()
    for number in range(4):
        (tmp_path / f"receipts/{number}.jpg").write_bytes((ROOT / "examples" / "receipt.jpg").read_bytes())
    file = ROOT / "examples" / "receipt.schema.json"
    lines = batch(
        "receipts", "-p", "Read this receipt.", "--schema", str(file), "--max-tokens", "200", "--fresh"
    )
    assert len(lines) == 4
    for line in lines:
        Schema(file).check(json.dumps(line["answer"]), line["finish_reason"], 200)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 16}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
    ("/tokenize", {"prompt": "x"}),
])  # fmt: skip
def test_the_other_routes_work(running, path, body):
    status, answer = request(running, "POST", path, {"model": "pixtral", **body})
    assert status == 200, answer


# --- nobody gets in


def routes(deployment: Rehearsal) -> set[str]:
    """Every path that the running vLLM says it has registered."""
    found = re.findall(r"Route: (\S+), ", Path(deployment.log).read_text())
    assert len(found) > 20
    assert "/invocations" in found
    return {re.sub(r"\{[^}]*\}", "x", path) for path in found}


def test_every_route_of_vllm_is_shut(running):
    for path in sorted(routes(running)):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            for key in ("", "wrong"):
                status, _ = request(running, method, path, {}, key)
                is_open = path == "/health" and method in ("GET", "HEAD")
                assert status == 200 if is_open else status in (401, 404), (
                    method,
                    path,
                )


def test_what_is_not_listed_is_shut_with_the_key_as_well(running):
    listed = {
        "/health", "/metrics", "/tokenize", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses",
        "/v1/messages", "/v1/messages/count_tokens",
    }  # fmt: skip
    for path in sorted(routes(running) - listed):
        for method in ("GET", "POST"):
            assert request(running, method, path, {})[0] == 404, (method, path)


@pytest.mark.parametrize("line", TRICKS)
def test_no_trick_gets_past_it(running, line):
    for key in ("", f"Authorization: Bearer {running.key}\r\n"):
        with socket.create_connection(
            ("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=30
        ) as connection:
            connection.sendall(f"{line} HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 2\r\n\r\n{{}}".encode())
            status = int(connection.recv(4096).split()[1])
        assert status in (400, 404)


def rss(deployment: Rehearsal) -> int:
    return sum(process.memory_info().rss for process in family(deployment))


def upload(deployment: Rehearsal, mib: int, chunked: bool) -> tuple[int, bytes]:
    """Send so many MiB of rubbish, in one piece with its length or in chunks without."""
    piece = b"x" * 2**20
    connection = http.client.HTTPConnection("127.0.0.1", int(deployment.url.rpartition(":")[2]), timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {deployment.key}"}
    body = (piece for _ in range(mib)) if chunked else piece * mib
    connection.request("POST", "/tokenize", body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


@pytest.mark.parametrize("chunked", [False, True])
def test_33_mib_are_refused_and_take_no_memory(running, chunked):
    if chunked:
        # Without a length the app has to read until the limit shows: as much as a request that is taken.
        for _ in range(3):
            assert upload(running, 31, chunked)[0] == 400
    before = rss(running)
    for _ in range(5):
        status, answer = upload(running, 33, chunked)
        assert status == 413
        assert "32 MiB" in json.loads(answer)["error"]["message"]
    grown = (rss(running) - before) / 2**20
    print(f"grown by {grown:.1f} MiB")
    # Of five, the last may wait for Python's garbage collector, which frees what refers to itself.
    assert grown < (40 if chunked else 8)


def test_a_stranger_cannot_fill_the_memory(running):
    """Heads of requests come before any guard sees them: endless ones are cut off, and so are endless many."""
    port = int(running.url.rpartition(":")[2])
    before = rss(running)
    for begin, flood in ((b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 100_000), (b"GET /", b"x" * 2**20)):
        sent = 0
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
            contextlib.suppress(OSError),  # it hangs up, at whatever point
        ):
            connection.sendall(begin)
            while sent < 64 * 2**20:
                connection.sendall(flood)
                sent += len(flood)
                time.sleep(0.01)
        assert sent < 64 * 2**20, "it takes heads without end"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
        contextlib.suppress(OSError),
    ):
        for _ in range(40):  # 8 MiB of requests whose answers nobody reads
            connection.settimeout(1)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 7000)
    grown = (rss(running) - before) / 2**20
    print(f"grown by {grown:.1f} MiB")
    assert grown < 64
    assert request(running, "GET", "/v1/models")[0] == 200


def bitmap(side: int) -> str:
    """A data URL of a one-bit PNG: some KB, and ``side``**2 pixels once it is decoded."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(("content", "more", "says"), [
    ([{"type": "image_url", "image_url": {"url": bitmap(13_000)}}], {}, "pixels"),
    ("Hello", {"n": 16384}, "16"),
])  # fmt: skip
def test_what_would_take_all_memory_is_refused_at_once(running, content, more, says):
    def memory() -> int:
        return sum(process.memory_info().rss for process in family(running))

    body = {"model": "pixtral", "max_tokens": 1, "messages": [{"role": "user", "content": content}], **more}
    before, begin = memory(), time.monotonic()
    status, answer = request(running, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert says in json.loads(answer)["error"]["message"]
    assert time.monotonic() - begin < 2
    assert memory() - before < 100 * 2**20


def test_the_picture_of_a_phone_of_50_megapixels_passes(running):
    content = [{"type": "image_url", "image_url": {"url": bitmap(7_071)}}]
    body = {"model": "pixtral", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    assert request(running, "POST", "/v1/chat/completions", body)[0] == 200


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(running, choice, stream):
    from openai import OpenAI

    def token(text: str) -> int:
        body = {"model": "pixtral", "prompt": text, "add_special_tokens": False}
        return json.loads(request(running, "POST", "/tokenize", body)[1])["tokens"][-1]

    client = OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0)
    answer = client.chat.completions.create(
        model="pixtral", messages=[{"role": "user", "content": "How is the weather in Paris?"}], tools=[WEATHER],
        tool_choice=choice, max_tokens=60, temperature=0, stream=stream,
        logit_bias={str(token(end)): 100 for end in ('"}', "}", "]", "}]")},  # random weights would never end it
    )  # fmt: skip
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        calls = [part.function for each in choices for part in each.delta.tool_calls or []]
    else:
        choices = answer.choices
        calls = [call.function for call in choices[0].message.tool_calls or []]
    assert "".join(call.name or "" for call in calls) == "weather"
    assert json.loads("".join(call.arguments or "" for call in calls)) in (
        {"city": "Paris"},
        {"city": "Rome"},
    )
    # As OpenAI has it: a call that was not the model's own choice is no reason to end.
    assert choices[-1].finish_reason == ("tool_calls" if choice == "required" else "stop")


def test_the_context_is_the_scripts_choice(client):
    assert {model["max_model_len"] for model in client.models()} == {32_768}


def test_it_listens_on_loopback_only(running):
    listening = {
        (address.laddr.ip, address.laddr.port)
        for process in family(running)
        for address in process.net_connections("inet")
        if address.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", int(running.url.rpartition(":")[2])) in listening
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}, listening


def test_the_key_is_in_no_argument_and_no_log(running):
    client = Client(endpoint_of(running), budget=0)
    list(client.ask(messages(["x"]), max_tokens=1))
    client.close()
    request(running, "POST", "/v1/chat/completions", {"nonsense": 1})
    for process in psutil.process_iter():
        try:
            assert running.key not in " ".join(process.cmdline())
        except psutil.Error:
            continue
    home = Path(running.log).parent
    holding = [
        path for path in home.rglob("*") if path.is_file() and running.key in path.read_text(errors="replace")
    ]
    assert [path.name for path in holding] == ["tests.json"]
    assert holding[0].stat().st_mode & 0o777 == 0o600


# --- it ends


def test_the_idle_clock_ends_all_of_it(start):
    deployment = start("idle", IDLE_MINUTES="0.05")
    rehearsal.wait_until_ready(deployment)
    processes = family(deployment)
    assert any("EngineCore" in " ".join(process.cmdline()) for process in processes)
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    # The script ended well, so that the job counts as done and autostop begins.
    assert processes[0].returncode in (0, None) or gone[0].returncode == 0
    assert "gateway: no request for 0.05 minutes" in Path(deployment.log).read_text()


def test_fp8_answers_and_what_is_killed_comes_back(start, tmp_path_factory, monkeypatch):
    """From real weights in Mistral's file, in a folder for temporary files with a long name."""
    deep = tmp_path_factory.mktemp("d" * 120)
    monkeypatch.setenv("TMPDIR", str(deep))
    deployment = start("fp8", PRECISION="fp8", IDLE_MINUTES="30")
    rehearsal.wait_until_ready(deployment)
    log = Path(deployment.log)
    assert "On 1 x CPU: fp8, at most 32768 tokens of context, 4352 a step" in log.read_text()
    assert re.search(r"Selected \w*FP8\w*Kernel", log.read_text())
    body = {"model": "pixtral", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}

    def server(name: str) -> psutil.Process:
        (found,) = (each for each in family(deployment) if each.name() == name)
        return found

    # The engine's death is seen by the server, which ends with exit code 0; its own by nobody.
    for number, (name, code) in enumerate((("VLLM::EngineCore", 1), ("vllm", 137)), 1):
        time.sleep(2)  # the script looks once a second whether it is up
        assert request(deployment, "POST", "/v1/chat/completions", body)[0] == 200
        before = family(deployment)
        server(name).kill()
        deadline = time.monotonic() + 60
        while (
            f"the server died (exit code {code}), and is started again: {number} of 3" not in log.read_text()
        ):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        rehearsal.wait_until_ready(deployment)
        left = [each for each in before[1:] if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert left == []
    assert request(deployment, "POST", "/v1/chat/completions", body)[0] == 200
    assert list(deep.glob("pixtral*")) == []


def test_a_flag_that_vllm_does_not_know_is_said(start):
    deployment = start("flag", EXTRA_ARGS="--no-such-flag")
    with pytest.raises(RehearsalError, match="unrecognized arguments: --no-such-flag"):
        rehearsal.wait_until_ready(deployment)


# --- the command line, as a user has it


@pytest.fixture
def cli(tmp_path, venv):
    """Run pixtral-sky in a home of its own."""
    environ = {
        **os.environ,
        "PIXTRAL_SKY_HOME": str(tmp_path / "cli"),
        "PIXTRAL_SKY_ENGINE": str(venv / "bin/python"),
    }
    program = [sys.executable, "-m", "pixtral_sky"]

    def run(*arguments: str, wait: bool = True, **options):
        if not wait:
            # What is started in the background may ignore SIGINT, and so would all that it starts.
            options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
            return subprocess.Popen([*program, *arguments], env=environ, text=True, **options)
        return subprocess.run([*program, *arguments], env=environ, capture_output=True, text=True, **options)

    return run


def ours() -> set[int]:
    """Every process that runs a rehearsal's script, or vLLM."""
    found = set()
    for process in psutil.process_iter():
        try:
            if re.search(r"vllm serve|VLLM::|/cli/pixtral\.sh", " ".join(process.cmdline())):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_the_journey(cli, tmp_path):
    """Commands of docs/journeys/rehearse.md among others; what random weights say stands there as (noise)."""
    before, page, examples = ours(), Journey("rehearse"), ROOT / "examples"
    kept = cli(*page.next())
    assert kept.returncode == 0, kept.stderr
    said, usage, rest = kept.stderr.partition("\n  5,")
    page.check(f"{said}(noise){usage}{rest}")
    assert re.search(r"Ready in \d+ s", kept.stderr)
    assert "weights are random" in kept.stderr
    assert QUESTION[0] in kept.stderr
    assert len(kept.stdout.strip()) > 20  # the answer, alone
    try:
        again = cli("rehearse", "--keep")
        assert (again.returncode, "is running already" in again.stderr) == (2, True)
        status = cli(*page.next())
        assert status.returncode == 0, status.stderr
        page.check(status.stderr + status.stdout)
        assert re.search(r"pixtral +rehearsal +running .* yes\n", status.stdout)

        picture = str(examples / "chart.png")
        asked = cli(*page.next(), cwd=examples)
        assert asked.returncode == 0, asked.stderr
        page.check(f"(noise)\n{asked.stderr}")
        assert asked.stdout.strip()
        assert re.search(r"5\d\d\d tokens in the prompt, 8 in the answer", asked.stderr)
        raw = json.loads(cli("ask", picture, "--json", "--max-tokens", "8").stdout)
        assert 2795 < raw["usage"]["prompt_tokens"] < 2795 + 20
        with open(picture, "rb") as file:
            assert cli("ask", "-", "--max-tokens", "4", stdin=file).returncode == 0

        five = cli("ask", *[picture] * 5)
        assert (five.returncode, five.stdout) == (1, "")
        assert "5 pictures, and this endpoint takes 4" in five.stderr
        unchecked = cli("ask", *[picture] * 5, "--no-check")
        assert unchecked.returncode == 1
        assert "At most 4 image(s) may be provided in one prompt." in unchecked.stderr

        schema = str(ROOT / "examples" / "receipt.schema.json")
        fits = cli("ask", "Read it.", str(ROOT / "examples" / "receipt.jpg"), "--schema", schema)
        assert fits.returncode == 0, fits.stderr
        assert set(json.loads(fits.stdout)) == {"shop", "paid_in_cash", "currency", "total"}

        exports = cli("endpoint", "--env").stdout
        environ = {k: v.strip("'") for k, v in re.findall(r"export (\w+)=(.*)", exports)}
        for example in (
            ["bash", "examples/curl.sh"],
            [sys.executable, "examples/openai_client.py"],
            [sys.executable, "examples/python_client.py"],
        ):
            result = subprocess.run(
                example,
                env={**os.environ, **environ, "MAX_TOKENS": "8"},
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, result.stderr
            assert re.search(r'"prompt_tokens":5\d\d\d|\[5\d\d\d tokens in the prompt', result.stdout)

        wrong = cli("ask", "x", "--api-key", "wrong")
        assert wrong.returncode == 1
        assert "does not take this key (401)" in wrong.stderr
    finally:
        down = cli("down")
    assert down.returncode == 0, down.stderr
    assert page.next() == ["down"]
    page.check(down.stderr)
    assert not page.left
    assert "nothing of it left" in down.stderr
    assert ours() <= before
    assert cli("status").returncode == 1
    gone = cli("ask", "x")
    assert (gone.returncode, "rehearse --keep" in gone.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_an_interrupted_rehearsal_leaves_nothing(cli, number, seconds):
    before = ours()
    process = cli("rehearse", wait=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not ours() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    assert ours() - before
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # and once more, by who does not like to wait
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert ours() <= before
