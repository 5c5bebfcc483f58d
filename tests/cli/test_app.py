"""The command line: what it says, where, with which exit code. (`ask` has its own tests.)"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pixtral_sky import __version__, output
from pixtral_sky.cli.app import COMMANDS
from pixtral_sky.client import client
from pixtral_sky.deploy import rehearsals, resolve, skypilot, store
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.rehearsal import checkpoint, engine
from tests.support import deployments
from tests.support.command_line import KEY, Result, Run, packages
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.processes import closed_port

Remember = Callable[..., Rehearsal]


@pytest.fixture
def remember() -> Iterator[Remember]:
    """Remembers a deployment whose process sleeps."""
    processes = []

    def remember(name: str = "pixtral", **fields: Any) -> Rehearsal:
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        processes.append(process)
        made = {"url": f"http://127.0.0.1:{closed_port()}", "created": time.time() - 300, "pid": process.pid}
        made["pid_born"] = store.born(psutil.Process(process.pid))
        return deployments.rehearsal(name, **(made | fields))

    yield remember
    for process in processes:
        process.kill()
        process.wait()


def subprocess_of(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pixtral_sky", *arguments],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


# Help, version, and what is not understood -----------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run: Run, option: str) -> None:
    result = run(option)
    assert (result.code, result.err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s", result.out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"pixtral-sky {command}" in result.out


def test_version(run: Run) -> None:
    assert run("--version") == Result(0, f"pixtral-sky {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--nonsense"], ["status", "--nonsense"], ["down", "a", "b"], ["launch", "--idle", "x"]],
)
def test_what_is_not_understood(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert re.search(rf"{arguments[-1]}.* Help: .* --help$", result.error)


def test_no_arguments_show_the_help(run: Run) -> None:
    result = run()
    assert result.code in (0, 2)
    assert "rehearse" in result.out + result.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["endpoint"], ["endpoint", "--env", "-n", "cluster"]]
)
def test_what_is_not_imported(remember: Remember, arguments: list[str]) -> None:
    """Each of these would take longer than all the rest. SkyPilot alone: 2 seconds."""
    remember()
    deployments.cluster("cluster", url="http://10.0.0.7:8081")
    modules = packages(*arguments)
    assert "pixtral_sky" in modules
    heavy = {"sky", "PIL", "httpx", "rich", "jsonschema", "pydantic", "yaml", "tenacity", "click"}
    assert heavy.isdisjoint(modules)


# Errors ----------------------------------------------------------------------------------------------------


def test_an_error_is_one_line(home: Path) -> None:
    result = subprocess_of("endpoint")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_a_traceback_when_it_is_wanted(home: Path) -> None:
    result = subprocess_of("endpoint", PIXTRAL_SKY_DEBUG="1")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "NoEndpoint" in result.stderr


def test_a_fault_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise ValueError("of that value")

    monkeypatch.setattr(resolve, "find", fails)
    result = run("endpoint")
    assert result.code == 1
    assert result.error.startswith("ValueError: of that value. This is a fault of pixtral-sky")
    assert "PIXTRAL_SKY_DEBUG=1" in result.error
    monkeypatch.setenv("PIXTRAL_SKY_DEBUG", "1")
    with pytest.raises(ValueError, match="of that value"):
        run("endpoint")


def test_a_fault_of_many_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise ValueError("of that\n  value")

    monkeypatch.setattr(resolve, "find", fails)
    assert "of that value" in run("endpoint").error


def test_a_closed_stderr(run: Run, remember: Remember, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no terminal, and what would be said there does not go to stdout."""
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stderr", None)
        with output.phase("waiting"):
            output.warn("something")
        assert skypilot.sky_output.write("text") == 4
        skypilot.sky_output.flush()
        assert not skypilot.sky_output.isatty()
        assert run("endpoint") == Result(2, "", "")
        remember()
        result = run("status")
    assert (result.code, result.err) == (1, "")
    assert result.out.startswith("NAME ")


@pytest.mark.parametrize("option", ["--infra", "--gpus"])
@pytest.mark.parametrize("command", [["launch"], ["serve", "up"]])
def test_an_empty_option(run: Run, command: list[str], option: str) -> None:
    result = run("-q", *command, "--dry-run", option, "")
    assert (result.code, result.error) == (
        2, f"{option} is empty. Leave it out to take what the file allows."
    )  # fmt: skip


def test_an_empty_endpoint(run: Run, remember: Remember) -> None:
    remember()
    result = run("ask", "Hello", "--endpoint", "")
    assert (result.code, "'' is not the URL" in result.error) == (2, True)


@pytest.mark.parametrize("everything", [[], ["--all", "--yes"]])
def test_an_empty_name_takes_nothing_down(run: Run, remember: Remember, everything: list[str]) -> None:
    remember()
    assert run("down", *everything, "").code == 2
    assert store.known() == ["pixtral"]


def test_logs_that_are_gone(run: Run, remember: Remember) -> None:
    remember("here", log="/nowhere/the.log")
    what = "The log of the rehearsal 'here' cannot be read: No such file or directory: /nowhere/the.log."
    assert run("logs", "here").error == what
    remember("here", log="/nowhere/the.log", pid_born=1.0)
    assert run("logs", "here").error == f"{what} Forget it: pixtral-sky down here"


def test_a_damaged_file(run: Run, remember: Remember, home: Path) -> None:
    remember()
    (home / "deployments" / "pixtral.json").write_text("{")
    for command in ("endpoint", "down"):
        result = run(command)
        assert result.code == 1
        assert "is damaged. Remove it: rm " in result.error


# endpoint --------------------------------------------------------------------------------------------------


def test_endpoint(run: Run, remember: Remember) -> None:
    deployment = remember()
    assert run("endpoint") == Result(0, f"{deployment.url}\n", "")
    other = remember("other")
    assert run("endpoint", "--name", "other") == Result(0, f"{other.url}\n", "")


def test_endpoint_of_the_environment(run: Run, remember: Remember, monkeypatch: pytest.MonkeyPatch) -> None:
    remember()
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "10.0.0.7:8081/v1")
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    assert run("endpoint").out == "http://10.0.0.7:8081\n"


def test_nothing_is_remembered(run: Run) -> None:
    result = run("endpoint")
    assert result.code == 2
    assert "pixtral-sky rehearse --keep" in result.error


def in_bash(exports: str, tmp_path: Path) -> list[str]:
    """The four variables, as a shell has them that has evaluated that."""
    (tmp_path / "exports").write_text(exports)
    program = (
        'eval "$(cat exports)" && bash -c \'printf "%s\\0" "$PIXTRAL_ENDPOINT" "$PIXTRAL_API_KEY"'
        ' "$OPENAI_BASE_URL" "$OPENAI_API_KEY"\''
    )
    shell = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shell.stderr == ""
    return shell.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("", KEY),
        ("/a'b\"c$(>made)`>made`", "'\"$HOME`>made`$(>made)\\;&|<>*?[]{}()!#~%^'"),
        ("", "-n"),
    ],
)  # fmt: skip
def test_exports_for_a_shell(run: Run, remember: Remember, tmp_path: Path, path: str, key: str) -> None:
    url = f"http://127.0.0.1:8081{path}"
    remember(url=url, key=key)
    result = run("endpoint", "--env", shows_key=True)
    assert (result.code, result.err) == (0, "")
    assert in_bash(result.out, tmp_path) == [url, key, f"{url}/v1", key]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("arguments", [[], ["--env"], ["--for", "curl"]])
@pytest.mark.parametrize(
    ("path", "key", "says"),
    [
        ("", f"{KEY}\n", "The key has characters that no key can have. Look at PIXTRAL_API_KEY."),
        ("", f"{KEY} ", "The key has characters that no key can have. Look at PIXTRAL_API_KEY."),
        ("", f"\u00e9{KEY}", "The key has characters that no key can have. Look at PIXTRAL_API_KEY."),
        ("/a b", KEY, "'http://127.0.0.1:8081/a b' is not the URL of an endpoint. It looks like http://10.0.0.7:8081"),
        ("/\x1b[1m", KEY, r"'http://127.0.0.1:8081/\x1b[1m' is not the URL of an endpoint. It looks like http://10.0.0.7:8081"),
    ],
)  # fmt: skip
def test_what_no_request_can_carry_is_not_printed(
    run: Run, remember: Remember, arguments: list[str], path: str, key: str, says: str
) -> None:
    remember(url=f"http://127.0.0.1:8081{path}", key=key)
    result = run("endpoint", *arguments)
    assert (result.code, result.error) == (2, says)


def test_exports_in_a_shell_with_an_older_key(
    run: Run, remember: Remember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = remember().url
    monkeypatch.setenv("PIXTRAL_ENDPOINT", url)
    monkeypatch.setenv("PIXTRAL_API_KEY", "sk-SENTINEL-old")
    result = run("endpoint", "--env", shows_key=True)
    assert in_bash(result.out, tmp_path) == [url, KEY, f"{url}/v1", KEY]
    assert result.err.startswith("Warning: PIXTRAL_API_KEY is not the key of 'pixtral'")
    assert "SENTINEL" not in result.err


def test_exports_without_a_key(run: Run, remember: Remember, tmp_path: Path) -> None:
    deployment = remember(key="")
    exports = run("endpoint", "--env").out
    # OpenAI's clients do not start without any.
    assert in_bash(exports, tmp_path) == [deployment.url, "", f"{deployment.url}/v1", "none"]


# status ----------------------------------------------------------------------------------------------------


def test_status_of_nothing(run: Run) -> None:
    result = run("status")
    assert (result.code, result.out) == (1, "")
    assert "pixtral-sky rehearse --keep" in result.err
    assert run("-q", "status") == Result(1, "", "")
    assert json.loads(run("status", "--json").out) == []


def test_status_of_a_running_one(run: Run, remember: Remember) -> None:
    with FakeEndpoint(key=KEY) as fake:
        remember(url=fake.url)
        result = run("status")
        assert (result.code, result.err) == (0, "")
        head, row = result.out.splitlines()
        assert head.split() == ["NAME", "KIND", "STATE", "AGE", "ENDPOINT", "ANSWERS"]
        assert row.split() == ["pixtral", "rehearsal", "running", "5", "min", fake.url, "yes"]
        assert head.index("ENDPOINT") == row.index(fake.url)
    assert [(request.method, request.path) for request in fake.requests] == [("GET", "/v1/models")]


def test_status_does_not_wait_for_long(run: Run, remember: Remember, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs takes connections, and says nothing."""
    waits = []
    build = client.Client.__init__

    def recorded(self: client.Client, *arguments: Any, **options: Any) -> None:
        waits.append(options.get("read_timeout", client.READ_SECONDS))
        build(self, *arguments, **options)

    monkeypatch.setattr(client.Client, "__init__", recorded)
    remember()
    run("status")
    assert waits
    assert max(waits) <= 30


# rehearse --------------------------------------------------------------------------------------------------

TASK = """
envs:
  MAX_IMAGES: 4
  MAX_MODEL_LEN: 32768
  IDLE_MINUTES: 30
setup: uv pip install vllm==0.32.0
run: |
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[[str], Path]:
    def task_file(run: str = "sleep 60", head: str = TASK) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(head + "".join(f"  {line}\n" for line in run.splitlines()))
        return path

    return task_file


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No engine is made; the versions that one was asked for."""
    asked: list[str] = []
    monkeypatch.setattr(engine, "ensure", lambda version: asked.append(version) or Path("/engine"))
    monkeypatch.setattr(checkpoint, "tiny", lambda _: Path("/checkpoint"))
    monkeypatch.setattr(rehearsals, "STOP_SECONDS", 0.1)
    return asked


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        ("directory", "Is a directory"),
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"a: b: c\n\nd", "is not YAML"),
        (b"", "is no SkyPilot task"),
        (b"- run", "is no SkyPilot task"),
        (b"run: [1]", "is no SkyPilot task"),
        (b"envs: [1]\nrun: x", "is no SkyPilot task"),
        (b"run: x", "pins no vLLM"),
        (b"run: x\ncreated: 2024-13-45", "is not YAML"),
    ],
)
def test_a_task_file_that_is_none(
    run: Run, no_engine: list[str], tmp_path: Path, content: Any, says: str
) -> None:
    path = tmp_path / "bad.yaml"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    result = run("-q", "rehearse", "--file", path)
    assert result.code == 2
    assert result.error.startswith(str(path))
    assert says in result.error
    assert not no_engine


def test_a_task_whose_numbers_are_none(
    run: Run, no_engine: list[str], task_file: Callable[..., Path]
) -> None:
    """Said before 2.5 GB are downloaded."""
    result = run("-q", "rehearse", "--file", task_file(head=TASK.replace("32768", "many")))
    assert result.code == 2
    assert "MAX_MODEL_LEN=many is not a whole number" in result.error
    assert not no_engine


def test_a_task_with_what_the_script_refuses(
    run: Run, no_engine: list[str], task_file: Callable[..., Path]
) -> None:
    line = "ALLOWED_MEDIA_HOSTS: a.example"
    result = run("-q", "rehearse", "--file", task_file(head=TASK.replace("envs:", f"envs:\n  {line}")))
    assert result.code == 2
    assert result.error.startswith("ALLOWED_MEDIA_HOSTS is called IMAGE_URLS now")
    assert not no_engine


def test_a_port_that_is_taken(run: Run, no_engine: list[str], task_file: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run("rehearse", "--file", task_file(), "--port", port)
    assert result.code == 2
    assert result.error.startswith(f"Port {port} is taken.")
    assert not no_engine


def test_one_is_running_already(
    run: Run, no_engine: list[str], task_file: Callable[..., Path], remember: Remember
) -> None:
    deployment = remember()
    result = run("rehearse", "--file", task_file())
    assert result.code == 2
    assert "is running already" in result.error
    assert "pixtral-sky down pixtral" in result.error
    assert store.recall() == deployment
    assert deployment.is_running()
    assert not no_engine


# In place of vLLM: ready at the second look, it answers one question, and keeps what it was asked.
SERVER = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    looks = 0
    def reply(self, status, body=b"", kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        Handler.looks += 1
        self.reply(200 if self.path == "/health" and Handler.looks > 1 else 503)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("asked.json", "w") as file:
            json.dump([self.path, self.headers["Authorization"], json.loads(body)], file)
        if "REFUSES" in os.environ:
            return self.reply(400, b'{"error": {"message": "not so"}}')
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("noise ", "\\u00e9")]
        chunks[1]["choices"][0]["finish_reason"] = "stop"
        chunks.append({"choices": [], "usage": {"prompt_tokens": 4660, "completion_tokens": 2}})
        events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        self.reply(200, "".join(f"data: {event}\\n\\n" for event in events).encode(), "text/event-stream")
    def log_message(self, *_): pass
http.server.HTTPServer((os.environ["LISTEN"], int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def server(home: Path, no_engine: list[str], task_file: Callable[..., Path]) -> Path:
    """A task file whose script serves."""
    home.mkdir(exist_ok=True)
    (home / "server.py").write_text(SERVER)  # the script is started there
    return task_file(f"echo $$ > pid\nexec {shlex.quote(sys.executable)} -S server.py")


def test_rehearse(run: Run, no_engine: list[str], server: Path, home: Path) -> None:
    port = closed_port()
    result = run("rehearse", "--file", server, "--port", port)
    assert (result.code, result.out) == (0, "noise \u00e9\n")
    assert no_engine == ["0.32.0"]
    url = f"http://127.0.0.1:{port}"
    for said in ("vLLM 0.32.0", url, "The weights are random", "4,660 tokens in the prompt", "stopping"):
        assert said in result.err
    path, authorization, question = json.loads((home / "asked.json").read_text())
    assert path == "/v1/chat/completions"
    kinds = [part["type"] for part in question["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url"]
    scheme, _, key = authorization.partition(" ")
    assert scheme == "Bearer"
    assert len(key) > 40
    assert key not in result.err
    assert not psutil.pid_exists(int((home / "pid").read_text()))
    assert store.known() == []


def test_rehearse_and_keep(run: Run, server: Path, home: Path) -> None:
    port = closed_port()
    result = run("rehearse", "--keep", "--name", "kept", "--file", server, "--port", port)
    deployment = store.recall("kept")
    assert deployment is not None
    try:
        assert (result.code, result.out) == (0, "noise \u00e9\n")
        assert "It is left running: it ends after 30 minutes without a request." in result.err
        assert "pixtral-sky down" in result.err
        assert deployment.is_running()
        assert f"Bearer {deployment.key}" == json.loads((home / "asked.json").read_text())[1]
        assert run("endpoint", "--name", "kept").out == f"http://127.0.0.1:{port}\n"
    finally:
        rehearsals.stop(deployment)
    assert not deployment.is_running()


def test_rehearse_quietly(run: Run, server: Path) -> None:
    result = run("-q", "rehearse", "--file", server, "--port", closed_port())
    assert result == Result(0, "noise \u00e9\n", "")


def test_a_server_that_ends_early(run: Run, no_engine: list[str], task_file: Callable[..., Path]) -> None:
    result = run(
        "-q",
        "rehearse",
        "--port",
        closed_port(),
        "--file",
        task_file("echo 'pixtral: so it is.'; echo more; exit 1"),
    )
    assert result.code == 1
    assert result.error.startswith("The server ended: pixtral: so it is. All it said: ")
    assert store.known() == []
    log = Path(result.error.rpartition("All it said: ")[2])
    assert log.read_text() == "pixtral: so it is.\nmore\n"


def test_an_answer_that_fails_ends_the_rehearsal(
    run: Run, server: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    result = run("-q", "rehearse", "--keep", "--file", server, "--port", closed_port())
    assert result.code == 1
    assert "not so" in result.error
    assert store.known() == []
    assert not psutil.pid_exists(int((home / "pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rehearsal_that_is_interrupted(
    task_file: Callable[..., Path], tmp_path: Path, home: Path, number: signal.Signals
) -> None:
    theirs = tmp_path / "engine"
    for name in (
        "bin/python",
        "bin/vllm",
        "lib/python3/site-packages/mistral_common/data/tekken_240911.json",
    ):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).touch(mode=0o755)
    (theirs / "bin/python").write_text('#!/bin/sh\ncp "$3" "$4"\n')  # it makes the weights
    path = task_file("echo $$ > pid; exec sleep 60")
    # What is started in the background may ignore SIGINT, and so would all that it starts.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pixtral_sky.cli.app import main; main()"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            "rehearse",
            "--keep",
            "--file",
            str(path),
            "--port",
            str(closed_port()),
        ],
        env={
            **os.environ,
            "PIXTRAL_SKY_ENGINE": str(theirs / "bin/python"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deployment = None
    try:
        deadline = time.monotonic() + 20
        while not ((home / "pid").exists() and store.known()) and time.monotonic() < deadline:
            time.sleep(0.02)
        deployment = store.recall()
        assert deployment is not None
        time.sleep(0.1)  # it waits for the server by now
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert not deployment.is_running()
    finally:
        process.kill()
        process.communicate()
        if deployment and deployment.is_running():
            os.kill(deployment.pid, signal.SIGKILL)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert store.known() == []
