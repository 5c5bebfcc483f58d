"""pixtral-sky status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options

if TYPE_CHECKING:
    from pixtral_sky.deploy.status import Row

WATCH_SECONDS = 10.0


def status(
    name: options.Only = None,
    as_json: options.Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every 10 s, until Ctrl-C; keeps services awake.")
    ] = False,
) -> None:
    """Show what runs, what it costs, and whether it answers. Exit code 0 only when all of it does.

    It sends each deployment that is known here or to SkyPilot one request, with its key. PIXTRAL_ENDPOINT has
    a row of its own where it names none of these.
    """
    from pixtral_sky.deploy import backend

    while True:
        rows, trouble = backend.rows(name)
        if trouble:
            output.warn(f"What SkyPilot runs is not known: {trouble}")
        if as_json:
            output.document([vars(row) for row in rows], indent=None if watch else 1)
        elif rows:
            _table(rows)
        elif not trouble:
            output.say("Nothing runs. Start with: pixtral-sky launch, or here: pixtral-sky rehearse --keep")
        if not watch:
            break
        time.sleep(WATCH_SECONDS)
    if not rows or not all(row.answers for row in rows):
        raise typer.Exit(1)


def _table(rows: list[Row]) -> None:
    common.table(
        ("NAME", "KIND", "STATE", "INFRA", "GPUS", "AGE", "$/H", "SPENT", "ENDPOINT", "ANSWERS"),
        [
            (
                row.name,
                row.kind,
                row.state,
                row.infra or "-",
                row.gpus or "-",
                common.age(row.age),
                row.hourly,
                row.spent,
                f"{row.endpoint} (ssh)" if row.private else row.endpoint or "-",
                "yes" if row.answers else f"no: {row.problem}",
            )
            for row in rows
        ],
    )
