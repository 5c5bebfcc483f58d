"""The tunnel through the real ssh, to a real sshd of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pixtral_sky.client.client import Client
from pixtral_sky.deploy import store, tunnel
from pixtral_sky.deploy.tunnel import Tunnel
from pixtral_sky.errors import Unreachable
from tests.support import fake_endpoint as fake
from tests.support.fake_endpoint import FakeEndpoint, says

pytestmark = pytest.mark.e2e

NAME = "Pixtral-2.x_" + "a" * 51  # the longest that there is
KEY = "e2e-key-that-only-its-endpoint-gets"
MESSAGES = [{"role": "user", "content": "What is this?"}]


class Sshd:
    """An sshd, and what SkyPilot writes for a cluster whose machine it is on."""

    def __init__(self, root: Path) -> None:
        self.root, self.port, me = root, store.free_port(0), pwd.getpwuid(os.getuid()).pw_name
        self.log = root / "sshd" / "log"
        self.generated = root / "user" / ".sky" / "generated"
        self.key = self.generated / "ssh-keys" / f"{NAME}.key"
        for folder in (root / "sshd", self.generated / "ssh", self.generated / "ssh-keys"):
            folder.mkdir(parents=True)
        for path in (root / "sshd" / "host", self.key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        (root / "sshd" / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {root}/sshd/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.key}.pub\nStrictModes no\nPermitRootLogin prohibit-password\n"
            "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )
        self._config = (
            f"# Added by sky (use `sky stop/down {NAME}` to remove)\nHost {{host}}\n  HostName 127.0.0.1\n"
            f"  User {me}\n  IdentityFile ~/.sky/generated/ssh-keys/{NAME}.key\n  IdentitiesOnly yes\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile=/dev/null\n  GlobalKnownHostsFile=/dev/null\n"
            f"  Port {self.port}\n  SetEnv SKY_CLUSTER_NAME=pixtral-fcd1e5cf\n"
        )
        self.alias = self.generated / "ssh" / NAME
        self.alias.write_text(self._config.format(host=NAME))

    def behind_a_proxy(self) -> None:
        """As SkyPilot reaches Slurm, Kubernetes and containers: by a program."""
        jump = self.generated / "jump"
        jump.write_text(self._config.format(host="jump"))
        self.alias.write_text(
            f"{self.alias.read_text()}  ProxyCommand ssh -F {jump} -i {self.key} -oLogLevel=ERROR -W %h:%p jump\n"
        )

    def __enter__(self) -> Sshd:
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", self.root / "sshd" / "config"],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for(self._listens)
        return self

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        # Without their server, all that a test has left ends; it must not be in the way of the next.
        for process in self.clients():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def sessions(self) -> list[psutil.Process]:
        """The processes of its connections."""
        found = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in found if is_alive(process)]

    def signal(self, number: signal.Signals) -> None:
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def clients(self) -> list[psutil.Process]:
        """Every ssh that was started by this test, and still runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.name() == "ssh"
                    and str(self.root) in " ".join(process.cmdline())
                    and is_alive(process)
                ):
                    found.append(process)
        return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(what: Callable[[], object], seconds: float = 20) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it takes too long"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that is longer than one of a socket may be."""
    long = home / ("x" * 120)
    monkeypatch.setenv("PIXTRAL_SKY_HOME", str(long))
    return long


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path) as sshd:
        yield sshd


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    """The server on the machine."""
    with FakeEndpoint([says("Hello")], key=KEY) as endpoint:
        yield endpoint


@pytest.fixture
def way(endpoint: FakeEndpoint) -> Tunnel:
    return Tunnel(NAME, store.free_port(0), endpoint.port)


def client(way: Tunnel, endpoint: FakeEndpoint, **options: Any) -> Client:
    url = f"http://127.0.0.1:{way.local_port}"
    return Client(endpoint.endpoint(url=url, tunnel=way, origin=NAME), **options)


def ask(talking: Client) -> str:
    return "".join(talking.ask(MESSAGES))


def script(endpoint: FakeEndpoint, *steps: fake.Behaviour) -> None:
    endpoint._steps[:] = steps


def is_gone(sshd: Sshd, home: Path) -> bool:
    return not sshd.clients() and not (home / "tunnels" / NAME).exists()


def test_requests_flow_and_nothing_is_left(
    sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel, home: Path
) -> None:
    assert not way.is_open()
    began = time.monotonic()
    way.open()
    print(f"open after {time.monotonic() - began:.2f} s")
    with client(way, endpoint) as talking:
        assert [ask(talking) for _ in range(3)] == ["Hello"] * 3
    began = time.monotonic()
    assert way.is_open()
    print(f"looked at in {1000 * (time.monotonic() - began):.0f} ms")
    assert len(sshd.clients()) == 1
    way.close()
    wait_for(lambda: is_gone(sshd, home) and not sshd.sessions())
    assert not way.is_open()
    for _ in range(3):  # at once, when the one before is still ending
        way.open()
        with client(way, endpoint, budget=0) as talking:
            assert ask(talking) == "Hello"
        way.close()
    wait_for(lambda: is_gone(sshd, home))


def test_nothing_is_left_of_a_proxy(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel, home: Path) -> None:
    sshd.behind_a_proxy()
    with client(way, endpoint) as talking:
        assert ask(talking) == "Hello"
    assert len(sshd.clients()) == 2
    way.close()
    wait_for(lambda: is_gone(sshd, home) and not sshd.sessions())
    sshd.alias.write_text(sshd.alias.read_text().replace("-W %h:%p", "-W %h:1"))
    with pytest.raises(Unreachable) as caught:
        way.open()
    print(caught.value)
    wait_for(lambda: is_gone(sshd, home))


def remember(way: Tunnel) -> None:
    store.remember(
        store.Cluster(
            name=NAME, url=f"http://127.0.0.1:{way.local_port}", key=KEY, max_model_len=32768, max_images=4,
            created=time.time(), port=way.port, private=True, request="",
        )
    )  # fmt: skip


def test_six_commands_at_once_share_one(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    remember(way)
    command = [sys.executable, "-m", "pixtral_sky", "-q", "ask", "--name", NAME, "What is this?"]
    all_of_them = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert [process.communicate(timeout=50)[0] for process in all_of_them] == ["Hello\n"] * 6
    assert len(sshd.clients()) == 1
    log = sshd.log.read_text()
    assert len(endpoint.asked) == 6
    assert log.count("Accepted publickey") == 1, log


def test_it_ends_by_itself_but_not_in_the_middle(
    sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tunnel.OPTIONS, "ControlPersist", "2")

    def late(exchange: fake.Exchange) -> None:
        exchange.wait(3.5)
        says("Hello")(exchange)

    script(endpoint, late)
    with client(way, endpoint, budget=0) as talking:
        assert ask(talking) == "Hello"
    (ssh,) = sshd.clients()
    seconds = wait_for(lambda: is_gone(sshd, home))
    print(f"gone {seconds:.1f} s after its last use")
    assert not is_alive(ssh)


def test_a_connection_that_is_dropped(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    def dropped(exchange: fake.Exchange) -> None:
        sshd.signal(signal.SIGKILL)
        exchange.wait(20)

    notices: list[str] = []
    with client(way, endpoint, notify=notices.append) as talking:
        assert ask(talking) == "Hello"
        script(endpoint, dropped, says("Again"))
        assert ask(talking) == "Again"  # the request that was on its way is tried again
        assert "dropped" in notices[0]
        # Between two questions.
        sshd.signal(signal.SIGKILL)
        wait_for(lambda: not way.is_open())
        assert ask(talking) == "Again"
    assert len(notices) == 1
    assert len(sshd.clients()) == 1


class Over(Exception):
    pass


def test_it_is_held_open(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    told = []

    def notify(text: str) -> None:
        told.append(text)
        if text == "Connected again.":
            raise Over

    way.open()
    thread = threading.Timer(0.5, sshd.signal, [signal.SIGKILL])
    thread.start()
    with pytest.raises(Over):
        way.hold(notify)
    thread.join()
    assert told == [f"The connection to {NAME} was lost; connecting again.", "Connected again."]
    with client(way, endpoint, budget=0) as talking:
        assert ask(talking) == "Hello"


def test_a_connection_that_goes_silent(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    """No word from the network: a machine that is gone, a laptop that was elsewhere."""

    def silent(exchange: fake.Exchange) -> None:
        sshd.signal(signal.SIGSTOP)
        exchange.wait(60)

    notices: list[str] = []
    script(endpoint, silent, says("Hello"))
    began = time.monotonic()
    with client(way, endpoint, notify=notices.append) as talking:
        assert ask(talking) == "Hello"
    seconds = time.monotonic() - began
    print(f"noticed, and answered, after {seconds:.1f} s")
    assert "dropped" in notices[0]
    assert 12 < seconds < 30


def no_connection_comes(server: socket.socket) -> None:
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.accept()


def test_a_stranger_on_its_port_gets_nothing(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    with client(way, endpoint, budget=0) as talking:
        with socket.create_server(("127.0.0.1", way.local_port)) as stranger:
            with pytest.raises(Unreachable, match=f"Port {way.local_port} of this machine is taken"):
                ask(talking)
            no_connection_comes(stranger)
        assert ask(talking) == "Hello"
        # Its ssh is killed, and somebody is quick.
        (ssh,) = sshd.clients()
        ssh.kill()
        wait_for(lambda: not is_alive(ssh))
        with socket.create_server(("127.0.0.1", way.local_port)) as stranger:
            with pytest.raises(Unreachable, match=f"Port {way.local_port} of this machine is taken"):
                ask(talking)
            no_connection_comes(stranger)
        assert not sshd.clients()
        # The socket of the killed one is in nobody's way.
        assert ask(talking) == "Hello"
        assert way.is_open()
        assert len(sshd.clients()) == 1


def test_one_with_other_ports_makes_way(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel) -> None:
    before = Tunnel(NAME, way.local_port, 9)
    before.open()
    assert not way.is_open()
    with client(way, endpoint, budget=0) as talking:
        assert ask(talking) == "Hello"
    wait_for(lambda: len(sshd.clients()) == 1)
    assert way.is_open()


def test_what_ssh_says_reaches_the_user(sshd: Sshd, way: Tunnel) -> None:
    for right, wrong, reason in (
        (f"Port {sshd.port}", "Port 1", "Connection refused"),
        ("User ", "User no-such-", "Permission denied"),
    ):
        text = sshd.alias.read_text()
        sshd.alias.write_text(text.replace(right, wrong))
        with pytest.raises(Unreachable) as caught:
            way.open()
        print(caught.value)
        assert reason in str(caught.value)
        sshd.alias.write_text(text)
    assert not sshd.clients()


def test_the_command(sshd: Sshd, endpoint: FakeEndpoint, way: Tunnel, home: Path) -> None:
    remember(way)
    program = (
        "import sys; from pixtral_sky.deploy import tunnel; from pixtral_sky.cli.app import main\n"
        f"tunnel.OPTIONS['ControlPersist'] = '4'; sys.argv = ['pixtral-sky', 'tunnel', {NAME!r}]; main()"
    )
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would ignore what we ignore
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    with process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{way.local_port}"
        time.sleep(5.5)  # longer than one would last that nobody holds
        request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.status == 200
        (ssh,) = sshd.clients()
        assert KEY not in " ".join(ssh.cmdline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert ssh in sshd.clients(), "another command may be using it"
    wait_for(lambda: is_gone(sshd, home))
