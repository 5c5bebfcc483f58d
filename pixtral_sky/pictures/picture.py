"""A picture as it is sent, and the files that pictures come from."""

from __future__ import annotations

import base64
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pixtral_sky import pixtral
from pixtral_sky.errors import PictureError
from pixtral_sky.text import os_reason, shown

# What Pillow may try. EPS and the like are left out: they run a program, or are a bug away from it. "JPEG"
# takes an MPO too. Those that Pillow loads at its start come first: the others take 20 ms.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
    )
)

SAVE_ANEW = "Save it anew, as a PNG or JPEG."


@dataclass(frozen=True)
class Picture:
    """A picture as it is sent: ``width`` x ``height`` pixels, upright, at most 1024 a side as a rule.

    ``data`` is a file of the type ``media_type`` (image/jpeg, image/png or image/webp); ``name`` is what
    messages call it. ``part`` says what of an animation or a document it is: "the first of 10 frames"; empty
    when it is all. ``read_picture`` makes one.
    """

    name: str
    width: int
    height: int
    media_type: str
    data: bytes = field(repr=False)
    part: str = ""

    @property
    def tokens(self) -> int:
        """Prompt tokens: as many as for the original, which the server would shrink by the same rule."""
        return pixtral.image_tokens(self.width, self.height)

    def data_url(self) -> str:
        """``data:image/jpeg;base64,...``: the ``url`` of an ``image_url`` part of an OpenAI message."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def all_of(errors: Sequence[PictureError]) -> PictureError:
    """One error that says what each says, and what helps if that is the same for all."""
    if len(errors) == 1:
        return errors[0]
    reasons = " ".join(dict.fromkeys(error.what for error in errors))
    hints = {error.hint for error in errors}
    hint = hints.pop() if len(hints) == 1 else "What helps with each: pixtral-sky tokens FILE"
    return PictureError(f"{len(errors)} pictures cannot be sent: {reasons}", hint)


def directory_error(path: str) -> PictureError:
    """The error for a directory given as a picture."""
    name = shown(path)
    return PictureError(f"{name} is a directory.", f"Give the pictures in it: '{name.rstrip('/')}/*.jpg'")


def open_file(path: str) -> BinaryIO:
    """The regular file at ``path``, open. Raises PictureError."""
    name = shown(path)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise directory_error(path)
        if not stat.S_ISREG(mode):  # opening a pipe or a device may wait forever
            raise PictureError(
                f"{name} is not a regular file.",
                "Copy it into a file first; `ask` takes - for what is piped in.",
            )
        return open(path, "rb")
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PictureError(f"{name} cannot be read: {os_reason(error)}.") from error
