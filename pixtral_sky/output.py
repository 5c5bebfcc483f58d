"""One sink for everything that is printed: data goes to stdout, all else to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pixtral_sky.errors import PixtralSkyError

quiet = False


def data(text: str, end: str = "\n") -> None:
    """What the command was asked for. It alone reaches stdout, so that a pipe holds nothing else."""
    if sys.stdout is None:  # closed by whoever started us
        raise PixtralSkyError("Standard output is closed.")
    sys.stdout.write(text + end)
    sys.stdout.flush()


def document(value: object, indent: int | None = 1) -> None:
    """The same as JSON; without ``indent`` in one line."""
    data(json.dumps(value, indent=indent))


def say(text: str = "") -> None:
    """What a person likes to know."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """What a person must know."""
    print(f"Warning: {text}", file=sys.stderr, flush=True)


def error(text: str) -> None:
    print(f"Error: {text}", file=sys.stderr, flush=True)


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Show what is being waited for, with the seconds: a spinner on a terminal, a line elsewhere.

    Nothing else may be shown within it, another phase neither.
    """
    started = time.monotonic()
    if quiet:
        yield
        return
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            progress.add_task(title)
            yield
    else:
        yield
    done(title, time.monotonic() - started)


def phases(titles: Iterable[str]) -> None:
    """One phase after another, each as long as the next title takes to come."""
    names = iter(titles)
    title = next(names, "")
    while title:
        with phase(title):
            title = next(names, "")


def done(title: str, seconds: float) -> None:
    """The line that a phase leaves behind."""
    say(f"  {title:<44} {seconds:6.1f} s")
