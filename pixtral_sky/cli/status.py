"""pixtral-sky status."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pixtral_sky import output


def status(
    name: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show what is remembered here, and whether it answers. Exit code 0 only when all of it does."""
    import time

    from pixtral_sky import state
    from pixtral_sky.client import Client
    from pixtral_sky.endpoint import Endpoint
    from pixtral_sky.errors import EndpointError, NoEndpoint, PixtralSkyError, UsageError

    rows = []
    for each in state.known() if name is None else [name]:
        try:
            deployment = state.recall(each)
        except UsageError:
            raise
        except PixtralSkyError as damaged:
            rows.append(
                {
                    "name": each,
                    "kind": "?",
                    "state": "damaged",
                    "age": "?",
                    "endpoint": "?",
                    "answers": f"no: {damaged}",
                }
            )
            continue
        if deployment is None:
            raise NoEndpoint(f"No deployment named {each!r} is remembered here.", "See: pixtral-sky status")
        running = not isinstance(deployment, state.Rehearsal) or deployment.is_running()
        answers = "no"  # and it is not asked once it has ended: somebody else may have its port
        if running:
            try:
                with Client(Endpoint.of(deployment), budget=0, read_timeout=10) as client:
                    client.models()  # with the key
                answers = "yes"
            except EndpointError as error:
                answers = f"no: {error.what}"
        rows.append(
            {
                "name": each,
                "kind": deployment.kind,
                "state": "running" if running else "ended",
                "age": f"{(time.time() - deployment.created) / 60:.0f} min",
                "endpoint": deployment.url,
                "answers": answers,
            }
        )
    if as_json:
        output.data(json.dumps(rows, indent=1))
    elif not rows:
        output.say("Nothing is remembered here. Start one with: pixtral-sky rehearse --keep")
    else:
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        for row in [{key: key.upper() for key in widths}, *rows]:
            output.data("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip())
    if not rows or any(row["answers"] != "yes" for row in rows):
        raise typer.Exit(1)
