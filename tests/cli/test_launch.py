"""`pixtral-sky launch`, on the real SDK of SkyPilot with a fake API server behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pixtral_sky.deploy import huggingface, launch, store, task
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT
from tests.support import fake_catalog, fake_sky
from tests.support.command_line import KEY, TOKEN, Run
from tests.support.deployments import cluster as remember_cluster
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import SETUP, STARTING, WAITING, FakeSky
from tests.support.fake_sky import run as line
from tests.support.fake_sky import setup as setup_line

pytestmark = pytest.mark.usefixtures("launcher")


@pytest.fixture
def machine(server: FakeSky) -> Iterator[FakeEndpoint]:
    """What answers on the machines that are launched, with the key."""
    with FakeEndpoint(key=KEY) as fake:
        server.endpoints = {8081: f"127.0.0.1:{fake.port}"}  # as SkyPilot has it: without http://
        yield fake


def secrets(server: FakeSky) -> dict[str, str]:
    """Those of the last task that came in."""
    return {name: value.get_secret_value() for name, value in server.tasks[-1].secrets.items()}


# A launch --------------------------------------------------------------------------------------------------


def test_launch(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    result = run("launch", "--yes", "--file", ROOT / "pixtral.yaml")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert result.phases == [
        "licence of the weights",
        "SkyPilot's view",
        "machine",
        "waiting for the machine",
        "installing vLLM",
        "downloading mistralai/Pixtral-12B-2409",
        "starting the server",
    ]
    assert "Considered resources" in result.err
    assert "Running on cluster: pixtral" in result.err
    assert "It opens port 8081, in plain HTTP, behind a key." in result.err
    assert (
        "It costs $1.40 an hour, and about $0.03 for its disk of 200 GB (list price, November 2026), and ends after "
        "30 minutes without a request." in result.err
    )
    assert (
        "pixtral-sky ask picture.jpg   |   pixtral-sky endpoint --env   |   pixtral-sky down\n" in result.err
    )
    assert "\x1b" not in result.err, "nobody is there to see colours"

    (sent,) = server.tasks
    assert sent.run == task.load(ROOT / "pixtral.yaml").run
    assert secrets(server) == {"PIXTRAL_API_KEY": KEY, "HF_TOKEN": TOKEN}
    assert sent.envs["MODEL"] == "mistralai/Pixtral-12B-2409"
    assert len(sent.resources) == 7
    assert {tuple(each.ports) for each in sent.resources} == {("8081",)}
    known = store.recall()
    assert isinstance(known, Cluster)
    assert (known.url, known.key, known.private, known.port) == (machine.url, KEY, False, 8081)
    assert (known.max_model_len, known.max_images) == (-1, 4)
    assert known.request in [each.request_id for each in server.api_status()]
    assert machine.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_no_key_is_in_what_skypilot_keeps(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    run("launch", "--yes")
    made_by = server.machines["pixtral"].yaml
    assert made_by
    assert "PIXTRAL_API_KEY: <redacted>" in made_by
    assert "SENTINEL" not in made_by


def test_it_is_ready_only_when_it_answers_with_the_key(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server on that port, with another key, is not it."""
    with FakeEndpoint(key="another") as wrong, FakeEndpoint(key=KEY) as right:
        server.endpoints = {8081: f"127.0.0.1:{wrong.port}"}
        real = launch.problem

        def problem(cluster: Cluster) -> str:
            found = real(cluster)
            if len(wrong.requests) == 3:
                wrong.key = KEY
            return found

        monkeypatch.setattr(launch, "problem", problem)
        assert run("launch", "--yes").out == f"{wrong.url}\n"
        assert len(wrong.requests) == 4
        assert not right.requests


def test_the_address_comes_late(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    late = server.endpoints
    server.endpoints = {}

    def shows(job: object) -> None:
        server.machines["pixtral"].endpoints = late

    server.script = [*SETUP, STARTING, shows]
    assert run("launch", "--yes").out == f"{machine.url}\n"


def test_a_task_without_steps_is_ready_all_the_same(
    run: Run, server: FakeSky, machine: FakeEndpoint, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("resources: {accelerators: {'L4:2'}}\nsecrets: {PIXTRAL_API_KEY: ''}\nrun: serve\n")
    server.script = [WAITING, line("INFO: Uvicorn running")]
    result = run("launch", "--yes", "--file", path)
    assert result.out == f"{machine.url}\n"
    assert "runs until you take it down" in result.err


def test_a_log_that_breaks(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """It is read again from its beginning; what was said is not said again."""
    server.endpoints = {}

    def there(_: object) -> None:
        time.sleep(0.2)  # it loads the model
        server.machines["pixtral"].endpoints = {8081: f"127.0.0.1:{machine.port}"}

    server.script = [
        *SETUP[:2],
        ConnectionError("Connection broken: SENTINEL"),
        SETUP[2],
        server.sky.exceptions.RequestInterruptedError("Streaming interrupted. Please retry."),
        STARTING,
        there,
    ]
    result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert [each[1] for each in server.calls if each[0] == "logs"] == [("pixtral", 1, True, 0)] * 3
    assert result.phases[3:] == [
        "waiting for the machine",
        "installing vLLM",
        "downloading mistralai/Pixtral-12B-2409",
        "starting the server",
    ]


def test_a_log_that_never_comes(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """The server answers: what it says does not matter."""
    server.script = [ConnectionError("no"), lambda job: None] * 3 + [ConnectionError("no")] * 50
    assert run("launch", "--yes").out == f"{machine.url}\n"


def test_costs_that_skypilot_does_not_know(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    server.errors["cost_report"] = RuntimeError("database is locked")
    result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "It costs nothing that SkyPilot knows of" in result.err


def test_skypilot_is_lost_at_the_end(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and that is what was asked for."""

    def answers(cluster: Cluster) -> str:
        server.errors["status"] = RuntimeError("lost")
        return ""

    monkeypatch.setattr(launch, "problem", answers)
    result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")


# Before it costs money -------------------------------------------------------------------------------------


def launched(server: FakeSky) -> bool:
    return "launch" in [name for name, _ in server.calls]


def test_the_licence_of_the_model_that_is_served(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        huggingface, "check", lambda *given: asked.append(given) or "The Hub cannot be reached."
    )
    result = run("launch", "--dry-run", "--env", "MODEL=me/other", "--env", "MODEL_REVISION=v2")
    assert asked == [("me/other", TOKEN, "v2")]
    assert "Warning: The Hub cannot be reached." in result.err
    assert result.code == 0


@pytest.mark.parametrize(
    "key", ["SENTINEL with space", "SENTINEL\u00e9", "SENTINEL'", "SENTINEL\n", "$(SENTINEL)"]
)
def test_a_key_that_cannot_be_one(
    run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", key)
    result = run("launch", "--yes")
    assert result.code == 2
    assert result.error.startswith("PIXTRAL_API_KEY has characters that a key cannot have.")
    assert server.calls == []


@pytest.mark.parametrize("name", ["PIXTRAL_API_KEY", "HF_TOKEN"])
def test_a_secret_is_no_argument(run: Run, server: FakeSky, name: str) -> None:
    result = run("launch", "--yes", "--env", f"{name}=SENTINEL-x")
    assert result.code == 2
    assert result.error == f"{name} is a secret, and others can see arguments. Run: export {name}=..."
    assert server.calls == []


@pytest.mark.parametrize("word", ["PORT", "=1", "1A=2", "A-B=2", "", "SENTINEL-4711"])
def test_an_env_that_is_none(run: Run, server: FakeSky, word: str) -> None:
    result = run("launch", "--env", word)
    assert result.code == 2
    assert result.error == "--env takes NAME=VALUE. For example: --env MAX_IMAGES=8"


@pytest.mark.parametrize(
    "words",
    [
        ["--env", "MAX_IMAGES=many"], ["--env", "MAX_MODEL_LEN=1e4"], ["--env", "PORT=http"],
        ["--env", "PORT=8081-8090"], ["--env", "IDLE_MINUTES=soon"], ["--idle", "nan"],
        ["--idle", "inf"], ["--idle", "-1"], ["--env", "LISTEN=127.0.0.1"], ["--name", "a*"], ["--name", "../a"],
        ["--name", ""], ["--file", "/nonexistent.yaml"],
    ],
)  # fmt: skip
def test_what_cannot_be_launched(run: Run, server: FakeSky, words: list[str]) -> None:
    """Exit code 2, before anything is launched, or a question asked."""
    result = run("launch", "--yes", *words)
    assert (result.code, result.out) == (2, "")
    assert "rror" in result.err
    assert "Traceback" not in result.err
    assert not launched(server)
    assert store.known() == []


@pytest.mark.parametrize(
    ("idle", "env", "says"),
    [
        ("60", "60", "ends after 60 minutes without a request"),
        ("0.5", "0.5", "ends after 0.5 minutes without a request"),
        ("0", "0", "runs until you take it down"),
        ("1000000", "1000000", "ends after 1000000 minutes without a request"),
        ("0.00001", "0.00001", "ends after 0.00001 minutes without a request"),
    ],
)
def test_idle(run: Run, server: FakeSky, machine: FakeEndpoint, idle: str, env: str, says: str) -> None:
    """In the form that the script takes: no exponent."""
    result = run("launch", "--yes", "--idle", idle)
    assert server.tasks[0].envs["IDLE_MINUTES"] == env
    assert says in result.err


def test_options_are_passed_on(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    server.endpoints = {9000: f"127.0.0.1:{machine.port}"}
    result = run(
        "launch", "--yes", "--infra", "aws/us-west-2", "--gpus", "L4:4", "--spot",
        "--env", "PORT=9000", "--env", "MAX_IMAGES=8", "--env", "MAX_MODEL_LEN=-1", "--env", "EXTRA_ARGS=--a b=c",
    )  # fmt: skip
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    (sent,) = server.tasks
    (resources,) = sent.resources
    assert (str(resources.cloud), resources.region) == ("AWS", "us-west-2")
    assert sent.envs["IMAGE_URLS"] == "public"
    assert resources.accelerators == {"L4": 4}
    assert resources.use_spot
    assert resources.ports == ["9000"]
    assert sent.envs["EXTRA_ARGS"] == "--a b=c"
    assert "It opens port 9000" in result.err
    known = store.recall()
    assert isinstance(known, Cluster)
    assert (known.port, known.max_images, known.max_model_len) == (9000, 8, -1)


def test_precision(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """One L4 holds it in FP8 only."""
    result = run("-q", "launch", "--yes", "--gpus", "L4:1")
    assert result.code == 2
    assert result.error.startswith(
        "L4:1 has 20.2 GiB for vLLM, and the bf16 weights alone are 23.6 GiB. With --precision fp8"
    )
    assert run("launch", "--yes", "--gpus", "L4:1", "--precision", "FP8").code == 0
    (sent,) = server.tasks
    assert sent.envs["PRECISION"] == "fp8"
    assert sent.envs["MAX_MODEL_LEN"] == ""
    assert store.recall().max_model_len == -1, "the server tells"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--precision", "int4"], "--precision is bf16 or fp8, not 'int4'."),
        (
            ["--precision", "fp8", "--env", "PRECISION=bf16"],
            "--precision fp8 and --env PRECISION=bf16 are not the same.",
        ),
        (["--env", "PRECISION=int4"], "PRECISION=int4 is neither bf16 nor fp8."),
        (["--env", "MAX_IMAGE=8"], "pixtral.yaml has no env MAX_IMAGE. Did you mean MAX_IMAGES?"),
        (["--env", "idle_minutes=8"], "pixtral.yaml has no env idle_minutes. Did you mean IDLE_MINUTES?"),
        (["--env", "FRUIT=8"], "pixtral.yaml has no env FRUIT. It has: MODEL, MODEL_REVISION, PRECISION, "),
        (["--env", "START_MINUTES=1h"], "START_MINUTES=1h is no whole number of minutes from 1 on."),
        (["--env", "MAX_IMAGES="], "MAX_IMAGES= is no number of pictures."),
        (["--env", "MAX_MODEL_LEN=-2"], "MAX_MODEL_LEN=-2 is no number of tokens (nor -1: all that fit)."),
        (
            ["--env", "ALLOWED_MEDIA_HOSTS=a.example b.example"],
            "ALLOWED_MEDIA_HOSTS is called IMAGE_URLS now. Set IMAGE_URLS=a.example,b.example",
        ),
        (["--env", "ALLOWED_MEDIA_HOSTS="], "pixtral.yaml has no env ALLOWED_MEDIA_HOSTS."),
        (
            ["--env", "IMAGE_URLS=https://a.example/x"],
            "IMAGE_URLS=https://a.example/x is neither public, none, nor names of hosts: a.example,b.example",
        ),
        (["--env", "IMAGE_URLS="], "IMAGE_URLS= is neither public, none,"),
        (
            ["--env", "ALLOWED_ORIGINS=https://a.example/"],
            "ALLOWED_ORIGINS=https://a.example/ are no origins of web pages. They look like https://app.example,",
        ),
        (["--env", "ALLOWED_ORIGINS=*"], "ALLOWED_ORIGINS=* are no origins of web pages."),
        (["--gpus", "H100:3"], "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
        (["--max-price", "0"], "--max-price 0 is no price. For example: --max-price 2.50"),
        (["--max-price", "nan"], "--max-price nan is no price."),
    ],
)
def test_what_the_machine_would_refuse(run: Run, server: FakeSky, words: list[str], says: str) -> None:
    """Before anybody is asked: SkyPilot, or the Hub."""
    result = run("-q", "launch", "--yes", *words)
    assert result.code == 2
    assert result.error.startswith(says)
    assert server.calls == []


def test_a_file_without_the_env_of_an_option(run: Run, server: FakeSky, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "resources: {accelerators: 'L4:2'}\nenvs: {A: 1}\nsetup: echo ${HF_ENDPOINT:-none}\nrun: serve\n"
    )
    for option in (["--precision", "fp8"], ["--idle", "5"], ["--env", "IDLE_MINUTE=5"]):
        assert run("-q", "launch", "--yes", "--file", path, *option).error.startswith("own.yaml has no env ")


def test_envs_that_programs_read(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("envs: {PORT: 1}\nsetup: 'fail \"set a MIRROR\"; port=1'\nrun: serve\n")
    read = (
        "MIRROR",
        "UV_DEFAULT_INDEX",
        "HF_HUB_DISABLE_XET",
        "NCCL_DEBUG",
        "https_proxy",
        "NO_PROXY",
        "TMPDIR",
    )
    task.load(path).check(dict.fromkeys(read, "1"))
    for name in ("port", "fail", "MIRRORS", "VLLM", "FRUIT"):
        with pytest.raises(UsageError, match=f"own.yaml has no env {name}."):
            task.load(path).check({name: "1"})


# A price ---------------------------------------------------------------------------------------------------


@pytest.fixture
def catalogs(monkeypatch: pytest.MonkeyPatch, server: FakeSky) -> None:
    """SkyPilot's, here and at its server."""
    fake_catalog.install(monkeypatch)


def test_a_price(run: Run, server: FakeSky, machine: FakeEndpoint, catalogs: None) -> None:
    server.clouds = ["AWS", "GCP", "Azure", "kubernetes/ctx"]
    result = run("launch", "--yes", "--gpus", "L4:4", "--max-price", "4.80")
    assert result.code == 0
    assert (
        "At most $4.80 an hour for a machine with its GPUs: 1 candidate. Its disk, by list price $0.03 an hour, and "
        "traffic are not in it.\nWithout a price, and candidates all the same: kubernetes.\n" in result.err
    )
    assert result.err.count("Warning: ") == 1
    assert "Warning: Azure is left out: " in result.err
    (sent,) = server.tasks
    assert {(str(each.cloud), each.region) for each in sent.resources} == {
        ("AWS", "us-east-1"),
        ("Kubernetes", None),
    }


def test_nothing_under_the_price(run: Run, server: FakeSky, catalogs: None) -> None:
    result = run("-q", "launch", "--yes", "--gpus", "L4:4", "--infra", "aws", "--max-price", "2")
    assert result.code == 2
    assert result.error == (
        "Nothing that holds it costs $2.00 an hour or less. The cheapest is g6.12xlarge (L4:4) in aws/us-east-1 at "
        "$4.60 (spot $1.70). Raise --max-price, or take --spot"
    )
    assert not launched(server)
    assert store.known() == []


def test_skypilots_server_has_other_prices(run: Run, server: FakeSky, catalogs: None) -> None:
    """What it has made is taken down before anything is downloaded."""
    server.lands = {"instance_type": "g6.12xlarge", "region": "eu-west-1"}
    result = run("launch", "--yes", "--gpus", "L4:4", "--infra", "aws", "--max-price", "4.80")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "Error: SkyPilot has made g6.12xlarge in aws/eu-west-1, at $5.20 an hour and not $4.80: it was taken "
        "down at once. Nothing is left that costs money. What SkyPilot knows of prices: pixtral-sky plan --clouds aws"
    )
    assert server.machines == {}
    assert store.known() == []
    assert "logs" not in [name for name, _ in server.calls]


def test_a_machine_whose_price_only_the_server_knows(
    run: Run, server: FakeSky, catalogs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_sky.PRICES, "L4:4", 5.3)
    result = run("launch", "--yes", "--gpus", "L4:4", "--infra", "aws", "--max-price", "4.80")
    assert "SkyPilot has made a machine in aws/us-east-1, at $5.30 an hour and not $4.80" in result.err
    assert server.machines == {}


def test_a_machine_whose_price_nobody_knows(
    run: Run, server: FakeSky, machine: FakeEndpoint, catalogs: None
) -> None:
    server.errors["cost_report"] = RuntimeError("no costs")
    result = run("launch", "--yes", "--gpus", "L4:4", "--infra", "aws", "--max-price", "4.80")
    assert result.code == 0
    assert (
        "Warning: SkyPilot has made a machine in aws/us-east-1, and no price of it is known: it may be more than "
        "$4.80 an hour. Look: pixtral-sky status pixtral, pixtral-sky plan --clouds aws\n" in result.err
    )


def test_one_that_is_too_dear_and_stays(run: Run, server: FakeSky, catalogs: None) -> None:
    server.lands, server.stays = {"instance_type": "g6.12xlarge", "region": "eu-west-1"}, True
    result = run("launch", "--yes", "--gpus", "L4:4", "--infra", "aws", "--max-price", "4.80")
    assert result.code == 1
    assert "Its machine may cost money until: pixtral-sky down pixtral." in result.err.splitlines()[-1]


@pytest.mark.parametrize(("price", "code"), [("1.40", 0), ("1.39", 2)])
def test_the_price_of_what_runs_already(
    run: Run, server: FakeSky, machine: FakeEndpoint, price: str, code: int
) -> None:
    """No place is looked for: an update stays on its machine."""
    server.cluster()
    remember_cluster()
    result = run("launch", "--yes", "--max-price", price)
    assert result.code == code
    if code:
        assert result.err.endswith(
            "Error: 'pixtral' is there already, at $1.40 an hour, not $1.39. "
            "Take it down first: pixtral-sky down pixtral\n"
        )
        assert not launched(server)
    else:
        assert "At most" not in result.err


def test_azure(run: Run, server: FakeSky) -> None:
    result = run("-q", "launch", "--yes", "--infra", "azure/eastus")
    assert result.code == 2
    assert "driver 580" in result.error
    assert result.error.endswith("Name another in your file (resources.image_id), or go elsewhere: --infra")
    assert not launched(server)


def test_what_runs_on_azure_is_updated(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """Its image is another, or it would not run."""
    server.cluster(infra="azure/eastus", gpus={"A100-80GB": 1})
    remember_cluster()
    assert run("launch", "--yes").code == 0


# While nobody gives a machine ------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the waiting has taken; no time passes."""
    waited: list[float] = []
    now = time.monotonic
    fake = SimpleNamespace(**vars(time))
    fake.sleep = lambda seconds: waited.append(seconds) if seconds >= 60 else time.sleep(seconds)
    fake.monotonic = lambda: now() + sum(waited)
    monkeypatch.setattr(launch, "time", fake)
    return waited


def sold_out(server: FakeSky) -> Exception:
    exceptions = server.sky.exceptions
    return exceptions.ResourcesUnavailableError(
        "Sold out.",
        failover_history=[
            exceptions.ResourcesUnavailableError("No L4 in us-east-1."),
            RuntimeError("No H100."),
        ],
    )


def test_it_is_asked_again(run: Run, server: FakeSky, machine: FakeEndpoint, clock: list[float]) -> None:
    server.errors["launch"] = [sold_out(server), sold_out(server)]
    result = run("launch", "--yes", "--retry-until-up")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert clock == [60, 60]
    assert result.err.count("  No L4 in us-east-1\n  No H100\n") == 1, (
        "it is not said again while it is the same"
    )
    assert (
        result.err.count(
            "Nobody gives this machine now: 2 places were tried, the last: No H100. It is tried again in a"
        )
        == 2
    )
    assert "in a minute, for 59 min at most; nothing runs meanwhile, and Ctrl-C ends the wait." in result.err
    assert len(server.requests("launch")) == 3


def test_it_is_asked_for_so_long(run: Run, server: FakeSky, clock: list[float]) -> None:
    server.errors["launch"] = sold_out(server)
    result = run("launch", "--yes", "--retry-minutes", "2.5")
    assert result.code == 1
    assert clock == [60, 60]
    assert result.err.splitlines()[-1] == (
        "Error: Nobody gives this machine now: 2 places were tried, the last: No H100. Nothing is left that costs money. "
        "Other GPUs: --gpus; elsewhere: --infra"
    )
    assert store.known() == []


def test_without_asking_again(run: Run, server: FakeSky, clock: list[float]) -> None:
    server.errors["launch"] = sold_out(server)
    result = run("launch", "--yes")
    assert clock == []
    assert "  No L4 in us-east-1\n  No H100\n" in result.err
    assert result.err.endswith("elsewhere: --infra; until one is given: --retry-until-up\n")


def test_what_is_nowhere_to_be_had_is_not_asked_for_again(
    run: Run, server: FakeSky, clock: list[float]
) -> None:
    server.errors["launch"] = server.sky.exceptions.ResourcesUnavailableError("Catalog does not contain it.")
    result = run("launch", "--yes", "--retry-until-up")
    assert result.code == 1
    assert clock == []


def test_ctrl_c_while_it_waits(
    run: Run, server: FakeSky, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.time, "sleep", interrupted)
    server.errors["launch"] = sold_out(server)
    result = run("launch", "--yes", "--retry-until-up")
    assert result.code == 130
    assert result.err.endswith("Warning: No machine was to be had. Nothing is left that costs money.\n")
    assert store.known() == []


# Private ---------------------------------------------------------------------------------------------------


def is_private(server: FakeSky) -> None:
    (sent,) = server.tasks
    assert sent.envs["LISTEN"] == "127.0.0.1"
    assert {each.ports for each in sent.resources} == {None}
    assert "endpoints" not in [name for name, _ in server.calls], "there is nothing to ask for"


def test_private(run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_port", lambda wanted=None: machine.port)
    result = run("launch", "--yes", "--private")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "It opens no port: the way to it is ssh.\nIt fetches no pictures by URL." in result.err
    is_private(server)
    assert server.tasks[0].envs["IMAGE_URLS"] == "none"
    assert server.aliases == ["pixtral"]
    assert ("open", "pixtral", machine.port, 8081) in server.tunnels
    known = store.recall()
    assert isinstance(known, Cluster)
    assert known.private


def test_slurm_is_always_private(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.clouds = ["slurm/lab"]
    monkeypatch.setattr(store, "free_port", lambda wanted=None: machine.port)
    result = run("launch", "--yes", "--infra", "slurm/lab", "--gpus", "A100:1")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "It fetches no pictures by URL. (--env IMAGE_URLS=public: from public hosts.)\n" in result.err
    is_private(server)
    assert server.tasks[0].envs["IMAGE_URLS"] == "none"


@pytest.mark.parametrize("hosts", ["public", "none", "pictures.example,10.0.0.7"])
def test_a_private_one_fetches_pictures_from_where_the_user_says(
    run: Run, server: FakeSky, machine: FakeEndpoint, tmp_path: Path, hosts: str
) -> None:
    """By an option, or in a file: even a copy of ours that was left as it is."""
    remember_cluster(url=machine.url, private=True)
    own = tmp_path / "own.yaml"
    own.write_text((ROOT / "pixtral.yaml").read_text().replace("IMAGE_URLS: public", f"IMAGE_URLS: {hosts}"))
    for words in (["--env", f"IMAGE_URLS={hosts}"], ["--file", own]):
        result = run("launch", "--yes", "--private", *words)
        assert ("It fetches no pictures by URL." in result.err) == (hosts == "none")
        assert server.tasks[-1].envs["IMAGE_URLS"] == hosts


def test_a_file_that_lacks_an_env(run: Run, server: FakeSky, tmp_path: Path) -> None:
    """On the machine it would be empty, and refused there."""
    own = tmp_path / "own.yaml"
    own.write_text((ROOT / "pixtral.yaml").read_text().replace("  IMAGE_URLS: public", "  # no"))
    result = run("launch", "--yes", "--file", own)
    assert (result.code, server.tasks) == (2, [])
    assert result.error.startswith("IMAGE_URLS= is neither public, none,")


def test_where_only_slurm_is_enabled(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.clouds = ["slurm/lab"]
    monkeypatch.setattr(store, "free_port", lambda wanted=None: machine.port)
    assert run("launch", "--yes").code == 0
    is_private(server)


@pytest.mark.parametrize("clouds", [["slurm/lab", "AWS"], ["kubernetes/ctx", "slurm/lab"], ["ssh/pool"]])
def test_where_a_port_can_be_opened_somewhere(run: Run, server: FakeSky, clouds: list[str]) -> None:
    server.clouds = clouds
    assert "It opens port 8081" in run("launch", "--dry-run").err


def test_private_without_ssh(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here could reach it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    result = run("-q", "launch", "--yes", "--private")
    assert result.code == 2
    assert result.error == "It is reached through ssh, which is not here. Install OpenSSH's client."
    assert not launched(server)


def test_an_update_stays_private(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    remember_cluster(url=machine.url, private=True)
    server.cluster()
    result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    is_private(server)
    assert ("close", "pixtral", machine.port, 8081) in server.tunnels, "the way to the server of before"


# A second launch -------------------------------------------------------------------------------------------


def test_an_update(run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same machine, key and URL; the server of before is ended."""
    monkeypatch.delenv("PIXTRAL_API_KEY")
    machine.key = ""
    assert run("launch", "--yes", "--infra", "aws/us-west-2", "--gpus", "L4:4").code == 0
    first = store.recall()
    machine.key = first.key
    server.machines["pixtral"].hourly = 4.6
    result = run("launch", "--yes", "--env", "MAX_IMAGES=2")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "pixtral is UP on aws/us-west-2 L4:4, $4.60 an hour: it is updated." in result.err
    assert "Considered resources" not in result.err
    there = server.machines["pixtral"]
    assert (there.resources.region, there.resources.accelerators) == ("us-west-2", {"L4": 4})
    (asked,) = server.tasks[-1].resources
    assert (str(asked.cloud), asked.region, asked.accelerators) == ("AWS", "us-west-2", {"L4": 4})
    assert [job.status.value for job in there.jobs] == ["CANCELLED", "RUNNING"]
    assert server.asked("cancel") == [("pixtral", [1])]
    second = store.recall()
    assert (second.key, second.url) == (first.key, first.url)
    assert second.max_images == 2


def test_an_update_of_spot(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    server.cluster(spot=True)
    assert run("launch", "--yes").code == 0


def test_an_update_with_another_key(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("launch", "--yes")
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")
    machine.key = "SENTINEL-new"
    assert run("launch", "--yes").code == 0
    assert store.recall().key == "SENTINEL-new"


def test_one_that_nobody_here_has_launched_is_updated(
    run: Run, server: FakeSky, machine: FakeEndpoint
) -> None:
    server.cluster(gpus={"L40S": 1})
    result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "pixtral is UP on aws/us-east-1 L40S:1" in result.err
    assert server.asked("cancel") == [("pixtral", [1])]


def test_on_other_gpus(run: Run, server: FakeSky) -> None:
    """SkyPilot does not change a machine."""
    server.cluster()
    remember_cluster()
    result = run("-q", "launch", "--yes", "--gpus", "H100:1")
    assert result.code == 1
    assert result.error == (
        "The running machine is another one: Requested resources do not match the existing cluster. "
        "Its machine may cost money until: pixtral-sky down pixtral. Take it down first, or use --name"
    )
    assert store.known() == ["pixtral"]


def test_launched_again_after_it_has_ended(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """Whoever has its old address now is not asked, with the key."""
    with FakeEndpoint() as stranger:
        remember_cluster(url=stranger.url)
        result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert stranger.requests == []


def test_started_again_after_it_was_stopped(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    with FakeEndpoint() as stranger:
        remember_cluster(url=stranger.url)
        server.cluster(status="STOPPED", job=None)
        result = run("launch", "--yes")
    assert (result.code, result.out) == (0, f"{machine.url}\n")
    assert "pixtral is STOPPED on aws/us-east-1 L4:2" in result.err
    assert stranger.requests == []


def test_an_update_on_another_port(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    run("launch", "--yes")
    with FakeEndpoint(key=KEY) as other:
        server.endpoints = {8081: f"127.0.0.1:{machine.port}", 9000: f"127.0.0.1:{other.port}"}
        assert run("launch", "--yes", "--env", "PORT=9000").out == f"{other.url}\n"
    assert store.recall().port == 9000


def test_one_that_is_being_launched(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    """Nothing is known of its machine yet."""
    server.cluster(status="INIT", resources=None, job=None, yaml=None, hourly=None)
    remember_cluster()
    result = run("launch", "--dry-run")
    assert result.code == 0
    assert "pixtral is INIT: it is updated." in result.err


@pytest.mark.parametrize("made_by", [None, "run: train", "secrets: {HF_TOKEN: x}"])
def test_a_cluster_of_another_project_is_left_alone(run: Run, server: FakeSky, made_by: str | None) -> None:
    """Its jobs would be cancelled."""
    server.cluster("training", yaml=made_by)
    result = run("-q", "launch", "--yes", "--name", "training")
    assert result.code == 2
    assert result.error == "'training' is a cluster with something else on it. Take another --name"
    assert not launched(server)
    assert store.known() == []


@pytest.mark.parametrize("place", ["infra: aws/us-west-2", "cloud: aws"])
def test_a_file_that_says_where(
    run: Run, server: FakeSky, machine: FakeEndpoint, tmp_path: Path, place: str
) -> None:
    """What is given, or where it runs already, comes before that."""
    path = tmp_path / "own.yaml"
    path.write_text(
        f"resources: {{accelerators: 'L4:2', {place}}}\nsecrets: {{PIXTRAL_API_KEY: ''}}\nrun: serve\n"
    )
    assert run("launch", "--yes", "--file", path, "--infra", "aws/eu-west-1").code == 0
    assert server.machines["pixtral"].resources.region == "eu-west-1"
    assert run("launch", "--yes", "--file", path).code == 0
    assert "pixtral-2" not in server.machines


def test_a_name_that_another_begins_with(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    server.cluster("pixtral-2", gpus={"H100": 1})
    assert "it is updated" not in run("launch", "--yes").err
    assert sorted(server.machines) == ["pixtral", "pixtral-2"]


# What goes wrong -------------------------------------------------------------------------------------------


def test_the_script_says_why_it_failed(run: Run, server: FakeSky) -> None:
    server.script = [
        *SETUP[:2],
        setup_line("pixtral: the NVIDIA driver here is 535, and this vLLM needs 580 or newer."),
        f"ERROR: {fake_sky.RED}Job 1's setup failed with return code list:{fake_sky.RESET} [1]\n",
        server.ends("FAILED_SETUP"),
    ]
    result = run("launch", "--yes")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1] == (
        "Error: The job on 'pixtral' is FAILED_SETUP: the NVIDIA driver here is 535, and this vLLM needs 580 or "
        "newer. Its machine may cost money until: pixtral-sky down pixtral. All it said: pixtral-sky logs pixtral"
    )
    assert store.known() == ["pixtral"], "to be taken down"


def test_vllm_says_why_it_failed(run: Run, server: FakeSky) -> None:
    server.script = [
        *SETUP,
        STARTING,
        line("Traceback (most recent call last):"),
        line("ValueError: No available memory for the cache blocks."),
        line("  warnings.warn('resource_tracker')"),
        f"{fake_sky.RED}✗ Job finished (status: FAILED).{fake_sky.RESET}\n",
        server.ends("FAILED"),
    ]
    error = run("launch", "--yes").err.splitlines()[-1]
    assert error.startswith(
        "Error: The job on 'pixtral' is FAILED: ValueError: No available memory for the cache blocks. "
    )


def test_it_ends_without_a_word(run: Run, server: FakeSky) -> None:
    server.script = [server.ends("FAILED_DRIVER")]
    assert "is FAILED_DRIVER: it said nothing." in run("launch", "--yes").err


def test_its_machine_vanishes(run: Run, server: FakeSky) -> None:
    """Preempted, or taken down by somebody else."""

    def vanishes(job: object) -> None:
        del server.machines["pixtral"]
        raise ConnectionError

    server.script = [*SETUP, STARTING, vanishes]
    result = run("launch", "--yes")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        "Error: SkyPilot: Cluster 'pixtral' does not exist. Nothing is left that costs money."
    )
    assert store.known() == []


def test_its_job_vanishes(run: Run, server: FakeSky) -> None:
    def vanishes(job: fake_sky.Job) -> None:
        server.machines["pixtral"].jobs.clear()
        raise ConnectionError

    server.script = [*SETUP, vanishes]
    assert "The job on 'pixtral' is gone: " in run("launch", "--yes").err


def test_nobody_gives_the_machine(run: Run, server: FakeSky) -> None:
    server.errors["launch"] = server.sky.exceptions.ResourcesUnavailableError(
        "Failed to provision all possible launchable resources. Relax the task's resource requirements:\n 1x[L4:2]",
        failover_history=[
            RuntimeError("us-east-1a: InsufficientInstanceCapacity"),
            RuntimeError(
                "\x1b[33mQuotas\x1b[0m are too low:\n  VcpuLimitExceeded: you have 0 of L-DB2E81BA.\n"
            ),
        ],
    )
    result = run("launch", "--yes")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "Error: Nobody gives this machine now: 2 places were tried, the last: Quotas are too low: "
        "VcpuLimitExceeded: you have 0 of L-DB2E81BA. Nothing is left that costs money. Other GPUs: --gpus; elsewhere: --infra"
    )
    assert store.known() == []


def test_nobody_has_such_a_machine(run: Run, server: FakeSky) -> None:
    """The optimizer's own refusal has no history."""
    server.errors["optimize"] = server.sky.exceptions.ResourcesUnavailableError(
        "\x1b[31mCatalog does not contain any instances satisfying the request:\x1b[0m 1x['H200:8'].\nTo fix: relax."
    )
    result = run("-q", "launch", "--gpus", "H200:8")
    assert result.code == 1
    assert result.error == (
        "Nobody gives this machine now: Catalog does not contain any instances satisfying the request: "
        "1x['H200:8']. Other GPUs: --gpus; elsewhere: --infra"
    )


def test_a_launch_that_fails_leaves_a_machine(run: Run, server: FakeSky) -> None:
    def leaves(name: str) -> None:
        server.cluster(name, status="INIT", job=None)
        raise RuntimeError("Failed to set up SkyPilot runtime on cluster.\nMore of that.")

    server.during_launch = leaves
    result = run("launch", "--yes")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "Error: SkyPilot: Failed to set up SkyPilot runtime on cluster. Its machine may cost money until: "
        "pixtral-sky down pixtral. Its own view: sky status; sky api status"
    )
    assert store.known() == ["pixtral"]


@pytest.mark.parametrize("early", [True, False])
def test_a_failed_update_changes_no_key(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """The server of before goes on, and with it its key."""
    run("launch", "--yes")
    before = store.recall()
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")

    def refuses(*_: object, **__: object) -> None:
        raise server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")

    if early:
        monkeypatch.setattr(server.sky, "launch", refuses)
    else:
        server.errors["launch"] = RuntimeError("no")
    assert run("launch", "--yes", "--private").code == 1
    assert store.recall() == before
    assert run("status").code == 0


def test_ctrl_c_in_an_update_keeps_the_new_key(
    run: Run, server: FakeSky, machine: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on."""
    run("launch", "--yes")
    monkeypatch.setenv("PIXTRAL_API_KEY", "SENTINEL-new")

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    server.during_launch = interrupted
    assert run("launch", "--yes").code == 130
    assert store.recall().key == "SENTINEL-new"


def test_a_failed_update_is_not_forgotten(run: Run, server: FakeSky, machine: FakeEndpoint) -> None:
    run("launch", "--yes")
    server.errors["launch"] = RuntimeError("no")
    result = run("launch", "--yes")
    assert "Its machine may cost money until: pixtral-sky down pixtral." in result.err
    assert store.known() == ["pixtral"]


def test_ctrl_c_while_it_starts(run: Run, server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cluster: Cluster) -> str:
        raise KeyboardInterrupt

    server.endpoints = {8081: "127.0.0.1:9"}
    monkeypatch.setattr(launch, "problem", interrupted)
    result = run("launch", "--yes")
    assert result.code == 130
    assert "pixtral goes on without this command" in result.err
    assert store.known() == ["pixtral"]


@pytest.mark.parametrize("real", [True, False])
def test_the_api_server_is_down(run: Run, server: FakeSky, real: bool) -> None:
    import requests

    server.down_with = (
        server.sky.exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
        if real
        else requests.exceptions.ConnectionError("HTTPConnectionPool(host='127.0.0.1', port=46580): refused")
    )
    result = run("-q", "launch", "--yes")
    assert result.code == 1
    assert result.error == ("SkyPilot's API server does not answer. Look at it: sky api info; sky api start")
    assert store.known() == []


def test_the_api_server_wants_a_login(run: Run, server: FakeSky) -> None:
    server.down_with = server.sky.exceptions.ApiServerAuthenticationError("https://me:SENTINEL@sky.example")
    result = run("-q", "launch", "--yes")
    assert result.error == "SkyPilot's API server asks who you are. Run: sky api login"


def test_an_infra_that_is_none(run: Run, server: FakeSky) -> None:
    result = run("-q", "launch", "--yes", "--infra", "nosuchcloud")
    assert result.code != 0
    assert result.error.startswith("There is no cloud 'nosuchcloud'. There are: aws, azure, ")
    assert len(result.error) < 500
    assert run("-q", "launch", "--infra", "was/us-east-1").error == (
        "There is no cloud 'was'. Did you mean aws?"
    )
    assert server.calls == []


@pytest.mark.parametrize("gpus", ["L4:\u00b2", "L4:2:2", "nonsense"])
def test_gpus_that_are_skypilots_business(run: Run, server: FakeSky, gpus: str) -> None:
    result = run("-q", "launch", "--dry-run", "--gpus", gpus)
    assert "fault of pixtral-sky" not in result.err


def test_a_secret_in_skypilots_own_words_is_not_shown(
    run: Run, server: FakeSky, machine: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    def during(name: str) -> None:
        print(f"export PIXTRAL_API_KEY={KEY}")

    server.during_launch = during
    result = run("launch", "--yes")
    assert "export PIXTRAL_API_KEY=***" in result.err
