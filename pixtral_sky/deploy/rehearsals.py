"""Rehearsals, which run on this machine: list, logs, down. A `backend.Backend`.

``rehearsal.process`` starts them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from pixtral_sky import output
from pixtral_sky.deploy import store
from pixtral_sky.deploy.status import Row, row_of
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.errors import NoEndpoint, RehearsalError
from pixtral_sky.text import os_reason

kind, at_skypilot = Rehearsal, False
STOP_SECONDS = 15.0  # to end in order; then it is killed
KILL_SECONDS = 10.0

# The children of this process. A rehearsal may outlive us; until we end, its exit status must be collected.
started: list[subprocess.Popen[bytes]] = []


def records(names: list[str] | None) -> Sequence[Any]:  # noqa: ARG001 (SkyPilot has none)
    return ()


def row(one: Rehearsal, record: Any, otherwise: str) -> Row:  # noqa: ARG001
    if one.is_running():
        return row_of(one, "running")
    # Another program may listen on its port by now: that is not sent the key.
    return row_of(one, "ended", f"it has ended; its log: {one.log}")


def locate(name: str) -> None:
    """SkyPilot has no rehearsal."""


def logs(name: str, *, follow: bool, lines: int) -> None:
    if not (one := store.recall_as(name, Rehearsal)):
        raise NoEndpoint(f"There is no rehearsal named {name!r}.", "What there is: pixtral-sky status")
    try:
        file = Path(one.log).open(errors="replace")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RehearsalError(
            f"The log of the rehearsal {name!r} cannot be read: {os_reason(error)}: {one.log}.",
            "" if one.is_running() else f"Forget it: pixtral-sky down {name}",
        ) from error
    with file:
        before = file.readlines()
        for line in before[-lines:] if lines else before:
            output.data(line, end="")
        while follow and one.is_running():
            if line := file.readline():
                output.data(line, end="")
            else:
                time.sleep(0.2)
        output.data(file.read(), end="")


def down(name: str, one: Rehearsal) -> bool:
    ran = one.is_running()
    with output.phase(f"stopping {name}"):
        stop(one)
    return ran


def stop(deployment: Rehearsal) -> None:
    """End all its processes, and forget it. Raises RehearsalError when a process does not end.

    A stranger's process that has its pid by now is left alone.
    """
    asked: set[int] = set()
    begin = time.monotonic()
    while left := processes(deployment):
        seconds = time.monotonic() - begin
        # The script first: it ends the server, which ends its own children, and then cleans up.
        in_order = seconds < STOP_SECONDS / 3 and any(process.pid == deployment.pid for process in left)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if seconds > STOP_SECONDS:
                    process.kill()
                elif process.pid not in asked and (process.pid == deployment.pid or not in_order):
                    asked.add(process.pid)
                    process.terminate()
        if seconds > STOP_SECONDS + KILL_SECONDS:
            pids = ", ".join(str(process.pid) for process in left)
            raise RehearsalError(
                f"These processes do not end: {pids}.", f"Try again: pixtral-sky down {deployment.name}"
            )
        time.sleep(0.05)
    for child in started:
        child.poll()
    (store.home() / f"{deployment.name}.sh").unlink(missing_ok=True)
    store.forget(deployment.name)


def processes(deployment: Rehearsal) -> list[psutil.Process]:
    """The live processes of its session; a process whose parent has ended is no longer its descendant."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if not deployment.is_leader(psutil.Process(deployment.pid)):
            return []  # the system reuses no session id while a process of the session lives
    return of_session(deployment.pid)


def of_session(leader: int) -> list[psutil.Process]:
    """The live processes of a session, the oldest pid first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda each: each.pid)
