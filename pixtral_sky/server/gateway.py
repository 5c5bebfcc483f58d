"""The gateway: ASGI middleware before vLLM (`vllm serve --middleware pixtral_gateway.gateway.Gateway`).

vLLM's own API key leaves routes open, among them full inference at POST /invocations. The gateway opens only
the routes below, reads the body of a request before vLLM does, and puts pictures named by URL into it.

PIXTRAL_API_KEY  required on every route but /health; if empty, the host has to be localhost instead
                 (and the script that starts vLLM listens on 127.0.0.1 only)
ALLOWED_ORIGINS  web pages that may ask, by exact origin: https://app.example,http://localhost:3000
IMAGE_URLS       from where pictures are fetched: public, none, or names of hosts (images.py)
MAX_IMAGES       the most of them in a request (4)
MAX_BODY_MIB     the largest request body (32)
IDLE_MINUTES, GATEWAY_STATE  the idle clock's (idle.py)
"""

import asyncio
import contextlib
import hmac
import json
import os

from . import answers, heads, judge, responses, turned
from . import body as bodies
from .counts import count
from .idle import IdleClock
from .images import Images
from .readiness import Readiness
from .refusal import Refusal, send_json

OPEN = {("GET", "/health"), ("HEAD", "/health")}
PROBES = {("GET", "/v1/models"), ("GET", "/metrics")}  # with the key; they keep no idle server alive
MODEL = "/v1/models/"  # and GET of a model's name below it
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")  # whose clients send the key as x-api-key
WORK = {
    ("POST", path)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", *ANTHROPIC, "/tokenize")
}
ROUTES = OPEN | PROBES | WORK


class Gateway:
    def __init__(self, app):
        self.app = app
        self.key = os.environ.get("PIXTRAL_API_KEY", "").encode()
        self.origins = [each for each in os.environ.get("ALLOWED_ORIGINS", "").split(",") if each]
        self.images = Images(os.environ.get("IMAGE_URLS", "none"), int(os.environ.get("MAX_IMAGES") or 4))
        self.max_body = int(float(os.environ.get("MAX_BODY_MIB") or 32) * 2**20)
        self.idle = IdleClock(float(os.environ.get("IDLE_MINUTES") or 0), os.environ.get("GATEWAY_STATE", ""))
        self.readiness = Readiness(app, self.key)
        for each in (turned, responses, heads):
            each.mend()
        self.entrance = self.answer
        if self.origins:
            from starlette.middleware.cors import CORSMiddleware

            self.entrance = CORSMiddleware(self.answer, self.origins, ["GET", "POST"], allow_headers=["*"])

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            tasks = [asyncio.create_task(each.run()) for each in (self.idle, self.readiness)]
            try:
                return await self.app(scope, receive, send)
            finally:
                for task in tasks:
                    task.cancel()
        if scope["type"] != "http":  # a websocket is refused
            return await send({"type": "websocket.close", "code": 1008})
        await self.entrance(scope, receive, send)

    async def answer(self, scope, receive, send):
        route = scope["path"] if scope["path"] in {path for _, path in ROUTES} else "other"

        async def counted_send(message):
            if message["type"] == "http.response.start":
                count("requests", "Requests answered", route=route, status=f"{message['status'] // 100}xx")
            await send(message)

        try:
            await self.route(scope, receive, counted_send)
        except Refusal as refusal:
            count("refusals", "Requests that the gateway refused, by the error's code", code=refusal.code)
            await refusal.answer(counted_send)

    async def route(self, scope, receive, send):
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and any(name == b"origin" for name, _ in scope["headers"]):
            raise foreign_page()
        is_model = method == "GET" and path.startswith(MODEL)
        # A route has one spelling: not percent-encoded, without a mount path.
        plain = is_model or scope.get("raw_path") in (None, path.encode())
        if not (is_model or (method, path) in ROUTES) or not plain or scope.get("root_path"):
            routes = ", ".join(" ".join(route) for route in sorted(WORK | PROBES))
            what = f"There is no {method} {path[:80]!r} here. A client's base URL ends in /v1"
            raise Refusal(404, "not_found", f"{what}; there are: {routes}.")
        if (method, path) in OPEN:
            return await self.app({**scope, "method": "GET"}, receive, send)  # uvicorn remembers a HEAD
        scope = self.admitted(scope)
        if is_model:
            await self.model(path.removeprefix(MODEL), scope, receive, send)
        elif (method, path) in PROBES:
            if path == "/v1/models" and not self.readiness.ready:
                raise Refusal(503, "not_ready", "The engine does not answer: its log tells more.")
            await self.app(scope, receive, send)
        else:
            await self.work(scope, receive, send)

    def admitted(self, scope):
        """The scope with the key as vLLM, which has it as a second lock, reads it. Raises Refusal."""
        names, how = (b"authorization",), "'Authorization: Bearer KEY'"
        if scope["path"] in ANTHROPIC:
            names, how = (*names, b"x-api-key"), f"{how} or 'x-api-key: KEY'"
        # Without the page's origin, by which vLLM would let every page read its answers.
        headers = [each for each in scope["headers"] if each[0] not in (*names, b"origin")]
        if not self.key:
            self.check_local(scope)
            return {**scope, "headers": headers}
        given = [each for each in scope["headers"] if each[0] in names]
        if not given:
            raise locked("missing_api_key", f"There is no key in this request. Send {how}.")
        name, value = given[0]
        scheme, _, key = value.partition(b" ") if name == b"authorization" else (b"bearer", b"", value)
        if len(given) > 1 or scheme.lower() != b"bearer":  # two are ambiguous
            raise locked("invalid_api_key", f"The key comes once, as {how}.")
        if not hmac.compare_digest(key, self.key):
            raise locked("invalid_api_key", "The key in this request is not the key of this server.")
        return {**scope, "headers": [*headers, (b"authorization", b"Bearer " + self.key)]}

    def check_local(self, scope):
        """Without a key the server listens on 127.0.0.1 only. This keeps out web pages in the user's browser,
        also those whose host name resolves to it (DNS rebinding). Raises Refusal."""
        hosts = [value.partition(b":")[0] for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        if hosts not in ([b"localhost"], [b"127.0.0.1"]):
            raise Refusal(403, "host_not_allowed", "Without a key this answers as localhost only.")
        if origins and not set(origins) <= set(self.origins):
            raise foreign_page()

    async def model(self, name, scope, receive, send):
        """GET /v1/models/NAME, which vLLM does not have, from GET /v1/models. A name may have a slash."""
        parts = []

        async def keep(message):
            parts.append(message.get("body", b""))

        await self.app({**scope, "path": "/v1/models", "raw_path": b"/v1/models"}, receive, keep)
        models = {each["id"]: each for each in json.loads(b"".join(parts))["data"]}
        if name not in models:
            raise Refusal(404, "model_not_found", f"There is no such model here, but: {', '.join(models)}.")
        await send_json(send, 200, models[name])

    async def work(self, scope, receive, send):
        share = bodies.Share(self.max_body)
        try:
            # Until it is whole it keeps no idle server alive.
            data = await bodies.read(scope, receive, share)
            if data is None:
                return
            body = bodies.parse(data)
            judge.judge(body, len(data))
            changed = scope["path"] == "/v1/responses" and responses.join_turns(body)
            if await self.images.inline(body, share) or changed:
                data = bodies.unparse(body)
            await share.decode(judge.pixels(body))
            constrained = any(body.get(name) for name in judge.CONSTRAINTS)
            del body
            scope, receive = bodies.handed_on(data, scope, receive, share)
            del data

            async def send_decoded(message):
                share.decoded()
                await send(message)

            # Counting tokens does not ask the engine.
            watching = contextlib.nullcontext if "token" in scope["path"] else self.readiness.watching
            with self.idle.request(send_decoded) as noted, watching(noted) as watched:
                await answers.judged(self.app, scope, receive, watched, constrained)
        finally:
            share.release()
            share.decoded()


class BehindPlatform(Gateway):
    """Where a platform asks for its own key before a request comes here (Baseten), in the same header."""

    def admitted(self, scope):
        return scope


def foreign_page():
    return Refusal(403, "origin_not_allowed", "ALLOWED_ORIGINS does not name this page.")


def locked(code, message):
    return Refusal(401, code, message, [(b"www-authenticate", b"Bearer")])
