"""Measures the files of a batch: a resume after a million lines, and lines that are synced to the disk.

    python -m benchmarks.batch             # prints the table
    python -m benchmarks.batch --write     # and puts it into docs/performance.md

Both sides take turns in one run, each in its own process, on the same file or disk. A figure is the median,
and in brackets the least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import page
from pixtral_sky.batch.journal import Journal, Ledger, Paths

ROUNDS = 5
LINES = 1_000_000
APPENDED = 20_000
APPENDED_ONE_BY_ONE = 2_000
LINE = {
    "images": ["photos/2024/IMG_0001.jpg"],
    "answer": "A receipt of a hardware store, with seven items and a total of 48.20 EUR, paid in cash. " * 4,
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 2788, "completion_tokens": 112, "total_tokens": 2900},
    "seconds": 3.21,
}


def line(number: int) -> dict[str, object]:
    return {"id": f"photos/2024/IMG_{number:07}.jpg", **LINE}


def resume(folder: Path) -> int:
    """What a resumed run does before its first request."""
    with Ledger(Paths(folder / "out.jsonl", folder / "errors.jsonl"), {}, resume=True) as ledger:
        return ledger.done_before


def resume_with_json(folder: Path) -> int:
    """The same by the standard library."""
    with open(folder / "out.jsonl", "rb") as file:
        return len({json.loads(text)["id"] for text in file})


def append(folder: Path) -> int:
    with Journal(folder / "appended.jsonl") as journal:
        for number in range(APPENDED):
            journal.append(line(number))
    return APPENDED


def append_one_by_one(folder: Path) -> int:
    with open(folder / "one-by-one.jsonl", "ab", buffering=0) as file:
        for number in range(APPENDED_ONE_BY_ONE):
            file.write(json.dumps(line(number)).encode() + b"\n")
            os.fsync(file.fileno())
    return APPENDED_ONE_BY_ONE


SIDES: dict[str, Callable[[Path], int]] = {
    side.__name__: side for side in (resume, resume_with_json, append, append_one_by_one)
}


def measure(side: str, folder: Path) -> tuple[float, float, int]:
    """Seconds, MiB at the most and lines of one side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.batch", "--side", side, str(folder)]
    return tuple(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))  # type: ignore[return-value]


def spread(values: list[float]) -> str:
    digits = 0 if max(values) >= 100 else 1
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def table(folder: Path) -> list[str]:
    with open(folder / "out.jsonl", "w") as file:
        for number in range(LINES):
            file.write(json.dumps(line(number)) + "\n")
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    memory: dict[str, list[float]] = {side: [] for side in SIDES}
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            taken, mib, lines = measure(side, folder)
            seconds[side].append(taken)
            memory[side].append(mib)
            rates[side].append(lines / taken)
    size = (folder / "out.jsonl").stat().st_size / LINES

    def row(name: str, values: dict[str, list[float]], one: str, other: str) -> str:
        ratio = statistics.median(values[one]) / statistics.median(values[other])
        return f"| {name} | {spread(values[one])} | {spread(values[other])} | x{ratio:.2f} |"

    return [
        "| | pixtral-sky | the plain way | |",
        "|---|---|---|---|",
        row(f"going on after {LINES:,} lines of {size:.0f} bytes, s", seconds, "resume", "resume_with_json"),
        row("... and MiB, at the most", memory, "resume", "resume_with_json"),
        row("lines that the disk keeps, a second", rates, "append", "append_one_by_one"),
        "",
        f"{page.machine()}.",
    ]


def main() -> None:
    parser = page.parser(__doc__)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder = arguments.side
        begin = time.perf_counter()
        lines = SIDES[side](Path(folder))
        taken = time.perf_counter() - begin
        print(json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, lines]))
        return
    # Not in /tmp, which may be in memory: the disk is measured.
    with tempfile.TemporaryDirectory(prefix=".batch-", dir=Path.cwd()) as folder:
        lines = table(Path(folder))
    page.show("batch", lines, arguments.write)


if __name__ == "__main__":
    main()
