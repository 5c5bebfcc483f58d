"""Runs ``pixtral-sky`` in this process."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pixtral_sky.cli.app import main

KEY = "sk-SENTINEL-4711"
TOKEN = "hf_SENTINEL"  # of Hugging Face


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

    @property
    def phases(self) -> list[str]:
        """The lines that phases have left behind, without their seconds."""
        return re.findall(r"^  (\S.*?) +\d+\.\d s$", self.err, re.MULTILINE)


Run = Callable[..., Result]


def last(result: Result) -> str:
    """The last line of what was said."""
    return result.err.splitlines()[-1]


def row(result: Result) -> dict[str, Any]:
    """The only one of --json."""
    (one,) = json.loads(result.out)
    return dict(one)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def run_main(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: object,
    stdin: bytes = b"",
    typed: str | None = None,
    shows_key: bool = False,
) -> Result:
    """The exit code and output of one run; KEY is in it only where it is asked for (``shows_key``).

    At a terminal when something is ``typed``.
    """
    monkeypatch.setattr(sys, "argv", ["pixtral-sky", *map(str, arguments)])
    given = io.TextIOWrapper(io.BytesIO(stdin)) if typed is None else Terminal(io.BytesIO(typed.encode()))
    monkeypatch.setattr(sys, "stdin", given)
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    assert "SENTINEL" not in (out + err).replace(KEY, "") if shows_key else "SENTINEL" not in out + err
    return Result(code, out, err)


def packages(*arguments: object) -> set[str]:
    """The packages that ``pixtral-sky`` has loaded when it ends, with exit code 0, in a process of its own."""
    program = (
        f"import sys; sys.argv = ['pixtral-sky', *{[*map(str, arguments)]!r}]\n"
        "from pixtral_sky.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('modules:', *{name.partition('.')[0] for name in sys.modules})"
    )
    out = subprocess.check_output([sys.executable, "-c", program], text=True)
    return set(out.rpartition("modules:")[2].split())


def imports(*arguments: object) -> tuple[str, set[str]]:
    """What ``pixtral-sky`` says in a process of its own, and the modules that it imports for that."""
    command = [sys.executable, "-X", "importtime", "-m", "pixtral_sky", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout, {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}


def seconds(*arguments: object) -> float:
    """What ``pixtral-sky`` takes of a processor, from its start to its end, whatever else the machine does."""
    before = os.times()
    command = [sys.executable, "-m", "pixtral_sky", *map(str, arguments)]
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system
