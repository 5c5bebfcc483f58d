"""What is printed where: closed streams and pipes, and characters that a terminal lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import deployments


def started(*arguments: str, **streams: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONIOENCODING": str(streams.pop("encoding", "utf-8"))}
    return subprocess.run(
        [sys.executable, "-m", "pixtral_sky", *arguments],
        env=environ, text=True, timeout=30, stdin=subprocess.DEVNULL, **({"capture_output": True} | streams),
    )  # fmt: skip


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("arguments", [["endpoint"], ["plan", "--no-prices", "--all"]])
def test_whoever_reads_it_has_seen_enough(arguments: list[str]) -> None:
    deployments.cluster("pixtral", url="http://10.0.0.7:8081")
    pipe = closed_pipe()
    result = started(*arguments, capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert result.returncode == 141
    assert "rror" not in result.stderr


@pytest.mark.parametrize("missing", [False, True])
def test_a_character_that_the_terminal_lacks(tmp_path: Path, missing: bool) -> None:
    """It is shown as its escape, in results and in errors."""
    picture = tmp_path / "caf\u00e9.png"
    if not missing:
        Image.new("RGB", (32, 32)).save(picture)
    result = started("tokens", str(picture), encoding="ascii")
    assert result.returncode == missing
    assert "caf\\xe9.png" in (result.stderr if missing else result.stdout)


def test_stderr_and_stdin_are_closed() -> None:
    command = f"{sys.executable} -m pixtral_sky endpoint 2>&- <&-"
    result = subprocess.run(command, shell=True, stdout=subprocess.PIPE, timeout=30)
    assert (result.returncode, result.stdout) == (2, b"")
