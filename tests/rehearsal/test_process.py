"""Starting, waiting for and stopping a rehearsal, with small scripts in place of the real one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pixtral_sky.deploy import rehearsals, resolve, store
from pixtral_sky.deploy.rehearsals import of_session
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import RehearsalError, UsageError
from pixtral_sky.rehearsal import process as rehearsal
from tests.support.fake_endpoint import FakeEndpoint, status
from tests.support.processes import closed_port

ENVS = {"MAX_IMAGES": "4", "MAX_MODEL_LEN": "32768", "MODEL": "the/real-one", "PORT": "8081", "LISTEN": ""}

# After 0.1 s it answers, with 503 at first.
SERVER = """
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    answers = 0
    def do_GET(self):
        Handler.answers += 1
        self.send_response(503 if Handler.answers < 2 or self.path != "/health" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
time.sleep(0.1)
http.server.HTTPServer((os.environ["LISTEN"], int(os.environ["PORT"])), Handler).serve_forever()
"""
SERVE = f"exec {shlex.quote(sys.executable)} -S server.py"  # started in the directory of what is remembered

# One child that ends in order, and one that does not hear SIGTERM; both say which they are.
FAMILY = """
sleep 60 &
echo $! >> pids
( trap '' TERM; exec sleep 60 ) &
echo $! >> pids
wait
"""

Start = Callable[..., Rehearsal]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a script. Whatever a test leaves behind is ended."""
    monkeypatch.setattr(rehearsals, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(rehearsals, "started", [])
    home.mkdir()
    (home / "server.py").write_text(SERVER)

    def start(run: str, name: str = "pixtral", port: int | None = None, **envs: str) -> Rehearsal:
        task = Task(tmp_path / "task.yaml", run, "", {**ENVS, **envs})
        return rehearsal.start(task, tmp_path / "venv", tmp_path / "tiny", name, port or closed_port())

    yield start
    for process in rehearsals.started:
        process.kill()  # first, so that it starts no more
        process.wait()
        while left := of_session(process.pid):
            for each in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


def lines(file: Path, count: int) -> list[str]:
    """The lines of a file that a script writes, as soon as there are so many."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if file.exists() and len(found := file.read_text().splitlines()) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{file} does not get {count} lines")


def ended(pid: int) -> bool:
    """Whether there is no such process, or soon none."""
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def failure(deployment: Rehearsal, seconds: float = 10) -> RehearsalError:
    with pytest.raises(RehearsalError) as caught:
        rehearsal.wait_until_ready(deployment, seconds)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert deployment.key not in str(caught.value)
    assert deployment.log in caught.value.hint
    return caught.value


# Starting --------------------------------------------------------------------------------------------------


def test_start_and_stop(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # of no concern to loopback
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    before = time.time()
    deployment = start(SERVE)
    assert deployment == store.recall()
    assert (deployment.name, deployment.kind) == ("pixtral", "rehearsal")
    assert (deployment.max_images, deployment.max_model_len) == (4, 32768)
    assert before <= deployment.created <= time.time()
    assert deployment.is_running()
    assert os.getpgid(deployment.pid) == os.getsid(deployment.pid) == deployment.pid != os.getsid(0)

    rehearsal.wait_until_ready(deployment, 10)
    assert resolve.find(environ={}).url == deployment.url

    rehearsals.stop(deployment)
    assert not deployment.is_running()
    assert of_session(deployment.pid) == []
    assert store.recall() is None
    assert sorted(path.name for path in home.iterdir()) == ["deployments", "pixtral.log", "server.py"]


def test_the_script_is_the_tasks_to_the_letter(start: Start, home: Path) -> None:
    run = 'cat "$0" > seen; printf \'%s\' "$BASH_VERSION" > bash\n# \u00e9 $(not run) `nor this` \\n\n'
    start(run)
    lines(home / "bash", 1)
    assert (home / "seen").read_text() == run


@pytest.fixture
def environ(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """What a script finds in its environment."""

    def environ(deployment: Rehearsal) -> dict[str, str]:
        lines(home / "done", 1)
        return dict(line.split("=", 1) for line in (home / "environ").read_text().split("\0")[:-1])

    return environ


DUMP = "env -0 > environ; echo done > done"


def test_the_environment_of_the_script(
    start: Start, environ: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_USERS")
    monkeypatch.setenv("PIXTRAL_API_KEY", "sk-USERS")
    monkeypatch.setenv("PORT", "1")
    port = closed_port()
    deployment = start(DUMP, port=port, HF_TOKEN="hf_TASKS", PIXTRAL_API_KEY="sk-TASKS", IDLE_MINUTES="30")
    found = environ(deployment)
    assert {
        "PIXTRAL_API_KEY": deployment.key,
        "HF_TOKEN": "",
        "HF_HUB_OFFLINE": "1",
        "MODEL": str(tmp_path / "tiny"),
        "VENV": str(tmp_path / "venv"),
        "PORT": str(port),
        "LISTEN": "127.0.0.1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "MAX_IMAGES": "4",
        "MAX_MODEL_LEN": "32768",
        "IDLE_MINUTES": "30",
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
    }.items() <= found.items()
    assert deployment.url == f"http://127.0.0.1:{port}"


def test_what_the_script_does_not_get(
    start: Start, environ: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = ["VLLM_LOGGING_LEVEL", "VLLM_API_KEY", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME"]
    dropped += ["VIRTUAL_ENV", "SKYPILOT_SERVE_REPLICA_ID", "PIXTRAL_ENDPOINT", "PIXTRAL_SKY_DEBUG"]
    for name in dropped:
        monkeypatch.setenv(name, "users")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "users")
    found = environ(start(DUMP))
    assert not set(dropped) & found.keys()
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "users" not in found.values()


def test_arguments_of_the_task_come_first(start: Start, environ: Callable[..., dict[str, str]]) -> None:
    found = environ(start(DUMP, EXTRA_ARGS="--seed 7 --chat-template 'a b'"))
    assert found["EXTRA_ARGS"] == f"--seed 7 --chat-template 'a b' {rehearsal.CPU_ARGS}"


def test_a_task_without_arguments(start: Start, environ: Callable[..., dict[str, str]]) -> None:
    assert environ(start(DUMP))["EXTRA_ARGS"].split() == rehearsal.CPU_ARGS.split()


def test_the_key_is_new_and_in_no_arguments(start: Start, home: Path) -> None:
    first, second = start(FAMILY, "first"), start(FAMILY, "second")
    lines(home / "pids", 4)
    assert len(first.key) >= 43
    assert first.key != second.key
    for deployment in (first, second):
        processes = of_session(deployment.pid)
        assert len(processes) >= 3
        for process in processes:
            assert not any(deployment.key in argument for argument in process.cmdline())
    for file in home.glob("*.*"):
        assert not any(key in file.read_text() for key in (first.key, second.key)), "only in its own file"


def test_it_reads_no_terminal_and_gets_no_ctrl_c(start: Start, home: Path) -> None:
    deployment = start("read -r line && echo read; echo done > done; sleep 60")
    lines(home / "done", 1)
    assert os.getpgid(deployment.pid) != os.getpgid(0)
    assert Path(deployment.log).read_text() == ""


def test_the_log_is_private_and_new(start: Start, home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    (home / "pixtral.log").symlink_to(elsewhere)
    before = os.umask(0)
    try:
        first = start("echo first; echo done > done")
    finally:
        os.umask(before)
    lines(home / "done", 1)
    log = Path(first.log)
    assert log == home / "pixtral.log"
    assert stat.S_IMODE(log.lstat().st_mode) == 0o600
    assert log.read_text() == "first\n"
    assert elsewhere.read_text() == "theirs"

    log.chmod(0o644)
    (home / "done").unlink()
    start("echo second >&2; echo done > done")
    lines(home / "done", 1)
    assert log.read_text() == "second\n"
    assert stat.S_IMODE(log.lstat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["MAX_IMAGES", "MAX_MODEL_LEN"])
def test_a_task_without_its_numbers(start: Start, home: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*many.* not a whole number"):
        start("true", **{name: "many"})
    assert rehearsals.started == []
    assert store.known() == []


def test_nothing_runs_that_is_not_remembered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Rehearsal) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "remember", fails)
    with pytest.raises(OSError, match="No space"):
        start("sleep 60")
    (process,) = rehearsals.started
    assert ended(process.pid)


def test_a_name_that_is_a_path(start: Start, home: Path) -> None:
    with pytest.raises(UsageError, match="is no name"):
        start("sleep 60", "../outside")
    assert rehearsals.started == []
    assert not list(home.parent.glob("outside*"))


def test_a_relative_home(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXTRAL_SKY_HOME", "here")
    deployment = start("echo it runs")
    rehearsals.started[0].wait()
    assert Path(deployment.log).read_text() == "it runs\n"


# Waiting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            "echo 'Error: not this'; echo 'pixtral: MAX_IMAGES is too large.' >&2; echo 'OSError: nor this'; exit 1",
            "pixtral: MAX_IMAGES is too large.",
        ),
        (
            "echo 'ValueError: first'; echo '  vllm serve: error: unrecognized arguments: --x  '; echo; echo bye; exit 2",
            "vllm serve: error: unrecognized arguments: --x",
        ),
        ("echo hello; echo '  the last line'; echo; echo '   '", "the last line"),
        ("exit 3", "it said nothing"),
        (r"printf 'Error: \377\376 bytes\n'; kill -9 $$", "Error: \ufffd\ufffd bytes"),
        ("printf 'x%.0s' {1..1000}", "x" * 300),
    ],
)
def test_a_script_that_ends_says_why(start: Start, run: str, said: str) -> None:
    deployment = start(run)
    assert failure(deployment).what == f"The server ended: {said.rstrip('.')}."


def test_it_takes_too_long(start: Start) -> None:
    deployment = start("sleep 60")
    before = time.monotonic()
    assert failure(deployment, 0.3).what == "The server is not ready after 0 s."
    assert time.monotonic() - before < 3
    assert deployment.is_running(), "whoever started it decides"


def test_another_server_at_its_port_is_not_it(start: Start) -> None:
    """The port was free when it was chosen, and the engine took minutes to make."""
    with FakeEndpoint([status(200)]) as another:
        deployment = start("sleep 60", port=another.port)
        failure(deployment, 0.3)


# Stopping --------------------------------------------------------------------------------------------------


def test_all_children_are_stopped(start: Start, home: Path) -> None:
    deployment = start(FAMILY)
    pids = [int(pid) for pid in lines(home / "pids", 2)]
    rehearsals.stop(deployment)
    assert all(ended(pid) for pid in [deployment.pid, *pids])
    assert store.recall() is None


def test_a_script_cleans_up(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of pixtral.yaml, which has a server in its foreground and a directory to remove."""
    deployment = start("trap 'echo clean > clean' EXIT; echo up > up; sleep 60; true")
    monkeypatch.setattr(rehearsals, "STOP_SECONDS", 0.4)
    lines(home / "up", 1)
    rehearsals.stop(deployment)
    assert (home / "clean").exists()


def test_what_ignores_sigterm_is_killed_in_time(start: Start, home: Path) -> None:
    deployment = start("trap '' TERM; echo up > up; while :; do sleep 60; done")
    lines(home / "up", 1)
    before = time.monotonic()
    rehearsals.stop(deployment)
    assert time.monotonic() - before < 3
    assert of_session(deployment.pid) == []


def test_what_has_lost_its_parent_is_stopped(start: Start, home: Path) -> None:
    deployment = start("( sleep 60 & echo $! > pids ); sleep 60")
    (pid,) = (int(pid) for pid in lines(home / "pids", 1))
    assert psutil.pid_exists(pid)
    rehearsals.stop(deployment)
    assert ended(pid)


def test_what_outlives_the_script_is_stopped(start: Start, home: Path) -> None:
    deployment = start(FAMILY)
    pids = [int(pid) for pid in lines(home / "pids", 2)]
    os.kill(deployment.pid, signal.SIGKILL)  # as the kernel does when memory runs out
    rehearsals.started[0].wait()
    rehearsals.stop(deployment)
    assert all(ended(pid) for pid in pids)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_another_process_with_that_pid_is_left_alone(
    start: Start, stranger: subprocess.Popen[bytes], home: Path
) -> None:
    deployment = start("true")
    rehearsals.started[0].wait()
    born = store.born(psutil.Process(stranger.pid))
    taken_over = dataclasses.replace(deployment, pid=stranger.pid, pid_born=born - 100)
    rehearsals.stop(taken_over)
    assert stranger.poll() is None
    assert store.recall() is None


def test_stop_what_has_ended(start: Start, home: Path) -> None:
    deployment = start("true")
    rehearsals.started[0].wait()
    rehearsals.stop(deployment)
    rehearsals.stop(deployment)
    assert store.recall() is None
    assert not (home / "pixtral.sh").exists()


def test_only_the_one_is_stopped(start: Start) -> None:
    first, second = start("sleep 60", "first"), start("sleep 60", "second")
    rehearsals.stop(first)
    assert second.is_running()
    assert store.known() == ["second"]


def test_stop_from_another_process(start: Start, home: Path) -> None:
    """As `pixtral-sky down` does, which is not the parent of what it stops."""
    deployment = start(FAMILY)
    lines(home / "pids", 2)
    program = (
        "from pixtral_sky.deploy import rehearsals, store; "
        "rehearsals.STOP_SECONDS = 0.1; rehearsals.stop(store.recall())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert of_session(deployment.pid) == []
    assert store.known() == []


def test_stop_waits_for_no_zombie(start: Start, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """In a container, process 1 is often a program that collects nothing, and what has ended stays listed."""
    program = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '60'], start_new_session=True);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout
            pid = int(parent.stdout.readline())
            deployment = dataclasses.replace(start("true"), pid=pid, pid_born=store.born(psutil.Process(pid)))
            monkeypatch.setattr(rehearsals, "STOP_SECONDS", 0.3)
            before = time.monotonic()
            rehearsals.stop(deployment)
            assert time.monotonic() - before < 0.25
            assert ended(pid)
        finally:
            parent.kill()


# The port --------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_that_is_taken(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(UsageError, match=f"Port {port} is taken") as caught:
        store.free_port(port)
    assert "--port" in caught.value.hint


def test_a_port_that_is_free(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert store.free_port(port) == port


def test_a_port_whose_last_connection_is_closing(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        listener.accept()[0].close()  # the side that closes first keeps the port busy for a minute
        client.recv(1)
    listener.close()
    assert store.free_port(port) == port


def test_a_port_of_one_that_is_starting(start: Start) -> None:
    """Two rehearsals in a row get a port each."""
    deployment = start("sleep 60")
    with pytest.raises(UsageError, match="is taken"):
        store.free_port(int(deployment.url.rpartition(":")[2]))


def test_any_port() -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 8081)):
        port = store.free_port()
        assert port > 1023
        assert port != 8081
        return
    assert store.free_port() != 8081, "somebody else has it"


def test_one_start_at_a_time(start: Start) -> None:
    """The second finds the name taken, however close behind the first it is."""
    with rehearsal.starting("first"):
        entered = []
        thread = threading.Thread(target=lambda: entered.append(_starts("second")))
        thread.start()
        thread.join(0.3)
        assert not entered
    thread.join(5)
    assert entered == [True]
    start("sleep 30")
    with pytest.raises(UsageError, match="is running already"), rehearsal.starting("pixtral"):
        pass


def _starts(name: str) -> bool:
    with rehearsal.starting(name):
        return True
