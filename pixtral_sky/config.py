"""``pixtral-sky.toml``: defaults of the command line, for what would be typed again and again.

There may be one in the working directory and one in the user's directory of configurations. The former wins,
key by key.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pixtral_sky.errors import UsageError

NAME = "pixtral-sky.toml"
# Each key, and the commands that have an option or argument of this name.
KEYS = {
    "name": (
        "launch", "rehearse", "logs", "down", "tunnel", "endpoint", "doctor", "ask", "chat", "batch",
        "bench", "serve up", "serve update", "serve logs", "serve down",
    ),
    "infra": ("launch", "serve up"),
    "gpus": ("launch", "serve up"),
    "precision": ("launch", "serve up"),
    "idle": ("launch",),
    "prompt": ("batch",),
    "system": ("ask", "batch"),
}  # fmt: skip
# PIXTRAL_ENDPOINT says which endpoint these are about.
FOLLOW_THE_ENVIRONMENT = ("endpoint", "doctor", "ask", "chat", "batch", "bench")


def paths() -> tuple[Path, Path]:
    """The user's file, and the one in the working directory; neither has to be there."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 (it never fails)
    return Path(home) / "pixtral-sky" / NAME, Path(NAME)


def defaults() -> dict[str, Any]:
    """The defaults of each command; those of a group's commands are below the group's name.

    Raises UsageError for a file that cannot be read, an unknown key, and a value of the wrong type.
    """
    found: dict[str, Any] = {}
    for path in paths():
        found |= _read(path)
    made: dict[str, Any] = {}
    for key, value in found.items():
        for command in KEYS[key]:
            if key == "name" and command in FOLLOW_THE_ENVIRONMENT and os.environ.get("PIXTRAL_ENDPOINT"):
                continue
            group, _, below = command.rpartition(" ")
            commands = made.setdefault(group, {}) if group else made
            commands.setdefault(below, {})[key] = value
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        from pixtral_sky.text import os_reason  # slow to import

        raise UsageError(f"{path} cannot be read: {os_reason(error)}.") from error
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: dict[str, Any] = tomllib.loads(text.decode())
    except ValueError as error:  # of TOML, or of UTF-8
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    for key, value in found.items():
        _check(path, key, value)
    return found


def _check(path: Path, key: str, value: object) -> None:
    if any(word in key.lower() for word in ("key", "token", "secret", "password")):
        raise UsageError(
            f"{path} has {key!r}: it may be copied and committed, so no secret belongs there.",
            "Set PIXTRAL_API_KEY or HF_TOKEN in the environment.",
        )
    if key not in KEYS:
        raise UsageError(f"{path} has the unknown key {key!r}.", f"It can have: {', '.join(KEYS)}.")
    if key == "idle":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise UsageError(f"{path}: idle is a number of minutes, not {value!r}.", "For example: idle = 30")
    elif not isinstance(value, str) or not value.strip():
        raise UsageError(f"{path}: {key} is a text, not {value!r}.", f'For example: {key} = "..."')
