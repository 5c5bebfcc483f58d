"""Talks to an endpoint: asks, streams, tries again, and makes one of errors.py's errors of all that fails.

It imports httpx: import it where it is used, not when the command line starts.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from httpx_sse import EventSource
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from pixtral_sky import __version__
from pixtral_sky.asking import Answer, printable
from pixtral_sky.endpoint import Endpoint
from pixtral_sky.errors import (
    BrokenAnswer,
    Busy,
    NotAnAPI,
    Refused,
    Unauthorized,
    Unreachable,
    Untrusted,
    UsageError,
)
from pixtral_sky.tunnel import NoWay

# For all attempts of a request together. SkyServe sends requests to a replica that has died until a probe
# of it fails (10 s) and its balancer has asked for news (20 s).
RETRY_SECONDS = 45.0
CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0  # for the first piece of an answer, which waits for the queue, and between any two
# For an answer to begin, where the request may be lost: SkyServe's balancer (0.14.1) never answers one that
# came while no replica was ready, if one is before it has said so.
LOST_SECONDS = 20.0
REASON_CHARACTERS = 300  # of a server's own words

_BACKOFF = wait_exponential(multiplier=1, max=8) + wait_random(0, 1)
_CHAT = "/v1/chat/completions"


class _PassingError(Exception):
    """A failure worth another attempt: ``error`` if it stays, and the seconds that it asks to ``wait``."""

    def __init__(self, notice: str, error: Exception, wait: float = 0) -> None:
        super().__init__(notice)
        self.error = error
        self.wait = wait


class Client:
    """The client of one endpoint, for one thread. Closed by ``with`` or ``close()``.

    For ``budget`` seconds a request that fails may be tried again (0: never); ``notify`` gets a line before
    each such attempt. Raises UsageError when the URL, the key or the proxy settings cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        budget: float = RETRY_SECONDS,
        read_timeout: float = READ_SECONDS,
        notify: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint = endpoint
        self._budget = budget
        self._read_timeout = read_timeout
        self._may_be_lost = False
        self._notify = notify
        self._sleep = sleep
        headers = {"User-Agent": f"pixtral-sky/{__version__}", "Content-Type": "application/json"}
        headers["Accept-Encoding"] = "identity"  # answers are short, and a compressed one has no known size
        if endpoint.key:
            # Checked here, as the errors of the libraries below would quote it.
            if not re.fullmatch(r"[!-~]+", endpoint.key):
                raise UsageError("The key has characters that no key can have.", "Look at PIXTRAL_API_KEY.")
            headers["Authorization"] = f"Bearer {endpoint.key}"
        try:
            host = httpx.URL(endpoint.url).host
            host.encode("idna")  # the resolver does so too, and its error is not httpx's
        except (httpx.InvalidURL, UnicodeError) as error:
            raise UsageError(f"{endpoint.url!r} is not the URL of an endpoint.") from error
        try:
            self._http = httpx.Client(
                base_url=endpoint.url,
                headers=headers,
                timeout=httpx.Timeout(read_timeout, connect=CONNECT_SECONDS),
                verify=httpx.create_ssl_context(),  # minds SSL_CERT_FILE, with trust_env or without
                trust_env=not _is_loopback(host),  # what stays on this machine passes no proxy
                follow_redirects=False,  # the key is for this host alone
            )
        except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
            raise UsageError(
                "The proxy or certificate settings of this environment cannot be used.",
                "Look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
            ) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. An answer that is still coming ends at the endpoint as well."""
        self._http.close()

    def ask(self, messages: list[dict[str, Any]], **fields: Any) -> Answer:
        """Send OpenAI ``messages``; returns when the answer begins.

        ``fields`` are further ones of the request: max_tokens (512), temperature (0.7), response_format...;
        None is not sent. Raises EndpointError.
        """
        asked = time.monotonic()
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        response = self._open("POST", _CHAT, self._body(messages, fields))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.close()
            raise self._not_an_api(response.status_code)
        return Answer(self._events(response), asked, self._reason)

    def complete(self, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """The whole ``chat.completion``, of one choice. The rest is as for ``ask``.

        It is streamed underneath: a balancer takes a long silence for a dead replica, and asks another one.
        """
        answer = self.ask(messages, **fields)
        for _ in answer:
            pass
        return answer.document()

    def models(self) -> list[dict[str, Any]]:
        """What is served (``GET /v1/models``); each has an ``id``. Raises EndpointError."""
        document = self._document("/v1/models")
        try:
            return [dict(model) for model in document["data"] if isinstance(model["id"], str)]
        except (LookupError, TypeError, ValueError):
            raise self._not_an_api() from None

    def _body(self, messages: list[dict[str, Any]], fields: dict[str, Any]) -> bytes:
        body = {
            "model": self.endpoint.model,
            "messages": messages,
            "max_tokens": 512,
            "temperature": 0.7,
            **fields,
        }
        return json.dumps({k: v for k, v in body.items() if v is not None}, separators=(",", ":")).encode()

    def _events(self, response: httpx.Response) -> Iterator[str]:
        """The data of each event of a stream. Raises ConnectionError, which says what the stream did."""
        try:
            with closing(response):
                for event in EventSource(response).iter_sse():
                    yield event.data
        except httpx.TimeoutException as error:
            raise ConnectionError("stalled") from error
        except httpx.HTTPError as error:
            raise ConnectionError("broke off") from error

    def _document(self, path: str) -> Any:
        with closing(self._open("GET", path, b"")) as response:
            try:
                return json.loads(response.read())
            except httpx.HTTPError as error:
                how = "stalled" if isinstance(error, httpx.TimeoutException) else "broke off"
                arrived = response.num_bytes_downloaded
                raise BrokenAnswer(f"The answer {how} after {arrived:,} bytes.", "Ask again.") from error
            except (ValueError, RecursionError):
                raise self._not_an_api() from None

    def _open(self, method: str, path: str, body: bytes) -> httpx.Response:
        """The head of a 2xx answer; its body is not read yet. The one place where anything is tried again."""
        retrying = Retrying(
            retry=retry_if_exception_type(_PassingError),
            wait=lambda state: max(_BACKOFF(state), _failure(state).wait),
            stop=self._is_spent,
            before_sleep=lambda s: self._notify(f"{_failure(s)}; trying again in {s.upcoming_sleep:.0f} s"),
            sleep=self._sleep,
            reraise=True,
        )
        self._may_be_lost = method == "GET"
        try:
            return retrying(self._attempt, self._http.build_request(method, path, content=body))
        except _PassingError as failure:
            raise failure.error from failure.__cause__

    def _is_spent(self, state: RetryCallState) -> bool:
        # The pauses are counted too: where ``sleep`` is a test's, the clock stands still.
        return max(state.seconds_since_start or 0, state.idle_for) + state.upcoming_sleep > self._budget

    def _attempt(self, request: httpx.Request) -> httpx.Response:
        size = f"{len(request.content) / 2**20:.1f} MiB"
        if self.endpoint.tunnel:
            try:
                # Each time: its port may have become another program's, who would be sent the key.
                self.endpoint.tunnel.open()
            except NoWay:
                raise
            except Unreachable as error:
                raise _PassingError(f"{self.endpoint.tunnel.name} cannot be reached", error) from None
        timeout = request.extensions["timeout"]
        if self._may_be_lost:
            timeout["read"] = min(LOST_SECONDS, self._read_timeout)
        try:
            response = self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._unanswered(error, size) from error
        finally:
            timeout["read"] = self._read_timeout
        if response.is_success:
            return response
        with closing(response):
            raise self._refusal(response, size)

    def _unanswered(self, error: httpx.HTTPError, size: str) -> Exception:
        """What it means that no answer began."""
        url, cause = self.endpoint.url, _system_error(error)
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
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            silent = f"othing answers at {url}"
            return _PassingError(f"n{silent}", Unreachable(f"N{silent}.", self.endpoint.hint))
        if isinstance(error, httpx.TimeoutException):
            slow = self._too_slow()
            return _PassingError("no answer begins", slow) if self._may_be_lost else slow
        if isinstance(error, httpx.ProxyError):
            return Unreachable(f"The proxy does not lead to {url}.", "Look at HTTPS_PROXY and NO_PROXY.")
        if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
            return NotAnAPI(f"{url} does not speak HTTP.", "Try https:// in place of http://.")
        dropped = Unreachable(f"{url} hangs up without an answer to a request of {size}.", self.endpoint.hint)
        return _PassingError("the connection was dropped before an answer began", dropped)

    def _refusal(self, response: httpx.Response, size: str) -> Exception:
        """What an answer that is not 2xx means."""
        url, status = self.endpoint.url, response.status_code
        try:
            document = json.loads(response.read())
        except (httpx.HTTPError, ValueError, RecursionError):
            document = None  # the status says enough
        error, detail = (document.get(k) if isinstance(document, dict) else None for k in ("error", "detail"))
        reason = self._reason(error or detail)
        because = f" ({status}): {reason}" if reason else f" ({status})."
        # With `detail` it is SkyServe's balancer, which has asked nobody or everybody; vLLM says `error`.
        no_replica = not error and isinstance(detail, str) and detail.startswith(("No ready", "Max retries"))
        if status in (429, 502, 503, 504) or (status == 500 and no_replica):
            wait = _retry_after(response)
            hint = f"It asks to wait {wait:.0f} s." if wait else "Try again later."
            if no_replica and "ReadTimeout" in reason:
                return self._too_slow()  # it was worked on three times, and would be three times more
            if no_replica:
                self._may_be_lost = True
                return _PassingError("no replica is ready", Busy("No replica is ready.", hint), wait)
            return _PassingError(f"{url} is busy ({status})", Busy(f"{url} is busy{because}", hint), wait)
        if status in (401, 403):
            what = "does not take this key" if self.endpoint.key else "asks for a key, and none was given"
            return Unauthorized(f"{url} {what} ({status}).", self.endpoint.hint)
        if status == 413:
            return Refused(f"The request is {size}, more than {url} takes.", "Send fewer pictures at a time.")
        if response.is_redirect:
            place = self._reason(response.headers["location"]).rstrip(".")
            return Refused(
                f"{url} redirects to {place}, where no key is sent.", "Is it yours? --endpoint URL"
            )
        if status >= 500:
            return Refused(f"{url} failed{because}", "Its log tells more.")
        if status == 404 and reason == "There is no such route here.":  # our front door
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _system_error(error: BaseException | None) -> BaseException | None:
    """What the system said, from the chain of errors behind one of httpx."""
    while error and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _failure(state: RetryCallState) -> _PassingError:
    failure = state.outcome and state.outcome.exception()
    assert isinstance(failure, _PassingError)
    return failure


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait, from a header that has them or a date; 0 when it is missing or makes no sense."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
