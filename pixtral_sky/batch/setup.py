"""The options of a batch, checked before a picture is read or the endpoint is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pixtral_sky.batch import csv_export
from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.inputs import Walked
from pixtral_sky.batch.items import BadInput, Item
from pixtral_sky.batch.journal import Paths
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.walk import is_openai
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import UsageError


def paths(out: Path, errors: Path | None) -> Paths:
    """The files of a batch; ``errors`` is out.errors.jsonl beside out.jsonl by default.

    Raises UsageError when both are the same.
    """
    found = Paths(out, errors or Path(f"{_stem(out)}.errors.jsonl"))
    if found.errors.absolute() == out.absolute():
        raise UsageError("The answers and the failures cannot go to one file.", "Name another: --errors FILE")
    return found


def check_inputs(items: Iterator[Item | BadInput], walked: Walked) -> None:
    """Raise UsageError if there is no item. Standard input is not read: `Walked.check` at the end does."""
    if "-" not in walked.arguments:
        next(items, None)
        walked.check()


def table(out: Path, inputs: Sequence[str], schema: Schema | None) -> Path:
    """The CSV file beside ``out``. Raises UsageError when the answers have no columns."""
    if not schema or is_openai(inputs):
        raise UsageError("--csv makes columns of the properties in --schema.", "Give both, or neither.")
    next(csv_export.csv_rows(out, schema.schema))  # the header
    return Path(f"{_stem(out)}.csv")


def _stem(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".jsonl"))


def concurrency(text: str) -> int | None:
    """The number of requests at once; None for ``auto``. Raises UsageError."""
    if text == "auto":
        return None
    if text.isdecimal() and 1 <= int(text) <= MOST:
        return int(text)
    raise UsageError(f"--concurrency takes auto, or a number from 1 to {MOST}.")


def record(job: Job, per_request: int, model: str) -> dict[str, Any]:
    """The options that change an answer or an id, for the ledger."""
    return {
        "--prompt": job.defaults.prompt,
        "--system": job.defaults.system,
        "--schema": job.schema.schema if job.schema else None,
        "--max-tokens": job.defaults.max_tokens,
        "--temperature": job.defaults.temperature,
        "--per-request": per_request,
        "the model": model,
    }
