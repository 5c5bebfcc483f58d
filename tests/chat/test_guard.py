"""Who may use the page."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pixtral_sky.chat.guard import Guard

SECRET = "a-secret"
HERE = "127.0.0.1:7860"


def ask(path: str, *, kind: str = "http", **headers: str) -> list[dict[str, Any]]:
    """What a server is told to answer; the page itself answers 200."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-of", b"page")]})
        await send({"type": "http.response.body", "body": b"the page"})

    scope = {
        "type": kind,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(Guard(page, SECRET)(scope, None, send))
    return sent


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/a-secret/", {"host": HERE}, 200),
        ("/a-secret/", {"host": "localhost:9000"}, 200),  # ssh -L 9000:127.0.0.1:7860
        ("/a-secret/gradio_api/queue/join", {"host": HERE, "origin": f"http://{HERE}"}, 200),
        ("/a-secret/gradio_api/file=/tmp/pixtral-sky-1/a.png", {"host": HERE}, 200),
        ("/a-secret/assets/index.js", {"host": HERE}, 200),
        # Without the secret
        ("/", {"host": HERE}, 403),
        ("/a-secre", {"host": HERE}, 403),
        ("/\u00e9/", {"host": HERE}, 403),
        ("/gradio_api/queue/join", {"host": HERE}, 403),
        ("/gradio_api/file=/tmp/pixtral-sky-1/a.png", {"host": HERE}, 403),
        # By another host name
        ("/a-secret/", {"host": "evil.example:7860"}, 403),
        ("/a-secret/", {"host": "127.0.0.1.evil.example"}, 403),
        ("/a-secret/", {"host": "localhost:7860@evil.example"}, 403),
        ("/a-secret/", {}, 403),
        # From another page
        ("/a-secret/gradio_api/queue/join", {"host": HERE, "origin": "http://evil.example"}, 403),
        ("/a-secret/gradio_api/queue/join", {"host": HERE, "origin": "http://127.0.0.1:7861"}, 403),
        ("/a-secret/gradio_api/queue/join", {"host": HERE, "origin": "null"}, 403),
        ("/a-secret/gradio_api/queue/join", {"host": HERE, "origin": f"https://{HERE}"}, 403),
        # What Gradio has besides
        ("/a-secret/gradio_api/vibe-edit/", {"host": HERE}, 404),
        ("/a-secret/gradio_api/proxy=https://a.example", {"host": HERE}, 404),
        ("/a-secret/gradio_api/file=https://a.example/b.png", {"host": HERE}, 404),
        ("/a-secret/gradio_api/run-history/connect", {"host": HERE}, 404),
        ("/a-secret/gradio_api/mcp", {"host": HERE}, 404),
        ("/a-secret/monitoring", {"host": HERE}, 404),
    ],
)
def test_a_request(path: str, headers: dict[str, str], status: int) -> None:
    start, body = ask(path, **headers)
    assert start["status"] == status
    assert (body.get("body", b"") == b"the page") == (status == 200)
    names = {name for name, _ in start["headers"]}
    assert {b"content-security-policy", b"referrer-policy"} < names
    assert (b"x-of" in names) == (status == 200)


def test_two_host_names_are_none() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    hosts = [(b"host", HERE.encode()), (b"host", b"evil.example")]
    asyncio.run(Guard(None, SECRET)({"type": "http", "path": "/a-secret/", "headers": hosts}, None, send))
    assert sent[0]["status"] == 403


def test_there_is_no_websocket() -> None:
    (closed,) = ask("/a-secret/", kind="websocket", host=HERE)
    assert closed["type"] == "websocket.close"
