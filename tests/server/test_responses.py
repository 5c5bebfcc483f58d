"""Requests to /v1/responses, as vLLM and mistral-common can read them."""

from __future__ import annotations

from typing import Any

import pytest

from pixtral_sky.server import responses
from tests.server.test_turned import installed

URL = "data:image/png;base64,AAAA"
MODULE = "mistral_common.protocol.instruct.messages"


def turn(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts), **more}


def text(words: str, kind: str = "output_text") -> dict[str, str]:
    return {"type": kind, "text": words}


@pytest.mark.parametrize(("parts", "joined"), [
    ([text("a")], "a"),
    ([text("a"), text("b", "input_text"), text("c")], "abc"),
    ([{"type": "refusal", "refusal": "no"}], "no"),
    ([], ""),
])  # fmt: skip
def test_an_assistant_turn_becomes_one_part(parts, joined):
    user = {"role": "user", "content": [text("x", "input_text"), text("y", "input_text")]}
    body = {"input": [user, turn(*parts, id="msg_1", status="completed"), "x", {"type": "reasoning"}]}
    assert responses.join_turns(body)
    assert body["input"] == [
        {"role": "user", "content": [text("x", "input_text"), text("y", "input_text")]},
        turn(text(joined), id="msg_1", status="completed", type="message"),
        "x",
        {"type": "reasoning"},
    ]


@pytest.mark.parametrize("body", [
    {}, {"input": None}, {"input": "Hi"}, {"input": {"role": "assistant", "content": []}}, {"input": [None, 5, "x"]},
    {"input": [{"role": "assistant", "content": "a"}, {"role": "user", "content": [text("x", "input_text")]}]},
])  # fmt: skip
def test_the_rest_is_left_alone(body):
    before = repr(body)
    assert not responses.join_turns(body)
    assert repr(body) == before


@pytest.mark.parametrize("part", [None, 5, {}, text(None), {"type": "input_image", "image_url": URL}])  # type: ignore[arg-type]
def test_what_is_no_text_is_left_for_vllm_to_refuse(part):
    body = {"input": [turn(text("a"), part)]}
    responses.join_turns(body)
    assert body == {"input": [turn(text("a"), part)]}


@pytest.mark.parametrize(("part", "as_chat"), [
    (text("a", "input_text"), text("a", "text")),
    (text("a"), text("a", "text")),
    ({"type": "input_image", "image_url": URL, "detail": "auto"}, {"type": "image_url", "image_url": {"url": URL}}),
    (text("a", "text"), text("a", "text")),
    ({"type": "thinking"}, {"type": "thinking"}),
    ({}, {}),
])  # fmt: skip
def test_mistral_common_gets_the_parts_of_a_chat(monkeypatch, part, as_chat):
    module = installed(monkeypatch, MODULE, _convert_openai_content_chunks=lambda part: part)
    responses.mend()
    assert vars(module)["_convert_openai_content_chunks"](part) == as_chat


def test_without_mistral_common_or_in_another_shape_nothing_happens(monkeypatch):
    responses.mend()
    module = installed(monkeypatch, MODULE)
    responses.mend()
    assert not hasattr(module, "_convert_openai_content_chunks")
