"""The messages of a question about pictures, and whether they are within the endpoint's limits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, TypeAlias

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import LimitError
from pixtral_sky.pictures.names import is_data_url, is_url
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS
from pixtral_sky.text import shown

FRAME_TOKENS = 3  # of a prompt besides pictures and words: its beginning, and two around the question
MAX_TOKENS, TEMPERATURE = 512, 0.7  # the defaults of an answer
NAMED = 16  # pictures that a command in a message names

# Words and pictures in their order, or OpenAI messages. A Source is a URL that the endpoint fetches.
Question: TypeAlias = Sequence[str | Picture | Source | dict[str, Any]]


def messages(question: Question, system: str = "") -> list[dict[str, Any]]:
    """The OpenAI messages of a question, after the ``system`` prompt if there is one.

    Raises TypeError for what is no question.
    """
    if isinstance(question, str):
        question = [question]
    if not isinstance(question, Sequence) or isinstance(question, bytes):
        raise _no_question(question)
    found: list[Any] = list(question)
    if not all(isinstance(each, dict) for each in found):
        found = [{"role": "user", "content": [_part(each) for each in found]}]
    return [{"role": "system", "content": system}, *found] if system else found


def _part(part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, (Picture, Source)):
        url = part.location if isinstance(part, Source) else part.data_url()
        return {"type": "image_url", "image_url": {"url": url}}
    raise _no_question(part)


def _no_question(found: object) -> TypeError:
    return TypeError(
        f"A question is a list of words and pictures, or of messages; not {type(found).__name__}."
    )


def check_pictures(endpoint: Endpoint, parts: Sequence[str | Source]) -> None:
    """Raises LimitError when the pictures are more than the endpoint takes in one prompt."""
    pictures = [part for part in parts if isinstance(part, Source)]
    if len(pictures) > endpoint.max_images:
        words = [part for part in parts if isinstance(part, str)]
        raise LimitError(
            f"{len(pictures)} pictures, and this endpoint takes {endpoint.max_images} in one prompt.",
            f"Give fewer at a time{_more_images(endpoint, len(pictures))}, send them anyway: --no-check, "
            f"or ask about each by itself: {_batch(pictures, words)}",
        )


def _more_images(endpoint: Endpoint, pictures: int) -> str:
    """The advice, behind a comma, to deploy for so many full pictures; "" if Pixtral has no room for them."""
    from pixtral_sky.memory import DEFAULT_ROOM, MODEL_CONTEXT

    tokens = pictures * MAX_IMAGE_TOKENS
    if tokens >= MODEL_CONTEXT:
        return ""
    # An unknown max_model_len follows from MAX_IMAGES by itself.
    is_short = endpoint.max_model_len is not None and tokens >= endpoint.max_model_len
    wanted = f" --env MAX_MODEL_LEN={min(tokens + DEFAULT_ROOM, MODEL_CONTEXT)}" if is_short else ""
    return f", redeploy with --env MAX_IMAGES={pictures}{wanted}"


def _batch(pictures: Sequence[Source], words: Sequence[str]) -> str:
    """The command that asks about each of the pictures. It names them when they are few, and files."""
    files = list(dict.fromkeys(picture.location for picture in pictures))
    named = len(files) <= NAMED and all(
        file != "-" and not is_url(file) and not is_data_url(file) for file in files
    )
    question = shown(" ".join(words))
    return shlex.join(
        ["pixtral-sky", "batch", *(files if named else ["FILES"]), "-o", "answers.jsonl", "-p", question]
    )


def check_tokens(endpoint: Endpoint, parts: Sequence[str | Picture | Source], max_tokens: int) -> None:
    """Raises LimitError when the pictures and an answer of ``max_tokens`` do not fit its context.

    Words and pictures that the endpoint fetches are not counted: it alone knows their tokens.
    """
    tokens = sum(part.tokens for part in parts if not isinstance(part, (str, Source)))
    needed = tokens + max_tokens + FRAME_TOKENS
    if endpoint.max_model_len is not None and needed > endpoint.max_model_len:
        what, fewer = f"An answer of --max-tokens {max_tokens:,} needs", ""
        if tokens:
            what = f"The pictures ({tokens:,} tokens) and the answer (--max-tokens {max_tokens:,}) need"
            fewer = ", ask about fewer pictures at a time"
        raise LimitError(
            f"{what} {needed:,}, and this endpoint has {endpoint.max_model_len:,} tokens for all.",
            f"Lower --max-tokens{fewer}{longer_context(needed)}, or send it: --no-check",
        )


def longer_context(needed: int) -> str:
    """The advice, behind a comma, to deploy with ``needed`` tokens of context; "" beyond Pixtral's own."""
    from pixtral_sky.memory import MODEL_CONTEXT

    return f", redeploy with --env MAX_MODEL_LEN={needed} or more" if needed <= MODEL_CONTEXT else ""


def fitting(tokens: int, max_images: int, max_model_len: int) -> int:
    """How many pictures of ``tokens`` each go into one prompt, with an answer of MAX_TOKENS.

    A ``max_model_len`` of -1 is as much as the GPUs have room for, which is not known here.
    """
    if max_model_len == -1:
        return max_images
    return max(min(max_images, (max_model_len - FRAME_TOKENS - MAX_TOKENS) // tokens), 0)
