"""pixtral-sky doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pixtral_sky import output


def doctor(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The deployment to look at. [default: PIXTRAL_ENDPOINT, or pixtral]", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The task file; without it the shipped pixtral.yaml.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check what a launch needs, and what is running: that it answers, and nobody without the key.

    Exit code 0 when nothing failed.

    \b
    ok    it is well
    FAIL  it is not; what mends it is said
    ?     it could not be checked
    -     it is not there yet
    """
    from dataclasses import asdict

    from pixtral_sky import state
    from pixtral_sky.doctor import examine

    if name is not None:
        state.check_name(name)
    checks = []
    for check in examine(name, file):
        checks.append(check)
        if not as_json:
            output.data(str(check))
    if as_json:
        output.data(json.dumps([asdict(check) for check in checks], indent=1))
    if any(check.state == "failed" for check in checks):
        raise typer.Exit(1)
