"""In Truss's own environment: each mapping of a config.yaml that it describes, with its keys, as JSON."""

from __future__ import annotations

import json
import typing
from typing import Any

import pydantic
from truss.base.truss_config import TrussConfig


def models(kind: Any) -> list[type[pydantic.BaseModel]]:
    """The models that a field of that type may hold: one, or a list or a choice of them."""
    if isinstance(kind, type) and issubclass(kind, pydantic.RootModel):
        return models(kind.model_fields["root"].annotation)
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return [kind]
    if typing.get_origin(kind) is dict:  # its keys are the user's
        return []
    return [model for inner in typing.get_args(kind) for model in models(inner)]


def walk(model: type[pydantic.BaseModel], path: str, found: dict[str, set[str]]) -> None:
    found.setdefault(path, set()).update(model.model_fields)
    for name, field in model.model_fields.items():
        for inner in models(field.annotation):
            walk(inner, f"{path}.{name}".lstrip("."), found)


if __name__ == "__main__":
    found: dict[str, set[str]] = {}
    walk(TrussConfig, "", found)
    print(json.dumps({path: " ".join(sorted(keys)) for path, keys in found.items()}))
