"""HTTP/1.1 to one server, for any number of threads.

By httpcore, the engine of httpx: it connects, and HTTP is h11's. Not by httpx itself, which takes longer to
import than all that ``ask`` does before its question is on the wire (docs/performance.md), and lets nobody
hang up on a thread that waits. And not by httpcore's pool, which looks through all connections for each
request, and whose locks an answer would need that is closed wherever the garbage is collected.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpcore

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 10.0  # to each address of the server, and for each step of TLS with it
SLOW_SECONDS = 1.0  # to connect for longer is to have waited for an address that is silent
MAX_HEAD = 2**17  # bytes until the head of an answer is there
SEND_BYTES = 2**20  # at once: the timeout is for each of them, and not for all on a slow line
_ORIGIN = httpcore.Origin(b"http", b"", 80)  # which httpcore wants to be the same in all requests, no more


class TransportError(Exception):
    """No answer began."""


class NoConnection(TransportError):
    """There is none to the server; its cause, an OSError, says why."""


class ProxyRefused(TransportError):
    """The proxy is there, and does not lead to the server."""


class NotHTTP(TransportError):
    """Something answers, and it is not HTTP."""


class Transport:
    """All connections to the server of ``url``. Every request has ``headers``.

    ``connections`` are kept open between requests; more requests at once open more. HTTPS_PROXY, HTTP_PROXY,
    ALL_PROXY and NO_PROXY of the environment are minded, but for what stays on this machine.

    Raises ValueError when the URL is none, and OSError when the environment names a proxy or certificate
    authorities (SSL_CERT_FILE, SSL_CERT_DIR) that cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, connections: int) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        self._host = host_of(parts)
        name = f"[{self._host}]" if ":" in self._host else self._host
        place = f"{name}:{parts.port}" if parts.port else name
        port = parts.port or (443 if is_tls else 80)
        self._tls = _authorities(is_tls)
        self._target = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._headers = {"Host": place, **headers}
        self._peer = self._host, port  # who is connected to
        self._connect: httpcore.Request | None = None  # what a proxy is asked that passes all on unread
        if proxy := _proxy(parts, self._host):
            self._peer, credentials = proxy
            if is_tls:
                fields = {"Host": place, **credentials}
                self._connect = self._request("CONNECT", f"{name}:{port}", fields, timeout=CONNECT_SECONDS)
            else:
                self._target = f"http://{place}{self._target}"
                self._headers |= credentials
        self._address = ""  # the one that answers, where another one of the peer is silent
        self._connections = connections
        # For what follows. One that its thread can take again: an answer that nobody wants any more is closed
        # wherever the garbage is collected, in here too.
        self._lock = threading.RLock()
        self._idle: list[httpcore.HTTP11Connection] = []  # the last one was used last
        self._streams: set[_Stream] = set()  # of all connections
        self._is_closed = False

    def request(
        self, method: str, path: str, body: bytes = b"", *, timeout: float, patience: float
    ) -> Response:
        """Send it once, and return the answer when its head is there.

        It may take ``patience`` seconds to begin, then ``timeout`` between any two pieces of it. Raises
        NoConnection, ProxyRefused, NotHTTP, TimeoutError, and ConnectionError when it is dropped before.
        """
        headers = {**self._headers, "Content-Length": str(len(body))} if body else self._headers
        request = self._request(method, self._target + path, headers, body, timeout=timeout)
        timeouts = request.extensions["timeout"]
        timeouts["read"] = patience
        connection = self._take()
        try:
            with _errors():
                response = Response(connection.handle_request(request), lambda: self._release(connection))
        except BaseException:
            self._release(connection)
            raise
        timeouts["read"] = timeout
        return response

    def close(self) -> None:
        """Hang up, wherever other threads are. Their requests and answers end with an error."""
        with self._lock:
            self._is_closed = True
            streams = list(self._streams)
            for stream in streams:  # none is closed meanwhile, and its number given to another
                stream.hang_up()
        for stream in streams:
            stream.close()

    def _request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, timeout: float
    ) -> httpcore.Request:
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        timeouts = {"timeout": {"read": timeout, "write": timeout}}
        url = httpcore.URL(scheme=b"http", host=b"", target=target)
        return httpcore.Request(method, url, headers=fields, content=body, extensions=timeouts)

    def _take(self) -> httpcore.HTTP11Connection:
        """An idle connection, skipping any that the server has closed, or else a new one."""
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            connection.close()
        stream = _Stream(self._open(), self._forget)
        with self._lock:
            if not self._is_closed:
                self._streams.add(stream)
                return httpcore.HTTP11Connection(_ORIGIN, stream)
        stream.close()
        raise ConnectionError

    def _release(self, connection: httpcore.HTTP11Connection) -> None:
        """Keep it for the next request if it is good for one, else close it."""
        # h11 would take what has come behind an answer for the next one, and httpcore does not look.
        is_good = connection.is_idle() and not connection._h11_state.trailing_data[0]
        with self._lock:
            if is_good and len(self._idle) < self._connections:
                self._idle.append(connection)
                return
        connection.close()

    def _forget(self, stream: _Stream) -> None:
        with self._lock:
            self._streams.discard(stream)

    def _open(self) -> httpcore.NetworkStream:
        """A connection to the server, by the proxy where there is one."""
        host, port = self._peer
        began = time.monotonic()
        with _errors(), contextlib.ExitStack() as if_failed:
            address, self._address = self._address, ""
            stream = httpcore.SyncBackend().connect_tcp(address or host, port, CONNECT_SECONDS)
            if_failed.callback(stream.close)
            if address or time.monotonic() - began > SLOW_SECONDS:
                self._address = stream.get_extra_info("server_addr")[0]
            if self._connect:
                self._pass_proxy(stream, self._connect)
            if self._tls:
                stream = stream.start_tls(self._tls, self._host, CONNECT_SECONDS)
            if_failed.pop_all()
        return stream

    def _pass_proxy(self, stream: httpcore.NetworkStream, connect: httpcore.Request) -> None:
        """Have the proxy connect to the server."""
        try:
            answer = httpcore.HTTP11Connection(_ORIGIN, stream).handle_request(connect)
        except httpcore.RemoteProtocolError as error:
            raise ProxyRefused from error
        if not 200 <= answer.status < 300:
            raise ProxyRefused


class _Stream(httpcore.NetworkStream):
    """A connection that one thread uses, and another one may close."""

    def __init__(self, inner: httpcore.NetworkStream, forget: Callable[[_Stream], None]) -> None:
        self._inner = inner
        self._forget = forget
        # Held in every call: a socket that is closed under one may be another one by the time it is used.
        self._lock = threading.RLock()  # see Transport's
        self._before_body: int | None = 0  # bytes that have come; None: the head is there

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with self._lock:
            data = self._inner.read(max_bytes, timeout)
        if self._before_body is not None:
            self._before_body += len(data)
            if self._before_body > MAX_HEAD:  # such as "100 Continue" without an end, which httpcore reads
                raise NotHTTP
        return data

    def has_head(self) -> None:
        self._before_body = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._before_body = 0
        view = memoryview(buffer)  # whose rest, when a part of it is sent, is no copy
        with self._lock:
            for start in range(0, len(view), SEND_BYTES):
                self._inner.write(view[start : start + SEND_BYTES], timeout)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def hang_up(self) -> None:
        """Wake up whoever waits in a call; they and the server see the end of it."""
        with contextlib.suppress(OSError):  # the server was faster
            # And not TLS's, which is not for threads.
            socket.socket.shutdown(self._inner.get_extra_info("socket"), socket.SHUT_RDWR)

    def close(self) -> None:
        self._forget(self)
        with self._lock:
            self._inner.close()


class Response:
    """An answer. Its body is there to take once, by ``pieces`` or ``read``; ``close`` it without that.

    ``headers`` have lower-case names. ``arrived`` are the bytes of the body so far.
    """

    def __init__(self, response: httpcore.Response, release: Callable[[], None]) -> None:
        self.status = response.status
        self.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
        self.arrived = 0
        self._response = response
        self._release = release
        self._is_closed = False
        response.extensions["network_stream"].has_head()
        if self.headers.keys() >= {"content-length", "transfer-encoding"}:
            raise NotHTTP  # two lengths: how an answer is smuggled into another (RFC 9112, 6.3)

    def pieces(self) -> Iterator[bytes]:
        """The body, as it comes. Raises ConnectionError, which says what it did: "stalled" or "broke off"."""
        try:
            with _errors():
                for piece in self._response.iter_stream():
                    self.arrived += len(piece)
                    yield piece
        except TimeoutError as error:
            raise ConnectionError("stalled") from error
        except (ConnectionError, NotHTTP) as error:
            raise ConnectionError("broke off") from error
        finally:
            self.close()

    def read(self) -> bytes:
        """The whole body. Raises as ``pieces``."""
        return b"".join(self.pieces())

    def close(self) -> None:
        """Hang up, unless all of it was taken."""
        if not self._is_closed:
            self._is_closed = True
            self._response.close()
            self._release()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """httpcore's errors as those of this module: the one place that knows them."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise NoConnection from error.__cause__
    except httpcore.TimeoutException as error:
        raise TimeoutError from error
    except httpcore.RemoteProtocolError as error:
        # h11 says what is no HTTP; without it, the server has hung up.
        raise (NotHTTP if error.__cause__ else ConnectionError) from error
    except httpcore.NetworkError as error:
        raise ConnectionError from error


def events(pieces: Iterator[bytes]) -> Iterator[str]:
    """The data of each event of a ``text/event-stream``, whose lines end with LF or CR LF.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    (httpx-sse takes answers of httpx alone.)
    """
    rest, data = b"", []
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ").decode(errors="replace"))
            elif not name and not value and data:  # an empty line; a comment begins with the colon
                yield "\n".join(data)
                data = []


def host_of(parts: SplitResult) -> str:
    """The host of a URL as DNS has it. Raises ValueError when it has none that can be."""
    host = (parts.hostname or "").encode("idna").decode()
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise ValueError("no host can have this name")
    return host


def _proxy(parts: SplitResult, host: str) -> tuple[tuple[str, int], dict[str, str]] | None:
    """The environment's proxy for a URL, and the headers for it. Raises OSError when it cannot be used."""
    if _is_loopback(host) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # not without need: 30 ms

    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = urlsplit(url if "://" in url else f"http://{url}")
        peer = host_of(proxy), proxy.port or 80
    except ValueError:
        proxy, peer = urlsplit(""), ("", 0)
    if proxy.scheme != "http":
        raise OSError("not the URL of an HTTP proxy")  # without the URL, which may hold a password
    if not proxy.username:
        return peer, {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return peer, {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _authorities(is_tls: bool) -> ssl.SSLContext | None:
    """TLS, where it is wanted, that trusts whom the environment names, or else Mozilla. Raises OSError."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        Path(file).stat()  # a wrong one is said before the first https:// needs it
    if not is_tls:
        return None
    import ssl

    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    import certifi

    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()  # and the system, which may know a company's own authority
    return context
