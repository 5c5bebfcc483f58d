"""Deployments that are remembered, as a test wants them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import psutil

from pixtral_sky.deploy import store
from pixtral_sky.deploy.store import Cluster, Rehearsal, Service
from tests.support.command_line import KEY

NOBODY = "http://127.0.0.1:9"  # where nobody answers


def cluster(name: str = "pixtral", **fields: Any) -> Cluster:
    """One that was launched from here ten minutes ago."""
    made = Cluster(name, "", KEY, 32768, 4, time.time() - 600, 8081, False, "an-earlier-request")
    return _remembered(replace(made, **fields))


def service(name: str = "pixtral", **fields: Any) -> Service:
    made = Service(name, "", KEY, 32768, 4, time.time() - 600, "an-earlier-request")
    return _remembered(replace(made, **fields))


def rehearsal(name: str = "pixtral", **fields: Any) -> Rehearsal:
    """One that has ended, unless ``pid`` and ``pid_born`` are those of a process."""
    made = Rehearsal(name, NOBODY, KEY, 32768, 4, time.time() - 600, 1, 1.0, "/log")
    return _remembered(replace(made, **fields))


def running(name: str = "pixtral", **fields: Any) -> Rehearsal:
    """A rehearsal that runs, its process is this one; it is not remembered."""
    me = psutil.Process()
    made = Rehearsal(
        name,
        "http://127.0.0.1:8081",
        KEY,
        32768,
        4,
        created=1.0,
        pid=me.pid,
        pid_born=store.born(me),
        log="/the/log",
    )
    return replace(made, **fields)


def _remembered(made: Any) -> Any:
    store.remember(made)
    return made
