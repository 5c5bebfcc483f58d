"""The one rule that says which endpoint is meant, and which key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from pixtral_sky.client.endpoint import Endpoint, base_url
from pixtral_sky.deploy.store import DEFAULT_NAME, Deployment, known, recall
from pixtral_sky.errors import NoEndpoint, UsageError

KEY = r"[A-Za-z0-9._~+/=-]*"  # the characters of a key, as templates/check.sh has them


def endpoint_of(deployment: Deployment) -> Endpoint:
    """The endpoint of a deployment. Raises NoEndpoint when it has ended, or has none yet."""
    deployment.check_running()
    if not deployment.url:
        raise NoEndpoint(
            f"{deployment.name!r} has no endpoint yet.",
            f"What it does: pixtral-sky status {deployment.name}",
        )
    return Endpoint(
        deployment.url,
        deployment.key,
        max_model_len=deployment.max_model_len if deployment.max_model_len > 0 else None,
        max_images=deployment.max_images,
        origin=deployment.name,
        tunnel=deployment.tunnel(),
    )


def check_key(key: str, hint: str) -> None:
    """Raise UsageError for a key that the script does not take (templates/check.sh)."""
    if not re.fullmatch(KEY, key):
        raise UsageError("PIXTRAL_API_KEY has characters that a key cannot have.", hint)


def new_key() -> str:
    import secrets  # it takes a while, and `ask` makes none

    return secrets.token_urlsafe(32)


def key_for(name: str) -> str:
    """The key of a launch: of the environment, else that of before, else a new one. Raises UsageError."""
    old = recall(name)
    key = key_of_environment() or (old.key if old and not old.has_ended() else "") or new_key()
    check_key(key, "Unset it to have one made: unset PIXTRAL_API_KEY")
    return key


def key_of_environment(environ: Mapping[str, str] = os.environ) -> str:
    """PIXTRAL_API_KEY, unless it is for the endpoint that the environment names."""
    return "" if environ.get("PIXTRAL_ENDPOINT") else environ.get("PIXTRAL_API_KEY", "")


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
        return Endpoint.at(url, key or (environ.get("PIXTRAL_API_KEY", "") if theirs else ""))
    if name is None and environ.get("PIXTRAL_ENDPOINT"):
        given = key or environ.get("PIXTRAL_API_KEY", "")
        return Endpoint.at(environ["PIXTRAL_ENDPOINT"], given, origin="PIXTRAL_ENDPOINT")
    deployment = recall(name or DEFAULT_NAME)
    if deployment is None:
        others = known()
        raise NoEndpoint(
            f"No deployment named {name or DEFAULT_NAME!r} is remembered here.",
            f"Name one of: {', '.join(others)} (--name)."
            if others
            else "Start one: pixtral-sky launch, or pixtral-sky rehearse --keep. Or PIXTRAL_ENDPOINT=URL",
        )
    found = endpoint_of(deployment)
    return replace(found, key=key) if key else found
