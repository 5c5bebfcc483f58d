"""Tunnels: a port of 127.0.0.1 here leads, through ssh, to a server that listens on 127.0.0.1 there.

One ssh master connection per deployment is shared by all commands, and ends after PERSIST_SECONDS without use
(ssh_config(5): ControlMaster, ControlPersist). SkyPilot writes the ssh configuration of a cluster into
``~/.sky/generated/ssh/NAME``.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixtral_sky.deploy import store
from pixtral_sky.errors import NoTunnel, Unreachable

PERSIST_SECONDS = 60
CONNECT_SECONDS = 20
START_SECONDS = 60.0  # ssh itself has no limit for a server that goes silent after the connection
CONTROL_SECONDS = 10.0  # for an answer of the master connection, which takes a few milliseconds
CHECK_SECONDS = 2.0  # between two checks of a tunnel that is held open

OPTIONS = {
    "BatchMode": "yes",  # a prompt would wait for ever
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ControlMaster": "yes",
    "ControlPersist": str(PERSIST_SECONDS),
    "ExitOnForwardFailure": "yes",  # without the port, the tunnel is of no use
    "LogLevel": "ERROR",
    # A lost connection is noticed within 15 s: after two probes without an answer.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "2",
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
        with self._lock():
            if not self.is_open():
                self._end()
                self._start()

    def is_open(self) -> bool:
        """Whether it is open, with these ports. The check counts as use. Raises Unreachable if ssh hangs."""
        # Adding a forward that exists changes nothing; `-O check` would not say which ports it has.
        return self._control("forward", "-L", self._forward)

    def close(self) -> None:
        """Close it, for every command that uses it."""
        with self._lock(), contextlib.suppress(Unreachable):
            self._end()

    def hold(self, notify: Callable[[str], None]) -> None:
        """Keep it open until the program is interrupted; ``notify`` is told of lost and new connections.

        Raises NoTunnel when SkyPilot has removed its ssh configuration, or a launch has changed the port.
        """
        trouble = ""
        while True:
            try:
                if not self.is_open():
                    # Two holders with different ports would close each other's tunnel. Asked again: another
                    # command may just have opened it.
                    if self._control("check") and not self.is_open():
                        raise NoTunnel(
                            f"{self.name!r} listens on another port now.",
                            f"Hold that one: pixtral-sky tunnel {self.name}",
                        )
                    if not trouble:
                        trouble = f"The connection to {self.name} was lost; connecting again."
                        notify(trouble)
                    self.open()
            except NoTunnel:
                raise
            except Unreachable as error:
                if str(error) != trouble:  # once, not at every check
                    trouble = str(error)
                    notify(trouble)
            else:
                if trouble:
                    notify("Connected again.")
                trouble = ""
            time.sleep(CHECK_SECONDS)

    @property
    def _forward(self) -> str:
        return f"127.0.0.1:{self.local_port}:127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Of two commands that open the tunnel at once, the second finds it open."""
        with (self._folder() / f".{self.name}.lock").open("w") as file:  # no name begins with a dot
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self) -> None:
        config = Path.home() / ".sky/generated/ssh" / self.name
        if not config.is_file():
            raise NoTunnel(
                f"SkyPilot's ssh configuration of {self.name!r} is missing here.",
                f"Run: sky status {self.name}",
            )
        arguments = ["-F", str(config), "-f", "-N", "-L", self._forward]
        arguments += [f"-o{option}={value}" for option, value in OPTIONS.items()]
        # For ~ in that file, ssh uses the home of the system's user list, SkyPilot $HOME.
        key = Path.home() / ".sky/generated/ssh-keys" / f"{self.name}.key"
        if key.is_file():
            arguments += ["-i", str(key)]
        said = self._ssh(*arguments, seconds=START_SECONDS)
        if "Address already in use" in said:
            raise Unreachable(
                f"Port {self.local_port} of this machine is taken, and {self.name!r} is reached through it.",
                f"Who has it: lsof -nP -iTCP:{self.local_port} -sTCP:LISTEN",
            )
        if said:
            reason = re.sub(r"^(ssh|kex_exchange_identification): ", "", said.splitlines()[-1])
            reason = "".join(filter(str.isprintable, reason)).strip()[:300].rstrip(".")
            raise Unreachable(f"ssh does not reach {self.name!r}: {reason}.", self._hint)

    def _end(self) -> None:
        """End the ssh master, if there is one, whatever its ports are."""
        self._control("exit")
        # A killed ssh leaves its socket. Beside it, a new ssh would run without one: no command could find
        # it, and it would never end.
        (self._folder() / self.name).unlink(missing_ok=True)

    def _control(self, *command: str) -> bool:
        """Send a command to the ssh master; False if there is none, or it refuses.

        Without SkyPilot's file, which may be gone.
        """
        return not self._ssh("-F", "/dev/null", "-O", *command, seconds=CONTROL_SECONDS)

    def _ssh(self, *arguments: str, seconds: float) -> str:
        """Run ssh until it ends or goes into the background. Returns its error, or an empty string."""
        # A relative path, for the path of a socket has at most 104 bytes on macOS.
        command = ["ssh", *arguments, "-S", f"./{self.name}", self.name]
        # An older ssh in the background would hold a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            try:
                process = subprocess.run(
                    command,
                    cwd=self._folder(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    timeout=seconds,
                )
            except FileNotFoundError:
                raise NoTunnel("There is no ssh on this machine.", "Install OpenSSH's client.") from None
            except subprocess.TimeoutExpired:
                # ssh may still run, and is left alone.
                raise Unreachable(
                    f"ssh does not reach {self.name!r}: it says nothing for {seconds:.0f} s.", self._hint
                ) from None
            if not process.returncode:
                return ""
            said.seek(0)
            return said.read().strip() or f"it ended with {process.returncode}"

    @property
    def _hint(self) -> str:
        return f"Is it running? sky status {self.name}"

    @staticmethod
    def _folder() -> Path:
        folder = store.home() / "tunnels"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
