"""A connection without a request is closed after a while; one with a request never is."""

from __future__ import annotations

import socket
import time

import pytest

from pixtral_sky.server import heads
from tests.support.gateway import AUTH, KEY, Server

REQUEST = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 2\r\n\r\n".encode()


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        patch.setattr(heads, "SECONDS", 0.3)
        made = Server("h11")
        yield made
        made.close()


@pytest.mark.parametrize(
    "first", [b"", b"G", REQUEST[:-30], REQUEST + b"{}"], ids=["silent", "a byte", "half", "then silent"]
)
@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_head_that_does_not_come_ends_the_connection(server, first, drip):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(first)
        if first.endswith(b"{}"):
            while not connection.recv(65536).endswith(b"0\r\n\r\n"):
                pass
            connection.sendall(b"POST /v1")  # and no more of it
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < 3:
                connection.sendall(drip)
                connection.settimeout(0.05)
                try:
                    if not connection.recv(65536):
                        break
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
        assert 0.2 < time.monotonic() - begin < 1.5


def test_a_request_has_its_time(server):
    """Its body may come late, and its answer; the next one comes by the same connection."""
    server.inner.hold.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            time.sleep(0.5)
            connection.sendall(b"{}")
            received = connection.recv(65536)
            time.sleep(0.5)
            server.inner.hold.set()
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200")
