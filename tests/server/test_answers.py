"""Whose fault a 500 is: what vLLM sends or raises, and what the client gets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from PIL import Image

from pixtral_sky.server import answers
from pixtral_sky.server.answers import FAULTS, judged
from pixtral_sky.server.refusal import Refusal

JSON = [(b"content-type", b"application/json")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


def says(message: str, kind: str = "InternalServerError") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": 500}}).encode()


def ask(
    *sent: bytes,
    status: int = 500,
    headers: list[tuple[bytes, bytes]] = JSON,
    error: Exception | None = None,
    constrained: bool = False,
) -> tuple[int, bytes]:
    """Status and body of the answer to an app that sends these parts and then raises ``error``."""
    messages: list[dict[str, Any]] = []

    async def app(scope, receive, send):
        if sent:
            await send({"type": "http.response.start", "status": status, "headers": headers})
        for each in sent:
            await send({"type": "http.response.body", "body": each, "more_body": True})
        if error:
            raise error
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        messages.append(message)

    async def run():
        try:
            await judged(app, {}, None, send, constrained)
        except Refusal as refusal:
            await refusal.answer(send)
        except Exception as raised:
            messages.append({"type": "raised", "error": raised})

    asyncio.run(run())
    raised = [message for message in messages if message["type"] == "raised"]
    assert raised in ([], [{"type": "raised", "error": error}])
    if messages[0] in raised:
        return 500, b"raised"
    kinds = [message["type"] for message in messages if message not in raised]
    assert kinds.count("http.response.start") == 1
    assert kinds[0] == "http.response.start"
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:])


@pytest.mark.parametrize("part", FAULTS)
@pytest.mark.parametrize("status", [500, 501])
def test_what_the_request_did_is_400_with_words_of_ours(part, status):
    told, answer = ask(says(f"Something: {part} /usr/lib/x.py"), status=status)
    assert told == 400
    assert json.loads(answer)["error"]["message"] == FAULTS[part]
    assert ask(error=RuntimeError(f"Something: {part} /usr/lib/x.py")) == (told, answer)


def test_a_bomb_and_a_recursion_are_known_by_what_python_and_pillow_say(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(Image.DecompressionBombError) as bomb:
        Image._decompression_bomb_check((3, 3))
    assert ask(error=bomb.value)[0] == 400
    with pytest.raises(RecursionError) as deep:
        json.loads("[" * 100_000)
    assert ask(error=deep.value)[0] == 400


@pytest.mark.parametrize("said", [
    "EngineCore encountered an issue. See stack trace (above) for the root cause.", "Internal server error", "",
    "CUDA out of memory.",
])  # fmt: skip
def test_a_fault_of_the_server_stays_500(said):
    assert ask(says(said)) == (500, says(said))
    assert ask(says(said), b"more", status=503) == (503, says(said) + b"more")
    assert ask(error=RuntimeError(said)) == (500, b"raised")


def test_a_grammar_that_the_engine_gives_up_on_is_too_complex():
    status, answer = ask(says("Internal server error"), constrained=True)
    assert (status, "too complex" in json.loads(answer)["error"]["message"]) == (400, True)
    dead = says("EngineCore encountered an issue. See stack trace (above) for the root cause.")
    assert ask(dead, constrained=True) == (500, dead)


@pytest.mark.parametrize("status", [200, 400, 404, 422])
def test_other_answers_pass_as_they_are(status):
    parts = (b"one ", *(part.encode() for part in FAULTS))
    assert ask(*parts, status=status) == (status, b"".join(parts))


def test_an_answer_that_has_begun_breaks_off_by_its_error():
    part = next(iter(FAULTS))
    for error in (RuntimeError(part), KeyError("secret")):
        assert ask(b"{", status=200, error=error) == (200, b"{")
    assert ask(b"data: 1\n\n", status=200, headers=STREAM, error=KeyError("secret")) == (200, b"data: 1\n\n")


class VLLMClientError(Exception):
    """As vLLM names it; its own are of other classes below it."""


def test_a_stream_that_ends_by_a_fault_of_the_request_says_so():
    error = RuntimeError("Caught handled exception, but response already started.")  # as Starlette says it
    error.__cause__ = type("Invalid", (VLLMClientError,), {})("Grammar error: x")
    status, answer = ask(b"data: 1\n\n", status=200, headers=STREAM, error=error)
    event, data = answer.removeprefix(b"data: 1\n\n").decode().splitlines()[:2]
    assert (status, event) == (200, "event: error")
    said = {"code": "invalid_request", "message": "Grammar error: x"}
    assert json.loads(data.removeprefix("data: ")) == {"type": "error", **said, "error": said}
    assert ask(error=error)[0] == 400


def test_the_head_of_an_answer_waits_for_its_body_but_not_for_long(monkeypatch):
    monkeypatch.setattr(answers, "HELD_SECONDS", 0.05)
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": scope["status"], "headers": []})
        assert sent == []
        await asyncio.sleep(0.1)
        assert len(sent) == (scope["status"] < 500)
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message):
        sent.append(message.get("status", message.get("body")))

    for status in (200, 503):
        asyncio.run(judged(app, {"status": status}, None, send, False))
        assert sent == [status, b"x"]
        sent.clear()
