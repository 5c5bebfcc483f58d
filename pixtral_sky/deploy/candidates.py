"""What a launch may run on: GPUs that hold the model, clouds where it works, within a price.

Decided before anything costs money. SkyPilot's own limit of the price, `max_hourly_cost`, is one of machine
types: it leaves out those that are dearer in every region, and launches the others in any region (0.14.1:
catalog/common.py, and `make_launchables_for_valid_region_zones`). So the regions and zones are named here.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pixtral_sky import memory, pixtral
from pixtral_sky.deploy import prices, skypilot, task
from pixtral_sky.deploy.skypilot import sky_sdk
from pixtral_sky.errors import UsageError
from pixtral_sky.text import closest

# Each time that a place has no machine, SkyPilot goes through all of them again (40: in a second), and each
# of its messages names them all.
MOST = 40
# SkyPilot 0.14.1's images for AWS and GCP have driver 580, and "cuda13" in their names (clouds/aws.py,
# clouds/gcp.py); the name of Azure's is the one of before (clouds/azure.py).
OLD_IMAGE = (
    "SkyPilot's own image for Azure is not known to have the NVIDIA driver 580 that this vLLM needs, as those"
    " for AWS and GCP have"
)
# Microsoft's own, for A100 and newer, has 580 since February 2026 (Azure/azhpc-images#488). It was not tried.
NEW_IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"
# Arguments of vLLM with which it needs other memory, or other GPUs, than is computed here.
MEMORY_ARGS = re.compile(
    r"(?:^|\s)(?:-q|-tp|-pp|--(?:quantization|max-model-len|gpu-memory-utilization|kv-cache|cpu-offload|load-format"
    r"|tensor-parallel-size|pipeline-parallel-size|max-num-|hf-overrides|dtype|config))"
)


# GPUs ------------------------------------------------------------------------------------------------------


def check_gpus(
    gpus: str | None, config: Mapping[str, Any], envs: Mapping[str, Any], infra: str | None = None
) -> list[str]:
    """What a person must know of ``gpus``, or of those that the file ``config`` may get.

    Raises UsageError when one of them is none, or does not hold Pixtral. What is not known here is left to
    SkyPilot, and to vLLM.
    """
    resources = config.get("resources")
    said = []
    for name in [gpus] if gpus else accelerators(resources):
        given, _, count = name.partition(":")
        gpu = next((each for each in memory.GPUS if each.lower() == given.lower()), "")
        if not gpu:
            place = infra or (resources.get("infra") if isinstance(resources, dict) else "")
            said.append(_unknown(given, str(place or "")))
        if has_own_needs(envs) or not (count or "1").isdecimal():
            continue
        if gpu:
            _check_fit(gpu, int(count or 1), envs)
        elif int(count or 1) not in pixtral.TENSOR_PARALLEL:
            raise UsageError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}.")
    return list(dict.fromkeys(said))


def has_own_needs(envs: Mapping[str, Any]) -> bool:
    """Whether it is another model, or EXTRA_ARGS change the memory that it needs."""
    # vLLM takes --max_model_len as well.
    words = str(envs.get("EXTRA_ARGS") or "").replace("_", "-")
    return envs.get("MODEL") != pixtral.MODEL or bool(MEMORY_ARGS.search(words))


def _check_fit(gpu: str, count: int, envs: Mapping[str, Any]) -> None:
    most, images = task.limits(envs)
    length = most if most > 0 else None  # None: the script's own choice
    precision = str(envs.get("PRECISION") or memory.PRECISIONS[0])
    try:
        why = memory.why_not(gpu, count, length, images, precision)
    except ValueError as error:
        raise UsageError(f"MAX_IMAGES={images}, MAX_MODEL_LEN={length or ''}: {error}.") from error
    if why:
        raise UsageError(why, "What holds it: pixtral-sky plan --no-prices")


def _unknown(gpu: str, infra: str) -> str:
    """What to say of a GPU that is not known here. Raises UsageError when SkyPilot knows it neither."""
    own = infra.partition("/")[0].lower() in (*prices.OWN, "k8s")  # whose nodes may call theirs anything
    theirs = [] if own else _skypilots_gpus()
    unknown = f"{gpu} is not known here: whether it holds the model shows when it starts."
    if gpu.lower() in [each.lower() for each in theirs] or own:
        return unknown
    close = _did_you_mean(gpu, (*theirs, *memory.GPUS))
    if theirs:
        raise UsageError(
            f"There is no GPU {gpu!r} in SkyPilot's catalogs.", f"{close}All there are: sky gpus list"
        )
    return f"{unknown} {close}".rstrip()


def _did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question, with a space after it; empty where no name is like the word."""
    close = closest(word, names)
    return f"Did you mean {close}? " if close else ""


def _skypilots_gpus() -> list[str]:
    """The names in SkyPilot's catalogs; none where these cannot be had."""
    with contextlib.suppress(Exception), sky_sdk(silent=True) as sky:
        catalog = sky.catalog.common.read_catalog("common/accelerators.csv")
        return [str(name) for name in catalog["AcceleratorName"]]
    return []


def check_infra(infra: str | None) -> None:
    """Raises UsageError when its first part is no cloud of SkyPilot's."""
    cloud = (infra or "").strip("/ ").partition("/")[0].strip()
    if cloud in ("", "*"):
        return
    with sky_sdk(silent=True):
        from sky.skylet import constants

        names = sorted({*constants.ALL_CLOUDS, "k8s"})
    if cloud.lower() not in names:
        close = _did_you_mean(cloud, names)
        raise UsageError(f"There is no cloud {cloud!r}.", close.rstrip() or f"There are: {', '.join(names)}")


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
    """What of SkyPilot's resources stays, and what a person is told of it."""

    resources: list[Any]  # sky.Resources
    said: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


def choose(
    sky: Any,
    resources: Sequence[Any] | Set[Any],
    enabled: Sequence[str],
    max_price: float | None,
    *,
    fallback: bool = False,
) -> Chosen:
    """Of ``resources``, what works on the clouds that are ``enabled``, at ``max_price`` USD an hour or less.

    ``fallback``: ordinary machines stand in for spot ones, and so their price counts. Raises UsageError when
    nothing is left.
    """
    working, warned = _that_work(sky, list(resources), enabled)
    if max_price is None:
        return Chosen(working, warned=warned)
    limit = _Limit(max_price, fallback)
    priced: list[tuple[float, Any]] = []
    own: dict[str, list[Any]] = {}
    failed: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' words to SkyPilot
        for there in per_cloud(sky, working, enabled):
            name = str(there.cloud).lower()
            try:
                if name not in prices.OWN:
                    priced += limit.within(there)
                elif not there.ports or skypilot.opens_ports(there.cloud, there):
                    own.setdefault(name, []).append(there)
            except Exception as error:  # a broken catalog raises anything
                failed[name] = f"{name} is left out: {prices.why(error)}."
        if not priced and not own:
            raise _too_dear(limit, per_cloud(sky, working, enabled), failed)
    if not isinstance(resources, Sequence):  # else they are in the order in which they are to be tried
        priced.sort(key=lambda each: each[0])
    kept = [candidate for _, candidate in priced[:MOST]]
    said = [_said(max_price, len(priced), kept)]
    if own:
        said.append(f"Without a price, and candidates all the same: {', '.join(own)}.")
    return Chosen([*kept, *itertools.chain(*own.values())], tuple(said), (*warned, *failed.values()))


def _that_work(sky: Any, resources: list[Any], enabled: Sequence[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Without what would be on Azure with SkyPilot's own image."""
    if not any(map(_on_old_image, per_cloud(sky, resources, enabled))):
        return resources, ()
    kept = [each for each in per_cloud(sky, resources, enabled) if not _on_old_image(each)]
    if not kept:
        raise UsageError(
            f"{OLD_IMAGE}.", "Name another in your file (resources.image_id), or go elsewhere: --infra"
        )
    return kept, (f"Azure is left out: {OLD_IMAGE}. To use it, name another: resources.image_id",)


def _on_old_image(resources: Any) -> bool:
    return str(resources.cloud) == "Azure" and not resources.get_cloud_image_id()  # Docker's run on that, too


def per_cloud(sky: Any, resources: Iterable[Any], enabled: Sequence[str]) -> Iterator[Any]:
    """Each of ``resources``, on each cloud that it may be launched on."""
    names = dict.fromkeys(name.partition("/")[0] for name in enabled)
    for each in resources:
        for cloud in [each.cloud] if each.cloud else map(sky.CLOUD_REGISTRY.from_str, names):
            # Not every cloud has each of them, which SkyPilot would say in a line each.
            yield each.copy(cloud=cloud, no_missing_accel_warnings=True)


@dataclass(frozen=True)
class _Limit:
    """A price, in USD an hour, and what is under it."""

    most: float
    fallback: bool  # the price of an ordinary machine counts, for a spot one too

    def within(self, candidate: Any) -> list[tuple[float, Any]]:
        """The candidate, with the least that it costs, if SkyPilot would launch nothing dearer for it.

        Else those of its regions or zones of which that is true.
        """
        most = min(self.most, candidate.max_hourly_cost or math.inf)
        candidate = candidate.copy(max_hourly_cost=most)  # which leaves the types under it, of one region
        places = machines(candidate)
        if not places:
            return []
        costs = [self.price(each) for each in places[0]]  # of the cheapest type, which is what it launches
        if max(costs) <= most:
            return [(min(costs), candidate)]
        parts = self._parts(candidate, list(itertools.chain(*places)))
        return list(itertools.chain(*map(self.within, parts)))

    @staticmethod
    def _parts(candidate: Any, places: Sequence[Any]) -> list[Any]:
        if candidate.region is None:
            return [candidate.copy(region=name) for name in dict.fromkeys(each.region for each in places)]
        # A zone of AWS has another name for each account, and without credentials here it is a number that
        # SkyPilot's server does not take (catalog/aws_catalog.py).
        zones = dict.fromkeys(each.zone for each in places if each.zone and each.zone.startswith(each.region))
        return [] if candidate.zone else [candidate.copy(zone=name) for name in zones]

    def price(self, machine: Any) -> float:
        found = _cost(machine)
        if self.fallback and machine.use_spot:
            return max(found, _cost(machine.copy(use_spot=False)))
        return found


def machines(candidate: Any) -> list[list[Any]]:
    """What SkyPilot has for a candidate: the cheapest type of machine in all its places, then the next."""
    from sky.utils import resources_utils

    types = candidate.cloud.get_feasible_launchable_resources(candidate).resources_list
    places = [resources_utils.make_launchables_for_valid_region_zones(each) for each in types]
    return [each for each in places if each]


def _cost(machine: Any) -> float:
    """USD an hour, infinite where there is no such price: the catalogs have 0, or nothing, for that."""
    try:
        found = float(machine.get_cost(3600))
    except ValueError:  # it is in no row
        return math.inf
    return found if found > 0 else math.inf


def _too_dear(limit: _Limit, candidates: Iterable[Any], failed: Mapping[str, str]) -> UsageError:
    """What to say when nothing is under the limit."""
    found: list[Any] = []
    for each in candidates:
        with contextlib.suppress(Exception):  # a catalog that is broken
            found += itertools.chain(*machines(each))
    best = min(found, key=limit.price, default=None)
    if not best or (least := limit.price(best)) == math.inf:
        return UsageError(
            "--max-price cannot be kept: no price is known of what this could run on.",
            " ".join(failed.values()) or "All there are: pixtral-sky plan",
        )
    other = _cost(best.copy(use_spot=not best.use_spot))
    beside = "" if other == math.inf else f" ({'on demand' if best.use_spot else 'spot'} ${other:.2f})"
    if best.use_spot and limit.fallback:
        beside = f" (spot ${_cost(best):.2f}, but ordinary machines stand in for those)"
    ((gpu, count),) = best.accelerators.items()
    return UsageError(
        f"Nothing that holds it costs ${limit.most:.2f} an hour or less. The cheapest is {best.instance_type}"
        f" ({gpu}:{count:g}) in {str(best.cloud).lower()}/{best.region}"
        f" at ${math.ceil(least * 100) / 100:.2f}{beside}.",
        "Raise --max-price" + (", or take --spot" if not best.use_spot and other <= limit.most else ""),
    )


def _said(most: float, number: int, kept: Sequence[Any]) -> str:
    disks = {(str(each.cloud).lower(), each.disk_size) for each in kept if not each.disk_tier}
    costs = sorted({f"{cost:.2f}" for each in disks if (cost := prices.disk_hourly(*each)) is not None})
    disk = f", by list price ${' to $'.join([costs[0], *costs[1:][-1:]])} an hour," if costs else ""
    few = f"{number} candidate{'s' * (number != 1)}"
    few = f"the {MOST} cheapest of {few}" if number > MOST else few
    return (
        f"At most ${most:.2f} an hour for a machine with its GPUs: {few}."
        f" Its disk{disk} and traffic are not in it."
    )
