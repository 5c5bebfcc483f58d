"""The one rule that says which endpoint is meant, and which key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from pixtral_sky.client.endpoint import Endpoint, base_url
from pixtral_sky.deploy.store import DEFAULT_NAME, Cluster, Deployment, Rehearsal, known, recall
from pixtral_sky.deploy.tunnel import Tunnel
from pixtral_sky.errors import NoEndpoint


def endpoint_of(deployment: Deployment) -> Endpoint:
    """The endpoint of a deployment. Raises NoEndpoint when it has ended, or has none yet."""
    name = deployment.name
    if isinstance(deployment, Rehearsal) and not deployment.is_running():
        raise NoEndpoint(
            f"The rehearsal {name!r} has ended (its log: {deployment.log}).",
            f"Start it again: pixtral-sky rehearse --keep --name {name}",
        )
    if not deployment.url:
        raise NoEndpoint(f"{name!r} has no endpoint yet.", f"What it does: pixtral-sky status {name}")
    return Endpoint(
        deployment.url,
        deployment.key,
        max_model_len=deployment.max_model_len if deployment.max_model_len > 0 else None,
        max_images=deployment.max_images,
        origin=name,
        tunnel=tunnel_of(deployment),
    )


def tunnel_of(deployment: Deployment | None) -> Tunnel | None:
    """The tunnel of a private cluster that has an address; None for all others."""
    if not isinstance(deployment, Cluster) or not deployment.private or not deployment.url:
        return None
    return Tunnel(deployment.name, urlsplit(deployment.url).port or 0, deployment.port)


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
