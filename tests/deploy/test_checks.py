"""What the script refuses is refused before it is launched: `Task.check` and templates/check.sh, side by side."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from pixtral_sky.deploy import resolve, task
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT

VALUES = [
    "0", "1", "4", "08", "-1", "-2", "1.5", "1e3", "inf", "nan", "four", "bf16", "fp8", "FP8", "fp", "main",
    "refs/pr/1", "-x", "$(id)", "a/b", "2026-11-15", "2026-1-1", "2026-01-01T00", "32k", "65536", "123456",
    "", " ", "30 min", "fp8 ", "a b", "1\n", "\n1", "1\n2",
]  # fmt: skip


@pytest.mark.parametrize("file", ["pixtral.yaml", "service.yaml"])
def test_it_is_what_the_script_says(file):
    """Each of these values for each env, in bash and here."""
    the_task = task.load(ROOT / file)
    checked = [name for name, _, _ in re.findall(task.REFUSES, the_task.run) if name in the_task.envs]
    assert {"MAX_IMAGES", "MAX_MODEL_LEN", "PRECISION", "IDLE_MINUTES", "START_MINUTES"} <= set(checked)
    cases = [(name, value) for name in checked for value in VALUES]
    lines = (ROOT / "templates" / "check.sh").read_text().splitlines()
    script = "\n".join(
        [
            'fail() { echo "pixtral: $*"; exit 1; }',
            *(line for line in lines if line.startswith(("[[", "host="))),
        ]
    )
    envs = "".join(f"{name}={shlex.quote(value)} " for name, value in the_task.envs.items())
    each = "".join(
        f"({envs}; {name}={shlex.quote(value)}; check 2>&1 | tr '\\n' ' '; echo)\n" for name, value in cases
    )
    run = subprocess.run(
        ["bash", "-c", f"check() (\n{script}\n)\n{each}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    theirs = ["".join(line.removeprefix("pixtral: ").split()) for line in run.stdout.splitlines()]
    assert len(theirs) == len(cases)
    for (name, value), says in zip(cases, theirs, strict=True):
        ours = ""
        try:
            the_task.check({name: value})
        except UsageError as error:
            ours = "".join(error.what.split())
        assert ours == says, (name, value)


def test_every_check_of_the_script_is_found():
    """One in another form would be made on the machine only; those of lists are in `deploy/names.py`."""
    checks = [
        line
        for line in (ROOT / "templates" / "check.sh").read_text().splitlines()
        if line.startswith("[[ ") and not re.match(r'\[\[ "?\$(IMAGE_URLS|ALLOWED_ORIGINS)', line)
    ]
    assert all(re.match(task.REFUSES, line) for line in checks)


def test_a_key_is_what_the_script_takes():
    assert f"[[ $PIXTRAL_API_KEY =~ ^{resolve.KEY}$ ]]" in (ROOT / "templates" / "check.sh").read_text()
    resolve.check_key(resolve.new_key(), "")
