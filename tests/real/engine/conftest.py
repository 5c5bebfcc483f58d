"""The engine, and one rehearsal of it that the tests on the real vLLM share."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from pixtral_sky.deploy import rehearsals, store, task
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.rehearsal import checkpoint, engine
from pixtral_sky.rehearsal import process as rehearsal


@pytest.fixture(scope="session")
def venv() -> Path:
    return engine.ensure(task.load().vllm_version)


@pytest.fixture(scope="session")
def start(venv, tmp_path_factory):
    """Start a rehearsal with some envs changed; all that were started are stopped at the end."""
    started: list[Rehearsal] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_SKY_HOME", str(tmp_path_factory.mktemp("rehearsals")))

        def start(name: str, **envs: str) -> Rehearsal:
            shipped = task.load()
            changed = dataclasses.replace(shipped, envs={**shipped.envs, **envs})
            started.append(rehearsal.start(changed, venv, checkpoint.tiny(venv), name, store.free_port(0)))
            return started[-1]

        yield start
        for deployment in started:
            rehearsals.stop(deployment)


@pytest.fixture(scope="session")
def ready(start) -> tuple[Rehearsal, float]:
    """A rehearsal, and the seconds from its start until it was ready."""
    begin = time.monotonic()
    deployment = start("tests")
    rehearsal.wait_until_ready(deployment)
    return deployment, time.monotonic() - begin


@pytest.fixture
def running(ready) -> Rehearsal:
    return ready[0]
