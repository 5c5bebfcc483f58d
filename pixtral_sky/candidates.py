"""What a launch may run on: GPUs that hold the model, clouds where it works, within a price.

Decided before anything costs money. SkyPilot's own limit of the price, `max_hourly_cost`, is one of machine types:
it leaves out those that are dearer in every region, and then launches the others in any region (0.14.1:
catalog/common.py, and `make_launchables_for_valid_region_zones`). So the regions and zones are named here.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixtral_sky import fit, model, prices, task
from pixtral_sky.errors import UsageError
from pixtral_sky.sdk import sky_sdk

# Each time that a place has no machine, SkyPilot goes through all of them again (40: under a second), and each of its
# messages names them all.
MOST = 40
# SkyPilot 0.14.1's images for AWS and GCP have driver 580 since it is in their names (clouds/aws.py, clouds/gcp.py:
# "cuda13"); the name of Azure's is the old one (clouds/azure.py).
OLD_IMAGE = (
    "SkyPilot's own image for Azure is not known to have the NVIDIA driver 580 that this vLLM needs, as those for AWS "
    "and GCP have"
)


# GPUs ------------------------------------------------------------------------------------------------------


def check_gpus(
    gpus: str | None, config: Mapping[str, Any], envs: Mapping[str, Any], infra: str | None = None
) -> list[str]:
    """What a person must know of ``gpus``, or of those that the file ``config`` may get.

    Raises UsageError when one of them is none, or does not hold Pixtral. What is not known here is left to SkyPilot,
    and to vLLM where it has EXTRA_ARGS.
    """
    said = []
    for name in [gpus] if gpus else accelerators(config.get("resources")):
        given, _, count = name.partition(":")
        gpu = next((each for each in fit.GPUS if each.lower() == given.lower()), "")
        if not gpu:
            said += _unknown(given, infra or str((config.get("resources") or {}).get("infra") or ""))
        if envs.get("MODEL") != model.MODEL or envs.get("EXTRA_ARGS") or not (count or "1").isdecimal():
            continue
        if gpu:
            _check_fit(gpu, int(count or 1), envs)
        elif int(count or 1) not in model.TENSOR_PARALLEL:
            raise UsageError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}.")
    return list(dict.fromkeys(said))


def _check_fit(gpu: str, count: int, envs: Mapping[str, Any]) -> None:
    length = task.number(envs, "MAX_MODEL_LEN", 0) or None  # None: the script's own choice
    images = task.number(envs, "MAX_IMAGES", fit.DEFAULT_IMAGES)
    precision = str(envs.get("PRECISION") or fit.PRECISIONS[0])
    try:
        why = fit.why_not(gpu, count, length, images, precision)
    except ValueError as error:
        raise UsageError(f"MAX_IMAGES={images}, MAX_MODEL_LEN={length or ''}: {error}.") from error
    if why:
        raise UsageError(why, "What does: pixtral-sky plan --no-prices")


def _unknown(gpu: str, infra: str) -> list[str]:
    """What is to be said of a GPU that is not known here. Raises UsageError when SkyPilot does not know it either."""
    theirs = _skypilots_gpus()
    own = infra.partition("/")[0].lower() in (*prices.OWN, "k8s")  # whose nodes may call theirs anything
    if theirs and not own and gpu.lower() not in [each.lower() for each in theirs]:
        names = {each.lower(): each for each in (*theirs, *fit.GPUS)}
        close = difflib.get_close_matches(gpu.lower(), names, 1)
        raise UsageError(
            f"There is no GPU {gpu!r} in SkyPilot's catalogs.",
            (f"Did you mean {names[close[0]]}? " if close else "") + "All there are: sky gpus list",
        )
    return [f"{gpu} is not known here: whether it holds the model shows when it starts."]


def _skypilots_gpus() -> list[str]:
    """The names in SkyPilot's catalogs; none where these cannot be had."""
    with contextlib.suppress(Exception), sky_sdk(silent=True) as sky:
        return [str(name) for name in sky.catalog.common.read_catalog("common/accelerators.csv")["AcceleratorName"]]
    return []


def accelerators(resources: Any) -> Iterator[str]:
    """Each GPU[:COUNT] that a file's ``resources:`` name; what is no such section is SkyPilot's to refuse."""
    if not isinstance(resources, dict):
        return
    for each in resources.get("any_of") or resources.get("ordered") or [{}]:
        given = {**resources, **each}.get("accelerators") if isinstance(each, dict) else None
        # A name, several, or counts by name; YAML's set is a mapping to nothing.
        if isinstance(given, dict):
            given = [name if count is None else f"{name}:{count}" for name, count in given.items()]
        given = [given] if isinstance(given, str) else given
        yield from map(str, given if isinstance(given, list) else [])


# Places ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """What of SkyPilot's resources stays, in their order, and what a person is told of it."""

    resources: list[Any]  # sky.Resources
    said: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


def choose(
    sky: Any, resources: Sequence[Any], enabled: Sequence[str], max_price: float | None, always: bool = True
) -> Chosen:
    """Of ``resources``, what works on the clouds that are ``enabled``, at ``max_price`` USD an hour or less.

    ``always``: spot machines are never replaced by ordinary ones; else it is the price of those that counts.
    Raises UsageError when nothing is left.
    """
    clouds = list(dict.fromkeys(name.partition("/")[0].lower() for name in enabled))
    working, warned = _that_work(sky, resources, clouds)
    if max_price is None:
        return Chosen(working, warned=warned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' words to SkyPilot
        return _Priced(sky, clouds, max_price, always).chosen(working, warned)


def _that_work(
    sky: Any, resources: Sequence[Any], clouds: Sequence[str]
) -> tuple[list[Any], tuple[str, ...]]:
    """Without those that would be on Azure with SkyPilot's own image."""
    kept: list[Any] = []
    for each in resources:
        if each.get_cloud_image_id() or "azure" not in (_names(each, clouds)):
            kept.append(each)
        elif each.cloud is None:
            kept += [each.copy(cloud=_cloud(sky, name)) for name in clouds if name != "azure"]
    if not kept:
        raise UsageError(
            f"{OLD_IMAGE}.", "Name one that has it in a file of yours (resources.image_id), or go elsewhere: --infra"
        )
    left_out = len(kept) != len(resources) or any(a is not b for a, b in zip(kept, resources, strict=True))
    return kept, ((f"Azure is left out: {OLD_IMAGE}. With another: resources.image_id.",) if left_out else ())


def _names(resources: Any, clouds: Sequence[str]) -> list[str]:
    """The clouds that it may be launched on."""
    return [str(resources.cloud).lower()] if resources.cloud else list(clouds)


def _cloud(sky: Any, name: str) -> Any:
    return sky.CLOUD_REGISTRY.from_str(name)


class _Priced:
    """The choice by price."""

    def __init__(self, sky: Any, clouds: Sequence[str], most: float, always: bool) -> None:
        self.sky, self.clouds, self.most, self.always = sky, clouds, most, always

    def chosen(self, resources: Sequence[Any], warned: tuple[str, ...]) -> Chosen:
        kept: list[Any] = []
        own: list[Any] = []  # machines without a price
        failed: dict[str, str] = {}
        for each in resources:
            for name in _names(each, self.clouds):
                there = each.copy(cloud=_cloud(self.sky, name))
                if name in prices.OWN:
                    own.append(there)
                    continue
                try:
                    kept += self._within(there.copy(max_hourly_cost=self.most))
                except Exception as error:  # a broken catalog raises anything
                    failed[name] = prices.why(error)
        if not kept and not own:
            raise self._nothing(resources)
        ...


    def _within(self, candidate: Any) -> list[Any]:
        """The candidate, where SkyPilot could choose nothing of it that is too dear; else the parts of it that are so."""
        machines = self._machines(candidate)
        if not machines:
            return []
        if all(self._price(each) <= self.most for each in machines[0]):  # it launches the first kind only
            return [candidate]
        ...
