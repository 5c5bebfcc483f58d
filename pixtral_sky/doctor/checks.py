"""Checks what a launch needs, and whether a running deployment works.

Each check runs when its result is asked for. The checks start SkyPilot's local server where none runs; of a
place that is named, SkyPilot checks its access anew, as `sky check` does. Their picture restarts the idle
clock of a deployment. They change nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pixtral_sky.deploy import infra, skypilot
from pixtral_sky.doctor import access, endpoint, machine, place
from pixtral_sky.doctor.check import Check, Facts, Step, run

HERE = (
    Step("pixtral-sky", machine.versions),
    Step("files", machine.files),
)
FILE = Step("task file", machine.task_file)
SKYPILOT = Step("SkyPilot", place.package)
SERVER = Step("SkyPilot server", place.server, ("SkyPilot",))
ANYWHERE = Step("SkyPilot infra", place.enabled, ("SkyPilot server",))
# Of a place that is named.
PACKAGES = Step("packages", place.packages, ("SkyPilot",))
THERE = (
    Step("credentials", place.credentials, ("packages", "SkyPilot server")),
    Step("quota", place.quota, ("credentials", "task file")),
)
MACHINES = Step("machines", place.machines, ("SkyPilot", "task file"))  # by catalogs
OWN_MACHINES = Step("machines", place.machines, ("credentials", "task file"))
TASK = (
    Step("Azure", place.image),
    Step("SkyPilot task", place.sky_task, ("SkyPilot", "task file")),
    Step("GPUs", machine.fit, ("task file",)),
)
USER = (
    Step("Hugging Face", access.hugging_face, ("task file",)),
    Step("ssh", machine.ssh),
)
ENDPOINT = (
    Step("key", access.key),
    Step("endpoint", endpoint.reach),
    Step("models", endpoint.models, ("endpoint",)),
    Step("gateway", endpoint.gateway, ("endpoint",)),
    Step("picture", endpoint.picture, ("models",)),
)


def examine(name: str | None = None, file: Path | None = None, where: str | None = None) -> Iterator[Check]:
    """Check the task ``file`` (or the shipped one) and the endpoint that ``resolve.find`` finds.

    With ``where``, in the syntax of --infra: what a launch there needs. An error in a check is its result,
    and is not raised, but UsageError is for a ``where`` that names no place.
    """
    named = infra.parse(where) if where is not None else None
    facts = Facts(name, file, named if named and named.cloud else None, access.of_environment())
    return run(_steps(facts), facts)


def _steps(facts: Facts) -> tuple[Step, ...]:
    asks = facts.name is None and not facts.file and not facts.place and os.environ.get("PIXTRAL_ENDPOINT")
    if asks and not skypilot.installed():
        return (*HERE, Step("SkyPilot", place.without), *ENDPOINT)
    if facts.place:
        machines = OWN_MACHINES if facts.place.is_own else MACHINES
        return (*HERE, FILE, SKYPILOT, PACKAGES, SERVER, *THERE, *TASK, machines, *USER, *ENDPOINT)
    return (*HERE, FILE, SKYPILOT, SERVER, ANYWHERE, *TASK, *USER, *ENDPOINT)
