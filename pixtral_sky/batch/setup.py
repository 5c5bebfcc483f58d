"""What is asked of a batch, checked before a picture is read or the endpoint is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_sky.batch import csv_export
from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.items import Defaults
from pixtral_sky.batch.journal import Paths
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.walk import is_openai, walk
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import UsageError


@dataclass(frozen=True)
class Setup:
    """What is asked about, and how; the fields are those of a Job and of ``walk``.

    Raises UsageError for an input that leads to nothing.
    """

    inputs: Sequence[str]
    defaults: Defaults
    schema: Schema | None = None
    per_request: int = 1
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    concurrency: int | None = None

    def __post_init__(self) -> None:
        walk(self.inputs, per_request=self.per_request)

    def check(self, files: Files) -> None:
        """Raises UsageError when the answers can have no table, and ``files`` has one."""
        if not files.csv:
            return
        if not self.schema or is_openai(self.inputs):
            raise UsageError("--csv makes columns of the properties in --schema.", "Give both, or neither.")
        next(csv_export.csv_rows(files.out, self.schema.schema))  # the header

    def job(self, endpoint: Endpoint) -> Job:
        return Job(
            lambda: walk(self.inputs, per_request=self.per_request),
            self.defaults,
            self.schema,
            self.limit,
            self.shard,
            self.concurrency,
            endpoint.max_model_len,
            is_read_once="-" in self.inputs,
        )

    def record(self, endpoint: Endpoint) -> dict[str, Any]:
        """The options that change an answer or an id, as the ledger keeps them."""
        return {
            "--prompt": self.defaults.prompt,
            "--system": self.defaults.system,
            "--schema": self.schema.schema if self.schema else None,
            "--max-tokens": self.defaults.max_tokens,
            "--temperature": self.defaults.temperature,
            "--per-request": self.per_request,
            "the model": endpoint.model,
        }


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

    def write_csv(self, setup: Setup) -> None:
        """Write the table, if there is to be one."""
        if self.csv and setup.schema:
            csv_export.write_csv(self.out, setup.schema.schema, self.csv)

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
