"""`pixtral-sky serve`, and what the other commands do with a service, on the real SDK of SkyPilot with a fake API
server behind it. (What SkyServe's own classes make of a service file: `test_service.py`.)"""

from __future__ import annotations

import functools
import inspect
import io
import json
import logging
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pixtral_sky import deployment, hub, output, sdk, serving, state, task
from pixtral_sky.errors import HubError, SkyError
from pixtral_sky.state import Cluster, Rehearsal, Service
from tests import command_line, fake_sky
from tests.command_line import KEY, Result, run_main
from tests.conftest import ROOT
from tests.fake_endpoint import FakeEndpoint
from tests.fake_sky import FakeSky

Run = Callable[..., Result]
TOKEN = "hf_SENTINEL"
CONTROLLER = "sky-serve-controller-abcd1234"
READY = [{1: "PENDING", 2: "PENDING"}, {1: "PROVISIONING"}, {1: "STARTING", 2: "PROVISIONING"}, {1: "READY"}]
NEXT = "pixtral-sky serve status   |   pixtral-sky ask picture.jpg   |   pixtral-sky serve down"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSky]:
    """With a user who has a key and a token, and whom the Hub gives the weights."""
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "check", lambda model, token: "")
    for name in ("service.yaml", "pixtral.yaml"):
        (tmp_path / name).write_text(short(name))
    monkeypatch.setattr(task, "shipped", lambda name: tmp_path / name)
    with fake_sky.started(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def balancer(server: FakeSky) -> Iterator[FakeEndpoint]:
    """What answers at the address of each service, with the key."""
    with FakeEndpoint(key=KEY) as fake:
        server.serve.balancer = f"127.0.0.1:{fake.port}"
        server.serve.course = READY
        yield fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``pixtral-sky``, at a terminal when something is ``typed``. No token is in what it says."""
    monkeypatch.setattr(output, "quiet", False)

    def run(*arguments: object, typed: str | None = None, shows_key: bool = False) -> Result:
        if typed is not None:
            there = SimpleNamespace(TextIOWrapper=Terminal, BytesIO=io.BytesIO)
            monkeypatch.setattr(command_line, "io", there)
        words = map(str, arguments)
        result = run_main(monkeypatch, capsys, *words, stdin=(typed or "").encode(), shows_key=shows_key)
        assert TOKEN not in result.out + result.err
        assert "\x1b" not in result.out + result.err, "nobody is there to see colours"
        return result

    return run


@functools.cache
def short(name: str = "service.yaml") -> str:
    """A file without its scripts, which SkyPilot takes a while to read and write, again and again."""
    return json.dumps(task.read(ROOT / name) | {"setup": "make it", "run": "serve"})


def service_file(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads(short())
    change(config)
    path = folder / "own.yaml"
    path.write_text(json.dumps(config))
    return path


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def remember(**fields: Any) -> Service:
    """Remembers a service that was brought up from here."""
    service = Service("pixtral", "", KEY, 32768, 4, time.time() - 600, "an-earlier-request")
    service = replace(service, **fields)
    state.remember(service)
    return service


def recalled(name: str = "pixtral") -> Service:
    known = state.recall(name)
    assert isinstance(known, Service)
    return known


def phases(result: Result) -> list[str]:
    """The lines that phases have left behind, without their seconds."""
    return re.findall(r"^  (\S.*?) +\d+\.\d s$", result.err, re.MULTILINE)


def last(result: Result) -> str:
    return result.err.splitlines()[-1]


def foreign(server: FakeSky, name: str) -> None:
    """A service of somebody else."""
    config = {"name": "llama", "resources": {"accelerators": "L4:1", "ports": 8000}, "run": "serve"}
    config["service"] = {"readiness_probe": "/health", "replicas": 1}
    server.serve.service(name, {1: "READY"}, config=config, secrets={"OTHER": "SENTINEL-of-others"})


def begun(server: FakeSky) -> bool:
    return "serve.up" in [name for name, _ in server.calls]


def policy(server: FakeSky) -> tuple[Any, ...]:
    """Of the last task that came in."""
    spec = server.tasks[-1].service
    return spec.min_replicas, spec.max_replicas, spec.target_qps_per_replica


def documents(result: Result) -> list[dict[str, Any]]:
    return list(json.loads(result.out)["services"])


# The fake --------------------------------------------------------------------------------------------------


def test_the_fake_takes_what_the_real_one_takes(server: FakeSky) -> None:
    for name, real in server.serve.real.items():
        ours = inspect.signature(getattr(server.serve, name)).parameters
        theirs = inspect.signature(inspect.unwrap(real)).parameters
        assert list(ours) == list(theirs), name


def test_the_fake_tells_what_the_real_one_tells(server: FakeSky) -> None:
    """No handle, and so no machine to ask for its price: SkyPilot's server keeps it back."""
    server.serve.service(replicas={1: "READY", 2: "PENDING"})
    (record,) = server.sky.get(server.sky.serve.status(None))
    assert record["status"] is server.sky.serve.ServiceStatus.READY
    one, two = record["replica_info"]
    assert (one["handle"], two["handle"]) == (None, None)
    assert one["status"] is server.sky.serve.ReplicaStatus.READY
    assert one["resources_str_full"].startswith("1x(gpus=L4:2, cpus=24, mem=96, g2-standard-24, ")
    assert (one["cloud"], one["region"], one["infra"]) == ("GCP", "us-central1", "GCP (us-central1)")
    assert "resources_str" not in two
    assert 0 <= time.time() - record["uptime"] < 60, "a moment, not a duration"
    assert yaml.safe_load(record["yaml_content"])["secrets"]["PIXTRAL_API_KEY"] == "unknown-here"


# up --------------------------------------------------------------------------------------------------------


def test_up(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    result = run("serve", "up", "--yes", "--file", ROOT / "service.yaml")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert phases(result) == [
        "licence of the weights",
        "SkyPilot's view",
        "controller and balancer",
        "the controller plans",
        "a machine for a replica",
        "a replica sets up, downloads and starts",
    ]
    assert result.err.count("Considered resources") == 1
    assert "2 to 8 such replicas, and a controller without a GPU. They cost money until: " in result.err
    assert "Launching controller for 'pixtral'" in result.err
    assert re.search(r"\npixtral answers, \d+ s after you asked for it:\n", result.err)
    assert "Its controller and 2 replicas cost $3.18 an hour now." in result.err
    assert NEXT in result.err

    (sent,) = server.tasks
    assert sent.run == task.load(ROOT / "service.yaml").run
    values = {name: value.get_secret_value() for name, value in sent.secrets.items()}
    assert values == {"PIXTRAL_API_KEY": KEY, "HF_TOKEN": TOKEN}
    assert sent.service.readiness_headers == {"Authorization": f"Bearer {KEY}"}
    assert sent.envs["IDLE_MINUTES"] == "0", "a replica that ends itself would only be replaced"
    assert policy(server) == (2, 8, 2)
    assert len(sent.resources) == 7
    known = recalled()
    assert (known.url, known.key) == (balancer.url, KEY)
    assert (known.max_model_len, known.max_images) == (32768, 4)
    assert known.request in [each.request_id for each in server.api_status()]
    assert balancer.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_another_name(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    result = run("serve", "up", "--yes", "--name", "second")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert "pixtral-sky serve status second   |   pixtral-sky ask -n second picture.jpg" in result.err
    assert "until: pixtral-sky serve down second\n" in result.err
    assert state.known() == ["second"]


def test_two_services(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    """Each with a key of its own, behind one controller."""
    run("serve", "up", "--yes")
    assert run("serve", "up", "--yes", "-n", "second").code == 0
    assert list(server.machines) == [CONTROLLER]
    assert sorted(server.serve.services) == ["pixtral", "second"]
    assert run("serve", "status").out.count("answers") == 2
    assert run("status").code == 0


def test_quiet(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    assert run("-q", "serve", "up", "--yes") == Result(0, f"{balancer.url}\n", "")


def test_a_key_is_made(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Of 32 bytes, and written down before anything is locked with it."""
    monkeypatch.delenv("PIXTRAL_API_KEY")
    balancer.key = ""
    seen: dict[str, Any] = {}

    def during(name: str) -> None:
        path = home / "deployments" / "pixtral.json"
        seen.update(mode=stat.S_IMODE(path.stat().st_mode), key=recalled().key)

    server.serve.during_up = during
    result = run("serve", "up", "--yes")
    assert result.code == 0
    assert seen["mode"] == 0o600
    assert re.fullmatch(r"[\w-]{43}", seen["key"])
    assert server.tasks[0].secrets["PIXTRAL_API_KEY"].get_secret_value() == seen["key"]
    assert seen["key"] not in result.out + result.err
    assert balancer.requests[-1].headers["authorization"] == f"Bearer {seen['key']}"


def test_options_reach_skypilot(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    result = run(
        "serve", "up", "--yes", "--replicas", "3..5", "--target-qps", "1.5", "--spot", "--infra", "gcp/us-central1",
        "--gpus", "L4:2", "--env", "MAX_IMAGES=8", "--env", "MAX_MODEL_LEN=-1",
    )  # fmt: skip
    assert result.code == 0
    assert policy(server) == (3, 5, 1.5)
    spec = server.tasks[0].service
    assert (spec.base_ondemand_fallback_replicas, spec.dynamic_ondemand_fallback) == (1, True)
    assert spec.upscale_delay_seconds == 120, "what is not given stays as in the file"
    (resources,) = server.tasks[0].resources
    assert (str(resources.cloud), resources.region) == ("GCP", "us-central1")
    assert resources.accelerators == {"L4": 2}
    assert resources.use_spot
    assert server.tasks[0].envs["MAX_IMAGES"] == "8"
    assert "3 to 5 such replicas" in result.err
    assert "Warning: While spot replicas start, or are missing, an ordinary one runs in place" in result.err
    assert (recalled().max_images, recalled().max_model_len) == (8, -1)


@pytest.mark.parametrize(
    ("options", "makes"),
    [
        (["--replicas", "3"], (3, 3, 2)),
        (["--target-qps", "0.5"], (2, 8, 0.5)),
        (["--spot"], (2, 8, 2)),
        ([], (2, 8, 2)),
    ],
)
def test_one_option(run: Run, server: FakeSky, balancer: FakeEndpoint, options: list[str], makes: Any) -> None:
    assert run("serve", "up", "--yes", *options).code == 0
    assert policy(server) == makes


def test_a_fixed_number(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    assert "\n3 such replicas, and" in run("serve", "up", "--yes", "--replicas", "3").err


@pytest.mark.parametrize(
    ("section", "options", "makes"),
    [
        # What the file lacks may be given.
        ({"replica_policy": {"min_replicas": 1, "max_replicas": 4}}, ["--target-qps", "3"], (1, 4, 3)),
        # SkyPilot's short form.
        ({"replicas": 3}, ["--spot"], (3, 3, None)),
        ({"replicas": 3}, ["--replicas", "1..2", "--target-qps", "1"], (1, 2, 1)),
        ({"replicas": 3}, [], (3, None, None)),
        ({}, ["--spot"], (1, 1, None)),
    ],
)
def test_options_and_a_file(
    run: Run, server: FakeSky, balancer: FakeEndpoint, tmp_path: Path, section: Any, options: list[str], makes: Any
) -> None:
    def change(config: dict[str, Any]) -> None:
        del config["service"]["replica_policy"]
        config["service"].update(section)

    result = run("serve", "up", "--yes", "--file", service_file(tmp_path, change), *options)
    assert result.code == 0, result.err
    assert policy(server) == makes


# Before it costs money


def test_dry_run(run: Run, server: FakeSky, home: Path) -> None:
    result = run("serve", "up", "--dry-run")
    assert (result.code, result.out) == (0, "")
    assert "Considered resources" in result.err
    assert last(result) == "Nothing was brought up. Without --dry-run, it is."
    assert not begun(server)
    assert state.known() == []


def test_nobody_to_be_asked(run: Run, server: FakeSky) -> None:
    result = run("serve", "up")
    assert (result.code, result.out) == (2, "")
    assert "Considered resources" in result.err, "what it would cost is said all the same"
    assert last(result) == "Error: This costs money, and nobody is here to be asked. Add --yes"
    assert not begun(server)
    assert state.known() == []


def test_somebody_says_yes(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    result = run("serve", "up", typed="\n")
    assert (result.code, result.out) == (0, f"{balancer.url}\n"), "the question is not in the pipe"
    assert 0 < result.err.index("Considered resources") < result.err.index("Bring up pixtral? [Y/n]")
    assert result.err.count("Considered resources") == 1


def test_somebody_says_no(run: Run, server: FakeSky) -> None:
    result = run("serve", "up", typed="n\n")
    assert (result.code, result.out) == (1, "")
    assert not begun(server)
    assert state.known() == []


def test_no_token_of_hugging_face(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(model: str, token: str) -> str:
        asked.append((model, token))
        raise HubError("It opens only to a token.", "Make one.")

    monkeypatch.setattr(hub, "check", check)
    result = run("-q", "serve", "up", "--yes", "--env", "MODEL=me/other")
    assert (result.code, result.error) == (1, "It opens only to a token. Make one.")
    assert asked == [("me/other", TOKEN)]
    assert server.calls == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--env", "IDLE_MINUTES=30"], "A replica that ends itself when it is idle is only replaced"),
        (["--replicas", "many"], "'many' is no number of replicas."),
        (["--replicas", "8..2"], "The fewest replicas, 8, are more than the most, 2."),
        (["--replicas", "0"], "A service with 0 replicas at most never answers."),
        (["--target-qps", "0"], "The queries per second of a replica are a number above 0, not 0"),
        (["--target-qps", "nan"], "The queries per second of a replica are a number above 0, not nan"),
        (["--env", "PIXTRAL_API_KEY=SENTINEL"], "PIXTRAL_API_KEY is a secret, and others can see arguments."),
        (["--env", "MAX_IMAGES"], "--env takes NAME=VALUE."),
        (["--env", "MAX_IMAGES=many"], "MAX_IMAGES=many is not a whole number."),
        (["--gpus", "L4:1"], "L4"),
        (["--name", "a*"], "'a*' is no name for a deployment"),
        (["--file", "/nonexistent.yaml"], "/nonexistent.yaml cannot be read"),
        (["--file", ROOT / "pixtral.yaml"], "This file is no service: it has no 'service:' section. The shipped one"),
        (["--file", ROOT / "pixtral.yaml", "--replicas", "2"], "This file is no service"),
        (["--file", ROOT / "pixtral.yaml", "--spot"], "This file is no service"),
        (["--file", ROOT / "pyproject.toml"], "is not YAML"),
        (["--file", ROOT / "examples/receipt.schema.json"], "is no SkyPilot task"),
    ],
)  # fmt: skip
def test_what_cannot_be_brought_up(run: Run, server: FakeSky, options: list[object], says: str) -> None:
    result = run("-q", "serve", "up", "--yes", *options)
    assert result.code == 2
    assert says in result.error
    assert not begun(server)
    assert state.known() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config["service"].update(replica_policy=[2, 8]), "'replica_policy:' is a mapping."),
        (lambda config: config.update(service="yes"), "no 'service:' section"),
        (lambda config: config.update(envs=["A"]), "'envs:' is a mapping"),
        (lambda config: config["resources"].update(autostop=5), "'autostop' takes the machines"),
    ],
)
def test_a_file_that_cannot_be_brought_up(
    run: Run, server: FakeSky, tmp_path: Path, change: Any, says: str
) -> None:
    path = service_file(tmp_path, change)
    for options in ([], ["--spot"], ["--replicas", "2"]):
        result = run("-q", "serve", "up", "--yes", "--file", path, *options)
        assert result.code == 2
        assert says in result.error
    assert server.calls == []


def test_what_the_server_would_refuse_after_the_question(run: Run, server: FakeSky, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["resources"]["ports"] = [8081, 9000]

    result = run("serve", "up", "--file", service_file(tmp_path, change), typed="\n")
    assert result.code == 1
    assert "To open multiple ports on the replica" in last(result)
    assert "[Y/n]" not in result.err
    assert not begun(server)


def test_a_name_that_is_a_service(run: Run, server: FakeSky) -> None:
    server.serve.service()
    result = run("serve", "up", "--yes")
    assert result.code == 2
    assert last(result) == (
        "Error: The service 'pixtral' is there already (NO_REPLICA). To change it: pixtral-sky serve update"
    )
    assert state.known() == []
    server.serve.services["pixtral"].status = "FAILED_CLEANUP"
    assert last(run("serve", "up", "--yes")).endswith("Take it down first: pixtral-sky serve down")
    assert not begun(server)


def test_a_name_that_is_a_service_of_another_project(run: Run, server: FakeSky) -> None:
    foreign(server, "llama")
    result = run("serve", "up", "--yes", "--name", "llama")
    assert result.code == 2
    assert last(result) == "Error: 'llama' is a service with something else on it. Take another --name"


@pytest.mark.parametrize("known", [True, False])
def test_a_name_that_is_a_cluster(run: Run, server: FakeSky, known: bool) -> None:
    server.cluster()
    if known:
        state.remember(Cluster("pixtral", "", KEY, 32768, 4, 1.0, 8081, False, ""))
    result = run("serve", "up", "--yes")
    assert result.code == 2
    assert last(result) == "Error: 'pixtral' is a cluster. Take another --name, or: pixtral-sky down pixtral"
    assert not begun(server)


def test_a_name_that_is_a_rehearsal(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.remember(Rehearsal("pixtral", "http://127.0.0.1:9", "old", 32768, 4, 1.0, 1, 1.0, "/log"))
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: True)
    assert "'pixtral' is a rehearsal. Take another --name" in last(run("serve", "up", "--yes"))
    assert not begun(server)
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: False)
    assert run("serve", "up", "--yes").code == 0
    assert recalled().key == KEY


def test_a_name_that_is_being_brought_up(run: Run, server: FakeSky) -> None:
    """In another terminal: the controller is on its way, and knows of nothing."""
    remember(request=server.pending())
    result = run("serve", "up", "--yes")
    assert result.code == 2
    assert last(result).startswith("Error: The service 'pixtral' is being brought up already. Stop that: ")
    result = run("serve", "status", "pixtral")
    assert (result.code, result.error) == (
        1, "'pixtral' is being brought up. Stop that: pixtral-sky serve down pixtral",
    )  # fmt: skip
    (row,) = json.loads(run("status", "--json").out)
    assert (row["state"], row["problem"]) == ("launching", "it is being brought up")


def test_the_key_of_before(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a service that is gone: clients have it."""
    monkeypatch.delenv("PIXTRAL_API_KEY")
    with FakeEndpoint() as stranger:
        remember(url=stranger.url)
        assert run("serve", "up", "--yes").out == f"{balancer.url}\n"
    assert stranger.requests == [], "who has its old address now"
    assert recalled().key == KEY


def test_skypilot_has_no_cloud(run: Run, server: FakeSky) -> None:
    server.clouds = []
    result = run("-q", "serve", "up", "--yes")
    assert result.error == "SkyPilot has no cloud, Kubernetes or Slurm to launch on. Run: sky check"
    assert state.known() == []


# While it comes up


def test_the_first_replica_that_is_ready_is_enough(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.serve.course = [{1: "FAILED", 2: "STARTING"}, {}, {2: "READY"}]
    assert run("serve", "up", "--yes").out == f"{balancer.url}\n"


def test_every_replica_fails(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.serve.course = [{1: "STARTING", 2: "STARTING"}, {2: "FAILED"}, {1: "FAILED_INITIAL_DELAY"}]
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (1, "")
    assert last(result) == (
        "Error: Every replica of 'pixtral' has failed (FAILED_INITIAL_DELAY). It may cost money until: pixtral-sky "
        "serve down pixtral. Why: pixtral-sky serve logs pixtral --replica 1"
    )
    assert balancer.requests == []
    assert recalled().key == KEY, "to be taken down"


@pytest.mark.parametrize("status", ["CONTROLLER_FAILED", "SHUTTING_DOWN", "FAILED_CLEANUP"])
def test_the_service_ends(run: Run, server: FakeSky, balancer: FakeEndpoint, status: str) -> None:
    server.serve.course = [{1: "STARTING"}, lambda service: setattr(service, "status", status)]
    result = run("serve", "up", "--yes")
    assert result.code == 1
    assert last(result) == (
        f"Error: The service 'pixtral' is {status}. It may cost money until: pixtral-sky serve down pixtral. Why: "
        "pixtral-sky serve logs pixtral"
    )


def test_somebody_takes_it_down_meanwhile(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.serve.course = [{1: "STARTING"}, lambda service: server.serve.services.clear()]
    assert "The service 'pixtral' is gone. Its controller may cost money until: sky down sky-serve-" in last(
        run("serve", "up", "--yes")
    )
    assert state.known() == []


def test_the_balancer_is_late(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the controller every 20 seconds."""
    real, answers = deployment.problem, iter(["No replica is ready."] * 2)
    monkeypatch.setattr(deployment, "problem", lambda service: next(answers, "") or real(service))
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert phases(result)[-1] == "the balancer learns of it"


def test_the_balancer_never_answers(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is not open, or its certificate is for another name."""
    monkeypatch.setattr(serving, "BALANCER_SECONDS", 0.05)
    server.serve.balancer = "127.0.0.1:9"
    result = run("serve", "up", "--yes")
    assert result.code == 1
    assert last(result).startswith(
        "Error: A replica of 'pixtral' is ready, but not its balancer: Nothing answers at http://127.0.0.1:9. It may"
    )
    assert last(result).endswith("Why: pixtral-sky serve logs pixtral --balancer")


def test_the_address_comes_late(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    late, server.serve.balancer = server.serve.balancer, None
    server.serve.course = [*READY, {}, lambda service: setattr(service, "balancer", late)]
    assert run("serve", "up", "--yes").out == f"{balancer.url}\n"
    assert recalled().url == balancer.url


def test_the_way_to_the_controller_breaks(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    """For a moment, in a wait of half an hour."""

    def broken(_: object) -> None:
        raise RuntimeError("Failed to refresh services status due to network error.")

    server.serve.course = [{1: "STARTING"}, broken, broken, {1: "STARTING"}, broken, {1: "READY"}]
    assert run("serve", "up", "--yes").code == 0
    server.serve.course = [{1: "STARTING"}, broken, broken, broken]
    result = run("serve", "up", "--yes", "-n", "second")
    assert result.code == 1
    assert "due to network error. It may cost money until: pixtral-sky serve down second." in last(result)


def test_to_zero(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    """There is no replica to wait for, and a question would call one."""
    server.serve.course = [lambda service: setattr(service, "target", 0)]
    result = run("serve", "up", "--yes", "--replicas", "0..4")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert "pixtral has no replica while nobody asks; the first request calls one, and gets 503:\n" in result.err
    for command in (["serve", "status"], ["status"]):
        result = run(*command)
        assert result.code == 1
        assert "it has no replica, and the next request calls one" in result.out
    assert balancer.requests == []


@pytest.mark.parametrize("during", [True, False])
def test_ctrl_c(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    if during:
        server.serve.during_up = interrupted
    else:
        server.serve.course = [{1: "STARTING"}, interrupted]
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (130, "")
    assert last(result) == (
        "Warning: pixtral goes on without this command, and may cost money. Look: pixtral-sky serve status pixtral   "
        "Stop it: pixtral-sky serve down pixtral"
    )
    assert recalled().request in [each.request_id for each in server.api_status()], "`down` ends it by that"


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_it_fails_before_there_is_anything(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch, early: bool, known: bool
) -> None:
    """It is forgotten, unless it was known before."""
    before = remember(key="SENTINEL-of-before") if known else None
    if early:
        monkeypatch.setattr(server.sky.serve, "up", lambda *_: 1 / 0)
    else:
        server.errors["serve.up"] = RuntimeError(f"no controller for {KEY}")
    result = run("serve", "up", "--yes")
    assert result.code == 1
    assert "Nothing of it is left that costs money." in last(result)
    assert state.recall() == before


def test_it_fails_and_leaves_its_controller(run: Run, server: FakeSky) -> None:
    def fails(name: str) -> None:
        server.serve.controller()
        raise RuntimeError("Failed to spin up the service.")

    server.serve.during_up = fails
    result = run("serve", "up", "--yes")
    assert last(result).startswith(
        "Error: SkyPilot: Failed to spin up the service. Its controller may cost money until: sky down "
        f"{CONTROLLER}. Its own view"
    )
    assert state.known() == []


def test_it_fails_and_others_have_the_controller(run: Run, server: FakeSky) -> None:
    server.serve.service("second")
    server.errors["serve.up"] = RuntimeError("Max number of services reached")
    assert "Nothing of it is left that costs money." in last(run("serve", "up", "--yes"))


def test_it_fails_and_skypilot_is_lost(run: Run, server: FakeSky) -> None:
    def lost(name: str) -> None:
        server.down_with = server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
        raise server.down_with

    server.serve.during_up = lost
    result = run("serve", "up", "--yes")
    assert last(result) == (
        "Error: SkyPilot's API server does not answer. What is left of it: pixtral-sky serve status pixtral. Look "
        "at it: sky api info; sky api start"
    )
    assert state.known() == ["pixtral"], "it may be there"


def test_the_connection_is_lost_and_it_goes_on(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.sky.stream_and_get

    def lost(request: str, **stream: Any) -> Any:
        if request == server.requests("serve.up")[-1]:
            raise ConnectionError("Connection broken")
        return real(request, **stream)

    monkeypatch.setattr(server.sky, "stream_and_get", lost)
    result = run("serve", "up", "--yes")
    assert "It may cost money until: pixtral-sky serve down pixtral." in last(result)
    assert state.known() == ["pixtral"]


def test_the_costs_are_not_known(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.errors["list_accelerators"] = RuntimeError("no catalog")
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert "Its controller and 2 replicas cost what SkyPilot does not know now." in result.err


def test_an_endpoint_of_the_environment_is_pointed_out(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://10.0.0.7:8081")
    assert "Warning: PIXTRAL_ENDPOINT is set here" in run("serve", "up", "--yes").err
