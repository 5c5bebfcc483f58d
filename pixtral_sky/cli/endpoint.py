"""pixtral-sky endpoint."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.state import DEFAULT_NAME


def endpoint(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The deployment of this name.", show_default=False)
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Print exports for a shell, the key with them.")] = False,
) -> None:
    """Print the URL of the endpoint. Behind ssh, it is open for a minute after its last use.

    \b
    Examples:
      pixtral-sky endpoint
      eval "$(pixtral-sky endpoint --env)"     # curl and any OpenAI client follow
    """
    from pixtral_sky.endpoint import find
    from pixtral_sky.errors import NoEndpoint

    try:
        found = find(name=name)
    except NoEndpoint:
        if not _is_at_skypilot(name or DEFAULT_NAME):
            raise
        found = find(name=name or DEFAULT_NAME)
    if found.tunnel:
        found.tunnel.open()
        this = "" if found.origin == DEFAULT_NAME else f" {found.origin}"
        output.say(f"Through ssh, for a minute after its last use; pixtral-sky tunnel{this} holds it open.")
    if not env:
        output.data(found.url)
        return
    values = {"PIXTRAL_ENDPOINT": found.url, "PIXTRAL_API_KEY": found.key}
    values |= {"OPENAI_BASE_URL": f"{found.url}/v1", "OPENAI_API_KEY": found.key or "none"}
    for variable, value in values.items():
        output.data(f"export {variable}={shlex.quote(value)}")


def _is_at_skypilot(name: str) -> bool:
    """Whether SkyPilot has it; it is then remembered here."""
    from pixtral_sky import deployment, overview, state

    if not deployment.was_used() or isinstance(state.recall(name), state.Rehearsal):
        return False
    with output.phase("asking SkyPilot"):
        return deployment.find(name, overview.key_of_environment()) is not None
