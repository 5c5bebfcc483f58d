"""One rehearsal for all clients, and two sites beside it: their pages, and a picture to be fetched."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pixtral_sky.deploy import rehearsals, store, task
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.rehearsal import checkpoint, engine
from pixtral_sky.rehearsal import process as rehearsal
from tests.support.site import site

LOGO = (64, 48)


FILES: dict[str, bytes] = {}


@pytest.fixture(scope="session")
def sites() -> Iterator[tuple[str, str]]:
    """The origins of two servers of the same files: the server allows the first one, and fetches from both."""
    file = io.BytesIO()
    Image.new("RGB", LOGO).save(file, "PNG")
    FILES["/logo.png"] = file.getvalue()
    with site(FILES) as first, site(FILES) as second:
        yield first, second


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PIXTRAL_SKY_HOME of the rehearsal."""
    return tmp_path_factory.mktemp("rehearsals")


@pytest.fixture(scope="session")
def running(sites: tuple[str, str], folder: Path) -> Iterator[Rehearsal]:
    venv, shipped = engine.ensure(task.load().vllm_version), task.load()
    envs = {**shipped.envs, "ALLOWED_ORIGINS": sites[0], "IMAGE_URLS": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_SKY_HOME", str(folder))
        deployment = rehearsal.start(
            dataclasses.replace(shipped, envs=envs),
            venv,
            checkpoint.tiny(venv),
            "pixtral",
            store.free_port(0),
            args=f"{rehearsal.CPU_ARGS} --logits-processors short_calls:ShortCalls",
            machine={**rehearsal.CPU_ENVIRON, "PYTHONPATH": str(Path(__file__).parent)},
        )
        try:
            rehearsal.wait_until_ready(deployment)
            yield deployment
        finally:
            rehearsals.stop(deployment)
