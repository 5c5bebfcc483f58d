"""What ``ask`` does, free of the command line and of the network: the messages, the checks, the answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import BrokenAnswer, LimitError, Refused, SchemaError, UsageError
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS

if TYPE_CHECKING:
    from pixtral_sky.pictures.picture import Picture

# Tokens of a prompt beside pictures and words: its beginning, and the two that frame the question.
FRAME_TOKENS = 3

# What of an answer comes in pieces: its text, a model's thoughts, and what a tool is called with.
_GROWING = ("content", "refusal", "reasoning", "reasoning_content", "arguments")


@dataclass(frozen=True)
class RemoteUrl:
    """A picture that the endpoint fetches itself."""

    url: str


def printable(text: str) -> str:
    """``text`` without the control characters that a terminal acts on; newlines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def messages(parts: Sequence[str | Picture | RemoteUrl], system: str = "") -> list[dict[str, Any]]:
    """OpenAI messages: words and pictures in the order given, after the ``system`` prompt if there is one."""
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = part.url if isinstance(part, RemoteUrl) else part.data_url()
            content.append({"type": "image_url", "image_url": {"url": url}})
    question = {"role": "user", "content": content}
    return [{"role": "system", "content": system}, question] if system else [question]


def check_pictures(endpoint: Endpoint, pictures: int) -> None:
    """Raises LimitError when they are more than the endpoint takes in one prompt."""
    if pictures > endpoint.max_images:
        # Where it is not known, the script chooses it by MAX_IMAGES.
        short = endpoint.max_model_len is not None and pictures * MAX_IMAGE_TOKENS >= endpoint.max_model_len
        wanted = f" --env MAX_MODEL_LEN={pictures * MAX_IMAGE_TOKENS + 16384}" if short else ""
        raise LimitError(
            f"{pictures} pictures, and this endpoint takes {endpoint.max_images} in one prompt.",
            f"Ask about fewer at a time, redeploy with --env MAX_IMAGES={pictures}{wanted}, "
            "or send them: --no-check",
        )


def check_tokens(endpoint: Endpoint, parts: Sequence[str | Picture | RemoteUrl], max_tokens: int) -> None:
    """Raises LimitError when the pictures and an answer of ``max_tokens`` cannot be within its context.

    Words count for nothing here, as do pictures that the endpoint fetches: it alone knows their tokens.
    """
    tokens = sum(part.tokens for part in parts if not isinstance(part, (str, RemoteUrl)))
    needed = tokens + max_tokens + FRAME_TOKENS
    if endpoint.max_model_len is not None and needed > endpoint.max_model_len:
        what, fewer = f"An answer of --max-tokens {max_tokens:,} needs", ""
        if tokens:
            what = f"The pictures ({tokens:,} tokens) and the answer (--max-tokens {max_tokens:,}) need"
            fewer = "ask about fewer pictures at a time, "
        raise LimitError(
            f"{what} {needed:,}, and this endpoint has {endpoint.max_model_len:,} tokens for all.",
            f"Lower --max-tokens, {fewer}raise its MAX_MODEL_LEN, or send it: --no-check",
        )


class Answer:
    """A streamed answer. Iterate it, once, for its pieces of text as they arrive, or take it ``whole``.

    ``text`` is what has arrived so far; ``usage`` (the API's counts of tokens) and ``finish_reason`` are
    known at the end. ``seconds`` count from ``asked``, which is one of ``time.monotonic()``. ``events`` are
    the stream's, and raise ConnectionError when it is cut; ``reason`` makes one line of an error in it.

    Raises Refused when an error comes in place of an answer, and BrokenAnswer when it ends before its end.
    """

    def __init__(self, events: Iterator[str], asked: float, reason: Callable[[object], str]) -> None:
        self._events = events
        self._asked = asked
        self._reason = reason
        # All chunks so far as one. There is a choice even if none of them has any.
        self._whole: dict[str, Any] = {
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            ]
        }
        self._pieces: list[str] = []
        self.seconds_to_first = 0.0
        self.seconds = 0.0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def usage(self) -> dict[str, Any]:
        return dict(self._whole.get("usage") or {})

    @property
    def finish_reason(self) -> str:
        return str(self._whole["choices"][0]["finish_reason"] or "")

    def whole(self) -> dict[str, Any]:
        """All of it, in the ``chat.completion`` that it would be, had it not been streamed."""
        for _ in self:
            pass
        choices = []
        for choice in sorted(self._whole["choices"], key=lambda choice: choice["index"]):
            message = choice.pop("delta")
            for call in message.get("tool_calls") or []:
                call.pop("index", None)  # only a stream has it
            choices.append({"index": choice["index"], "message": message, **choice})
        return {**self._whole, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def __iter__(self) -> Iterator[str]:
        done = False
        try:
            for event in self._events:
                # Read to the end even so: the connection is then good for the next request.
                done = done or event == "[DONE]"
                if not done and (piece := self._read(event)):
                    self.seconds_to_first = self.seconds_to_first or time.monotonic() - self._asked
                    self._pieces.append(piece)
                    yield piece
        except ConnectionError as error:
            if not done:
                raise self._broken(str(error)) from error.__cause__
        finally:
            self.seconds = time.monotonic() - self._asked
        if not done and not all(choice["finish_reason"] for choice in self._whole["choices"]):
            raise self._broken("broke off")

    def _read(self, event: str) -> str:
        """The text that one event has for the first choice; the rest of it is kept."""
        try:
            chunk = json.loads(event)
            if error := chunk.get("error"):
                reason = self._reason(error) or "no reason is given."
                raise self._broken("was given up", f": {reason}") if self._pieces else Refused(reason)
            text = ""
            for choice in chunk["choices"]:  # none in the last one, which has the usage alone
                choice["index"] = int(choice.get("index") or 0)
                if not choice["index"]:
                    text += choice["delta"].get("content") or ""
            _merge(self._whole, chunk)
            return text
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise self._broken("stopped making sense") from error

    def _broken(self, how: str, why: str = ".") -> BrokenAnswer:
        return BrokenAnswer(f"The answer {how} after {len(self.text):,} characters{why}", "Ask again.")


def _merge(whole: dict[str, Any], chunk: dict[str, Any]) -> None:
    """Add to the ``whole`` what a chunk of it says.

    Texts in _GROWING go on, items of lists are further ones or belong to that of the same ``index``, and all
    else is what was said last. As in https://platform.openai.com/docs/api-reference/chat-streaming
    """
    for name, new in chunk.items():
        old = whole.get(name)
        if new is None:
            whole.setdefault(name, None)
        elif isinstance(new, dict):
            whole[name] = old or {}
            _merge(whole[name], new)
        elif isinstance(new, list):
            whole[name] = old or []
            for item in new:
                index = item.get("index") if isinstance(item, dict) else None
                known = index is not None and next(
                    (each for each in whole[name] if each.get("index") == index), None
                )
                if known:
                    _merge(known, item)
                else:
                    whole[name].append(item)
        else:
            whole[name] = old + new if old and name in _GROWING else new


class Schema:
    """The JSON Schema that an answer has to fit, from a file.

    Raises UsageError when it cannot be read, is no JSON Schema, or refers to something outside of itself.
    """

    def __init__(self, path: Path) -> None:
        import jsonschema
        from referencing.jsonschema import EMPTY_REGISTRY

        try:
            self.schema = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(f"The schema {str(path)!r} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The schema {str(path)!r} is no JSON: {error}.") from error
        if not isinstance(self.schema, dict):
            raise UsageError(f"The schema {str(path)!r} is no JSON object.")
        for ref in _refs(self.schema):
            # The server's grammar follows no other, and to fetch one here would be a surprise.
            if not ref.startswith("#"):
                raise UsageError(f"The schema {str(path)!r} refers to {ref!r}, which is outside of it.")
        kind = jsonschema.validators.validator_for(self.schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise UsageError(
                f"The schema {str(path)!r} is no JSON Schema: {_where_and_what(error)}"
            ) from error
        self._validator = kind(self.schema, registry=EMPTY_REGISTRY)  # its default one downloads
        self._name = re.sub(r"[^a-zA-Z0-9_-]", "_", path.stem)[:64] or "answer"

    @property
    def response_format(self) -> dict[str, Any]:
        """The field of a request that holds the answer to it."""
        json_schema = {"name": self._name, "schema": self.schema, "strict": True}
        return {"type": "json_schema", "json_schema": json_schema}

    def check(self, text: str, finish_reason: str, max_tokens: int) -> None:
        """Raises SchemaError when the answer ``text``, which ended for ``finish_reason``, does not fit."""
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        wrong = ""
        try:
            if error := best_match(self._validator.iter_errors(json.loads(text))):
                wrong = f"The answer does not fit the schema: {_where_and_what(error)}"
        except ValueError as bad:
            wrong = f"The answer is no JSON: {bad}."
        except (Unresolvable, RecursionError) as bad:
            raise UsageError(
                "The schema refers to something that is not in it, or to itself without end."
            ) from bad
        if wrong and finish_reason == "length":
            raise SchemaError(f"The answer was cut off: --max-tokens {max_tokens} is too small.", "Raise it.")
        if wrong:
            raise SchemaError(wrong, "The whole answer: the same with --json")


def _refs(schema: Any) -> Iterator[str]:
    """All that a schema refers to."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from _refs(item)


def _where_and_what(error: Any) -> str:
    """A validation error in one line: the path in the document, and what is wrong there."""
    text = " ".join(printable(f"{error.json_path}: {error.message}").split())
    return f"{text[:297]}..." if len(text) > 300 else f"{text}."
