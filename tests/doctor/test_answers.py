"""The check of answers: the pictures that it draws, what counts as right, and what it makes of an endpoint."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO

import psutil
import pytest
from PIL import Image

from pixtral_sky.deploy import store
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.doctor import answers
from pixtral_sky.doctor.answers import QUESTIONS
from tests.support.command_line import KEY, Result, run_main
from tests.support.fake_endpoint import Behaviour, Exchange, FakeEndpoint, says, vllm_error

NAMES = ["number", "colour", "count", "text", "chart", "receipt", "position", "table", "compare", "sum"]
Answers = Callable[..., Result]


def knows(*names: str) -> Behaviour:
    """The right answers to these questions, and to the others that it cannot see the picture."""

    def behave(exchange: Exchange) -> None:
        asked = exchange.request.json["messages"][0]["content"][-1]["text"]
        question = next(each for each in QUESTIONS if asked.startswith(each.text))
        right = f"It is {' and '.join(question.expected)}."
        says(right if question.name in names else "I cannot see it.")(exchange)

    return behave


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    with FakeEndpoint([knows(*NAMES)], key=KEY) as fake:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", fake.url)
        monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
        yield fake


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answers:
    return lambda *arguments: run_main(monkeypatch, capsys, "doctor", "--answers", *arguments)


# An endpoint -----------------------------------------------------------------------------------------------


def test_all_are_right(endpoint: FakeEndpoint, check: Answers) -> None:
    result = check()
    assert result.code == 0
    *lines, last = result.out.splitlines()
    assert [re.match(r"ok   (\w+) ", line)[1] for line in lines] == NAMES  # type: ignore[index]
    assert lines[0] == "ok   number    expected 7394, said: It is 7394."
    assert last == "10 of 10 are right."
    requests = [request.json for request in endpoint.asked]
    assert {(request["temperature"], request["max_tokens"]) for request in requests} == {(0, 48)}
    pictures = [
        [part["type"] for part in each["messages"][0]["content"]].count("image_url") for each in requests
    ]
    assert pictures == [1, 1, 1, 1, 1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize(("known", "code"), [(7, 0), (6, 1)])
def test_how_many_are_enough(endpoint: FakeEndpoint, check: Answers, known: int, code: int) -> None:
    endpoint._steps = [knows(*NAMES[:known])]
    result = check()
    assert result.code == code
    *lines, last = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * known + ["FAIL"] * (10 - known)
    assert last.startswith(f"{known} of 10 are right.")
    assert ("Fewer than 7: " in last) is (code == 1)


def test_noise(endpoint: FakeEndpoint, check: Answers) -> None:
    endpoint._steps = [says("\x1b[2J Einwohner\n\n", "一 Zürich 4\u202e 77" * 30)]
    result = check()
    assert result.code == 1
    assert result.out.splitlines()[-1].startswith("0 of 10 are right.")
    assert len(result.out.splitlines()) == 11
    assert "\x1b" not in result.out
    assert max(map(len, result.out.splitlines())) == 120


def test_nothing_said(endpoint: FakeEndpoint, check: Answers) -> None:
    endpoint._steps = [says("")]
    assert "FAIL colour    expected red, said: nothing" in check().out


def test_two_runs_can_be_compared(endpoint: FakeEndpoint, check: Answers) -> None:
    result = check("--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert {name: document[name] for name in ("model", "right", "passes")} == {
        "model": "pixtral",
        "right": 10,
        "passes": True,
    }
    assert document["answers"][3] == {
        "name": "text",
        "question": "When does the ferry leave, and from which pier?",
        "expected": ["6:45", "9"],
        "said": "It is 6:45 and 9.",
        "right": True,
    }
    assert check("--json").out == result.out
    endpoint._steps = [says("A star.")]
    assert check("--json").code == 1


def test_a_refusal_is_a_wrong_answer(endpoint: FakeEndpoint, check: Answers) -> None:
    endpoint._steps = [vllm_error(400, "At most 1 image(s) may be provided in one prompt."), knows(*NAMES)]
    result = check()
    assert result.code == 0
    assert "said: At most 1 image(s) may be provided in one prompt." in result.out.splitlines()[0]
    assert result.out.splitlines()[-1] == "9 of 10 are right."


def test_nobody_answers(check: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for that is not to wait long."""
    with FakeEndpoint() as fake:
        pass
    monkeypatch.setenv("PIXTRAL_ENDPOINT", fake.url)
    result = check()
    assert result.code == 1
    assert f"Nothing answers at {fake.url}." in result.error


def test_a_rehearsal(endpoint: FakeEndpoint, check: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXTRAL_ENDPOINT")
    ours = psutil.Process()
    store.remember(Rehearsal("pixtral", endpoint.url, KEY, 32768, 4, 1.0, ours.pid, store.born(ours), "/log"))
    endpoint._steps = [says("A star.")]
    assert check().out.endswith("1 of 10 are right. This is a rehearsal: its weights are random.\n")


def test_nothing_is_deployed(check: Answers) -> None:
    assert "No deployment named 'other' is remembered here." in check("other").error


def test_it_goes_with_no_file(check: Answers) -> None:
    result = check("--file", "x")
    assert result.code == 2
    assert result.error == "--answers asks what is running: leave out --file."


# The questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS, ids=NAMES)
def test_a_question(question: answers.Question) -> None:
    *pictures, words = question.parts()
    assert isinstance(words, str)
    assert not any(answers.says(words, each) for each in (*question.expected, *question.wrong))
    assert not question.is_right(words)
    assert question.is_right(" ".join(question.expected).upper())
    for each in question.expected:
        assert not question.is_right(" ".join(other for other in question.expected if other != each))
    for each in question.wrong:
        assert not question.is_right(" ".join((*question.expected, each)))
    # Small enough to be seen as they are, with nothing cut off at their edges.
    assert question.parts()[:-1] == pictures
    for picture in pictures:
        assert not isinstance(picture, str)
        with Image.open(BytesIO(base64.b64decode(picture.data_url().partition(",")[2]))) as image:
            assert max(image.size) <= 1024
            rim = image.copy()
            rim.paste(image.getpixel((0, 0)), (8, 8, image.width - 8, image.height - 8))
            assert len(rim.getcolors() or []) == 1


def test_their_names() -> None:
    assert [question.name for question in QUESTIONS] == NAMES


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The answer is **7**.", "7"),
        ("Seven stars", "7"),
        ("There are twenty-one.", "21"),
        ("forty two", "42"),
        ("twenty", "20"),
        ("1,204 visitors", "1204"),
        ("1204", "1,204"),
        ("1,204.50", "1204.5"),
        ("12,345,678", "12345678"),
        ("$10.9", "10.90"),
        ("10,90 €", "10.90"),
        ("300", "300.0"),
        ("6:45", "6:45"),
        ("At 6.45? No: 6 : 45!", "6:45"),
        ("OSLO.", "Oslo"),
        ("two triangles", "triangle"),
        ("\\(23.76\\)", "23.76"),
        ("a red-hot _star_", "star"),
        ("\uff17", "7"),
    ],
)
def test_what_is_said(text: str, wanted: str) -> None:
    assert answers.says(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("17", "7"),
        ("7.5", "7"),
        ("seventeen", "7"),
        ("twenty-one", "20"),
        ("twenty-one", "1"),
        ("1,204", "204"),
        ("12,04", "1204"),
        ("1.2.3", "1.2"),
        ("16:45", "6:45"),
        ("45:6", "6:45"),
        ("6", "6:45"),
        ("\u09eb", "5"),  # Bengali, which random weights speak
        ("bored", "red"),
        ("starfish", "star"),
        ("", "7"),
    ],
)
def test_what_is_not_said(text: str, wanted: str) -> None:
    assert not answers.says(text, wanted)
