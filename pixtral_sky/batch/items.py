"""What a batch asks about: an ``Item`` for each request, and the lines that come of it."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pixtral_sky.batch import openai_format
from pixtral_sky.client.messages import FRAME_TOKENS, messages
from pixtral_sky.pictures.source import Source


@dataclass(frozen=True)
class Defaults:
    """What the command line said for all items; an item may say otherwise."""

    prompt: str
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.7
    response_format: dict[str, Any] | None = None

    @property
    def as_json(self) -> bool:
        """Whether answers are to be JSON."""
        return (self.response_format or {}).get("type") in ("json_schema", "json_object")


@dataclass(frozen=True)
class Item(ABC):
    """One request. Its ``id`` is unique within a run, valid UTF-8, and the same in the next run.

    Pictures are read in ``body``, and not kept: an item is as large as the names in it, or as the line of
    the manifest that it is from, with the data: URLs in that.
    """

    openai: ClassVar[bool] = False  # whether it is in OpenAI's format
    id: str
    images: int  # how many pictures it has
    line: str = field(default="", kw_only=True)  # of a manifest: list.jsonl#line=17

    @abstractmethod
    def body(self, defaults: Defaults) -> dict[str, Any]:
        """The body of its request to /v1/chat/completions, without ``model`` and streaming. Thread-safe.

        Reads, downloads and shrinks the pictures at each call. Raises PictureError.
        """

    def tokens(self, body: dict[str, Any]) -> int:
        """Prompt tokens of its ``body`` but for words, as ``ask`` counts; 0 when they cannot be known."""
        tokens = [openai_format.picture_tokens(url) for url in openai_format.picture_urls(body)]
        return sum(tokens) + FRAME_TOKENS if all(tokens) else 0


@dataclass(frozen=True)
class Bad:
    """An input that is no item, and that the run goes on without: ``reason`` is one line."""

    id: str  # unique within a run, among those of the items as well
    reason: str
    openai: bool = False  # as of an Item
    line: str = field(default="", kw_only=True)  # as of an Item


@dataclass(frozen=True)
class Question(Item):
    """Pictures, and what a line of a manifest says of them."""

    sources: tuple[Source, ...]
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None

    def body(self, defaults: Defaults) -> dict[str, Any]:
        prompt = defaults.prompt if self.prompt is None else self.prompt
        system = defaults.system if self.system is None else self.system
        body: dict[str, Any] = {
            "messages": messages([prompt, *(source.read() for source in self.sources)], system),
            "max_tokens": self.max_tokens or defaults.max_tokens,
            "temperature": defaults.temperature,
        }
        if defaults.response_format:
            body["response_format"] = defaults.response_format
        return body


@dataclass(frozen=True)
class Request(Item):
    """A line in OpenAI's format. It ignores the defaults."""

    openai = True
    request: dict[str, Any] = field(repr=False)

    def body(self, defaults: Defaults) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.prepared(self.request)


def result(
    item: Item, document: dict[str, Any], seconds: float, defaults: Defaults | None = None
) -> dict[str, Any]:
    """The output line for an item and the ``chat.completion`` that it got, in the format of its input.

    In the native format an answer that ``defaults`` wanted as JSON becomes JSON; what cannot be parsed, as it
    was cut off, stays text.
    """
    if not isinstance(item, Question):
        return openai_format.output(item.id, document)
    choice = document["choices"][0]
    answer = choice["message"].get("content") or ""
    if defaults and defaults.as_json:
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


def failure(item: Item | Bad, error: Exception | str) -> dict[str, Any]:
    """The line of the errors file for an item and what happened to it, or a Bad and its reason."""
    kind = type(error).__name__ if isinstance(error, Exception) else "BadInput"
    message = str(error).encode(errors="replace").decode()
    if item.openai:
        return openai_format.error(item.id, kind, message)
    return {"id": item.id, "error": {"type": kind, "message": message}}
