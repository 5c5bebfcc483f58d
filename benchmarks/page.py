"""What the benchmarks share: their command line, their tables, and docs/performance.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark with this ``doc``; its --write is for ``show``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    return made


def machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and in brackets the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def show(name: str, lines: Sequence[str], write: bool) -> None:
    """Print the lines; with ``write``, put them between the markers of that ``name`` as well."""
    text = "\n".join(lines)
    print(text)
    if write:
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        DOCS.write_text(
            re.sub(f"{begin}.*{end}", lambda _: begin + text + end, DOCS.read_text(), flags=re.DOTALL)
        )
