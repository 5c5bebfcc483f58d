"""What commands share."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pixtral_sky import output
from pixtral_sky.deploy.store import DEFAULT_NAME

if TYPE_CHECKING:
    from pixtral_sky.deploy.bring_up import Checked
    from pixtral_sky.deploy.task import Task
    from pixtral_sky.errors import UsageError

SECRETS = ("PIXTRAL_API_KEY", "HF_TOKEN")


def load(
    file: Path | None, words: list[str] | None, precision: str | None, idle: float | None = None
) -> Task:
    """The task ``file`` with the values of ``--env NAME=VALUE``, ``--precision`` and ``--idle``.

    Raises UsageError, also for a secret in --env.
    """
    from pixtral_sky.deploy import task

    given = _envs(words or [], precision)
    if idle is not None:
        given["IDLE_MINUTES"] = f"{idle:f}".rstrip("0").rstrip(".")  # the script takes no exponent
    return task.load(file).with_envs(given)


def _envs(words: list[str], precision: str | None) -> dict[str, str]:
    from pixtral_sky import memory
    from pixtral_sky.errors import UsageError

    given = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name in SECRETS:
            raise UsageError(f"{name} is a secret, and others can see arguments.", f"Run: export {name}=...")
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError("--env takes NAME=VALUE.", "For example: --env MAX_IMAGES=8")
        given[name] = value
    if precision is not None:
        precision = precision.lower()
        if precision not in memory.PRECISIONS:
            raise UsageError(f"--precision is {' or '.join(memory.PRECISIONS)}, not {precision!r}.")
        if given.setdefault("PRECISION", precision) != precision:
            raise UsageError(
                f"--precision {precision} and --env PRECISION={given['PRECISION']} are not the same."
            )
    return given


def say_choice(plan: Checked) -> None:
    """Show what a plan says about its candidates."""
    for warning in plan.warned:
        output.warn(warning)
    for line in plan.said:
        output.say(line)


def confirm(question: str, yes: bool) -> None:
    """Ask before it costs money, unless --yes has answered. A no ends the command."""
    from pixtral_sky.errors import UsageError

    if not yes:
        confirm_or_abort(
            question, True, UsageError("This costs money, and nobody is here to be asked.", "Add --yes")
        )


def confirm_or_abort(question: str, default: bool, nobody: UsageError) -> None:
    """Ask a question; a no ends the command. Raises ``nobody`` where none can be answered."""
    if sys.stderr is None or sys.stdin is None or not sys.stdin.isatty():
        raise nobody
    with contextlib.redirect_stdout(sys.stderr):  # click writes the last character of a question to stdout
        typer.confirm(question, default=default, abort=True, err=True)


@contextlib.contextmanager
def accounted(name: str, group: str, left: Callable[[], str]) -> Iterator[None]:
    """A context for making something that costs money: on failure, ``left`` tells the user what is left.

    ``group``: the prefix of its commands `status` and `down`, "serve " or empty.
    """
    from pixtral_sky.deploy.launch import StoppedWaiting
    from pixtral_sky.errors import PixtralSkyError

    try:
        yield
    except StoppedWaiting:
        output.warn(f"No machine was to be had. {left()}")
        raise
    except KeyboardInterrupt:
        output.warn(
            f"{name} goes on without this command, and may cost money. "
            f"Look: pixtral-sky {group}status {name}   Stop it: pixtral-sky {group}down {name}"
        )
        raise
    except PixtralSkyError as error:
        error.what = f"{error.what} {left()}".rstrip()
        raise


def say_next(name: str, service: bool = False) -> None:
    """Show the commands for a new deployment."""
    if os.environ.get("PIXTRAL_ENDPOINT"):
        output.warn("PIXTRAL_ENDPOINT is set here, and `ask` goes there: unset it, or give -n.")
    this, it = ("", "") if name == DEFAULT_NAME else (f" -n {name}", f" {name}")
    commands = (f"ask{this} picture.jpg", f"endpoint{this} --env", f"down{it}")
    if service:
        commands = (f"serve status{it}", f"ask{this} picture.jpg", f"serve down{it}")
    output.say("Next:  " + "   |   ".join(f"pixtral-sky {command}" for command in commands))


def check_files(plot: Path | None, write: Path | None) -> None:
    """Raise UsageError for a picture or a new service file that cannot be written."""
    from pixtral_sky import files

    if write:
        files.check_new(write, "--write")
    if plot:
        from pixtral_sky.planning import charts

        charts.check(plot)


def write_service(path: Path, made: Callable[[str, str], str]) -> None:
    """Write the service file that ``made`` makes of its name and of this command, for its first lines."""
    from pixtral_sky.planning import service_file

    name, command = (" ".join(words.split()) for words in (path.name, shlex.join(sys.argv[1:])))
    text = made(name, f"pixtral-sky {command}")
    for warning in service_file.warnings(text):
        output.warn(warning)
    path.write_text(text)
    output.say(f"Written: {path}, {service_file.summary(text)}")
    output.say(f"Next:  pixtral-sky serve up --file {path}")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> None:
    """Print rows in columns: floats by the cent, and "-" for None. A column of "-" is left out."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = [column for column in zip(head, *cells, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        output.data(f"{indent}{text}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def age(seconds: float | None) -> str:
    """An age for people: days and hours, hours and minutes, or minutes."""
    if seconds is None:
        return "-"
    minutes = max(int(seconds // 60), 0)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def minutes(seconds: float) -> str:
    """A duration for people: seconds, or minutes from two on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
