"""What vLLM says 500 to though the request is at fault is 400 behind the gateway, on every route."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from typing import Any

import psutil
import pytest

from tests.real.engine.asked import family, request
from tests.support.pictures import plain

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HELLO = [{"role": "user", "content": "Hello"}]


def png(width: int, height: int, bits: int = 1, color: int = 0, rows: bytes = b"") -> bytes:
    """A PNG file that says it has this size."""
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def icon(side: int) -> bytes:
    """An icon of 64 x 64 pixels, it says; within it is a PNG that is not."""
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(side * 4 + 1)) for _ in range(side)) + packed.flush()
    file = png(side, side, 8, 6, rows)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(file), 22) + file


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def asks(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1, **more}


def called(arguments: str) -> dict[str, Any]:
    """A conversation in which the model has called a tool."""
    call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    return {
        "messages": [*messages, {"role": "tool", "tool_call_id": "123456789", "content": "x"}],
        "max_tokens": 1,
    }


FILE = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
BOMB = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png(20_000, 20_000)).decode()}

CASES = {
    "a picture bomb": ("/v1/chat/completions", asks(part(data_url(png(20_000, 20_000)))), "pixels"),
    "one for Anthropic's clients": ("/v1/messages", asks({"type": "image", "source": BOMB}), "pixels"),
    "one in an icon": ("/v1/chat/completions", asks(part(data_url(icon(9_000)))), "pixels"),
    "a file": ("/v1/chat/completions", asks(part("file:///etc/passwd")), "is no http(s) URL"),
    "a file for Anthropic's clients": ("/v1/messages", asks(FILE), "is no http(s) URL"),
    "no base64": ("/v1/chat/completions", asks(part("data:image/png,x")), "base64"),
    "deep arguments": ("/v1/chat/completions", called("[" * 20_000 + "]" * 20_000), "deep"),
    "deep arguments, counted": ("/tokenize", called("[" * 20_000 + "]" * 20_000), "deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_400_and_says_what_is_wrong(running, name):
    path, body, word = CASES[name]
    status, answer = request(running, "POST", path, {"model": "pixtral", **body})
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert word in error["message"]
    assert "site-packages" not in error["message"]
    assert (
        request(running, "POST", "/v1/chat/completions", {"model": "pixtral", **asks(messages=HELLO)})[0]
        == 200
    )


def test_a_picture_in_an_icon_is_not_decoded_first(running):
    def memory() -> int:
        return sum(process.memory_info().rss for process in family(running) if psutil.pid_exists(process.pid))

    body = {"model": "pixtral", **asks(*[part(data_url(icon(9_000)))] * 4)}  # 1.3 GB of pixels
    before, begin = memory(), time.monotonic()
    assert request(running, "POST", "/v1/chat/completions", body)[0] == 400
    assert time.monotonic() - begin < 2
    assert memory() - before < 100 * 2**20


def test_a_stream_of_responses_says_why_it_ends(running):
    """vLLM reads the grammar when it streams already, and breaks off."""
    from openai import APIError, OpenAI

    with OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as client:
        wrong = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}
        with pytest.raises(APIError, match="nonsense"):
            list(client.responses.create(model="pixtral", input="Hello", stream=True, text=wrong))
    assert (
        request(
            running, "POST", "/v1/responses", {"model": "pixtral", "input": "Hello", "max_output_tokens": 16}
        )[0]
        == 200
    )


def test_a_picture_of_a_refused_request_is_answered_afterwards(running):
    """With vLLM's cache of pictures the second request fails with 500, once."""
    photo = part(data_url(plain(70, 50)))
    for more, status in (({"top_k": -5}, 400), ({}, 200)):
        body = {"model": "pixtral", **asks(photo, **more)}
        assert request(running, "POST", "/v1/chat/completions", body)[0] == status


def test_what_vllm_answers_itself_stays(running):
    body = {"model": "pixtral", **asks(part(data_url(plain()))), "temperature": -1}
    status, answer = request(running, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert "temperature must be non-negative" in json.loads(answer)["error"]["message"]
