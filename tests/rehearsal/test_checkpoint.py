"""Checkpoints with random weights. What vLLM makes of them: tests/real/engine/test_engine.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pixtral_sky.errors import RehearsalError
from pixtral_sky.rehearsal import checkpoint, engine

TOKENIZER = b"{}" * 1000


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine: its tokenizer, and a Python that writes the weights."""
    monkeypatch.setattr(engine, "cache", lambda: tmp_path)
    data = tmp_path / "venv/lib/python3.11/site-packages/mistral_common/data"
    data.mkdir(parents=True)
    (data / "tekken_240911.json").write_bytes(TOKENIZER)
    (tmp_path / "venv/bin").mkdir()
    python = tmp_path / "venv/bin/python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && cp "$3" "$4" && chmod 600 "$4"\n')
    python.chmod(0o755)
    return tmp_path / "venv"


def test_the_tiny_one_has_weights(venv: Path, tmp_path: Path) -> None:
    directory = checkpoint.tiny(venv)
    assert directory == tmp_path / "tiny-pixtral"
    assert sorted(path.name for path in directory.iterdir()) == [
        "consolidated.safetensors", "params.json", "tekken.json"
    ]  # fmt: skip
    assert (directory / "tekken.json").read_bytes() == TOKENIZER
    assert json.loads((directory / "params.json").read_text()) == checkpoint.TINY
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        0o644
    }  # another user may serve it


def test_the_full_one_has_none(venv: Path) -> None:
    directory = checkpoint.full(venv)
    assert sorted(path.name for path in directory.iterdir()) == ["params.json", "tekken.json"]
    assert json.loads((directory / "params.json").read_text()) == checkpoint.PIXTRAL


def test_a_complete_one_is_left_alone(venv: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.tiny(venv).iterdir()}
    assert {path: path.stat().st_mtime_ns for path in checkpoint.tiny(venv).iterdir()} == before


def test_one_of_other_sizes_is_made_anew_with_its_weights(venv: Path) -> None:
    directory = checkpoint.tiny(venv)
    (directory / "params.json").write_text("{}")
    (directory / "consolidated.safetensors").write_text("of those")
    checkpoint.tiny(venv)
    assert json.loads((directory / "params.json").read_text()) == checkpoint.TINY
    assert json.loads((directory / "consolidated.safetensors").read_text()) == checkpoint.TINY


def test_half_a_tokenizer_is_repaired(venv: Path) -> None:
    target = checkpoint.tiny(venv) / "tekken.json"
    target.write_bytes(TOKENIZER[:100])
    checkpoint.tiny(venv)
    assert target.read_bytes() == TOKENIZER


def test_a_tokenizer_is_there_whole_or_not_at_all(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fails)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.full(venv)
    assert not (engine.cache() / "full-pixtral/tekken.json").exists()


def test_an_engine_without_the_tokenizer(venv: Path) -> None:
    """As PIXTRAL_SKY_ENGINE=/usr/bin/python3 is on Debian, whose packages are elsewhere."""
    shutil.rmtree(venv / "lib")
    with pytest.raises(RehearsalError, match=f"engine at {venv} has no tokenizer of Pixtral"):
        checkpoint.tiny(venv)


def test_weights_that_cannot_be_made_are_not_there(venv: Path) -> None:
    (venv / "bin/python").write_text("#!/bin/sh\necho no torch >&2; exit 1\n")
    with pytest.raises(RehearsalError, match="no torch"):
        checkpoint.tiny(venv)
    assert not (engine.cache() / "tiny-pixtral/consolidated.safetensors").exists()
