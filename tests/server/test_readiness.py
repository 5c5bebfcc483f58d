"""Whether the engine answers: no client can make a sound one unready, and one that hangs or fails is noticed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from pixtral_sky.server import readiness
from pixtral_sky.server.gateway import Gateway

KEY = "k" * 43
HEADERS = [(b"authorization", b"Bearer " + KEY.encode())]


class Engine:
    """An app whose answers are as ``mood`` says; a request of the gateway's own asks for one token."""

    def __init__(self):
        self.mood, self.own, self.gone = "sound", 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.gone.wait()
            return
        status, own = 200, False
        if scope["method"] == "POST":
            body = json.loads((await receive())["body"])
            own = body.get("max_tokens") == 1
            self.own += own
            if self.mood == "hangs" or (self.mood == "busy" and own):
                await asyncio.sleep(60)
            if self.mood == "fails" or (self.mood == "fails for a client" and not own):
                status = 500
            if self.mood == "refuses":
                status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def quick(monkeypatch):
    """All periods are a hundredth."""
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    for name in ("SILENCE", "EVERY", "PATIENCE"):
        monkeypatch.setattr(readiness, name, getattr(readiness, name) / 100)


async def status_of(gateway, method="POST", path="/v1/completions", body=b'{"prompt": "x", "max_tokens": 9}'):
    statuses = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "headers": HEADERS}
    await gateway(scope, receive, send)
    return statuses[0]


def run(story):
    """Run ``story(gateway, engine)`` beside the gateway's own tasks."""

    async def main():
        engine = Engine()
        gateway = Gateway(engine)
        lifespan = asyncio.create_task(gateway({"type": "lifespan"}, None, None))
        try:
            return await asyncio.wait_for(story(gateway, engine), 10)
        finally:
            engine.gone.set()
            await lifespan

    return asyncio.run(main())


async def is_ready(gateway):
    return {200: True, 503: False}[await status_of(gateway, "GET", "/v1/models")]


async def until(gateway, ready, seconds=3.0):
    begin = time.monotonic()
    while await is_ready(gateway) is not ready:
        assert time.monotonic() - begin < seconds
        await asyncio.sleep(0.02)


def test_a_sound_engine_is_asked_nothing(quick):
    async def story(gateway, engine):
        for _ in range(20):
            assert await status_of(gateway) == 200
            await asyncio.sleep(0.02)
        return engine.own, await is_ready(gateway)

    assert run(story) == (0, True)


@pytest.mark.parametrize("mood", ["fails", "hangs"])
def test_an_engine_that_does_not_answer_is_not_ready_until_it_does(quick, mood):
    async def story(gateway, engine):
        engine.mood = mood
        asking = [asyncio.create_task(status_of(gateway)) for _ in range(4)]
        await until(gateway, ready=False)
        engine.mood = "sound"
        await until(gateway, ready=True)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    run(story)


def test_a_client_whose_requests_fail_makes_no_sound_engine_unready(quick):
    async def story(gateway, engine):
        engine.mood = "fails for a client"
        for _ in range(50):
            assert await status_of(gateway) == 500
            assert await is_ready(gateway)
            await asyncio.sleep(0.02)
        return engine.own

    assert 1 <= run(story) <= 11  # every 10 s at most, here every 0.1


def test_refused_requests_say_nothing(quick):
    async def story(gateway, engine):
        engine.mood = "refuses"
        for _ in range(10):
            assert await status_of(gateway) == 400
        await asyncio.sleep(0.5)
        return engine.own, await is_ready(gateway)

    assert run(story) == (0, True)


def test_a_busy_engine_is_ready(quick):
    """Its own request waits in a queue, while others are answered."""

    async def story(gateway, engine):
        engine.mood = "fails"
        for _ in range(3):
            await status_of(gateway)
        engine.mood = "busy"
        begin = time.monotonic()
        while time.monotonic() - begin < 1:
            assert await status_of(gateway) == 200
            assert await is_ready(gateway)
            await asyncio.sleep(0.02)

    run(story)


def test_tokens_that_are_counted_are_no_sign_of_life(quick):
    async def story(gateway, engine):
        engine.mood = "hangs"
        asking = asyncio.create_task(status_of(gateway))
        await asyncio.sleep(0.05)
        engine.mood = "sound"
        counted = asyncio.create_task(status_of(gateway, path="/tokenize"))
        assert await counted == 200
        engine.mood = "hangs"
        await until(gateway, ready=False)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(story)


def test_a_long_pause_before_a_request_is_no_silence(quick):
    async def story(gateway, engine):
        await asyncio.sleep(0.5)
        engine.mood = "hangs"
        asking = asyncio.create_task(status_of(gateway))
        await asyncio.sleep(0.15)  # of 0.3
        assert engine.own == 0
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(story)
