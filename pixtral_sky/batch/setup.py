"""What a batch is given, checked before a picture is read or the endpoint is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_sky.batch import csv_export
from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.journal import Paths
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.walk import is_openai
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import UsageError


@dataclass(frozen=True)
class Files:
    """Where a batch writes: the answers to ``out``, failures to ``errors`` (out.errors.jsonl if not given).

    With ``as_csv`` there is a table as well, out.csv. Raises UsageError when two are one.
    """

    out: Path
    errors: Path | None = None
    as_csv: bool = False

    def __post_init__(self) -> None:
        if self.paths.errors.absolute() == self.out.absolute():
            raise UsageError(
                "The answers and the failures cannot go to one file.", "Name another: --errors FILE"
            )

    @property
    def paths(self) -> Paths:
        return Paths(self.out, self.errors or Path(f"{self._stem}.errors.jsonl"))

    @property
    def csv(self) -> Path | None:
        return Path(f"{self._stem}.csv") if self.as_csv else None

    @property
    def _stem(self) -> Path:
        return self.out.with_name(self.out.name.removesuffix(".jsonl"))

    def check_csv(self, inputs: Sequence[str], schema: Schema | None) -> None:
        """Raises UsageError when the answers can have no table, and are to have one."""
        if not self.csv:
            return
        if not schema or is_openai(inputs):
            raise UsageError("--csv makes columns of the properties in --schema.", "Give both, or neither.")
        next(csv_export.csv_rows(self.out, schema.schema))  # the header

    def write_csv(self, schema: Schema | None) -> None:
        """Write the table, if there is to be one."""
        if self.csv and schema:
            csv_export.write_csv(self.out, schema.schema, self.csv)

    def summary(self, failed: int) -> dict[str, str | None]:
        """The files that there are, for programs."""
        errors = str(self.paths.errors) if failed else None
        return {"out": str(self.out), "errors": errors, "csv": str(self.csv) if self.csv else None}


def concurrency(text: str) -> int | None:
    """How many requests at once; None for ``auto``. Raises UsageError."""
    if text == "auto":
        return None
    if text.isdecimal() and 1 <= int(text) <= MOST:
        return int(text)
    raise UsageError(f"--concurrency takes auto, or a number from 1 to {MOST}.")


def record(job: Job, per_request: int, model: str) -> dict[str, Any]:
    """The options that change an answer or an id, as the ledger keeps them."""
    return {
        "--prompt": job.defaults.prompt,
        "--system": job.defaults.system,
        "--schema": job.schema.schema if job.schema else None,
        "--max-tokens": job.defaults.max_tokens,
        "--temperature": job.defaults.temperature,
        "--per-request": per_request,
        "the model": model,
    }
