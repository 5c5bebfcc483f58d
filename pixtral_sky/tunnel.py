"""The way to a server that listens on its own machine only: a port of 127.0.0.1 here, through ssh.

ssh does it all: one master connection a deployment, shared by every command, that ends itself after
PERSIST_SECONDS without use (ssh_config(5): ControlMaster, ControlPersist). SkyPilot writes the way to a
cluster into ``~/.sky/generated/ssh/NAME``.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixtral_sky import state
from pixtral_sky.errors import Unreachable

PERSIST_SECONDS = 60
CONNECT_SECONDS = 20
CHECK_SECONDS = 1.0  # how often a tunnel that is held open is looked at

OPTIONS = {
    "BatchMode": "yes",  # a question would wait for ever
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ControlMaster": "yes",
    "ControlPersist": str(PERSIST_SECONDS),
    "ExitOnForwardFailure": "yes",  # without its port it is of no use
    "LogLevel": "ERROR",
    # A connection that was dropped is noticed within 15 seconds.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}


@dataclass(frozen=True)
class Tunnel:
    """From ``local_port`` here to ``port`` on the machine of a cluster called ``name``, both on 127.0.0.1."""

    name: str
    local_port: int
    port: int

    def open(self) -> None:
        """Return when it is open; another command may have opened it. Raises Unreachable."""
        if self.is_open():
            return
        with self._alone():
            if self.is_open():
                return
            forward = f"127.0.0.1:{self.local_port}:127.0.0.1:{self.port}"
            self._ssh("-f", "-N", "-L", forward, *(f"-o{k}={v}" for k, v in OPTIONS.items()))

    def is_open(self) -> bool:
        """Whether its ssh is there. Asking counts as use."""
        try:
            self._ssh("-O", "check")
        except Unreachable:
            return False
        return True

    def close(self) -> None:
        """End it, for every command that uses it."""
        with self._alone(), contextlib.suppress(Unreachable):
            self._ssh("-O", "exit")

    def hold(self, notify: Callable[[str], None]) -> None:
        """Keep it open until the program is interrupted; ``notify`` is told when it breaks, and is back."""
        broken = False
        while True:
            try:
                if not self.is_open():
                    if not broken:
                        broken = True
                        notify(f"The connection to {self.name} was lost; connecting again.")
                    self.open()
            except Unreachable as error:
                notify(f"{error}")
                time.sleep(4)
            else:
                if broken:
                    notify("Connected again.")
                broken = False
            time.sleep(CHECK_SECONDS)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time: of two that start together, the second finds what the first has opened."""
        with (self._folder() / f"{self.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _ssh(self, *arguments: str) -> None:
        """Run ssh to the end, or into the background. Raises Unreachable with its own reason."""
        config = Path.home() / ".sky/generated/ssh" / self.name
        if not config.is_file():
            raise Unreachable(
                f"SkyPilot has left no way to {self.name!r} here.", f"Run: sky status {self.name}"
            )
        command = ["ssh", "-F", str(config), *arguments]
        # ssh itself takes ~ in that file from the system's list of users, SkyPilot from $HOME.
        key = Path.home() / ".sky/generated/ssh-keys" / f"{self.name}.key"
        if key.is_file():
            command += ["-i", str(key)]
        # In its folder and by a relative name, as the path of a socket is short (104 bytes on macOS).
        command += ["-S", f"./{self.name}", self.name]
        with tempfile.TemporaryFile("w+") as said:  # not a pipe, which the master would hold open
            try:
                process = subprocess.run(
                    command,
                    cwd=self._folder(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                )
            except FileNotFoundError:
                raise Unreachable("There is no ssh on this machine.", "Install OpenSSH's client.") from None
            if process.returncode:
                said.seek(0)
                lines = [line.strip() for line in said if line.strip()]
                reason = lines[-1].rstrip(".") if lines else f"it ended with {process.returncode}"
                raise Unreachable(
                    f"ssh does not reach {self.name!r}: {reason}.",
                    f"Is it running? pixtral-sky status {self.name}",
                )

    @staticmethod
    def _folder() -> Path:
        folder = state.home() / "tunnels"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
