"""The door to SkyPilot: what it raises and says, on its real SDK with a fake API server behind it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.deploy import clusters, launch, skypilot
from pixtral_sky.deploy.skypilot import NoMachine
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import NoEndpoint, SkyError, UsageError
from tests.support import fake_catalog
from tests.support.command_line import KEY
from tests.support.fake_sky import SETUP, FakeSky

CLUSTER = Cluster("pixtral", "", KEY, 32768, 4, 1.0, 8081, False, "")


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
    # What an import of `sky` leaves there, and a look at prices, is no use.
    for name in ("serve", "locks", "catalogs"):
        (Path.home() / ".sky" / name).mkdir(parents=True)
    (Path.home() / ".sky" / "user_hash").write_text("0")
    assert not skypilot.was_used()
    (Path.home() / ".sky" / "state.db").write_text("")
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


@pytest.mark.parametrize(
    ("name", "helps"),
    [
        ("CloudUserIdentityError", "sky check"),
        ("InvalidCloudConfigs", "sky check"),
        ("ClusterOwnerIdentityMismatchError", "--name"),
        ("APIVersionMismatchError", "sky api stop; sky api start"),
        ("InvalidSkyPilotConfigError", "~/.sky/config.yaml"),
        ("NotSupportedError", "--infra"),
        ("UserRequestRejectedByPolicy", "sky api info"),
        ("NoWorkspaceAccessError", "sky api info"),
        ("ExecutionPoolFullError", "sky api status"),
        ("RequestCancelled", "sky api status"),
        ("NetworkError", "pixtral-sky status"),
        ("ClusterNotUpError", "pixtral-sky status"),
        ("ClusterSetUpError", "pixtral-sky logs"),
    ],
)
def test_what_helps(server: FakeSky, name: str, helps: str) -> None:
    """By the class of the error, as it is when it has come through SkyPilot's server."""
    server.errors["status"] = getattr(server.sky.exceptions, name)("Its words.\nAnd more.")
    with pytest.raises(SkyError) as raised:
        clusters.records()
    assert raised.value.what == "SkyPilot: Its words."
    assert helps in raised.value.hint


def test_every_kind_is_one_of_skypilots(server: FakeSky) -> None:
    for names, _ in skypilot.HINTS:
        for name in names:
            assert issubclass(getattr(server.sky.exceptions, name), Exception)


def test_no_server_may_be_started(server: FakeSky) -> None:
    """SkyPilot's own text is long, and names no place to go."""
    server.errors["status"] = RuntimeError(
        "No SkyPilot API server endpoint is configured, and starting a local API server on this machine is "
        "disabled (SKYPILOT_DISABLE_LOCAL_API_SERVER=1)."
    )
    with pytest.raises(SkyError, match=r"^SkyPilot may start no API server here \(SKYPILOT_DISABLE_LOCAL"):
        clusters.records()


def test_an_error_of_a_command(server: FakeSky) -> None:
    """Its text begins with the command, which has the key on Slurm."""
    skypilot.hide(KEY)
    server.errors["status"] = server.sky.exceptions.CommandError(
        255, f"srun bash -c 'export PIXTRAL_API_KEY={KEY}; cat'", "Failed to run it.", "no route to host"
    )
    with pytest.raises(SkyError) as raised:
        clusters.records()
    assert KEY not in str(raised.value)
    assert "PIXTRAL_API_KEY=***" in str(raised.value)
    assert "failed with return code 255" in str(raised.value)


def test_a_short_key_is_not_looked_for(server: FakeSky) -> None:
    skypilot.hide("a")
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
    skypilot.hide(KEY)
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
        with contextlib.redirect_stdout(skypilot.sky_output):
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
