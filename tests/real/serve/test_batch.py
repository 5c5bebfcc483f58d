"""A batch goes on while replicas die and go: through SkyServe's real balancer, and with nothing lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.real.serve.rig import KEY, SPEED, Service
from tests.real.serve.stand_in import words

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300 if SPEED > 1 else 2400)]

ITEMS = 2000


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(service: Service, run: str) -> Counter[str]:
    """How often a replica has begun to work on each question."""
    notes = (note for machine in service.all_machines() for note in machine.requests())
    return Counter(note["id"] for note in notes if note["what"] == "begins" and note["id"].startswith(run))


def test_replicas_are_killed_preempted_and_replaced_during_a_batch(service, tmp_path):
    run = f"batch-{time.time()}"
    questions = {
        f"{run}-{number}": {"id": f"{run}-{number}", "tokens": 10, "pace": 0.03} for number in range(ITEMS)
    }
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    items = (
        {"id": name, "images": ["red.png"], "prompt": json.dumps(question)}
        for name, question in questions.items()
    )
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"

    def started() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pixtral_sky", "batch", "list.jsonl", "-o", "out.jsonl", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIXTRAL_API_KEY": KEY}
        environment["PIXTRAL_ENDPOINT"] = service.url
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=pipe, stderr=pipe)

    def grown(by: int) -> None:
        wanted = min(len(lines(out)) + by, ITEMS)
        service.until(lambda: len(lines(out)) >= wanted, "answers")

    with started() as process:
        grown(200)
        service.machines()[0].kill_job()
        grown(200)
        service.wait_for(ready=2)
        service.machines()[-1].preempt()
        grown(100)
        service.wait_for(ready=2)
        version = service.status()["replicas"][-1]["version"]
        service.update(lambda config: config["envs"].update(MAX_MODEL_LEN=32768 + version))
        said, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    summary = json.loads(said)
    made = begun(service, run)
    print(
        f"{summary['done']} done in {summary['seconds']:.0f} s, {summary['asked_again']} asked again, "
        f"{sum(count > 1 for count in made.values())} made more than once"
    )
    service.wait_for(ready=2, version=version + 1)

    answers = lines(out)
    assert Counter(line["id"] for line in answers) == Counter(questions.keys())
    assert all(line["answer"] == "".join(words(questions[line["id"]])) for line in answers)
    assert not errors.exists()
    assert summary["asked_again"] > 0, "nobody was writing when the replicas died"
    # What is made again is what was being written, or was about to be, when a replica went: a few.
    assert sum(made.values()) < ITEMS * 1.05
