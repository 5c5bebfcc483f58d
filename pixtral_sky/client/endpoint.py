"""An endpoint: its URL, its key, its limits, and the tunnel to it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from pixtral_sky.client import baseten
from pixtral_sky.errors import UsageError
from pixtral_sky.pixtral import SERVED_NAME

DEFAULT_MAX_IMAGES = 4  # what pixtral.yaml and service.yaml ship


class Tunnel(Protocol):
    """What has to be open before an endpoint's URL works."""

    @property
    def name(self) -> str:
        """What it leads to."""

    def open(self) -> None:
        """Return when it is open. Raises Unreachable; NoTunnel where a retry is of no use."""

    def hold(self, notify: Callable[[str], None]) -> None:
        """Keep it open until the program is interrupted; ``notify`` is told of lost and new connections."""


@dataclass(frozen=True)
class Endpoint:
    """Where to send a request. ``url`` has no trailing slash and no ``/v1``; ``key`` may be empty."""

    url: str
    key: str = field(default="", repr=False)
    model: str = SERVED_NAME
    # Tokens of prompt and answer together; None until ``Client.learn`` has asked.
    max_model_len: int | None = None
    max_images: int = DEFAULT_MAX_IMAGES
    # The name of its remembered deployment, or the variable that names it; empty: the URL was given.
    origin: str = ""
    tunnel: Tunnel | None = None
    # Chat uses Baseten's `predict` route, as it was given, instead of `sync/`, which ``url`` has.
    predict: bool = False
    # What gave the key, where that is no remembered deployment.
    key_origin: str = field(default="PIXTRAL_API_KEY", compare=False)

    @classmethod
    def at(cls, text: str, key: str = "", origin: str = "") -> Endpoint:
        """The endpoint at a URL in any form that ``base_url`` takes. Raises UsageError."""
        url, predict = _read(text)
        return cls(url, key, origin=origin, predict=predict)

    def check(self) -> None:
        """Raise UsageError for a URL or a key that no request can carry; its text holds no key."""
        base_url(self.url)
        # A header's characters; `deploy/resolve.py` has the narrower rule for our own deployments.
        if self.key and not re.fullmatch(r"[!-~]+", self.key):
            raise UsageError("The key has characters that no key can have.", "Look at PIXTRAL_API_KEY.")

    @property
    def is_baseten(self) -> bool:
        """Whether Baseten runs it: the key's header is another one there, and it may have to be started."""
        return baseten.is_baseten(self.url)

    @property
    def authorization(self) -> str:
        """The Authorization header; empty without a key."""
        return f"{'Api-Key' if self.is_baseten else 'Bearer'} {self.key}" if self.key else ""

    @property
    def base(self) -> str:
        """The URL before the paths below."""
        return self.url.removesuffix("/sync") if self.predict else self.url

    @property
    def chat_path(self) -> str:
        return "/predict" if self.predict else "/v1/chat/completions"

    @property
    def models_path(self) -> str:
        return "/sync/v1/models" if self.predict else "/v1/models"

    @property
    def chat_url(self) -> str:
        return self.base + self.chat_path

    @property
    def hint(self) -> str:
        """What to look at when it does not answer as an endpoint does. A key has no part in that."""
        if not self.is_given:
            return f"Is it running? pixtral-sky status {self.origin}"
        ask = "Is its address right?"
        if self.origin:
            ask = "PIXTRAL_ENDPOINT is set here: correct it, or unset it."
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not parts.port:
            ask += f" It has no port; try http://{parts.netloc}:8081{parts.path}"
        return ask

    @property
    def key_hint(self) -> str:
        """What to look at when it does not take the key, or asks for one."""
        if self.key and self.key_origin == "--api-key":
            return "Is the key of --api-key right?"
        if not self.is_given:
            return f"Is it running? pixtral-sky status {self.origin}"
        if not self.key:
            # A URL that was given gets the key of the environment only if that has no other URL.
            url = "" if self.origin else f"PIXTRAL_ENDPOINT={shlex.quote(self.url)} "
            return f"Give it: export {url}PIXTRAL_API_KEY=..."
        if self.origin:
            return "PIXTRAL_ENDPOINT and PIXTRAL_API_KEY are set here: correct the key, or unset both."
        return "Is PIXTRAL_API_KEY right?"

    @property
    def is_given(self) -> bool:
        """Whether the user gives its address, rather than the name of a deployment."""
        return self.origin in ("", "PIXTRAL_ENDPOINT")


def base_url(text: str) -> str:
    """The URL before ``/v1``, from any form that a user may have. Raises UsageError.

    >>> base_url("10.0.0.7:8081")
    'http://10.0.0.7:8081'
    >>> base_url("https://host/v1/chat/completions")
    'https://host'
    >>> base_url("model-abcd1234.api.baseten.co/development/predict")
    'https://model-abcd1234.api.baseten.co/development/sync'
    """
    return _read(text)[0]


def _read(text: str) -> tuple[str, bool]:
    """``base_url``, and whether ``text`` leads to Baseten's `predict`."""
    url = text.strip()
    if "@" in url:  # checked first, as later errors print the URL
        raise UsageError(
            "An endpoint's URL holds no user and no password.", "Give the key with PIXTRAL_API_KEY."
        )
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or port == 0 or re.search(r"[^!-~]", url):
        raise UsageError(f"{text!r} is not the URL of an endpoint.", "It looks like http://10.0.0.7:8081")
    path = re.sub(r"/(v1(/.*)?)?$", "", parts.path)
    return baseten.read(text, parts) or (f"{parts.scheme}://{parts.netloc}{path}".rstrip("/"), False)
