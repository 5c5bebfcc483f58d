"""Talks to an endpoint: asks, streams, tries again, and makes one of errors.py's errors of all that fails."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pixtral_sky import __version__
from pixtral_sky.client import transport
from pixtral_sky.client.answer import Answer
from pixtral_sky.client.baseten import BASETEN_SECONDS
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import MAX_TOKENS, TEMPERATURE, Question, messages
from pixtral_sky.client.transport import Response, Transport
from pixtral_sky.errors import (
    BrokenAnswer,
    Busy,
    Failed,
    NotAnAPI,
    NoTunnel,
    Refused,
    Unauthorized,
    Unreachable,
    Untrusted,
    UsageError,
)
from pixtral_sky.text import printable

# For all attempts of a request together. SkyServe sends requests to a replica that has died until a probe
# of it fails (10 s) and its balancer has asked for news (20 s).
RETRY_SECONDS = 45.0
READ_SECONDS = 600.0  # for the first piece of an answer, which waits for the queue, and between any two
# For an answer to begin, where the request may be lost: SkyServe's balancer (0.14.1) never answers one that
# came while no replica was ready, if one is before it has said so.
LOST_SECONDS = 20.0
REASON_CHARACTERS = 300  # of a server's own words

BACKOFF_SECONDS = 8.0  # the longest pause, but for the part that is left to chance
SILENT_SECONDS = 10.0  # until a request to Baseten that waits is said to do so


class _PassingError(Exception):
    """A failure worth another attempt: ``error`` if it stays, and the seconds that it asks to ``wait``.

    ``is_start``: it lasts as long as a start does.
    """

    def __init__(self, notice: str, error: Exception, wait: float = 0, is_start: bool = False) -> None:
        super().__init__(notice)
        self.error = error
        self.wait = wait
        self.is_start = is_start


@dataclass
class _Request:
    method: str
    path: str
    body: bytes = b""
    may_be_lost: bool = False  # see LOST_SECONDS

    @property
    def size(self) -> str:
        return f"{len(self.body) / 2**20:.1f} MiB"


class Client:
    """The client of one endpoint, for any number of threads. Closed by ``with`` or ``close()``.

    ``endpoint`` is a URL in any form that a user has at hand, with its ``key``, or an Endpoint.
    For ``budget`` seconds a request that fails may be tried again (0: never). Without it these are
    RETRY_SECONDS, and BASETEN_SECONDS for a deployment on Baseten that has to be started. ``notify`` gets a
    line before each such attempt, in the thread that asks, and one, from a thread of its own, when such a
    start is waited for. ``connections`` are kept open between requests: as many as there are threads.
    ``sleep`` makes the pauses; without it, ``close()`` ends them.

    Raises UsageError when the URL, the key or the proxy settings cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        key: str = "",
        budget: float | None = None,
        read_timeout: float = READ_SECONDS,
        connections: int = 1,
        notify: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        endpoint = Endpoint.at(endpoint, key) if isinstance(endpoint, str) else endpoint
        self.endpoint = endpoint
        self._budget = RETRY_SECONDS if budget is None else budget
        self._may_start = endpoint.is_baseten and budget is None
        self._read_timeout = read_timeout
        self._notify = notify
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        headers = {"User-Agent": f"pixtral-sky/{__version__}", "Content-Type": "application/json"}
        headers["Accept-Encoding"] = "identity"  # answers are short, and a compressed one has no known size
        if endpoint.key:
            # Checked here, as the errors of the libraries below would quote it.
            if not re.fullmatch(r"[!-~]+", endpoint.key):
                raise UsageError("The key has characters that no key can have.", "Look at PIXTRAL_API_KEY.")
            headers["Authorization"] = endpoint.authorization
        try:
            self._transport = Transport(endpoint.base, headers, connections=connections)
        except ValueError as error:
            raise UsageError(f"{endpoint.url!r} is not the URL of an endpoint.") from error
        except OSError as error:
            raise UsageError(
                "The proxy or certificate settings of this environment cannot be used.",
                "Look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
            ) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, whatever other threads do. An answer that is still coming ends at the endpoint as well."""
        self._closed.set()
        self._transport.close()

    def ask(self, question: Question, *, system: str = "", **fields: Any) -> Answer:
        """Send a ``question``: words and pictures in their order, or OpenAI messages.

        Returns when the answer begins: iterate it for its text. ``fields`` are further ones of the request,
        max_tokens (512), temperature (0.7), response_format...; None is not sent. Raises EndpointError.
        """
        body = {"model": self.endpoint.model, "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, **fields}
        body["messages"] = messages(question, system)
        return self._stream({name: value for name, value in body.items() if value is not None})

    def complete(self, question: Question, *, system: str = "", **fields: Any) -> dict[str, Any]:
        """The whole ``chat.completion``. The rest is as for ``ask``.

        It is streamed underneath: a balancer takes a long silence for a dead replica, and asks another one.
        """
        return self.ask(question, system=system, **fields).whole()

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        """The whole ``chat.completion`` for the ``body`` of a request, which is sent as it is.

        But for being streamed underneath, as ``complete`` is, and for the model, if it names none. Raises
        EndpointError.
        """
        return self._stream({"model": self.endpoint.model, **body}).whole()

    def models(self) -> list[dict[str, Any]]:
        """What is served (``GET /v1/models``); each has an ``id``. Raises EndpointError."""
        document = self._document(self.endpoint.models_path)
        try:
            return [dict(model) for model in document["data"] if isinstance(model["id"], str)]
        except (LookupError, TypeError, ValueError):
            raise self._not_an_api() from None

    def learn(self) -> Endpoint:
        """The endpoint with its model and ``max_model_len`` as it reports them; used from now on.

        The model is the endpoint's own if that is served, else the first. Raises EndpointError.
        """
        models = self.models()
        if not models:
            raise NotAnAPI(f"{self.endpoint.url} serves no model.")
        model = next((m for m in models if m["id"] == self.endpoint.model), models[0])
        length = model.get("max_model_len")
        length = length if isinstance(length, int) else None
        self.endpoint = replace(self.endpoint, model=model["id"], max_model_len=length)
        return self.endpoint

    def _stream(self, body: dict[str, Any]) -> Answer:
        asked = time.monotonic()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        response = self._open(_Request("POST", self.endpoint.chat_path, _encode(body)))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.close()
            raise self._not_an_api(response.status)
        return Answer(self._events(response), asked, self._reason)

    def _events(self, response: Response) -> Iterator[str]:
        """The data of each event of a stream. Raises ConnectionError, which says what the stream did."""
        with contextlib.closing(response):
            yield from transport.events(response.pieces())

    def _document(self, path: str) -> Any:
        response = self._open(_Request("GET", path, may_be_lost=True))
        try:
            return json.loads(response.read())
        except ConnectionError as error:
            what = f"The answer {error} after {response.arrived:,} bytes."
            raise BrokenAnswer(what, "Ask again.") from error
        except (ValueError, RecursionError):
            raise self._not_an_api() from None

    def _open(self, request: _Request) -> Response:
        """The head of a 2xx answer; its body is not read yet. The one place where anything is tried again."""
        began, paused, attempt = time.monotonic(), 0.0, 0
        while True:
            try:
                return self._attempt(request)
            except _PassingError as failure:
                by_chance = random.random()  # noqa: S311 (so that all who wait do not come back at once)
                pause = max(min(2**attempt, BACKOFF_SECONDS) + by_chance, failure.wait)
                # The pauses are counted too: where ``sleep`` is a test's, the clock stands still.
                spent = max(time.monotonic() - began, paused)
                if spent + pause > (BASETEN_SECONDS if failure.is_start else self._budget):
                    raise failure.error from failure.__cause__
                self._notify(f"{failure}; trying again in {pause:.0f} s")
                self._sleep(pause)
                paused += pause
                attempt += 1

    def _attempt(self, request: _Request) -> Response:
        if self._closed.is_set():  # in a pause, which that has ended
            raise _hung_up()
        if self.endpoint.tunnel:
            try:
                # Each time: its port may have become another program's, who would be sent the key.
                self.endpoint.tunnel.open()
            except NoTunnel:
                raise
            except Unreachable as error:
                raise _PassingError(f"{self.endpoint.tunnel.name} cannot be reached", error) from None
        patience = min(LOST_SECONDS, self._read_timeout) if request.may_be_lost else self._read_timeout
        if self._may_start:  # Baseten holds it meanwhile
            patience = BASETEN_SECONDS
        try:
            with self._said_to_wait() if self._may_start else contextlib.nullcontext():
                response = self._transport.request(
                    request.method, request.path, request.body, timeout=self._read_timeout, patience=patience
                )
        except (transport.TransportError, TimeoutError, ConnectionError) as error:
            raise self._unanswered(error, request) from error
        if 200 <= response.status < 300:
            return response
        with contextlib.closing(response):
            raise self._refusal(response, request)

    @contextlib.contextmanager
    def _said_to_wait(self) -> Iterator[None]:
        """Give notice of it after SILENT_SECONDS."""
        what = f"{self.endpoint.url} is silent; a deployment that had scaled to zero takes minutes to start"
        clock = threading.Timer(SILENT_SECONDS, self._notify, [what])
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _unanswered(self, error: Exception, request: _Request) -> Exception:
        """What it means that no answer began."""
        import ssl  # takes longer than all else here, and plain HTTP has no use for it

        url, cause = self.endpoint.url, error.__cause__
        if self._closed.is_set():
            return _hung_up()
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
                return Untrusted(
                    f"{url} has a certificate for another name.",
                    "Ask by that name: export PIXTRAL_ENDPOINT=https://NAME:PORT",
                )
            return Untrusted(f"{url} has no certificate that is trusted.", "Name its CA: SSL_CERT_FILE")
        if isinstance(cause, ssl.SSLError):
            return Unreachable(f"{url} speaks no TLS that can be used.", "Try http:// in place of https://.")
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return Unreachable(f"No host has the name in {url}.", "Is it spelled right?")
        if isinstance(error, transport.NoConnection):
            silent = f"othing answers at {url}"
            return _PassingError(f"n{silent}", Unreachable(f"N{silent}.", self.endpoint.hint))
        if isinstance(error, TimeoutError):
            slow = self._too_slow()
            return _PassingError("no answer begins", slow) if request.may_be_lost else slow
        if isinstance(error, transport.ProxyRefused):
            return Unreachable(f"The proxy does not lead to {url}.", "Look at HTTPS_PROXY and NO_PROXY.")
        if isinstance(error, transport.NotHTTP):
            return NotAnAPI(f"{url} does not speak HTTP.", "Try https:// in place of http://.")
        what = f"{url} hangs up without an answer to a request of {request.size}."
        dropped = Unreachable(what, self.endpoint.hint)
        return _PassingError("the connection was dropped before an answer began", dropped)

    def _refusal(self, response: Response, request: _Request) -> Exception:
        """What an answer that is not 2xx means."""
        url, status = self.endpoint.url, response.status
        try:
            document = json.loads(response.read())
        except (ConnectionError, ValueError, RecursionError):
            document = None  # the status says enough
        error, detail = (document.get(k) if isinstance(document, dict) else None for k in ("error", "detail"))
        reason = self._reason(error or detail)
        because = f" ({status}): {reason}" if reason else f" ({status})."
        # With `detail` it is SkyServe's balancer, which has asked nobody or everybody; vLLM says `error`.
        no_replica = not error and isinstance(detail, str) and detail.startswith(("No ready", "Max retries"))
        # Its gateway, or nothing that says more: vLLM's own error is an object, or a `detail`.
        if self.endpoint.is_baseten and not isinstance(error, dict) and not detail:
            if status in (502, 503):
                cold = Busy(f"{url} is not up{because}", "What it does: https://app.baseten.co")
                return _PassingError(f"{url} is starting ({status})", cold, is_start=self._may_start)
            if status == 404:
                return Refused(f"Baseten has no deployment at {url}{because}", self.endpoint.hint)
        if status in (429, 502, 503, 504) or (status == 500 and no_replica):
            wait = _retry_after(response)
            hint = f"It asks to wait {wait:.0f} s." if wait else "Try again later."
            if no_replica and "ReadTimeout" in reason:
                return self._too_slow()  # it was worked on three times, and would be three times more
            if no_replica:
                request.may_be_lost = True
                return _PassingError("no replica is ready", Busy("No replica is ready.", hint, wait), wait)
            busy = Busy(f"{url} is busy{because}", hint, wait)
            return _PassingError(f"{url} is busy ({status})", busy, wait)
        if status in (401, 403):
            what = "does not take this key" if self.endpoint.key else "asks for a key, and none was given"
            return Unauthorized(f"{url} {what} ({status}).", self.endpoint.hint)
        if status == 413:
            what = f"The request is {request.size}, more than {url} takes."
            return Refused(what, "Send fewer pictures at a time.")
        if 300 <= status < 400 and "location" in response.headers:
            place = self._reason(response.headers["location"]).rstrip(".")
            return Refused(
                f"{url} redirects to {place}, where no key is sent.", "Is it yours? --endpoint URL"
            )
        if status >= 500:
            return Failed(f"{url} failed{because}", "Its log tells more.")
        if status == 404 and reason == "There is no such route here.":  # our gateway
            return Refused(f"{url} has no such route.", self.endpoint.hint)
        if "from one of the allowed domains" in reason:
            return Refused("This endpoint fetches no pictures from there.", "Leave out --remote-urls.")
        return Refused(reason) if error and reason else self._not_an_api(status)

    def _too_slow(self) -> BrokenAnswer:
        return BrokenAnswer(f"{self.endpoint.url} takes too long to answer.", self.endpoint.hint)

    def _not_an_api(self, status: int = 200) -> NotAnAPI:
        what = f"{self.endpoint.url} answers ({status}), but not as an OpenAI-compatible API does."
        return NotAnAPI(what, self.endpoint.hint)

    def _reason(self, said: object) -> str:
        """A server's own words as one short sentence to print, with no control character, key or picture."""
        said = said.get("message") if isinstance(said, dict) else said
        text = " ".join(printable(said).split()) if isinstance(said, str) else ""
        if self.endpoint.key:
            text = text.replace(self.endpoint.key, "***")
        text = re.sub(r"data:[^\s,]*,[^\s'\"]*|[\w+/=-]{100,}", "...", text)
        if len(text) > REASON_CHARACTERS:
            return f"{text[: REASON_CHARACTERS - 3]}..."
        return f"{text}." if text and text[-1] not in ".!?" else text


def _hung_up() -> BrokenAnswer:
    return BrokenAnswer("It was hung up on here, before an answer began.", "Ask again.")


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)  # of a request with a picture: 50 times as fast as json
    except TypeError:  # a number beyond 64 bits, or half of a character, as "\\ud83d" in a user's JSON is
        return json.dumps(body, separators=(",", ":")).encode()


def _retry_after(response: Response) -> float:
    """Seconds to wait, from a header that has them or a date; 0 when it is missing or makes no sense."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    from email.utils import parsedate_to_datetime  # rarely needed, and slow to come

    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
