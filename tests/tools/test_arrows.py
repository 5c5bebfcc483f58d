"""The folders of the package import downwards only."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import ROOT

SPEC = importlib.util.spec_from_file_location("arrows", ROOT / "tools/arrows.py")
assert SPEC
assert SPEC.loader
arrows = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(arrows)


def test_no_arrow_goes_up() -> None:
    assert arrows.wrong(ROOT / "pixtral_sky") == []


@pytest.mark.parametrize(("module", "line"), [
    ("client/client.py", "from pixtral_sky.deploy.store import recall"),
    ("client/client.py", "def late():\n    from pixtral_sky.deploy import store"),
    ("pictures/resize.py", "import pixtral_sky.client.endpoint"),
    ("batch/runner.py", "from pixtral_sky.deploy import store"),
    ("deploy/clusters.py", "from pixtral_sky.rehearsal.process import start"),
    ("errors.py", "from pixtral_sky.pictures import resize"),
    ("server/gateway.py", "from pixtral_sky.errors import UsageError"),
    ("__init__.py", "from pixtral_sky.deploy.resolve import find"),
    ("client/client.py", "from pixtral_sky import Client"),
    ("doctor/checks.py", "from pixtral_sky.cli import common"),
])  # fmt: skip
def test_an_arrow_that_goes_up_is_found(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / "pixtral_sky" / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    (found,) = arrows.wrong(tmp_path / "pixtral_sky")
    assert found.startswith(f"pixtral_sky/{module}: ")


def test_an_arrow_that_goes_down_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "pixtral_sky/cli/ask.py"
    path.parent.mkdir(parents=True)
    path.write_text("from pixtral_sky import output\nfrom pixtral_sky.client.client import Client\n")
    assert arrows.wrong(tmp_path / "pixtral_sky") == []
