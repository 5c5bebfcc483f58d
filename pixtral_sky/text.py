"""Text: what other programs say, made fit to be printed; the name that was meant; the order of names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def reason(log: Iterable[str]) -> str:
    """Of the lines of a log, the one that says best why the server ended."""
    lines = [line.strip() for line in log if line.strip()]
    ours = [line for line in lines if line.startswith("pixtral: ")]
    errors = [line for line in lines if "rror: " in line]
    found = (ours or errors or lines or ["it said nothing"])[-1]
    return found[:300]


def os_reason(error: Exception, otherwise: str = "not a path") -> str:
    """What the system says of a file, without its name; ``otherwise`` where it was not the system."""
    return getattr(error, "strerror", None) or otherwise


def closest(word: str, names: Iterable[str]) -> str:
    """The one of ``names`` that ``word`` is like, in whatever case; empty: it is like none."""
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
    """``text`` without the control characters that a terminal acts on; newlines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def shown(name: str) -> str:
    """``name`` fit for one line of a terminal: nothing that moves the cursor, at most 160 characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 160 else f"{text[:100]}...{text[-57:]}"


def is_unicode(text: str) -> bool:
    """Whether it is valid Unicode: JSON can spell half of a surrogate pair, and a path hold any byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
