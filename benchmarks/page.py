"""What the benchmarks share: their command line, the machine in words, and docs/performance.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of a benchmark that is described by ``doc``: with --write, for ``show``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    return made


def machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"


def show(name: str, lines: Sequence[str], write: bool) -> None:
    """Print the lines, and to ``write`` put them between the markers of that ``name``."""
    text = "\n".join(lines)
    print(text)
    if write:
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        DOCS.write_text(
            re.sub(f"{begin}.*{end}", lambda _: begin + text + end, DOCS.read_text(), flags=re.DOTALL)
        )
