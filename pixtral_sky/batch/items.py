"""What a batch asks about: an ``Item`` for each request, and the lines that come of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from pixtral_sky.batch import openai_format
from pixtral_sky.client.messages import FRAME_TOKENS, messages
from pixtral_sky.pictures.source import Source


@dataclass(frozen=True)
class Defaults:
    """What the command line said for all items; what an item says itself comes before it."""

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

    id: str
    images: int  # how many pictures it has
    line: str = field(default="", kw_only=True)  # of a manifest: list.jsonl#line=17

    @abstractmethod
    def body(self, defaults: Defaults) -> dict[str, Any]:
        """The body of its request to /v1/chat/completions, without ``model`` and streaming. For threads.

        Reads, downloads and shrinks the pictures, each time that it is called. Raises PictureError, for an
        item that can never succeed.
        """

    @abstractmethod
    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:
        """As the function of this name; ``as_json``: the answer was to be JSON."""

    @abstractmethod
    def failure(self, kind: str, message: str) -> dict[str, Any]:
        """The line of the errors file."""

    def tokens(self, body: dict[str, Any]) -> int:
        """Prompt tokens of its ``body`` but for words, as ``ask`` counts; 0 when they cannot be known."""
        tokens = [openai_format.picture_tokens(url) for url in openai_format.picture_urls(body)]
        return sum(tokens) + FRAME_TOKENS if all(tokens) else 0


@dataclass(frozen=True)
class Bad:
    """An input that is no item, and that the run goes on without: ``reason`` is one line."""

    id: str  # unique within a run, among those of the items as well
    reason: str
    openai: bool = False  # whether it is reported in OpenAI's format
    line: str = field(default="", kw_only=True)  # as of an Item

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return (openai_format.error if self.openai else _failure)(self.id, kind, message)


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

    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:
        choice = document["choices"][0]
        text = choice["message"].get("content") or ""
        return {
            "id": self.id,
            "images": [source.name or "data:" for source in self.sources],
            "answer": _value(text) if as_json else text,
            "finish_reason": choice.get("finish_reason"),
            "usage": document.get("usage"),
            "seconds": round(seconds, 3),
        }

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return _failure(self.id, kind, message)


@dataclass(frozen=True)
class Request(Item):
    """A line of OpenAI's format. What the command line says for all is not for it: it says all itself."""

    request: dict[str, Any] = field(repr=False)

    def body(self, defaults: Defaults) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.prepared(self.request)

    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.output(self.id, document)

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return openai_format.error(self.id, kind, message)


def result(
    item: Item, document: dict[str, Any], seconds: float, defaults: Defaults | None = None
) -> dict[str, Any]:
    """The output line for an item and the ``chat.completion`` that it got, in the format of its input.

    In the native format an answer that ``defaults`` wanted as JSON is JSON, unless it is none: then, as
    without ``defaults``, it is the text.
    """
    return item.result(document, seconds, defaults is not None and defaults.as_json)


def failure(item: Item | Bad, error: Exception | str) -> dict[str, Any]:
    """The line of the errors file for an item and what happened to it, or a Bad and its reason."""
    kind = type(error).__name__ if isinstance(error, Exception) else "BadInput"
    return item.failure(kind, str(error).encode(errors="replace").decode())


def _failure(id: str, kind: str, message: str) -> dict[str, Any]:  # noqa: A002
    return {"id": id, "error": {"type": kind, "message": message}}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # cut off, as a rule
        return text
