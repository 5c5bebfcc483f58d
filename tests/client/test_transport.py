"""HTTP as servers and proxies really speak it, and as they should not."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky import errors
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.transport import MAX_HEAD, NoConnection, NotHTTP, Transport, events
from tests.conftest import ROOT
from tests.support import fake_endpoint as fake
from tests.support.fake_endpoint import FakeEndpoint, says

NAME = "pixtral.internal"
MESSAGES = [{"role": "user", "content": "Hello?"}]


@contextmanager
def server(
    *answers: bytes, close: bool = False, late: bytes = b""
) -> Iterator[tuple[str, list[list[bytes]]]]:
    """Answers the requests of each connection with these bytes, in order, and keeps them.

    It then hangs up, or says something ``late``, which is kept as well.
    """
    connections: list[list[bytes]] = []

    def talk(connection: socket.socket) -> None:
        requests: list[bytes] = []
        connections.append(requests)
        with connection, contextlib.suppress(ConnectionError):  # the client may hang up first
            for answer in answers:
                data = b""
                while b"\r\n\r\n" not in data:
                    if not (piece := connection.recv(2**16)):
                        return
                    data += piece
                requests.append(data)
                connection.sendall(answer)
            if late:
                time.sleep(0.05)
                connection.sendall(late)
                requests.append(late)
            if not close:
                connection.recv(1)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=talk, args=(connection,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
    for thread in threads:
        thread.join(5)


@contextmanager
def transport(url: str, connections: int = 1) -> Iterator[Transport]:
    made = Transport(url, {}, connections=connections)
    try:
        yield made
    finally:
        made.close()


def get(made: Transport) -> bytes:
    return made.request("GET", "/", timeout=5, patience=5).read(2**20)


# What servers say


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n1\r\nb\r\n0\r\nT: c\r\n\r\n",
            b"ab",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nab", b"ab"),  # as RFC 9112 has it, 5.2
    ],
)
def test_an_answer_after_which_the_connection_stays(answer: bytes, body: bytes) -> None:
    with server(answer, answer) as (url, connections), transport(url) as made:
        assert [get(made), get(made)] == [body, body]
    assert [len(requests) for requests in connections] == [2]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.0 200 OK\r\n\r\nab",  # until it hangs up
        b"HTTP/1.1 200 OK\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\ncd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab\x00",
    ],
)
def test_an_answer_after_which_it_does_not(answer: bytes) -> None:
    """What came behind an answer is never taken for the next one."""
    with server(answer, close=True) as (url, connections), transport(url) as made:
        assert [get(made), get(made)] == [b"ab", b"ab"]
    assert [len(requests) for requests in connections] == [1, 1]


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\ncd", b"\x00"])
def test_what_came_behind_an_answer_is_not_the_next_one(more: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    with server(answer + more) as (url, connections), transport(url) as made:
        assert [get(made), get(made)] == [b"ab", b"ab"]
    assert len(connections) == 2


def test_what_comes_between_two_requests_is_no_answer() -> None:
    """Such as the 408 of a server that hangs up after a long pause."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    with server(answer + b"ab", late=answer + b"no") as (url, connections), transport(url) as made:
        assert get(made) == b"ab"
        while len(connections[0]) < 2:
            time.sleep(0.01)
        assert get(made) == b"ab"
    assert len(connections) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD,
        b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_HEAD,
        b"220 mail.example ESMTP\r\n",  # and no empty line behind it
        b"HTTQ",
    ],
)
def test_what_is_no_http(answer: bytes) -> None:
    with server(answer) as (url, _), transport(url) as made, pytest.raises(NotHTTP):
        get(made)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nA: b\r\n"])
def test_a_head_that_breaks_off(answer: bytes) -> None:
    with server(answer, close=True) as (url, _), transport(url) as made, pytest.raises(ConnectionError):
        get(made)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n",
    ],
)
def test_a_body_that_breaks_off(answer: bytes) -> None:
    with server(answer, close=True) as (url, _), transport(url) as made:
        response = made.request("GET", "/", timeout=5, patience=5)
        with pytest.raises(ConnectionError, match="broke off"):
            response.read(2**20)
        assert (response.status, response.arrived) == (200, 2)


def test_a_body_that_stalls() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab") as (url, _), transport(url) as made:
        response = made.request("GET", "/", timeout=0.1, patience=5)
        with pytest.raises(ConnectionError, match="stalled"):
            response.read(2**20)


def test_a_refusal_before_all_has_arrived_is_heard() -> None:
    """The server says why, and hangs up in the middle of a large body."""

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**20):  # else the answer could be lost on its way
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse)
        thread.start()
        with (
            Client(Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}"), budget=0) as client,
            pytest.raises(errors.Refused, match=r"The request is 29\.0 MiB, more than"),
        ):
            client.send({"messages": "A" * 29 * 2**20})
        thread.join(5)


def test_a_large_body_arrives_whole() -> None:
    text = "".join(f"{number:07}" for number in range(30 * 2**20 // 7))
    with FakeEndpoint() as endpoint, Client(endpoint.endpoint()) as client:
        client.send({"messages": text})
    assert endpoint.requests[0].json["messages"] == text


def test_events() -> None:
    stream = (
        b": a comment\n\ndata: one\n\nevent: x\nid: 7\ndata:two\r\ndata:  lines\r\n\r\n"
        b"data\n\nretry: 5\n\ndata: z\xcc\x81\xff\n\ndata: never ended\n"
    )
    expected = ["one", "two\n lines", "", "z\u0301\ufffd"]
    for size in (1, 2, 7, len(stream)):
        pieces = (stream[start : start + size] for start in range(0, len(stream), size))
        assert list(events(pieces)) == expected


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://localhost:{port}", b"GET /v1/models HTTP/1.1", b"localhost:{port}"),
        (
            "http://127.0.0.1:{port}/a%20b/\u00fc \r\n?",
            b"GET /a%20b/%C3%BC%20/v1/models HTTP/1.1",
            b"127.0.0.1:{port}",
        ),
    ],
)
def test_the_first_lines(url: str, line: bytes, host: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with server(answer) as (real, connections):
        port = real.rpartition(":")[2]
        with transport(url.replace("{port}", port)) as made:
            made.request("GET", "/v1/models", timeout=5, patience=5).close()
    lines = connections[0][0].split(b"\r\n")
    assert lines[0] == line
    assert lines[1] == b"Host: " + host.replace(b"{port}", port.encode())


def test_a_silent_address_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = socket.create_connection

    def connect(address: tuple[str, int], timeout: float, **_: Any) -> socket.socket:
        asked.append(address[0])
        clock[0] += 10 if address[0] == NAME else 0  # its first address is silent, and its second one is not
        if address[0] == "127.0.0.1" and len(asked) == 3:
            raise OSError
        return real(("127.0.0.1", address[1]), timeout)

    clock = [0.0]
    with (
        server(b"HTTP/1.1 200 OK\r\n\r\n", close=True) as (url, _),
        transport(url.replace("127.0.0.1", NAME)) as made,
        monkeypatch.context() as patch,
    ):
        patch.setattr(socket, "create_connection", connect)
        patch.setattr("time.monotonic", lambda: clock[0])
        get(made)
        get(made)
        with pytest.raises(NoConnection):
            get(made)
        get(made)
    assert asked == [NAME, "127.0.0.1", "127.0.0.1", NAME]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a certificate for NAME."""
    folder = tmp_path_factory.mktemp("certificate") / "tls"
    command = ["bash", ROOT / "examples/certificate.sh", NAME, folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """An endpoint that speaks TLS as NAME, and is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with FakeEndpoint(tls=context) as endpoint:
        yield endpoint


def resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME is this machine's."""
    real = socket.getaddrinfo

    def known(host: str, *more: object, **named: object) -> object:
        return real("127.0.0.1" if host == NAME else host, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", known)


def test_over_tls(secure: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch)
    with Client(Endpoint(f"https://{NAME}:{secure.port}"), budget=0) as client:
        for size in (0, 3_000_000):
            assert client.send({"messages": "A" * size})["choices"][0]["message"]["content"]
    assert [len(request.json["messages"]) for request in secure.requests] == [0, 3_000_000]
    assert secure.connections == 1


def test_the_systems_authorities_are_trusted_too(
    secure: FakeEndpoint, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch)
    monkeypatch.delenv("SSL_CERT_FILE")
    endpoint = Endpoint(f"https://{NAME}:{secure.port}")
    with Client(endpoint, budget=0) as client, pytest.raises(errors.Untrusted):
        client.models()
    system = lambda context, *_: context.load_verify_locations(certificate / "ca.pem")  # noqa: E731
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", system)
    with Client(endpoint, budget=0) as client:
        assert client.models()


def test_close_over_tls(secure: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch)
    secure._steps = [fake.streams("first", wait=30)]
    said: list[BaseException] = []
    begun = threading.Event()

    def ask() -> None:
        try:
            for _ in client.ask(MESSAGES):
                begun.set()
        except errors.BrokenAnswer as error:
            said.append(error)

    with Client(Endpoint(f"https://{NAME}:{secure.port}"), budget=0) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(5)
        time.sleep(0.05)  # it waits for more by now
    thread.join(5)
    assert [str(error) for error in said] == ["The answer broke off after 5 characters. Ask again."]


# Proxies


class Proxy:
    """Passes on all that is asked of it by CONNECT, to this machine, and answers the rest itself."""

    def __init__(self, refusal: bytes | None = None) -> None:
        self.requests: list[list[str]] = []
        self._refusal = refusal
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._thread(self._talk, connection)

    def _thread(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            head = connection.recv(2**16).decode()
            self.requests.append(head.strip().split("\r\n"))
            if self._refusal is not None:
                connection.sendall(self._refusal)
                return
            port = int(head.split()[1].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._thread(self._pass, server, connection)
                self._pass(connection, server)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self) -> Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


def test_tls_through_a_proxy(secure: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@localhost:{proxy.port}")
        with Client(Endpoint(f"https://{NAME}:{secure.port}", "sk-SENTINEL"), budget=0) as client:
            assert [client.complete(MESSAGES)["usage"] for _ in range(2)] == [fake.USAGE] * 2
    credentials = base64.b64encode(b"me:p@ss").decode()
    assert proxy.requests == [
        [
            f"CONNECT {NAME}:{secure.port} HTTP/1.1",
            f"Host: {NAME}:{secure.port}",
            f"Proxy-Authorization: Basic {credentials}",
        ]
    ]
    assert "proxy-authorization" not in secure.requests[0].headers


def test_tls_to_an_address_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with (
            Client(Endpoint("https://[2001:db8::1]:8443"), budget=0) as client,
            pytest.raises(errors.Unreachable),
        ):
            client.models()
    assert proxy.requests[0] == ["CONNECT [2001:db8::1]:8443 HTTP/1.1", "Host: [2001:db8::1]:8443"]


@pytest.mark.parametrize("refusal", [b"SSH-2.0-OpenSSH_9.9\r\n\r\n", b"H"])
def test_a_proxy_that_is_none(refusal: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(refusal) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with (
            Client(Endpoint(f"https://{NAME}"), budget=0) as client,
            pytest.raises(errors.Unreachable, match=r"^The proxy does not lead to"),
        ):
            client.models()


def test_a_proxy_that_hangs_up_may_be_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(b"") as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with (
            Client(Endpoint(f"https://{NAME}"), budget=0) as client,
            pytest.raises(errors.Unreachable, match=r"^Nothing answers at"),
        ):
            client.models()


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_proxy_that_does_not_lead_there(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        with (
            Client(Endpoint(f"https://{NAME}"), budget=0) as client,
            pytest.raises(
                errors.Unreachable, match=r"^The proxy does not lead to https://pixtral\.internal\."
            ),
        ):
            client.models()
    assert proxy.requests[0][0] == f"CONNECT {NAME}:443 HTTP/1.1"


def test_plain_http_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint([says("Hello")]) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me@127.0.0.1:{proxy.port}")
        with Client(Endpoint(f"http://{NAME}/a", "key"), budget=0) as client:
            client.complete(MESSAGES)
    (request,) = proxy.requests
    assert request.path == f"http://{NAME}/a/v1/chat/completions"
    assert request.headers["host"] == NAME
    assert request.headers["authorization"] == "Bearer key"
    assert request.headers["proxy-authorization"] == f"Basic {base64.b64encode(b'me:').decode()}"


@pytest.mark.parametrize("value", [NAME, "internal", ".internal", "*", "other, pixtral.internal"])
def test_no_proxy(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", value)
    with FakeEndpoint() as endpoint, Client(Endpoint(f"http://{NAME}:{endpoint.port}"), budget=0) as client:
        assert client.models()


@pytest.mark.parametrize("proxy", ["https://h", "socks5h://h", "http://", "http://a..b", "http://h:x", "://"])
def test_a_proxy_of_a_kind_that_is_not_known(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(errors.UsageError, match="HTTP_PROXY"):
        Client(Endpoint(f"http://{NAME}"))
