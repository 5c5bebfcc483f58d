"""A deployment's line in `status`, and whether it answers."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy.resolve import PIXTRAL_ENDPOINT, endpoint_of, of_environment_alone
from pixtral_sky.deploy.store import Deployment
from pixtral_sky.errors import EndpointError, NoEndpoint, UsageError


@dataclass(frozen=True)
class Row:
    """One deployment. Unknown values are None or empty."""

    name: str
    kind: str
    state: str
    infra: str = ""
    gpus: str = ""
    age: float | None = None  # seconds
    hourly: float | None = None  # USD
    spent: float | None = None  # USD
    endpoint: str = ""
    private: bool = False
    answers: bool = False  # it has just answered a request with its key
    problem: str = ""  # why it does not answer


def row_of(deployment: Deployment, state: str, why: str = "") -> Row:
    """A deployment's row without a record of SkyPilot. ``why`` it does not answer; if empty, it is asked."""
    why = why or problem(deployment)
    return Row(
        deployment.name,
        deployment.kind,
        state,
        age=time.time() - deployment.created,
        endpoint=deployment.url,
        private=deployment.tunnel() is not None,
        answers=not why,
        problem=why,
    )


def of_environment(others: Container[str]) -> list[Row]:
    """The row of PIXTRAL_ENDPOINT, if it is set to an endpoint that is not one of ``others``."""
    try:
        found = of_environment_alone()
    except UsageError as error:
        return [Row(PIXTRAL_ENDPOINT, "environment", "unknown", problem=str(error))]
    if not found or found.url in others:
        return []
    why = problem_at(found)
    state = "unknown" if why else "up"
    return [Row(PIXTRAL_ENDPOINT, "environment", state, endpoint=found.url, answers=not why, problem=why)]


def problem(deployment: Deployment) -> str:
    """Why it does not answer a request with its key; empty if it does."""
    try:
        return problem_at(endpoint_of(deployment))
    except NoEndpoint as error:
        return error.what


def problem_at(endpoint: Endpoint) -> str:
    """As `problem`, for an endpoint."""
    try:
        reach(endpoint)
    except (EndpointError, UsageError) as error:
        return error.what
    return ""


def reach(endpoint: Endpoint) -> None:
    """Make one request, with its key. Raises EndpointError, and UsageError for a key that cannot be sent."""
    from pixtral_sky.client.client import Client

    with Client(endpoint, budget=0, read_timeout=10) as client:
        client.models()
