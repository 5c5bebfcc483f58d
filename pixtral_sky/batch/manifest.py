"""The lines of a manifest: their format, and what is wrong with them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from typing import Any, BinaryIO

from pixtral_sky.batch import jsonl, openai_format
from pixtral_sky.batch.inputs import Input
from pixtral_sky.errors import UsageError
from pixtral_sky.pictures import kinds, pdf
from pixtral_sky.pictures.names import is_url
from pixtral_sky.text import is_unicode, os_reason, shown

FIELDS = ("id", "images", "prompt", "system", "max_tokens")
LOOKED_AT = 100  # lines that are searched for the format

# The lines of standard input that were read to learn its format.
_read_ahead: weakref.WeakKeyDictionary[BinaryIO, list[bytes]] = weakref.WeakKeyDictionary()


def called(given: Input) -> str:
    """The name of a manifest in messages."""
    return "standard input" if given.path == "-" else shown(given.path)


def _stdin() -> BinaryIO:
    if sys.stdin is None:  # the caller closed it
        raise UsageError("Standard input is closed, and '-' is the manifest on it.")
    return sys.stdin.buffer


def lines(given: Input) -> Generator[bytes, None, None]:
    """Its lines. Raises OSError."""
    if given.path == "-":
        yield from _read_ahead.pop(_stdin(), [])
        yield from jsonl.lines(_stdin())
    else:
        with open(given.path, "rb") as file:
            yield from jsonl.lines(file)


def speaks_openai(given: Input) -> bool:
    """Whether it is in the format of OpenAI's Batch API, by its first line that is an object.

    ``lines`` returns what was read of standard input again. Raises UsageError.
    """
    read: list[bytes] = []
    try:
        with closing(lines(given)) as all_lines:
            for line in islice(all_lines, LOOKED_AT):
                read.append(line)
                entry = next(jsonl.objects([line]), (0, ""))[1]
                if isinstance(entry, dict):
                    return openai_format.is_request(entry)
    except OSError as error:
        raise UsageError(f"{called(given)} cannot be read: {os_reason(error)}.") from error
    finally:
        if given.path == "-":
            _read_ahead[_stdin()] = read
    head = b"".join(read)[: kinds.HEAD]
    if kinds.is_picture(head) or kinds.of(head, ""):
        hint = "About one picture: pixtral-sky ask -" if given.path == "-" else "Give it its own extension."
        raise UsageError(f"{called(given)} is no text, and a batch takes JSON lines there.", hint)
    return False


def problem(entry: dict[str, Any]) -> str:
    """What is wrong with a line of a manifest, or ""."""
    for name in entry:
        if name not in FIELDS:
            return f'unknown field "{shown(name)}" (there are {", ".join(FIELDS)})'
    for name in ("id", "prompt", "system"):
        text = entry.get(name, "text")
        if not isinstance(text, str) or not is_unicode(text) or not (text or name == "system"):
            return f'"{name}" has to be a string' + ("" if name == "system" else ", and not empty")
    pictures = entry.get("images")
    if not isinstance(pictures, list) or not pictures:
        return '"images" has to be a list with at least one path or URL'
    for picture in pictures:
        if not isinstance(picture, str) or not picture or not is_unicode(picture):
            return '"images" has to be a list of paths and URLs'
        if pdf.is_pdf(picture) and not is_url(picture):
            return f'"images" has a PDF; say which page of it: "{shown(picture)}#page=1"'
    most = entry.get("max_tokens", 1)
    if type(most) is not int or most < 1:
        return '"max_tokens" has to be a whole number from 1'
    return ""
