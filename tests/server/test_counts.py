"""What /metrics says of the gateway."""

from __future__ import annotations

import asyncio

import prometheus_client
import pytest

from pixtral_sky.server.body import Share
from pixtral_sky.server.gateway import ROUTES
from pixtral_sky.server.images import Images
from pixtral_sky.server.refusal import Refusal
from tests.support.gateway import AUTH, Server
from tests.support.site import site

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


def counted() -> dict[tuple[str, ...], float]:
    """Each series of the gateway: its name and the values of its labels."""
    return {
        (sample.name.removeprefix("pixtral_gateway_"), *sample.labels.values()): sample.value
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("pixtral_gateway_") and sample.name.endswith("_total")
    }


@pytest.fixture
def new():
    """What has been counted since the test began."""
    before = counted()
    return lambda: {
        name: value - before.get(name, 0) for name, value in counted().items() if value != before.get(name)
    }


def test_requests_are_counted_by_route_and_class_of_status(one_server: Server, new):
    assert one_server.get("GET /health", "")[0] == 200
    assert one_server.get("HEAD /health", "")[0] == 200
    assert one_server.get("GET /metrics")[0] == 200
    for _ in range(3):
        assert one_server.post("/v1/chat/completions", {})[0] == 200
    assert one_server.post("/v1/chat/completions", b"[")[0] == 400
    assert one_server.get("GET /v1/models/pixtral")[0] == 200
    assert new() == {
        ("requests_total", "/health", "2xx"): 2,
        ("requests_total", "/metrics", "2xx"): 1,
        ("requests_total", "/v1/chat/completions", "2xx"): 3,
        ("requests_total", "/v1/chat/completions", "4xx"): 1,
        ("requests_total", "other", "2xx"): 1,
        ("refusals_total", "invalid_json"): 1,
    }


def test_refusals_are_counted_by_their_codes(one_server: Server, new):
    assert one_server.post("/v1/chat/completions", {}, "")[0] == 401
    assert one_server.post("/v1/completions", {}, AUTH.replace("k", "x"))[0] == 401
    assert one_server.post("/v1/chat/completions", {"x" * 9: 1})[0] == 400
    assert one_server.post("/tokenize", b" " * (2**20 + 1))[0] == 413
    assert {name: n for name, n in new().items() if name[0] == "refusals_total"} == {
        ("refusals_total", "missing_api_key"): 1,
        ("refusals_total", "invalid_api_key"): 1,
        ("refusals_total", "unknown_parameter"): 1,
        ("refusals_total", "request_too_large"): 1,
    }


def test_no_word_of_a_client_becomes_a_label(one_server: Server):
    for path in (
        "/",
        "/v1/models/secret",
        "/v1/secret",
        "/%2e%2e/secret",
        "/health/secret",
        "//secret",
        "/metrics/secret",
    ):
        for method in ("GET", "POST", "SECRET"):
            one_server.get(f"{method} {path}", f"{AUTH}Content-Length: 0\r\n")
    labels = {label for name, *labels in counted() for label in labels if name == "requests_total"}
    assert labels <= {path for _, path in ROUTES} | {"other", "2xx", "4xx", "5xx"}
    assert "secret" not in str(counted()).lower()


def test_pictures_are_counted_and_those_that_came(new):
    async def inline(*paths: str) -> None:
        parts = [{"type": "image_url", "image_url": {"url": f"{at}{path}"}} for path in paths]
        await Images("127.0.0.1", 4).inline({"messages": [{"role": "user", "content": parts}]}, Share(2**20))

    with site({"/a.png": PNG, "/b.png": PNG}) as at:
        asyncio.run(inline("/a.png", "/b.png", "/a.png"))
        with pytest.raises(Refusal):
            asyncio.run(inline("/none.png"))
    assert new() == {("pictures_total",): 3, ("pictures_fetched_total",): 2}
