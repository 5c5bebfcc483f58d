"""A fake endpoint on a free port of 127.0.0.1: it does, request by request, what a test scripts.

    with FakeEndpoint([status(503), says("A red square.")]) as fake:
        ...
    assert len(fake.requests) == 2

GET /v1/models is answered besides the script, and is recorded like all else. When the script is over, its
last behaviour goes on.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pixtral_sky.client.endpoint import Endpoint

USAGE = {"prompt_tokens": 660, "completion_tokens": 12, "total_tokens": 672}


@dataclass(frozen=True)
class Request:
    """What came in. The names of ``headers`` are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request and the means to answer it in any manner, good or bad."""

    def __init__(self, handler: BaseHTTPRequestHandler, request: Request, released: threading.Event) -> None:
        self._handler = handler
        self.request = request
        self._released = released

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """An answer with a Content-Length, unless ``headers`` bring their own."""
        self._handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def begin(self, content_type: str = "text/event-stream; charset=utf-8") -> None:
        """The head of a 200 whose body comes by ``chunk``."""
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", content_type)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def chunk(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, data: Any) -> None:
        self.chunk(b"data: %s\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode()))

    def end(self) -> None:
        self.chunk(b"")

    def hang_up(self, reset: bool = False) -> None:
        """Close the connection, with what is unsaid unsaid; ``reset`` does it with a TCP reset."""
        self._handler.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._handler.rfile.close()
            self._handler.connection.close()

    def wait(self, seconds: float) -> None:
        """Do nothing for so long, or until the fake endpoint is closed."""
        self._released.wait(seconds)


Behaviour = Callable[[Exchange], None]


def _chunk(request: Request, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    model = request.json["model"]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [choice],
    }


def says(*pieces: str, finish_reason: str = "stop", usage: dict[str, int] = USAGE) -> Behaviour:
    """The answer, in as many pieces, in the way that the request asks for: streamed or whole."""

    def behave(exchange: Exchange) -> None:
        request = exchange.request
        if request.json.get("stream"):
            exchange.begin()
            exchange.event(_chunk(request, {"role": "assistant", "content": ""}))
            for piece in pieces:
                exchange.event(_chunk(request, {"content": piece}))
            exchange.event(_chunk(request, {}, finish_reason))
            if (request.json.get("stream_options") or {}).get("include_usage"):
                exchange.event({**_chunk(request, {}), "choices": [], "usage": usage})
            exchange.event(b"[DONE]")
            exchange.end()
        else:
            message = {"role": "assistant", "content": "".join(pieces)}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
            document = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "choices": [choice]}
            document |= {"model": request.json["model"], "usage": usage}
            exchange.reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    return behave


def timed(first: float = 0.0, per_token: float = 0.0, prompt: int = 100) -> Behaviour:
    """As many tokens as are asked for: the first after ``first`` seconds, then one each ``per_token``.

    ``prompt``: the number of its tokens that is reported.
    """

    def behave(exchange: Exchange) -> None:
        request = exchange.request
        tokens = request.json["max_tokens"]
        exchange.begin()
        exchange.wait(first)
        exchange.event(_chunk(request, {"role": "assistant", "content": ""}))
        for number in range(tokens):
            exchange.event(_chunk(request, {"content": "word "}, "length" if number == tokens - 1 else None))
            if number < tokens - 1:
                exchange.wait(per_token)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        exchange.event({**_chunk(request, {}), "choices": [], "usage": usage})
        exchange.event(b"[DONE]")
        exchange.end()

    return behave


def status(code: int, body: Any = None, **headers: str) -> Behaviour:
    """That status. ``body`` is bytes, or an object that is sent as JSON; ``retry_after="5"`` is a header."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return lambda exchange: exchange.reply(
        code, data, {name.replace("_", "-").title(): value for name, value in headers.items()}
    )


def vllm_error(code: int, message: str) -> Behaviour:
    """An error in vLLM's words."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return status(code, {"error": error}, content_type="application/json")


def no_replica() -> Behaviour:
    """SkyServe's balancer while no replica is ready."""
    return status(503, {"detail": 'No ready replicas. Use "sky serve status [SERVICE_NAME]" to check.'})


def replicas_refuse() -> Behaviour:
    """SkyServe's balancer when every replica refuses the connection."""
    return status(500, {"detail": "Max retries 3 exceeded. Last error encountered: ConnectError."})


def page(code: int = 200) -> Behaviour:
    """Some web site."""
    return status(code, b"<!doctype html><title>Welcome</title><p>It works!", content_type="text/html")


def drops(reset: bool = False) -> Behaviour:
    """The connection is closed before a byte of an answer."""
    return lambda exchange: exchange.hang_up(reset)


def streams(*events: Any, end: bool = True, wait: float = 0, slice_at: int = 0) -> Behaviour:
    """These events, as they are; an object is sent as JSON, a string as a delta with that text.

    ``end``: False breaks the chunked body off after them. ``wait``: seconds of silence before that.
    ``slice_at``: bytes in each chunk of the body, so that characters and lines are cut in two.
    """

    def behave(exchange: Exchange) -> None:
        exchange.begin()
        for event in events:
            data = _chunk(exchange.request, {"content": event}) if isinstance(event, str) else event
            raw = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
            line = b"data: %s\n\n" % raw
            step = slice_at or len(line)
            for start in range(0, len(line), step):
                exchange.chunk(line[start : start + step])
        exchange.wait(wait)
        if end:
            exchange.end()
        else:
            exchange.hang_up()

    return behave


def stalls(seconds: float = 30) -> Behaviour:
    """No byte of an answer for so long, then none at all."""

    def behave(exchange: Exchange) -> None:
        exchange.wait(seconds)
        exchange.hang_up()

    return behave


def raw(data: bytes) -> Behaviour:
    """These bytes in place of HTTP, and the end of the connection."""

    def behave(exchange: Exchange) -> None:
        exchange._handler.wfile.write(data)
        exchange.hang_up()

    return behave


class FakeEndpoint:
    """See the module. ``url`` and ``port`` say where it is, ``requests`` what came in, in order, on how many
    ``connections``.

    With a ``key``, requests without it are answered 401, and are no step of the script.
    """

    def __init__(
        self,
        script: Sequence[Behaviour] = (says("A small red square."),),
        *,
        key: str = "",
        tls: ssl.SSLContext | None = None,
        models: Sequence[dict[str, Any]] = ({"id": "pixtral", "max_model_len": 32768},),
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.key = key
        self.models = {"object": "list", "data": [{"object": "model", **model} for model in models]}
        self._steps = list(script)
        self._lock = threading.Lock()
        self._released = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                with fake._lock:
                    fake.connections += 1
                super().setup()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body)
                behave = fake._next(request)
                with contextlib.suppress(ConnectionError):  # the client may hang up first
                    behave(Exchange(self, request, fake._released))

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a connection that a behaviour closed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def asked(self) -> list[Request]:
        """The requests for an answer: all but those for what is served."""
        return [request for request in self.requests if request.path != "/v1/models"]

    def endpoint(self, **fields: Any) -> Endpoint:
        """It as an Endpoint, with its key; ``fields`` say otherwise."""
        return Endpoint(**{"url": self.url, "key": self.key, "max_model_len": 32768, **fields})

    def _next(self, request: Request) -> Behaviour:
        with self._lock:
            self.requests.append(request)
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return vllm_error(401, "This needs 'Authorization: Bearer KEY'.")
            if (request.method, request.path) == ("GET", "/v1/models"):
                return status(200, self.models, content_type="application/json")
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
