"""What every test has: a home of its own, no network but loopback, nothing of the user's environment."""

from __future__ import annotations

import copy
import functools
import logging
import os
import signal
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

if TYPE_CHECKING:
    from tests.support.command_line import Result
    from tests.support.fake_endpoint import FakeEndpoint
    from tests.support.fake_sky import FakeSky

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def once() -> Iterator[None]:
    """What takes a while and is the same each time: a text read as YAML, and the certificates of httpx."""
    parse, create = functools.cache(yaml.safe_load), httpx.create_ssl_context

    @functools.cache
    def context(authorities: tuple[str | None, ...], *given: Any, **named: Any) -> ssl.SSLContext:
        return create(*given, **named)

    def safe_load(stream: Any) -> Any:
        return copy.deepcopy(parse(stream)) if isinstance(stream, str) else parse.__wrapped__(stream)

    def create_ssl_context(*given: Any, **named: Any) -> ssl.SSLContext:
        return context(tuple(map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))), *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", safe_load)
        for module in (httpx, httpx._transports.default):
            patch.setattr(module, "create_ssl_context", create_ssl_context)
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of everything that is remembered, empty."""
    for name in (
        "PIXTRAL_ENDPOINT",
        "PIXTRAL_API_KEY",
        "PIXTRAL_SKY_ENGINE",
        "PIXTRAL_SKY_DEBUG",
        "HF_TOKEN",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    # SkyPilot's server: none is started, and one that runs here is left alone.
    monkeypatch.setenv("SKYPILOT_DISABLE_LOCAL_API_SERVER", "1")
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", "9")
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("PIXTRAL_SKY_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return home


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine fails the test that tries it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):  # type: ignore[no-untyped-def]
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """SkyPilot's own package, in a home of its own, as it writes there when it is imported; and silent."""
    logger = logging.getLogger("sky.serve.autoscalers")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SkyPilot's own
        patch.setenv("HOME", str(tmp_path_factory.mktemp("sky")))
        patch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
        import sky
        import sky.serve.autoscalers
        import sky.serve.serve_utils

        logger.setLevel(logging.CRITICAL)
        yield sky
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSky]:
    """SkyPilot's real SDK, with a fake API server behind it."""
    from tests.support import fake_sky

    with fake_sky.started(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    """What answers, with the key."""
    from tests.support.command_line import KEY
    from tests.support.fake_endpoint import FakeEndpoint

    with FakeEndpoint(key=KEY) as fake:
        yield fake


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    """Runs ``pixtral-sky``, at a terminal when something is ``typed``; it says nothing in colours."""
    from pixtral_sky import output
    from tests.support.command_line import run_main

    monkeypatch.setattr(output, "quiet", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object, **options: Any) -> Result:
        result = run_main(monkeypatch, capsys, *arguments, **options)
        assert "\x1b" not in result.out + result.err
        return result

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
