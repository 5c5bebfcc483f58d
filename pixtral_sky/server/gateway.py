"""The gateway: ASGI middleware before vLLM (`vllm serve --middleware gateway.Gateway`).

vLLM's own API key leaves routes open, among them full inference at POST /invocations. The gateway opens
only the routes below. It needs the standard library only.

PIXTRAL_API_KEY  required on every route but GET /health; if empty, the host has to be localhost instead
                 (and the script that starts vLLM listens on 127.0.0.1 only)
IDLE_MINUTES     ends the server after that long without a request; 0 or empty: never
MAX_BODY_MIB     the largest request body (32)
GATEWAY_STATE    a folder that outlives the server: its file "last_request" is as old as the last request;
                 the idle clock writes "idle" when it ends the server
"""

import asyncio
import contextlib
import hmac
import json
import os
import signal
import time
from pathlib import Path

OPEN = {("GET", "/health")}
PROBES = {("GET", "/v1/models"), ("GET", "/metrics")}  # with the key; they keep no idle server alive
WORK = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/tokenize"),
}
ROUTES = OPEN | PROBES | WORK
# Seconds without a byte in or out after which a request in flight no longer keeps the server alive: longer
# than any answer that is not streamed, shorter than the night of a laptop that was shut during one.
STALLED = 3600


class TooLarge(BaseException):
    """A body beyond the limit. A BaseException, which no `except Exception` of the app catches."""


class Gateway:
    def __init__(self, app):
        self.app = app
        self.key = os.environ.get("PIXTRAL_API_KEY", "").encode()
        self.idle_seconds = float(os.environ.get("IDLE_MINUTES") or 0) * 60
        self.max_body = int(float(os.environ.get("MAX_BODY_MIB") or 32) * 2**20)
        self.state = os.environ.get("GATEWAY_STATE", "") if self.idle_seconds > 0 else ""
        self.in_flight = 0
        self.last_request = time.monotonic()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.lifespan(scope, receive, send)
        if scope["type"] != "http":  # a websocket is refused
            return await send({"type": "websocket.close", "code": 1008})

        route = (scope["method"], scope["path"])
        # A route has one spelling: not percent-encoded, without a mount path.
        plain = scope.get("raw_path") in (None, scope["path"].encode())
        if route not in ROUTES or not plain or scope.get("root_path"):
            return await refuse(send, 404, "not_found", "There is no such route here.")
        if route not in OPEN and not self.has_key(scope):
            return await refuse(send, 401, "invalid_api_key", "This needs 'Authorization: Bearer KEY'.")
        if route not in WORK:
            return await self.app(scope, receive, send)

        self.in_flight += 1
        self.write("last_request")
        try:
            await self.limited(scope, receive, send)
        finally:
            self.in_flight -= 1
            self.last_request = time.monotonic()
            self.write("last_request")

    def has_key(self, scope):
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        if not self.key:
            # The server listens on 127.0.0.1 only. This keeps out web pages in the user's browser whose
            # host name resolves to it (DNS rebinding).
            hosts = [value.partition(b":")[0] for name, value in headers if name == b"host"]
            return hosts in ([b"localhost"], [b"127.0.0.1"])
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:  # two are ambiguous
            return False
        scheme, _, key = given[0].partition(b" ")
        return hmac.compare_digest(key, self.key) and scheme.lower() == b"bearer"

    async def limited(self, scope, receive, send):
        """Run the app; count the body as it comes, and cut it off at the limit."""
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and (not value.isdigit() or int(value) > self.max_body):
                return await self.too_large(send)
        arrived, started = 0, False

        async def counted_receive():
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body") or b"")
            if arrived > self.max_body:
                raise TooLarge
            self.last_request = time.monotonic()
            return message

        async def noted_send(message):
            nonlocal started
            started = True
            await send(message)
            self.last_request = time.monotonic()

        try:
            await self.app(scope, counted_receive, noted_send)
        except BaseException:
            if arrived <= self.max_body:
                raise
            if not started:
                await self.too_large(send)

    async def too_large(self, send):
        limit = self.max_body / 2**20
        await refuse(send, 413, "request_too_large", f"A request may have {limit:g} MiB here.")

    async def lifespan(self, scope, receive, send):
        clock = asyncio.create_task(self.idle_clock()) if self.idle_seconds > 0 else None
        try:
            await self.app(scope, receive, send)
        finally:
            if clock:
                clock.cancel()

    def write(self, name):
        """Touch a file for the script and the next server. A full disk does not matter."""
        if self.state:
            with contextlib.suppress(OSError):
                Path(self.state, name).touch()

    def seconds_since_last_request(self):
        """Across restarts of the server; 0 without a request before."""
        if self.state:
            with contextlib.suppress(OSError):
                return max(time.time() - Path(self.state, "last_request").stat().st_mtime, 0)
        self.write("last_request")
        return 0

    async def idle_clock(self):
        left = self.idle_seconds - self.seconds_since_last_request()
        self.last_request = time.monotonic() + left - self.idle_seconds
        while True:
            await asyncio.sleep(max(min(left, self.idle_seconds), 0.5))
            patience = self.idle_seconds + (STALLED if self.in_flight else 0)
            left = self.last_request + patience - time.monotonic()
            if left <= 0:
                break
        print(f"gateway: no request for {self.idle_seconds / 60:g} minutes: ending the server", flush=True)
        self.write("idle")
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM finishes its answers and frees the GPU


async def refuse(send, status, code, message):
    """Answer with an error in OpenAI's format."""
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
