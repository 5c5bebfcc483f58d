"""A running Pixtral as seen from here: its URL, its key, and the way there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from pixtral_sky.errors import NoEndpoint, UsageError
from pixtral_sky.model import SERVED_NAME
from pixtral_sky.state import DEFAULT_NAME, Cluster, Deployment, Rehearsal, known, recall
from pixtral_sky.tunnel import Tunnel

DEFAULT_MAX_IMAGES = 4  # what pixtral.yaml and service.yaml ship


@dataclass(frozen=True)
class Endpoint:
    """Where to send a request. ``url`` has no trailing slash and no ``/v1``; ``key`` may be empty."""

    url: str
    key: str = field(default="", repr=False)
    model: str = SERVED_NAME
    # Tokens of prompt and answer together; None when only the endpoint itself knows.
    max_model_len: int | None = None
    max_images: int = DEFAULT_MAX_IMAGES
    # The name of the remembered deployment that it is, or the variable that names it; empty: it was given.
    origin: str = ""
    # What has to be open before ``url`` leads anywhere.
    tunnel: Tunnel | None = None

    @classmethod
    def of(cls, deployment: Deployment) -> Endpoint:
        """The endpoint of a deployment. Raises NoEndpoint when it has ended, or has none yet."""
        name, tunnel = deployment.name, None
        if isinstance(deployment, Rehearsal) and not deployment.is_running():
            raise NoEndpoint(
                f"The rehearsal {name!r} has ended (its log: {deployment.log}).",
                f"Start it again: pixtral-sky rehearse --keep --name {name}",
            )
        if not deployment.url:
            raise NoEndpoint(f"{name!r} has no endpoint yet.", f"What it does: pixtral-sky status {name}")
        if isinstance(deployment, Cluster) and deployment.private:
            tunnel = Tunnel(name, urlsplit(deployment.url).port or 0, deployment.port)
        return cls(
            deployment.url,
            deployment.key,
            max_model_len=deployment.max_model_len if deployment.max_model_len > 0 else None,
            max_images=deployment.max_images,
            origin=name,
            tunnel=tunnel,
        )

    @property
    def hint(self) -> str:
        """What to do when it does not do what was asked of it."""
        if self.origin == "PIXTRAL_ENDPOINT":
            return "PIXTRAL_ENDPOINT and PIXTRAL_API_KEY are set here: correct them, or unset both."
        if self.origin:
            return f"Is it running? pixtral-sky status {self.origin}"
        return "Are its address and PIXTRAL_API_KEY right?"


def base_url(text: str) -> str:
    """The URL before ``/v1``, from whatever form of it a user has at hand.

    >>> base_url("10.0.0.7:8081")
    'http://10.0.0.7:8081'
    >>> base_url("https://host/v1/chat/completions")
    'https://host'
    """
    url = text.strip()
    if "@" in url:  # before anything of it is printed
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
    if parts.scheme not in ("http", "https") or not host or port == 0 or re.search(r"\s", url):
        raise UsageError(f"{text!r} is not the URL of an endpoint.", "It looks like http://10.0.0.7:8081")
    path = re.sub(r"/(v1(/.*)?)?$", "", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path}".rstrip("/")


def find(
    url: str | None = None,
    key: str | None = None,
    name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The endpoint to use: as given, else from the environment, else the remembered deployment.

    ``name`` given without ``url`` asks for that deployment, whatever the environment says.
    A key is never sent to a place that it was not given for: one from the environment goes with the
    URL given or from the environment, one that is remembered only to its own deployment.

    Raises NoEndpoint when there is none.
    """
    if url:
        known_url = environ.get("PIXTRAL_ENDPOINT")
        # The key of the environment is for the endpoint of the environment, where it names one.
        theirs = not known_url or base_url(known_url) == base_url(url)
        return Endpoint(base_url(url), key or (environ.get("PIXTRAL_API_KEY", "") if theirs else ""))
    if name is None and environ.get("PIXTRAL_ENDPOINT"):
        return Endpoint(
            base_url(environ["PIXTRAL_ENDPOINT"]),
            key or environ.get("PIXTRAL_API_KEY", ""),
            origin="PIXTRAL_ENDPOINT",
        )
    deployment = recall(name or DEFAULT_NAME)
    if deployment is None:
        others = known()
        raise NoEndpoint(
            f"No deployment named {name or DEFAULT_NAME!r} is remembered here.",
            f"Name one of: {', '.join(others)} (--name)."
            if others
            else "Start one: pixtral-sky launch, or pixtral-sky rehearse --keep. Or PIXTRAL_ENDPOINT=URL",
        )
    found = Endpoint.of(deployment)
    return replace(found, key=key) if key else found
