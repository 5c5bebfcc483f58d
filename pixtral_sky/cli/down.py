"""pixtral-sky down."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options
from pixtral_sky.deploy.store import DEFAULT_NAME


def down(
    name: Annotated[
        str | None,
        typer.Argument(help="The deployment.", show_default=DEFAULT_NAME, autocompletion=options.deployments),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is known here or to SkyPilot.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a deployment down, and wait until nothing is left."""
    from pixtral_sky.deploy import backend, resolve
    from pixtral_sky.errors import PixtralSkyError, SkyError, UsageError

    if everything and name is not None:
        raise UsageError("--all takes down everything: give it no name.")
    names, failed = [DEFAULT_NAME if name is None else name], None  # type: list[str], PixtralSkyError | None
    if everything:
        names, failed = backend.names()
        if failed:  # rehearsals are stopped nevertheless
            output.error(str(failed))
        elif not names:
            output.say("There is nothing to take down.")
        if names and not yes:
            them = ", ".join(names)
            nobody = UsageError("Nobody is here to be asked.", f"--all --yes takes down: {them}")
            common.confirm_or_abort(f"Take down {them}?", False, nobody)
    aside = resolve.out_of_reach()
    asked_skypilot = any(map(backend.may_be_at_skypilot, names))
    for each in names:
        try:
            output.say(backend.down(each))
        except PixtralSkyError as error:
            if len(names) == 1:
                raise
            output.error(str(error))  # one failure does not keep the others
            failed = error
    if aside:
        output.say(aside)
    if asked_skypilot and not isinstance(failed, SkyError):
        with contextlib.suppress(SkyError):  # the command itself has succeeded
            for text in backend.leftovers():
                output.warn(text)
    if failed:
        raise typer.Exit(1)
