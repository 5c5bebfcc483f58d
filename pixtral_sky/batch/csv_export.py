"""The answers of a batch as a table: a CSV file with a column for each property of their schema."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixtral_sky import files
from pixtral_sky.batch import jsonl
from pixtral_sky.errors import UsageError
from pixtral_sky.text import shown

# What a spreadsheet takes for the beginning of a formula. A formula can send the sheet anywhere, and a
# picture can make the model answer with one.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")
_NUMBER = re.compile(r"[+-]?[0-9][0-9., ]*")


def csv_rows(source: Path, schema: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table, one at a time, the header first, from a batch's output in the native format.

    The columns are ``id`` and the ``properties`` of the schema, in their order. A missing or null property is
    an empty cell, as are all of an answer that was cut off; a nested one is JSON. A text that a spreadsheet
    would take for a formula gets an apostrophe before it.

    Raises UsageError when the schema has no properties, or the file has another format; OSError.
    """
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        raise UsageError("The schema has no properties to make columns of.")
    yield [_cell(name) for name in ("id", *("answer.id" if name == "id" else name for name in properties))]
    with open(source, "rb") as file:
        for number, line in jsonl.objects(jsonl.lines(file)):
            if isinstance(line, str) or not isinstance(line.get("id"), str) or "answer" not in line:
                raise UsageError(f"{shown(str(source))}, line {number}: it is no answer of a batch.")
            answer = line["answer"] if isinstance(line["answer"], dict) else {}
            yield [_cell(line["id"]), *(_cell(answer.get(name)) for name in properties)]


def write_csv(source: Path, schema: dict[str, Any], target: Path) -> tuple[int, int]:
    """Write the rows to ``target`` atomically; raises as above.

    Returns their number, without the header, and that of those which have an id only: their answers were made
    without the schema, or were cut off.
    """
    rows, empty = -1, 0
    with files.whole(target, encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        for row in csv_rows(source, schema):
            writer.writerow(row)
            rows += 1
            empty += not any(row[1:])
        # Whoever may read the output may read the table.
        os.fchmod(file.fileno(), source.stat().st_mode & 0o666)
    return rows, empty


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
