"""The messages of a question, and the limits of an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import FRAME_TOKENS, check_pictures, check_tokens, fitting, messages
from pixtral_sky.errors import LimitError
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source

SMALL = Picture("a.png", 400, 400, "image/png", b"\x89PNG")  # 650 tokens
LARGE = Picture("b.jpg", 1024, 1024, "image/jpeg", b"\xff\xd8")  # 4,160 tokens


def picture_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_words_and_pictures_keep_their_order() -> None:
    assert messages(["What?", SMALL, "And", Source("https://h/c.png"), LARGE, "?"]) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                picture_part("data:image/png;base64,iVBORw=="),
                {"type": "text", "text": "And"},
                picture_part("https://h/c.png"),
                picture_part("data:image/jpeg;base64,/9g="),
                {"type": "text", "text": "?"},
            ],
        }
    ]


@pytest.mark.parametrize("question", [{"role": "user", "content": "x"}, b"x", None, 3, ["x", b"y"]])
def test_what_is_no_question(question: Any) -> None:
    with pytest.raises(TypeError, match="A question is a list of words and pictures, or of messages; not"):
        messages(question)


def test_a_system_prompt_comes_first() -> None:
    first, second = messages([SMALL], "Be short.")
    assert first == {"role": "system", "content": "Be short."}
    assert second["role"] == "user"


def test_as_many_pictures_as_the_endpoint_takes() -> None:
    files = [Source(f"{number}.jpg") for number in range(40)]
    check_pictures(Endpoint("http://h"), ["What?", *files[:4]])
    check_pictures(Endpoint("http://h", max_images=0), ["What?"])
    with pytest.raises(LimitError) as caught:
        check_pictures(Endpoint("http://h"), ["What?", *files[:5]])
    assert caught.value.what == "5 pictures, and this endpoint takes 4 in one prompt."
    assert "redeploy with --env MAX_IMAGES=5, " in caught.value.hint
    assert "--no-check" in caught.value.hint
    with pytest.raises(LimitError, match=r"--env MAX_IMAGES=5 --env MAX_MODEL_LEN=24896, "):
        check_pictures(Endpoint("http://h", max_model_len=20_800), files[:5])


def test_no_more_is_advised_than_pixtral_has() -> None:
    """128,000 tokens hold 30 full pictures."""
    files = [Source(f"{number}.jpg") for number in range(31)]
    endpoint = Endpoint("http://h", max_model_len=32_768)
    with pytest.raises(LimitError, match=r"--env MAX_IMAGES=30 --env MAX_MODEL_LEN=128000, "):
        check_pictures(endpoint, files[:30])
    with pytest.raises(LimitError) as caught:
        check_pictures(endpoint, files)
    assert "--env" not in caught.value.hint
    for most, advised in ((127_997, True), (127_998, False)):
        with pytest.raises(LimitError) as caught:
            check_tokens(endpoint, ["words"], most)
        assert ("--env MAX_MODEL_LEN=128000 or more" in caught.value.hint) is advised


@pytest.mark.parametrize(
    ("parts", "command"),
    [
        (["What's", "it?", *map(Source, ("a b.jpg", "c.jpg"))], """'a b.jpg' c.jpg -o answers.jsonl -p 'What'"'"'s it?'"""),
        ([Source("a.pdf", 1), Source("a.pdf", 2), "What?"], "a.pdf -o answers.jsonl -p 'What?'"),
        ([Source("a.jpg"), Source("https://h/b.jpg"), "Hi"], "FILES -o answers.jsonl -p Hi"),
        ([Source("-"), Source("data:,x"), "Hi"], "FILES -o answers.jsonl -p Hi"),
        (["Hi", *(Source(f"{number}.jpg") for number in range(17))], "FILES -o answers.jsonl -p Hi"),
    ],
)  # fmt: skip
def test_a_batch_asks_about_as_many_as_there_are(parts: list[str | Source], command: str) -> None:
    with pytest.raises(LimitError) as caught:
        check_pictures(Endpoint("http://h", max_images=1), parts)
    assert caught.value.hint.endswith(f"ask about each by itself: pixtral-sky batch {command}")


def test_as_many_tokens_as_the_context_has() -> None:
    endpoint = Endpoint("http://h", max_model_len=4160 + 650 + 512 + FRAME_TOKENS)
    parts: list[str | Picture | Source] = ["words", SMALL, LARGE, Source("https://h/c.png")]
    check_tokens(endpoint, parts, 512)
    with pytest.raises(LimitError) as caught:
        check_tokens(endpoint, parts, 513)
    assert "(4,810 tokens)" in caught.value.what
    assert "(--max-tokens 513) need 5,326" in caught.value.what
    assert "has 5,325 tokens for all." in caught.value.what
    assert "redeploy with --env MAX_MODEL_LEN=5326 or more" in caught.value.hint
    assert "--no-check" in caught.value.hint
    check_tokens(Endpoint("http://h", max_model_len=None), parts, 10**9)


@pytest.mark.parametrize(
    ("tokens", "context", "expected"),
    [(650, 32_768, 4), (4160, 8_192, 1), (4160, 12_995, 3), (4160, 12_994, 2), (4160, 600, 0), (4160, -1, 4)],
)
def test_how_many_pictures_fit_into_one_prompt(tokens: int, context: int, expected: int) -> None:
    assert fitting(tokens, 4, context) == expected
