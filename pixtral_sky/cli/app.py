"""The command line: registers the commands, and shows every error as one line.

Command modules import what they need inside their functions, so that --help is fast.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pixtral_sky import __version__, config, output
from pixtral_sky.cli import commands
from pixtral_sky.cli.completion import PROGRAM, VARIABLE
from pixtral_sky.errors import PixtralSkyError, UsageError

# In the order of the help. A command is the function in the module of its name, a group the `app` there.
SECTIONS = {
    "Plan": ("rehearse", "plan", "capacity"),
    "Deploy": ("launch", "serve"),
    "Use": ("ask", "chat", "batch", "bench", "tokens", "endpoint", "tunnel"),
    "Operate": ("doctor", "status", "logs", "down", "completion"),
}
QUIET, GROUPS = ("-q", "--quiet"), ("serve",)
COMMANDS = tuple(name for names in SECTIONS.values() for name in names)
# The base class of Typer's errors of the command line, which Typer does not export.
NotUnderstood: Any = typer.BadParameter.__base__


class Commands(commands.Group):
    sections = SECTIONS


def _version(wanted: bool) -> None:
    if wanted:
        output.data(f"pixtral-sky {__version__}")
        raise typer.Exit


def options(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback has answered)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    output.quiet = quiet


@functools.cache
def _app(only: str) -> typer.Typer:
    """The application; ``only``: with that command alone, for importing all takes a while."""
    app = commands.make(
        name=PROGRAM,
        cls=Commands,
        help="Pixtral 12B as a private endpoint on your own machines.",
        epilog="More of one: pixtral-sky help COMMAND",
    )
    app.callback()(options)
    for name in [only] if only else COMMANDS:
        module = importlib.import_module(f"pixtral_sky.cli.{name}")
        if group := getattr(module, "app", None):
            app.add_typer(group, name=name, cls=commands.Group)
        else:
            app.command(cls=commands.Command)(getattr(module, name))
    return app


def _arguments() -> list[str]:
    """Those of this run; `help COMMAND` is `COMMAND --help`, and `serve help up` is `serve up --help`."""
    words = sys.argv[1:]
    at = next((number for number, word in enumerate(words) if word not in (*QUIET, *GROUPS)), len(words))
    if words[at : at + 1] == ["help"]:
        below = [word for word in words[at + 1 :] if word != "help"]
        return [*words[:at], *below, "--help"]
    return words


def _only(arguments: Sequence[str]) -> str:
    """The command in ``arguments``; empty if the first word is not one, as with --help."""
    first = next((word for word in arguments if word not in QUIET), "")
    return first if first in COMMANDS else ""


def _defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Those of the configuration. A damaged one is in the way of no help, and of no new shell."""
    try:
        return config.defaults()
    except UsageError:
        if _only(arguments) in ("", "completion") or {"-h", "--help"} & {*arguments}:
            return {}
        raise


def _complete() -> None:
    """Answer a shell that asks for completions, and exit."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()
    _app("")(prog_name=PROGRAM, complete_var=VARIABLE)


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 141 a closed pipe.

    PIXTRAL_SKY_DEBUG=1 shows the traceback of an error.
    """
    output.prepare()
    if VARIABLE in os.environ:
        _complete()
    try:
        arguments = _arguments()
        # Not standalone: Typer would show an error in several lines.
        run = functools.partial(_app(_only(arguments)), arguments, standalone_mode=False)
        sys.exit(run(prog_name=PROGRAM, default_map=_defaults(arguments)) or 0)
    except NotUnderstood as error:
        if error.message.startswith("Usage: "):  # without arguments, the message is the help
            output.tell(error.message)
        else:
            if error.ctx and commands.is_named_by_argument(error.ctx.command, error):
                error.message += ": the name is an argument here."
            help_of = f" Help: {error.ctx.command_path} --help" if error.ctx else ""
            what = " ".join(error.format_message().split())
            output.error(f"{what}{'' if what.endswith(('.', '?')) else '.'}{help_of}")
        sys.exit(error.exit_code)
    except typer.Abort:  # the user has answered no
        output.say("Aborted.")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("PIXTRAL_SKY_DEBUG"):
            raise
        output.error(_line(error))
        sys.exit(error.exit_code if isinstance(error, PixtralSkyError) else 1)


def _line(error: Exception) -> str:
    """The error message."""
    if isinstance(error, PixtralSkyError):
        return str(error)
    from pixtral_sky.text import os_reason  # slow to import

    if isinstance(error, OSError):  # a full disk, a home that cannot be written to
        return f"{os_reason(error, type(error).__name__)}: {error.filename or 'while writing'}."
    return (
        f"{type(error).__name__}: {' '.join(str(error).split())}. This is a fault of pixtral-sky; "
        "PIXTRAL_SKY_DEBUG=1 shows where."
    )
