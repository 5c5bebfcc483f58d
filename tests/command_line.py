"""Runs ``pixtral-sky`` in this process."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from pixtral_sky.cli.app import main

KEY = "sk-SENTINEL-4711"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What the one line of an error says."""
        assert self.out == ""
        found = re.fullmatch(r"Error: (.+)\n", self.err)
        assert found, self.err
        return found[1]


def run_main(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    stdin: bytes = b"",
    shows_key: bool = False,
) -> Result:
    """The exit code and output of one run; KEY is in it only where it is asked for (``shows_key``)."""
    monkeypatch.setattr(sys, "argv", ["pixtral-sky", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    assert shows_key or "SENTINEL" not in out + err
    return Result(code, out, err)
