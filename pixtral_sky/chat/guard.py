"""Who may use the page: whoever has its secret, by this host name, from this page.

The secret is the first part of the page's path, not a cookie: a browser sends the cookies of 127.0.0.1 to
every port of it, also to a server of another user of this machine.
"""

from __future__ import annotations

import hmac
import re
from typing import Any

# What the page uses of Gradio's routes. Its others serve its own services, documents and editors.
ROUTES = re.compile(
    r"/|/(assets|static|svelte)/.+|/(theme\.css|favicon\.ico|manifest\.json)|/gradio_api/"
    r"(theme\.css|app_id|startup-events|queue/join|queue/data|run/predict|cancel|reset|upload|upload_progress"
    r"|heartbeat/\w+|file=/.+)/?"
)
HOSTS = re.compile(rb"(127\.0\.0\.1|localhost)(:[0-9]+)?")
HEADERS = (
    # The answer of a model may name pictures anywhere: the page fetches from here only, and is in no frame.
    (
        b"content-security-policy",
        b"default-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; form-action 'none';"
        b" script-src 'self' 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'",  # as Gradio is written
    ),
    (b"referrer-policy", b"same-origin"),  # the URL has the secret
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """ASGI middleware: ``app`` answers at ``/SECRET/`` of 127.0.0.1 and localhost only.

    Any port of them will do, as `ssh -L` may lead from another one.
    """

    def __init__(self, app: Any, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # the page has no websocket
            await send({"type": "websocket.close", "code": 1008})
        elif status := self._refused(scope):
            head = [(b"content-type", b"text/plain"), *HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": b"The address is the one that was printed.\n"})
        else:

            async def send_with_headers(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), *HEADERS]
                await send(message)

            await self._app(scope, receive, send_with_headers)

    def _refused(self, scope: Any) -> int:
        """The status for a request that the page does not make, else 0."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        # A foreign host name may lead here (DNS rebinding).
        if len(hosts) != 1 or not HOSTS.fullmatch(hosts[0]) or set(origins) - {b"http://" + hosts[0]}:
            return 403
        first, slash, rest = scope["path"][1:].partition("/")
        if not hmac.compare_digest(first.encode(), self._secret):
            return 403
        return 0 if ROUTES.fullmatch(slash + rest) else 404
