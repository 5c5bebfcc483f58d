"""service.yaml on the real control plane of SkyServe: it comes up, its key is asked for, and it goes."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import messages
from pixtral_sky.deploy import task
from pixtral_sky.errors import Busy, Unauthorized
from pixtral_sky.pictures.prepare import prepare
from pixtral_sky.rehearsal import checkpoint, engine
from pixtral_sky.rehearsal import process as rehearsal
from tests.real.serve.load import ask
from tests.real.serve.rig import KEY, Service

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """To the balancer, with the key and with nothing of our client."""
    with service.http() as http:
        yield http


def test_it_is_ready_and_answers(service):
    status = service.status()
    assert status["status"] == "READY"
    assert re.search(r"pixtral +\d+ .*READY.* 2/2", status["table"])
    assert "returned status code 200" in service.log("controller")
    with service.client() as client:
        assert client.learn().max_model_len == 32768
        for how in ("ask", "complete"):
            asked = ask(client, {"id": "first", "tokens": 20}, how=how)
            assert asked.text == asked.expected, asked


def test_both_replicas_are_asked(service):
    before = [len(machine.requests()) for machine in service.machines()]
    with service.client() as client:
        for number in range(6):
            assert ask(client, {"id": f"one-of-six-{number}", "tokens": 1}).outcome == "answered"
    after = [len(machine.requests()) for machine in service.machines()]
    assert all(now > then for now, then in zip(after, before, strict=True))


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
def test_nobody_gets_in_through_the_balancer(service, http, headers):
    seen = [len(machine.requests()) for machine in service.machines()]
    http.headers.pop("Authorization")
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics")):
        response = http.request(method, path, headers=headers, json={})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == ("invalid_api_key" if headers else "missing_api_key")
    assert http.post("/invocations", headers=headers, json={}).status_code == 404
    assert http.get("/health", headers=headers).status_code == 200
    assert seen == [len(machine.requests()) for machine in service.machines()]


def test_our_client_says_that_the_key_is_wrong(service):
    for key, said in (("wrong", "does not take this key (401)"), ("", "asks for a key, and none was given")):
        with Client(Endpoint(service.url, key)) as client, pytest.raises(Unauthorized) as caught:
            client.models()
        assert said in str(caught.value)


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PATCH"])
def test_methods_that_the_balancer_does_not_pass(http, method):
    """A web page of another origin asks with OPTIONS first: it gets no further."""
    response = http.request(method, "/v1/chat/completions", headers={"Origin": "https://example.com"})
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


def test_a_request_that_is_too_large_is_refused_by_the_replica(http):
    response = http.post("/v1/chat/completions", content=b"x" * (33 * 2**20))
    assert response.status_code == 413


def test_where_the_key_is(service):
    """SkyServe's balancer logs the headers of every request, and its controller an update; ours log nothing of it."""
    with service.client() as client:
        client.models()
    assert KEY in service.log("load_balancer")
    for line in service.log("controller").splitlines():  # after an update, what has changed, with all secrets
        assert KEY not in line or line.startswith("Replica config changed")
    for machine in service.machines():
        assert KEY not in machine.log
        for process in machine.processes():
            assert KEY not in " ".join(process.cmdline())


# What goes wrong at its start, and its end


def wrong_probe(config: dict[str, Any]) -> None:
    config["service"]["readiness_probe"]["headers"]["Authorization"] = "Bearer wrong"


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Iterator[dict[str, Service]]:
    """Services that are started together, as each takes its time."""
    short = {"initial_delay_seconds": 4}
    found = {
        "wrong probe": Service(tmp_path_factory.mktemp("wrong"), spec=short, change=wrong_probe),
        "no key": Service(tmp_path_factory.mktemp("unkeyed"), key=""),
        "good": Service(tmp_path_factory.mktemp("good")),
    }
    with contextlib.ExitStack() as stack:
        for service in found.values():
            stack.callback(service.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Service.start, found.values()))
        yield found


def statuses(service: Service) -> list[str]:
    return [each["status"] for each in service.status().get("replicas", [])]


def test_a_service_without_a_key(others):
    service = others["no key"]
    service.until(lambda: statuses(service) == ["FAILED"] * 2, "replicas that failed")
    assert "a service needs a key. Run: sky serve up" in service.log("replica_1")
    assert len(service.all_machines()) == 2


def test_a_wrong_key_in_the_probe(others):
    service = others["wrong probe"]
    service.until(lambda: statuses(service) == ["FAILED_INITIAL_DELAY"] * 2, "end of the patience")
    # `sky serve status` says that they failed, and `sky serve logs --controller` says why.
    assert "FAILED_INITIAL_DELAY" in service.status()["table"]
    assert "returned status code 401 and response" in service.log("controller")
    assert "The key in this request is not the key of this server." in service.log("controller")
    with service.client(budget=0) as client, pytest.raises(Busy) as caught:
        client.models()
    assert "No replica is ready." in str(caught.value)
    # They are ended, and none is started in their place: it would fail as well.
    service.until(
        lambda: not any(machine.runs() for machine in service.all_machines()), "end of the machines"
    )
    assert len(service.all_machines()) == 2


def test_sky_serve_down_leaves_nothing(others):
    service = others["good"]
    machines = service.wait_for(ready=2)
    parts = [service.pid(part) for part in ("controller", "balancer")]
    service.down()
    assert not any(machine.runs() for machine in machines)
    assert not any(psutil.pid_exists(pid) for pid in parts)
    assert "terminated successfully" in service.log("controller")


# With the real engine


@pytest.mark.engine
@pytest.mark.timeout(360)
def test_the_real_engine_is_a_replica(tmp_path):
    venv = engine.ensure(task.load().vllm_version)
    envs = {
        "VENV": str(venv),
        "MODEL": str(checkpoint.tiny(venv)),
        "EXTRA_ARGS": rehearsal.CPU_ARGS,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }

    def one(config: dict[str, Any]) -> None:
        config["service"]["replica_policy"] |= {"min_replicas": 1, "max_replicas": 1}

    with Service(tmp_path, change=one, envs=envs, spec={"initial_delay_seconds": 240}) as service:
        begin = time.monotonic()
        (machine,) = service.wait_for(ready=1, seconds=240)
        print(f"ready after {time.monotonic() - begin:.0f} s")
        file = io.BytesIO()
        Image.new("RGB", (400, 400), "orange").save(file, "PNG")
        picture = prepare(file.getvalue(), "logo.png")
        with service.client() as client:
            assert client.learn().model == "pixtral"
            answer = client.ask(messages(["Turn this logo into ASCII art.", picture]), max_tokens=32)
            pieces = list(answer)
            whole = client.complete(messages(["Turn this logo into ASCII art.", picture]), max_tokens=4)
        assert len(pieces) > 3
        assert answer.usage["prompt_tokens"] == whole["usage"]["prompt_tokens"] == 660
        assert KEY not in machine.log
        service.down()
        assert not machine.runs()
