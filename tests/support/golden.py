"""Golden transcripts: what a command says, whole, in ``tests/golden``. ``PIXTRAL_GOLDEN=write`` writes them anew."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from tests.conftest import ROOT


def check(name: str, said: Any, **differs: object) -> None:
    """A text, or a document of JSON, is what stands in ``name``.txt.

    Words that differ each time stand there as ``<their name>``, as wide as they are, so that columns stay where
    they are; the seconds of a phase as ``<seconds>``.
    """
    if not isinstance(said, str):
        rounded = json.loads(json.dumps(said), parse_float=lambda text: round(float(text), 6))
        said = json.dumps(rounded, indent=2) + "\n"
    for word, value in differs.items():
        said = said.replace(str(value), f"<{word}>".ljust(len(str(value)), "-"))
    said = re.sub(r" +\d+\.\d s$", " <seconds>", said, flags=re.MULTILINE)
    path = ROOT / "tests" / "golden" / f"{name}.txt"
    if os.environ.get("PIXTRAL_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(said)
    assert said == path.read_text(), "to take what is said now: PIXTRAL_GOLDEN=write make test"
