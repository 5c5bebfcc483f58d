"""The tunnel and all that opens it, with a stand-in for ssh. With the real one: e2e/test_tunnel.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pixtral_sky.client.client import RETRY_SECONDS, Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import store, tunnel
from pixtral_sky.deploy.tunnel import Tunnel
from pixtral_sky.errors import NoTunnel, PixtralSkyError, Unauthorized, Unreachable
from tests.support import deployments
from tests.support import fake_endpoint as fake
from tests.support.command_line import KEY, Result, Run
from tests.support.fake_endpoint import FakeEndpoint, says

MESSAGES = [{"role": "user", "content": "What is this?"}]
NAME = "pixtral"
HERE = Tunnel(NAME, 18081, 8081)
FORWARD = "127.0.0.1:18081:127.0.0.1:8081"

# What ssh does, as far as a tunnel is concerned. The "socket" holds the forwards of the one in the background.
STAND_IN = r"""#!/bin/sh
log=LOG
{ printf '%s\037' "$@"; printf '\n'; } >> "$log"
[ -e "$log.hangs" ] && exec sleep 60
command= forward= socket=
while [ $# -gt 0 ]; do
  case $1 in -O) command=$2; shift ;; -L) forward=$2; shift ;; -S) socket=$2; shift ;; esac
  shift
done
case $command in
  forward)
    grep -qsxF "$forward" "$socket" && exit 0
    echo "mux_client_forward: forwarding request failed: Port forwarding failed" >&2
    exit 255 ;;
  check) [ -s "$socket" ]; exit ;;
  exit) [ -s "$socket" ] && rm "$socket" && exit 0; exit 255 ;;
esac
[ -e "$log.slow" ] && for _ in $(seq 200); do [ "$(grep -c forward "$log")" -ge 3 ] && break; sleep 0.05; done
[ -e "$log.fails" ] && { cat "$log.fails" >&2; exit 255; }
[ -e "$socket" ] && { echo "ControlSocket $socket already exists, disabling multiplexing" >&2; exit 0; }
echo "$forward" > "$socket"
"""


@dataclass
class Ssh:
    log: Path
    socket: Path

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every run of it."""
        return (
            [line.split("\037")[:-1] for line in self.log.read_text().splitlines()]
            if self.log.exists()
            else []
        )

    @property
    def starts(self) -> list[list[str]]:
        return [call for call in self.calls if "-f" in call]

    def fails(self, said: str) -> None:
        """From now on it says so, and does not start."""
        Path(f"{self.log}.fails").write_text(said)

    def hangs(self) -> None:
        Path(f"{self.log}.hangs").touch()

    def is_slow(self) -> None:
        """It starts when it has been asked three times whether it is there."""
        Path(f"{self.log}.slow").touch()

    def drop(self) -> None:
        """Its connection is lost."""
        self.socket.unlink()


@pytest.fixture
def ssh(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """The stand-in, first on PATH, and what SkyPilot writes for a cluster."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    log = tmp_path / "ssh.log"
    program.write_text(STAND_IN.replace("LOG", str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    generated = tmp_path / "user" / ".sky" / "generated"
    for path in (generated / "ssh" / NAME, generated / "ssh-keys" / f"{NAME}.key"):
        path.parent.mkdir(parents=True)
        path.touch()
    return Ssh(log, home / "tunnels" / NAME)


def fails(kind: type[PixtralSkyError], call: Callable[[], object]) -> str:
    """The one line of an error of exactly that kind."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert str(caught.value).isprintable()
    return str(caught.value)


# Open and close --------------------------------------------------------------------------------------------


def test_it_is_started_once(ssh: Ssh) -> None:
    assert not HERE.is_open()
    HERE.open()
    assert HERE.is_open()
    HERE.open()
    Tunnel(NAME, 18081, 8081).open()
    assert len(ssh.starts) == 1


def test_its_arguments(ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIXTRAL_API_KEY", "HF_TOKEN", "HF_HOME", "SSH_ORIGINAL_COMMAND"):
        monkeypatch.setenv(name, KEY)
    HERE.open()
    HERE.close()
    (start,) = ssh.starts
    generated = tmp_path / "user" / ".sky" / "generated"
    assert start[:6] == ["-F", f"{generated}/ssh/{NAME}", "-f", "-N", "-L", FORWARD]
    assert start[-5:] == ["-i", f"{generated}/ssh-keys/{NAME}.key", "-S", f"./{NAME}", NAME]
    options = dict(word[2:].split("=") for word in start[6:-5])
    assert options["BatchMode"] == options["ControlMaster"] == options["ExitOnForwardFailure"] == "yes"
    assert options["ControlPersist"] == "60", "seconds: it ends itself"
    assert int(options["ServerAliveInterval"]) * (int(options["ServerAliveCountMax"]) + 1) == 15
    assert not any("SENTINEL" in word for call in ssh.calls for word in call)


def test_a_key_that_skypilot_did_not_leave(ssh: Ssh, tmp_path: Path) -> None:
    (tmp_path / "user/.sky/generated/ssh-keys" / f"{NAME}.key").unlink()
    HERE.open()
    assert "-i" not in ssh.starts[0], "the file of SkyPilot names it"


def test_it_is_for_its_owner_only(ssh: Ssh, home: Path) -> None:
    before = os.umask(0)
    try:
        HERE.open()
    finally:
        os.umask(before)
    assert (home / "tunnels").stat().st_mode & 0o777 == 0o700


def test_two_that_start_together(ssh: Ssh) -> None:
    """Whoever comes first waits until the other has asked as well, and the other for its lock."""
    ssh.is_slow()
    program = "from pixtral_sky.deploy.tunnel import Tunnel; Tunnel('pixtral', 18081, 8081).open()"
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert len(ssh.starts) == 1
    assert len(ssh.calls) >= 4


def test_it_is_started_again_when_it_was_dropped(ssh: Ssh) -> None:
    HERE.open()
    ssh.drop()
    assert not HERE.is_open()
    HERE.open()
    assert len(ssh.starts) == 2


def test_a_socket_whose_ssh_was_killed(ssh: Ssh) -> None:
    """With it, ssh would start without a socket of its own: never found, and never ended."""
    HERE.open()
    ssh.socket.write_text("")
    HERE.open()
    assert HERE.is_open()
    assert len(ssh.starts) == 2
    HERE.open()
    assert len(ssh.starts) == 2


def test_one_with_other_ports_is_replaced(ssh: Ssh) -> None:
    Tunnel(NAME, 18081, 9999).open()
    HERE.open()
    assert HERE.is_open()
    assert not Tunnel(NAME, 18081, 9999).is_open()


def test_close(ssh: Ssh) -> None:
    HERE.close()
    HERE.open()
    HERE.close()
    assert not HERE.is_open()
    assert not ssh.socket.exists()
    HERE.open()
    ssh.socket.write_text("")  # its ssh was killed
    HERE.close()
    assert not ssh.socket.exists()


def test_close_without_the_file_of_skypilot(ssh: Ssh, tmp_path: Path) -> None:
    """`sky down` removes it."""
    HERE.open()
    (tmp_path / "user/.sky/generated/ssh" / NAME).unlink()
    assert HERE.is_open()
    HERE.close()
    assert not ssh.socket.exists()


def test_no_name_is_that_of_a_lock(ssh: Ssh, home: Path) -> None:
    HERE.open()
    for path in (home / "tunnels").iterdir():
        if path.name != NAME:
            with pytest.raises(PixtralSkyError):
                store.check_name(path.name)


# What goes wrong -------------------------------------------------------------------------------------------


def test_skypilot_has_left_no_way(ssh: Ssh) -> None:
    text = fails(NoTunnel, Tunnel("other", 18081, 8081).open)
    assert text == "SkyPilot's ssh configuration of 'other' is missing here. Run: sky status other"
    assert not ssh.starts


def test_no_ssh(ssh: Ssh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fails(NoTunnel, HERE.open) == "There is no ssh on this machine. Install OpenSSH's client."
    HERE.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "ssh: connect to host 10.0.0.7 port 22: Connection refused\r\n",
            "connect to host 10.0.0.7 port 22: Connection refused",
        ),
        ("Load key: bad\nme@10.0.0.7: Permission denied (publickey).\n\n", "me@10.0.0.7: Permission denied (publickey)"),
        ("kex_exchange_identification: Connection closed by remote host\n", "Connection closed by remote host"),
        ("\x1b[31mNo\x07.\n", "[31mNo"),
        ("", "it ended with 255"),
    ],
)  # fmt: skip
def test_the_reason_of_ssh(ssh: Ssh, said: str, reason: str) -> None:
    ssh.fails(said)
    text = fails(Unreachable, HERE.open)
    assert text == f"ssh does not reach 'pixtral': {reason}. Is it running? sky status pixtral"


def test_what_ssh_says_need_not_be_text(ssh: Ssh) -> None:
    Path(f"{ssh.log}.fails").write_bytes(b"\xff\xfe no\n")
    assert " no. Is it" in fails(Unreachable, HERE.open)


@pytest.mark.parametrize("before", ["bind [127.0.0.1]:18081: ", "bind: "])
def test_the_port_is_taken(ssh: Ssh, before: str) -> None:
    ssh.fails(
        f"{before}Address already in use\nchannel_setup_fwd_listener_tcpip: cannot listen to port: 18081\n"
        "Could not request local forwarding.\n"
    )
    text = fails(Unreachable, HERE.open)
    assert text.startswith("Port 18081 of this machine is taken, and 'pixtral' is reached through it. ")
    assert "lsof -nP -iTCP:18081" in text


def test_ssh_hangs(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer may still be there: its socket is left, and no other is started."""
    HERE.open()
    ssh.hangs()
    monkeypatch.setattr(tunnel, "CONTROL_SECONDS", 0.3)
    for call in (HERE.is_open, HERE.open):
        assert "says nothing for 0 s" in fails(Unreachable, call)
    HERE.close()
    assert ssh.socket.exists()
    assert len(ssh.starts) == 1


# Held open -------------------------------------------------------------------------------------------------


class Over(Exception):
    pass


def held(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> list[str]:
    """What is told while these happen, one after each look at it."""
    left, told = list(steps), []

    def pause(_: float) -> None:
        if not left:
            raise Over
        left.pop(0)()

    monkeypatch.setattr(tunnel, "time", SimpleNamespace(sleep=pause))
    with pytest.raises(Over):
        HERE.hold(told.append)
    return told


def test_it_is_held_open(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        pass

    HERE.open()
    assert held(monkeypatch, nothing, nothing) == []
    told = held(monkeypatch, ssh.drop, lambda: ssh.fails("No route to host"))
    assert told == ["The connection to pixtral was lost; connecting again.", "Connected again."]
    told = held(monkeypatch, ssh.drop, nothing, nothing, Path(f"{ssh.log}.fails").unlink, nothing, ssh.drop)
    lost, reason, *rest = told
    assert (lost, rest) == (told[0], ["Connected again.", lost, "Connected again."])
    assert "No route to host" in reason, "and once"


def test_it_is_held_open_no_longer_than_there_is_a_way(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    HERE.open()
    ssh.drop()
    (tmp_path / "user/.sky/generated/ssh" / NAME).unlink()
    told: list[str] = []
    assert "sky status pixtral" in fails(NoTunnel, lambda: HERE.hold(told.append))
    assert len(told) == 1


def test_it_is_held_open_no_longer_than_its_ports_are_right(ssh: Ssh) -> None:
    """Another launch has changed them, and who talks to that one is not to be cut off."""
    other = Tunnel(NAME, 18081, 9999)
    other.open()
    told: list[str] = []
    text = fails(NoTunnel, lambda: HERE.hold(told.append))
    assert text == "'pixtral' listens on another port now. Hold that one: pixtral-sky tunnel pixtral"
    assert not told
    assert other.is_open()


# The client ------------------------------------------------------------------------------------------------


class Talk:
    def __init__(self, endpoint: FakeEndpoint, **options: Any) -> None:
        self.tunnel = Tunnel(NAME, endpoint.port, 8081)
        self.notices: list[str] = []
        self.pauses: list[float] = []
        options = {"sleep": self.pauses.append, "notify": self.notices.append, **options}
        self.client = Client(endpoint.endpoint(tunnel=self.tunnel, origin=NAME), **options)

    def ask(self) -> str:
        return "".join(self.client.ask(MESSAGES))


def test_the_client_opens_it_first(ssh: Ssh) -> None:
    opened = []

    def behave(exchange: fake.Exchange) -> None:
        opened.append(talk.tunnel.is_open())
        says("Hello")(exchange)

    with FakeEndpoint([behave], key=KEY) as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            assert not ssh.calls, "not before it is needed"
            assert [talk.ask(), talk.ask()] == ["Hello", "Hello"]
    assert opened == [True, True]
    assert len(ssh.starts) == 1
    assert not talk.notices


def test_the_client_opens_it_again_when_it_was_dropped(ssh: Ssh) -> None:
    def behave(exchange: fake.Exchange) -> None:
        ssh.drop()
        exchange.hang_up()

    with FakeEndpoint([behave, says("Hello")], key=KEY) as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            assert talk.ask() == "Hello"
    assert len(ssh.starts) == 2
    assert len(endpoint.requests) == 2
    assert "the connection was dropped before an answer began" in talk.notices[0]


def test_the_client_opens_it_again_between_two_questions(ssh: Ssh) -> None:
    """By itself it ends a minute after its last use."""
    with FakeEndpoint([says("Hello")], key=KEY) as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            talk.ask()
            ssh.drop()
            talk.ask()
    assert len(ssh.starts) == 2
    assert not talk.notices


def test_the_client_tries_again_to_open_it(ssh: Ssh) -> None:
    ssh.fails("ssh: connect to host 10.0.0.7 port 22: Connection refused\n")
    with FakeEndpoint(key=KEY) as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            text = fails(Unreachable, talk.ask)
            assert "Connection refused" in text
            assert 4 <= len(talk.pauses) <= 8
            assert sum(talk.pauses) <= RETRY_SECONDS
            assert talk.notices[0].startswith("pixtral cannot be reached; trying again in ")
            assert not endpoint.requests
            Path(f"{ssh.log}.fails").unlink()
            assert talk.ask() == "A small red square."


def test_the_client_sends_nothing_to_a_stranger_on_its_port(ssh: Ssh) -> None:
    ssh.fails("bind [127.0.0.1]:18081: Address already in use\nCould not request local forwarding.\n")
    with FakeEndpoint() as stranger:
        talk = Talk(stranger, budget=0)
        with talk.client:
            assert f"Port {stranger.port} of this machine is taken" in fails(Unreachable, talk.ask)
        assert not stranger.requests


def test_the_client_asks_no_second_time_where_there_is_no_way(ssh: Ssh, tmp_path: Path) -> None:
    (tmp_path / "user/.sky/generated/ssh" / NAME).unlink()
    with FakeEndpoint() as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            assert "sky status pixtral" in fails(NoTunnel, talk.ask)
    assert not talk.pauses
    assert not endpoint.requests


def test_an_answer_that_is_no_success_opens_nothing_again(ssh: Ssh) -> None:
    with FakeEndpoint([fake.status(401)]) as endpoint:
        talk = Talk(endpoint)
        with talk.client:
            fails(Unauthorized, talk.ask)
    assert len(ssh.starts) == 1


# The command -----------------------------------------------------------------------------------------------


def remember(name: str = NAME, private: bool = True, url: str = "http://127.0.0.1:18081") -> None:
    deployments.cluster(name, url=url, private=private)


def remember_rehearsal() -> None:
    me = psutil.Process()
    deployments.rehearsal(url="http://127.0.0.1:18081", pid=me.pid, pid_born=store.born(me))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_tunnel(ssh: Ssh, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    remember()
    monkeypatch.setattr(tunnel, "time", SimpleNamespace(sleep=interrupted))
    result = run("tunnel")
    assert (result.code, result.out) == (0, "http://127.0.0.1:18081\n")
    assert "Open until Ctrl-C" in result.err
    assert 'eval "$(pixtral-sky endpoint --env)"' in result.err
    assert "a minute after its last use" in result.err
    assert len(ssh.starts) == 1
    assert HERE.is_open(), "another command may be using it"
    assert run("-q", "tunnel") == Result(0, "http://127.0.0.1:18081\n", "")


def test_tunnel_of_a_name(ssh: Ssh, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "user/.sky/generated/ssh/Other.1").touch()
    remember("Other.1")
    monkeypatch.setattr(tunnel, "time", SimpleNamespace(sleep=interrupted))
    result = run("tunnel", "Other.1")
    assert result.code == 0
    assert 'eval "$(pixtral-sky endpoint --name Other.1 --env)"' in result.err
    assert ssh.starts[0][-1] == "Other.1"


@pytest.mark.parametrize("remembered", [lambda: remember(private=False), remember_rehearsal])
def test_a_tunnel_that_is_not_needed(ssh: Ssh, run: Run, remembered: Callable[[], None]) -> None:
    remembered()
    assert run("tunnel") == Result(
        0, "http://127.0.0.1:18081\n", "pixtral needs no tunnel: use it as it is.\n"
    )
    assert not ssh.calls


def test_tunnel_to_what_is_unknown(ssh: Ssh, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://10.0.0.7:8081")  # asked for is one that is remembered
    result = run("tunnel", "unknown")
    assert result.code == 2
    assert "'unknown'" in result.error
    assert run("tunnel", "../x").code == 2
    assert not ssh.calls


def test_tunnel_to_one_that_has_no_endpoint_yet(ssh: Ssh, run: Run) -> None:
    remember(url="")
    result = run("tunnel")
    assert result.code == 2
    assert "has no address" in result.error


def test_tunnel_that_does_not_open(ssh: Ssh, run: Run) -> None:
    remember()
    ssh.fails("ssh: connect to host 10.0.0.7 port 22: Connection refused\n")
    result = run("tunnel")
    assert (result.code, result.out) == (1, "")
    assert "Error: ssh does not reach 'pixtral': connect to host 10.0.0.7 port 22" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(ssh: Ssh, number: signal.Signals) -> None:
    remember()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would ignore what we ignore
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pixtral_sky", "tunnel"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    with process:
        assert process.stdout
        assert process.stdout.readline() == "http://127.0.0.1:18081\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert re.search(r"No longer held open: it ends a minute after its last use\.\n$", err)


def test_an_endpoint_of_the_environment_has_no_tunnel() -> None:
    assert Endpoint("http://127.0.0.1:18081").tunnel is None
