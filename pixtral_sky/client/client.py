"""The client of an endpoint: it asks, streams, retries, and maps failures to the errors of errors.py."""

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
    EndpointError,
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

# For all attempts of a request. SkyServe sends requests to a dead replica until a probe of it fails (10 s)
# and its balancer has asked for news (20 s).
RETRY_SECONDS = 45.0
# The same for a client that was never answered, where nothing listens or the name is not found: as a rule its
# address is mistyped.
FIRST_SECONDS = 3.0
READ_SECONDS = 600.0  # until an answer begins, after the queue, and between two chunks of it
# Until an answer begins to a request that may be lost: SkyServe's balancer (0.14.1) never answers one that
# came while no replica was ready, if one becomes ready before the balancer has refused.
LOST_SECONDS = 20.0
REASON_CHARACTERS = 300  # of a server's own words

# How often a request is sent again on which the server has worked already: it failed, or its answer broke off
# before anybody saw some of it. More would not help, if the request is what it cannot bear.
AGAIN = 2
RETRY_AFTER_SECONDS = 60.0  # the longest pause that a server may ask for
# Bytes that are read at most: of an error, of a document, and of an answer besides those of its tokens, which
# may each have the 20 most likely ones beside it (logprobs).
MAX_ERROR, MAX_DOCUMENT, MAX_ANSWER = 2**16, 2**23, 2**24
TOKEN_BYTES = 2**14
MOST_TOKENS = 2**17  # of an answer whose request does not say how many

# One pixel, for the smallest question with a picture.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4"
    "z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
)
BACKOFF_SECONDS = 8.0  # the longest pause, without its random part
SILENT_SECONDS = 10.0  # until the user is told that a request to Baseten waits


class _TransientError(Exception):
    """A failure worth a retry: ``error`` if it lasts, and the seconds that the server asks to ``wait``.

    ``is_start``: it may last as long as the start of a deployment. ``is_absent``: see FIRST_SECONDS.
    """

    def __init__(
        self,
        notice: str,
        error: Exception,
        wait: float = 0,
        *,
        is_start: bool = False,
        is_absent: bool = False,
    ) -> None:
        super().__init__(notice)
        self.error = error
        self.wait = wait
        self.is_start = is_start
        self.is_absent = is_absent


@dataclass
class _Request:
    method: str
    path: str
    body: bytes = b""
    may_be_lost: bool = False  # see LOST_SECONDS
    again: int = 0  # see AGAIN
    once: bool = False  # it is not tried again, whatever comes

    @property
    def size(self) -> str:
        return f"{len(self.body) / 2**20:.1f} MiB"


class Client:
    """The client of one endpoint, for any number of threads. Closed by ``with`` or ``close()``.

    ``endpoint`` is an Endpoint, or a URL in any form that ``base_url`` takes, with its ``key``. A failed
    request is retried for ``budget`` seconds (0: never; None: RETRY_SECONDS, BASETEN_SECONDS while a
    deployment on Baseten starts, and FIRST_SECONDS where nothing listens and nothing ever has answered), and
    up to ``again`` times when the server has failed, or its answer broke off before any of it was seen.
    ``notify`` gets a line before each retry, in the thread that asks, and one when such a start is waited
    for, in a thread of its own. ``connections`` are kept open between requests:
    as many as there are threads. ``sleep`` makes the pauses; without it, ``close()`` ends them.

    Raises UsageError when the URL, the key or the proxy settings cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        key: str = "",
        budget: float | None = None,
        again: int = AGAIN,
        read_timeout: float = READ_SECONDS,
        connections: int = 1,
        notify: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        endpoint = Endpoint.at(endpoint, key) if isinstance(endpoint, str) else endpoint
        if not isinstance(endpoint, Endpoint):
            raise TypeError(f"An endpoint is a URL, not {type(endpoint).__name__}.")
        endpoint.check()  # the libraries' errors would quote the key
        self.endpoint = endpoint
        self._budget = RETRY_SECONDS if budget is None else budget
        self._first_budget = FIRST_SECONDS if budget is None else budget
        self._again = again if self._budget else 0
        self._may_start = endpoint.is_baseten and budget is None
        self._read_timeout = read_timeout
        self._notify = notify
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._answered = 0.0  # when an answer began last, to any of its requests
        headers = {"User-Agent": f"pixtral-sky/{__version__}", "Content-Type": "application/json"}
        headers["Accept-Encoding"] = "identity"  # answers are short; a compressed one can be of any size
        if endpoint.key:
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
        """Close all connections. Answers in other threads end, here and at the endpoint."""
        self._closed.set()
        self._transport.close()

    def ask(self, question: Question, *, system: str = "", **fields: Any) -> Answer:
        """Send a ``question``: words and pictures in their order, or OpenAI messages.

        Returns when the answer begins: iterate it for its text. ``fields`` are further fields of the request:
        max_tokens (512), temperature (0.7), response_format...; None is not sent. An answer that breaks off
        before its first text is asked again, later ones never. Raises EndpointError.
        """
        body = {"model": self.endpoint.model, "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, **fields}
        body["messages"] = messages(question, system)
        return self._stream({name: value for name, value in body.items() if value is not None})

    def complete(self, question: Question, *, system: str = "", **fields: Any) -> dict[str, Any]:
        """Ask as ``ask`` does, and return the whole ``chat.completion``.

        The answer is streamed all the same: a balancer takes a long silence for a dead replica, and asks
        another one. One that breaks off anywhere is asked again.
        """
        return self.ask(question, system=system, **fields).whole()

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send the ``body`` of a request, and return the whole ``chat.completion``.

        The model is filled in where ``body`` has none. The answer is streamed as for ``complete``. Raises
        EndpointError.
        """
        return self._stream({"model": self.endpoint.model, **body}).whole()

    def answers(self, *, pictures: bool) -> bool:
        """Whether it answers a smallest question now, with a picture or without, at the first attempt.

        Raises Unauthorized and Untrusted.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": "Hello"}]
        if pictures:
            content.append({"type": "image_url", "image_url": {"url": PIXEL}})
        asked = [{"role": "user", "content": content}]
        body = {"model": self.endpoint.model, "messages": asked, "max_tokens": 1}
        try:
            self._stream(body, once=True).whole()
        except (Unauthorized, Untrusted):
            raise
        except EndpointError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """The served models (``GET /v1/models``), each with an ``id``. Raises EndpointError."""
        document = self._document(self.endpoint.models_path)
        try:
            return [dict(model) for model in document["data"] if isinstance(model["id"], str)]
        except (LookupError, TypeError, ValueError):
            raise self._not_an_api() from None

    def learn(self) -> Endpoint:
        """Take the model and ``max_model_len`` that the endpoint reports into ``endpoint``, and return that.

        The model stays if it is served, else it becomes the first. Raises EndpointError.
        """
        models = self.models()
        if not models:
            raise NotAnAPI(f"{self.endpoint.url} serves no model.")
        model = next((m for m in models if m["id"] == self.endpoint.model), models[0])
        length = model.get("max_model_len")
        length = length if isinstance(length, int) else None
        self.endpoint = replace(self.endpoint, model=model["id"], max_model_len=length)
        return self.endpoint

    def _stream(self, body: dict[str, Any], *, once: bool = False) -> Answer:
        asked = time.monotonic()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        again_at_most = 0 if once else self._again
        request = _Request("POST", self.endpoint.chat_path, _encode(body), again=again_at_most, once=once)
        choices = _number(body, "n", otherwise=1)
        tokens = _number(body, "max_completion_tokens", "max_tokens", otherwise=MOST_TOKENS)
        most = MAX_ANSWER + tokens * choices * TOKEN_BYTES

        def again(what: str) -> Iterator[str] | None:
            if not request.again or self._closed.is_set():
                return None
            request.again -= 1
            pause = 1 + random.random()  # noqa: S311
            self._notify(f"{what[0].lower()}{what[1:].rstrip('.')}; asking again in {pause:.0f} s")
            self._sleep(pause)
            return self._events(request, most)

        return Answer(self._events(request, most), asked, self._reason, again, choices)

    def _events(self, request: _Request, most: int) -> Iterator[str]:
        """The events of an answer of up to ``most`` bytes."""
        response = self._open(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.close()
            raise self._not_an_api(response.status)
        return transport.events(response.chunks(most))

    def _document(self, path: str) -> Any:
        response = self._open(_Request("GET", path, may_be_lost=True))
        try:
            return json.loads(response.read(MAX_DOCUMENT))
        except ConnectionError as error:
            what = f"The answer {error} after {response.arrived:,} bytes."
            raise BrokenAnswer(what, "Ask again.") from error
        except (ValueError, RecursionError):
            raise self._not_an_api() from None

    def _open(self, request: _Request) -> Response:
        """Return a 2xx answer whose body is not read yet. The only place that retries."""
        before = began = time.monotonic()
        paused, attempt = 0.0, 0
        while True:
            try:
                response = self._attempt(request)
                self._answered = time.monotonic()
                return response
            except _TransientError as failure:
                if self._answered > before:  # others are answered: it is not down, so the pauses begin anew
                    attempt = 0
                before = time.monotonic()
                jitter = random.random()  # noqa: S311 (clients must not come back all at once)
                pause = max(min(2**attempt, BACKOFF_SECONDS) + jitter, failure.wait)
                # The pauses count by themselves, for a ``sleep`` that takes no time.
                spent = max(time.monotonic() - began, paused)
                has_failed = isinstance(failure.error, Failed)
                is_over = spent + pause > self._patience(failure)
                if is_over or request.once or (has_failed and not request.again):
                    raise failure.error from failure.__cause__
                request.again -= has_failed
                self._notify(f"{failure}; trying again in {pause:.0f} s")
                self._sleep(pause)
                paused += pause
                attempt += 1

    def _patience(self, failure: _TransientError) -> float:
        """For how many seconds a request is retried that fails so."""
        if failure.is_start:
            return BASETEN_SECONDS
        return self._first_budget if failure.is_absent and not self._answered else self._budget

    def _attempt(self, request: _Request) -> Response:
        if self._closed.is_set():  # close() has ended the pause
            raise _hung_up()
        if self.endpoint.tunnel:
            try:
                # For each attempt: its port may have become another program's, which would get the key.
                self.endpoint.tunnel.open()
            except NoTunnel:
                raise
            except Unreachable as error:
                raise _TransientError(f"{self.endpoint.tunnel.name} cannot be reached", error) from None
        patience = min(LOST_SECONDS, self._read_timeout) if request.may_be_lost else self._read_timeout
        if self._may_start:  # Baseten holds the request while it starts
            patience = BASETEN_SECONDS
        try:
            with self._notice_of_silence() if self._may_start else contextlib.nullcontext():
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
    def _notice_of_silence(self) -> Iterator[None]:
        """Notify once after SILENT_SECONDS."""
        what = f"{self.endpoint.url} is silent; a deployment that had scaled to zero takes minutes to start"
        timer = threading.Timer(SILENT_SECONDS, self._notify, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _unanswered(self, error: Exception, request: _Request) -> Exception:
        """The error for a request to which no answer began."""
        import ssl  # slow to import, and plain HTTP does without it

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
            absent = isinstance(cause, (ConnectionRefusedError, socket.gaierror))
            return _TransientError(
                f"n{silent}", Unreachable(f"N{silent}.", self.endpoint.hint), is_absent=absent
            )
        if isinstance(error, TimeoutError):
            slow = self._too_slow()
            return _TransientError("no answer begins", slow) if request.may_be_lost else slow
        if isinstance(error, transport.ProxyRefused):
            return Unreachable(f"The proxy does not lead to {url}.", "Look at HTTPS_PROXY and NO_PROXY.")
        if isinstance(error, transport.NotHTTP):
            return NotAnAPI(f"{url} does not speak HTTP.", "Try https:// in place of http://.")
        what = f"{url} hangs up without an answer to a request of {request.size}."
        dropped = Unreachable(what, self.endpoint.hint)
        return _TransientError("the connection was dropped before an answer began", dropped)

    def _refusal(self, response: Response, request: _Request) -> Exception:
        """The error for an answer that is not 2xx."""
        url, status = self.endpoint.url, response.status
        error, detail = _said(response)
        reason = self._reason(error or detail)
        because = f" ({status}): {reason}" if reason else f" ({status})."
        # SkyServe's balancer answers with `detail` when it has asked no replica or all; vLLM with `error`.
        no_replica = not error and isinstance(detail, str) and detail.startswith(("No ready", "Max retries"))
        # An error of vLLM is an object or a `detail`; others are of Baseten's own gateway.
        if self.endpoint.is_baseten and not isinstance(error, dict) and not detail:
            if status in (502, 503):
                cold = Busy(f"{url} is not up{because}", "What it does: https://app.baseten.co")
                return _TransientError(f"{url} is starting ({status})", cold, is_start=self._may_start)
            if status == 404:
                return Refused(f"Baseten has no deployment at {url}{because}", self.endpoint.hint)
        if status in (429, 502, 503, 504) or (status == 500 and no_replica):
            asked = _retry_after(response)
            wait = min(asked, RETRY_AFTER_SECONDS)
            hint = f"It asks to wait {asked:.0f} s." if asked else "Try again later."
            long = f" and asks to wait {asked:.0f} s" if asked > wait else ""
            if no_replica and "ReadTimeout" in reason:
                return self._too_slow()  # three replicas have worked on it; a retry would ask three more
            if no_replica:
                request.may_be_lost = True
                return _TransientError("no replica is ready", Busy("No replica is ready.", hint, asked), wait)
            busy = Busy(f"{url} is busy{because}", hint, asked)
            return _TransientError(f"{url} is busy ({status}){long}", busy, wait)
        if status in (401, 403):
            what = "does not take this key" if self.endpoint.key else "asks for a key, and none was given"
            return Unauthorized(f"{url} {what} ({status}).", self.endpoint.key_hint)
        if status == 413:
            what = f"The request is {request.size}, more than {url} takes."
            return Refused(what, "Send fewer pictures at a time.")
        if 300 <= status < 400 and "location" in response.headers:
            target = self._reason(response.headers["location"]).rstrip(".")
            what = f"{url} redirects to {target}, where no key is sent."
            return Refused(what, "Is it yours? --endpoint URL")
        if status >= 500:
            failed = Failed(f"{url} failed{because}", "Its log tells more.")
            return _TransientError(f"{url} failed ({status})", failed)
        code = error.get("code") if isinstance(error, dict) else None  # as our gateway has them
        if code == "not_found":
            return Refused(f"{url} has no such route.", self.endpoint.hint)
        if code == "invalid_image_url":
            what = reason.partition(" Send the picture as data")[0]  # what --remote-urls is there to avoid
            return Refused(what, "Without --remote-urls it is downloaded here.")
        return Refused(reason) if error and reason else self._not_an_api(status)

    def _too_slow(self) -> BrokenAnswer:
        return BrokenAnswer(f"{self.endpoint.url} takes too long to answer.", self.endpoint.hint)

    def _not_an_api(self, status: int = 200) -> NotAnAPI:
        what = f"{self.endpoint.url} answers ({status}), but not as an OpenAI-compatible API does."
        return NotAnAPI(what, self.endpoint.hint)

    def _reason(self, said: object) -> str:
        """A server's words as one short sentence, without control characters, the key and pictures."""
        said = said.get("message") if isinstance(said, dict) else said
        text = " ".join(printable(said).split()) if isinstance(said, str) else ""
        if self.endpoint.key:
            text = text.replace(self.endpoint.key, "***")
        text = re.sub(r"data:[^\s,]*,[^\s'\"]*|[\w+/=-]{100,}", "...", text)
        if len(text) > REASON_CHARACTERS:
            return f"{text[: REASON_CHARACTERS - 3]}..."
        return f"{text}." if text and text[-1] not in ".!?" else text


def _hung_up() -> BrokenAnswer:
    return BrokenAnswer("The client was closed before an answer began.", "Ask again.")


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)  # 50 times as fast as json for a request with a picture
    except TypeError:  # a number beyond 64 bits, or half a surrogate pair
        return json.dumps(body, separators=(",", ":")).encode()


def _said(response: Response) -> tuple[Any, Any]:
    """The ``error`` and the ``detail`` of an answer; None where it has none, and the status says all."""
    try:
        document = json.loads(response.read(MAX_ERROR))
    except (ConnectionError, ValueError, RecursionError):
        return None, None
    if not isinstance(document, dict):
        return None, None
    older = document if document.get("object") == "error" else None  # an older vLLM's
    return document.get("error") or older, document.get("detail")


def _number(body: dict[str, Any], *names: str, otherwise: int) -> int:
    """The first of the fields that has a whole number above 0, of a body that may have anything."""
    values = (body.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), otherwise)


def _retry_after(response: Response) -> float:
    """The seconds to wait by the header, which has seconds or a date; 0 when it is missing or malformed."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    from email.utils import parsedate_to_datetime  # slow to import, and rarely needed

    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
