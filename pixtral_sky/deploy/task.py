"""A SkyPilot YAML of this project as data: what it runs, and what it promises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixtral_sky import memory
from pixtral_sky.errors import UsageError
from pixtral_sky.text import closest, os_reason

# How the script begins: [[ $MAX_IMAGES =~ ^[1-9][0-9]*$ ]] || fail "MAX_IMAGES=$MAX_IMAGES is no number."
REFUSES = r'\[\[ \$(\w+) =~ (\S+) \]\]\s*\|\|\s*fail "([^"]*)"'


# What the programs read that run there: uv, pip, the Hub's client, vLLM and what it stands on.
THEIRS = (
    r"(?:UV|PIP|HF|VLLM|NCCL|TORCH|PYTORCH|CUDA|TRITON|OMP|SSL_CERT)_\w+"
    r"|\w+_(?:proxy|PROXY)|TMPDIR|LD_LIBRARY_PATH"
)


@dataclass(frozen=True)
class Task:
    """A task file. ``run`` is the script, to the letter."""

    path: Path
    run: str
    setup: str
    envs: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict, repr=False)  # the whole file, as data

    @property
    def vllm_version(self) -> str:
        """The version of vLLM that the file's ``setup`` pins: the only place where it is named."""
        found = re.search(r"\bvllm==([\w.]+)", self.setup)
        if not found:
            raise UsageError(f"{self.path} pins no vLLM in its setup.", "It wants a line with: vllm==VERSION")
        return found.group(1)

    def number(self, name: str) -> int:
        """An env that is a whole number. Raises UsageError when it is missing or is none."""
        value = self.envs.get(name, "")
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"{self.path}: envs.{name} is {value!r}, not a whole number.") from None

    def with_envs(self, given: Mapping[str, str]) -> Task:
        """The same with ``given`` in place of its own. Raises as `check` does."""
        self.check(given)
        config = {**self.config, "envs": {**(self.config.get("envs") or {}), **given}}
        return replace(self, envs={**self.envs, **given}, config=config)

    def check(self, given: Mapping[str, str]) -> None:
        """Raise UsageError for envs that nothing there reads, and for values that its script would refuse.

        The first would do nothing, and the script says the second on a machine that costs money by then.
        """
        for name in given:
            if name not in self.envs and not self._reads(name):
                close = closest(name, self.envs)
                raise UsageError(
                    f"{self.path.name} has no env {name}.",
                    f"Did you mean {close}?" if close else f"It has: {', '.join(self.envs) or 'none'}",
                )
        values = {**self.envs, **given}
        for name, pattern, words in re.findall(REFUSES, self.run):
            # In both languages these patterns mean the same; only Python's $ is also before a last newline.
            if name in values and not re.search(re.sub(r"\$$", r"\\Z", pattern), values[name]):
                value = " ".join(values[name].split())[:100]
                raise UsageError(words.replace(f"${name}", value))

    def _reads(self, name: str) -> bool:
        """Whether the script has that word (lower case is what it sets itself), or its programs read it."""
        if name.upper() in self.envs:
            return False
        word = re.search(rf"\b{name}\b", self.setup + self.run)
        return bool((name.isupper() and word) or re.fullmatch(THEIRS, name))


def shipped(name: str) -> Path:
    """A file of the project: beside the package in a checkout, inside it when it is installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent, package):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from this installation of pixtral-sky")


def load(path: Path | None = None) -> Task:
    """Read a task file; without ``path`` the ``pixtral.yaml`` that is shipped.

    Raises UsageError when it cannot be read, is not YAML, or is no task.
    """
    data = read(path)
    path = path or shipped("pixtral.yaml")
    if not isinstance(data.get("run"), str):
        raise UsageError(f"{path} is no SkyPilot task: it has no 'run:' script.")
    envs, setup = data.get("envs") or {}, data.get("setup") or ""
    if not isinstance(envs, dict) or not isinstance(setup, str):
        raise UsageError(f"{path} is no SkyPilot task: 'envs:' is a mapping and 'setup:' a text.")
    # As SkyPilot does it: every value is a string.
    envs = {str(name): "" if value is None else str(value) for name, value in envs.items()}
    return Task(path, data["run"], setup, envs, data)


def read(path: Path | None = None) -> dict[str, Any]:
    """A task file as it stands; without ``path`` the shipped ``pixtral.yaml``. Raises as `load` does."""
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
    """Whether a task file as data is one of this project."""
    return "PIXTRAL_API_KEY" in (config.get("secrets") or {})


def number(envs: Mapping[str, Any], name: str, otherwise: int) -> int:
    """A whole number, or ``otherwise`` where the env is missing or empty. Else raises UsageError."""
    try:
        return int(envs.get(name) or otherwise)
    except (TypeError, ValueError):
        raise UsageError(f"{name}={envs.get(name)} is not a whole number.") from None


def limits(envs: Mapping[str, Any]) -> tuple[int, int]:
    """What a server with these envs takes in a request: tokens (-1: all that fit), and pictures."""
    return number(envs, "MAX_MODEL_LEN", -1), number(envs, "MAX_IMAGES", memory.DEFAULT_IMAGES)


def end(envs: Mapping[str, str]) -> str:
    """When a server with these envs ends by itself. Raises UsageError when IDLE_MINUTES does not say."""
    minutes = envs.get("IDLE_MINUTES", "0")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", minutes):
        raise UsageError(f"IDLE_MINUTES={minutes} is no number of minutes (0: never).")
    return (
        f"ends after {minutes} minutes without a request" if float(minutes) else "runs until you take it down"
    )
