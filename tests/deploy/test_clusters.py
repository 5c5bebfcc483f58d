"""What of SkyPilot's is read in which way, on its real SDK with a fake API server behind it. (The commands that
use it: `test_launch.py`, `test_overview.py`.)"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pixtral_sky.deploy import clusters, skypilot, store
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import SkyError
from tests.support.command_line import KEY
from tests.support.fake_sky import FakeSky

CLUSTER = Cluster("pixtral", "", KEY, 32768, 4, 1.0, 8081, False, "")


def test_ssh_is_told_by_the_program_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "sky"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$0.asked"; echo out; echo err >&2; exit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    clusters.write_ssh_alias("pixtral")
    assert Path(f"{program}.asked").read_text() == "status pixtral\n"
    program.unlink()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SkyError, match="There is no program 'sky'"):
        clusters.write_ssh_alias("pixtral")


def test_an_address_with_a_scheme(server: FakeSky) -> None:
    """Kubernetes' ingress has one."""
    for address, url in (
        ("10.0.0.7:8081", "http://10.0.0.7:8081"),
        ("https://host/path", "https://host/path"),
    ):
        server.cluster(endpoints={8081: address})
        assert clusters.located(CLUSTER).url == url


def test_an_address_of_another_port(server: FakeSky) -> None:
    server.cluster(endpoints={8000: "10.0.0.7:8000"})
    assert clusters.located(CLUSTER) == CLUSTER
    assert store.known() == []


@pytest.mark.parametrize("job", ["RUNNING", None])
def test_the_state_of_the_last_job(server: FakeSky, job: str | None) -> None:
    server.cluster(job=job)
    assert clusters.job_status("pixtral") == (job or "")


def test_the_state_of_no_job(server: FakeSky) -> None:
    assert clusters.job_status("pixtral") == ""


def test_what_a_request_can_be(server: FakeSky) -> None:
    active = server.wire.RequestStatus.active_statuses()
    for each in server.wire.RequestStatus:
        assert skypilot.is_launching(server.pending(each.value)) == (each in active), each
    assert not skypilot.is_launching("")
    assert not skypilot.is_launching("of-another-server")
    server.down_with = RuntimeError("no")
    assert not skypilot.is_launching("any")


# A cluster -------------------------------------------------------------------------------------------------


def test_a_record(server: FakeSky) -> None:
    server.cluster(gpus={"A100-80GB": 8}, ports=["8081"], spot=True, envs={"A": None, "B": 1.5})
    (record,) = clusters.records()
    assert time.time() - record.launched == pytest.approx(1800, abs=5)
    assert replace(record, launched=0) == clusters.Record(
        name="pixtral", status="UP", reason="", infra="aws/us-east-1", gpus="A100-80GB:8", spot=True, launched=0,
        hourly=pytest.approx(1.4), spent=pytest.approx(0.7), ports=True, ours=True,
        disk_gb=256, envs={"PORT": "8081", "MAX_IMAGES": "4", "MAX_MODEL_LEN": "32768", "A": "None", "B": "1.5"},
    )  # fmt: skip


def test_a_part_of_a_gpu(server: FakeSky) -> None:
    server.cluster(infra="kubernetes/ctx", gpus={"L4": 0.5})
    assert clusters.records()[0].gpus == "L4:0.5"


def test_no_gpu(server: FakeSky) -> None:
    server.cluster(resources=server.sky.Resources(infra="aws/us-east-1"))
    assert clusters.records()[0].gpus == ""


def test_costs_are_asked_for_only_where_there_are_any(server: FakeSky) -> None:
    assert clusters.records() == []
    assert server.asked("cost_report") == []


def test_clusters_are_told_apart_by_more_than_the_name(
    server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs are of all that have ever had it."""
    server.cluster(hash="new")
    old = [
        {
            "name": "pixtral",
            "cluster_hash": "old",
            "status": None,
            "resources": None,
            "total_cost": 99.0,
            "duration": 9,
        }
    ]
    now = server._costs
    monkeypatch.setattr(server, "_costs", lambda: [*now(), *old])
    assert clusters.records()[0].hourly == pytest.approx(1.4)


def test_controllers(server: FakeSky) -> None:
    server.cluster("sky-serve-controller-1")
    server.cluster("my-sky-serve-controller-1")
    server.cluster("sky-jobs-controller-1", mine=False)  # that of another user, whom this one pays with
    assert [each.name for each in clusters.controllers()] == [
        "sky-serve-controller-1",
        "sky-jobs-controller-1",
    ]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)


def test_locate(server: FakeSky, key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clusters.locate("pixtral") is None
    envs = {"MAX_IMAGES": 8, "MAX_MODEL_LEN": -1}
    server.cluster(endpoints={8081: "10.0.0.7:8081"}, ports=["8081"], envs=envs)
    found = clusters.locate("pixtral")
    assert found
    assert (found.url, found.key, found.request) == ("http://10.0.0.7:8081", KEY, "")
    assert (found.max_images, found.max_model_len, found.private) == (8, -1, False)
    assert found == store.recall()
    monkeypatch.delenv("PIXTRAL_API_KEY")
    assert clusters.locate("pixtral").key == KEY
    monkeypatch.setenv("PIXTRAL_API_KEY", "another")
    assert clusters.locate("pixtral").key == "another", "nobody here knows better"


def test_a_cluster_that_listens_for_a_tunnel_only(server: FakeSky) -> None:
    server.cluster(ports=["8081"], envs={"LISTEN": "127.0.0.1"})
    found = clusters.locate("pixtral")
    assert found
    assert found.private
    assert found.url.startswith("http://127.0.0.1:")
    assert server.aliases == ["pixtral"]


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("sky launch -c pixtral pixtral.yaml --env PORT=9000 --env LISTEN=127.0.0.1 --secret HF_TOKEN", 9000),
        ("sky launch -y --env=PORT=9000 --env 'EXTRA_ARGS=--a b=c' pixtral.yaml", 9000),
        ("sky launch --env PORT --env EXTRA_ARGS=it's pixtral.yaml", 8081),
        ("sky launch pixtral.yaml --env", 8081),
        (None, 8081),
    ],
)
def test_what_a_bare_launch_was_given(server: FakeSky, command: str | None, port: int) -> None:
    """SkyPilot keeps the file as it was, and the command."""
    server.cluster(command=command)
    found = clusters.locate("pixtral")
    assert found
    assert (found.port, found.private) == (port, True)
