"""Texts of other programs, safe to print; the closest name; the natural order of names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def reason(log: Iterable[str]) -> str:
    """The line of a log that tells best why the server ended: the script's own, an error, or the last."""
    lines = [line.strip() for line in log if line.strip()]
    script = [line for line in lines if line.startswith("pixtral: ")]
    errors = [line for line in lines if "rror: " in line]
    return (script or errors or lines or ["it said nothing"])[-1][:300]


def os_reason(error: Exception, otherwise: str = "not a path") -> str:
    """The system's reason, without the file's name; ``otherwise`` for an error that is not the system's."""
    return getattr(error, "strerror", None) or otherwise


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "line"), counted(2000, "line")
    ('1 line', '2,000 lines')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def closest(word: str, names: Iterable[str]) -> str:
    """The name most like ``word``, whatever the case; "" when none is alike."""
    known = {each.lower(): each for each in names}
    found = difflib.get_close_matches(word.lower(), known, 1)
    return known[found[0]] if found else ""


def natural(name: str) -> tuple[str, str]:
    """A key that sorts a2 before a10, a007 beside a7, and A before b."""

    def number(digits: re.Match[str]) -> str:
        value = digits[0].lstrip("0")
        return f"{len(value):03}{value}"

    return re.sub(r"[0-9]+", number, name.casefold()), name


def printable(text: str) -> str:
    """``text`` without control characters, which a terminal obeys; newlines and tabs stay.

    Those that turn the direction of writing go too: with them, a line reads as another one.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


def shown(name: str) -> str:
    """``name`` for one line of a terminal: printable, and at most 160 characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 160 else f"{text[:100]}...{text[-57:]}"


def quoted(text: str) -> str:
    """What a user typed, in quotes for a message: printable, and at most 60 characters."""
    return repr(printable(text if len(text) <= 60 else f"{text[:57]}..."))


def is_unicode(text: str) -> bool:
    """Whether it is valid Unicode: JSON can spell half a surrogate pair, and a path can hold any byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
