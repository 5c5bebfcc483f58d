"""What a batch asks about: an ``Item`` for each request, and its lines in the output files."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from pixtral_sky.batch import openai_format
from pixtral_sky.client.messages import FRAME_TOKENS, messages
from pixtral_sky.errors import SchemaError
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source

Seen: TypeAlias = Callable[[Picture], None]


@dataclass(frozen=True)
class Defaults:
    """The command line's options for all items; an item may have its own."""

    prompt: str
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.7
    response_format: dict[str, Any] | None = None


@dataclass(frozen=True)
class Item(ABC):
    """One request. Its ``id`` is unique within a run, valid UTF-8, and the same in the next run.

    Pictures are read in ``body`` and not kept. An item is as large as the names in it, or as its line of a
    manifest with the data: URLs in that.
    """

    openai: ClassVar[bool] = False  # whether it is in OpenAI's format
    id: str
    images: int  # the number of pictures
    line: str = field(default="", kw_only=True)  # its line of a manifest: list.jsonl#line=17

    @abstractmethod
    def body(self, defaults: Defaults, seen: Seen = lambda _: None) -> dict[str, Any]:
        """The body of its request to /v1/chat/completions, without ``model`` and streaming. Thread-safe.

        Each call reads, downloads and shrinks the pictures; ``seen`` gets each. Raises PictureError.
        """

    def tokens(self, body: dict[str, Any]) -> int:
        """Prompt tokens of its ``body`` without the words; 0 when they cannot be known."""
        tokens = [openai_format.picture_tokens(url) for _, url in openai_format.pictures(body)]
        return sum(tokens) + FRAME_TOKENS if all(tokens) else 0


@dataclass(frozen=True)
class BadInput:
    """An input that cannot be asked about, for the ``reason`` in one line. The run goes on without it."""

    id: str  # unique within a run, among items too
    reason: str
    openai: bool = False  # as of an Item
    line: str = field(default="", kw_only=True)  # as of an Item


@dataclass(frozen=True)
class Question(Item):
    """Pictures, and the options of their line in a manifest."""

    sources: tuple[Source, ...]
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None

    def body(self, defaults: Defaults, seen: Seen = lambda _: None) -> dict[str, Any]:
        prompt = defaults.prompt if self.prompt is None else self.prompt
        system = defaults.system if self.system is None else self.system
        pictures = [source.read() for source in self.sources]
        for picture in pictures:
            seen(picture)
        body: dict[str, Any] = {
            "messages": messages([prompt, *pictures], system),
            "max_tokens": self.max_tokens or defaults.max_tokens,
            "temperature": defaults.temperature,
        }
        if defaults.response_format:
            body["response_format"] = defaults.response_format
        return body


@dataclass(frozen=True)
class Request(Item):
    """A line in OpenAI's format, which ignores the defaults."""

    openai = True
    request: dict[str, Any] = field(repr=False)

    def body(self, defaults: Defaults, seen: Seen = lambda _: None) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.prepared(self.request, seen)


def result(
    item: Item, document: dict[str, Any], seconds: float, defaults: Defaults | None = None
) -> dict[str, Any]:
    """The output line for an item and its ``chat.completion``, in the format of the input.

    In the native format, an answer for which ``defaults`` ask for JSON becomes JSON; one that was cut off and
    cannot be parsed stays text.
    """
    if not isinstance(item, Question):
        return openai_format.output(item.id, document)
    choice = document["choices"][0]
    answer = choice["message"].get("content") or ""
    if defaults and defaults.response_format:
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(answer)
    return {
        "id": item.id,
        "images": [source.name or "data:" for source in item.sources],
        "answer": answer,
        "finish_reason": choice.get("finish_reason"),
        "usage": document.get("usage"),
        "seconds": round(seconds, 3),
    }


def failure(item: Item | BadInput, error: Exception | str) -> dict[str, Any]:
    """The line of the errors file for an item and its error, or a BadInput and its reason.

    An answer that does not fit its schema is kept.
    """
    kind = type(error).__name__ if isinstance(error, Exception) else "BadInput"
    message = str(error).encode(errors="replace").decode()
    if item.openai:
        return openai_format.error(item.id, kind, message)
    answer = {"answer": error.answer} if isinstance(error, SchemaError) else {}
    return {"id": item.id, "error": {"type": kind, "message": message, **answer}}
