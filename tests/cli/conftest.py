from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from pixtral_sky.deploy import huggingface, task
from tests.conftest import ROOT
from tests.support.command_line import KEY, TOKEN


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has a key and a token, and whom the Hub gives the weights; the files have no scripts."""
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface, "check", lambda model, token, revision: "")
    for name in ("service.yaml", "pixtral.yaml"):
        (tmp_path / name).write_text(short(name))
    monkeypatch.setattr(task, "shipped", lambda name: tmp_path / name)


@functools.cache
def short(name: str) -> str:
    """A file without its scripts, which SkyPilot takes a while to read and write, again and again."""
    file = task.read(ROOT / name)
    checks = [line for line in file["run"].splitlines() if re.match(task.REFUSES, line)]
    return json.dumps(file | {"setup": "make it", "run": "\n".join([*checks, "serve"])})
