"""What other programs say, made fit to be shown."""

from __future__ import annotations

from collections.abc import Iterable


def reason(log: Iterable[str]) -> str:
    """Of the lines of a log, the one that says best why the server ended."""
    lines = [line.strip() for line in log if line.strip()]
    ours = [line for line in lines if line.startswith("pixtral: ")]
    errors = [line for line in lines if "rror: " in line]
    found = (ours or errors or lines or ["it said nothing"])[-1]
    return found[:300]
