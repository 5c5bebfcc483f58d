"""pixtral-sky down."""

from __future__ import annotations

from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.state import DEFAULT_NAME


def down(
    name: Annotated[str, typer.Argument(help="What it is remembered as.")] = DEFAULT_NAME,
) -> None:
    """Stop a deployment, with every process of it."""
    from pixtral_sky import rehearsal, state
    from pixtral_sky.errors import NoEndpoint

    deployment = state.recall(name)
    if not isinstance(deployment, state.Rehearsal):
        others = ", ".join(state.known())
        raise NoEndpoint(
            f"No deployment named {name!r} is remembered here.",
            f"There are: {others}." if others else "There is none.",
        )
    ran = deployment.is_running()
    with output.phase(f"stopping {name}"):
        rehearsal.stop(deployment)
    output.say(
        f"{name} is stopped: no process of it is left."
        if ran
        else f"{name} had ended by itself; it is forgotten."
    )
