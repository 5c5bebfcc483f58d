"""What a page's chat says -> the messages of a request.

A message of the page is Gradio's: its role, and its content in parts, each a text or a file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import check_pictures, check_tokens, messages
from pixtral_sky.errors import LimitError, PictureError, PixtralSkyError, Refused, UsageError
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION, sources
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source

FULL = "Lower the tokens of the answer, or begin a new chat: the bin above it."
KEPT = 64  # pictures, as they are sent: each turn sends them all

Message = Mapping[str, Any]
Parts = list[str | Picture]


def error(error: PixtralSkyError) -> dict[str, Any]:
    """The message that stands where an answer would. It and its question are sent no more."""
    is_full = isinstance(error, Refused) and re.search("context length|in one prompt", error.what)
    line = f"Error: {error} {FULL}" if is_full else f"Error: {error}"
    return {"role": "assistant", "content": line, "metadata": {"id": "error"}}


def read(
    said: Sequence[Message], endpoint: Endpoint, max_tokens: int, check: bool
) -> list[tuple[str, Parts]]:
    """Each message that is sent: its role, its words and its pictures, in their order.

    With ``check``, raises LimitError when they are more than the endpoint is known to take. Raises
    PictureError, and UsageError when the last one is empty.
    """
    found = [(str(message["role"]), list(_parts(message["content"]))) for message in _answered(said)]
    try:
        if check:  # before any picture is shrunk
            check_pictures(endpoint, [part for _, parts in found for part in parts])
        turns = [
            (role, [_picture(p) if isinstance(p, Source) else p for p in parts]) for role, parts in found
        ]
        if check:
            check_tokens(endpoint, [part for _, parts in turns for part in parts], max_tokens)
    except LimitError as over:
        raise LimitError(over.what.replace("--max-tokens ", ""), FULL) from None
    if not turns[-1][1]:
        raise UsageError("There is nothing to ask.")
    for role, parts in turns:
        if role == "user" and not any(isinstance(part, str) for part in parts):
            parts.append(DEFAULT_QUESTION)
    return turns


def request(turns: Sequence[tuple[str, Parts]], system: str) -> list[dict[str, Any]]:
    """The OpenAI messages."""
    found = [{**messages(parts)[0], "role": role} for role, parts in turns]
    return messages(found, system)


def tokens(parts: Parts) -> str:
    """The pictures by their names, with what each takes of a prompt."""
    pictures = [part for part in parts if not isinstance(part, str)]
    return ", ".join(
        f"{Path(one.name).name}{one.part and f' ({one.part})'}: {one.tokens:,}" for one in pictures
    )


def _answered(said: Sequence[Message]) -> Iterator[Message]:
    """Without errors, and the questions that had them."""
    for message, after in zip(said, [*said[1:], {}], strict=True):
        if not _is_error(message) and not _is_error(after):
            yield message


def _is_error(message: Message) -> bool:
    return (message.get("metadata") or {}).get("id") == "error"


def _parts(content: Sequence[Message]) -> Iterator[str | Source]:
    for part in content:
        if part["type"] == "text":
            yield part["text"]
        else:
            for _, source in sources([path := part["file"]["path"]]):
                if isinstance(source, PictureError):
                    raise _named(source, path)
                yield source


@functools.lru_cache(KEPT)
def _picture(source: Source) -> Picture:
    """Read once, as Gradio names a file by what is in it."""
    try:
        return source.read()
    except PictureError as unfit:
        raise _named(unfit, source.location) from None


def _named(unfit: PictureError, path: str) -> PictureError:
    """The error by the name of the file that its user knows, without Gradio's folder."""
    return PictureError(unfit.what.replace(f"{Path(path).parent}/", ""), unfit.hint)
