"""Checks of the endpoint: whether it answers, to whom, and whether a picture reaches the model."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import replace
from urllib.parse import urlsplit

import httpx

from pixtral_sky import __version__
from pixtral_sky.client.client import Client
from pixtral_sky.deploy import store, task
from pixtral_sky.deploy.resolve import find
from pixtral_sky.doctor.check import Absent, Facts
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, Unauthorized, Unreachable

QUESTION = "What is this?"
ANSWER_TOKENS = 8
WAIT_SECONDS = 10.0  # for a response without inference
PICTURE_SECONDS = 120.0  # for an answer about a picture, which may be the server's first


def reach(facts: Facts) -> str:
    try:
        facts.endpoint = find(name=facts.name)
    except NoEndpoint as error:
        name = facts.name or store.DEFAULT_NAME
        if store.recall(name) is not None:  # it has ended, or has no address yet
            raise Absent(error.what, error.hint) from error
        others = ", ".join(store.known())
        raise Absent(
            f"Nothing is deployed as {name!r}{f' (but {others})' if others else ''}.",
            f"Run: {facts.launch}",
        ) from error
    facts.secrets.add(facts.endpoint.key)
    began = time.monotonic()
    if facts.endpoint.tunnel:
        facts.endpoint.tunnel.open()
    # Baseten's gateway has no public route.
    key = {"Authorization": facts.endpoint.authorization} if facts.endpoint.is_baseten else None
    status = _status(facts, "GET", "/health", key)
    if status != 200:
        raise PixtralSkyError(
            f"{facts.endpoint.url} answers GET /health with {status}, not 200.", facts.endpoint.hint
        )
    way = " through ssh" if facts.endpoint.tunnel else ""
    return f"{facts.endpoint.url} answers{way} after {time.monotonic() - began:.2f} s"


def models(facts: Facts) -> str:
    with Client(facts.endpoint, budget=0, read_timeout=WAIT_SECONDS) as client:
        names = ", ".join(model["id"] for model in client.models())
        facts.endpoint = client.learn()
    length = facts.endpoint.max_model_len
    return f"{'the key opens' if facts.endpoint.key else 'without a key:'} {names}" + (
        f", for {length:,} tokens" if length else ""
    )


def gateway(facts: Facts) -> str:
    here = not facts.endpoint.key and _is_this_machine(facts.endpoint.url)
    if here and _status(facts, "GET", "/v1/models") == 200:
        return _local_gateway(facts)
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/invocations"),
        ("POST", "/v1/chat/completions"),
    ):
        status = _status(facts, method, path)
        # A missing route (404) is shut too, but the list of models is never missing.
        if status != 401 and not (status == 404 and method == "POST"):
            raise _not_shut(f"{method} {path} answers {status} without a key, not 401", status)
    status = _status(facts, "GET", "/v1/models", {"Authorization": f"Bearer {secrets.token_hex(32)}"})
    if status != 401:
        raise _not_shut(f"GET /v1/models answers {status} to a wrong key, not 401", status)
    return "shut to all without the key"


def _local_gateway(facts: Facts) -> str:
    """Without a key, only this machine can use the endpoint, and no page in a browser can."""
    hint = "Launch it again with the pixtral.yaml of this version."
    status = _status(facts, "GET", "/v1/models", {"Host": "pixtral.invalid"})
    if status not in (401, 403, 404):
        raise PixtralSkyError(
            f"GET /v1/models answers {status} to a request that is not for localhost: a web page in a "
            "browser here can use it.",
            hint,
        )
    status = _status(facts, "POST", "/invocations")
    if status not in (401, 404):
        raise PixtralSkyError(f"POST /invocations answers {status}: the gateway is not before it.", hint)
    return "no key: it is closed only by listening on 127.0.0.1, to all but the users of its machine"


def _not_shut(what: str, status: int) -> PixtralSkyError:
    # A server with these statuses has read the request: a valid one would get an answer.
    let_in = status < 300 or status in (400, 405, 413, 415, 422)
    meaning = "anyone can use it" if let_in else "nobody knows whether it is shut"
    return PixtralSkyError(
        f"{what}: {meaning}.", "Take it down, and launch it with the pixtral.yaml of this version."
    )


def picture(facts: Facts) -> str:
    from pixtral_sky.pictures.prepare import prepare

    picture = prepare(task.shipped("examples/chart.png").read_bytes(), "chart.png")
    began = time.monotonic()
    with Client(facts.endpoint, budget=WAIT_SECONDS, read_timeout=PICTURE_SECONDS) as client:
        document = client.complete([QUESTION, picture], max_tokens=ANSWER_TOKENS, temperature=0)
    seconds = time.monotonic() - began
    usage = document.get("usage") or {}
    prompt, answer = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    if prompt < picture.tokens:
        raise PixtralSkyError(
            f"The picture has not reached the model: the prompt was {prompt:,} tokens, and chart.png "
            f"alone is {picture.tokens:,}.",
            "Does it serve Pixtral?",
        )
    if not answer and not document["choices"][0]["message"].get("content"):
        raise PixtralSkyError("The answer about chart.png is empty.", "Its log tells more.")
    return (
        f"an answer about chart.png ({picture.tokens:,} tokens): {prompt:,} tokens in the prompt, "
        f"{answer} in the answer, {seconds:.1f} s"
    )


def _status(facts: Facts, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of a response to a request without the key. Raises EndpointError without a response."""
    url = facts.endpoint.url
    try:
        with (
            httpx.Client(
                timeout=WAIT_SECONDS,
                trust_env=not _is_this_machine(url),
                headers={"User-Agent": f"pixtral-sky/{__version__}", **(headers or {})},
                verify=httpx.create_ssl_context(),
            ) as http,
            http.stream(method, url + path, json={} if method == "POST" else None) as answer,
        ):
            return answer.status_code
    # Errors that are not httpx's: SSL_CERT_FILE names no file, the address of a proxy is wrong.
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        # The client explains the error. Where it gets a response, only this request failed.
        with (
            Client(replace(facts.endpoint, key=""), budget=0, read_timeout=WAIT_SECONDS) as client,
            contextlib.suppress(Unauthorized),
        ):
            client.models()
        raise Unreachable(f"{url} hangs up on {method} {path}.", facts.endpoint.hint) from error


def _is_this_machine(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
