"""The table of a batch's answers."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.batch.csv_export import csv_rows, write_csv
from pixtral_sky.errors import UsageError

SCHEMA = {
    "type": "object",
    "properties": {"shop": {"type": "string"}, "total": {"type": "number"}, "lines": {}},
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(out: Path, *answers: Any) -> None:
    lines = [
        {"id": f"{number}.jpg", "images": [], "answer": answer} for number, answer in enumerate(answers, 1)
    ]
    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def rows(out: Path) -> list[list[str]]:
    return list(csv_rows(out, SCHEMA))[1:]


def test_a_table(out, tmp_path):
    write(
        out,
        {"total": 1.5, "shop": 'Größe, "漢字"\nand so on', "lines": [{"a": "ä"}], "more": 1},
        {"shop": None, "total": -3, "lines": True},
        '{"shop": "cut o',
    )
    target = tmp_path / "out.csv"
    assert write_csv(out, SCHEMA, target) == (3, 1)
    with open(target, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "shop", "total", "lines"],
            ["1.jpg", 'Größe, "漢字"\nand so on', "1.5", '[{"a": "ä"}]'],
            ["2.jpg", "", "-3", "true"],
            ["3.jpg", "", "", ""],
        ]


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
)
def test_no_text_becomes_a_formula(out, text):
    write(out, {"shop": text, "lines": [text]})
    assert rows(out) == [["1.jpg", f"'{text}", "", json.dumps([text], ensure_ascii=False)]]


@pytest.mark.parametrize("text", ["-5", "+49 170 123", "-1,234.50", "a=b", "", "'", "3-4"])
def test_what_is_none_stays_as_it_is(out, text):
    write(out, {"shop": text, "total": -5})
    assert rows(out) == [["1.jpg", text, "-5", ""]]


def test_an_id_is_text_as_well(out):
    out.write_text('{"id": "=1.jpg", "answer": {}}\n')
    assert rows(out) == [["'=1.jpg", "", "", ""]]


def test_a_property_called_id(out):
    write(out, {"id": "A-17"})
    assert list(csv_rows(out, {"properties": {"id": {}}})) == [["id", "answer.id"], ["1.jpg", "A-17"]]


@pytest.mark.parametrize("schema", [{}, {"properties": {}}, {"properties": []}, {"type": "array"}])
def test_a_schema_without_columns(out, schema):
    with pytest.raises(UsageError, match="no properties"):
        next(csv_rows(out, schema))


@pytest.mark.parametrize("line", ["nonsense", '{"custom_id": "a"}', '{"id": 1, "answer": {}}', '{"id": "a"}'])
def test_what_is_no_output_of_a_batch(out, tmp_path, line):
    write(out, {})
    out.write_text(f"{out.read_text()}{line}\n")
    target = tmp_path / "t" / "out.csv"
    target.parent.mkdir()
    target.write_text("as before")
    with pytest.raises(UsageError) as caught:
        write_csv(out, SCHEMA, target)
    assert str(caught.value).endswith("out.jsonl, line 2: it is no answer of a batch.")
    assert target.read_text() == "as before"
    assert list(target.parent.iterdir()) == [target]


def test_who_may_read_the_one_may_read_the_other(out, tmp_path):
    write(out, {})
    out.chmod(0o640)
    write_csv(out, SCHEMA, tmp_path / "out.csv")
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o640


def test_half_of_a_character(out, tmp_path):
    out.write_text('{"id": "a", "answer": {"shop": "\\\\ud83d"}}\n'.replace("\\\\", "\\"))
    write_csv(out, SCHEMA, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "a,?,,"


def test_one_row_at_a_time(out):
    write(out, *[{"shop": "x"}] * 3)
    table = csv_rows(out, SCHEMA)
    assert next(table)[0] == "id"
    assert next(table)[0] == "1.jpg"
    table.close()
