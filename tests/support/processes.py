"""The processes of a session: those of a script, and of its server, which is in a group of its own."""

from __future__ import annotations

import contextlib
import socket

import psutil

from pixtral_sky.deploy.rehearsals import of_session


def signal_session(leader: int, number: int) -> None:
    """The script first: it would start a server again that is killed before it."""
    for process in of_session(leader):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def closed_port() -> int:
    """Nobody listens there. (``store.free_port`` prefers one that others want, too.)"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def command(process: psutil.Process) -> str:
    """Its command line; empty when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
