"""The options of a batch, checked before a picture is read or the endpoint is asked."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pixtral_sky.batch import csv_export
from pixtral_sky.batch.concurrency import MOST
from pixtral_sky.batch.inputs import Walked, parse
from pixtral_sky.batch.items import BadInput, Item
from pixtral_sky.batch.journal import READ_BYTES, Paths
from pixtral_sky.batch.runner import Job
from pixtral_sky.batch.walk import is_openai
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.text import shown


def paths(out: Path, errors: Path | None) -> Paths:
    """The files of a batch; ``errors`` is out.errors.jsonl beside out.jsonl by default.

    Raises UsageError for a path at which no such file can be, or where another kind of file is, and when both
    are the same.
    """
    _check_path(out, "-o")
    found = Paths(out, errors or Path(f"{_stem(out)}.errors.jsonl"))
    _check_path(found.errors, "--errors")
    if found.errors.absolute() == out.absolute() or _is_same(found.errors, out):
        raise UsageError("The answers and the failures cannot go to one file.", "Name another: --errors FILE")
    return found


def _check_path(path: Path, option: str) -> None:
    name = shown(str(path))
    if path == Path("-"):
        raise UsageError(
            f"{option} takes a file, which the next run goes on with, and not '-'.",
            f"Name one: {option} FILE",
        )
    if path.is_dir():
        inner = shlex.quote(str(path / "out.jsonl"))
        raise UsageError(f"{name} is a folder.", f"Name a file in it: {option} {inner}")
    if not path.parent.is_dir():
        raise UsageError(
            f"{name}: there is no such folder.", f"Make it: mkdir -p {shlex.quote(str(path.parent))}"
        )
    if path.suffix.lower() == ".csv" or pdf.is_picture_name(str(path)):
        table = ". The table beside it: --csv" if path.suffix.lower() == ".csv" else ""
        raise UsageError(
            f"{name} is no name for a file of JSON lines.",
            f"{option} {shlex.quote(str(path.with_suffix('.jsonl')))}{table}",
        )
    if not _is_ours(path):
        raise UsageError(f"{name} is there, and is no file of a batch.", f"Write elsewhere: {option} FILE")


def _is_ours(path: Path) -> bool:
    """Whether a batch may write to the file: none is there, or it begins with a line of a batch.

    That line may be torn, and a power cut may leave zeros. What cannot be read is left to the Journal.
    """
    if not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            head = file.read(READ_BYTES).lstrip(b"\0")
    except OSError:
        return True
    first = head.partition(b"\n")[0]
    try:
        line = json.loads(first)
    except (ValueError, RecursionError):
        return not head or first.startswith(b'{"')
    is_line = isinstance(line, dict) and ("id" in line or "custom_id" in line)
    return is_line and not line.keys().isdisjoint(("answer", "response", "error"))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is missing
        return False


def check_targets(paths: Paths, inputs: Sequence[str]) -> None:
    """Raise UsageError if the batch would write to one of its inputs."""
    targets = {"-o": paths.out, "--errors": paths.errors}
    there = {option: target.stat() for option, target in targets.items() if target.exists()}
    if not there:  # most runs: a glob may have a million matches
        return
    for given in (each for argument in inputs for each in parse(argument)):
        for path in given.matches or [given.path]:
            with contextlib.suppress(OSError):  # it is gone since, or standard input
                status = Path(path).stat()
                if option := next((each for each in there if os.path.samestat(status, there[each])), ""):
                    raise UsageError(f"{shown(path)} is an input.", f"Write elsewhere: {option} FILE")


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
