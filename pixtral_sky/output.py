"""The one place that prints: data to stdout, all else to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pixtral_sky.errors import PixtralSkyError

CLOSED_PIPE = 141  # the exit code that shells give for SIGPIPE

quiet = False


def at_terminal() -> bool:
    """Whether stderr is a terminal. It is None where the parent process has closed it."""
    return sys.stderr is not None and sys.stderr.isatty()


def prepare() -> None:
    """Let both streams show a character that their encoding lacks as its escape, as in ``\\xe9``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def data(text: str, end: str = "\n") -> None:
    """Print the result of a command to stdout, where nothing else goes.

    Whoever reads it may have seen enough, as ``head`` has: that ends the command, without a word.
    """
    if sys.stdout is None:  # the parent process has closed it
        raise PixtralSkyError("Standard output is closed.")
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left to write goes nowhere: Python flushes when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)


def document(value: object, indent: int | None = 1) -> None:
    """Print a result as JSON; without ``indent``, in one line."""
    data(json.dumps(value, indent=indent))


def say(text: str = "") -> None:
    """Print information, unless --quiet."""
    if not quiet:
        _tell(text)


def warn(text: str) -> None:
    """Print a warning, even with --quiet."""
    _tell(f"Warning: {text}")


def error(text: str) -> None:
    _tell(f"Error: {text}")


def _tell(text: str) -> None:
    if sys.stderr is not None:  # to print, None is stdout
        print(text, file=sys.stderr, flush=True)


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Show what is being waited for, and then how long it took: a spinner on a terminal, a line elsewhere.

    Nothing else may be printed within it.
    """
    started = time.monotonic()
    if quiet:
        yield
        return
    if at_terminal() and not os.environ.get("NO_COLOR"):
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
    """Show one phase after another; each lasts until ``titles`` yields the next."""
    names = iter(titles)
    title = next(names, "")
    while title:
        with phase(title):
            title = next(names, "")


def done(title: str, seconds: float) -> None:
    """Print a finished phase."""
    say(f"  {title:<44} {seconds:6.1f} s")
