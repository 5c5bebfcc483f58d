"""A question about pictures, checked and sent."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from pixtral_sky.client.answer import Answer
from pixtral_sky.client.client import Client
from pixtral_sky.client.messages import MAX_TOKENS, check_pictures, check_tokens
from pixtral_sky.errors import PictureError
from pixtral_sky.pictures.picture import Picture, all_of
from pixtral_sky.pictures.source import Source


def send(
    client: Client,
    parts: Sequence[str | Source],
    *,
    system: str = "",
    remote_urls: bool = False,
    check: bool = True,
    max_tokens: int = MAX_TOKENS,
    notify: Callable[[str], None] = lambda _: None,
    **fields: Any,
) -> Answer:
    """Read the pictures and send the question; returns when the answer begins.

    With ``remote_urls`` the endpoint fetches http(s) pictures itself. ``check`` refuses a question beyond the
    endpoint's known limits. ``notify`` gets a line for each animation or document of which the first picture
    alone is sent. ``fields`` are those of ``Client.ask``.

    Raises LimitError, EndpointError, and PictureError, one for all pictures.
    """
    if check:  # before any picture is downloaded or shrunk
        check_pictures(client.endpoint, parts)
    found = [
        part if isinstance(part, str) or (remote_urls and part.is_url) else _read(part) for part in parts
    ]
    content = [part for part in found if not isinstance(part, PictureError)]
    if len(content) < len(found):
        raise all_of([part for part in found if isinstance(part, PictureError)])
    for notice in dict.fromkeys(map(_notice, parts, content)):
        if notice:
            notify(notice)
    if client.endpoint.max_model_len is None:
        client.learn()
    if check:
        check_tokens(client.endpoint, content, max_tokens)
    return client.ask(content, system=system, max_tokens=max_tokens, **fields)


def _read(source: Source) -> Picture | PictureError:
    try:
        return source.read()
    except PictureError as error:
        return error


def _notice(source: str | Source, picture: str | Source | Picture) -> str:
    """What of a file is sent, when that is not all, and what gets the others."""
    if isinstance(source, str) or not isinstance(picture, Picture) or not picture.part:
        return ""
    what = f"{picture.name}: {picture.part}."
    if source.is_url or source.location != picture.name:  # it is no file here
        return what
    frames = "" if picture.part.endswith("pages") else " -coalesce"
    return f"{what} The others: convert {shlex.quote(picture.name)}{frames} part-%03d.png"
