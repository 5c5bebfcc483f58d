"""pixtral-sky endpoint."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.deploy.store import DEFAULT_NAME

if TYPE_CHECKING:
    from pixtral_sky.client.endpoint import Endpoint


def endpoint(
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="The deployment of this name.",
            show_default="PIXTRAL_ENDPOINT, else pixtral",
            autocompletion=options.deployments,
        ),
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Print exports for a shell, the key with them.")] = False,
    request: Annotated[
        Literal["curl"] | None,
        typer.Option(
            "--for",
            metavar="curl",
            help="Print a request that works as it stands, for bash.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the URL of the endpoint. Behind ssh, it is open for a minute after its last use.

    \b
    Examples:
      pixtral-sky endpoint
      eval "$(pixtral-sky endpoint --env)"     # curl and any OpenAI client follow
      pixtral-sky endpoint --for curl
    """
    from pixtral_sky.deploy import backend
    from pixtral_sky.errors import UsageError

    if env and request:
        raise UsageError("--env and --for are two things.", "Give one of them.")
    found = backend.find(name)
    found.check()
    if found.tunnel:
        found.tunnel.open()
        this = "" if found.origin == DEFAULT_NAME else f" {found.origin}"
        output.say(f"Through ssh, for a minute after its last use; pixtral-sky tunnel{this} holds it open.")
    if request:
        output.data(curl(found))
        return
    if not env:
        output.data(found.url)
        return
    values = {"PIXTRAL_ENDPOINT": found.url, "PIXTRAL_API_KEY": found.key}
    values |= {"OPENAI_BASE_URL": f"{found.url}/v1", "OPENAI_API_KEY": found.key or "none"}
    for variable, value in values.items():
        output.data(f"export {variable}={shlex.quote(value)}")


def curl(endpoint: Endpoint) -> str:
    """A small request to ``endpoint``."""
    from pixtral_sky.client import curl
    from pixtral_sky.client.client import PIXEL

    picture = {"type": "image_url", "image_url": {"url": PIXEL}}
    words = {"type": "text", "text": "What color is this?"}
    # Without a model, vLLM takes the one that it serves, whatever its name.
    body = {
        "messages": [{"role": "user", "content": [words, picture]}],
        "stream": True,
        "max_tokens": 64,
    }
    return curl.curl(endpoint, shlex.quote(json.dumps(body)))
