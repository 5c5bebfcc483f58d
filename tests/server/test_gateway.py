"""The gateway before a real uvicorn, spoken to in raw HTTP: a client library would tidy up what we try."""

from __future__ import annotations

import json

import pytest

from pixtral_sky.server.gateway import BehindPlatform
from tests.support.gateway import AUTH, KEY, Server

MIB = 2**20
EMPTY = "Content-Length: 2\r\n"  # the body is {}


@pytest.fixture
def server(one_server):
    one_server.inner.seen.clear()
    one_server.inner.bodies.clear()
    return one_server


ROUTES = [
    "GET /v1/models",
    "GET /metrics",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /tokenize",
]
# All that vLLM 0.32 has besides, and what a scanner would try.
CLOSED = [
    "POST /invocations",
    "GET /ping",
    "POST /ping",
    "GET /docs",
    "GET /docs/oauth2-redirect",
    "GET /redoc",
    "GET /openapi.json",
    "GET /version",
    "GET /load",
    "POST /detokenize",
    "GET /v1/responses/resp_1",
    "POST /v1/responses/resp_1/cancel",
    "POST /v1/chat/completions/batch",
    "POST /v1/chat/completions/render",
    "POST /generative_scoring",
    "POST /scale_elastic_ep",
    "POST /is_scaling_elastic_ep",
    "POST /inference/v1/generate",
    "POST /v1/load_lora_adapter",
    "POST /sleep",
    "POST /collective_rpc",
    "GET /kv_event_sources",
    "GET /",
    "GET /server_info",
    "POST /v1/embeddings",
]
TRICKS = [
    "GET /V1/models",
    "GET //v1/models",
    "GET /v1//models",
    "GET /./v1/models",
    "GET /v1/../v1/models",
    "GET /v1%2fmodels",
    "GET /v1%2Fmodels",
    "GET /%761/models",
    "GET /v1/models%00",
    "GET /v1/models%20",
    "GET /v1/models;a=b",
    "GET /v1/models%3f",
    "GET /v1\\models",
    "GET /health/../docs",
    "GET /health/",
    "GET /Health",
    "GET /health%2f..%2finvocations",
    "GET /health%3f",
    "POST /invocations#/health",
    "POST /health",
    "HEAD /health%2f",
    "HEAD /v1/models/pixtral",
    "POST /v1/models/pixtral",
    "OPTIONS /health",
    "HEAD /v1/models",
    "OPTIONS /v1/models",
    "TRACE /v1/models",
    "POST /v1/models",
    "PUT /v1/chat/completions",
    "GET /v1/chat/completions",
    "OPTIONS /v1/chat/completions",
    "POST /metrics",
    "FOO /health",
    "GET http://x/invocations",
    "POST /invocations?/health",
    "POST /invocations%3f",
]


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_needs_the_key(server, route):
    for headers, code in ((EMPTY, "missing_api_key"), (f"{EMPTY}{AUTH[:-4]}\r\n", "invalid_api_key")):
        status, body = server.get(route, headers, more=b"{}")
        assert status == 401
        error = json.loads(body.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["type"]) == (code, "invalid_request_error")
        assert b"www-authenticate: Bearer" in body
    assert server.inner.seen == []
    assert server.get(route, EMPTY + AUTH, more=b"{}")[0] == 200
    assert server.inner.seen == [tuple(route.split())]


@pytest.mark.parametrize("route", ["/v1/messages", "/v1/messages/count_tokens"])
def test_the_messages_routes_take_the_key_as_anthropic_s_clients_send_it(server, route):
    x_api_key = f"X-Api-Key: {KEY}\r\n"
    assert server.post(route, {}, x_api_key)[0] == 200
    # As vLLM, which has the key as a second lock, reads it.
    assert server.inner.headers[b"authorization"] == f"Bearer {KEY}".encode()
    assert b"x-api-key" not in server.inner.headers
    server.inner.seen.clear()
    for wrong in (f"X-Api-Key: {KEY}x\r\n", f"X-Api-Key: Bearer {KEY}\r\n", AUTH + x_api_key, x_api_key * 2):
        assert server.post(route, {}, wrong)[0] == 401
    assert "'x-api-key: KEY'" in server.post(route, {}, "")[1]
    assert server.inner.seen == []


@pytest.mark.parametrize("name", ["pixtral", "mistralai/Pixtral-12B-2409", "mistralai%2FPixtral-12B-2409"])
def test_one_model(server, name):
    status, body = server.get(f"GET /v1/models/{name}")
    assert status == 200
    assert json.loads(body.partition(b"\r\n\r\n")[2])["id"] == name.replace("%2F", "/")
    assert server.get(f"GET /v1/models/{name}", "")[0] == 401


@pytest.mark.parametrize("name", ["", ".", "..", "x", "pixtral/", "..%2fmetrics", "pixtral%00"])
def test_no_other_model_is_there(server, name):
    status, body = server.get(f"GET /v1/models/{name}")
    assert status == 404
    error = json.loads(body.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "model_not_found"
    assert "pixtral, mistralai/Pixtral-12B-2409" in error["message"]
    assert set(server.inner.seen) == {("GET", "/v1/models")}


def test_what_is_not_there_says_what_is(server):
    status, text = server.post("/chat/completions", {})
    assert status == 404
    assert "base URL ends in /v1" in text
    assert "POST /v1/chat/completions, " in text


def test_the_health_without_its_body(server):
    assert server.get("HEAD /health", "")[0] == 200
    assert server.inner.seen == [("GET", "/health")]


@pytest.mark.parametrize("route", CLOSED)
def test_what_is_not_listed_does_not_exist_even_with_the_key(server, route):
    status, body = server.get(route, AUTH + EMPTY, more=b"{}")
    assert status == 404
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"
    assert server.inner.seen == []


@pytest.mark.parametrize("route", TRICKS)
@pytest.mark.parametrize("headers", ["", AUTH], ids=["no key", "key"])
def test_a_route_has_one_spelling(server, route, headers):
    assert server.get(route, headers + EMPTY, more=b"{}")[0] in (400, 404)  # 400: uvicorn's own refusal
    assert server.inner.seen == []


@pytest.mark.parametrize(
    "header",
    [
        "X-HTTP-Method-Override: POST",
        "X-Original-URL: /invocations",
        "X-Rewrite-URL: /invocations",
        "X-Forwarded-Prefix: /invocations",
        "Host: other/invocations",
    ],
)
def test_no_header_changes_the_route(server, header):
    assert server.get("GET /health", header + "\r\n")[0] in (200, 400)  # 400: a second Host
    assert set(server.inner.seen) <= {("GET", "/health")}


def test_health_is_open(server):
    assert server.get("GET /health", "")[0] == 200
    assert server.get("GET /health?x=1", "")[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Authorization:\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        f"Authorization: {KEY}\r\n",
        f"Authorization: Basic {KEY}\r\n",
        f"Authorization: Bearer  {KEY}\r\n",
        f"Authorization: Bearer {KEY}x\r\n",
        f"Authorization: Bearer {KEY[:-1]}\r\n",
        f"Authorization: Bearer {KEY.upper()}\r\n",
        f"Authorization: Bearer {KEY}, Bearer x\r\n",
        AUTH + AUTH,
        AUTH + "Authorization: Bearer x\r\n",
        "Authorization: Bearer x\r\n" + AUTH,
        f"X-Api-Key: {KEY}\r\n",
        f"Cookie: Authorization=Bearer {KEY}\r\n",
        "Authorization: Bearer \u00ff\r\n",
        f"Proxy-Authorization: Bearer {KEY}\r\n",
    ],
)
def test_only_the_key_is_the_key(server, authorization):
    assert server.get("GET /v1/models", authorization)[0] in (400, 401)
    assert server.inner.seen == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_as_http_reads_it(server, scheme):
    assert server.get("GET /v1/models", f"authorization: {scheme} {KEY}\r\n")[0] == 200


def test_a_websocket_is_closed(server):
    handshake = (
        f"GET /v1/realtime HTTP/1.1\r\nHost: x\r\n{AUTH}Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert server.raw(handshake.encode())[0] == 403
    assert server.inner.seen == []


def test_under_a_root_path_nothing_exists(monkeypatch):
    # The app would strip it: what the gateway compares would not be what the app then routes.
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    server = Server("h11", root_path="/v1")
    try:
        assert server.get("GET /v1/models")[0] == 404
        assert server.get("GET /models")[0] == 404
        assert server.get("GET /health")[0] == 404
    finally:
        server.close()


def test_without_a_key_the_routes_are_the_same_for_this_machine(monkeypatch):
    monkeypatch.setenv("PIXTRAL_API_KEY", "")
    server = Server("h11")

    def get(line: str, host: str, more: str = "") -> int:
        return server.raw(f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{more}\r\n".encode())[0]

    try:
        for host in ("localhost:8081", "127.0.0.1:8081", "localhost"):
            assert get("GET /v1/models", host) == 200
            assert get("POST /invocations", host) == 404
        # A page that a browser took from there could send any request, and read the answer.
        for host in ("evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            assert get("GET /v1/models", host) == 403
            assert get("GET /health", host) == 200
        # Nor can a page that asks localhost itself, without more than a browser sends for any page.
        assert get("GET /v1/models", "localhost", "Origin: https://evil.example\r\n") == 403
    finally:
        server.close()


PAGE = "https://app.example"


@pytest.fixture(scope="module")
def with_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        patch.setenv("ALLOWED_ORIGINS", f"{PAGE},http://localhost:3000")
        server = Server()
    yield server
    server.close()


def preflight(server: Server, origin: str, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    asked = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-stainless-os\r\n"
    status, answer = server.get(f"OPTIONS {path}", f"Origin: {origin}\r\n{asked}")
    return status, answer.lower()


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_a_page_that_is_named_may_ask(with_pages, origin):
    status, answer = preflight(with_pages, origin)
    assert status == 200
    assert f"access-control-allow-origin: {origin}".encode() in answer
    assert b"access-control-allow-headers: authorization,x-stainless-os" in answer
    assert with_pages.inner.seen == []
    for headers in (AUTH, ""):  # the page reads the refusal too
        answer = with_pages.get("GET /v1/models", f"Origin: {origin}\r\n{headers}")[1].lower()
        assert f"access-control-allow-origin: {origin}".encode() in answer
    assert b"origin" not in with_pages.inner.headers  # by which vLLM would let in every page
    with_pages.inner.seen.clear()


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", f"{PAGE}.evil.example", f"{PAGE}:8443", "http://app.example", "null", "*", ""],
)
def test_other_pages_stay_out(with_pages, server, origin):
    for each in (with_pages, server):
        status, answer = preflight(each, origin)
        assert status >= 400
        assert b"access-control-allow-origin" not in answer
        answer = each.get("GET /v1/models", f"Origin: {origin}\r\n{AUTH}")[1].lower()
        assert b"access-control-allow-origin" not in answer
    with_pages.inner.seen.clear()


def test_behind_a_platform_that_asks_for_its_own_key():
    server = Server(kind=BehindPlatform)
    try:
        assert server.post("/v1/chat/completions", {}, "Authorization: Api-Key of-the-platform\r\n")[0] == 200
        assert server.inner.headers[b"authorization"] == b"Api-Key of-the-platform"
        assert server.post("/invocations", {}, "")[0] == 404
    finally:
        server.close()
