"""Pixtral 12B as a private endpoint on your own machines, with SkyPilot and vLLM.

The public API, imported when it is used; everything else may change in any release::

    from pixtral_sky import Client, read_picture

    with Client("http://10.0.0.7:8081", key="...") as client:
        for text in client.ask(["What is this?", read_picture("photo.jpg")]):
            print(text, end="")

Every error is a PixtralSkyError: see ``pixtral_sky.errors``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pixtral_sky.errors import (
    BrokenAnswer,
    Busy,
    EndpointError,
    Failed,
    NotAnAPI,
    PictureError,
    PixtralSkyError,
    Refused,
    Unauthorized,
    Unreachable,
    Untrusted,
    UsageError,
)

if TYPE_CHECKING:
    from pixtral_sky.client.client import Client
    from pixtral_sky.pictures.picture import Picture
    from pixtral_sky.pictures.source import read_picture

__version__ = "0.1.0"
__all__ = [
    "BrokenAnswer",
    "Busy",
    "Client",
    "EndpointError",
    "Failed",
    "NotAnAPI",
    "Picture",
    "PictureError",
    "PixtralSkyError",
    "Refused",
    "Unauthorized",
    "Unreachable",
    "Untrusted",
    "UsageError",
    "read_picture",
]

_LATE = {
    "Client": "pixtral_sky.client.client",
    "Picture": "pixtral_sky.pictures.picture",
    "read_picture": "pixtral_sky.pictures.source",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
