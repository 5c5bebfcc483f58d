"""``pixtral-sky ask`` from its arguments to its exit code, against a fake endpoint."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixtral_sky import output
from pixtral_sky.client.client import Client
from tests.support import fake_endpoint as fake
from tests.support.command_line import KEY, Result, Run, run_main
from tests.support.fake_endpoint import FakeEndpoint, says


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``pixtral-sky ask`` in an empty directory, with the key; no run may show it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setattr(output, "quiet", False)
    assert Client.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(Client.__init__.__kwdefaults__, "sleep", lambda _: None)

    def run(endpoint: FakeEndpoint | None, *arguments: str, stdin: bytes = b"") -> Result:
        where = ["--endpoint", endpoint.url] if endpoint else []
        return run_main(monkeypatch, capsys, "ask", *where, *arguments, stdin=stdin)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    """Files of 32 x 32 pixels in the directory of the run, by name: 6 tokens each."""
    colors = {"red": "red.png", "green": "green.png", "blue": "blue.png", "pink": "4.png", "gray": "5.png"}
    for color, name in colors.items():
        Image.new("RGB", (32, 32), color).save(tmp_path / name)
    return {name: (tmp_path / name).read_bytes() for name in colors.values()}


def sent(endpoint: FakeEndpoint) -> list[Any]:
    """The parts of the last question: words, or the bytes of a picture, or its URL."""
    parts = []
    for part in endpoint.asked[-1].json["messages"][-1]["content"]:
        if part["type"] == "text":
            parts.append(part["text"])
        else:
            head, _, data = part["image_url"]["url"].partition(";base64,")
            parts.append(base64.b64decode(data) if data else head)
    return parts


def test_an_answer(run: Run) -> None:
    with FakeEndpoint([says("A red", " square.")], key=KEY) as endpoint:
        result = run(endpoint, "What is it?")
    assert (result.code, result.out, result.err) == (0, "A red square.\n", "")
    models, question = endpoint.requests
    assert (models.method, models.path) == ("GET", "/v1/models")
    assert question.json["stream"] is True
    assert question.json["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}
    ]


def test_options_of_the_request(run: Run) -> None:
    with FakeEndpoint() as endpoint:
        assert (
            run(endpoint, "Hi", "--system", "Be short.", "--max-tokens", "9", "--temperature", "0").code == 0
        )
    body = endpoint.asked[0].json
    assert body["messages"][0] == {"role": "system", "content": "Be short."}
    assert (body["max_tokens"], body["temperature"]) == (9, 0)


def test_words_and_pictures_go_up_in_order(run: Run, pictures: dict[str, bytes]) -> None:
    with FakeEndpoint() as endpoint:
        result = run(
            endpoint, "Is this", "red.png", "or this", "-", "like this?", "g*.png", stdin=pictures["blue.png"]
        )
    assert result.code == 0
    assert sent(endpoint) == [
        "Is this",
        pictures["red.png"],
        "or this",
        pictures["blue.png"],
        "like this?",
        pictures["green.png"],
    ]


def test_words_on_standard_input(run: Run, pictures: dict[str, bytes]) -> None:
    with FakeEndpoint() as endpoint:
        assert run(endpoint, "-i", "red.png", "-", stdin=b"What is\nthis?\n").code == 0
        assert sent(endpoint) == [pictures["red.png"], "What is\nthis?"]
        assert run(endpoint, "red.png", stdin=b"It is not read without a dash.").code == 0
        assert sent(endpoint) == ["Describe this image in detail please.", pictures["red.png"]]


def test_images_come_before_all_else(run: Run, pictures: dict[str, bytes]) -> None:
    with FakeEndpoint() as endpoint:
        assert run(endpoint, "Is this", "red.png", "-i", "green.png", "--image", "blue.png", "?").code == 0
    names = ["green.png", "blue.png", "Is this", "red.png", "?"]
    assert sent(endpoint) == [pictures.get(name, name) for name in names]


def test_a_sentence_that_ends_as_a_file_does_is_said_to_be_words(run: Run) -> None:
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "What is in photo.jpg")
    assert result.code == 0
    assert result.err == "Taken as words, as there is no such file: What is in photo.jpg\n"
    assert sent(endpoint) == ["What is in photo.jpg"]


@pytest.mark.parametrize(("kind", "says"), [("GIF", "frames. The others: convert 'a b' -coalesce part-%03d.png"), ("TIFF", "pages. The others: convert 'a b' part-%03d.png")])  # fmt: skip
def test_an_animation_or_document_says_once_what_is_sent(
    kind: str, says: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *more = (Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue"))
    first.save("a b", kind, save_all=True, append_images=more)
    with FakeEndpoint() as endpoint:
        said = run(endpoint, "Compare", "a b", "a b").err
        piped = run(endpoint, "-", stdin=Path("a b").read_bytes()).err
        quiet = run_main(monkeypatch, capsys, "-q", "ask", "--endpoint", endpoint.url, "a b").err
    assert said == f"a b: the first of 3 {says}\n"
    assert piped == f"standard input: the first of 3 {says.partition(' ')[0]}\n"
    assert quiet == ""


def test_all_bad_pictures_are_named(run: Run, pictures: dict[str, bytes]) -> None:
    Path("cut.png").write_bytes(pictures["red.png"][:60])
    Path("clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "Compare", "red.png", "cut.png", "clip.mp4")
        assert not endpoint.requests
    assert (result.code, result.error) == (
        1,
        "2 pictures cannot be sent: cut.png is cut off. clip.mp4 is a video. "
        "What helps with each: pixtral-sky tokens FILE",
    )


def test_one_says_where(run: Run) -> None:
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "-n", "mine", "Hi")
        assert not endpoint.requests
    assert (result.code, result.error) == (2, "--endpoint and --name both say whom to ask. Give one of them.")


def test_remote_urls_are_passed_on(run: Run) -> None:
    with FakeEndpoint() as endpoint:
        assert run(endpoint, "--remote-urls", "What?", "https://example.invalid/a.png").code == 0
    assert sent(endpoint) == ["What?", "https://example.invalid/a.png"]


def test_the_model_is_what_the_endpoint_serves(run: Run) -> None:
    with FakeEndpoint(models=[{"id": "another", "max_model_len": 4096}]) as endpoint:
        assert run(endpoint, "Hi").code == 0
    assert endpoint.asked[0].json["model"] == "another"


def test_five_pictures_are_refused_before_any_request(run: Run, pictures: dict[str, bytes]) -> None:
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "Compare", *pictures)
        assert not endpoint.requests
        assert (result.code, result.out) == (1, "")
        assert result.error == (
            "5 pictures, and this endpoint takes 4 in one prompt. Give fewer at a time, redeploy with --env "
            "MAX_IMAGES=5, send them anyway: --no-check, or ask about each by itself: pixtral-sky batch red.png "
            "green.png blue.png 4.png 5.png -o answers.jsonl -p Compare"
        )
        assert run(endpoint, "Compare", *pictures, "--no-check").code == 0
    assert len(sent(endpoint)) == 6


def test_too_many_tokens_are_refused_before_the_question(run: Run, pictures: dict[str, bytes]) -> None:
    with FakeEndpoint(models=[{"id": "pixtral", "max_model_len": 520}]) as endpoint:
        result = run(endpoint, "What?", "red.png")
        assert result.code == 1
        assert (
            "(6 tokens) and the answer (--max-tokens 512) need 521, and this endpoint has 520" in result.err
        )
        assert not endpoint.asked
        assert run(endpoint, "What?", "red.png", "--max-tokens", "511").code == 0
        assert run(endpoint, "What?", "red.png", "--no-check").code == 0


def test_json_is_one_document(run: Run) -> None:
    with FakeEndpoint([says("\x1b[1mr\u00e9d")]) as endpoint:
        result = run(endpoint, "What?", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["choices"][0]["message"]["content"] == "\x1b[1mr\u00e9d"
    assert document["usage"] == fake.USAGE
    assert "\x1b" not in result.out
    assert endpoint.asked[0].json["stream"] is True, "a balancer repeats what is silent for long"


def test_no_stream(run: Run) -> None:
    with FakeEndpoint([says("A red", " square.\n")]) as endpoint:
        result = run(endpoint, "What?", "--no-stream")
    assert (result.code, result.out) == (0, "A red square.\n")
    assert endpoint.asked[0].json["stream"] is True, "a balancer repeats what is silent for long"


@pytest.mark.parametrize("how", [[], ["--no-stream"]])
def test_usage(how: list[str], run: Run) -> None:
    with FakeEndpoint() as endpoint:
        result = run(endpoint, "What?", "--usage", *how)
    assert result.out == "A small red square.\n"
    assert result.err.startswith("660 tokens in the prompt, 12 in the answer: ")
    assert ("the first after 0." in result.err) is not bool(how)
    assert result.err.endswith(" tokens/s\n")


def test_an_answer_that_was_cut_off(run: Run) -> None:
    with FakeEndpoint([says("A small", finish_reason="length")]) as endpoint:
        result = run(endpoint, "What?", "--max-tokens", "2")
    assert (result.code, result.out) == (0, "A small\n")
    assert result.err == "Warning: The answer was cut off at --max-tokens 2.\n"


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--json"]])
def test_a_schema(how: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object", "required": ["total"]}')
    with FakeEndpoint(
        [says('{"total"', ": 1}"), says("{}"), says('{"to', finish_reason="length")]
    ) as endpoint:
        good = run(endpoint, "What?", "--schema", "s.json", *how)
        bad = run(endpoint, "What?", "--schema", "s.json", *how)
        cut = run(endpoint, "What?", "--schema", "s.json", *how)
    assert good.code == 0
    assert (bad.code, cut.code) == (1, 1)
    assert "Error: The answer does not fit the schema: $: 'total' is a required property." in bad.err
    assert ("The whole answer: the same with --json" in bad.err) == ("--json" not in how)
    assert "Error: The answer was cut off: --max-tokens 512 is too small." in cut.err
    if how == ["--json"]:
        assert json.loads(bad.out)["choices"][0]["message"]["content"] == "{}"
    else:
        assert (good.out, bad.out, cut.out) == ('{"total": 1}\n', "", "")
    assert endpoint.asked[0].json["response_format"]["json_schema"]["name"] == "s"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--schema", "none.json", "Hi"],
        ["--max-tokens", "0", "Hi"],
        ["--temperature", "3", "Hi"],
        ["--no-such-option", "Hi"],
        ["--name", "../x", "Hi"],
        ["Hi"],  # nothing is remembered
    ],
)
def test_exit_code_2(arguments: list[str], run: Run) -> None:
    result = run(None, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        (
            fake.vllm_error(400, "At most 4 image(s) may be provided in one prompt."),
            "Error: At most 4 image(s)",
        ),
        (fake.status(413), "Error: The request is 0.0 MiB, more than http://127.0.0.1:"),
        (fake.page(404), "not as an OpenAI-compatible API does. Is its address right?"),
        (fake.vllm_error(400, f"You said Bearer {KEY}"), "Error: You said Bearer ***."),
    ],
)
def test_exit_code_1(behaviour: fake.Behaviour, text: str, run: Run) -> None:
    with FakeEndpoint([behaviour]) as endpoint:
        result = run(endpoint, "What?")
    assert (result.code, result.out) == (1, "")
    assert text in result.err
    assert result.err.count("\n") == 1


def test_a_wrong_key(run: Run) -> None:
    with FakeEndpoint(key="another") as endpoint:
        result = run(endpoint, "What?", "--api-key", "SENTINEL")
    assert result.code == 1
    assert "does not take this key (401). Is the key of --api-key right?" in result.err
    assert endpoint.requests[0].headers["authorization"] == "Bearer SENTINEL"


def test_a_stream_that_breaks_off_keeps_what_arrived(run: Run) -> None:
    with FakeEndpoint([fake.streams("A sm", "all", end=False)]) as endpoint:
        result = run(endpoint, "What?")
    assert (result.code, result.out) == (1, "A small\n")
    assert result.err == "Error: The answer broke off after 7 characters. Ask again.\n"


def test_a_retry_is_said(run: Run) -> None:
    with FakeEndpoint([fake.no_replica(), says("Hello")]) as endpoint:
        result = run(endpoint, "What?")
    assert (result.code, result.out) == (0, "Hello\n")
    assert result.err.startswith("no replica is ready; trying again in ")


def test_a_terminal_gets_no_control_characters(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = says("\x1b]0;owned\x07", "red\n\tgreen\x9b2J", "\x1b")
    with FakeEndpoint([evil]) as endpoint:
        assert run(endpoint, "What?").out == "\x1b]0;owned\x07red\n\tgreen\x9b2J\x1b\n"
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert run(endpoint, "What?").out == "]0;ownedred\n\tgreen2J\n"


def test_text_that_the_terminal_has_no_letters_for(run: Run) -> None:
    half = {"choices": [{"index": 0, "delta": {"content": "\ud83d"}, "finish_reason": "stop"}]}
    with FakeEndpoint([fake.streams("a", json.dumps(half).encode())]) as endpoint:
        result = run(endpoint, "What?")
    assert (result.code, result.out) == (0, "a\\ud83d\n")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PIXTRAL_API_KEY": KEY}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_a_pipe_gets_each_piece_at_once_and_may_close() -> None:
    is_read = threading.Event()

    def behave(exchange: fake.Exchange) -> None:
        exchange.begin()
        exchange.event({"choices": [{"delta": {"content": "first"}}]})
        is_read.wait(20)
        for _ in range(1000):
            exchange.event({"choices": [{"delta": {"content": "more\n" * 100}}]})

    with (
        FakeEndpoint([behave]) as endpoint,
        start("-m", "pixtral_sky", "ask", "--endpoint", endpoint.url, "Hi") as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"first"
        process.stdout.close()
        is_read.set()
        assert process.stderr.read() == b""


def test_help_loads_nothing_of_the_client() -> None:
    code = (
        "import sys; sys.argv = ['pixtral-sky', 'ask', '--help']\n"
        "import atexit; atexit.register(lambda: print(sorted(set(sys.modules) & "
        "{'httpx', 'httpcore', 'orjson', 'jsonschema', 'PIL', 'ssl'}), file=sys.stderr))\n"
        "from pixtral_sky.cli.app import main; main()"
    )
    with start("-c", code) as process:
        out, err = process.communicate()
    assert process.returncode == 0
    assert b"--remote-urls" in out
    assert b"Examples:" in out
    assert err.strip() == b"[]"


def test_a_question_loads_no_more_than_it_needs(pictures: dict[str, bytes], tmp_path: Path) -> None:
    """Each of these takes as long as all the rest before the question is on its way, or nearly so."""
    with FakeEndpoint() as endpoint:
        code = (
            f"import sys; sys.argv = ['pixtral-sky', 'ask', '--endpoint', {endpoint.url!r}, {str(tmp_path / 'red.png')!r}]\n"
            "import atexit; atexit.register(lambda: print(sorted(set(sys.modules) & "
            "{'httpx', 'http.client', 'asyncio', 'rich', 'jsonschema', 'pydantic', 'yaml', "
            "'pixtral_sky.cli.launch'}), file=sys.stderr))\n"
            "from pixtral_sky.cli.app import main; main()"
        )
        with start("-c", code) as process:
            out, err = process.communicate()
    assert out == b"A small red square.\n"
    assert err.strip() == b"[]"
