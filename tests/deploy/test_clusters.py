"""What of SkyPilot's is read in which way, on its real SDK with a fake API server behind it. (The commands that
use it: `test_launch.py`, `test_overview.py`.)"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky import output
from pixtral_sky.deploy import clusters, launch, skypilot, status, store, task
from pixtral_sky.deploy.skypilot import NoMachine
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.deploy.tunnel import Tunnel
from pixtral_sky.errors import NoEndpoint, SkyError, Unreachable, UsageError
from tests.support import fake_catalog, fake_sky
from tests.support.command_line import KEY
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import SETUP, STARTING, FakeSky

CLUSTER = Cluster("pixtral", "", KEY, 32768, 4, 1.0, 8081, False, "")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSky]:
    monkeypatch.setattr(output, "quiet", False)
    with fake_sky.started(monkeypatch, tmp_path) as server:
        yield server


def prepared(file: Path | None = None, key: str = KEY, token: str = "", **wanted: Any) -> launch.Plan:
    return launch.prepare(task.load(file), launch.Wanted("pixtral", **wanted), key, token)


# SkyPilot itself -------------------------------------------------------------------------------------------


def test_the_fake_takes_what_the_real_one_takes(server: FakeSky) -> None:
    for name, real in server.real.items():
        ours = inspect.signature(server.endpoints_of if name == "endpoints" else getattr(server, name))
        theirs = inspect.signature(inspect.unwrap(real)).parameters
        for parameter in ours.parameters.values():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                assert parameter.name in theirs, (name, parameter.name)


def test_it_is_imported_when_it_is_needed() -> None:
    program = (
        "import sys, pixtral_sky.deploy.clusters, pixtral_sky.deploy.status; assert 'sky' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert skypilot.installed() == "0.14.1"

    def nightly(name: str) -> str:
        if name == "skypilot-nightly":
            return "1.0.0.dev1"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", nightly)
    assert skypilot.installed() == "1.0.0.dev1"


def test_whether_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    assert not skypilot.was_used()
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://sky.example")
    assert skypilot.was_used()
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT")
    (Path.home() / ".sky").mkdir(parents=True)
    assert skypilot.was_used()
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    with pytest.raises(SkyError, match="SkyPilot was used here and is not installed"):
        skypilot.was_used()


def test_its_server(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    assert skypilot.server() == "0.14.1, on this machine"
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://me:password@sky.example")
    assert skypilot.server() == "0.14.1, https://***@sky.example"


def test_what_is_enabled(server: FakeSky) -> None:
    server.clouds = ["GCP", "kubernetes/Context", "slurm/Lab", "AWS"]
    assert skypilot.enabled() == ["aws", "gcp", "kubernetes/Context", "slurm/Lab"]
    assert server.asked("check") == []
    server.clouds = []
    assert skypilot.enabled() == []
    assert len(server.asked("check")) == 1


def test_a_file_is_checked(server: FakeSky, tmp_path: Path) -> None:
    skypilot.check_file()
    path = tmp_path / "bad.yaml"
    path.write_text("run: x\nresources: {acelerators: L4}\n")
    with pytest.raises(SkyError, match="did you mean 'accelerators'"):
        skypilot.check_file(path)
    with pytest.raises(UsageError, match="cannot be read"):
        skypilot.check_file(tmp_path / "none.yaml")


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


# What it raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("One line."), "SkyPilot: One line."),
        (RuntimeError(""), "SkyPilot: RuntimeError."),
        (RuntimeError("  \n\n \x1b[31mFirst:\x1b[0m\n\n  second"), "SkyPilot: First."),
        (RuntimeError("x" * 5000), f"SkyPilot: {'x' * 300}."),
        (ValueError(None), "SkyPilot: None."),
        (KeyError("name"), "SkyPilot: 'name'."),
        (TimeoutError(), "SkyPilot: TimeoutError."),
        (RuntimeError("Did you mean 'a'?"), "SkyPilot: Did you mean 'a'?"),
        (RuntimeError("at https://me:secret@host/x?y"), "SkyPilot: at https://***@host/x?y."),
    ],
)
def test_an_error_is_one_line(server: FakeSky, error: Exception, says: str) -> None:
    """As it is when it has come through SkyPilot's server."""
    server.errors["status"] = error
    with pytest.raises(SkyError) as raised:
        clusters.records()
    assert raised.value.what == says
    assert raised.value.hint == "Its own view: sky status; sky api status"


def test_an_error_of_a_command(server: FakeSky) -> None:
    """Its text begins with the command, which has the key on Slurm."""
    prepared()
    server.errors["status"] = server.sky.exceptions.CommandError(
        255, f"srun bash -c 'export PIXTRAL_API_KEY={KEY}; cat'", "Failed to run it.", "no route to host"
    )
    with pytest.raises(SkyError) as raised:
        clusters.records()
    assert KEY not in str(raised.value)
    assert "PIXTRAL_API_KEY=***" in str(raised.value)
    assert "failed with return code 255" in str(raised.value)


def test_a_short_key_is_not_looked_for(server: FakeSky) -> None:
    prepared(key="a")
    server.errors["status"] = RuntimeError("a cat sat")
    with pytest.raises(SkyError, match="SkyPilot: a cat sat"):
        clusters.records()


def test_errors_of_ours_are_left_as_they_are(server: FakeSky) -> None:
    ours = NoEndpoint("what", "hint")
    with pytest.raises(NoEndpoint) as raised, skypilot.sky_sdk():
        raise ours
    assert raised.value is ours


@pytest.mark.parametrize(
    "history", [[], ["a string"], [RuntimeError("")], [RuntimeError("one"), ValueError("\n")]]
)
def test_a_history_of_failures(server: FakeSky, history: list[Any]) -> None:
    server.errors["status"] = server.sky.exceptions.ResourcesUnavailableError(
        "Sold out.", failover_history=history
    )
    with pytest.raises(
        NoMachine, match=r"^Nobody gives this machine now: (Sold out|a string|one)\. Other GPUs"
    ) as raised:
        clusters.records()
    assert not raised.value.later, "nobody was asked for a machine"


def unavailable(server: FakeSky, *places: tuple[str, str, str]) -> Exception:
    """What SkyPilot raises when each place (infra, machine, the cloud's reason) has been tried."""
    from sky.backends import cloud_vm_ray_backend

    errors, provisioner = {}, cloud_vm_ray_backend.RetryingVmProvisioner
    for infra, machine, reason in places:
        resources = server.sky.Resources(infra=infra, instance_type=machine, accelerators={"L4": 4})
        words = provisioner._insufficient_resources_msg(None, resources, {resources}, None, reason)
        errors[resources] = server.sky.exceptions.ResourcesUnavailableError(words)
    return server.sky.exceptions.ResourcesUnavailableError(
        "\x1b[31mFailed to provision all possible launchable resources.\x1b[0m Relax the task's requirements.\n"
        + f"{cloud_vm_ray_backend._RESOURCES_UNAVAILABLE_LOG}\n"
        + cloud_vm_ray_backend._format_provision_failure_blocks(errors),
        failover_history=list(errors.values()),
    )


def test_what_was_tried_where(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is when it has come through SkyPilot's server."""
    fake_catalog.install(monkeypatch)
    prepared()
    server.errors["status"] = unavailable(
        server,
        ("aws/us-east-1", "g6.12xlarge", ""),
        ("gcp/us-central1/us-central1-a", "g2-standard-48", f"Quota\x1b[0m of {KEY} is 0.\n  More of that."),
    )
    with pytest.raises(NoMachine) as raised:
        clusters.records()
    assert raised.value.tried == (
        "AWS (us-east-1), gpus=L4:4, g6.12xlarge: Failed to acquire resources in all zones in us-east-1",
        "GCP (us-central1-a), gpus=L4:4, g2-standard-48: Quota of *** is 0. More of that",
    )
    assert raised.value.later
    assert raised.value.what == (
        "Nobody gives this machine now: 2 places were tried, the last: GCP (us-central1-a), gpus=L4:4,"
        " g2-standard-48: Quota of *** is 0. More of that."
    )


# What it says ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, seen in ((io.StringIO(), "red"), (Terminal(), "\x1b[31mred\x1b[0m")):
        monkeypatch.setattr(sys, "stderr", stream)
        with contextlib.redirect_stdout(skypilot.voice):
            print("\x1b[31mred\x1b[0m", end="", flush=True)
        assert stream.getvalue() == seen


def test_it_says_nothing_when_it_is_only_asked(server: FakeSky, capsys: pytest.CaptureFixture[str]) -> None:
    with skypilot.sky_sdk(silent=True):
        print("chatter")
        with skypilot.sky_sdk():
            print("heard")
        print("chatter")
    print("data")
    assert capsys.readouterr() == ("data\n", "heard\n")


def test_stdout_is_given_back_by_a_launch_that_nobody_follows(server: FakeSky) -> None:
    server.cluster().jobs[0].script = SETUP
    before = sys.stdout
    following = launch.follow(CLUSTER, 1)
    assert next(following) == "waiting for the machine"
    following.close()
    assert sys.stdout is before


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
        assert clusters.is_launching(server.pending(each.value)) == (each in active), each
    assert not clusters.is_launching("")
    assert not clusters.is_launching("of-another-server")
    server.down_with = RuntimeError("no")
    assert not clusters.is_launching("any")


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


def test_find(server: FakeSky) -> None:
    assert clusters.find("pixtral") is None
    server.cluster(endpoints={8081: "10.0.0.7:8081"}, ports=["8081"])
    found = clusters.find("pixtral", KEY)
    assert found
    assert (found.url, found.key, found.request) == ("http://10.0.0.7:8081", KEY, "")
    assert found == store.recall()
    assert clusters.find("pixtral").key == KEY
    assert clusters.find("pixtral", "another").key == "another", "nobody here knows better"


def test_a_cluster_that_listens_for_a_tunnel_only(server: FakeSky) -> None:
    server.cluster(ports=["8081"], envs={"LISTEN": "127.0.0.1"})
    found = clusters.find("pixtral", KEY)
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
    found = clusters.find("pixtral", KEY)
    assert found
    assert (found.port, found.private) == (port, True)


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
