"""The syntax of --gpus, and whether GPUs hold the model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_sky import memory, pixtral
from pixtral_sky.deploy import infra as infra_syntax
from pixtral_sky.deploy import task
from pixtral_sky.deploy.skypilot import sky_sdk
from pixtral_sky.errors import UsageError
from pixtral_sky.text import closest, quoted

# Arguments of vLLM that change the memory or the GPUs that it needs.
MEMORY_ARGS = re.compile(
    r"(?:^|\s)(?:-q|-tp|-pp|--(?:quantization|max-model-len|gpu-memory-utilization|kv-cache|cpu-offload|load-format"
    r"|tensor-parallel-size|pipeline-parallel-size|max-num-|hf-overrides|dtype|config))"
)
EXAMPLE = "For example: --gpus L4:2"


@dataclass(frozen=True)
class Gpus:
    """``count`` GPUs. ``name`` is as the user writes it, ``known`` as memory.GPUS has it, or empty."""

    name: str
    count: int = 1

    @property
    def known(self) -> str:
        return next((each for each in memory.GPUS if each.lower() == self.name.lower()), "")

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse(text: str) -> Gpus:
    """The GPUs of ``GPU[:COUNT]``. Raises UsageError."""
    said = quoted(text)
    if not text.strip():
        raise UsageError("--gpus is empty.", "Leave it out to take what the file allows.")
    name, colon, count = text.strip().partition(":")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}", name) or "," in count or ":" in count:
        raise UsageError(f"--gpus takes one GPU[:COUNT], not {said}.", EXAMPLE)
    if colon and not re.fullmatch(r"0*[1-9][0-9]{0,2}", count, re.ASCII):
        raise UsageError(f"--gpus takes a whole number of GPUs from 1 on, not {said}.", EXAMPLE)
    return Gpus(name, int(count or 1))


def of_file(resources: Any) -> Iterator[str]:
    """Each GPU[:COUNT] that a file's ``resources:`` name."""
    for each in alternatives(resources):
        given = each.get("accelerators")
        # A name, several, or counts by name; YAML's set is a mapping to nothing.
        if isinstance(given, dict):
            given = [name if count is None else f"{name}:{count}" for name, count in given.items()]
        given = [given] if isinstance(given, str) else given
        yield from map(str, given if isinstance(given, list) else [])


def alternatives(resources: Any) -> Iterator[dict[str, Any]]:
    """Each of the resources that a file's ``resources:`` allow. SkyPilot refuses malformed ones."""
    common = resources if isinstance(resources, dict) else {}
    for each in common.get("any_of") or common.get("ordered") or [{}]:
        yield {**common, **(each if isinstance(each, dict) else {})}


def check_fit(gpus: str | None, config: Mapping[str, Any], envs: Mapping[str, Any]) -> None:
    """Raise UsageError when ``gpus``, or GPUs that the file ``config`` may get, do not hold Pixtral.

    It needs no SkyPilot. GPUs that are not known here hold what shows when the server starts.
    """
    if has_own_needs(envs):
        return
    for each in named(gpus, config):
        if not each.known and each.count not in pixtral.TENSOR_PARALLEL:
            raise UsageError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {each.count}.")
        if each.known:
            _check_fit(each.known, each.count, envs)


def check_names(gpus: str | None, config: Mapping[str, Any], infra: str | None = None) -> list[str]:
    """Warnings about GPUs that are not known here. Raises UsageError when SkyPilot knows no such GPU."""
    resources = config.get("resources")
    place = infra or (resources.get("infra") if isinstance(resources, dict) else "")
    unknown = [each.name for each in named(gpus, config) if not each.known]
    return list(dict.fromkeys(_unknown(name, str(place or "")) for name in unknown))


def named(gpus: str | None, config: Mapping[str, Any]) -> Iterator[Gpus]:
    """``gpus``, or those that the file ``config`` names."""
    for each in [gpus] if gpus else of_file(config.get("resources")):
        with contextlib.suppress(UsageError):  # SkyPilot reads more in a file, such as 80GB+
            yield parse(each)


def has_own_needs(envs: Mapping[str, Any]) -> bool:
    """Whether MODEL is another model, or EXTRA_ARGS change the memory that it needs."""
    # vLLM takes --max_model_len as well.
    words = str(envs.get("EXTRA_ARGS") or "").replace("_", "-")
    return envs.get("MODEL") != pixtral.MODEL or bool(MEMORY_ARGS.search(words))


def _check_fit(gpu: str, count: int, envs: Mapping[str, Any]) -> None:
    most, images = task.limits(envs)
    length = most if most > 0 else None  # None: the script's own choice
    precision = str(envs.get("PRECISION") or memory.PRECISIONS[0])
    try:
        why = memory.fits(gpu, count, length, images, precision=precision).why_not
    except ValueError as error:
        raise UsageError(f"MAX_IMAGES={images}, MAX_MODEL_LEN={length or ''}: {error}.") from error
    if why:
        raise UsageError(why, "What holds it: pixtral-sky plan --no-prices")


def _unknown(gpu: str, place: str) -> str:
    """The warning about a GPU that is not known here. Raises UsageError when SkyPilot does not know it."""
    own = infra_syntax.named(place.partition("/")[0]) in infra_syntax.OWN
    theirs = [] if own else _skypilots_gpus()
    unknown = f"{gpu} is not known here: whether it holds the model shows when it starts."
    if gpu.lower() in [each.lower() for each in theirs] or own:
        return unknown
    close = closest(gpu, (*theirs, *memory.GPUS))
    did_you_mean = f"Did you mean {close}? " if close else ""
    if theirs:
        raise UsageError(
            f"There is no GPU {gpu!r} in SkyPilot's catalogs.", f"{did_you_mean}All there are: sky gpus list"
        )
    return f"{unknown} {did_you_mean}".rstrip()


def _skypilots_gpus() -> list[str]:
    """The GPUs in SkyPilot's catalogs; none where the catalogs cannot be read."""
    with contextlib.suppress(Exception), sky_sdk(silent=True) as sky:
        catalog = sky.catalog.common.read_catalog("common/accelerators.csv")
        return [str(name) for name in catalog["AcceleratorName"]]
    return []
