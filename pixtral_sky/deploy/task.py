"""A SkyPilot task file of this project, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixtral_sky import memory
from pixtral_sky.errors import UsageError
from pixtral_sky.text import closest, os_reason

# A check of the script: [[ $MAX_IMAGES =~ ^[1-9][0-9]*$ ]] || fail "MAX_IMAGES=$MAX_IMAGES is no number."
REFUSES = r'\[\[ \$(\w+) =~ (\S+) \]\]\s*\|\|\s*fail "([^"]*)"'
MOST = 1_000_000_000  # of any number that an env takes
OLD = "ALLOWED_MEDIA_HOSTS"  # before the gateway fetched
# The variables of the programs that the script starts: uv, pip, the Hub's client, vLLM and its libraries.
THEIRS = (
    r"(?:UV|PIP|HF|VLLM|NCCL|TORCH|PYTORCH|CUDA|TRITON|OMP|SSL_CERT)_\w+"
    r"|\w+_(?:proxy|PROXY)|TMPDIR|LD_LIBRARY_PATH"
)


@dataclass(frozen=True)
class Task:
    """A task file. ``run`` is the script, unchanged."""

    path: Path
    run: str
    setup: str
    envs: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict, repr=False)  # the whole file, as data
    given: frozenset[str] = frozenset()  # the envs that options have set

    @property
    def vllm_version(self) -> str:
        """The version of vLLM that the file's ``setup`` pins."""
        found = re.search(r"\bvllm==([\w.]+)", self.setup)
        if not found:
            raise UsageError(f"{self.path} pins no vLLM in its setup.", "It wants a line with: vllm==VERSION")
        return found.group(1)

    def number(self, name: str) -> int:
        """The env ``name``, a whole number. Raises UsageError when it is missing or not a whole number."""
        value = self.envs.get(name, "")
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"{self.path}: envs.{name} is {value!r}, not a whole number.") from None

    def with_envs(self, given: Mapping[str, str]) -> Task:
        """The task with these envs in place of its own. Raises as `check` does."""
        self.check(given)
        config = {**self.config, "envs": {**(self.config.get("envs") or {}), **given}}
        return replace(self, envs={**self.envs, **given}, config=config, given=self.given | given.keys())

    def is_default(self, name: str) -> bool:
        """Whether its value is that of the shipped ``pixtral.yaml``, and not the user's."""
        return name not in self.given and self.path.resolve() == shipped("pixtral.yaml")

    def check(self, given: Mapping[str, str]) -> None:
        """Raise UsageError for envs that nothing reads, and for values that the script refuses.

        The script would refuse them later, on a machine that costs money.
        """
        if old := given.get(OLD, self.envs.get(OLD)):
            hosts = ",".join(old.split())
            raise UsageError(f"{OLD} is called IMAGE_URLS now.", f"Set IMAGE_URLS={hosts}")
        for name in given:
            if name not in self.envs and not self._reads(name):
                close = closest(name, self.envs)
                raise UsageError(
                    f"{self.path.name} has no env {name}.",
                    f"Did you mean {close}?" if close else f"It has: {', '.join(self.envs) or 'none'}",
                )
        values = {**self.envs, **given}
        for name, pattern, words in re.findall(REFUSES, self.run):
            # These patterns mean the same in bash, except that Python's $ also matches before a last newline.
            found = values.get(name, "")  # an env that the file lacks is empty there
            if not re.search(re.sub(r"\$$", r"\\Z", pattern), found):
                value = " ".join(found.split())[:100]
                raise UsageError(words.replace(f"${name}", value))

    def _reads(self, name: str) -> bool:
        """Whether the script, or a program that it starts, reads the variable ``name``."""
        if name.upper() in self.envs:
            return False
        word = re.search(rf"\b{name}\b", self.setup + self.run)
        # The script sets its lower-case variables itself.
        return bool((name.isupper() and word) or re.fullmatch(THEIRS, name))


def shipped(name: str) -> Path:
    """A file of the project: beside the package in a checkout, inside the package once installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent, package):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from this installation of pixtral-sky")


def load(path: Path | None = None) -> Task:
    """Read a task file, by default the shipped ``pixtral.yaml``.

    Raises UsageError when it cannot be read, is not YAML, or is not a task.
    """
    data = read(path)
    path = path or shipped("pixtral.yaml")
    if not isinstance(data.get("run"), str):
        raise UsageError(f"{path} is no SkyPilot task: it has no 'run:' script.")
    envs, setup = data.get("envs") or {}, data.get("setup") or ""
    if not isinstance(envs, dict) or not isinstance(setup, str):
        raise UsageError(f"{path} is no SkyPilot task: 'envs:' is a mapping and 'setup:' a text.")
    # As in SkyPilot, every value is a string.
    envs = {str(name): "" if value is None else str(value) for name, value in envs.items()}
    return Task(path, data["run"], setup, envs, data)


def read(path: Path | None = None) -> dict[str, Any]:
    """A task file as data, by default the shipped ``pixtral.yaml``. Raises as `load` does."""
    import yaml

    path = path or shipped("pixtral.yaml")
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {os_reason(error)}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {reason}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is no SkyPilot task: it has no 'run:' script.")
    return data


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a task file, as data, is one of this project."""
    return "PIXTRAL_API_KEY" in (config.get("secrets") or {})


def number(envs: Mapping[str, Any], name: str, otherwise: int) -> int:
    """The env ``name``, a whole number, or ``otherwise`` if it is missing or empty. Raises UsageError."""
    try:
        found = int(envs.get(name) or otherwise)
    except (TypeError, ValueError):
        raise UsageError(f"{name}={str(envs.get(name))[:100]} is not a whole number.") from None
    if abs(found) > MOST:
        raise UsageError(f"{name} is more than {MOST:,}.")
    return found


def limits(envs: Mapping[str, Any]) -> tuple[int, int]:
    """The limits of a request to a server with these envs: tokens (-1: as many as fit), and pictures."""
    return number(envs, "MAX_MODEL_LEN", -1), number(envs, "MAX_IMAGES", memory.DEFAULT_IMAGES)


def end(envs: Mapping[str, str]) -> str:
    """When a server with these envs ends, for people. Raises UsageError for a bad IDLE_MINUTES."""
    minutes = envs.get("IDLE_MINUTES", "0")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", minutes):
        raise UsageError(f"IDLE_MINUTES={minutes} is no number of minutes (0: never).")
    if not float(minutes):
        return "runs until you take it down"
    return f"ends after {minutes} minutes without a request"
