"""The one place that prints: data goes to stdout, all else to stderr."""

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
    """Print what the command was asked for. Nothing else goes to stdout, so a pipe holds only this."""
    if sys.stdout is None:  # the caller closed it
        raise PixtralSkyError("Standard output is closed.")
    sys.stdout.write(text + end)
    sys.stdout.flush()


def document(value: object, indent: int | None = 1) -> None:
    """The same as JSON; in one line without ``indent``."""
    data(json.dumps(value, indent=indent))


def say(text: str = "") -> None:
    """Print what is good to know; nothing when ``quiet``."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print what a person must know."""
    print(f"Warning: {text}", file=sys.stderr, flush=True)


def error(text: str) -> None:
    print(f"Error: {text}", file=sys.stderr, flush=True)


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Show what is waited for, with the seconds: a spinner on a terminal, a line elsewhere.

    Print nothing and begin no other phase within it.
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
    """Show one phase after another; each lasts until the next title comes."""
    names = iter(titles)
    title = next(names, "")
    while title:
        with phase(title):
            title = next(names, "")


def done(title: str, seconds: float) -> None:
    """The line that a phase leaves behind."""
    say(f"  {title:<44} {seconds:6.1f} s")
