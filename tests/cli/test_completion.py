"""Completion, as the shells ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import deployments
from tests.support.command_line import Run


def completions(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_PIXTRAL_SKY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    result = run()
    assert (result.code, result.err) == (0, "")
    return result.out.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("pixtral-sky la", ["launch"]),
        ("pixtral-sky serve u", ["up", "update"]),
        ("pixtral-sky launch --pre", ["--precision"]),
        ("pixtral-sky ask -n ", ["ocr", "other"]),
        ("pixtral-sky down o", ["ocr", "other"]),
        ("pixtral-sky serve logs oc", ["ocr"]),
        ("pixtral-sky endpoint --for ", ["curl"]),
        ("pixtral-sky ask pho", []),  # the shell completes files
    ],
)
def test_bash_asks(run: Run, monkeypatch: pytest.MonkeyPatch, line: str, found: list[str]) -> None:
    for name in ("ocr", "other"):
        deployments.cluster(name, url="http://10.0.0.7:8081")
    assert completions(run, monkeypatch, line) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"complete_{shell}" in result.out


def test_in_bash(run: Run, tmp_path: Path) -> None:
    """The script, the shell and the program together."""
    deployments.cluster("ocr", url="http://10.0.0.7:8081")
    (tmp_path / "pixtral-sky").write_text(f'#!/bin/sh\nexec {sys.executable} -m pixtral_sky "$@"\n')
    (tmp_path / "pixtral-sky").chmod(0o755)
    (tmp_path / "script").write_text(run("completion", "bash").out)
    program = (
        f"PATH={tmp_path}:$PATH; source {tmp_path}/script; COMP_WORDS=(pixtral-sky tunnel o); COMP_CWORD=2\n"
        '"$(complete -p pixtral-sky | sed "s/.*-F \\([^ ]*\\).*/\\1/")" pixtral-sky; echo "${COMPREPLY[@]}"'
    )
    assert (
        subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout == "ocr\n"
    )
