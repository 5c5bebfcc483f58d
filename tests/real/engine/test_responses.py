"""/v1/responses takes what openai-python sends it: parts of text and pictures, and earlier turns."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.support.pictures import plain

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SIZES = ((48, 32), (20, 64))


@pytest.fixture
def openai(running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key=running.key) as client:
        yield client


def parts(text: str, picture: str) -> list[dict[str, Any]]:
    """Of a message: words, a picture, words, a picture; `text` makes one of words, and so on."""
    urls = ["data:image/png;base64," + base64.b64encode(plain(*size)).decode() for size in SIZES]
    pictures: list[dict[str, Any]] = [
        {"type": picture, "image_url": url if picture == "input_image" else {"url": url}} for url in urls
    ]
    return [
        {"type": text, "text": "Compare this"},
        pictures[0],
        {"type": text, "text": "with this."},
        pictures[1],
    ]


def chat_tokens(client: OpenAI, *messages: Any) -> int:
    answer = client.chat.completions.create(model="pixtral", max_tokens=1, messages=list(messages))
    assert answer.usage
    return answer.usage.prompt_tokens


QUESTION: Any = {"role": "user", "content": parts("input_text", "input_image")}
AS_CHAT = {"role": "user", "content": parts("text", "image_url")}
NEXT: Any = {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]}


def test_words_and_pictures_cost_what_they_cost_in_a_chat(openai):
    answer = openai.responses.create(model="pixtral", input=[QUESTION], max_output_tokens=16)
    assert answer.usage.input_tokens == chat_tokens(openai, AS_CHAT)
    assert answer.output_text


def test_they_stream(openai):
    events = list(
        openai.responses.create(model="pixtral", input=[QUESTION], max_output_tokens=16, stream=True)
    )
    assert sum(event.type == "response.output_text.delta" for event in events) > 5
    assert events[-1].response.usage.input_tokens == chat_tokens(openai, AS_CHAT)


def test_earlier_turns_and_instructions_count(openai):
    first = openai.responses.create(
        model="pixtral", input=[QUESTION], max_output_tokens=16, instructions="Be short.", temperature=0
    )
    system = {"role": "system", "content": "Be short."}
    chat = [
        system,
        AS_CHAT,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And now?"},
    ]
    expected = chat_tokens(openai, *chat)
    middle = len(first.output_text) // 2
    turns: list[list[Any]] = [
        [*first.output],
        [{"role": "assistant", "content": first.output_text}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]}],
        [{"role": "assistant", "content": [
            {"type": "output_text", "text": first.output_text[:middle]},
            {"type": "output_text", "text": first.output_text[middle:]},
        ]}],
    ]  # fmt: skip
    for turn in turns:
        answer = openai.responses.create(
            model="pixtral", input=[QUESTION, *turn, NEXT], max_output_tokens=16, instructions="Be short."
        )
        assert answer.usage.input_tokens == expected, turn


REFUSED = """
from mistral_common.protocol.instruct import messages
try:
    messages._convert_openai_content_chunks({"type": "input_text", "text": "x"})
except ValueError as error:
    print(error)
"""


def test_mistral_common_itself_does_not_know_these_parts(venv):
    done = subprocess.run([venv / "bin/python", "-c", REFUSED], capture_output=True, text=True, check=True)
    assert "input_text" in done.stdout, (
        "mistral-common takes parts of Responses: mend() of server/responses.py can go"
    )
