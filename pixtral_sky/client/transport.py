"""HTTP/1.1 to one server, for any number of threads: the way there, and connections that are used again.

A question with pictures is a few hundred KB that are there already, and its answer is some lines: what an
HTTP library does around them costs several times what they do (docs/performance.md). Here they are one thing
to send, and one to receive for Node's own parser (llhttp, by httptools).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlsplit

from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 10.0  # to each address of the server, and for each step of TLS with it
MAX_HEAD = 64 * 2**10  # bytes of the head of an answer
_SEND = 2**20  # bytes at once: the timeout is for each of them, and not for all on a slow line
_RECEIVE = 2**16


class WireError(Exception):
    """No answer began."""


class NoConnection(WireError):
    """There is none to the server; its cause, an OSError, says why."""


class ProxyRefused(WireError):
    """The proxy is there, and does not lead to the server."""


class NotHTTP(WireError):
    """Something answers, and it is not HTTP."""


class Closed(WireError):
    """``close`` was called."""


class Wire:
    """All connections to the server of ``url``. Every request has ``headers``.

    ``connections`` are kept open between requests; more requests at once open more. With ``proxies`` the
    HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the environment are minded.

    Raises ValueError when the URL is none, and OSError when the environment names a proxy or certificate
    authorities (SSL_CERT_FILE, SSL_CERT_DIR) that cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, connections: int, proxies: bool) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        self._host = host_of(parts)
        self._port = parts.port or (443 if is_tls else 80)
        name = f"[{self._host}]" if ":" in self._host else self._host
        place = f"{name}:{parts.port}" if parts.port else name
        self._target = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        fields = {"Host": place, **headers}
        self._tls = _authorities(is_tls)
        self._next = (self._host, self._port)  # who is connected to
        self._connect = b""  # what a proxy is asked, where there is one that passes all on unread
        if proxies and (proxy := _proxy(parts)):
            self._next = (host_of(proxy), proxy.port or 80)
            credentials = _credentials(proxy)
            if is_tls:
                target = f"CONNECT {name}:{self._port} HTTP/1.1\r\n"
                self._connect = f"{target}{_lines({'Host': place, **credentials})}\r\n".encode()
            else:
                self._target = f"http://{place}{self._target}"
                fields |= credentials
        self._lines = _lines(fields)
        self._connections = connections
        # For what follows. One that its thread can take again: an answer that nobody wants any more is closed
        # wherever the garbage is collected, in here too.
        self._lock = threading.RLock()
        self._idle: list[_Connection] = []  # the last one was used last
        self._busy: set[_Connection] = set()
        self._is_closed = False

    def request(
        self, method: str, path: str, body: bytes = b"", *, timeout: float, patience: float
    ) -> Response:
        """Send it once, and return the answer when its head is there.

        It may take ``patience`` seconds to begin, then ``timeout`` between any two pieces of it. Raises
        NoConnection, ProxyRefused, NotHTTP, TimeoutError, ConnectionError when it is dropped before, Closed.
        """
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {self._target}{path} HTTP/1.1\r\n{self._lines}{length}\r\n".encode()
        connection = self._take()
        response = Response(connection, self._release)
        try:
            connection.wait(timeout)
            try:
                connection.send(head, body)
            except TimeoutError:
                raise
            except OSError:  # it may have been refused before all of it had arrived, which says why
                response.is_last = True
            connection.wait(patience)
            response.begin()
            connection.wait(timeout)
        except BaseException:
            response.close()
            raise
        return response

    def close(self) -> None:
        """Hang up, wherever other threads are. Their requests and answers end with an error."""
        with self._lock:
            self._is_closed = True
            busy = list(self._busy)
            for connection in busy:  # none can be closed meanwhile, and its number given to another
                connection.hang_up()
        for connection in (*busy, *self._idle):
            connection.close()
        self._idle.clear()

    def _take(self) -> _Connection:
        """A connection for one request. One that the server has closed meanwhile is none."""
        while True:
            with self._lock:
                if self._is_closed:
                    raise Closed
                connection = self._idle.pop() if self._idle else None
                if connection:
                    self._busy.add(connection)
            if not connection:
                break
            if connection.is_quiet():
                return connection
            self._release(connection, False)
        connection = self._open()
        with self._lock:
            if not self._is_closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise Closed

    def _release(self, connection: _Connection, is_good: bool) -> None:
        """Keep it for the next request if it ``is_good`` for one, else close it."""
        with self._lock:
            self._busy.discard(connection)
            if is_good and not self._is_closed and len(self._idle) < self._connections:
                self._idle.append(connection)
                return
        connection.close()

    def _open(self) -> _Connection:
        try:
            sock = socket.create_connection(self._next, CONNECT_SECONDS)
        except OSError as error:
            raise NoConnection from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._connect:
                _pass_proxy(_Connection(sock), self._connect)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
        except OSError as error:
            sock.close()
            raise NoConnection from error
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)


class _Connection:
    """A socket that one thread uses, and another one may close."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout = CONNECT_SECONDS
        # Held in every call: a socket that is closed under one may be another one by the time it is used.
        self._lock = threading.RLock()  # see Wire's
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """From now on, for as long in each call."""
        if seconds != self._timeout:  # a system call
            self._timeout = seconds
            with self._lock, contextlib.suppress(OSError):  # closed meanwhile, as the next call will say
                self._sock.settimeout(seconds)

    def send(self, head: bytes, body: bytes) -> None:
        """Both. They are not put together before: to copy a large body is a good part of what it costs."""
        with self._lock:
            try:
                sent = self._sock.sendmsg((head, body))
            except NotImplementedError:  # TLS
                sent = 0
            if sent < len(head):
                self._sock.sendall(head[sent:])
            view = memoryview(body)[max(sent - len(head), 0) :]
            for start in range(0, len(view), _SEND):
                self._sock.sendall(view[start : start + _SEND])

    def receive(self) -> bytes:
        with self._lock:
            return self._sock.recv(_RECEIVE)

    def is_quiet(self) -> bool:
        """Whether it is open and nothing has come, as between two requests."""
        return not self._poll.poll(0)

    def hang_up(self) -> None:
        """Wake up whoever waits in a call; they and the server see the end of it."""
        with contextlib.suppress(OSError):  # the server was faster
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # and not TLS's, which is not for threads

    def close(self) -> None:
        with self._lock:
            self._sock.close()


class Response:
    """An answer. Its body is there to take once, by ``pieces`` or ``read``; ``close`` it without that.

    ``headers`` have lower-case names. ``arrived`` are the bytes of the body so far; ``is_last`` says that the
    connection is good for no other one.
    """

    def __init__(self, connection: _Connection, release: Callable[[_Connection, bool], None]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.arrived = 0
        self.is_last = False
        self._connection = connection
        self._release = release
        self._is_begun = self._is_whole = self._is_closed = False
        self._fault: HttpParserError | None = None
        self._pieces: list[bytes] = []
        self._parser = HttpResponseParser(self)

    def begin(self) -> None:
        """Return when its head is there. Raises NotHTTP, TimeoutError and ConnectionError."""
        size = 0
        while not self._is_begun:
            size += self._receive()
            if size > MAX_HEAD and not self._is_begun:
                raise NotHTTP

    def pieces(self) -> Iterator[bytes]:
        """The body, as it comes. Raises TimeoutError and ConnectionError."""
        try:
            while True:
                pieces, self._pieces = self._pieces, []
                yield from pieces
                if self._is_whole:
                    return
                if self._fault:
                    raise ConnectionError from self._fault
                self._receive()
        finally:
            self.close()

    def read(self) -> bytes:
        """The whole body. Raises TimeoutError and ConnectionError."""
        return b"".join(self.pieces())

    def close(self) -> None:
        """Hang up, unless all of it is there."""
        if not self._is_closed:
            self._is_closed = True
            self._release(self._connection, self._is_whole and not self.is_last)

    def _receive(self) -> int:
        """Take in what comes next; returns its bytes."""
        try:
            data = self._connection.receive()
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionError from error
        if not data:
            self.is_last = True
            if not self._is_begun or self.headers.keys() & {"content-length", "transfer-encoding"}:
                raise ConnectionError
            self._is_whole = True  # it had no other end
            return 0
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self.is_last = True
            if not self._is_begun:
                raise NotHTTP from error
            self._fault = error  # of what comes behind the pieces that were right
        return len(data)

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise NotHTTP  # nobody has asked for more; this ends the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._is_begun = self.status >= 200 or self.status == 101
        if not self._is_begun:  # such as "100 Continue": the answer is still to come
            self.headers.clear()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self.arrived += len(body)

    def on_message_complete(self) -> None:
        self._is_whole = self._is_begun
        self.is_last |= not self._parser.should_keep_alive()


def events(pieces: Iterator[bytes]) -> Iterator[str]:
    """The data of each event of a ``text/event-stream``, whose lines end with LF or CR LF.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
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


def _lines(fields: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items())


def _pass_proxy(connection: _Connection, connect: bytes) -> None:
    """Have the proxy connect to the server. Raises ProxyRefused, and OSError when it hangs up."""
    connection.send(connect, b"")
    answer = Response(connection, lambda *_: None)
    try:
        answer.begin()
    except NotHTTP as error:
        raise ProxyRefused from error
    if not 200 <= answer.status < 300:
        raise ProxyRefused


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The environment's proxy for a URL. Raises OSError when it cannot be used."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # not without need: 30 ms

    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = urlsplit(url if "://" in url else f"http://{url}")
        _ = host_of(proxy), proxy.port
    except ValueError:
        proxy = urlsplit("")
    if proxy.scheme != "http":
        raise OSError("not the URL of an HTTP proxy")  # without the URL, which may hold a password
    return proxy


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _authorities(is_tls: bool) -> ssl.SSLContext | None:
    """TLS, where it is wanted, that trusts whom the environment says, or else Mozilla. Raises OSError."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        Path(file).stat()  # a wrong one is said before the first https:// needs it
    if not is_tls:
        return None
    import ssl

    if not file and not folder:
        import certifi

        file = certifi.where()
    return ssl.create_default_context(cafile=file or None, capath=folder or None)
