"""The gateway before a real uvicorn, spoken to in raw HTTP: a client library would tidy up what we try."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn

from pixtral_sky.server import gateway as gateway_module
from pixtral_sky.server.gateway import Gateway

KEY = "k" * 43
AUTH = f"Authorization: Bearer {KEY}\r\n"
MIB = 2**20


class Inner:
    """An app that answers every request, so that whatever gets past the gateway is seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[int] = []
        self.hold = threading.Event()
        self.hold.set()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.seen.append((scope.get("method", "WEBSOCKET"), scope["path"]))
        size, more = 0, True
        while more:
            try:
                message = await receive()
            except Exception:  # as frameworks do on a body that cannot be read: they answer
                await send({"type": "http.response.start", "status": 400, "headers": []})
                await send({"type": "http.response.body", "body": b"broke off"})
                return
            except BaseException:
                self.bodies.append(-1)
                raise
            size += len(message["body"])
            more = message["more_body"]
        self.bodies.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            while not self.hold.is_set():
                await asyncio.sleep(0.01)
        await send({"type": "http.response.body"})


class Server:
    """A Gateway before an Inner on a free loopback port."""

    def __init__(self, http: str, root_path: str = "") -> None:
        self.inner = Inner()
        self.gateway = Gateway(self.inner)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = uvicorn.Config(
            self.gateway,
            host="127.0.0.1",
            port=self.port,
            http=http,
            log_level="error",
            root_path=root_path,
            ws="websockets-sansio" if "websockets-sansio" in uvicorn.config.WS_PROTOCOLS else "auto",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def raw(self, data: bytes, *, more: bytes = b"", timeout: float = 5) -> tuple[int, bytes]:
        """Status and everything after the status line of what comes back to these very bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            try:
                if more:
                    connection.sendall(more)
            except OSError:
                pass
            received = b""
            connection.settimeout(timeout)
            while not self.whole(received, data.startswith(b"HEAD ")):
                part = connection.recv(65536)
                if not part:
                    break
                received += part
        status, _, rest = received.partition(b"\r\n")
        return int(status.split()[1]) if status else 0, rest

    @staticmethod
    def whole(received: bytes, is_head: bool) -> bool:
        """Whether an answer is there with its body, which one to HEAD has not: they may come apart."""
        head, end, body = received.partition(b"\r\n\r\n")
        if end and is_head:
            return True
        if b"chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return bool(end) and len(body) >= int(length[1] if length else 0)

    def get(self, line: str, headers: str = AUTH, **options) -> tuple[int, bytes]:
        return self.raw(f"{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode(), **options)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def one_server(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        patch.setenv("MAX_BODY_MIB", "1")
        server = Server(request.param)
    yield server
    server.close()


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
    "POST /v1/messages/count_tokens",
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
    "GET /v1/models/",
    "GET /v1/models/.",
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
    "HEAD /health",
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
    headers = "Content-Length: 0\r\n"
    status, body = server.get(route, headers)
    assert status == 401
    error = json.loads(body.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "invalid_api_key"
    assert error["type"] == "invalid_request_error"
    assert b"www-authenticate: Bearer" in body
    assert server.inner.seen == []
    assert server.get(route, headers + AUTH)[0] == 200
    assert server.inner.seen == [tuple(route.split())]


@pytest.mark.parametrize("route", CLOSED)
def test_what_is_not_listed_does_not_exist_even_with_the_key(server, route):
    status, body = server.get(route, AUTH + "Content-Length: 0\r\n")
    assert status == 404
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"
    assert server.inner.seen == []


@pytest.mark.parametrize("route", TRICKS)
@pytest.mark.parametrize("headers", ["", AUTH], ids=["no key", "key"])
def test_a_route_has_one_spelling(server, route, headers):
    assert server.get(route, headers + "Content-Length: 0\r\n")[0] in (400, 404)  # 400: uvicorn's own refusal
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


def test_a_streamed_answer_passes_in_its_pieces(server):
    server.inner.hold.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 0\r\n\r\n".encode()
        )
        received = b""
        while b"one " not in received:  # and the rest is held back: nothing waits for the whole
            received += connection.recv(65536)
        assert b"two" not in received
        server.inner.hold.set()
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    assert b"one \r\n" in received
    assert b"two \r\n" in received


def post(length: str) -> bytes:
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{AUTH}{length}\r\n\r\n".encode()


def chunks(total: int, size: int = 65536) -> bytes:
    return b"".join(b"%x\r\n" % size + b"x" * size + b"\r\n" for _ in range(total // size)) + b"0\r\n\r\n"


def test_a_body_of_the_limit_passes(server):
    assert server.raw(post(f"Content-Length: {MIB}"), more=b"x" * MIB)[0] == 200
    assert server.raw(post("Transfer-Encoding: chunked"), more=chunks(MIB))[0] == 200
    assert server.inner.bodies == [MIB, MIB]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server):
    status, body = server.raw(post(f"Content-Length: {MIB + 1}"))
    assert status == 413
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"
    assert server.inner.seen == []


def test_a_chunked_body_is_refused_while_it_comes(server):
    # It never ends, and is answered all the same.
    status, _ = server.raw(post("Transfer-Encoding: chunked"), more=chunks(2 * MIB)[:-5])
    assert status == 413
    assert server.inner.bodies == [-1]  # the app was ended


@pytest.mark.parametrize(
    "length",
    [
        "Content-Length: -1",
        "Content-Length: 1e9",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: ",
        f"Content-Length: 5\r\nContent-Length: {2 * MIB}",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_lying_length_gets_nothing_past_the_limit(server, length):
    status, _ = server.raw(post(length), more=chunks(2 * MIB))
    assert status in (200, 400, 413)  # 200: the server took the five bytes that were declared
    assert all(size <= 5 for size in server.inner.bodies)


def test_a_body_of_a_stranger_is_not_read(server):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB // 2}\r\n\r\n"
    assert server.raw(head.encode())[0] == 401  # before a byte of it has come
    assert server.inner.seen == []


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

    def get(line: str, host: str) -> int:
        return server.raw(f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())[0]

    try:
        for host in ("localhost:8081", "127.0.0.1:8081", "localhost"):
            assert get("GET /v1/models", host) == 200
            assert get("POST /invocations", host) == 404
        # A page that a browser took from there could send any request, and read the answer.
        for host in ("evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            assert get("GET /v1/models", host) == 401
            assert get("GET /health", host) == 200
    finally:
        server.close()


class Hasty(asyncio.SelectorEventLoop):
    """A loop that waits for nothing: its time goes on at once to what is due next."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped, select = 0.0, self._selector.select

        def skip(timeout: float | None = None):
            self.skipped += timeout or 0
            return select(0)

        self._selector.select = skip

    def time(self) -> float:
        return super().time() + self.skipped


def run_clock(monkeypatch, requests, idle_minutes="0.02", seconds=4.0):
    """Seconds until the clock (0.02 minutes: 1.2 s) ends the server while ``requests(gateway)`` runs; None: it did not."""
    monkeypatch.setenv("IDLE_MINUTES", idle_minutes)
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    killed, loop = [], Hasty()
    monkeypatch.setattr(gateway_module, "time", SimpleNamespace(monotonic=loop.time, time=time.time))
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number, loop.time())))
    started = asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            started.set()
            await asyncio.sleep(60)
        elif b"slow" in scope.get("query_string", b""):
            await asyncio.sleep(2.5)
        elif b"stalls" in scope.get("query_string", b""):
            await asyncio.sleep(60)

    async def main():
        gateway = Gateway(app)
        lifespan = asyncio.create_task(gateway({"type": "lifespan"}, None, None))
        await started.wait()
        begin = loop.time()
        work = asyncio.create_task(requests(gateway))
        while loop.time() - begin < seconds and not killed:
            await asyncio.sleep(0.02)
        work.cancel()
        lifespan.cancel()
        await asyncio.gather(work, lifespan, return_exceptions=True)
        if not killed:
            return None
        assert killed[0][:2] == (os.getpid(), signal.SIGTERM)
        return killed[0][2] - begin

    with contextlib.closing(loop):
        return loop.run_until_complete(main())


async def one(gateway, method, path, query=b"", key=KEY):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(b"authorization", b"Bearer " + key.encode())],
    }
    await gateway(scope, receive, send)


async def nothing(gateway):
    await asyncio.sleep(60)


def test_the_clock_ends_an_idle_server(monkeypatch):
    assert 1.0 < run_clock(monkeypatch, nothing) < 2.0


@pytest.mark.parametrize("idle", ["0", ""])
def test_zero_is_never(monkeypatch, idle):
    assert run_clock(monkeypatch, nothing, idle, seconds=0.8) is None


def test_requests_keep_it_alive(monkeypatch):
    async def work(gateway):
        for _ in range(4):
            await asyncio.sleep(0.4)
            await one(gateway, "POST", "/v1/chat/completions")
        await asyncio.sleep(60)

    assert 2.6 < run_clock(monkeypatch, work, seconds=6) < 3.8


def test_a_request_in_flight_keeps_it_alive(monkeypatch):
    async def work(gateway):
        await one(gateway, "POST", "/v1/completions", b"slow")
        await asyncio.sleep(60)

    assert 3.5 < run_clock(monkeypatch, work, seconds=6) < 4.7


def test_probes_and_strangers_do_not_keep_it_alive(monkeypatch):
    async def work(gateway):
        while True:
            for method, path, key in (
                ("GET", "/health", KEY),
                ("GET", "/metrics", KEY),
                ("GET", "/v1/models", KEY),
                ("POST", "/invocations", KEY),
                ("POST", "/v1/chat/completions", "wrong"),
            ):
                await one(gateway, method, path, key=key)
                await asyncio.sleep(0.02)

    assert run_clock(monkeypatch, work) < 2.0


def test_the_clock_goes_on_in_a_server_that_is_started_again(monkeypatch, tmp_path):
    monkeypatch.setenv("GATEWAY_STATE", str(tmp_path))
    last = tmp_path / "last_request"

    async def work(gateway):
        await one(gateway, "POST", "/v1/completions")
        await asyncio.sleep(60)

    assert 1.0 < run_clock(monkeypatch, work) < 2.0  # there was none before it
    assert (tmp_path / "idle").exists()
    assert time.time() - last.stat().st_mtime < 3
    os.utime(last, (time.time() - 0.6,) * 2)  # the other half of its 1.2 s are over
    assert 0.4 < run_clock(monkeypatch, nothing) < 1.15  # and not 1.2
    os.utime(last, (time.time() - 60,) * 2)
    assert run_clock(monkeypatch, nothing) < 1.15


def test_a_server_that_never_ends_by_itself_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("GATEWAY_STATE", str(tmp_path))
    assert (
        run_clock(monkeypatch, lambda gateway: one(gateway, "POST", "/v1/completions"), "0", seconds=0.2)
        is None
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_reason_to_refuse_a_request(monkeypatch, tmp_path):
    monkeypatch.setenv("GATEWAY_STATE", str(tmp_path / "gone"))
    assert 1.0 < run_clock(monkeypatch, lambda gateway: one(gateway, "POST", "/v1/completions")) < 2.0


def test_a_request_that_stalls_keeps_it_alive_for_a_while_only(monkeypatch):
    """A laptop that is shut in the middle of an upload must not be billed for until its connection dies."""
    monkeypatch.setattr("pixtral_sky.server.gateway.STALLED", 2)

    async def work(gateway):
        await one(gateway, "POST", "/v1/completions", b"stalls")

    assert 3.0 < run_clock(monkeypatch, work, seconds=8) < 5.0
