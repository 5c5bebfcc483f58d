"""The body of a request: read whole, within limits, and handed on as it came."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from pixtral_sky.server import body as bodies
from tests.conftest import ROOT
from tests.support.gateway import AUTH

MIB = 2**20


@pytest.fixture
def server(one_server):
    one_server.inner.hold.set()
    one_server.inner.seen.clear()
    one_server.inner.bodies.clear()
    yield one_server
    wait_for(lambda: bodies.Share.held == 0)


def wait_for(is_so):
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def head(length: str) -> bytes:
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{AUTH}{length}\r\n\r\n".encode()


def of_size(size: int) -> bytes:
    return b'{"prompt": "' + b"x" * (size - 14) + b'"}'


def chunks(data: bytes, size: int = 65536) -> bytes:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_a_body_comes_as_it_was_sent(server):
    data = b' {"n":1e0,  "n": 1, "prompt": "\\u00e9\xc3\xa9", "stop":[ ]}\n'
    assert server.raw(head(f"Content-Length: {len(data)}"), more=data)[0] == 200
    assert server.raw(head("Transfer-Encoding: chunked"), more=chunks(data, 5))[0] == 200
    assert server.inner.bodies == [data, data]
    assert server.inner.headers[b"content-length"] == str(len(data)).encode()
    assert b"transfer-encoding" not in server.inner.headers


def test_a_mark_before_the_text_is_none_of_it(server):
    """As Windows' tools write a file in UTF-8; vLLM takes it too."""
    data = b'\xef\xbb\xbf{"n": 1}'
    assert server.post("/v1/completions", data)[0] == 200
    assert json.loads(server.inner.bodies[0]) == {"n": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"prompt=x", b"\x1f\x8b\x08\x00", b'{"a": NaN}', b'{"a": "\\ud800"}',
        b'{"a": "\xff"}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "{}".encode("utf-16"), b"{} {}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(server, data):
    status, message = server.post("/v1/completions", data)
    assert status == 400
    assert message.startswith("The body of the request is no JSON object: ")
    assert server.inner.seen == []


def test_a_streamed_answer_passes_in_its_pieces(server):
    server.inner.hold.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head("Content-Length: 2") + b"{}")
        received = b""
        while b"one " not in received:  # and the rest is held back: nothing waits for the whole
            received += connection.recv(65536)
        assert b"two" not in received
        server.inner.hold.set()
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    assert b"one \r\n" in received
    assert b"two \r\n" in received


def test_the_app_learns_of_a_client_that_hangs_up(server):
    server.inner.hold.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head("Content-Length: 2") + b"{}")
        connection.recv(65536)
    wait_for(lambda: server.inner.hung_up)
    server.inner.hung_up = False


def test_a_client_that_hangs_up_before_the_end_asks_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head("Content-Length: 20") + b"{}")
    assert server.get("GET /health", "")[0] == 200
    assert server.inner.seen == [("GET", "/health")]


def test_a_body_of_the_limit_passes(server):
    assert server.raw(head(f"Content-Length: {MIB}"), more=of_size(MIB))[0] == 200
    assert server.raw(head("Transfer-Encoding: chunked"), more=chunks(of_size(MIB)))[0] == 200
    assert server.inner.bodies == [of_size(MIB)] * 2


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server):
    status, body = server.raw(head(f"Content-Length: {MIB + 1}"))
    assert status == 413
    error = json.loads(body.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], "1 MiB" in error["message"]) == ("request_too_large", True)
    assert server.inner.seen == []


def test_a_chunked_body_is_refused_while_it_comes(server):
    # It never ends, and is answered all the same.
    assert server.raw(head("Transfer-Encoding: chunked"), more=chunks(of_size(2 * MIB))[:-5])[0] == 413
    assert server.inner.seen == []


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
    status, _ = server.raw(head(length), more=chunks(of_size(2 * MIB)))
    assert status in (400, 413)  # the server takes the five bytes that were declared, at most
    assert server.inner.seen == []


def test_a_body_of_a_stranger_is_not_read(server):
    begin = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB // 2}\r\n\r\n"
    assert server.raw(begin.encode())[0] == 401  # before a byte of it has come
    assert server.inner.seen == []


def test_all_bodies_that_arrive_have_one_memory(server, monkeypatch):
    monkeypatch.setattr(bodies, "HELD_BYTES", 3 * MIB // 2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
        slow.sendall(head(f"Content-Length: {MIB}") + b"x" * (MIB - 1))
        wait_for(lambda: bodies.Share.held == MIB - 1)
        status, answer = server.raw(head(f"Content-Length: {MIB}"), more=of_size(MIB))
        assert status == 503
        assert b"retry-after: 2\r\n" in answer.lower()
        assert server.post("/v1/completions", {})[0] == 200
    wait_for(lambda: bodies.Share.held == 0)
    assert server.post("/v1/completions", of_size(MIB))[0] == 200


def test_pictures_are_decoded_some_at_a_time(server, monkeypatch):
    """A request waits until the one before is answered; one that is larger than the limit is let in alone."""
    monkeypatch.setattr(bodies, "PIXELS", 100)
    share, began = bodies.Share(MIB), threading.Event()

    async def first():
        await share.decode(150)
        began.set()
        await asyncio.sleep(0.3)
        share.decoded()

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    began.wait()
    file = io.BytesIO()
    Image.new("1", (2, 2)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    begin = time.monotonic()
    assert server.post("/v1/chat/completions", body)[0] == 200
    assert time.monotonic() - begin > 0.2
    thread.join()
    assert bodies.Share.pixels == 0


def test_a_client_that_vanishes_keeps_none_of_it(server, monkeypatch):
    monkeypatch.setattr(bodies, "SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as vanished:
        vanished.sendall(head(f"Content-Length: {MIB}") + b"x" * (MIB - 1))
        assert vanished.recv(65536).startswith(b"HTTP/1.1 408 ")
        wait_for(lambda: bodies.Share.held == 0)
    assert server.inner.seen == []


def test_an_answer_holds_none_of_it(server):
    server.inner.hold.clear()
    asking = threading.Thread(target=server.post, args=("/v1/completions", of_size(MIB)))
    asking.start()
    wait_for(lambda: server.inner.bodies)
    assert bodies.Share.held == 0
    server.inner.hold.set()
    asking.join()


TIMED = """
import asyncio, base64, io, json, sys, time
from PIL import Image
from pixtral_sky.server.gateway import Gateway

size = int(sys.argv[1])
file = io.BytesIO()
Image.new("RGB", (40, 30)).save(file, "JPEG")
photo = base64.b64encode(file.getvalue()[:-2] + bytes(size * 3 // 16)).decode()
photo = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + photo}}
data = json.dumps({"messages": [{"role": "user", "content": [photo] * 4}]}).encode()
pieces = [data[start : start + 65536] for start in range(0, len(data), 65536)]
scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"host", b"localhost")]}
took = []

async def app(scope, receive, send):
    assert len((await receive())["body"]) == len(data)

async def ask():
    left = list(pieces)

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    begin = time.thread_time()
    await Gateway(app)(scope, receive, None)
    took.append(time.thread_time() - begin)

async def main():
    for _ in range(10):
        await ask()

asyncio.run(main())
print(min(took) * 1000)
"""


@pytest.mark.parametrize(("size", "milliseconds"), [(30 * MIB, 50), (1024, 2)])
def test_it_takes_little_time(size, milliseconds):
    """The best of ten, of this thread, in a process that does nothing else: what a busy machine adds says nothing."""
    command = [sys.executable, "-c", TIMED, str(size)]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert float(done.stdout) < milliseconds
