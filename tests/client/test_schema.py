"""The schema that an answer has to fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import SchemaError, UsageError

RECEIPT = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["total"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "required": ["name"]}},
}


@pytest.fixture
def schema_file(tmp_path: Path) -> Path:
    return tmp_path / "my receipt.json"


def schema(file: Path, content: Any) -> Schema:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return Schema(file)


def test_the_request_for_a_schema(schema_file: Path) -> None:
    assert schema(schema_file, RECEIPT).response_format == {
        "type": "json_schema",
        "json_schema": {"name": "my_receipt", "schema": RECEIPT, "strict": True},
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no JSON object."),
        ("true", "is no JSON object."),
        ({"type": "objekt"}, "is no JSON Schema: $.type: 'objekt' is not valid"),
        ({"type": "string", "pattern": "("}, "is no JSON Schema: $.pattern"),
        ({"$ref": "https://h/x.json"}, "refers to 'https://h/x.json', which is outside of it."),
        ({"items": [{"$ref": "file:///etc/passwd"}]}, "refers to 'file:///etc/passwd'"),
    ],
)
def test_a_file_that_is_no_schema(content: Any, text: str, schema_file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        schema(schema_file, content)
    assert text in caught.value.what
    assert "my receipt.json" in caught.value.what
    assert "\n" not in caught.value.what


def test_a_schema_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        Schema(tmp_path / "schema.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Schema(tmp_path)


def test_an_answer_that_fits(schema_file: Path) -> None:
    wanted = schema(schema_file, RECEIPT)
    wanted.check(' {"total": 1.5, "items": [{"name": "tea"}]}\n', "stop", 512)
    wanted.check('{"total": 1.5}', "length", 512)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("", "The answer is no JSON: Expecting value: line 1 column 1 (char 0)."),
        ("The total is 1.", "The answer is no JSON: Expecting value"),
        ("{}", "The answer does not fit the schema: $: 'total' is a required property."),
        ('{"total": "1"}', "The answer does not fit the schema: $.total: '1' is not of type 'number'."),
        (
            '{"total": 1, "items": [{"name": ""}, {}]}',
            "the schema: $.items[1]: 'name' is a required property.",
        ),
        (json.dumps({"total": "\x1b[31m" + "x" * 999}), "..."),
    ],
)
def test_an_answer_that_does_not_fit(answer: str, text: str, schema_file: Path) -> None:
    wanted = schema(schema_file, RECEIPT)
    with pytest.raises(SchemaError) as caught:
        wanted.check(answer, "stop", 512)
    assert text in caught.value.what
    assert caught.value.answer == answer
    assert len(caught.value.what) < 400
    assert str(caught.value).isprintable()


def test_an_answer_that_was_cut_off(schema_file: Path) -> None:
    wanted = schema(schema_file, RECEIPT)
    for answer in ('{"total": 1, "it', "{}"):
        with pytest.raises(SchemaError, match="--max-tokens 20 is too small"):
            wanted.check(answer, "length", 20)


@pytest.mark.parametrize("ref", ["#", "#/$defs/none"])
def test_a_schema_that_leads_nowhere(ref: str, schema_file: Path) -> None:
    with pytest.raises(UsageError, match="refers to something that is not in it"):
        schema(schema_file, {"$ref": ref}).check("{}", "stop", 512)
