"""The arguments of ``ask`` and ``tokens`` in their order: words, and sources of pictures."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.picture import EXTENSIONS, directory_error
from pixtral_sky.pictures.source import Source, is_url
from pixtral_sky.text import is_unicode, natural, os_reason, shown

DEFAULT_QUESTION = "Describe this image in detail please."


def parse(arguments: Sequence[str]) -> list[str | Source]:
    """What each argument is. DEFAULT_QUESTION comes first when there are pictures and no words.

    An argument is, by the first of these that fits:

    - ``-``: the picture on standard input
    - ``data:...``, ``http://...`` and ``https://...`` without whitespace: a picture
    - the path of a file: a picture, or all pages of a PDF; ``~`` is the home directory
    - ``a.pdf#page=3``: a page
    - a glob that matches files: those, in natural order (a2 before a10)
    - text that looks like a path: an error, as a mistyped path is no question
    - words

    Raises UsageError when there is nothing to ask, for an empty argument, and for a second ``-``;
    PictureError for a directory, and for what looks like a path and leads to nothing.
    """
    parts = [part for argument in arguments for part in _parse(argument)]
    if not parts:
        raise UsageError(
            "There is nothing to ask.", 'Try: pixtral-sky ask "What is in this picture?" photo.jpg'
        )
    _check_stdin(parts)
    if not any(isinstance(part, str) for part in parts):
        parts.insert(0, DEFAULT_QUESTION)
    return parts


def sources(arguments: Sequence[str]) -> list[Source]:
    """The same for arguments that may only be pictures. Raises as ``parse``, and UsageError for words."""
    found: list[Source] = []
    for argument in arguments:
        for part in _parse(argument, may_be_words=False):
            if isinstance(part, str):
                raise UsageError(f"{shown(argument)!r} is no picture.", "Give files, globs, URLs, or '-'.")
            found.append(part)
    _check_stdin(found)
    return found


def _check_stdin(parts: Sequence[str | Source]) -> None:
    if parts.count(Source("-")) > 1:
        raise UsageError("Standard input ('-') can be one picture only.")


def _parse(argument: str, may_be_words: bool = True) -> Sequence[str | Source]:
    if not argument.strip():
        raise UsageError("An empty argument is neither words nor a picture.")
    one_word = not re.search(r"\s", argument)
    if argument == "-" or re.match(r"data:\S", argument, re.IGNORECASE) or (one_word and is_url(argument)):
        return [Source(argument)]

    # No path has a line break, or is this long.
    may_be_path = not re.search(r"[\0\n]", argument) and len(argument) <= 4096
    looks_like_path = may_be_path and (
        _is_picture(argument) or (one_word and ("/" in argument or argument.startswith(("~", "."))))
    )
    # Path.expanduser would fail for a user who does not exist.
    path = os.path.expanduser(argument) if may_be_path else argument  # noqa: PTH111
    path, page = pdf.split(path)

    reason = "no such file"
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = os_reason(error)
    else:
        if stat.S_ISDIR(mode):
            raise directory_error(argument)
        return _pictures(path, page)

    if may_be_path and glob.has_magic(path):
        # "**" in a sentence must not search the whole disk.
        found = glob.glob(path, recursive=looks_like_path)  # noqa: PTH207 (Path.glob takes no absolute path)
        # The words "Why?" match a picture Why1.jpg, but not a file that happens to be called Why1.
        files = [f for f in found if Path(f).is_file() and (looks_like_path or _is_picture(f))]
        if files:
            return [picture for file in sorted(files, key=natural) for picture in _pictures(file)]
        reason = "nothing matches"

    if looks_like_path:
        # One word that ends as pictures do is never a question.
        may_be_words = may_be_words and not (one_word and _is_picture(argument))
        hint = "If these are words, add a space at the end." if may_be_words else ""
        raise PictureError(f"{shown(argument)}: {reason}.", hint)
    if not is_unicode(argument):
        raise UsageError(f"The words {shown(argument)!r} are not valid UTF-8.")
    return [argument]


def _pictures(path: str, page: int = 0) -> list[Source]:
    """A picture, a page of a PDF, or all its pages."""
    if page or not pdf.is_pdf(path):
        return [Source(path, page)]
    return [Source(path, number) for number in range(1, pdf.pages(path) + 1)]


def _is_picture(path: str) -> bool:
    path, _ = pdf.split(path)
    return Path(path).suffix.lower() in EXTENSIONS or pdf.is_pdf(path)
