"""What is printed where: closed streams and pipes, and characters that a terminal lacks; for each command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from pixtral_sky import output
from pixtral_sky.deploy import services
from pixtral_sky.deploy.skypilot import SkyOutput
from tests.cli.test_help import ALL
from tests.support import deployments
from tests.support.command_line import KEY, Result, Run
from tests.support.fake_endpoint import FakeEndpoint, says

CAFE = "caf\u00e9"
ESCAPED = b"caf\\xe9"
PYTHON = f"{sys.executable} -m pixtral_sky"
# Of each command that needs no cloud and no engine, a call that prints a result.
CALLS = {
    "ask": ["ask", "Hello", "--no-stream"],
    "ask, streamed": ["ask", "Hello"],
    "batch": ["batch", "{picture}", "--out", "out.jsonl", "--json"],
    "completion": ["completion", "zsh"],
    "endpoint": ["endpoint"],
    "logs": ["logs", "rehearsal"],
    "plan": ["plan", "--no-prices", "--gpus", "L4"],
    "serve status": ["serve", "status", "--json"],
    "status": ["status", "--json"],
    "tokens": ["tokens", "{picture}"],
    "tunnel": ["tunnel", "pixtral"],
    "version": ["--version"],
}
Call = Callable[..., Result]


def stream(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="ascii", write_through=True)


@pytest.fixture
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    read, write = os.pipe()
    os.close(read)
    yield stream(write)
    os.close(write)


@pytest.fixture
def closed_file() -> io.TextIOWrapper:
    read, write = os.pipe()
    found = stream(write)
    os.close(read)
    os.close(write)
    return found


@pytest.fixture
def call(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Runs one of CALLS, in a world where each of them has a result, with a letter that ASCII lacks."""
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / f"{CAFE}.png"
    Image.new("RGB", (32, 32)).save(picture)
    (tmp_path / "log").write_text(f"{CAFE}\n")
    monkeypatch.setattr(services, "documents", lambda _: ([], None))
    with FakeEndpoint([says(CAFE)] * 2, key=KEY) as fake:
        deployments.cluster("pixtral", url=fake.url, key=KEY)
        deployments.rehearsal("rehearsal", url=fake.url, log=str(tmp_path / "log"))
        yield lambda name: run(*(word.format(picture=picture) for word in CALLS[name]))


@pytest.mark.parametrize("name", CALLS)
def test_whoever_reads_it_has_seen_enough(
    name: str, call: Call, closed_pipe: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `pixtral-sky ... | head -0`."""
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    result = call(name)
    assert result.code == output.CLOSED_PIPE
    assert "rror" not in result.err


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_whoever_reads_the_help_has_seen_enough(
    words: tuple[str, ...], run: Run, closed_pipe: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert run(*words, "--help") == Result(output.CLOSED_PIPE, "", "")


@pytest.mark.parametrize("name", CALLS)
def test_only_ascii(name: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another character is shown as its escape."""
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        call(name)
    shown = (tmp_path / "out").read_bytes()
    assert shown
    if name in ("ask", "ask, streamed", "logs", "tokens"):
        assert ESCAPED in shown


@pytest.mark.parametrize(
    ("words", "where"),
    [*((words, "closed_pipe") for words in ALL), (ALL[0], "closed_file"), (ALL[0], "nowhere")],
)
def test_nobody_reads_stderr(
    words: tuple[str, ...],
    where: str,
    run: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What would be said there does not go to stdout, and the exit code stays what it is."""
    monkeypatch.setattr(sys, "stderr", None if where == "nowhere" else request.getfixturevalue(where))
    assert run(*words, "--nonsense") == Result(2, "", "")


def test_whoever_reads_the_log_of_a_machine_has_seen_enough(closed_pipe: io.TextIOWrapper) -> None:
    """SkyPilot writes it, and would go on."""
    with pytest.raises(SystemExit) as end:
        SkyOutput(closed_pipe).write("line\n")
    assert end.value.code == output.CLOSED_PIPE


def test_an_error_in_ascii(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*PYTHON.split(), "tokens", str(tmp_path / f"{CAFE}.png")]
    result = subprocess.run(command, env=environ, capture_output=True, timeout=30)
    assert result.returncode == 1
    assert b"caf\\xe9.png: no such file." in result.stderr


def test_a_full_disk() -> None:
    result = subprocess.run(f"{PYTHON} --version >/dev/full", shell=True, stderr=subprocess.PIPE, timeout=30)
    assert (result.returncode, result.stderr) == (1, b"Error: No space left on device: while writing.\n")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library prints to stderr would stand in that file."""
    program = (
        "import os; from pixtral_sky import output; output.prepare()\n"
        f"with open({str(tmp_path / 'file')!r}, 'w'): os.write(2, b'noise')"
    )
    subprocess.run(f'{sys.executable} -c "{program}" 2>&- <&-', shell=True, check=True, timeout=30)
    assert (tmp_path / "file").read_text() == ""
