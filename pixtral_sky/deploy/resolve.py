"""Which endpoint and which key are meant: the one place that decides."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace

from pixtral_sky import output
from pixtral_sky.client.endpoint import Endpoint, base_url
from pixtral_sky.deploy.store import DEFAULT_NAME, Deployment, known, recall
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, UsageError

# The keys that our script takes (templates/check.sh). Other endpoints may have others: `client` sends any.
KEY = r"[A-Za-z0-9._~+/=-]*"
PIXTRAL_ENDPOINT = "PIXTRAL_ENDPOINT"  # the variable, and the name of what it leads to


def endpoint_of(deployment: Deployment) -> Endpoint:
    """The endpoint of a deployment. Raises NoEndpoint when it has ended or has no address."""
    deployment.check_running()
    if not deployment.url:
        raise NoEndpoint(
            f"{deployment.name!r} has no address: it is starting, or has ended.",
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
    import secrets  # slow to import, and `ask` does not need it

    return secrets.token_urlsafe(32)


def key_for(name: str) -> str:
    """The key for a launch: from the environment, else the deployment's present one, else a new one.

    Raises UsageError when the key has characters that the script refuses.
    """
    old = recall(name)
    key = key_of_environment() or (old.key if old and not old.has_ended() else "") or new_key()
    check_key(key, "Unset it to have one made: unset PIXTRAL_API_KEY")
    return key


def key_of_environment() -> str:
    """PIXTRAL_API_KEY; empty if PIXTRAL_ENDPOINT is set, to which the key belongs then."""
    return "" if os.environ.get("PIXTRAL_ENDPOINT") else os.environ.get("PIXTRAL_API_KEY", "")


def of_environment_alone() -> Endpoint | None:
    """The endpoint of PIXTRAL_ENDPOINT; None if it is not set, or is that of a remembered deployment.

    Raises UsageError for what is not a URL.
    """
    if not (url := os.environ.get(PIXTRAL_ENDPOINT)):
        return None
    found = Endpoint.at(url, os.environ.get("PIXTRAL_API_KEY", ""), origin=PIXTRAL_ENDPOINT)
    return None if _remembered_at(found.url) else found


def out_of_reach() -> str:
    """A sentence about an endpoint that only the environment names; empty if there is none."""
    with contextlib.suppress(UsageError):
        if not of_environment_alone():
            return ""
    return "PIXTRAL_ENDPOINT is set here: `ask` goes there, but `logs` and `down` do not reach it."


def find(
    url: str | None = None,
    key: str | None = None,
    name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The endpoint to use: ``url``, else the deployment ``name``, else PIXTRAL_ENDPOINT, else "pixtral".

    A key is sent only to the endpoint that it was given for: a remembered key to its own deployment, however
    that is named; PIXTRAL_API_KEY to PIXTRAL_ENDPOINT, or to any ``url`` if PIXTRAL_ENDPOINT is not set.
    ``key`` replaces both.

    Raises NoEndpoint when there is none, and UsageError for both ``url`` and ``name``.
    """
    if url is not None and name is not None:
        raise UsageError("--endpoint and --name both say whom to ask.", "Give one of them.")
    environment_url, of_environment = environ.get("PIXTRAL_ENDPOINT"), environ.get("PIXTRAL_API_KEY", "")
    if url is not None:
        key_is_for_url = not environment_url or base_url(environment_url) == base_url(url)
        return _at(Endpoint.at(url, of_environment if key_is_for_url else ""), key)
    if name is None and environment_url:
        return _at(Endpoint.at(environment_url, of_environment, origin="PIXTRAL_ENDPOINT"), key)
    name = DEFAULT_NAME if name is None else name
    deployment = recall(name)
    if deployment is None:
        others = known()
        this = "" if name == DEFAULT_NAME else f" -n {name}"
        raise NoEndpoint(
            f"No deployment named {name!r} is remembered here.",
            f"Name one of: {', '.join(others)} (--name)."
            if others
            else f"Start one: pixtral-sky launch{this}, or pixtral-sky rehearse{this} --keep."
            " Or PIXTRAL_ENDPOINT=URL",
        )
    found = endpoint_of(deployment)
    return _with_option(found, key) if key else found


def _at(given: Endpoint, key: str | None) -> Endpoint:
    """The endpoint that the user gives, with ``key``; if a deployment has its address, that deployment.

    A shell may hold the key of an earlier one. Of one that was launched elsewhere the user knows more.
    """
    deployment = _remembered_at(given.url)
    found = endpoint_of(deployment) if deployment else given
    if key:
        return _with_option(found, key)
    launched_elsewhere = getattr(deployment, "request", None) == ""
    if launched_elsewhere or not found.key:
        return replace(found, key=given.key or found.key)
    if deployment and given.key not in ("", found.key):
        output.warn(
            f"PIXTRAL_API_KEY is not the key of {deployment.name!r}, which is at {found.url}: its own is"
            f' taken. Renew it: eval "$(pixtral-sky endpoint --env -n {deployment.name})"'
        )
    return found


def _with_option(endpoint: Endpoint, key: str) -> Endpoint:
    return replace(endpoint, key=key, key_origin="--api-key")


def _remembered_at(url: str) -> Deployment | None:
    """The newest deployment at this address that has not ended, as far as this machine knows."""
    found: list[Deployment] = []
    for name in known():
        with contextlib.suppress(PixtralSkyError):  # a damaged file is in nobody's way
            one = recall(name)
            if one and one.url == url and not one.has_ended():
                found.append(one)
    return max(found, key=lambda one: one.created, default=None)
