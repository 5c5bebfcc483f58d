"""What a batch is given, before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.items import Defaults
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.setup import check_targets, concurrency, paths, record, table
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


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (".", "^. is a folder. Name a file in it: -o out.jsonl$"),
        ("..", "Name a file in it: -o ../out.jsonl"),
        ("/", "Name a file in it: -o /out.jsonl"),
        ("my folder", "Name a file in it: -o 'my folder/out.jsonl'"),
        ("none/out.jsonl", "none/out.jsonl: there is no such folder. Make it: mkdir -p none$"),
        ("-", "-o takes a file"),
        ("o3.csv", "o3.csv is no name for a file of JSON lines. -o o3.jsonl. The table beside it: --csv"),
        ("new.JPG", "new.JPG is no name for a file of JSON lines. -o new.jsonl$"),
    ],
)
def test_where_no_answers_can_be(
    out: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my folder").mkdir()
    with pytest.raises(UsageError, match=says.replace("^.", r"^\.")):
        paths(Path(out), None)
    with pytest.raises(UsageError):
        paths(Path("out.jsonl"), Path(out))


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        (b"", True),
        (b'{"id": "a", "answer": "b"}\n{"id": "to', True),
        (b'{"id": "a", "error": {}}\n', True),
        (b'{"id": "a", "custom_id": "b", "response": null}\n', True),
        (b'{"id": "torn', True),
        (b"\0" * 999, True),  # of a power cut
        (b"\xff\xd8\xff\xe0JFIF", False),
        (b"my notes", False),
        (b"\n", False),
        (b'{"type": "object"}', False),
        (b'{\n "id": 1\n}', False),
        (b'{"id": "a", "images": ["a.jpg"]}\n', False),
        (b"[1]\n", False),
    ],
)
def test_a_file_of_another_kind_is_not_written_to(content: bytes, is_ours: bool, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(content)
    for out, errors in ((tmp_path / "there", None), (tmp_path / "out.jsonl", tmp_path / "there")):
        if is_ours:
            paths(out, errors)
        else:
            with pytest.raises(UsageError, match="there is there, and is no file of a batch"):
                paths(out, errors)


def test_no_input_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd").write_text('{"id": "a", "answer": 1}\n')
    Path("list.jsonl").symlink_to("odd")
    for given in (["list.jsonl"], ["-", "list.jsonl"], ["*.jsonl"]):
        with pytest.raises(UsageError, match=r"is an input\. Write elsewhere: -o FILE"):
            check_targets(paths(tmp_path / "odd", None), given)
        with pytest.raises(UsageError, match=r"is an input\. Write elsewhere: --errors FILE"):
            check_targets(paths(Path("out.jsonl"), Path("odd")), given)


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
