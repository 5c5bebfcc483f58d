"""The JSON Schema that an answer has to fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixtral_sky.errors import SchemaError, UsageError
from pixtral_sky.text import os_reason, printable


class Schema:
    """A JSON Schema from a file.

    Raises UsageError when it cannot be read, is not a JSON Schema, or refers to another document.
    """

    def __init__(self, path: Path) -> None:
        import jsonschema
        from referencing.jsonschema import EMPTY_REGISTRY

        try:
            self.schema = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(f"The schema {str(path)!r} cannot be read: {os_reason(error)}.") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The schema {str(path)!r} is no JSON: {error}.") from error
        if not isinstance(self.schema, dict):
            raise UsageError(f"The schema {str(path)!r} is no JSON object.")
        for ref in _refs(self.schema):
            # The server's grammar follows no other document, and nobody expects a download here.
            if not ref.startswith("#"):
                raise UsageError(f"The schema {str(path)!r} refers to {ref!r}, which is outside of it.")
        kind = jsonschema.validators.validator_for(self.schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise UsageError(
                f"The schema {str(path)!r} is no JSON Schema: {_where_and_what(error)}"
            ) from error
        self._validator = kind(self.schema, registry=EMPTY_REGISTRY)  # the default downloads
        self._name = re.sub(r"[^a-zA-Z0-9_-]", "_", path.stem)[:64] or "answer"

    @property
    def response_format(self) -> dict[str, Any]:
        """The field of a request that makes the server keep to the schema."""
        json_schema = {"name": self._name, "schema": self.schema, "strict": True}
        return {"type": "json_schema", "json_schema": json_schema}

    def check(self, text: str, finish_reason: str, max_tokens: int) -> None:
        """Raises SchemaError when an answer does not fit; ``finish_reason`` tells whether it was cut off."""
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        wrong = ""
        try:
            if error := best_match(self._validator.iter_errors(json.loads(text))):
                wrong = f"The answer does not fit the schema: {_where_and_what(error)}"
        except ValueError as bad:
            wrong = f"The answer is no JSON: {bad}."
        except (Unresolvable, RecursionError) as bad:
            raise UsageError(
                "The schema refers to something that is not in it, or to itself without end."
            ) from bad
        if wrong and finish_reason == "length":
            raise SchemaError(
                f"The answer was cut off: --max-tokens {max_tokens} is too small.", "Raise it.", text
            )
        if wrong:
            raise SchemaError(wrong, answer=text)


def _refs(schema: Any) -> Iterator[str]:
    """The references in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from _refs(item)


def _where_and_what(error: Any) -> str:
    """A validation error in one line: where in the document, and what is wrong."""
    text = " ".join(printable(f"{error.json_path}: {error.message}").split())
    return f"{text[:297]}..." if len(text) > 300 else f"{text}."
