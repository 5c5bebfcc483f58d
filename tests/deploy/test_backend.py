"""What the three kinds of deployment have in common: one suite, on what a user sees.

What is special to one: ``tests/cli/test_status.py`` (clusters), ``tests/cli/test_serve.py``, ``tests/rehearsal``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pixtral_sky.deploy import backend, skypilot, store
from pixtral_sky.deploy.store import Cluster, Deployment, Rehearsal, Service
from pixtral_sky.errors import UsageError
from tests.support import deployments
from tests.support.command_line import KEY, Result, Run, row
from tests.support.deployments import NOBODY
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import FakeSky


class Rehearsals:
    kind, running = Rehearsal, "running"
    gone = "it has ended; its log: "

    def __init__(self, server: FakeSky) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = Path.home() / "the.log"
        self.log.write_text("")

    def remember(self, name: str = "pixtral", url: str = NOBODY, born: float | None = None) -> None:
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        self.processes.append(process)
        born = store.born(psutil.Process(process.pid)) if born is None else born
        deployments.rehearsal(name, url=url, pid=process.pid, pid_born=born, log=str(self.log))

    runs = remember

    def ended(self, url: str = NOBODY) -> None:
        """Another process has its pid now."""
        self.remember(url=url, born=1.0)

    def says(self, *lines: str) -> None:
        self.log.write_text("".join(f"{line}\n" for line in lines))

    def there(self) -> list[str]:
        return [one.name for name in store.known() if isinstance(one := store.recall(name), Rehearsal)
                and one.is_running()]  # fmt: skip


class AtSkyPilot:
    def __init__(self, server: FakeSky) -> None:
        self.server = server

    def runs(self, name: str = "pixtral", url: str = NOBODY) -> None:
        self.bare(name, url)
        self.remember(name)

    def ended(self, url: str = NOBODY) -> None:
        self.remember(url=url)


class Clusters(AtSkyPilot):
    kind, running = Cluster, "up"
    gone = "SkyPilot has it no longer: "

    def bare(self, name: str = "pixtral", url: str = NOBODY, secrets: Any = None) -> None:
        self.server.cluster(name, endpoints={8081: url}, ports=["8081"], secrets=secrets)

    def remember(self, name: str = "pixtral", url: str = "") -> None:
        deployments.cluster(name, url=url)

    def foreign(self, name: str) -> None:
        self.bare(name, secrets={"OTHER": None})

    def says(self, *lines: str) -> None:
        self.server.machines["pixtral"].jobs[0].script = [f"{line}\n" for line in lines]
        self.server.machines["pixtral"].jobs[0].status = self.server.sky.JobStatus.SUCCEEDED

    def there(self) -> list[str]:
        return list(self.server.machines)


class Services(AtSkyPilot):
    kind, running = Service, "ready, 1/1"
    gone = "SkyServe has it no longer: "

    def bare(self, name: str = "pixtral", url: str = NOBODY) -> None:
        address = url.removeprefix("http://")
        self.server.serve.service(name, {1: "READY"}, balancer=address)

    def remember(self, name: str = "pixtral", url: str = "") -> None:
        deployments.service(name, url=url)

    def foreign(self, name: str) -> None:
        config = {"name": "llama", "resources": {"accelerators": "L4:1", "ports": 8000}, "run": "serve"}
        config["service"] = {"readiness_probe": "/health", "replicas": 1}
        self.server.serve.service(name, {1: "READY"}, config=config, secrets={"OTHER": "of-others"})

    def says(self, *lines: str) -> None:
        self.server.serve.services["pixtral"].logs["controller"] = [f"{line}\n" for line in lines]

    def there(self) -> list[str]:
        return list(self.server.serve.services)


@pytest.fixture(params=[Rehearsals, Clusters, Services])
def stand(request: pytest.FixtureRequest, server: FakeSky) -> Iterator[Any]:
    """A kind of deployment, and how one of it comes to be."""
    yield from _stand(request.param, server)


@pytest.fixture(params=[Clusters, Services])
def remote(request: pytest.FixtureRequest, server: FakeSky) -> Iterator[Any]:
    """One of those that SkyPilot has."""
    yield from _stand(request.param, server)


def _stand(kind: Any, server: FakeSky) -> Iterator[Any]:
    made = kind(server)
    yield made
    for process in getattr(made, "processes", ()):
        process.kill()
        process.wait()


def test_every_kind_has_a_backend() -> None:
    assert {each.kind for each in backend.BACKENDS} == {*store.CLASSES.values()}
    for each in backend.BACKENDS:
        functions = {name for name in vars(backend.Backend) if not name.startswith("_")}
        assert all(hasattr(each, name) for name in functions), each


# status ----------------------------------------------------------------------------------------------------


def test_status(run: Run, stand: Any, fake: FakeEndpoint) -> None:
    """The other one does not answer, and is not asked about when the one is."""
    stand.runs(url=fake.url)
    stand.runs("silent")
    result = run("status", "--json")
    assert (result.code, result.err) == (1, "")
    one, other = json.loads(result.out)
    assert (one["name"], one["kind"], one["state"]) == ("pixtral", stand.kind.kind, stand.running)
    assert (one["endpoint"], one["answers"], one["problem"]) == (fake.url, True, "")
    assert one["age"] >= 299
    assert (other["name"], other["answers"]) == ("silent", False)
    assert other["problem"].startswith(f"Nothing answers at {NOBODY}.")
    result = run("status", "pixtral")
    assert (result.code, len(result.out.splitlines())) == (0, 2)
    assert result.out.endswith(f"{fake.url}  yes\n")
    assert {(each.method, each.path) for each in fake.requests} == {("GET", "/v1/models")}


def test_status_with_another_key(run: Run, stand: Any) -> None:
    with FakeEndpoint(key="another") as fake:
        stand.runs(url=fake.url)
        result = run("status", "--json")
    assert result.code == 1
    assert "does not take this key (401)" in row(result)["problem"]


def test_status_of_one_that_has_ended(run: Run, stand: Any) -> None:
    """Whoever has its address now is not asked: a key is never sent to a place that it was not given for."""
    with FakeEndpoint() as stranger:
        stand.ended(url=stranger.url)
        result = run("status", "--json")
    assert (result.code, row(result)["state"]) == (1, "ended")
    assert row(result)["problem"].startswith(stand.gone)
    assert stranger.requests == []


def test_a_damaged_file(run: Run, stand: Any, home: Path) -> None:
    """What it costs is shown all the same, where it costs anything."""
    stand.runs()
    (home / "deployments" / "pixtral.json").write_text('{"kind": "cluster"}')
    for arguments in ([], ["pixtral"]):
        result = run("status", "--json", *arguments)
        damaged, *there = json.loads(result.out)
        assert (result.code, damaged["state"], damaged["answers"]) == (1, "damaged", False)
        assert "Remove it: rm " in damaged["problem"]
        assert [each["kind"] for each in there] == [stand.kind.kind] * (stand.kind is not Rehearsal)


def test_an_unknown_name(run: Run, stand: Any) -> None:
    stand.runs("other")
    says = "There is no deployment named 'unknown' here or at SkyPilot. There are: other."
    for command in ("status", "logs", "down"):
        result = run(command, "unknown")
        assert (result.code, result.error) == (2, says)
    result = run("-q", "endpoint", "-n", "unknown")
    assert result.code == 2
    assert result.error == "No deployment named 'unknown' is remembered here. Name one of: other (--name)."
    assert "other" in stand.there()


def test_one_of_all_that_is_a_directory(run: Run, stand: Any, home: Path) -> None:
    """It does not keep the others."""
    stand.runs()
    (home / "deployments" / "x.json").mkdir()
    result = run("status", "--json")
    rows = {each["name"]: each["state"] for each in json.loads(result.out)}
    assert (result.code, rows["x"], len(rows)) == (1, "damaged", 2)
    assert "x.json is damaged: Is a directory. Remove it: rm -r " in result.out
    result = run("down", "--all", "--yes")
    assert result.code == 1
    assert "Error: " in result.err
    assert "x.json is damaged: Is a directory." in result.err
    assert [each["name"] for each in json.loads(run("status", "--json").out)] == ["x"]


@pytest.mark.parametrize("name", ["", "pix*", "a b", "-x", "..", "a/b", "../../etc/passwd"])
def test_a_name_that_is_none(run: Run, server: FakeSky, name: str) -> None:
    """SkyPilot takes a * for many."""
    for command in (
        ["down", "--"],
        ["status", "--"],
        ["logs", "--"],
        ["endpoint", "-n"],
        ["tunnel", "--"],
        ["ask", "Hello", "-n"],
        ["serve", "status", "--"],
        ["serve", "down", "--"],
    ):
        result = run(*command, name)
        assert (result.code, "is no name for a deployment" in result.error) == (2, True)
    assert server.calls == []


def test_somebody_who_never_used_skypilot(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked, which would start its server, nor imported, which takes two seconds."""
    (Path.home() / ".sky" / "api_server").rmdir()
    says = "There is no deployment named 'pixtral' here. What there is: pixtral-sky status"
    for command in (["status", "pixtral"], ["logs"], ["down"]):
        assert (run(*command).code, run(*command).error) == (2, says)
    commands = (["status"], ["endpoint"], ["down", "--all"], ["serve", "status"], ["serve", "logs"])
    used: list[bool] = []
    monkeypatch.setattr(skypilot, "check_installed", lambda: used.append(True))  # what sky_sdk begins with
    assert [run(*command).code for command in commands] == [1, 2, 0, 1, 2]
    assert (server.calls, used) == ([], [])


@pytest.mark.parametrize("stand", [Rehearsals], indirect=True)
def test_a_rehearsal_needs_no_skypilot(
    run: Run, stand: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not even imported, which takes a second."""
    used: list[bool] = []
    monkeypatch.setattr(skypilot, "check_installed", lambda: used.append(True))  # what sky_sdk begins with
    stand.runs(url=fake.url)
    for command in (["status", "pixtral"], ["endpoint"], ["logs"], ["down"]):
        assert run(*command).code == 0
    assert used == []


def test_without_skypilots_server(run: Run, server: FakeSky, remote: Any, fake: FakeEndpoint) -> None:
    """It is not known whether it is there, but that it answers."""
    remote.remember(url=fake.url)
    server.down_with = server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
    for arguments in ([], ["pixtral"]):
        result = run("status", "--json", *arguments)
        assert (result.code, row(result)["state"], row(result)["answers"]) == (0, "unknown", True)
        assert result.err.count("\n") == 1
        assert result.err.startswith(
            "Warning: What SkyPilot runs is not known: SkyPilot's API server does not answer. Look at it: "
        )
    result = run("-q", "down")
    assert (result.code, "SkyPilot's API server does not answer." in result.error) == (1, True)
    assert store.known() == ["pixtral"], "it may be there"


# What the environment names --------------------------------------------------------------------------------

ASIDE = "PIXTRAL_ENDPOINT is set here: `ask` goes there, but `logs` and `down` do not reach it."


def test_status_of_what_the_environment_names(
    run: Run, stand: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked with its key; it is in no row of its own when it is that of a deployment."""
    stand.runs()
    monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{fake.url}/v1/")
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    _, named = json.loads(run("status", "--json").out)
    assert (named["name"], named["kind"], named["state"]) == ("PIXTRAL_ENDPOINT", "environment", "up")
    assert (named["endpoint"], named["answers"], named["problem"]) == (fake.url, True, "")
    result = run("status", "PIXTRAL_ENDPOINT")
    assert (result.code, len(result.out.splitlines())) == (0, 2)
    assert run("down").err.endswith(f"{ASIDE}\n")
    monkeypatch.setenv("PIXTRAL_ENDPOINT", NOBODY)
    assert run("status", "PIXTRAL_ENDPOINT").code == 1
    stand.runs()
    assert row(run("status", "--json"))["name"] == "pixtral"
    assert ASIDE not in run("down").err


def test_logs_beside_what_the_environment_names(
    run: Run, stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.runs()
    stand.says("one")
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://10.0.0.7:8081")
    assert run("logs") == Result(0, "one\n", f"{ASIDE}\n")


@pytest.mark.parametrize(
    ("url", "key", "problem"),
    [
        (NOBODY, "", f"Nothing answers at {NOBODY}."),
        (NOBODY, "a\nb", "The key has characters that no key can have."),
        ("http://me:password@host", "", "An endpoint's URL holds no user and no password. Give the key with "
         "PIXTRAL_API_KEY."),
    ],
)  # fmt: skip
def test_what_the_environment_names_and_does_not_answer(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, url: str, key: str, problem: str
) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", url)
    monkeypatch.setenv("PIXTRAL_API_KEY", key)
    result = run("status", "--json")
    assert (result.code, row(result)["state"], row(result)["problem"]) == (1, "unknown", problem)
    for command in ("logs", "down"):
        result = run(command)
        says = f"There is no deployment named 'pixtral' here. {ASIDE} What there is: pixtral-sky status"
        assert (result.code, result.error) == (2, says)
    assert run("down", "--all").err == f"There is nothing to take down.\n{ASIDE}\n"


# What nobody here has launched -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["status", "bare"], ["endpoint", "-n", "bare"]])
def test_a_bare_one_is_taken_up(
    run: Run, remote: Any, fake: FakeEndpoint, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    remote.bare("bare", fake.url)
    result = run(*command)
    assert (result.code, "asking SkyPilot" in result.err) == (0, command[0] == "endpoint")
    known = store.recall("bare")
    assert isinstance(known, remote.kind)
    assert (known.url, known.key) == (fake.url, KEY)
    assert run("-q", "endpoint", "-n", "bare") == Result(0, f"{fake.url}\n", "")
    assert run("down", "bare").code == 0
    assert (remote.there(), store.known()) == ([], [])


def test_a_bare_one_without_its_key(
    run: Run, remote: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.bare(url=fake.url)
    assert "asks for a key, and none was given (401)" in row(run("status", "--json"))["problem"]
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    assert run("status").code == 0, "from now on it is known"
    monkeypatch.delenv("PIXTRAL_API_KEY")
    assert run("status").code == 0


def test_a_key_for_another_endpoint_is_not_taken(
    run: Run, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setenv("PIXTRAL_ENDPOINT", NOBODY)
    with FakeEndpoint() as bare:
        remote.bare(url=bare.url)
        there, environment = json.loads(run("status", "--json").out)
        assert (there["answers"], environment["name"]) == (True, "PIXTRAL_ENDPOINT")
        assert run("endpoint", "--name", "pixtral").out == f"{bare.url}\n"
    known = store.recall()
    assert known
    assert known.key == ""
    assert bare.requests
    assert not any("authorization" in each.headers for each in bare.requests)


def test_a_key_that_was_made_here_stays(
    run: Run, remote: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's is for something else."""
    monkeypatch.setenv("PIXTRAL_API_KEY", "another")
    remote.runs(url=fake.url)
    assert run("status").code == 0
    known = store.recall()
    assert known
    assert known.key == KEY


def test_one_of_another_project(run: Run, remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not shown, gets no key, and is not taken down."""
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    remote.foreign("theirs")
    result = run("status")
    assert (result.code, result.out) == (1, "")
    assert run("status", "theirs").code == 2
    assert run("endpoint", "-n", "theirs").code == 2
    assert run("down", "--all", "--yes").err == "There is nothing to take down.\n"
    result = run("-q", "down", "theirs")
    assert result.code == 2
    assert result.error.startswith(f"'theirs' is a {remote.kind.kind} with something else on it. sky ")
    assert store.known() == []
    assert "theirs" in remote.there()


def test_one_with_the_name_of_another_kind(run: Run, server: FakeSky, stand: Any, fake: FakeEndpoint) -> None:
    """What is remembered under a name is meant, and the others stay."""
    stand.runs(url=fake.url)
    others = [each(server) for each in (Clusters, Services) if each.kind is not stand.kind]
    for each in others:
        each.bare()
    assert row(run("status", "--json"))["kind"] == stand.kind.kind
    assert run("down").code == 0
    assert all("pixtral" in each.there() for each in others)


@pytest.mark.parametrize("kind", [Rehearsal, Cluster, Service])
def test_a_name_that_is_of_another_kind(stand: Any, kind: type[Deployment]) -> None:
    """It is not taken for one of another kind, unless it is known to have ended."""
    stand.runs()
    if kind is stand.kind:
        store.check_kind("pixtral", kind)
        return
    with pytest.raises(UsageError, match=f"'pixtral' is a {stand.kind.kind}."):
        store.check_kind("pixtral", kind)
    if stand.kind is Rehearsal:
        stand.ended()
        store.check_kind("pixtral", kind)


# logs, down ------------------------------------------------------------------------------------------------


def test_logs(run: Run, stand: Any) -> None:
    stand.runs()
    stand.says("one", "two", "three")
    assert run("logs") == Result(0, "one\ntwo\nthree\n", "")
    assert run("logs", "pixtral", "--lines", "2").out == "two\nthree\n"
    if stand.kind is not Rehearsal:
        store.forget("pixtral")
        assert run("logs").out == "one\ntwo\nthree\n"


def test_down(run: Run, stand: Any) -> None:
    stand.runs()
    stand.runs("other")
    result = run("down")
    assert (result.code, result.out) == (0, "")
    assert "\npixtral is " in f"\n{result.err}"
    assert "other" in stand.there()
    assert "pixtral" not in stand.there()
    assert store.known() == ["other"]
    assert run("-q", "down", "other") == Result(0, "", "")
    assert (stand.there(), store.known()) == ([], [])


def test_down_of_one_that_has_ended(run: Run, stand: Any) -> None:
    stand.ended()
    result = run("down")
    assert (result.code, result.out) == (0, "")
    assert result.err.endswith("; it is forgotten.\n")
    assert store.known() == []
    assert all(process.poll() is None for process in getattr(stand, "processes", ())), "it is another's"
