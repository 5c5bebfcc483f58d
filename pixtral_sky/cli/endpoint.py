"""pixtral-sky endpoint."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pixtral_sky import output


def endpoint(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The deployment of this name.", show_default=False)
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Print exports for a shell, the key with them.")] = False,
) -> None:
    """Print the URL of the endpoint.

    \b
    Examples:
      pixtral-sky endpoint
      eval "$(pixtral-sky endpoint --env)"     # curl and any OpenAI client follow
    """
    from pixtral_sky.endpoint import find

    found = find(name=name)
    if not env:
        output.data(found.url)
        return
    values = {"PIXTRAL_ENDPOINT": found.url, "PIXTRAL_API_KEY": found.key}
    values |= {"OPENAI_BASE_URL": f"{found.url}/v1", "OPENAI_API_KEY": found.key or "none"}
    for variable, value in values.items():
        output.data(f"export {variable}={shlex.quote(value)}")
