"""A launch: what is planned, and how its job is followed."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.deploy import clusters, launch, status, store, task
from pixtral_sky.deploy.bring_up import Wanted
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.deploy.tunnel import Tunnel
from pixtral_sky.errors import SkyError, Unreachable
from tests.support import fake_sky
from tests.support.command_line import KEY
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import STARTING, FakeSky

CLUSTER = Cluster("pixtral", "", KEY, 32768, 4, 1.0, 8081, False, "")


def prepared(file: Path | None = None, key: str = KEY, token: str = "", **wanted: Any) -> launch.Plan:
    return launch.prepare(task.load(file), Wanted("pixtral", **wanted), key, token)


# A job -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "(setup pid=2302) ", "\x1b[36m(setup pid=2302)\x1b[0m ", "\x1b[36m(setup pid=2302, ip=10.0.0.2)\x1b[0m ",
        "\x1b[36m(pixtral, pid=4800)\x1b[0m ", "(head, rank=0, pid=4800) ", "(worker1, rank=1, pid=4, ip=10.0.0.2) ",
        "",
    ],
)  # fmt: skip
def test_how_skypilot_marks_a_line(server: FakeSky, prefix: str) -> None:
    server.cluster().jobs[0].script = [
        f"{prefix}== a step\n",
        f"{prefix}pixtral: it fails.\n",
        server.ends("FAILED"),
    ]
    following = launch.follow(CLUSTER, 1)
    assert [next(following), next(following)] == ["waiting for the machine", "a step"]
    with pytest.raises(SkyError) as raised:
        next(following)
    assert raised.value.what == "The job on 'pixtral' is FAILED: it fails."


def test_every_end_of_a_job(server: FakeSky) -> None:
    for each in server.sky.JobStatus:
        if each.is_terminal():
            server.cluster().jobs[0].script = [server.ends(each.value)]
            with pytest.raises(SkyError, match=f"is {each.value}: it said nothing"):
                list(launch.follow(CLUSTER, 1))


def test_it_is_not_asked_before_it_is_there(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is nothing of the job, the server of before may answer still."""
    asked = []
    monkeypatch.setattr(launch, "problem", lambda cluster: asked.append(cluster) or "")
    machine = server.cluster(endpoints={8081: "127.0.0.1:9"})
    machine.jobs[0].script = [fake_sky.WAITING, lambda _: time.sleep(0.2), STARTING]
    following = launch.follow(CLUSTER, 1)
    next(following)
    assert next(following) == "starting the server"
    assert asked == []
    assert list(following) == []
    assert len(asked) == 1


def test_its_machine_is_not_up_for_a_moment(server: FakeSky) -> None:
    """Its address is asked for again."""
    with FakeEndpoint(key=KEY) as fake:
        machine = server.cluster(status="INIT", endpoints={8081: fake.url})
        following = launch.follow(CLUSTER, 1)
        machine.status = server.sky.ClusterStatus.UP
        next(following)
        machine.status = server.sky.ClusterStatus.INIT
        assert clusters.located(CLUSTER).url == ""
        machine.status = server.sky.ClusterStatus.UP
        assert list(following) == ["starting the server"]
        assert store.recall().url == fake.url


# A plan ----------------------------------------------------------------------------------------------------


def test_a_plan_launches_nothing(server: FakeSky) -> None:
    plan = prepared()
    assert plan.running is None
    assert {name for name, _ in server.calls} == {"status", "enabled_clouds"}
    assert store.known() == []
    assert plan.task.envs["PORT"] == "8081"
    assert KEY not in repr(plan.cluster)


def test_gpus_in_place_of_all_others(server: FakeSky) -> None:
    assert len(prepared().task.resources) == 7
    assert len(prepared(gpus="L4:4").task.resources) == 1


def test_a_file_with_an_order(server: FakeSky, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "resources: {ordered: [{accelerators: 'L4:2'}, {accelerators: 'L40S:1'}]}\n"
        "secrets: {PIXTRAL_API_KEY: ''}\nrun: serve\n"
    )
    resources = prepared(file=path).task.resources
    assert [each.accelerators for each in resources] == [{"L4": 2}, {"L40S": 1}]
    assert {tuple(each.ports) for each in resources} == {("8081",)}


def test_the_local_port_of_a_private_one_stays(server: FakeSky) -> None:
    first = prepared(private=True).cluster
    assert first.url.startswith("http://127.0.0.1:")
    store.remember(replace(first, url="http://127.0.0.1:8765"))
    assert prepared().cluster.url == "http://127.0.0.1:8765"
    store.remember(replace(first, url="http://127.0.0.1:8765", private=False))
    assert prepared(private=True).cluster.url != "http://127.0.0.1:8765", "that was no port of this machine"


def test_a_token_that_is_not_there_is_no_secret(server: FakeSky) -> None:
    assert "HF_TOKEN" not in {
        name for name, value in prepared().task.secrets.items() if value.get_secret_value()
    }
    assert prepared(token="hf_x").task.secrets["HF_TOKEN"].get_secret_value() == "hf_x"


def test_the_environment_is_not_changed(server: FakeSky) -> None:
    before = dict(os.environ)
    prepared()
    clusters.records()
    assert dict(os.environ) == before


def test_problem_of_a_tunnel(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: object) -> None:
        raise Unreachable("ssh does not reach 'pixtral'.", "hint")

    monkeypatch.setattr(Tunnel, "open", closed)
    there = replace(CLUSTER, private=True, url="http://127.0.0.1:9")
    assert status.problem(there) == "ssh does not reach 'pixtral'."
