"""What is said of clusters that are there: status, endpoint, logs and down, on the real SDK of SkyPilot with a
fake API server behind it. (Of rehearsals, `test_cli.py` has it.)"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_sky.deploy import clusters, rehearsals, skypilot, store
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.extras import install_skypilot
from tests.support import fake_sky, golden
from tests.support.command_line import KEY, Result, Run, row
from tests.support.deployments import cluster as remember_cluster
from tests.support.deployments import rehearsal as remember_rehearsal
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import FakeSky


def running_rehearsal(monkeypatch: pytest.MonkeyPatch, name: str, url: str = "http://127.0.0.1:9") -> None:
    remember_rehearsal(name, url=url)
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: True)
    monkeypatch.setattr(rehearsals, "stop", lambda one: store.forget(one.name))


# status ----------------------------------------------------------------------------------------------------


def test_status(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    server.cluster(endpoints={8081: f"127.0.0.1:{fake.port}"}, ports=["8081"])
    remember_cluster()
    result = run("status")
    assert (result.code, result.err) == (0, "")
    head, line = result.out.splitlines()
    assert " ".join(head.split()) == "NAME KIND STATE INFRA GPUS AGE $/H SPENT ENDPOINT ANSWERS"
    cells = ["pixtral", "cluster", "up", "aws/us-east-1", "L4:2", "30 min", "1.40", "0.70", fake.url, "yes"]
    assert re.split(r" {2,}", line) == cells
    assert all(head[line.index(cell) - 2 :].startswith("  ") for cell in cells[3:]), "in columns"
    assert store.recall().url == fake.url, "it is known from now on"
    assert server.asked("job_status") == [], "it answers"


def test_status_as_json(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    server.cluster(endpoints={8081: fake.url}, ports=["8081"], spot=True, gpus={"A10G": 4}, hourly=5.672)
    remember_cluster()
    one = row(run("status", "--json"))
    assert 1799 < one.pop("age") < 1815
    golden.check("status-json", one, url=fake.url)


def test_status_of_a_private_one(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    server.cluster(infra="slurm/lab")
    remember_cluster(url=fake.url, private=True)
    result = run("status")
    assert result.code == 0
    assert f"{fake.url} (ssh)  yes" in result.out
    assert server.tunnels == [("open", "pixtral", fake.port, 8081)]
    assert server.asked("endpoints") == []


@pytest.mark.parametrize(
    ("status", "shown", "says"),
    [
        ("INIT", "launching", "it is being launched"),
        ("STOPPED", "stopped", "it is stopped, and its disk costs money: pixtral-sky launch --name pixtral"),
        ("AUTOSTOPPING", "ending", ""),
        ("PENDING", "pending", ""),
    ],
)
def test_status_of_one_that_is_not_up(run: Run, server: FakeSky, status: str, shown: str, says: str) -> None:
    server.cluster(status=status, job=None)
    remember_cluster(url="http://127.0.0.1:9")
    one = row(run("status", "--json"))
    assert (one["state"], one["answers"]) == (shown, False)
    assert says in one["problem"]
    assert one["problem"]
    assert (one["hourly"] is None) == (status == "STOPPED")


def test_status_of_one_whose_launch_says_why(run: Run, server: FakeSky) -> None:
    """Nothing is known of its machine: SkyPilot has no cloud for it yet."""
    server.cluster(
        status="INIT",
        resources=None,
        job=None,
        yaml=None,
        hourly=None,
        reason="\x1b[33mRetrying\n in us-east-2\x1b[0m\n",
    )
    remember_cluster()
    one = row(run("status", "--json"))
    assert (one["state"], one["problem"]) == ("launching", "Retrying in us-east-2")
    assert (one["infra"], one["gpus"], one["hourly"], one["spent"]) == ("", "", None, None)
    assert (
        run("status").out.splitlines()[1] == "pixtral  cluster  launching  30 min  no: Retrying in us-east-2"
    )


def test_status_of_one_that_is_still_up_while_it_ends(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    server.cluster(status="AUTOSTOPPING")
    remember_cluster(url=fake.url)
    one = row(run("status", "--json"))
    assert (one["state"], one["answers"]) == ("ending", True)


def test_status_of_one_that_has_another_address(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    """It was stopped and started, say."""
    server.cluster(endpoints={8081: fake.url})
    remember_cluster(url="http://127.0.0.1:9")
    one = row(run("status", "--json"))
    assert (one["endpoint"], one["answers"]) == (fake.url, True)
    assert run("endpoint").out == f"{fake.url}\n"


@pytest.mark.parametrize(
    ("state_of_request", "shown"),
    [("RUNNING", "launching"), ("WAITING", "launching"), ("PENDING", "launching"), ("FAILED", "ended"),
     ("CANCELLED", "ended"), ("SUCCEEDED", "ended")],
)  # fmt: skip
def test_status_before_there_is_a_cluster(
    run: Run, server: FakeSky, state_of_request: str, shown: str
) -> None:
    remember_cluster(request=server.pending(state_of_request))
    assert row(run("status", "--json"))["state"] == shown


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("SETTING_UP", "its job is SETTING_UP: pixtral-sky logs pixtral"),
        ("FAILED", "its job is FAILED: pixtral-sky logs pixtral"),
        ("SUCCEEDED", "its server has ended itself, and the machine follows; again: pixtral-sky launch --name pixtral"),
        ("RUNNING", "Nothing answers at http://127.0.0.1:9."),
        (None, "Nothing answers at http://127.0.0.1:9."),
    ],
)  # fmt: skip
def test_status_of_one_that_does_not_answer(run: Run, server: FakeSky, job: str | None, says: str) -> None:
    server.cluster(job=job, endpoints={8081: "127.0.0.1:9"})
    remember_cluster()
    one = row(run("status", "--json"))
    assert (one["answers"], one["problem"]) == (False, says)


def test_status_while_its_port_is_being_opened(run: Run, server: FakeSky) -> None:
    server.cluster(endpoints={})
    remember_cluster()
    one = row(run("status", "--json"))
    assert (one["state"], one["endpoint"], one["problem"]) == (
        "up",
        "",
        "'pixtral' has no address: it is starting, or has ended.",
    )


@pytest.mark.parametrize("text", ["no such cluster", "no\nsuch\ncluster"])
def test_status_of_a_name_that_skypilot_cannot_be_asked_about(run: Run, server: FakeSky, text: str) -> None:
    server.errors["status"] = ValueError(text)
    result = run("status", "pixtra")
    assert result.code == 1
    assert result.error.startswith("SkyPilot: no")
    assert "There is no deployment" not in result.error


def test_status_of_nothing(run: Run, server: FakeSky) -> None:
    result = run("status")
    assert (result.code, result.out) == (1, "")
    assert "Nothing runs. Start with: pixtral-sky launch" in result.err


def test_status_without_skypilot(
    run: Run, server: FakeSky, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed, or in another environment: what it has launched costs money all the same."""
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    remember_cluster(url="http://127.0.0.1:9")
    result = run("status", "--json")
    assert result.code == 1
    assert row(result)["state"] == "unknown"
    told = "SkyPilot was used here and is not installed in this environment: what it runs is not known."
    assert f"Warning: What SkyPilot runs is not known: {told} Run: " in result.err
    store.forget("pixtral")
    result = run("status")
    assert (result.code, result.out) == (1, "")
    assert "Nothing runs" not in result.err
    assert run("-q", "down").error.startswith(told)


def test_one_that_makes_trouble_does_not_hide_the_others(
    run: Run, server: FakeSky, fake: FakeEndpoint
) -> None:
    server.cluster(endpoints={8081: fake.url})
    remember_cluster()
    server.cluster("other", envs={"MAX_IMAGES": "many"}, ports=["8081"])
    server.cluster("third")
    remember_cluster(name="third")
    server.machines["third"].endpoints = None  # type: ignore[assignment]
    one, two, three = sorted(json.loads(run("status", "--json").out), key=lambda each: str(each["name"]))
    assert (one["name"], one["problem"]) == ("other", "MAX_IMAGES=many is not a whole number.")
    assert (two["name"], two["answers"]) == ("pixtral", True)
    assert three["name"] == "third"
    assert three["problem"].startswith("SkyPilot: ")
    assert {one["infra"], two["infra"], three["infra"]} == {"aws/us-east-1"}


def test_a_file_that_others_can_read_is_closed(run: Run, server: FakeSky, home: Path) -> None:
    remember_cluster()
    path = home / "deployments" / "pixtral.json"
    path.chmod(0o644)
    run("status")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "costs",
    [
        RuntimeError("database is locked"),
        [],
        [{"name": "pixtral"}],
        [{"name": "pixtral", "cluster_hash": "HASH", "total_cost": None, "duration": None}],
        [{"name": "pixtral", "cluster_hash": "HASH", "total_cost": 0.0, "duration": 0}],
    ],
)
def test_costs_that_cannot_be_known(
    run: Run, server: FakeSky, fake: FakeEndpoint, costs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cluster(endpoints={8081: fake.url}, hash="HASH")
    remember_cluster()
    if isinstance(costs, Exception):
        server.errors["cost_report"] = costs
    else:
        filled = [{"status": None, "resources": None, **each} for each in costs]
        monkeypatch.setattr(server, "_costs", lambda: filled)
    result = run("status", "--json")
    assert (result.code, row(result)["hourly"]) == (0, None)


@pytest.mark.parametrize(
    "made_by", ["", "[]", "just words", "envs:\nsecrets:\n", "envs: [A]\nsecrets: [PIXTRAL_API_KEY]"]
)
def test_a_task_that_is_unlike_ours(run: Run, server: FakeSky, fake: FakeEndpoint, made_by: str) -> None:
    server.cluster(yaml=made_by, endpoints={8081: fake.url})
    remember_cluster()
    assert run("status").code == 0


def test_infra_is_as_skypilot_takes_it(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    for infra in ("ssh/pool", "slurm/lab", "kubernetes/arn:aws:eks:us-east-1:1:cluster/x", "gcp/us-central1"):
        server.cluster(infra=infra, endpoints={8081: fake.url})
        remember_cluster()
        assert row(run("status", "--json"))["infra"] == infra
        assert server.sky.Resources(infra=infra).region == server.machines["pixtral"].resources.region


# Clusters that nobody here has launched --------------------------------------------------------------------


def test_a_bare_private_one(
    run: Run, server: FakeSky, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setattr(store, "free_port", lambda wanted=None: fake.port)
    server.cluster(infra="slurm/lab", envs={"PORT": 9000})
    result = run("endpoint")
    assert (result.code, result.out) == (0, f"{fake.url}\n")
    assert server.aliases == ["pixtral"]
    assert server.tunnels == [("open", "pixtral", fake.port, 9000)]
    assert run("status").code == 0
    assert server.aliases == ["pixtral"], "once"


def test_an_unknown_cluster_that_is_not_up(run: Run, server: FakeSky) -> None:
    for status in ("INIT", "STOPPED", "AUTOSTOPPING"):
        server.cluster(status=status, job=None)
        result = run("status", "--json")
        assert result.code == 1
        assert row(result)["problem"]
        assert run("-q", "endpoint").error == (
            "'pixtral' is at SkyPilot, and has no address: it is starting, or has ended. "
            "What it does: pixtral-sky status pixtral"
        )


# --watch ---------------------------------------------------------------------------------------------------


def test_watch(run: Run, server: FakeSky, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cluster(endpoints={8081: fake.url})
    remember_cluster()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        del server.machines["pixtral"]

    module = sys.modules["pixtral_sky.cli.status"]
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    result = run("status", "--watch", "--json")
    assert result.code == 130
    assert slept == [10.0, 10.0]
    states = [json.loads(line)[0]["state"] for line in result.out.splitlines()]
    assert states == ["up", "ended"], "a document a line"


# endpoint --------------------------------------------------------------------------------------------------


def test_endpoint_asks_nobody(run: Run, server: FakeSky) -> None:
    remember_cluster(url="http://10.0.0.7:8081")
    assert run("endpoint") == Result(0, "http://10.0.0.7:8081\n", "")
    assert server.calls == []


def test_endpoint_that_is_not_there_yet(run: Run, server: FakeSky, fake: FakeEndpoint) -> None:
    server.cluster(endpoints={})
    remember_cluster()
    result = run("-q", "endpoint")
    assert result.code == 2
    assert result.error == (
        "'pixtral' has no address: it is starting, or has ended. What it does: pixtral-sky status pixtral"
    )
    server.machines["pixtral"].endpoints = {8081: fake.url}
    assert run("-q", "endpoint") == Result(0, f"{fake.url}\n", "")


def test_endpoint_without_skypilots_server(run: Run, server: FakeSky) -> None:
    server.down_with = server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
    result = run("-q", "endpoint")
    assert result.code == 2
    assert "No deployment named 'pixtral' is remembered here." in result.error
    assert "SkyPilot's API server does not answer." in result.error


def test_endpoint_of_a_private_one(run: Run, server: FakeSky) -> None:
    cluster = remember_cluster(url="http://127.0.0.1:8765", private=True)
    result = run("endpoint", "--env", shows_key=True)
    assert f"export PIXTRAL_ENDPOINT={cluster.url}\n" in result.out
    assert "pixtral-sky tunnel holds it open" in result.err
    assert server.tunnels == [("open", "pixtral", 8765, 8081)]


def test_endpoint_of_a_rehearsal_that_has_ended(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that has its name is not it."""
    server.cluster()
    running_rehearsal(monkeypatch, "pixtral")
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: False)
    result = run("endpoint")
    assert result.code == 2
    assert "has ended" in result.error
    assert "pixtral-sky rehearse --keep" in result.error
    assert server.calls == []


# logs ------------------------------------------------------------------------------------------------------


def test_logs(run: Run, server: FakeSky) -> None:
    """Without colours, where nobody would see them."""
    machine = server.cluster()
    machine.jobs[0].script = [*fake_sky.SETUP, fake_sky.STARTING]
    result = run("logs")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[1:] == [
        "(setup pid=2302) == installing vLLM",
        "(setup pid=2302) == downloading mistralai/Pixtral-12B-2409",
        "(pixtral, pid=4800) == starting the server",
    ]
    assert run("logs", "pixtral", "--lines", "1").out == "(pixtral, pid=4800) == starting the server\n"


def test_logs_are_followed(run: Run, server: FakeSky) -> None:
    machine = server.cluster()
    machine.jobs[0].script = [fake_sky.STARTING, server.ends("SUCCEEDED")]
    assert run("logs", "-f").out == "(pixtral, pid=4800) == starting the server\n"
    assert server.asked("logs") == [("pixtral", None, True, 0)]


def test_logs_of_a_launch(run: Run, server: FakeSky) -> None:
    server.cluster(status="INIT", job=None, resources=None)
    assert run("logs").out == "Launching on AWS us-east-1.\nWaiting for ssh.\n"
    assert run("logs", "-l", "1").out == "Waiting for ssh.\n"


def test_a_secret_in_a_log_is_not_shown(run: Run, server: FakeSky) -> None:
    machine = server.cluster()
    machine.jobs[0].script = [f"+ export PIXTRAL_API_KEY={KEY}\n"]
    remember_cluster()
    assert run("logs").out == "+ export PIXTRAL_API_KEY=***\n"


def test_logs_of_one_that_is_gone(run: Run, server: FakeSky) -> None:
    remember_cluster()
    result = run("logs")
    assert result.code == 2
    assert "'pixtral'" in result.error


def test_logs_of_one_that_is_stopped(run: Run, server: FakeSky) -> None:
    server.cluster(status="STOPPED")
    result = run("logs")
    assert result.code == 1
    assert "Cluster 'pixtral' (status: STOPPED) is not UP" in result.error


# down ------------------------------------------------------------------------------------------------------


def test_down(run: Run, server: FakeSky) -> None:
    server.cluster()
    server.cluster("other")
    remember_cluster(private=True, url="http://127.0.0.1:8765")
    remember_cluster(name="other")
    result = run("down")
    assert (result.code, result.out) == (0, "")
    assert "Terminating cluster pixtral...done." in result.err
    assert result.err.endswith("pixtral is down: there is nothing of it left.\n")
    assert list(server.machines) == ["other"]
    assert store.known() == ["other"]
    assert server.tunnels == [("close", "pixtral", 8765, 8081)]
    # Not what SkyPilot remembers of it, but what the cloud says.
    assert {"names": ["pixtral"], "refresh": "FORCE"} in server.asked("status")
    assert run("-q", "down", "other") == Result(0, "", "")


def test_down_that_fails(run: Run, server: FakeSky) -> None:
    server.cluster()
    remember_cluster()
    server.errors["down"] = RuntimeError(
        "\x1b[31mFailed to terminate pixtral.\x1b[0m AccessDenied.\nIf you have: sky down --purge\n"
    )
    result = run("down")
    assert result.code == 1
    assert result.error == (
        "SkyPilot: Failed to terminate pixtral. AccessDenied. Its own view: sky status; sky api status"
    )
    assert store.known() == ["pixtral"]


def test_down_that_leaves_it(run: Run, server: FakeSky) -> None:
    server.cluster()
    server.stays = True
    remember_cluster()
    result = run("-q", "down")
    assert result.code == 1
    assert result.error == "'pixtral' is still UP. Try again: pixtral-sky down pixtral"
    assert store.known() == ["pixtral"]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "WAITING"])
def test_down_of_a_launch_on_its_way(run: Run, server: FakeSky, status: str) -> None:
    """It would make its machine afterwards."""
    request = server.pending(status)
    remember_cluster(request=request)
    result = run("down")
    assert result.code == 0
    assert server.asked("api_cancel") == [[request]]
    order = [name for name, _ in server.calls]
    assert order.index("api_cancel") < order.index("down")
    assert "was gone already" not in result.err
    assert store.known() == []


def test_down_of_a_launch_that_is_done(run: Run, server: FakeSky) -> None:
    server.cluster()
    remember_cluster(request=server.pending("SUCCEEDED"))
    assert run("down").code == 0
    assert server.asked("api_cancel") == []


def test_down_without_skypilot(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_cluster()
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    result = run("down")
    assert result.code == 1
    assert result.error.endswith(f" Run: {install_skypilot()}")
    assert store.known() == ["pixtral"], "it may be there"


def test_down_all(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cluster()
    remember_cluster()
    server.cluster("bare")
    server.cluster("training", secrets={})
    running_rehearsal(monkeypatch, "here")
    result = run("down", "--all")
    assert result.code == 2
    assert result.error == "Nobody is here to be asked. --all --yes takes down: bare, here, pixtral"
    assert len(server.machines) == 3
    result = run("down", "--all", typed="n\n")
    assert (result.code, result.out) == (1, "")
    assert len(server.machines) == 3
    result = run("down", "--all", typed="y\n")
    assert (result.code, result.out) == (0, "")
    assert "Take down bare, here, pixtral? [y/N]" in result.err
    assert list(server.machines) == ["training"]
    assert store.known() == []


def test_down_all_where_one_fails(run: Run, server: FakeSky, home: Path) -> None:
    for name in ("a", "b", "c"):
        server.cluster(name)
        remember_cluster(name=name)
    (home / "deployments" / "a.json").write_text("{")
    server.machines["b"].jobs.clear()
    down = server.down

    def fails(cluster_name: str) -> Any:
        if cluster_name == "b":
            server.errors["down"] = RuntimeError("AccessDenied.")
        else:
            server.errors.pop("down", None)
        return down(cluster_name)

    server.sky.down = fails  # put back by the fixture
    result = run("down", "--all", "--yes")
    assert (result.code, result.out) == (1, "")
    errors = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert "a.json is damaged. Remove it: rm " in errors[0]
    assert errors[1].startswith("Error: SkyPilot: AccessDenied.")
    assert sorted(server.machines) == ["a", "b"]
    assert store.known() == ["a", "b"]


def test_down_all_without_skypilots_server(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_cluster()
    running_rehearsal(monkeypatch, "here")
    server.down_with = server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
    result = run("down", "--all", "--yes")
    assert result.code == 1
    assert "here is down" in result.err
    assert store.known() == ["pixtral"]


def test_down_of_all_and_a_name(run: Run, server: FakeSky) -> None:
    server.cluster()
    assert run("down", "pixtral", "--all", "--yes").code == 2
    assert server.calls == []


@pytest.mark.parametrize("arguments", [["down"], ["down", "--all", "--yes"]])
def test_controllers_are_named(run: Run, server: FakeSky, arguments: list[str]) -> None:
    """They cost money as well."""
    server.cluster()
    remember_cluster()
    server.cluster("sky-serve-controller-abcd1234", secrets={}, hourly=0.19)
    server.cluster("sky-jobs-controller-abcd1234", secrets={}, status="STOPPED", hourly=None)
    result = run(*arguments)
    assert result.code == 0
    assert (
        "Warning: SkyPilot's sky-serve-controller-abcd1234 is still UP, $0.19 an hour. End it: sky down "
        "sky-serve-controller-abcd1234\n"
    ) in result.err
    assert "sky-jobs-controller-abcd1234 is still STOPPED. End it: " in result.err
    assert len(server.machines) == 2


def test_controllers_that_cannot_be_looked_up(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is down: that is what was asked."""
    server.cluster()
    remember_cluster()

    def fails() -> Any:
        raise clusters.SkyError("no")

    monkeypatch.setattr(clusters, "controllers", fails)
    result = run("down")
    assert result.code == 0
    assert store.known() == []
