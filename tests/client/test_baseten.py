"""A deployment on Baseten: its addresses, its key, and what its gateway says while there is no answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from pixtral_sky.client import client as client_module
from pixtral_sky.client.baseten import BASETEN_SECONDS
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint, base_url
from pixtral_sky.deploy import store
from pixtral_sky.deploy.resolve import find
from pixtral_sky.deploy.store import Cluster, Service
from pixtral_sky.errors import Busy, NotAnAPI, PixtralSkyError, Refused, Unauthorized, UsageError
from tests.conftest import ROOT
from tests.support import fake_endpoint as fake
from tests.support.command_line import KEY, Result, Run, run_main
from tests.support.deployments import running
from tests.support.fake_endpoint import Behaviour, FakeEndpoint, Request, says

MESSAGES = [{"role": "user", "content": "Hello"}]
HOST = "https://model-abcd1234.api.baseten.co"
WAY = "/environments/production"
MODELS = {"object": "list", "data": [{"object": "model", "id": "pixtral", "max_model_len": 32768}]}


def gateway_error(code: int, message: str) -> Behaviour:
    """An error in the words of Baseten's gateway (https://docs.baseten.co/inference/errors)."""
    return fake.status(code, {"error": message}, content_type="application/json")


class FakeBaseten(FakeEndpoint):
    """A fake endpoint behind Baseten's gateway, which has one deployment and asks for its key.

    The first ``cold`` requests find it on its way up.
    """

    cold = 0

    def _next(self, request: Request) -> Behaviour:
        way, _, route = request.path.rpartition("/sync")
        way = way or request.path.removesuffix("/predict")
        if way == WAY and request.headers.get("authorization") == f"Api-Key {KEY}":
            if self.cold:
                self.cold -= 1
                return gateway_error(503, "Model is not ready")
            if route == "/health":
                return fake.status(200)
            if route == "/v1/models":
                self.requests.append(request)
                return fake.status(200, MODELS, content_type="application/json")
            return super()._next(request)
        self.requests.append(request)
        return gateway_error(404, "Not found") if way != WAY else gateway_error(401, "Invalid API key")

    @property
    def asked(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]


@contextmanager
def talk(
    *script: Behaviour, route: str = "/sync", key: str = KEY, **options: Any
) -> Iterator[tuple[FakeBaseten, Client, list[str], list[float]]]:
    """A fake, a client of it whose pauses take no time, what it said, and its pauses."""
    notices: list[str] = []
    pauses: list[float] = []
    with FakeBaseten(script or (says("Hi."),)) as baseten:
        endpoint = Endpoint.at(f"{baseten.url}{WAY}{route}", key)
        options = {"sleep": pauses.append, "notify": notices.append, **options}
        with Client(endpoint, **options) as client:
            yield baseten, client, notices, pauses


# Its addresses ---------------------------------------------------------------------------------------------

SYNC, PREDICT = f"{HOST}{WAY}/sync", f"{HOST}{WAY}/predict"


@pytest.mark.parametrize(("text", "url", "chat"), [
    (HOST, SYNC, f"{SYNC}/v1/chat/completions"),
    (f"{HOST}/", SYNC, f"{SYNC}/v1/chat/completions"),
    ("model-abcd1234.api.baseten.co", SYNC, f"{SYNC}/v1/chat/completions"),
    ("http://model-abcd1234.api.baseten.co", SYNC, f"{SYNC}/v1/chat/completions"),
    (f"{HOST}/v1/chat/completions", SYNC, f"{SYNC}/v1/chat/completions"),
    (f"{HOST}{WAY}", SYNC, f"{SYNC}/v1/chat/completions"),
    (SYNC, SYNC, f"{SYNC}/v1/chat/completions"),
    (f"{SYNC}/v1", SYNC, f"{SYNC}/v1/chat/completions"),
    (f"{SYNC}/v1/chat/completions", SYNC, f"{SYNC}/v1/chat/completions"),
    (PREDICT, SYNC, PREDICT),
    (f"{PREDICT}/", SYNC, PREDICT),
    (f"{HOST}/predict", SYNC, PREDICT),
    (f"{HOST}/environments/staging/predict", f"{HOST}/environments/staging/sync", f"{HOST}/environments/staging/predict"),
    (f"{HOST}/development/predict", f"{HOST}/development/sync", f"{HOST}/development/predict"),
    (f"{HOST}/production/sync/v1", f"{HOST}/production/sync", f"{HOST}/production/sync/v1/chat/completions"),
    (f"{HOST}/deployment/x1y2z3/predict", f"{HOST}/deployment/x1y2z3/sync", f"{HOST}/deployment/x1y2z3/predict"),
    ("https://model-abcd1234-eu.api.baseten.co/predict", "https://model-abcd1234-eu.api.baseten.co/sync",
     "https://model-abcd1234-eu.api.baseten.co/predict"),
    ("https://model-abcd1234-eu.api.baseten.co", "https://model-abcd1234-eu.api.baseten.co/sync",
     "https://model-abcd1234-eu.api.baseten.co/sync/v1/chat/completions"),
    ("https://baseten.example.com/environments/production/predict",
     "https://baseten.example.com/environments/production/sync",
     "https://baseten.example.com/environments/production/predict"),
])  # fmt: skip
def test_an_address(text: str, url: str, chat: str) -> None:
    endpoint = Endpoint.at(text, KEY)
    assert endpoint.is_baseten
    assert (endpoint.url, endpoint.chat_url) == (url, chat)
    assert endpoint.authorization == f"Api-Key {KEY}"
    assert base_url(text) == base_url(url) == url, "what it gives, it takes"
    assert endpoint.base + endpoint.chat_path == chat
    assert endpoint.base + endpoint.models_path == f"{url}/v1/models"


@pytest.mark.parametrize("text", [
    "https://app.baseten.co/model_versions/x1y2z3/predict",
    "https://chain-abcd1234.api.baseten.co/environments/production/predict",
    f"{HOST}{WAY}/async_predict",
    "https://model-abcd1234-eu.api.baseten.co/environments/production/predict",
    "https://api.baseten.co.model-x.api.baseten.co/predict",
])  # fmt: skip
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="leads to no deployment on Baseten") as caught:
        base_url(text)
    assert "https://model-ID.api.baseten.co/environments/production/predict" in caught.value.hint


@pytest.mark.parametrize("text", [
    "http://10.0.0.7:8081", "https://host/v1", "https://host/environments/production", "https://host/predict",
    "https://model-abcd1234.api.baseten.co.example.com/v1", "https://inference.baseten.co/v1", "https://host/sync",
])  # fmt: skip
def test_another_s_address(text: str) -> None:
    endpoint = Endpoint.at(text, KEY)
    assert not endpoint.is_baseten
    assert endpoint.authorization == f"Bearer {KEY}"
    assert endpoint.chat_url == f"{endpoint.url}/v1/chat/completions"


def test_no_key_no_header() -> None:
    assert Endpoint.at(PREDICT).authorization == Endpoint("http://x").authorization == ""


def test_the_key_of_the_environment_is_for_every_form_of_its_address() -> None:
    environ = {"PIXTRAL_ENDPOINT": PREDICT, "PIXTRAL_API_KEY": KEY}
    assert find(environ=environ).chat_url == PREDICT
    assert find(environ=environ).key == KEY
    assert find(f"{SYNC}/v1", environ=environ).key == KEY
    assert find(f"{HOST}/development/predict", environ=environ).key == "", "it is another's"


# Answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "path"), [
    ("/predict", f"{WAY}/predict"),
    ("/sync", f"{WAY}/sync/v1/chat/completions"),
    ("/sync/v1/chat/completions", f"{WAY}/sync/v1/chat/completions"),
])  # fmt: skip
def test_a_question(route: str, path: str) -> None:
    with talk(says("Hi", " there."), route=route) as (baseten, client, _, _):
        assert client.learn().max_model_len == 32768
        assert client.endpoint.is_baseten, "learning changes nothing of that"
        assert list(client.ask(MESSAGES)) == ["Hi", " there."]
        assert client.complete(MESSAGES)["choices"][0]["message"]["content"] == "Hi there."
    assert [request.path for request in baseten.requests] == [f"{WAY}/sync/v1/models", path, path]
    assert {request.headers["authorization"] for request in baseten.requests} == {f"Api-Key {KEY}"}


@pytest.mark.parametrize("key", ["another", ""])
def test_a_wrong_key(key: str) -> None:
    with talk(key=key) as (_, client, notices, _):
        with pytest.raises(Unauthorized) as caught:
            client.ask(MESSAGES)
        says = "does not take this key (401). Is PIXTRAL_API_KEY right?"
        if not key:
            url = client.endpoint.url
            says = f"asks for a key, and none was given (401). Give it: export PIXTRAL_ENDPOINT={url} PIXTRAL_API_KEY=..."
        assert says in str(caught.value)
        assert notices == []


def test_a_deployment_that_is_none() -> None:
    with FakeBaseten() as baseten:
        url = f"{baseten.url}/deployment/zzz/predict"
        with Client(Endpoint.at(url, KEY), sleep=lambda _: None) as client:
            for ask in (client.models, lambda: client.ask(MESSAGES)):
                with pytest.raises(Refused) as caught:
                    ask()
                assert str(caught.value) == (
                    f"Baseten has no deployment at {baseten.url}/deployment/zzz/sync (404): Not found. "
                    "Is its address right?"
                )


def test_a_route_that_vllm_has_not() -> None:
    with talk(fake.status(404, {"detail": "Not Found"})) as (_, client, _, _), pytest.raises(NotAnAPI):
        client.ask(MESSAGES)


def test_a_model_that_is_none_is_said_in_vllm_s_words() -> None:
    answer = fake.vllm_error(404, "The model `x` does not exist.")
    with talk(answer) as (_, client, _, _), pytest.raises(Refused, match="The model `x` does not exist"):
        client.ask(MESSAGES)


@pytest.mark.parametrize(("code", "answer"), [
    (502, gateway_error(502, "Error making prediction")),
    (503, gateway_error(503, "Model is not ready")),
    (502, fake.page(502)),
    (503, fake.status(503)),
])  # fmt: skip
def test_a_cold_start(code: int, answer: Behaviour) -> None:
    """For minutes, and not for three quarters of one."""
    with talk(*[answer] * 40, says("Hi.")) as (baseten, client, notices, pauses):
        assert client.complete(MESSAGES)["choices"][0]["message"]["content"] == "Hi."
    assert len(baseten.asked) == 41
    assert client_module.RETRY_SECONDS < sum(pauses) < BASETEN_SECONDS
    assert notices[0].startswith(f"{baseten.url}{WAY}/sync is starting ({code}); trying again in ")
    assert len(notices) == 40


def test_a_cold_start_before_anything_is_known_of_it() -> None:
    with talk() as (baseten, client, notices, _):
        baseten.cold = 20
        assert client.learn().max_model_len == 32768
    assert len(notices) == 20


def test_a_start_that_does_not_end() -> None:
    answer = gateway_error(503, "Model is not ready")
    with talk(answer) as (_, client, _, pauses), pytest.raises(Busy) as caught:
        client.ask(MESSAGES)
    assert BASETEN_SECONDS - 10 < sum(pauses) <= BASETEN_SECONDS
    assert "is not up (503): Model is not ready." in str(caught.value)


def test_a_caller_in_a_hurry_does_not_wait_for_a_start() -> None:
    answer = gateway_error(503, "Model is not ready")
    with talk(answer, budget=0) as (baseten, client, _, pauses), pytest.raises(Busy):
        client.ask(MESSAGES)
    assert (len(baseten.asked), pauses) == (1, [])


def test_too_many_requests_are_not_a_start() -> None:
    answer = gateway_error(429, "Too many requests")
    with talk(answer) as (_, client, _, pauses), pytest.raises(Busy, match="is busy"):
        client.ask(MESSAGES)
    assert sum(pauses) <= client_module.RETRY_SECONDS


def after(seconds: float, behave: Behaviour) -> Behaviour:
    """Silence for so long, and then that."""

    def late(exchange: fake.Exchange) -> None:
        exchange.wait(seconds)
        behave(exchange)

    return late


def test_a_deployment_that_has_scaled_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gateway holds the request until there is a replica. That is said, and waited for."""
    monkeypatch.setattr(client_module, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "READ_SECONDS", 0.1)
    with talk(after(0.3, says("Hi."))) as (baseten, client, notices, pauses):
        assert client.complete(MESSAGES)["choices"][0]["message"]["content"] == "Hi."
    assert notices == [
        f"{baseten.url}{WAY}/sync is silent; a deployment that had scaled to zero takes minutes to start"
    ]
    assert (len(baseten.asked), pauses) == (1, [])


def test_a_quick_answer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with talk() as (_, client, notices, _):
        client.complete(MESSAGES)
        assert notices == []


def test_some_web_site() -> None:
    with talk(fake.page()) as (_, client, _, _), pytest.raises(NotAnAPI):
        client.ask(MESSAGES)


# The commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, **options: Any) -> Result:
        return run_main(monkeypatch, capsys, *arguments, **options)

    return run


@pytest.mark.parametrize(("route", "how"), [("/predict", []), ("/sync/v1", ["--no-stream"])])
def test_ask(run: Run, monkeypatch: pytest.MonkeyPatch, route: str, how: list[str]) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    with FakeBaseten([says("A chart", " and a receipt.")]) as baseten:
        pictures = [str(ROOT / "examples" / name) for name in ("chart.png", "receipt.jpg")]
        result = run("ask", "What is this?", *pictures, *how, "--endpoint", f"{baseten.url}{WAY}{route}")
        assert (result.code, result.out) == (0, "A chart and a receipt.\n")
        monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{baseten.url}{WAY}{route}")
        assert run("ask", "Hello", *how).out == "A chart and a receipt.\n"
    assert [part["type"] for part in baseten.asked[0].json["messages"][0]["content"]] == [
        "text",
        "image_url",
        "image_url",
    ]


def test_ask_where_nothing_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    with FakeBaseten() as baseten:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{baseten.url}/development/predict")
        error = run("ask", "Hello").error
    assert error.startswith(f"Baseten has no deployment at {baseten.url}/development/sync (404): Not found. ")
    assert error.endswith("PIXTRAL_ENDPOINT is set here: correct it, or unset it.")


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    monkeypatch.setattr("pixtral_sky.deploy.skypilot.installed", lambda: "")  # another matter
    usage = {"prompt_tokens": 2803, "completion_tokens": 8}
    with FakeBaseten([says("A chart.", usage=usage)]) as baseten:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{baseten.url}{WAY}/predict")
        lines = {line[5:20].strip(): line for line in run("doctor").out.splitlines()}
    assert f"ok   endpoint        {baseten.url}{WAY}/sync answers" in lines["endpoint"]
    for subject in ("models", "gateway", "picture"):
        assert lines[subject].startswith("ok"), lines[subject]


def test_exports_for_openai_clients(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", PREDICT)
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    result = run("endpoint", "--env", shows_key=True)
    assert result.out.splitlines() == [
        f"export PIXTRAL_ENDPOINT={SYNC}",
        f"export PIXTRAL_API_KEY={KEY}",
        f"export OPENAI_BASE_URL={SYNC}/v1",
        f"export OPENAI_API_KEY={KEY}",
    ]


def in_bash(script: str, **environ: str) -> Any:
    """What curl was given: its URL, its headers and its body."""
    stand_in = (
        'pixtral-sky() { echo "export PIXTRAL_API_KEY=of-$4"; }\n'
        'curl() { local a; for a; do case "$a" in @/*) cat "${a#@}";; *) printf "%s\\n" "$a";; esac; done; }\n'
    )
    environ |= {"PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        ["bash", "-ec", stand_in + script], env=environ, capture_output=True, text=True, check=True
    )
    words = said.stdout.splitlines()
    assert words[:2] == ["-sS", "--no-buffer"]
    headers = [words[n + 1] for n, word in enumerate(words) if word == "-H"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["stream"]
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    assert "model" not in body, "its name is not known before it is asked"
    return words[2], headers


JSON = "Content-Type: application/json"


def remembered() -> Sequence[tuple[store.Deployment, str]]:
    common = {"key": KEY, "max_model_len": 32768, "max_images": 4, "created": 1.0}
    return [
        (running("mine", key=KEY, url="http://127.0.0.1:7777"), "http://127.0.0.1:7777"),
        (Cluster(name="mine", url="http://10.0.0.7:8081", port=8081, private=False, request="", **common), "http://10.0.0.7:8081"),
        (Service(name="mine", url="https://10.0.0.7:30001", request="", **common), "https://10.0.0.7:30001"),
    ]  # fmt: skip


@pytest.mark.parametrize(("one", "url"), remembered(), ids=lambda value: getattr(value, "kind", ""))
def test_a_request_for_what_is_remembered(run: Run, one: store.Deployment, url: str) -> None:
    store.remember(one)
    printed = run("endpoint", "--for", "curl", "--name", "mine").out
    where, headers = in_bash(printed)
    assert where == f"{url}/v1/chat/completions"
    assert headers == [JSON, "Authorization: Bearer of-mine"]


def test_a_request_for_baseten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, url in ((PREDICT, PREDICT), (f"{SYNC}/v1", f"{SYNC}/v1/chat/completions")):
        monkeypatch.setenv("PIXTRAL_ENDPOINT", given)
        monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
        printed = run("endpoint", "--for", "curl").out
        assert in_bash(printed, PIXTRAL_API_KEY="k") == (url, [JSON, "Authorization: Api-Key k"])


def test_a_request_without_a_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "localhost:8081")
    printed = run("endpoint", "--for", "curl").out
    assert in_bash(printed) == ("http://localhost:8081/v1/chat/completions", [JSON])
    assert "--env and --for are two things" in run("endpoint", "--for", "curl", "--env").error


def test_an_error_of_the_gateway_shows_no_key() -> None:
    with talk(gateway_error(400, f"Bad key {KEY}")) as (_, client, _, _):
        with pytest.raises(PixtralSkyError) as caught:
            client.ask(MESSAGES)
        assert KEY not in str(caught.value)
