"""`pixtral-sky serve`, and what the other commands do with a service, on the real SDK of SkyPilot with a fake API
server behind it. (What SkyServe's own classes make of a service file: `test_service.py`.)"""

from __future__ import annotations

import json
import logging
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import serve, services, status, store, task
from pixtral_sky.deploy.store import Cluster, Rehearsal, Service
from pixtral_sky.errors import Busy, SkyError
from tests.cli.conftest import short
from tests.conftest import ROOT
from tests.support import fake_catalog, fake_sky, golden
from tests.support.command_line import KEY, TOKEN, Result, Run, last
from tests.support.deployments import cluster as remember_cluster
from tests.support.deployments import rehearsal as remember_rehearsal
from tests.support.deployments import service as remember_service
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import FakeSky

pytestmark = pytest.mark.usefixtures("launcher")
CONTROLLER = "sky-serve-controller-abcd1234"
READY = [{1: "PENDING", 2: "PENDING"}, {1: "PROVISIONING"}, {1: "STARTING", 2: "PROVISIONING"}, {1: "READY"}]
NEXT = "pixtral-sky serve status   |   pixtral-sky ask picture.jpg   |   pixtral-sky serve down"


@pytest.fixture
def balancer(server: FakeSky) -> Iterator[FakeEndpoint]:
    """What answers at the address of each service, with the key."""
    with FakeEndpoint(key=KEY) as fake:
        server.serve.balancer = f"127.0.0.1:{fake.port}"
        server.serve.course = READY
        yield fake


def service_file(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads(short("service.yaml"))
    change(config)
    path = folder / "own.yaml"
    path.write_text(json.dumps(config))
    return path


def recalled(name: str = "pixtral") -> Service:
    known = store.recall(name)
    assert isinstance(known, Service)
    return known


def slow_balancer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows of no replica when it is asked for the first and the second time."""
    real, answers = status.reach, iter(["No replica is ready."] * 2)

    def reach(endpoint: Endpoint) -> None:
        if why := next(answers, ""):
            raise Busy(why)
        real(endpoint)

    monkeypatch.setattr(status, "reach", reach)


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


# up --------------------------------------------------------------------------------------------------------


def test_up(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    result = run("serve", "up", "--yes", "--file", ROOT / "service.yaml")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert result.phases == [
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
    assert (known.max_model_len, known.max_images) == (-1, 4)
    assert known.request in [each.request_id for each in server.api_status()]
    assert balancer.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_two_services(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    """Each with a key of its own, behind one controller."""
    run("serve", "up", "--yes")
    assert run("serve", "up", "--yes", "-n", "second").code == 0
    assert list(server.machines) == [CONTROLLER]
    assert sorted(server.serve.services) == ["pixtral", "second"]
    assert run("serve", "status").out.count("answers") == 2
    assert run("status").code == 0


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
    assert "Warning: While spot replicas start, or are missing, an on-demand one runs in place" in result.err
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
def test_one_option(
    run: Run, server: FakeSky, balancer: FakeEndpoint, options: list[str], makes: Any
) -> None:
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
    run: Run,
    server: FakeSky,
    balancer: FakeEndpoint,
    tmp_path: Path,
    section: Any,
    options: list[str],
    makes: Any,
) -> None:
    def change(config: dict[str, Any]) -> None:
        del config["service"]["replica_policy"]
        config["service"].update(section)

    result = run("serve", "up", "--yes", "--file", service_file(tmp_path, change), *options)
    assert result.code == 0, result.err
    assert policy(server) == makes


# Before it costs money


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
        (["--env", "MAX_IMAGES=many"], "MAX_IMAGES=many is no number of pictures."),
        (["--env", "MAX_IMAGE=8"], "service.yaml has no env MAX_IMAGE. Did you mean MAX_IMAGES?"),
        (["--precision", "int8"], "--precision is bf16 or fp8, not 'int8'."),
        (["--max-price", "-1"], "--max-price -1 is no price."),
        (["--infra", "azure"], "SkyPilot's own image for Azure is not known to have the NVIDIA driver 580"),
        (["--gpus", "L4:1"], "L4"),
        (["--name", "a*"], "'a*' is no name for a deployment"),
        (["--file", "/nonexistent.yaml"], "/nonexistent.yaml cannot be read"),
        (["--file", ROOT / "pixtral.yaml"], f"{ROOT / 'pixtral.yaml'} is no service: it has no 'service:' section. The shipped one"),
        (["--file", ROOT / "pixtral.yaml", "--replicas", "2"], "pixtral.yaml is no service"),
        (["--file", ROOT / "pixtral.yaml", "--spot"], "pixtral.yaml is no service"),
        (["--file", ROOT / "pyproject.toml"], "is not YAML"),
        (["--file", ROOT / "examples/receipt.schema.json"], "is no SkyPilot task"),
    ],
)  # fmt: skip
def test_what_cannot_be_brought_up(run: Run, server: FakeSky, options: list[object], says: str) -> None:
    result = run("-q", "serve", "up", "--yes", *options)
    assert result.code == 2
    assert says in result.error
    assert not begun(server)
    assert store.known() == []


@pytest.fixture
def catalogs(monkeypatch: pytest.MonkeyPatch, server: FakeSky) -> None:
    """SkyPilot's, here and at its server."""
    fake_catalog.install(monkeypatch)
    server.clouds = ["AWS", "GCP", "Azure"]


def test_a_price(run: Run, server: FakeSky, balancer: FakeEndpoint, catalogs: None) -> None:
    result = run("serve", "up", "--yes", "--gpus", "L4:2", "--precision", "fp8", "--max-price", "2.02")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert "At most $2.02 an hour for a machine with its GPUs: 1 candidate. Its disk" in result.err
    assert "That is for each replica; the controller is not in it.\n" in result.err
    assert "Warning: Azure is left out: " in result.err
    (sent,) = server.tasks
    assert [(str(each.cloud), each.region) for each in sent.resources] == [("GCP", "us-central1")]
    assert sent.envs["PRECISION"] == "fp8"


def test_the_price_of_what_stands_in_for_spot_machines(run: Run, server: FakeSky, catalogs: None) -> None:
    result = run(
        "-q", "serve", "up", "--yes", "--spot", "--gpus", "L4:2", "--infra", "gcp", "--max-price", "1"
    )
    assert result.code == 2
    assert result.err.endswith(
        "Error: Nothing that holds it costs $1.00 an hour or less. The cheapest is g2-standard-24 (L4:2) in "
        "gcp/us-central1 at $2.00 (spot $0.70, but on-demand machines stand in for those). Raise --max-price\n"
    )
    assert not begun(server)


def test_skypilots_server_has_other_prices(
    run: Run, server: FakeSky, balancer: FakeEndpoint, catalogs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new service is taken down; one that serves already stays, and it is said."""
    server.clouds = ["GCP"]
    monkeypatch.setitem(fake_sky.PRICES, "L4:2", 2.5)
    result = run("serve", "up", "--yes", "--gpus", "L4:2", "--max-price", "2.02")
    assert result.code == 1
    assert last(result) == (
        "Error: Replica 1 of 'pixtral' (g2-standard-24, gcp/us-central1) costs $2.50 an hour, not $2.02. The service was "
        "taken down. Nothing of it is left that costs money."
    )
    assert server.serve.services == {}
    assert store.known() == []
    server.errors["list_accelerators"] = RuntimeError("no catalog")
    result = run("serve", "up", "--yes", "--gpus", "L4:2", "--max-price", "2.02")
    assert result.code == 0
    assert (
        "Warning: No price is known of replicas in gcp/us-central1: they may be more than $2.02" in result.err
    )
    del server.errors["list_accelerators"]
    monkeypatch.setitem(fake_sky.PRICES, "L4:2", 2.5)
    server.serve.update_course = [{3: "READY", 1: None, 2: None}]
    result = run("serve", "update", "--yes", "--gpus", "L4:2", "--max-price", "2.02", "--env", "MAX_IMAGES=2")
    assert result.code == 1
    assert last(result) == (
        "Error: Replica 3 of 'pixtral' (g2-standard-24, gcp/us-central1) costs $2.50 an hour, not $2.02. "
        "Take it down: pixtral-sky serve down pixtral"
    )
    assert list(server.serve.services) == ["pixtral"]


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
        "Error: The service 'pixtral' is there already (NO_REPLICA). To change it: pixtral-sky serve update --name"
        " pixtral"
    )
    assert store.known() == []
    server.serve.services["pixtral"].status = "FAILED_CLEANUP"
    assert last(run("serve", "up", "--yes")).endswith("Take it down first: pixtral-sky serve down pixtral")
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
        remember_cluster("pixtral")
    result = run("serve", "up", "--yes")
    assert result.code == 2
    assert last(result) == "Error: 'pixtral' is a cluster. Take another --name, or: pixtral-sky down pixtral"
    assert not begun(server)


def test_a_name_that_is_a_cluster_of_another_project(
    run: Run, server: FakeSky, balancer: FakeEndpoint
) -> None:
    """It is shown by no command of ours, and SkyPilot keeps the two apart."""
    server.cluster(secrets={})
    assert run("serve", "up", "--yes").code == 0


def test_a_name_that_is_being_brought_up(run: Run, server: FakeSky) -> None:
    """In another terminal: the controller is on its way, and knows of nothing."""
    remember_service(request=server.pending())
    result = run("serve", "up", "--yes")
    assert result.code == 2
    assert last(result).startswith("Error: The service 'pixtral' is being brought up already. Stop that: ")
    result = run("serve", "status", "pixtral")
    assert (result.code, result.error) == (
        1, "'pixtral' is being brought up. Stop that: pixtral-sky serve down pixtral",
    )  # fmt: skip
    (row,) = json.loads(run("status", "--json").out)
    assert (row["state"], row["problem"]) == ("launching", "it is being brought up")


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
    assert store.known() == []


def test_the_balancer_is_late(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the controller every 20 seconds."""
    slow_balancer(monkeypatch)
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert result.phases[-1] == "the balancer learns of it"


def test_a_replica_that_is_ready_twice(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balancer is given its time anew."""
    monkeypatch.setattr(serve, "BALANCER_SECONDS", 0.1)
    slow_balancer(monkeypatch)
    server.serve.course = [{1: "READY"}, {1: "NOT_READY"}, lambda _: time.sleep(0.15), {1: "READY"}]
    result = run("serve", "up", "--yes")
    assert result.code == 0
    assert "a replica is not ready any more" in result.phases


def test_the_balancer_never_answers(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is not open."""
    monkeypatch.setattr(serve, "BALANCER_SECONDS", 0.05)
    server.serve.balancer = "127.0.0.1:9"
    result = run("serve", "up", "--yes")
    assert result.code == 1
    assert last(result).startswith(
        "Error: A replica of 'pixtral' is ready, but not its balancer: Nothing answers at http://127.0.0.1:9. It may"
    )
    assert last(result).endswith("Why: pixtral-sky serve logs pixtral --balancer")


@pytest.mark.parametrize(
    ("authority", "why"),
    [
        (True, "has a certificate for another name."),
        (False, "has no certificate that is trusted."),
    ],
)
def test_a_certificate_that_is_not_for_its_address(
    run: Run,
    server: FakeSky,
    balancer: FakeEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: bool,
    why: str,
) -> None:
    """As with examples/tls.yaml: no waiting helps."""
    made = [shutil.which("bash"), ROOT / "examples/certificate.sh", "pixtral.internal", tmp_path / "tls"]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls/cert.pem", tmp_path / "tls/key.pem")
    if authority:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls/ca.pem"))
    with FakeEndpoint(key=KEY, tls=context) as fake:
        server.serve.balancer = f"127.0.0.1:{fake.port}"
        config = yaml.safe_load(short("service.yaml"))
        config["service"]["tls"] = {
            "keyfile": str(tmp_path / "tls/key.pem"),
            "certfile": str(tmp_path / "tls/cert.pem"),
        }
        (tmp_path / "service.yaml").write_text(yaml.safe_dump(config))
        result = run("serve", "up", "--yes")
    assert result.code == 1
    assert last(result).startswith(f"Error: 'pixtral' is up, but {fake.url} {why} It may cost money until:")


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
    assert (
        "pixtral has no replica while nobody asks; the first request calls one, and gets 503:\n" in result.err
    )
    for command in (["serve", "status"], ["status"]):
        result = run(*command)
        assert result.code == 1
        assert "it has no replica, and the next request calls one" in result.out
    assert balancer.requests == []


def test_ctrl_c_while_it_starts(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    server.serve.course = [{1: "STARTING"}, interrupted]
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (130, "")
    assert "pixtral goes on without this command, and may cost money." in last(result)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_it_fails_before_there_is_anything(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch, early: bool, known: bool
) -> None:
    """It is forgotten, unless it was known before."""
    before = remember_service(key="SENTINEL-of-before") if known else None
    if early:
        monkeypatch.setattr(server.sky.serve, "up", lambda *_: 1 / 0)
    else:
        server.errors["serve.up"] = RuntimeError(f"no controller for {KEY}")
    result = run("serve", "up", "--yes")
    assert result.code == 1
    assert "Nothing of it is left that costs money." in last(result)
    assert store.recall() == before


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
    assert store.known() == []


def test_it_fails_and_others_have_the_controller(run: Run, server: FakeSky) -> None:
    server.serve.service("second")
    server.errors["serve.up"] = RuntimeError("Max number of services reached")
    assert "Nothing of it is left that costs money." in last(run("serve", "up", "--yes"))


def test_the_connection_is_lost_and_it_goes_on(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.sky.stream_and_get

    def lost(request: str, **stream: Any) -> Any:
        if request in server.requests("serve.up"):
            raise ConnectionError("Connection broken")
        return real(request, **stream)

    monkeypatch.setattr(server.sky, "stream_and_get", lost)
    result = run("serve", "up", "--yes")
    assert "It may cost money until: pixtral-sky serve down pixtral." in last(result)
    assert store.known() == ["pixtral"]


def test_the_costs_are_not_known(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.errors["list_accelerators"] = RuntimeError("no catalog")
    result = run("serve", "up", "--yes")
    assert (result.code, result.out) == (0, f"{balancer.url}\n")
    assert "Its controller and 2 replicas cost what SkyPilot does not know now." in result.err


# status ----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(server: FakeSky, balancer: FakeEndpoint) -> fake_sky.Service:
    """One with two replicas, as it was brought up from here."""
    remember_service(url=balancer.url)
    secrets = {"PIXTRAL_API_KEY": KEY, "HF_TOKEN": TOKEN}
    return server.serve.service(replicas={1: "READY", 2: "READY"}, secrets=secrets)


def test_status(run: Run, server: FakeSky, service: fake_sky.Service, balancer: FakeEndpoint) -> None:
    server.serve.replica(service, 3, infra="aws/us-east-1", gpus="A100:1", spot=True, seconds=90000)
    server.serve.moves(service, {3: "PROVISIONING", 4: "PENDING"})
    service.replicas[3].progress = "Launching (waiting for queue admission)"
    service.target = 4
    service.logs["controller"] = counted(requests=25)
    result = run("serve", "status")
    assert (result.code, result.err) == (0, "")
    golden.check("serve-status", result.out, url=balancer.url)


def counted(requests: int, target: Any = 2) -> list[str]:
    """What SkyServe's own autoscaler says of so many requests in a minute."""
    from sky.serve import SkyServiceSpec, autoscalers

    section = json.loads(short("service.yaml"))["service"]
    section["replica_policy"]["target_qps_per_replica"] = target
    if isinstance(target, dict):
        section["load_balancing_policy"] = "instance_aware_least_load"
    if target is None:
        section["replica_policy"] = {"min_replicas": 2, "max_replicas": 2}
    made = autoscalers.Autoscaler.from_spec("pixtral", SkyServiceSpec.from_yaml_config(section))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(f"I autoscalers.py:516] {record.getMessage()}\n")  # type: ignore[method-assign]
    logger = logging.getLogger("sky.serve.autoscalers")
    logger.addHandler(handler)
    old, logger.propagate, level = logger.propagate, False, logger.level
    logger.setLevel(logging.INFO)  # a simulation of capacity.py in the same process has silenced it
    try:
        made.collect_request_information({"timestamps": [time.time()] * requests})
        made.generate_scaling_decisions([], [])
    finally:
        logger.removeHandler(handler)
        logger.propagate = old
        logger.setLevel(level)
    assert any(str(requests) in line for line in said)
    return said


@pytest.mark.parametrize("target", [2, 0.25, None, {"L4": 1.0}])
@pytest.mark.parametrize(("requests", "qps"), [(25, 25 / 60), (600, 10.0), (0, 0.0)])
def test_queries_per_second(
    server: FakeSky, service: fake_sky.Service, target: Any, requests: int, qps: float
) -> None:
    service.logs["controller"] = [
        "I replica_managers.py] Replicas to probe: 1\n",
        *counted(7),
        *counted(requests, target),
    ]
    assert services.qps("pixtral") == pytest.approx(qps)
    assert server.asked("serve.logs") == [("pixtral", "controller", None, False, 100)]


@pytest.mark.parametrize(
    "said", [[], ["no such line\n"], ["Requests per second: none.\n"], ConnectionError("broken"), None]
)
def test_queries_per_second_that_nobody_tells(
    run: Run, server: FakeSky, service: fake_sky.Service, said: Any
) -> None:
    if isinstance(said, Exception):
        server.errors["serve.logs"] = said
    elif said:
        service.logs["controller"] = said
    result = run("serve", "status")
    assert result.code == 0
    assert "queries/s" not in result.out
    assert documents(run("serve", "status", "--json"))[0]["qps"] is None


def test_status_as_json(run: Run, server: FakeSky, service: fake_sky.Service, balancer: FakeEndpoint) -> None:
    service.logs["controller"] = counted(30)
    server.serve.moves(service, {2: None})
    result = run("serve", "status", "pixtral", "--json")
    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    (one,) = document["services"]
    (replica,) = one["replicas"]
    assert 0 <= one.pop("uptime") < 60
    assert time.time() - replica.pop("launched") == pytest.approx(1800, abs=15)
    golden.check("serve-status-json", document, url=balancer.url)


def test_a_price_that_nobody_knows(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    """Of a machine that is in no catalog; and none is asked for where there is none, as on Kubernetes."""
    server.serve.replica(service, 3, infra="kubernetes/ctx", gpus="L4:2")
    service.replicas[3].resources._instance_type = "4CPU--32GB--L4:2"
    server.serve.replica(service, 4, gpus="H100:1")
    service.replicas[4].resources._instance_type = "n1-other"
    server.serve.moves(service, {3: "READY", 4: "READY"})
    server.machines[CONTROLLER].hourly = None
    (one,) = documents(run("serve", "status", "--json"))
    assert [each["hourly"] for each in one["replicas"]] == [1.4, 1.4, None, None]
    assert [each["machine"] for each in one["replicas"]][1:] == ["g2-standard-24", "", "n1-other"]
    assert one["hourly"] is None
    assert sorted(server.asked("list_accelerators")) == [
        ("^H100$", "^us-central1$", "gcp"), ("^L4$", "^us-central1$", "gcp"),
    ]  # fmt: skip
    server.errors["list_accelerators"] = RuntimeError("no catalog")
    server.errors["cost_report"] = RuntimeError("no costs")
    result = run("serve", "status")
    assert result.code == 0
    assert "an hour" not in result.out
    assert f"controller {CONTROLLER}: UP, aws/us-east-1, no price is known" in result.out
    assert "$/H" not in result.out


@pytest.mark.parametrize("status", ["STARTING", "NOT_READY"])
def test_a_replica_says_why_it_is_not_ready(
    run: Run, server: FakeSky, service: fake_sky.Service, status: str
) -> None:
    """SkyServe says STARTING for 40 minutes, and then only that they are over."""
    with FakeEndpoint(key="another") as replica:
        service.replicas[2].url = replica.url
        server.serve.moves(service, {2: status})
        result = run("serve", "status")
        assert replica.requests[-1].path == "/v1/models", "as SkyServe's probe"
        assert replica.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert result.code == 0
    assert f"{replica.url} does not take this key (401)" in result.out
    assert "Nothing answers at" in run("serve", "status").out


def test_a_replica_that_is_ready_is_not_asked(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    with FakeEndpoint() as replica:
        service.replicas[1].url = replica.url
        run("serve", "status")
    assert replica.requests == []


@pytest.mark.parametrize(
    "status",
    ["FAILED", "FAILED_INITIAL_DELAY", "FAILED_PROBING", "FAILED_PROVISION", "FAILED_CLEANUP", "UNKNOWN"],
)
def test_a_replica_that_has_failed(run: Run, server: FakeSky, service: fake_sky.Service, status: str) -> None:
    server.serve.moves(service, {1: status, 2: status})
    result = run("serve", "status")
    assert result.code == 1
    assert "  failed  " in result.out
    assert "does not answer: every replica has failed" in result.out
    assert "pixtral-sky serve logs pixtral --replica 2" in result.out
    assert "pixtral  service  failed, 0/2" in run("status").out


def test_nobody_is_asked_while_no_replica_is_ready(
    run: Run, server: FakeSky, service: fake_sky.Service, balancer: FakeEndpoint
) -> None:
    """To the autoscaler, each question is one that wants a replica."""
    server.serve.moves(service, {1: "STARTING", 2: "PROVISIONING"})
    for command in (["serve", "status"], ["status"]):
        result = run(*command)
        assert result.code == 1
        assert "no replica is ready" in result.out
        assert "starting" in result.out, "SkyServe says NO_REPLICA"
    assert balancer.requests == []


def test_the_endpoint_is_as_it_is_now(
    run: Run, server: FakeSky, service: fake_sky.Service, balancer: FakeEndpoint
) -> None:
    """The controller was stopped, and has another address."""
    remember_service(url="http://127.0.0.1:9")
    assert run("serve", "status").code == 0
    assert recalled().url == balancer.url
    service.balancer = None
    result = run("serve", "status")
    assert result.code == 0, "http://None is no address"
    assert balancer.url in result.out
    assert recalled().url == balancer.url
    assert run("serve", "update", "--yes").code == 0
    assert recalled().url == balancer.url
    assert run("-q", "endpoint").out == f"{balancer.url}\n"


def test_status_before_there_is_an_address(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    service.balancer = None
    remember_service(url="")
    result = run("serve", "status")
    assert result.code == 1
    assert "no endpoint yet  2 of 2 ready" in result.out
    assert "does not answer: it has no endpoint yet" in result.out


def test_a_certificate(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    config = yaml.safe_load(service.tasks[1])
    config["service"]["tls"] = {"keyfile": "/key", "certfile": "/cert"}
    service.tasks[1] = yaml.safe_dump(config)
    assert documents(run("serve", "status", "--json"))[0]["endpoint"].startswith("https://127.0.0.1:")


def test_status_of_one_of_two(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    server.serve.service("second", {1: "STARTING"})
    result = run("serve", "status")
    assert result.code == 1
    assert [line.split()[0] for line in result.out.splitlines() if not line.startswith(" ")] == [
        "pixtral", "second", "controller",
    ]  # fmt: skip
    assert run("serve", "status", "pixtral").code == 0
    assert server.asked("serve.status")[-1] == ["pixtral"]


@pytest.mark.parametrize("controller", [None, "STOPPED", "UP"])
def test_status_of_none(run: Run, server: FakeSky, controller: str | None) -> None:
    """Without a controller, SkyPilot's server looks for half a minute."""
    if controller:
        server.serve.controller(controller)
    result = run("serve", "status")
    assert (result.code, result.out) == (1, "")
    assert result.err == "No service runs. Bring one up: pixtral-sky serve up\n"
    assert json.loads(run("serve", "status", "--json").out) == {"services": [], "controller": None}
    result = run("serve", "status", "other")
    assert (result.code, result.error) == (
        2, "There is no service named 'other'. What there is: pixtral-sky serve status",
    )  # fmt: skip
    assert bool(server.asked("serve.status")) == bool(controller)


def test_a_controller_that_never_came_up(run: Run, server: FakeSky) -> None:
    server.serve.controller("INIT", resources=None)
    assert "No service runs." in run("serve", "status").err


def test_a_controller_that_cannot_be_reached(run: Run, server: FakeSky) -> None:
    """That is not the same as no service."""
    server.serve.controller("INIT")
    result = run("serve", "status")
    assert result.code == 1
    assert result.error.startswith("SkyPilot: Failed to connect to serve controller, please try again later")
    remember_service()
    result = run("serve", "down")
    assert result.code == 1
    assert store.known() == ["pixtral"]
    result = run("status", "--json")
    assert json.loads(result.out)[0]["state"] == "unknown"
    assert "SkyPilot runs is not known: SkyPilot: Failed to connect to serve controller" in result.err


def test_in_consolidation_mode(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server is the controller."""
    from sky.serve import serve_utils

    monkeypatch.setattr(serve_utils, "is_consolidation_mode", lambda: True)
    monkeypatch.setattr(server.serve, "_controller_or_raise", lambda: None)
    server.serve.service(replicas={1: "STARTING"})
    del server.machines[CONTROLLER]
    (one,) = documents(run("serve", "status", "--json"))
    assert one["state"] == "starting"


def test_status_of_one_that_is_gone(run: Run, server: FakeSky) -> None:
    """Whoever has its address now is not asked, with the key."""
    with FakeEndpoint() as stranger:
        remember_service(url=stranger.url)
        result = run("serve", "status", "pixtral")
        assert (result.code, result.error) == (
            1, "SkyServe has 'pixtral' no longer. Forget it: pixtral-sky serve down pixtral",
        )  # fmt: skip
        (row,) = json.loads(run("status", "--json").out)
        assert (row["state"], row["problem"]) == ("ended", "SkyServe has it no longer: taken down")
    assert stranger.requests == []


def test_status_of_somebody_who_never_used_skypilot(run: Run, server: FakeSky) -> None:
    """It is not asked: that would start its server."""
    (Path.home() / ".sky" / "api_server").rmdir()
    for code, *command in ((1, "status"), (2, "status", "pixtral"), (2, "down"), (2, "logs")):
        assert run("serve", *command).code == code
    assert server.calls == []


@pytest.mark.parametrize("command", [["status"], ["down"], ["logs"], ["update", "-n"], ["up", "-n"]])
def test_a_name_that_is_none(run: Run, server: FakeSky, command: list[str]) -> None:
    """SkyPilot takes a * for many."""
    server.serve.service()
    assert run("serve", *command, "pix*").code == 2
    assert server.calls == []


# Services that nobody here has brought up ------------------------------------------------------------------


def test_a_bare_one_is_taken_up(run: Run, server: FakeSky, balancer: FakeEndpoint, tmp_path: Path) -> None:
    path = service_file(tmp_path, lambda config: config["envs"].update(MAX_IMAGES=8, MAX_MODEL_LEN=-1))
    server.serve.service("bare", {1: "READY"}, file=path)
    assert run("serve", "status").code == 0
    known = recalled("bare")
    assert (known.url, known.key, known.request) == (balancer.url, KEY, "")
    assert (known.max_images, known.max_model_len) == (8, -1), "as its own file says"
    assert run("endpoint", "-n", "bare").out == f"{balancer.url}\n"
    assert run("ask", "-n", "bare", "Hello").out == "A small red square.\n"


def test_a_cluster_beside_a_bare_one(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.serve.service("pixtral", {1: "READY"})
    result = run("launch", "--yes")
    assert result.code == 2
    assert last(result) == "Error: 'pixtral' is a service. Take another --name, or: pixtral-sky down pixtral"
    assert not server.asked("launch")


def test_a_key_that_cannot_be_one(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are shown all the same."""
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL with space")
    server.serve.service(replicas={1: "READY", 2: "STARTING"})
    server.serve.services["pixtral"].replicas[2].url = "http://127.0.0.1:9"
    for command in (["serve", "status"], ["status"]):
        result = run(*command)
        assert result.code == 1
        assert "The key has characters that no key can have." in result.out


def test_a_service_of_another_project(run: Run, server: FakeSky) -> None:
    """It gets no key, and is not taken down."""
    with FakeEndpoint() as llama:
        server.serve.balancer = f"127.0.0.1:{llama.port}"
        foreign(server, "llama")
        assert "No service runs." in run("serve", "status").err
        assert run("status").code == 1
        for command in (
            ["serve", "status"],
            ["status"],
            ["endpoint", "-n"],
            ["serve", "update", "--yes", "-n"],
        ):
            assert run(*command, "llama").code == 2
        assert llama.requests == []
    assert store.known() == []
    for command in (["serve", "down"], ["down"]):
        result = run("-q", *command, "llama")
        assert (result.code, result.error) == (
            2, "'llama' is a service with something else on it. sky serve down llama",
        )  # fmt: skip
    assert run("down", "--all", "--yes").err == "There is nothing to take down.\n"
    assert list(server.serve.services) == ["llama"]


def test_a_service_with_the_name_of_something_else_here(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another thing, and does not take its place, and its key."""
    server.serve.service("here", {1: "READY"})
    server.serve.service("there", {1: "READY"})
    remember_rehearsal("here")
    remember_cluster("there", url="http://127.0.0.1:9")
    monkeypatch.setattr(Rehearsal, "is_running", lambda _: True)
    rows = json.loads(run("status", "--json").out)
    assert [(each["name"], each["kind"]) for each in rows] == [("here", "rehearsal"), ("there", "cluster")]
    assert "No service runs." in run("serve", "status").err
    assert run("serve", "down", "there").code == 0
    assert list(server.serve.services) == ["here"]
    assert [type(store.recall(name)) for name in ("here", "there")] == [Rehearsal, Cluster]


def test_a_service_with_the_name_of_a_cluster(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    server.serve.service("both", {1: "READY"})
    server.cluster("both", endpoints={8081: balancer.url}, ports=["8081"])
    (row,) = json.loads(run("status", "--json").out)
    assert (row["kind"], row["gpus"]) == ("cluster", "L4:2")


def test_a_damaged_file(run: Run, server: FakeSky, service: fake_sky.Service, home: Path) -> None:
    """It costs money all the same."""
    (home / "deployments" / "pixtral.json").write_text("{")
    (one,) = documents(run("serve", "status", "--json"))
    assert "Remove it: rm " in one["problem"]
    damaged, there = json.loads(run("status", "--json").out)
    assert (damaged["state"], there["state"], there["hourly"]) == (
        "damaged",
        "ready, 2/2",
        pytest.approx(2.8),
    )


@pytest.mark.parametrize("text", ["", "[]", "secrets:", "secrets: [PIXTRAL_API_KEY]", None])
def test_a_file_that_skypilot_does_not_tell(
    run: Run, server: FakeSky, service: fake_sky.Service, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a version is new, there is none."""
    real = server.serve._record
    monkeypatch.setattr(server.serve, "_record", lambda one: real(one) | {"yaml_content": text})
    assert run("serve", "status").code == 0


# update ----------------------------------------------------------------------------------------------------


def ready(*numbers: int) -> dict[int, str]:
    return dict.fromkeys(numbers, "READY")


ROLLING = [
    {},
    {3: "PROVISIONING", 4: "PROVISIONING"},
    {3: "STARTING"},
    {3: "READY", 1: "SHUTTING_DOWN"},
    {4: "READY"},
    {1: None, 2: "SHUTTING_DOWN"},
]


@pytest.mark.parametrize(
    ("options", "mode", "says"),
    [
        ([], "rolling", "All are replaced (2 now), one after the other."),
        (
            ["--blue-green"],
            "blue_green",
            "All are replaced (2 now), at once, when enough new ones are ready.",
        ),
    ],
)
def test_update(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch,
    options: list[str], mode: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("PIXTRAL_API_KEY")
    server.serve.update_course = ROLLING
    result = run("serve", "update", "--yes", "--env", "MAX_IMAGES=2", *options)
    assert (result.code, result.out) == (0, "")
    assert server.asked("serve.update") == [("pixtral", mode)]
    assert says in result.err
    assert "becomes" not in result.err
    assert "another key" not in result.err
    assert result.phases[2:] == [
        "the new version is known",
        "a machine for a replica",
        "a replica sets up, downloads and starts",
        "the older replicas are retired",
    ]
    assert re.fullmatch(r"pixtral serves version 2 only, after \d+ s\.", last(result))
    assert server.tasks[0].secrets["PIXTRAL_API_KEY"].get_secret_value() == KEY
    known = recalled()
    assert (known.key, known.max_images) == (KEY, 2)
    assert time.time() - known.created > 500, "since it was brought up"
    (one,) = documents(run("serve", "status", "--json"))
    assert (one["version"], one["versions"]) == (2, [2])
    assert {each["number"]: each["version"] for each in one["replicas"]} == {2: 1, 3: 2, 4: 2}


def test_an_update_of_its_size_alone(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    """SkyServe keeps the machines; and the candidates come in another order each time."""
    result = run("serve", "update", "--yes", "--replicas", "3..4")
    assert result.code == 0
    assert "The machines stay as they are: none is replaced." in result.err
    assert (
        "Autoscaling from 2 to 8 replicas (target QPS per replica: 2) becomes: Autoscaling from 3 to 4 replicas "
        "(target QPS per replica: 2)."
    ) in result.err
    assert {each.info.version for each in service.replicas.values()} == {2}, "by its own rule"
    assert last(result).startswith("pixtral serves version 2 only, after")


def test_an_update_with_another_key(
    run: Run,
    server: FakeSky,
    service: fake_sky.Service,
    balancer: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")
    seen: list[str] = []
    real = server.sky.serve.update
    monkeypatch.setattr(
        server.sky.serve, "update", lambda *given: (seen.append(recalled().key), real(*given))[1]
    )
    server.serve.update_course = [
        {3: "READY"},
        lambda _: setattr(balancer, "key", "SENTINEL-new"),
        {1: "SHUTTING_DOWN", 2: "SHUTTING_DOWN"},
    ]
    result = run("serve", "update", "--yes")
    assert result.code == 0
    assert (
        "Warning: It gets another key. Until all are replaced, each replica takes one of both keys"
        in result.err
    )
    assert "All are replaced" in result.err
    assert {each.info.version for each in service.replicas.values()} == {1, 2}, "by its own rule"
    assert [*seen, recalled().key] == ["SENTINEL-new"] * 2, "before anything is locked with it"
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    result = run("serve", "update", "--blue-green", typed="n\n")
    assert "Warning: It gets another key, the moment the new replicas take over.\n" in result.err
    assert recalled().key == "SENTINEL-new"


def test_an_update_is_asked_about(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    result = run("serve", "update")
    assert result.code == 2
    assert last(result) == "Error: This costs money, and nobody is here to be asked. Add --yes"
    result = run("serve", "update", "--env", "MAX_IMAGES=2", typed="n\n")
    assert result.code == 1
    assert result.err.index("All are replaced") < result.err.index("Update pixtral? [Y/n]")
    assert server.asked("serve.update") == []
    assert recalled().max_images == 4


def test_an_update_of_an_unknown_service(run: Run, server: FakeSky) -> None:
    result = run("serve", "update", "--yes", "-n", "other")
    assert result.code == 2
    assert last(result) == (
        "Error: There is no service 'other'. Bring it up: pixtral-sky serve up --name other"
    )
    assert store.known() == []


@pytest.mark.parametrize("status", ["CONTROLLER_FAILED", "SHUTTING_DOWN", "FAILED_CLEANUP"])
def test_an_update_of_one_that_has_ended(
    run: Run, server: FakeSky, service: fake_sky.Service, status: str
) -> None:
    service.status = status
    result = run("serve", "update", "--yes")
    assert result.code == 1
    assert last(result) == (
        f"Error: The service 'pixtral' is {status}, and takes no update. Take it down first: pixtral-sky serve down pixtral"
    )
    assert server.asked("serve.update") == []


def test_an_update_of_one_whose_key_is_not_known(
    run: Run, server: FakeSky, balancer: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients have it: no other one is made in silence."""
    monkeypatch.delenv("PIXTRAL_API_KEY")
    server.serve.service(replicas={1: "READY"})
    for _ in ("before it is remembered", "after"):
        result = run("serve", "update", "--yes")
        assert result.code == 2
        assert last(result) == (
            "Error: The key of 'pixtral' is not known here. Its own, or another: export PIXTRAL_API_KEY=..."
        )
        run("serve", "status")
    assert server.asked("serve.update") == []
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    server.serve.update_course = [{2: "READY"}, {1: None}]
    assert run("serve", "update", "--yes").code == 0
    monkeypatch.setenv("PIXTRAL_API_KEY", "another")
    assert run("serve", "status").code == 0
    assert recalled().key == KEY, "it was given here"


def test_an_update_that_fails(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran before goes on, with its key."""
    before = recalled()
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")
    server.serve.update_course = [{3: "STARTING"}, {3: "FAILED"}]
    result = run("serve", "update", "--yes")
    assert result.code == 1
    assert last(result) == (
        "Error: Every new replica of 'pixtral' has failed (FAILED). What ran before goes on, with its key. Why: "
        "pixtral-sky serve logs pixtral --replica 3"
    )
    assert recalled() == before
    assert run("status").code == 0


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_an_update_that_skypilot_refuses(
    run: Run,
    server: FakeSky,
    service: fake_sky.Service,
    monkeypatch: pytest.MonkeyPatch,
    early: bool,
    known: bool,
) -> None:
    before = store.recall()
    if not known:
        store.forget("pixtral")
        before = None
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")
    if early:
        monkeypatch.setattr(server.sky.serve, "update", lambda *_: 1 / 0)
    else:
        server.errors["serve.update"] = RuntimeError("Failed to update services")
    assert run("serve", "update", "--yes").code == 1
    assert store.recall() == before


def test_an_update_that_is_lost_sight_of(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on, and so the key is the new one."""
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")

    def broken(_: object) -> None:
        server.errors["serve.status"] = RuntimeError("Failed to refresh services status")

    server.serve.update_course = [{}, broken]
    result = run("serve", "update", "--yes")
    assert result.code == 1
    assert recalled().key == "SENTINEL-new"


def test_ctrl_c_in_an_update(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    server.serve.update_course = [{3: "STARTING"}, interrupted]
    result = run("serve", "update", "--yes")
    assert result.code == 130
    assert "Warning: pixtral goes on without this command" in last(result)
    assert recalled().key == "SENTINEL-new"


def test_an_update_to_zero(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    def asleep(service: fake_sky.Service) -> None:
        service.target = 0
        service.replicas.clear()

    server.serve.update_course = [{}, {}, {1: "SHUTTING_DOWN", 2: "SHUTTING_DOWN"}, asleep]
    assert run("serve", "update", "--yes", "--replicas", "0..4", "--env", "MAX_IMAGES=2").code == 0


# down ------------------------------------------------------------------------------------------------------


def test_down(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    """It is waited for, and the controller goes as well."""
    result = run("serve", "down")
    assert (result.code, result.out) == (0, "")
    assert result.phases == ["taking pixtral down"]
    assert last(result) == "pixtral is down: there is nothing of it left."
    assert server.serve.services == {}
    assert server.machines == {}
    assert store.known() == []
    assert len(server.asked("serve.status")) >= 5
    # Not what SkyPilot remembers of it, but what the cloud says.
    assert {"names": [CONTROLLER], "refresh": "FORCE"} in server.asked("status")


def test_down_of_one_of_two(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    server.serve.service("second", {1: "READY"})
    result = run("serve", "down")
    assert result.code == 0
    assert last(result) == f"Warning: SkyPilot's {CONTROLLER} stays UP, $0.38 an hour, for: second."
    assert list(server.serve.services) == ["second"]
    assert list(server.machines) == [CONTROLLER]
    assert run("serve", "down", "second").code == 0
    assert server.machines == {}


def test_down_beside_a_service_of_others(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    foreign(server, "llama")
    assert "for: llama." in last(run("serve", "down"))
    assert list(server.machines) == [CONTROLLER]


@pytest.mark.parametrize("status", ["FAILED_CLEANUP", "CONTROLLER_FAILED"])
@pytest.mark.parametrize("before", [True, False])
def test_down_that_leaves_machines(
    run: Run, server: FakeSky, service: fake_sky.Service, status: str, before: bool
) -> None:
    """SkyPilot does not even try where it has failed before, and says so in passing."""
    if before:
        service.status = status
    else:
        server.serve.leaves = status
    result = run("-q", "serve", "down")
    assert (result.code, result.error) == (
        1,
        f"'pixtral' is {status}: machines of it may still be there. Look at your cloud, then: sky serve down pixtral "
        "--purge",
    )
    assert store.known() == ["pixtral"]
    assert list(server.machines) == [CONTROLLER]


def test_down_that_takes_for_ever(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "DOWN_SECONDS", 0.05)
    server.serve.leaves = "SHUTTING_DOWN"
    result = run("-q", "serve", "down")
    assert result.error.startswith("'pixtral' is SHUTTING_DOWN: machines of it may still be there.")


def test_down_that_leaves_the_controller(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    server.stays = True
    result = run("-q", "serve", "down")
    assert (result.code, result.error) == (
        1, f"'pixtral' is down, but its controller is not. Try: sky down {CONTROLLER}",
    )  # fmt: skip
    server.serve.controller()
    result = run("serve", "down")
    assert "pixtral was gone already; it is forgotten." in result.err
    assert last(result) == (
        f"Warning: SkyPilot's {CONTROLLER} is still UP, $0.38 an hour. End it: sky down {CONTROLLER}"
    )


@pytest.mark.parametrize("controller", [True, False])
def test_down_of_one_that_is_gone(run: Run, server: FakeSky, controller: bool) -> None:
    says = ["pixtral was gone already; it is forgotten."]
    if controller:  # it stops itself, and its disk stays
        server.serve.controller("STOPPED")
        says += [f"Warning: SkyPilot's {CONTROLLER} is still STOPPED. End it: sky down {CONTROLLER}"]
    remember_service()
    result = run("serve", "down")
    assert (result.code, result.err.splitlines()[1:]) == (0, says)
    assert store.known() == []


@pytest.mark.parametrize("kind", [None, Rehearsal, Cluster])
def test_down_of_what_is_no_service(run: Run, server: FakeSky, kind: Any) -> None:
    if kind is Rehearsal:
        remember_rehearsal("pixtral")
    if kind is Cluster:
        remember_cluster("pixtral")
    result = run("serve", "down")
    assert (result.code, result.error) == (
        2, "There is no service named 'pixtral'. What there is: pixtral-sky serve status",
    )  # fmt: skip
    assert bool(store.known()) == bool(kind)


@pytest.mark.parametrize(
    ("status", "controller"),
    [("PENDING", "none"), ("RUNNING", "half"), ("RUNNING", "whole"), ("WAITING", "none")],
)
def test_down_of_one_on_its_way(run: Run, server: FakeSky, status: str, controller: str) -> None:
    """It would bring up its replicas afterwards; and its controller may be half there."""
    request = server.pending(status)
    remember_service(request=request)
    if controller == "half":
        server.serve.controller("INIT", resources=None)
    if controller == "whole":
        server.serve.controller()
    result = run("serve", "down")
    assert result.code == 0
    assert last(result) == "pixtral is down: there is nothing of it left."
    assert server.asked("api_cancel") == [[request]]
    assert server.machines == {}
    assert store.known() == []


def test_down_of_one_that_the_controller_learns_of_late(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job was queued when the request was cancelled."""
    remember_service(request=server.pending())
    server.serve.controller()
    server.serve.service("second", {1: "READY"})
    real = server.serve._controller_or_raise
    looks = iter(range(99))

    def look() -> None:
        real()
        if next(looks) == 3:
            server.serve.service("pixtral", {1: "PENDING"})

    monkeypatch.setattr(server.serve, "_controller_or_raise", look)
    assert run("serve", "down").code == 0
    assert server.asked("serve.down") == ["pixtral"]
    assert list(server.serve.services) == ["second"]


def test_down_takes_no_other_one_along(run: Run, server: FakeSky) -> None:
    """To SkyPilot, a_b is the name of axb as well, and of A_B."""
    for name in ("a_b", "axb", "ab"):
        server.serve.service(name, {1: "READY"})
    result = run("-q", "serve", "down", "a_b")
    assert (result.code, result.error) == (
        1,
        "SkyPilot would take axb down together with 'a_b': to it the names are alike. If that is right: sky serve "
        "down a_b",
    )
    assert len(server.serve.services) == 3
    assert run("serve", "down", "axb").code == 0
    assert sorted(server.serve.services) == ["a_b", "ab"]
    server.serve.service("AB")
    assert "would take AB down" in run("-q", "serve", "down", "ab").error
    assert run("serve", "down", "a_b").code == 0


def test_a_controller_that_cannot_be_looked_up(
    run: Run, server: FakeSky, service: fake_sky.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is down: that is what was asked."""

    def fails() -> Any:
        raise SkyError("no")

    monkeypatch.setattr(services, "controller", fails)
    assert run("serve", "down").code == 0


def test_a_controller_that_cannot_be_asked(run: Run, server: FakeSky) -> None:
    """It costs money as well."""
    server.cluster("machine")
    server.serve.controller("INIT")
    assert last(run("down", "machine")).startswith(
        f"Warning: SkyPilot's {CONTROLLER} is still INIT, $0.38 an hour. End it: "
    )


# logs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asks", "shows"),
    [
        ([], ("controller", None, False, None), ["SkyServe Controller started", "two"]),
        (["--lines", "1"], ("controller", None, False, 1), ["two"]),
        (["--balancer"], ("load_balancer", None, False, None), ["Available Replica URLs"]),
        (["-r", "2"], ("replica", 2, False, None), ["== installing vLLM"]),
        (["--replica", "2", "-f"], ("replica", 2, True, None), ["== installing vLLM"]),
        (["-r", "2", "-l", "5"], ("replica", 2, False, 5), ["== installing vLLM"]),
    ],
)
def test_logs(
    run: Run, server: FakeSky, service: fake_sky.Service, options: list[str], asks: Any, shows: list[str]
) -> None:
    service.logs = {
        "controller": [f"{fake_sky.CYAN}SkyServe Controller started{fake_sky.RESET}\n", "two\n"],
        "load_balancer": ["Available Replica URLs\n"],
        "replica-2": ["== installing vLLM\n"],
    }
    result = run("serve", "logs", *options)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == shows
    assert server.asked("serve.logs") == [("pixtral", *asks)]


def test_secrets_in_a_log_are_not_shown(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    """SkyServe's log quotes whole task files: when it compares versions, and when it cleans up."""
    old = {
        "envs": {"MODEL": "m"},
        "secrets": {"PIXTRAL_API_KEY": "SENTINEL-of-before", "HF_TOKEN": "hf_SENTINEL-old"},
    }
    service.logs["controller"] = [
        f"Replica config changed (rest), skipping. old: {old}, new: {{'secrets': {{'PIXTRAL_API_KEY': '{KEY}'}}}}\n",
        "Cleaning up storage for version 1, yaml_content: secrets:\n",
        "  PIXTRAL_API_KEY: SENTINEL-of-before\n",
        f'  HF_TOKEN: "{TOKEN}"\n',
        "      Authorization: Bearer SENTINEL-of-before\n",
        "      Authorization: Bearer $PIXTRAL_API_KEY\n",
        f"said in passing: {KEY} {TOKEN}\n",
    ]
    out = run("serve", "logs").out
    assert "'MODEL': 'm'" in out
    assert (
        "'PIXTRAL_API_KEY': '***', 'HF_TOKEN': '***'}}, new: {'secrets': {'PIXTRAL_API_KEY': '***'}}\n" in out
    )
    assert "Authorization: Bearer $PIXTRAL_API_KEY\n" in out
    assert "said in passing: *** ***\n" in out


def test_logs_of_an_unknown_service(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    """SkyPilot's own answer would be a log that is empty."""
    result = run("serve", "logs", "other")
    assert (result.code, result.error) == (
        2, "There is no service named 'other'. What there is: pixtral-sky serve status",
    )  # fmt: skip


@pytest.mark.parametrize("options", [["-f", "-l", "3"], ["-r", "1", "--balancer"]])
def test_logs_that_skypilot_cannot_show(
    run: Run, server: FakeSky, service: fake_sky.Service, options: list[str]
) -> None:
    """It would show nothing, or something else."""
    assert run("serve", "logs", *options).code == 2
    assert server.calls == []


# The other commands ----------------------------------------------------------------------------------------


def test_status_shows_services_too(
    run: Run, server: FakeSky, service: fake_sky.Service, balancer: FakeEndpoint
) -> None:
    server.cluster("machine", endpoints={8081: balancer.url})
    remember_cluster("machine")
    server.serve.replica(service, 3, infra="aws/us-east-1", gpus="A100:1", spot=True)
    server.serve.moves(service, {3: "READY"})
    result = run("status")
    assert (result.code, result.err) == (0, "")
    _, machine, row = result.out.splitlines()
    assert machine.startswith("machine  cluster  up ")
    cells = ["pixtral", "service", "ready, 3/3", "aws/us-east-1, gcp/us-central1", "A100:1 spot, L4:2", "10 min",
             "4.63", "-", balancer.url, "yes"]  # fmt: skip
    assert re.split(r" {2,}", row) == cells
    server.calls.clear()
    assert run("status", "pixtral").code == 0
    assert server.asked("serve.status") == [["pixtral"]]
    server.calls.clear()
    assert run("status", "machine").code == 0
    assert server.asked("serve.status") == []


def test_a_cluster_that_is_gone_while_skyserve_cannot_be_reached(run: Run, server: FakeSky) -> None:
    """Whoever has its address now is not asked, with the key."""
    server.serve.controller("INIT")
    with FakeEndpoint() as stranger:
        remember_cluster("machine", url=stranger.url)
        remember_service(url="http://127.0.0.1:9")
        result = run("status", "--json")
    one, two = json.loads(result.out)
    assert (one["state"], two["state"]) == ("ended", "unknown")
    assert stranger.requests == []
    assert "Failed to connect to serve controller" in result.err


def test_endpoint_and_ask(run: Run, server: FakeSky, balancer: FakeEndpoint) -> None:
    run("serve", "up", "--yes")
    run("serve", "up", "--yes", "-n", "second")
    server.calls.clear()
    for name in ("pixtral", "second"):
        assert run("endpoint", "-n", name) == Result(0, f"{balancer.url}\n", "")
        assert run("ask", "-n", name, "Hello") == Result(0, "A small red square.\n", "")
    assert KEY in run("endpoint", "--env", shows_key=True).out
    assert server.calls == []


def test_down_of_all(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    server.serve.service("bare", {1: "READY"})
    foreign(server, "llama")
    server.cluster("machine")
    server.cluster("sky-jobs-controller-abcd1234", secrets={}, hourly=0.19)
    result = run("down", "--all")
    assert last(result) == "Error: Nobody is here to be asked. --all --yes takes down: bare, machine, pixtral"
    result = run("down", "--all", "--yes")
    assert result.code == 0
    assert list(server.serve.services) == ["llama"]
    assert sorted(server.machines) == ["sky-jobs-controller-abcd1234", CONTROLLER]
    assert result.err.count(CONTROLLER) == 1
    assert "sky-jobs-controller-abcd1234 is still UP, $0.19 an hour. End it: sky down" in result.err
    assert last(result).endswith("for: llama.")


def test_a_secret_in_an_error_is_not_shown(run: Run, server: FakeSky, service: fake_sky.Service) -> None:
    server.errors["serve.down"] = RuntimeError(
        f"Command export PIXTRAL_API_KEY={KEY}; HF_TOKEN={TOKEN} failed."
    )
    result = run("-q", "serve", "down")
    assert result.code == 1
    assert "PIXTRAL_API_KEY=***; HF_TOKEN=*** failed." in result.error
