"""A streamed answer, assembled from its chunks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from pixtral_sky.errors import BrokenAnswer, Failed, Refused

# Fields whose text grows from chunk to chunk: the answer, its reasoning, and the arguments of a tool call.
_GROWING = ("content", "refusal", "reasoning", "reasoning_content", "arguments")


class Answer:
    """A streamed answer. Iterate it, once, for its text as it arrives, or take it ``whole``.

    ``text`` is what has arrived so far; ``usage`` (the API's counts of tokens) and ``finish_reason`` are
    known at the end. ``seconds`` count from ``asked``, a ``time.monotonic()``: until its end, its first text,
    and its first chunk, which vLLM sends with the first token, be that text or not.

    ``events`` are the stream's, and raise ConnectionError when it is cut, and ValueError when it is no stream
    of events; ``reason`` makes one line of an error in it. There are up to ``choices``. An answer that fails
    before its caller has seen any of it is asked ``again``: the events of another one, or None.

    Raises Refused when an error comes instead of an answer (Failed, unless the request is at fault), and
    BrokenAnswer when the answer is incomplete.
    """

    def __init__(
        self,
        events: Iterator[str],
        asked: float,
        reason: Callable[[object], str],
        again: Callable[[str], Iterator[str] | None] = lambda _: None,
        choices: int = 1,
    ) -> None:
        self._asked = asked
        self._reason = reason
        self._again = again
        self._choices = choices
        self._is_seen = False  # some of its text has been given away
        self.seconds_to_chunk = 0.0
        self.seconds_to_first = 0.0
        self.seconds = 0.0
        self._begin(events)

    def _begin(self, events: Iterator[str]) -> None:
        self._events = events
        # All chunks so far, merged. There is one choice even if no chunk has any.
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        self._whole: dict[str, Any] = {"choices": [choice]}
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def usage(self) -> dict[str, Any]:
        """What the server reports, without counts that are no numbers."""
        found = self._whole.get("usage")
        if not isinstance(found, dict):
            return {}
        return {k: v for k, v in found.items() if not k.endswith("_tokens") or isinstance(v, int)}

    @property
    def finish_reason(self) -> str:
        return str(self._whole["choices"][0]["finish_reason"] or "")

    def whole(self) -> dict[str, Any]:
        """Read it to its end; the ``chat.completion`` that a request without streaming would get."""
        for _ in self._pieces():
            pass
        choices = []
        for choice in sorted(self._whole["choices"], key=lambda choice: choice["index"]):
            message = choice.pop("delta")
            for call in message.get("tool_calls") or []:
                call.pop("index", None)  # only a stream has it
            choices.append({"index": choice["index"], "message": message, **choice})
        return {**self._whole, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def __iter__(self) -> Iterator[str]:
        for text in self._pieces():
            self._is_seen = True
            yield text

    def _pieces(self) -> Iterator[str]:
        """The texts of the first answer that is whole, and of those before it that nobody has seen."""
        while True:
            try:
                yield from self._once()
                return
            except (BrokenAnswer, Failed) as error:
                events = None if self._is_seen else self._again(error.what)
                if events is None:
                    raise
                self._begin(events)

    def _once(self) -> Iterator[str]:
        done = False
        try:
            for event in self._events:
                # Read to the end of the stream, so that the connection can be used again.
                done = done or event == "[DONE]"
                if not done and (text := self._read(event)):
                    self.seconds_to_first = self.seconds_to_first or time.monotonic() - self._asked
                    self._texts.append(text)
                    yield text
        except ConnectionError as error:
            if not done:
                raise self._broken(str(error)) from error.__cause__
        except ValueError as error:
            raise self._broken("stopped making sense") from error
        finally:
            self.seconds = time.monotonic() - self._asked
        if not done and not all(choice["finish_reason"] for choice in self._whole["choices"]):
            raise self._broken("broke off")

    def _read(self, event: str) -> str:
        """Merge an event, and return its text for the first choice."""
        try:
            chunk = json.loads(event)
            if error := chunk.get("error") or (chunk.get("object") == "error" and chunk):
                raise self._given_up(error)
            text = ""
            for choice in chunk["choices"] or []:  # none in the last chunk, which has the usage
                self.seconds_to_chunk = self.seconds_to_chunk or time.monotonic() - self._asked
                choice["index"] = int(choice.get("index") or 0)
                if not 0 <= choice["index"] < self._choices:
                    raise ValueError("a choice that was not asked for")
                choice["delta"] = choice.get("delta") or {}
                if not choice["index"]:
                    text += choice["delta"].get("content") or ""
            _merge(self._whole, chunk)
            return text
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise self._broken("stopped making sense") from error

    def _given_up(self, error: object) -> Exception:
        reason = self._reason(error) or "no reason is given."
        if self._texts:
            return self._broken("was given up", f": {reason}")
        code = error.get("code") if isinstance(error, dict) else None
        # A server that dies puts its 500 into the stream, as the head has been sent.
        return (
            Refused(reason)
            if re.fullmatch("4[0-9][0-9]", str(code))
            else Failed(reason, "Its log tells more.")
        )

    def _broken(self, how: str, why: str = ".") -> BrokenAnswer:
        return BrokenAnswer(f"The answer {how} after {len(self.text):,} characters{why}", "Ask again.")


def _merge(whole: dict[str, Any], chunk: dict[str, Any]) -> None:
    """Add a chunk to the ``whole``: https://platform.openai.com/docs/api-reference/chat-streaming

    Texts in _GROWING are appended. Items of lists are merged with the one of the same ``index``, or appended.
    All else is replaced.
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
                same = (each for each in whole[name] if each.get("index") == index)
                if index is not None and (known := next(same, None)):
                    _merge(known, item)
                else:
                    whole[name].append(item)
        else:
            whole[name] = old + new if old and name in _GROWING else new
