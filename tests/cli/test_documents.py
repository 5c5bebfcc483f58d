"""The shell blocks of the documents are run, as far as they can be without money, an account or an engine.

A command of `pixtral-sky` alone runs in this process, where SkyPilot's clouds are simulated; one of a shell runs in
bash, with a fake endpoint in its environment. Any other program needs an account or an installation.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixtral_sky.deploy import store
from tests.conftest import ROOT
from tests.support import deployments, fake_catalog, pdfs
from tests.support.command_line import KEY, TOKEN, Run
from tests.support.documents import Block, blocks
from tests.support.fake_endpoint import Exchange, FakeEndpoint, says
from tests.support.fake_sky import FakeSky

RECEIPT = {
    "shop": "Kiosk",
    "paid_in_cash": True,
    "currency": "EUR",
    "total": 23.76,
}  # examples/receipt.schema.json

SETTING = r"^(?:\w+=(?:\$\([^)]*\)|\S*) )+"
IN_PROCESS = rf"(?:{SETTING})?pixtral-sky [^|<>&$()]*"
IN_BASH = r"echo \"[^$]*\" > \S+|curl .*|bash examples/.*|eval \"\$\(pixtral-sky .*|\(umask .*|pixtral-sky .*"
# What matches these is not run here, but elsewhere, if at all.
ELSEWHERE = {
    r"pixtral-sky rehearse": "tests/real/engine/test_engine.py",
    r"pixtral-sky doctor --answers": "tests/real/engine/test_answers.py",
    r"pixtral-sky chat": "make clients: tests/real/clients/test_chat.py",
    r"pixtral-sky tunnel": "tests/deploy/test_tunnel.py",
    r"pixtral-sky serve status --json\s+\|": "make clients: tests/real/clients/test_monitoring.py",
    r"pixtral-sky capacity --pattern": "make check: tools/autoscaling.py",
    r"pixtral-sky launch --infra slurm/": "make e2e",
    r"pixtral-sky bench": "it measures for minutes: tests/cli/test_bench.py, tests/real/engine/test_bench.py",
    r"pixtral-sky plan --measured": "tests/cli/test_plan.py, with a file that is there",
    r".* --plot ": "tests/cli/test_plan.py: it takes a while",
    r".*\| (vault|gcloud) ": "programs with an account",
    r"curl --no-buffer \"\$PIXTRAL_ENDPOINT\" ": "make truss",
    r".* --max-price 0\.": "the prices of the tests are made up: tests/deploy/test_candidates.py",
}


def runs(command: str, kind: str) -> bool:
    left_out = any(re.match(each, command) for each in ELSEWHERE)
    return bool(re.fullmatch(kind, command, re.DOTALL)) and not left_out


# Each once, with the first block that has it.
SINGLE = {
    command: block for block in reversed([*blocks()]) for command in block.lines if runs(command, IN_PROCESS)
}
SHELL = [
    each
    for each in blocks()
    if any(runs(line, IN_BASH) and not runs(line, IN_PROCESS) for line in each.lines)
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all that the documents name."""
    folder = tmp_path / "work"
    for name in ("photos", "scans"):
        (folder / name).mkdir(parents=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    receipt = ROOT / "examples" / "receipt.jpg"
    for name in ("photo.jpg", "receipt.jpg", "before.jpg", "after.jpg", "photos/one.jpg"):
        shutil.copy(receipt, folder / name)
    (folder / "scans" / "one.pdf").write_bytes(pdfs.made(b""))
    body = {"model": "pixtral", "messages": [{"role": "user", "content": "Hello"}]}
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "requests.jsonl").write_text(f"{json.dumps(asked)}\n")
    items = ({"id": f"i{n}", "images": ["photo.jpg"], "prompt": "What is it?"} for n in range(20))
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def open_to_all() -> Iterator[FakeEndpoint]:
    """An endpoint that takes any key: documents have new ones made."""

    def answers(exchange: Exchange) -> None:
        wants_json = "response_format" in exchange.request.json
        says(json.dumps(RECEIPT) if wants_json else "A red square.")(exchange)

    with FakeEndpoint([answers]) as fake:
        yield fake


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "command", [pytest.param(each, id=f"{at}: {each[:60]}") for each, at in SINGLE.items()]
)
def test_a_command(
    command: str,
    run: Run,
    server: FakeSky,
    open_to_all: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    given = re.match(SETTING, command)
    for name, _, _ in (each.partition("=") for each in (given[0].split() if given else ())):
        if name.isupper():
            monkeypatch.setenv(name, f"{KEY}-new")
    words = shlex.split(command[given.end() :] if given else command)[1:]
    name = words[words.index("-n") + 1] if "-n" in words else "pixtral"
    server.endpoints = {8081: open_to_all.url}
    server.serve.balancer = open_to_all.url.removeprefix("http://")
    server.serve.course = [{1: "READY", 2: "READY"}]
    if "--replicas" not in words:  # which replaces none
        server.serve.update_course = [{3: "READY", 4: "READY"}, {1: "SHUTTING_DOWN", 2: "SHUTTING_DOWN"}]
    if "--private" in words:  # its tunnel ends here
        monkeypatch.setattr(store, "free_port", lambda wanted=None: open_to_all.port)
    fake_catalog.install(monkeypatch)
    if words[0] in ("launch", "serve", "doctor"):  # others read the whole file
        request.getfixturevalue("launcher")
    if words[:1] == ["serve"] and words[1] != "up":
        secrets = {"PIXTRAL_API_KEY": KEY, "HF_TOKEN": TOKEN}
        server.serve.service(name, {1: "READY", 2: "READY"}, secrets=secrets)
        deployments.service(name, url=open_to_all.url)
    elif words[0] not in ("launch", "serve", "plan"):
        server.cluster(name, endpoints={8081: open_to_all.url}, ports=["8081"])
        deployments.cluster(name, url=open_to_all.url)
    result = run(*words, typed="y\n", shows_key=True)
    # `doctor` has something to say of an endpoint that is open to all.
    assert result.code in ((0, 1) if words[0] == "doctor" else (0,)), result.err
    assert "Traceback" not in result.err
    assert result.out + result.err


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_of_a_shell(block: Block, open_to_all: FakeEndpoint) -> None:
    script = [line for line in block.lines if runs(line, IN_BASH)]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PIXTRAL_ENDPOINT": open_to_all.url,
        "PIXTRAL_API_KEY": KEY,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_how_many_are_run() -> None:
    """So many at the least, of which none may go without a word."""
    assert len(SINGLE) >= 30
    assert len(SHELL) >= 6
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, line) for block in blocks() for line in block.lines), pattern
