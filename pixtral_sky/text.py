"""Words: what other programs say, made fit to be shown; the name that was meant."""

from __future__ import annotations

import difflib
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
