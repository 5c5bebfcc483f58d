"""The documents as they stand in the repository: their pages, and the shell blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)


@dataclass(frozen=True)
class Block:
    """A bash block. ``lines`` are its commands, without comments; one of several lines is one."""

    page: str
    number: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        found = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            yield Block(str(page.relative_to(ROOT)), number, tuple(_commands(text)))


def _commands(text: str) -> Iterator[str]:
    command = ""
    for line in text.replace("\\\n", " ").splitlines(keepends=True):
        in_quotes = command.count("'") % 2 == 1
        command += line if in_quotes else re.sub(r"(^|\s+)#\s.*", "", line)
        if command.count("'") % 2 == 0:
            if command.strip():
                yield command.strip()
            command = ""
