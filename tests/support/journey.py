"""Journeys: pages with commands and all that they print, in ``docs/journeys``, kept true by tests.

A page stands as it was printed once. What differs each time (times, ports, paths, ids, what random weights say) is
made the same on both sides before they are compared. ``PIXTRAL_GOLDEN=write`` writes into the page what is printed now.
"""

from __future__ import annotations

import os
import re
import shlex

from tests.conftest import ROOT

SAME = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"127\.0\.0\.1:\d+|\b8081\b", "<address>"),
    (r"\b\d+(\.\d+)? tokens/s", "<rate>"),
    (r" +\d+\.\d s$", " <seconds>"),
    (r"\b\d+(\.\d+)? (s|min|minutes|hours|h)\b", "<time>"),
    (r"\d+(\.\d+)?/s\b", "<rate>"),
    (r"in \d+ chunks", "in <n> chunks"),
    (r" {2,}", "  "),
)


class Journey:
    """One page. Its console blocks have commands, each behind a ``$``, and below each what it prints."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / "docs" / "journeys" / f"{name}.md"
        self.left = re.findall(r"^\$ (.+)$", self.path.read_text(), re.MULTILINE)
        self._end = 0  # of what was checked

    def next(self) -> list[str]:
        """The words of the next command, without its first."""
        return shlex.split(self.left[0])[1:]

    def check(self, said: str) -> None:
        """What the next command prints is what stands below it."""
        command, text = self.left.pop(0), self.path.read_text()
        begin = text.index(f"$ {command}\n", self._end) + len(f"$ {command}\n")
        end = re.compile(r"^(\$ |```)", re.MULTILINE).search(text, begin)
        assert end, f"{self.path}: no end of the block"
        said = re.sub(r".*\r", "", said).replace(str(ROOT), "~/pixtral-sky")
        lines = said.strip("\n").splitlines()
        said = "".join(f"{line.rstrip()}\n" for line in lines)
        self._end = end.start()
        if os.environ.get("PIXTRAL_GOLDEN") == "write":
            self.path.write_text(text[:begin] + said + text[end.start() :])
            self._end = begin + len(said)
            return
        assert same(said) == same(text[begin : self._end]), "to take what is said now: PIXTRAL_GOLDEN=write"


def same(said: str) -> str:
    for pattern, word in SAME:
        said = re.sub(pattern, word, said, flags=re.MULTILINE)
    return said.strip()
