"""pixtral-sky logs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options, serve
from pixtral_sky.deploy.store import DEFAULT_NAME, Rehearsal


def logs(
    name: Annotated[str, typer.Argument(help="The deployment.")] = DEFAULT_NAME,
    follow: options.Follow = False,
    lines: options.Lines = 0,
) -> None:
    """Show what a deployment's script and its server say: of a launch, while it lasts."""
    from pixtral_sky.deploy import store

    store.check_name(name)
    one = store.recall(name)
    if isinstance(one, store.Rehearsal):
        _show(one, follow, lines)
        return
    if isinstance(one, store.Service):
        serve.logs(name, None, False, follow, lines)
        return
    from pixtral_sky.deploy import clusters, services, skypilot
    from pixtral_sky.errors import NoEndpoint

    if not one and not skypilot.was_used():
        raise NoEndpoint(f"There is no deployment named {name!r} here.", "What there is: pixtral-sky status")
    try:
        clusters.logs(name, follow=follow, lines=lines)
    except NoEndpoint:
        if one or not services.records([name]):
            raise
        serve.logs(name, None, False, follow, lines)


def _show(one: Rehearsal, follow: bool, lines: int) -> None:
    with Path(one.log).open(errors="replace") as file:
        before = file.readlines()
        for line in before[-lines:] if lines else before:
            output.data(line, end="")
        while follow and one.is_running():
            if line := file.readline():
                output.data(line, end="")
            else:
                time.sleep(0.2)
        output.data(file.read(), end="")
