"""What `pixtral-sky launch` and `pixtral-sky serve up` have in common: one suite for both."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.deploy import huggingface, skypilot, store
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.errors import HubError
from pixtral_sky.extras import install_skypilot
from tests.support import deployments
from tests.support.command_line import KEY, TOKEN, Result, Run, last
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import FakeSky

pytestmark = pytest.mark.usefixtures("launcher")


class Launch:
    words, question, request = ("launch",), "Launch", "launch"
    group, nothing = "", "Nothing was launched. Without --dry-run, it is."

    def __init__(self, server: FakeSky) -> None:
        self.server = server

    def answers(self, fake: FakeEndpoint) -> None:
        self.server.endpoints = {8081: fake.url}

    def meanwhile(self, call: Callable[[str], None]) -> None:
        """Is called while SkyPilot makes it."""

        def during(name: str) -> None:
            self.server.cluster(name, status="INIT", job=None)
            call(name)

        self.server.during_launch = during


class Up(Launch):
    words, question, request = ("serve", "up"), "Bring up", "serve.up"
    group, nothing = "serve ", "Nothing was brought up. Without --dry-run, it is."

    def answers(self, fake: FakeEndpoint) -> None:
        self.server.serve.balancer = fake.url.removeprefix("http://")
        self.server.serve.course = [{1: "PENDING"}, {1: "STARTING"}, {1: "READY"}]

    def meanwhile(self, call: Callable[[str], None]) -> None:
        self.server.serve.during_up = call


@pytest.fixture(params=[Launch, Up])
def command(request: pytest.FixtureRequest, server: FakeSky) -> Launch:
    made: Launch = request.param(server)
    return made


@pytest.fixture
def fake(command: Launch) -> Iterator[FakeEndpoint]:
    """What answers at the address of each that is brought up, with the key."""
    with FakeEndpoint(key=KEY) as fake:
        command.answers(fake)
        yield fake


def nothing_is_there(command: Launch) -> bool:
    return not command.server.requests(command.request) and store.known() == []


def test_another_name(run: Run, command: Launch, fake: FakeEndpoint) -> None:
    result = run(*command.words, "--yes", "--name", "second")
    assert (result.code, result.out) == (0, f"{fake.url}\n")
    assert "pixtral-sky ask -n second picture.jpg   |   pixtral-sky " in result.err
    assert result.err.endswith(f"pixtral-sky {command.group}down second\n")
    assert store.known() == ["second"]


def test_quiet(run: Run, command: Launch, fake: FakeEndpoint) -> None:
    assert run("-q", *command.words, "--yes") == Result(0, f"{fake.url}\n", "")


def test_stdout_is_given_back(run: Run, command: Launch, fake: FakeEndpoint) -> None:
    before = sys.stdout
    run(*command.words, "--yes")
    command.server.errors[command.request] = RuntimeError("no")
    run(*command.words, "--yes")
    assert sys.stdout is before
    assert not skypilot.sky_output.silent


def test_an_endpoint_of_the_environment_is_pointed_out(
    run: Run, command: Launch, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is for nobody else."""
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://10.0.0.7:8081")
    monkeypatch.setenv("PIXTRAL_API_KEY", "the-key-of-another-endpoint")
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: KEY)  # the one that the machine takes
    result = run(*command.words, "--yes")
    assert result.code == 0
    assert "Warning: PIXTRAL_ENDPOINT is set here" in result.err


def test_a_key_is_made(
    run: Run, command: Launch, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Of 32 bytes, and written down before anything is locked with it. Each deployment has its own."""
    monkeypatch.delenv("PIXTRAL_API_KEY")
    fake.key = ""
    seen: dict[str, str] = {}

    def during(name: str) -> None:
        path = home / "deployments" / f"{name}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        known = store.recall(name)
        assert known
        seen[name] = known.key

    command.meanwhile(during)
    for name in ("first", "second"):
        result = run(*command.words, "--yes", "-n", name)
        assert result.code == 0
        assert re.fullmatch(r"[\w-]{43}", seen[name])
        assert command.server.tasks[-1].secrets["PIXTRAL_API_KEY"].get_secret_value() == seen[name]
        assert seen[name] not in result.out + result.err
        assert fake.requests[-1].headers["authorization"] == f"Bearer {seen[name]}"
    assert seen["first"] != seen["second"]


def test_the_key_of_before(
    run: Run, command: Launch, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that has ended: clients have it."""
    run(*command.words, "--yes")
    command.server.machines.clear()
    command.server.serve.services.clear()
    monkeypatch.delenv("PIXTRAL_API_KEY")
    with FakeEndpoint() as stranger:
        known = store.recall()
        assert known
        store.remember(type(known)(**{**vars(known), "url": stranger.url}))
        assert run(*command.words, "--yes").out == f"{fake.url}\n"
    assert stranger.requests == [], "who has its old address now"
    assert store.recall().key == KEY


def test_a_file_with_what_the_script_refuses(run: Run, command: Launch, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("envs: {ALLOWED_MEDIA_HOSTS: a.example}\nrun: serve\n")
    result = run(*command.words, "--yes", "--file", path)
    assert result.code == 2
    assert result.error.startswith("ALLOWED_MEDIA_HOSTS is called")
    assert "a.example" in result.error
    assert command.server.calls == []


def test_dry_run(run: Run, command: Launch) -> None:
    result = run(*command.words, "--dry-run")
    assert (result.code, result.out, last(result)) == (0, "", command.nothing)
    assert "Considered resources" in result.err
    assert "L40S:1" in result.err
    assert nothing_is_there(command)


def test_nobody_to_be_asked(run: Run, command: Launch) -> None:
    result = run(*command.words)
    assert (result.code, result.out) == (2, "")
    assert "Considered resources" in result.err, "what it would cost is said all the same"
    assert last(result) == "Error: This costs money, and nobody is here to be asked. Add --yes"
    assert nothing_is_there(command)


def test_somebody_says_yes(run: Run, command: Launch, fake: FakeEndpoint) -> None:
    result = run(*command.words, typed="\n")
    assert (result.code, result.out) == (0, f"{fake.url}\n"), "the question is not in the pipe"
    asked = result.err.index(f"{command.question} pixtral? [Y/n]")
    assert 0 < result.err.index("Considered resources") < asked


def test_somebody_says_no(run: Run, command: Launch) -> None:
    result = run(*command.words, typed="n\n")
    assert (result.code, result.out) == (1, "")
    assert nothing_is_there(command)


@pytest.mark.parametrize(
    ("token", "options", "asks"),
    [
        ("", [], ("mistralai/Pixtral-12B-2409", "", "main")),
        (TOKEN, ["--env", "MODEL=me/other", "--env", "MODEL_REVISION=v2"], ("me/other", TOKEN, "v2")),
    ],
)
def test_the_licence_of_the_weights(
    run: Run, command: Launch, monkeypatch: pytest.MonkeyPatch, token: str, options: list[str], asks: Any
) -> None:
    """Of the model that is served; it is asked for before anything costs money."""
    monkeypatch.setenv("HF_TOKEN", token)
    asked = []

    def check(*given: str) -> str:
        asked.append(given)
        raise HubError("It opens only to a token.", "Make one.")

    monkeypatch.setattr(huggingface, "check", check)
    result = run("-q", *command.words, "--yes", *options)
    assert (result.code, result.error) == (1, "It opens only to a token. Make one.")
    assert asked == [asks]
    assert nothing_is_there(command)


def test_no_cloud(run: Run, command: Launch) -> None:
    command.server.clouds = []
    result = run("-q", *command.words, "--yes")
    assert result.code == 1
    assert result.error.startswith(
        "SkyPilot has no cloud, Kubernetes or Slurm to launch on. What is missing: "
    )
    assert "check" in [name for name, _ in command.server.calls], "it is checked once, before that is said"
    assert nothing_is_there(command)


def test_skypilot_is_missing(run: Run, command: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    monkeypatch.setattr(huggingface, "check", None)
    result = run("-q", *command.words, "--yes")
    assert result.code == 1
    assert result.error == f"SkyPilot is not installed here. Run: {install_skypilot()}"


@pytest.mark.parametrize(
    "said",
    [
        f"Command export PIXTRAL_API_KEY={KEY}; export HF_TOKEN={TOKEN}; bash run.sh failed.",
        f"500 Server Error for url: https://me:{KEY}@sky.example/launch",
        "500 Server Error for url: https://me:SENTINEL-password@sky.example/launch",
    ],
)
def test_a_secret_in_an_error_is_not_shown(run: Run, command: Launch, said: str) -> None:
    command.server.errors[command.request] = RuntimeError(said)
    result = run("-q", *command.words, "--yes")  # which looks for it
    assert result.code == 1
    assert "***" in result.error


def test_a_rehearsal_of_that_name(
    run: Run, command: Launch, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has ended is replaced."""
    rehearsal = deployments.rehearsal(key="the old key")
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: True)
    result = run("-q", *command.words, "--yes")
    assert result.code == 2
    assert result.error.startswith("'pixtral' is a rehearsal. Take another --name")
    assert not command.server.requests(command.request)
    assert store.recall() == rehearsal
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: False)
    assert run(*command.words, "--yes").code == 0
    assert store.recall().key == KEY


def test_skypilot_is_lost_meanwhile(run: Run, command: Launch) -> None:
    """What it has made cannot be looked at: it may be there."""

    def lost(_: str) -> None:
        command.server.down_with = command.server.sky.exceptions.ApiServerConnectionError(
            "http://127.0.0.1:46580"
        )
        raise command.server.down_with

    command.meanwhile(lost)
    assert last(run(*command.words, "--yes")) == (
        "Error: SkyPilot's API server does not answer. What is left of it: "
        f"pixtral-sky {command.group}status pixtral. Look at it: sky api info; sky api start"
    )
    assert store.known() == ["pixtral"]


def test_ctrl_c(run: Run, command: Launch) -> None:
    """While SkyPilot makes it."""

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    command.meanwhile(interrupted)
    result = run(*command.words, "--yes")
    assert (result.code, result.out) == (130, "")
    assert last(result) == (
        f"Warning: pixtral goes on without this command, and may cost money. Look: pixtral-sky {command.group}status "
        f"pixtral   Stop it: pixtral-sky {command.group}down pixtral"
    )
    request: Any = store.recall()
    assert request.request in [each.request_id for each in command.server.api_status()], (
        "`down` ends it by that"
    )
