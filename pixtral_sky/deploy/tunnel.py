"""The way to a server that listens on its own machine only: a port of 127.0.0.1 here, through ssh.

ssh does it all: one master connection a deployment, shared by every command, that ends itself after
PERSIST_SECONDS without use (ssh_config(5): ControlMaster, ControlPersist). SkyPilot writes the way to a
cluster into ``~/.sky/generated/ssh/NAME``.
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
START_SECONDS = 60.0  # for all of it: a server that goes silent later than at the start has no limit in ssh
CONTROL_SECONDS = 10.0  # for our own ssh in the background, which needs a few milliseconds
CHECK_SECONDS = 2.0  # how often a tunnel that is held open is looked at, and opened again

OPTIONS = {
    "BatchMode": "yes",  # a question would wait for ever
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ControlMaster": "yes",
    "ControlPersist": str(PERSIST_SECONDS),
    "ExitOnForwardFailure": "yes",  # without its port it is of no use
    "LogLevel": "ERROR",
    # A connection that was dropped is noticed within 15 seconds: at the third silence, after two questions.
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
        with self._alone():
            if not self.is_open():
                self._end()
                self._start()

    def is_open(self) -> bool:
        """Whether its ssh is there, with these ports; asking counts as use. Raises Unreachable: it hangs."""
        # A forward that it has already is none to add; `-O check` would not tell which ports they are.
        return self._control("forward", "-L", self._forward)

    def close(self) -> None:
        """End it, for every command that uses it."""
        with self._alone(), contextlib.suppress(Unreachable):
            self._end()

    def hold(self, notify: Callable[[str], None]) -> None:
        """Keep it open until the program is interrupted; ``notify`` is told when it breaks, and is back.

        Raises NoTunnel when SkyPilot has removed the way to the cluster, or another launch has changed it.
        """
        trouble = ""
        while True:
            try:
                if not self.is_open():
                    # Two that hold it in two ways would end each other. Twice: it may just have been opened.
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
                if str(error) != trouble:  # once, and not every few seconds
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
    def _alone(self) -> Iterator[None]:
        """One at a time: of two that start together, the second finds what the first has opened."""
        with (self._folder() / f".{self.name}.lock").open("w") as file:  # no name begins with a dot
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self) -> None:
        config = Path.home() / ".sky/generated/ssh" / self.name
        if not config.is_file():
            raise NoTunnel(f"SkyPilot has left no way to {self.name!r} here.", f"Run: sky status {self.name}")
        arguments = ["-F", str(config), "-f", "-N", "-L", self._forward]
        arguments += [f"-o{option}={value}" for option, value in OPTIONS.items()]
        # ssh itself takes ~ in that file from the system's list of users, SkyPilot from $HOME.
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
        """End its ssh, if there is one, whatever its ports are."""
        self._control("exit")
        # A socket whose ssh was killed stays behind. Where there is one, a new ssh would do without: nobody
        # could find it, and it would never end.
        (self._folder() / self.name).unlink(missing_ok=True)

    def _control(self, *command: str) -> bool:
        """Tell its ssh; False when there is none, or it refuses. SkyPilot's file may be gone meanwhile."""
        return not self._ssh("-F", "/dev/null", "-O", *command, seconds=CONTROL_SECONDS)

    def _ssh(self, *arguments: str, seconds: float) -> str:
        """Run ssh to the end, or into the background; returns what was wrong, empty when nothing was."""
        # In its folder and by a relative name, as the path of a socket is short (104 bytes on macOS).
        command = ["ssh", *arguments, "-S", f"./{self.name}", self.name]
        # Not a pipe, which an older ssh would hold open in the background.
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
                # It may still be there, and is left alone.
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
