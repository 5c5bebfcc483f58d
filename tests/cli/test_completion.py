"""Completion, as the shells ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
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
        ("pixtral-sky completion ", ["bash", "zsh", "fish"]),
        ("pixtral-sky launch --precision ", ["bf16", "fp8"]),
        ("pixtral-sky plan --precision b", ["bf16", "both"]),
        ("pixtral-sky capacity --pattern d", ["day-night"]),
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


# Each asks for what completes `pixtral-sky tunnel o`; zsh only as its own terminal has it: from the keys.
IN_A_SHELL = {
    "bash": (
        "source script; COMP_WORDS=(pixtral-sky tunnel o); COMP_CWORD=2\n"
        '"$(complete -p pixtral-sky | sed "s/.*-F \\([^ ]*\\).*/\\1/")" pixtral-sky; echo "${COMPREPLY[@]}"'
    ),
    "fish": "source script; complete -C 'pixtral-sky tunnel o'",
    "zsh": (
        "zmodload zsh/zpty; zpty z zsh -f -i\n"
        "zpty -w z 'PS1=; autoload -U compinit; compinit -u -D; source script; echo rea\"\"dy'\n"
        "zpty -r z said '*ready*'; zpty -w -n z $'pixtral-sky tunnel o\\t'\n"
        "zpty -r z said '*tunnel ocr*' && echo ocr; zpty -d z"
    ),
}


@pytest.mark.parametrize("shell", IN_A_SHELL)
def test_in_the_shell(run: Run, tmp_path: Path, shell: str) -> None:
    """The script, the shell and the program together."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    deployments.cluster("ocr", url="http://10.0.0.7:8081")
    (tmp_path / "pixtral-sky").write_text(f'#!/bin/sh\nexec {sys.executable} -m pixtral_sky "$@"\n')
    (tmp_path / "pixtral-sky").chmod(0o755)
    (tmp_path / "script").write_text(run("completion", shell).out)
    found = subprocess.run(
        [shell, "-c", IN_A_SHELL[shell]],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert found.stdout == "ocr\n"


def test_a_summary_is_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PIXTRAL_SKY_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "pixtral-sky down")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert run().out == "down\tTake a deployment down, and wait until nothing is left.\n"
