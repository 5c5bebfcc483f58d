"""A gateway before a real uvicorn, and an app behind it that answers whatever gets through."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time

import uvicorn

from pixtral_sky.server.gateway import Gateway

KEY = "k" * 43
AUTH = f"Authorization: Bearer {KEY}\r\n"


class Inner:
    """An app that answers every request, so that whatever gets past the gateway is seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}
        self.hung_up = False
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
        self.headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if scope["path"] == "/v1/models":
            models = [{"id": name, "object": "model"} for name in ("pixtral", "mistralai/Pixtral-12B-2409")]
            answers = [json.dumps({"object": "list", "data": models}).encode(), b""]
        else:
            answers = [b"one ", b"two "]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answers[0], "more_body": True})
        if not self.hold.is_set():
            self.hung_up = await self.sees_hang_up(receive)
        await send({"type": "http.response.body", "body": answers[1]})

    async def sees_hang_up(self, receive) -> bool:
        """Wait until the test lets it go on; whether the client hung up before, as vLLM watches for it."""
        gone = asyncio.ensure_future(receive())
        while not self.hold.is_set() and not gone.done():
            await asyncio.sleep(0.01)
        gone.cancel()
        return gone.done() and gone.result()["type"] == "http.disconnect"


class Server:
    """A Gateway before an Inner on a free loopback port."""

    def __init__(self, http: str = "h11", root_path: str = "", kind: type[Gateway] = Gateway) -> None:
        self.inner = Inner()
        self.gateway = kind(self.inner)
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

    def post(self, path: str, body: object, headers: str = AUTH) -> tuple[int, str]:
        """Status, and the answer's text: the message of an error."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
        status, rest = self.raw(head.encode() + data, timeout=30)
        text = rest.partition(b"\r\n\r\n")[2].decode()
        return status, json.loads(text)["error"]["message"] if status >= 400 else text
