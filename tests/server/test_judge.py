"""What a request may ask: each hostile one is refused before the app sees it, in little time; usual ones pass."""

from __future__ import annotations

import base64
import io
import json
import time

import pytest
from PIL import Image

from pixtral_sky.server import judge
from tests.support.gateway import KEY, Server


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        made = Server()
    yield made
    made.close()


def said(content):
    return {"messages": [{"role": "user", "content": content}]}


def nested(depth, inner=1):
    for _ in range(depth):
        inner = [inner]
    return inner


def schema(**more):
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "array", **more}},
        }
    }


def items(*repeats):
    """A schema of lists in lists, each of so many items."""
    inner = {"type": "string"}
    for each in repeats:
        inner = {"type": "array", "minItems": each, "maxItems": each, "items": inner}
    return schema(**inner)


def regex(text):
    return {"structured_outputs": {"regex": text}}


def bitmap(side):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pictures(side, count):
    return said([{"type": "image_url", "image_url": {"url": bitmap(side)}}] * count)


HOSTILE = {
    "many items": items(10**9),
    "many items in many items": items(1000, 1000),
    "a long string": schema(items={"type": "string", "minLength": 10**8}),
    "a pattern": schema(items={"type": "string", "pattern": "(a{999}){999}"}),
    "a tool's schema": {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"minItems": 10**9}}}]},
    "one of Anthropic's": {"tools": [{"name": "x", "input_schema": {"properties": {"a": {"maxItems": 10**9}}}}]},
    "one of Responses": {"text": {"format": {"type": "json_schema", "schema": {"minItems": 10**7}}}},
    "a regex": regex("(a{1000}){1000}"),
    "three levels": regex("((a{100}){100}){100}"),
    "a bounded repeat": regex("a{0,100000000}"),
    "an open repeat": regex("[a-z]{100000000,}"),
    "a huge regex": regex("a" * 70_000),
    "a grammar": {"structured_outputs": {"grammar": "start: " + "x " * 40_000}},
    "an old grammar": {"guided_grammar": "start: " + "x " * 40_000},
    "an old regex": {"guided_regex": "(a{1000}){1000}"},
    "choices": {"structured_outputs": {"choice": [str(n) for n in range(1001)]}},
    "many letters to choose from": {"structured_outputs": {"choice": ["x" * 900 + str(n) for n in range(100)]}},
    "an enum": schema(items={"enum": [str(n) for n in range(1001)]}),
    "words to stop at": {"stop": ["x"] * 1001},
    "messages": {"messages": [{"role": "user", "content": "x"}] * 20_000},
    "parts": said([{"type": "text", "text": "x"}] * 20_000),
    "depth": {"metadata": nested(65)},
    "ids": {"prompt": [1] * (2**17 + 1)},
    "words": said("x" * (2**20 + 1)),
    "words that look like a picture": said("data:image/png;base64," + "A" * 2**20),
    "words in a wrong place": {"user": "data:image/png;base64," + "A" * 2**20},
    "pixels": pictures(8000, 2),
    "prompt_logprobs": {"prompt_logprobs": 20},
    "echo": {"prompt": "x", "echo": True, "logprobs": 5},
}  # fmt: skip
OPERATORS = [
    "kv_transfer_params", "vllm_xargs", "priority", "request_id", "mm_processor_kwargs", "media_io_kwargs", "mm_payload",
    "prompt_embeds", "chat_template", "documents", "use_beam_search", "watermarking", "return_mm_kwargs", "session_id",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_at_once(server, name):
    server.inner.bodies.clear()
    begin = time.monotonic()
    status, message = server.post("/v1/chat/completions", {"model": "pixtral", **HOSTILE[name]})
    assert (status, server.inner.bodies) == (400, [])
    assert time.monotonic() - begin < 2
    assert message.endswith(".")


@pytest.mark.parametrize("name", OPERATORS)
def test_what_belongs_to_an_operator_is_refused(server, name):
    status, message = server.post("/v1/completions", {"prompt": "x", name: 1})
    assert (status, message) == (400, f"A request has no '{name}' here.")


RECEIPT = {
    "type": "object",
    "properties": {
        "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$"},
        "id": {"type": "string", "pattern": "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"},
        "notes": {"type": "string", "maxLength": 2000},
        "lines": {"type": "array", "maxItems": 100, "items": {"type": "object", "properties": {"name": {"maxLength": 80}}}},
        "maxItems": {"type": "integer", "maximum": 10**9},
        "grammar": {"type": "string", "enum": [str(n) for n in range(1000)]},
    },
}  # fmt: skip
USUAL = {
    "four photos": pictures(3464, 4) | {"max_tokens": 64},
    "a phone of 50 megapixels, twice": pictures(7071, 2),
    "a receipt": said("x") | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": RECEIPT}}},
    "a long conversation": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 90}]}] * 2000},
    "a prompt of ids": {"prompt": list(range(131_000)), "max_tokens": 1},
    "bias": {"prompt": "x", "logit_bias": {str(n): 1 for n in range(300)}, "logprobs": 5, "echo": False},
    "choices": {"structured_outputs": {"choice": [str(n) for n in range(1000)]}},
    "a tool that was called": {"messages": [{"role": "assistant", "content": [
        {"type": "tool_use", "id": "a", "name": "x", "input": {"minItems": 10**9, "pattern": "(a{999}){999}"}}]}]},
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_request_passes(server, name):
    server.inner.bodies.clear()
    assert server.post("/v1/chat/completions", {"model": "pixtral", **USUAL[name]})[0] == 200
    assert json.loads(server.inner.bodies[0]) == {"model": "pixtral", **USUAL[name]}


@pytest.mark.parametrize(
    ("text", "length"),
    [("abc", 3), ("a{3}", 3), ("(ab){3}", 6), ("((ab){2}c){3}", 15), (r"\d{2,5}", 5), ("[a{9}]{2}", 2), (r"\{9\}", 3), ("x{2,}", 2),
     (")(", 1), ("a{", 2), ("((a", 1), ("", 0)],
)  # fmt: skip
def test_the_length_of_a_regular_expression(text, length):
    assert judge.length(text) == length
