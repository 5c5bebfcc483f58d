"""The idle clock of the gateway, on a loop whose time goes on at once to what is due next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest

from pixtral_sky.server import idle
from pixtral_sky.server.gateway import Gateway

KEY = "k" * 43


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
    monkeypatch.setattr(idle, "time", SimpleNamespace(monotonic=loop.time, time=time.time))
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
        return {"type": "http.request", "body": b"{}", "more_body": False}

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
    monkeypatch.setattr("pixtral_sky.server.idle.STALLED", 2)

    async def work(gateway):
        await one(gateway, "POST", "/v1/completions", b"stalls")

    assert 3.0 < run_clock(monkeypatch, work, seconds=8) < 5.0


def test_a_body_that_does_not_come_keeps_no_server_alive(monkeypatch):
    async def work(gateway):
        async def drip():
            await asyncio.sleep(0.1)
            return {"type": "http.request", "body": b" ", "more_body": True}

        headers = [(b"authorization", b"Bearer " + KEY.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await gateway(scope, drip, None)

    assert 1.0 < run_clock(monkeypatch, work) < 2.0
