"""The one place that prints: data to stdout, all else to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from pixtral_sky.errors import PixtralSkyError

CLOSED_PIPE = 141  # the exit code that shells give for SIGPIPE

quiet = False


def at_terminal() -> bool:
    """Whether stderr is a terminal. It is None where the parent process has closed it."""
    return sys.stderr is not None and sys.stderr.isatty()


def prepare() -> None:
    """Make the standard streams safe to write to.

    A character that their encoding lacks is shown as its escape, as in ``\\xe9``. The number of a stream that
    the parent process has closed is taken; else the next file would get it, and with it what others print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def data(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print the result of a command to stdout, where nothing else goes; or to ``stream``, which stdout was.

    Whoever reads it may have seen enough, as ``head`` has: that ends the command, without a word.
    """
    stream = stream or sys.stdout
    if stream is None:  # the parent process has closed it
        raise PixtralSkyError("Standard output is closed.")
    try:
        stream.write(text + end)
        stream.flush()
    except OSError as error:  # a closed pipe, a full disk
        # What is left to write goes nowhere: Python flushes when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        raise


def document(value: object, indent: int | None = 1) -> None:
    """Print a result as JSON; without ``indent``, in one line."""
    data(json.dumps(value, indent=indent))


def say(text: str = "") -> None:
    """Print information, unless --quiet."""
    if not quiet:
        tell(text)


def warn(text: str) -> None:
    """Print a warning, even with --quiet."""
    tell(f"Warning: {text}")


def error(text: str) -> None:
    tell(f"Error: {text}")


def tell(text: str, end: str = "\n") -> None:
    """Print to stderr, even with --quiet. Where nobody can read it, the command goes on nevertheless."""
    if sys.stderr is not None:  # to print, None is stdout
        with suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


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

        columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
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
