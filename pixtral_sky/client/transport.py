"""HTTP/1.1 to one server, for any number of threads.

It uses httpcore, the engine of httpx, which leaves HTTP to h11. httpx itself takes longer to import than all
that ``ask`` does before it sends (docs/performance.md), and cannot hang up on a thread that waits. httpcore's
pool searches all connections for each request, and the garbage collector could deadlock on its locks.
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

CONNECT_SECONDS = 10.0  # for each address of the server, and for each step of its TLS
SLOW_SECONDS = 1.0  # a connection that takes longer has waited for a silent address
MAX_HEAD = 2**17  # bytes until the head of an answer is complete
MAX_EVENT = 2**24  # bytes of an event of a stream, and of the lines that it has
SEND_BYTES = 2**20  # at a time: each has the timeout of its own, for slow lines
_ORIGIN = httpcore.Origin(b"http", b"", 80)  # a constant: httpcore only compares it


class TransportError(Exception):
    """No answer began."""


class NoConnection(TransportError):
    """The server cannot be connected to; the cause, an OSError, says why."""


class ProxyRefused(TransportError):
    """The proxy answers, and does not connect to the server."""


class NotHTTP(TransportError):
    """The answer is not HTTP."""


class Transport:
    """A connection pool for the server of ``url``. Every request has ``headers``.

    Up to ``connections`` stay open between requests; more requests at once open more. HTTPS_PROXY,
    HTTP_PROXY, ALL_PROXY and NO_PROXY of the environment are obeyed, except for loopback addresses.

    Raises ValueError for a malformed URL, and OSError when the environment names a proxy or certificate
    authorities (SSL_CERT_FILE, SSL_CERT_DIR) that cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, connections: int) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        self._host = _host(parts)
        name = f"[{self._host}]" if ":" in self._host else self._host
        authority = f"{name}:{parts.port}" if parts.port else name
        port = parts.port or (443 if is_tls else 80)
        self._tls = _authorities(is_tls)
        self._target = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._headers = {"Host": authority, **headers}
        self._peer = self._host, port  # the server, or its proxy
        self._connect: httpcore.Request | None = None  # asks the proxy for a tunnel
        if proxy := _proxy(parts, self._host):
            self._peer, credentials = proxy
            if is_tls:
                fields = {"Host": authority, **credentials}
                self._connect = self._request("CONNECT", f"{name}:{port}", fields, timeout=CONNECT_SECONDS)
            else:
                self._target = f"http://{authority}{self._target}"
                self._headers |= credentials
        self._address = ""  # the peer's address that answered, when another one was silent
        self._connections = connections
        # Guards what follows. Reentrant: the garbage collector may close an abandoned answer in a thread
        # that holds it.
        self._lock = threading.RLock()
        self._idle: list[httpcore.HTTP11Connection] = []  # the most recently used comes last
        self._streams: set[_Stream] = set()  # of all connections
        self._is_closed = False

    def request(
        self, method: str, path: str, body: bytes = b"", *, timeout: float, patience: float
    ) -> Response:
        """Send a request once, and return the answer when its head has come.

        It may take ``patience`` seconds to begin, and then ``timeout`` between two chunks. Raises
        NoConnection, ProxyRefused, NotHTTP, TimeoutError, and ConnectionError when the server hangs up.
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
        """Close all connections. Requests and answers of other threads end with an error."""
        with self._lock:
            self._is_closed = True
            streams = list(self._streams)
            for stream in streams:  # locked: a closed socket's number could be another one's by now
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
        """Return an idle connection, skipping any that the server has closed, or a new one."""
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
        """Keep a connection for the next request if it can take one, else close it."""
        # h11 would take bytes behind an answer for the next answer, and httpcore does not check.
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
        """Connect to the server, through the proxy if there is one."""
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
        """Ask the proxy for a tunnel to the server."""
        heard = _Stream(stream, lambda _: None)
        try:
            answer = httpcore.HTTP11Connection(_ORIGIN, heard).handle_request(connect)
        except (httpcore.TimeoutException, httpcore.NetworkError) as error:
            raise NoConnection from error
        except (httpcore.RemoteProtocolError, NotHTTP) as error:
            raise (ProxyRefused if heard.has_begun() else NoConnection) from error
        if not 200 <= answer.status < 300:
            raise ProxyRefused


class _Stream(httpcore.NetworkStream):
    """A connection that one thread uses and another one may close."""

    def __init__(self, inner: httpcore.NetworkStream, forget: Callable[[_Stream], None]) -> None:
        self._inner = inner
        self._forget = forget
        # Held in every call: the number of a socket that is closed meanwhile may become another one's.
        self._lock = threading.RLock()  # reentrant, as Transport's
        self._before_body: int | None = 0  # bytes that have come; None once the head is complete
        self._first = b""  # of them

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with self._lock:
            data = self._inner.read(max_bytes, timeout)
        if self._before_body is not None:
            self._before_body += len(data)
            self._first = (self._first + data)[:5]
            # httpcore would wait for the end of a head that is none, and read endless "100 Continue".
            if self._before_body > MAX_HEAD or not b"HTTP/".startswith(self._first):
                raise NotHTTP
        return data

    def has_begun(self) -> bool:
        """Whether any byte of an answer has come."""
        return self._before_body != 0

    def has_head(self) -> None:
        self._before_body = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._before_body, self._first = 0, b""
        view = memoryview(buffer)  # its slices copy nothing
        with self._lock:
            for start in range(0, len(view), SEND_BYTES):
                self._inner.write(view[start : start + SEND_BYTES], timeout)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def hang_up(self) -> None:
        """End the connection for the server, and for a thread that waits in a call."""
        with contextlib.suppress(OSError):  # the server has hung up first
            # The socket's own shutdown: that of TLS is not thread-safe.
            socket.socket.shutdown(self._inner.get_extra_info("socket"), socket.SHUT_RDWR)

    def close(self) -> None:
        self._forget(self)
        with self._lock:
            self._inner.close()


class Response:
    """An answer whose body is taken once, by ``chunks`` or ``read``; otherwise ``close`` it.

    ``headers`` have lower-case names. ``arrived`` counts the bytes of the body so far.
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
            raise NotHTTP  # two lengths can smuggle one answer into another (RFC 9112, 6.3)

    def chunks(self, most: int) -> Iterator[bytes]:
        """The body as it comes.

        Raises ConnectionError with the text "stalled" or "broke off", and ValueError after ``most`` bytes.
        """
        try:
            with _errors():
                for chunk in self._response.iter_stream():
                    self.arrived += len(chunk)
                    if self.arrived > most:
                        raise ValueError(f"more than {most} bytes")
                    yield chunk
        except TimeoutError as error:
            raise ConnectionError("stalled") from error
        except (ConnectionError, NotHTTP) as error:
            raise ConnectionError("broke off") from error
        finally:
            self.close()

    def read(self, most: int) -> bytes:
        """The whole body. Raises as ``chunks``."""
        return b"".join(self.chunks(most))

    def close(self) -> None:
        """Give the connection back if the whole body was taken, else close it."""
        if not self._is_closed:
            self._is_closed = True
            self._response.close()
            self._release()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Map httpcore's errors to those of this module."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise NoConnection from error.__cause__
    except httpcore.TimeoutException as error:
        raise TimeoutError from error
    except httpcore.RemoteProtocolError as error:
        # h11 is the cause when it is not HTTP; without a cause the server has hung up, perhaps within a head.
        raise (NotHTTP if error.__cause__ else ConnectionError) from error
    except httpcore.NetworkError as error:
        raise ConnectionError from error


def events(chunks: Iterator[bytes]) -> Iterator[str]:
    """The data of each event of a ``text/event-stream``, whose lines end with LF or CR LF.

    Raises ValueError for an event of more than MAX_EVENT bytes.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    (httpx-sse takes only answers of httpx.)
    """
    rest, data, size = b"", [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_EVENT:
            raise ValueError("an event without an end")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ").decode(errors="replace"))
            elif not name and not value and data:  # an empty line; a comment begins with the colon
                yield "\n".join(data)
                data, size = [], len(rest)


def _host(parts: SplitResult) -> str:
    """The host of a URL as DNS spells it. Raises ValueError for a name that no host can have."""
    host = (parts.hostname or "").encode("idna").decode()
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise ValueError("no host can have this name")
    return host


def _proxy(parts: SplitResult, host: str) -> tuple[tuple[str, int], dict[str, str]] | None:
    """The environment's proxy for a URL, and its headers. Raises OSError when it cannot be used."""
    if _is_loopback(host) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # imported here: 30 ms

    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = urlsplit(url if "://" in url else f"http://{url}")
        peer = _host(proxy), proxy.port or 80
    except ValueError:
        proxy, peer = urlsplit(""), ("", 0)
    if proxy.scheme != "http":
        raise OSError("not the URL of an HTTP proxy")  # the URL may hold a password
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
    """The context for TLS, with the environment's authorities, or Mozilla's and the system's; else None.

    Raises OSError.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        Path(file).stat()  # a wrong path fails for http:// too
    if not is_tls:
        return None
    import ssl

    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    import certifi

    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()  # the system may know a company's own authority
    return context
