"""A batch while the real engine goes down, or a process of it is killed: no item is written off for that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from pixtral_sky.deploy import rehearsals
from pixtral_sky.deploy.rehearsals import of_session
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.rehearsal import process as rehearsal
from tests.conftest import ROOT
from tests.support.processes import command

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ITEMS = 24
PATIENCE = 10.0  # seconds in place of five minutes, until a batch gives up

# The command line, with another patience.
MAIN = f"""
from pixtral_sky.batch import runner
from pixtral_sky.cli.app import main
runner.PATIENCE_SECONDS = {PATIENCE}
main()
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Run:
    """A batch of ITEMS in a process of its own."""

    def __init__(self, folder: Path, deployment: Rehearsal) -> None:
        self.out, self.errors = folder / "out.jsonl", folder / "out.errors.jsonl"
        Image.new("RGB", (32, 32), "red").save(folder / "red.png")
        items = ({"id": f"i{n}", "images": ["red.png"], "prompt": f"item {n}"} for n in range(ITEMS))
        (folder / "list.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
        arguments = [
            "batch",
            "list.jsonl",
            "-o",
            "out.jsonl",
            "--max-tokens",
            "60",
            "--endpoint",
            deployment.url,
        ]
        self._command = [sys.executable, "-c", MAIN, *arguments]
        self._folder = folder
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIXTRAL_API_KEY": deployment.key}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, text=True, stderr=subprocess.PIPE
        )

    def wait_for(self, process: subprocess.Popen[str], answers: int) -> None:
        deadline = time.monotonic() + 120
        while len(lines(self.out)) < answers:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def is_whole(self) -> bool:
        assert lines(self.errors) == []
        done = [line["id"] for line in lines(self.out)]
        assert len(done) == len(set(done))
        return len(done) == ITEMS


def server_of(deployment: Rehearsal) -> list[psutil.Process]:
    """The processes of vLLM, with the models in them: the API server, and the engine."""
    return [each for each in of_session(deployment.pid) if "vllm" in f"{each.name()} {command(each)}".lower()]


def test_down_in_the_middle_of_a_batch(start, tmp_path):
    deployment = start("down-batch")
    rehearsal.wait_until_ready(deployment)
    run = Run(tmp_path, deployment)
    with run.start() as process:
        run.wait_for(process, 6)
        rehearsals.stop(deployment)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert said.endswith("The same command goes on.\n")
    assert not run.is_whole()
    before = len(lines(run.out))
    again = start("down-again")
    rehearsal.wait_until_ready(again)
    rest = Run(tmp_path, again)
    with rest.start() as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"{ITEMS - before} answers about" in said
    assert run.is_whole()
    rehearsals.stop(again)


def test_each_process_is_killed_in_the_middle_of_a_batch(start, tmp_path):
    """The script starts the server again, and the batch waits for it, or else its next run does the rest."""
    deployment = start("killed-batch")
    rehearsal.wait_until_ready(deployment)
    run = Run(tmp_path, deployment)
    names = {each.name() for each in server_of(deployment)}
    print(names)
    assert len(names) > 1
    for number, name in enumerate(sorted(names)):
        with run.start() as process:
            run.wait_for(process, min(len(lines(run.out)) + 5, ITEMS - 5))
            (victim, *_) = [each for each in server_of(deployment) if each.name() == name]
            victim.send_signal(signal.SIGKILL)
            _, said = process.communicate(timeout=300)
        print(number, name, process.returncode, len(lines(run.out)), said[-300:])
        assert process.returncode in (0, 1), said
        assert lines(run.errors) == []
        rehearsal.wait_until_ready(deployment)
    with run.start() as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert run.is_whole()
    rehearsals.stop(deployment)
