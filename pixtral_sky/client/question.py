"""A question about pictures, checked and sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixtral_sky.client.answer import Answer
from pixtral_sky.client.client import Client
from pixtral_sky.client.messages import MAX_TOKENS, check_pictures, check_tokens
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source


def send(
    client: Client,
    parts: Sequence[str | Source],
    *,
    system: str = "",
    remote_urls: bool = False,
    check: bool = True,
    max_tokens: int = MAX_TOKENS,
    **fields: Any,
) -> Answer:
    """Read the pictures and send the question; returns when the answer begins.

    With ``remote_urls`` the endpoint fetches http(s) pictures itself. ``check`` refuses a question beyond the
    endpoint's known limits. ``fields`` are those of ``Client.ask``.

    Raises LimitError, PictureError, EndpointError.
    """
    if check:  # before any picture is downloaded or shrunk
        check_pictures(client.endpoint, sum(not isinstance(part, str) for part in parts))
    content: list[str | Source | Picture] = [
        part if isinstance(part, str) or (remote_urls and part.is_url) else part.read() for part in parts
    ]
    if client.endpoint.max_model_len is None:
        client.learn()
    if check:
        check_tokens(client.endpoint, content, max_tokens)
    return client.ask(content, system=system, max_tokens=max_tokens, **fields)
