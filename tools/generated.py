"""What the tools share that write parts of pages, and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "autoscaling.md"


def renewed(text: str, name: str, body: str) -> str:
    """The page with ``body`` between its markers of that ``name``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise SystemExit(f"{PAGE} has no {begin.strip()} ... {end}")
    return f"{before}{begin}{body}\n{end}{after}"


def drawn_from(picture: Path) -> str:
    """The fingerprint of the picture's source; empty when there is no picture."""
    if not picture.exists():
        return ""
    with Image.open(picture) as image:
        return str(image.info.get("Fingerprint", ""))


def complain(stale: Iterable[Path], command: str) -> None:
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not of today. Run: {command}", file=sys.stderr)
