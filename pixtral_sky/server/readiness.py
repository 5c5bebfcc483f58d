"""Whether the engine answers, by what the gateway sees of it.

A replica whose engine hangs, or fails every request, still lists its models, which is what SkyServe asks for.
Answers of 5xx in a row, or requests without a byte, only make it suspicious: a client may be at fault. Then
the gateway asks for one token itself, and what becomes of that decides.
"""

import asyncio
import contextlib
import json
import time

PATH = "/v1/completions"

FAILURES = 3  # in a row
SILENCE = 30  # seconds without a byte of any answer while there are requests
EVERY = 10  # seconds from one of its own requests to the next
PATIENCE = 30  # seconds for its own request; while others are answered it waits on


class Readiness:
    def __init__(self, app, key):
        self.app, self.key = app, key
        self.ready, self.failures, self.in_flight = True, 0, 0
        self.heard = time.monotonic()  # a byte of an answer that is no failure

    @contextlib.contextmanager
    def watching(self, send):
        """A request in flight; gives its ``send``, by which its answer is noted."""
        status = 0

        async def noted_send(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.failures += status >= 500
            if status == 200:  # another is said before the engine is asked
                self.failures, self.heard = 0, time.monotonic()
            await send(message)

        if not self.in_flight:
            self.heard = time.monotonic()
        self.in_flight += 1
        try:
            yield noted_send
        finally:
            self.in_flight -= 1

    def is_suspicious(self):
        silent = self.in_flight and time.monotonic() - self.heard > SILENCE
        return not self.ready or silent or self.failures >= FAILURES

    async def run(self):
        while True:
            await asyncio.sleep(EVERY / 10)
            if not self.is_suspicious():
                continue
            asking = asyncio.ensure_future(self.ask())
            begin = time.monotonic()
            while not asking.done() and time.monotonic() - max(begin, self.heard) < PATIENCE:
                await asyncio.wait([asking], timeout=EVERY / 10)
            ready = asking.done() and not asking.exception() and asking.result() == 200
            asking.cancel()
            if ready != self.ready:
                print(f"gateway: the engine {'answers again' if ready else 'does not answer'}", flush=True)
            self.ready = ready
            if ready:
                self.failures, self.heard = 0, time.monotonic()
            await asyncio.sleep(EVERY)

    async def ask(self):
        """The status of the smallest request."""
        body = json.dumps({"model": "pixtral", "prompt": "x", "max_tokens": 1}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", b"Bearer " + self.key),
        ]
        messages, statuses = [{"type": "http.request", "body": body, "more_body": False}], []

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message):
            statuses.append(message.get("status"))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
        }
        await self.app(scope, receive, send)
        return statuses[0]
