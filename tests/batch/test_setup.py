"""What a batch is given, before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.items import Defaults
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.setup import concurrency, paths, record, table
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import UsageError


def schema(folder: Path, **content: Any) -> Schema:
    (folder / "s.json").write_text(json.dumps(content))
    return Schema(folder / "s.json")


def test_the_files_beside_the_answers(tmp_path: Path) -> None:
    assert paths(tmp_path / "out.jsonl", None).errors == tmp_path / "out.errors.jsonl"
    assert paths(tmp_path / "answers", None).errors == tmp_path / "answers.errors.jsonl"
    assert paths(tmp_path / "out.jsonl", tmp_path / "e.jsonl").errors == tmp_path / "e.jsonl"


def test_two_files_are_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot go to one file"):
        paths(Path("out.jsonl"), tmp_path / "out.jsonl")


def test_a_table_needs_columns(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert table(out, ["photos"], schema(tmp_path, properties={"total": {}})) == tmp_path / "out.csv"
    for wanted, says in ((None, "in --schema"), (schema(tmp_path, type="string"), "no properties")):
        with pytest.raises(UsageError, match=says):
            table(out, ["photos"], wanted)


def test_concurrency() -> None:
    assert (concurrency("auto"), concurrency("1"), concurrency(str(MOST))) == (None, 1, MOST)
    for text in ("0", str(MOST + 1), "many", "-1", "1.5", ""):
        with pytest.raises(UsageError, match="takes auto, or a number"):
            concurrency(text)


def test_the_record_has_what_changes_an_answer(tmp_path: Path) -> None:
    wanted = schema(tmp_path, type="object")
    job = Job(list, Defaults("What?", "Be short.", 9, 0.5, wanted.response_format), wanted, limit=3)
    assert record(job, 2, "pixtral") == {
        "--prompt": "What?",
        "--system": "Be short.",
        "--schema": {"type": "object"},
        "--max-tokens": 9,
        "--temperature": 0.5,
        "--per-request": 2,
        "the model": "pixtral",
    }
