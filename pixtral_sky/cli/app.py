"""The command line: wires the commands, and turns every error into one line.

The command modules import what they need when they run; --help imports none of it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pixtral_sky import __version__, output
from pixtral_sky.cli import serve
from pixtral_sky.cli.ask import ask
from pixtral_sky.cli.doctor import doctor
from pixtral_sky.cli.down import down
from pixtral_sky.cli.endpoint import endpoint
from pixtral_sky.cli.launch import launch
from pixtral_sky.cli.logs import logs
from pixtral_sky.cli.rehearse import rehearse
from pixtral_sky.cli.status import status
from pixtral_sky.cli.tokens import tokens
from pixtral_sky.cli.tunnel import tunnel
from pixtral_sky.errors import PixtralSkyError

app = typer.Typer(
    name="pixtral-sky",
    help="Pixtral 12B as a private endpoint on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text is there in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (rehearse, doctor, launch, status, endpoint, tunnel, ask, tokens, logs, down):
    app.command()(command)
app.add_typer(serve.app, name="serve")


def _version(wanted: bool) -> None:
    if wanted:
        output.data(f"pixtral-sky {__version__}")
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but the answer and errors.")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback has answered)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    output.quiet = quiet


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 it was not understood, 130 Ctrl-C.

    PIXTRAL_SKY_DEBUG=1 shows the traceback of an error.
    """
    try:
        app()
    except PixtralSkyError as error:
        if os.environ.get("PIXTRAL_SKY_DEBUG"):
            raise
        output.error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a full disk, a home that cannot be written to
        if os.environ.get("PIXTRAL_SKY_DEBUG"):
            raise
        output.error(f"{error.strerror or type(error).__name__}: {error.filename or 'while writing'}.")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("PIXTRAL_SKY_DEBUG"):
            raise
        output.error(
            f"{type(error).__name__}: {' '.join(str(error).split())}. This is a fault of pixtral-sky; "
            "PIXTRAL_SKY_DEBUG=1 shows where."
        )
        sys.exit(1)
