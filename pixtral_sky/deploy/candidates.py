"""Decides where a launch may run: clouds where it works, within a price.

SkyPilot's own limit, `max_hourly_cost`, leaves out machine types that are dearer in every region, and
launches the others in any region (0.14.1: catalog/common.py, and `make_launchables_for_valid_region_zones`).
So this module names the regions and zones.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pixtral_sky.deploy import prices, skypilot
from pixtral_sky.deploy.infra import OWN, Infra
from pixtral_sky.errors import UsageError

# SkyPilot goes through all candidates again whenever a zone has no machine (40: in a second), and each of its
# messages names them all.
MOST = 40
# SkyPilot 0.14.1's images for AWS and GCP have driver 580, and "cuda13" in their names (clouds/aws.py,
# clouds/gcp.py); Azure's has the name of an earlier image (clouds/azure.py).
OLD_IMAGE = (
    "SkyPilot's own image for Azure is not known to have the NVIDIA driver 580 that this vLLM needs, as those"
    " for AWS and GCP have"
)
# Microsoft's own, for A100 and newer, has 580 since February 2026 (Azure/azhpc-images#488). Not tried.
NEW_IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"


@dataclass(frozen=True)
class Chosen:
    """The candidates that stay, and what a person is told about them."""

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
    """The ``resources`` that work on the clouds ``enabled``, at ``max_price`` USD an hour or less.

    With ``fallback``, on-demand machines stand in for spot ones, so their price counts. Raises UsageError
    when nothing is left.
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
                if name not in OWN:
                    priced += limit.within(there)
                elif not there.ports or skypilot.opens_ports(there.cloud, there):
                    own.setdefault(name, []).append(there)
            except Exception as error:  # a broken catalog raises anything
                failed[name] = f"{name} is left out: {prices.why(error)}."
        if not priced and not own:
            raise _too_dear(limit, per_cloud(sky, working, enabled), failed)
    if not isinstance(resources, Sequence):  # a sequence is in the order of the user's preference
        priced.sort(key=lambda each: each[0])
    kept = [candidate for _, candidate in priced[:MOST]]
    said = [_said(max_price, len(priced), kept)]
    if own:
        said.append(f"Without a price, and candidates all the same: {', '.join(own)}.")
    return Chosen([*kept, *itertools.chain(*own.values())], tuple(said), (*warned, *failed.values()))


def _that_work(sky: Any, resources: list[Any], enabled: Sequence[str]) -> tuple[list[Any], tuple[str, ...]]:
    """The resources that are not on Azure with SkyPilot's own image, and a warning."""
    every = list(per_cloud(sky, resources, enabled))
    kept = [each for each in every if not _on_old_image(each)]
    if len(kept) == len(every):
        return resources, ()
    if not kept:
        raise UsageError(
            f"{OLD_IMAGE}.", "Name another in your file (resources.image_id), or go elsewhere: --infra"
        )
    return kept, (f"Azure is left out: {OLD_IMAGE}. To use it, name another: resources.image_id",)


def _on_old_image(resources: Any) -> bool:
    # A container's image has no cloud image, and runs on that of the machine.
    return str(resources.cloud) == "Azure" and not resources.get_cloud_image_id()


def check_region(sky: Any, place: Infra) -> None:
    """Raise UsageError for a region that SkyPilot's catalogs do not have.

    A zone is left to SkyPilot's server: AWS names them for each account.
    """
    if not place.region or not place.cloud or place.is_own:
        return
    try:
        sky.CLOUD_REGISTRY.from_str(place.cloud).validate_region_zone(place.region, None)
    except ValueError as error:
        there = " ".join(str(error).partition("\n")[2].replace("'", "").split())
        raise UsageError(f"SkyPilot has no region {place.region!r} of {place.cloud}.", there) from error
    except Exception:  # noqa: S110 (a catalog that cannot be downloaded: SkyPilot's server has its own)
        pass


def per_cloud(sky: Any, resources: Iterable[Any], enabled: Sequence[str]) -> Iterator[Any]:
    """Each of ``resources`` on each cloud that may launch it."""
    names = dict.fromkeys(name.partition("/")[0] for name in enabled)
    for each in resources:
        for cloud in [each.cloud] if each.cloud else map(sky.CLOUD_REGISTRY.from_str, names):
            # Else SkyPilot prints a line for each cloud that has no such GPU.
            yield each.copy(cloud=cloud, no_missing_accel_warnings=True)


@dataclass(frozen=True)
class _Limit:
    most: float  # USD an hour
    fallback: bool  # the on-demand price counts for a spot machine too

    def within(self, candidate: Any) -> list[tuple[float, Any]]:
        """The candidate with its least cost, if SkyPilot launches nothing dearer for it.

        Else those of its regions or zones for which that is true.
        """
        most = min(self.most, candidate.max_hourly_cost or math.inf)
        candidate = candidate.copy(max_hourly_cost=most)  # keeps the types that are under it in some region
        places = machines(candidate)
        if not places:
            return []
        costs = [self.price(each) for each in places[0]]  # SkyPilot launches the cheapest type
        if max(costs) <= most:
            return [(min(costs), candidate)]
        parts = _parts(candidate, list(itertools.chain(*places)))
        return list(itertools.chain(*map(self.within, parts)))

    def price(self, machine: Any) -> float:
        found = cost(machine)
        if self.fallback and machine.use_spot:
            return max(found, cost(machine.copy(use_spot=False)))
        return found


def _parts(candidate: Any, places: Sequence[Any]) -> list[Any]:
    """The candidate in each of its regions, or in each zone of its region."""
    if candidate.region is None:
        return [candidate.copy(region=name) for name in dict.fromkeys(each.region for each in places)]
    # A zone of AWS has another name for each account, and without credentials here it is a number that
    # SkyPilot's server does not take (catalog/aws_catalog.py).
    zones = dict.fromkeys(each.zone for each in places if each.zone and each.zone.startswith(each.region))
    return [] if candidate.zone else [candidate.copy(zone=name) for name in zones]


def machines(candidate: Any) -> list[list[Any]]:
    """SkyPilot's machines for a candidate: the cheapest type in all its regions, then the next."""
    from sky.utils import resources_utils

    types = candidate.cloud.get_feasible_launchable_resources(candidate).resources_list
    places = [resources_utils.make_launchables_for_valid_region_zones(each) for each in types]
    return [each for each in places if each]


def cost(machine: Any) -> float:
    """USD an hour; infinite where the catalogs have no price, or 0."""
    try:
        found = float(machine.get_cost(3600))
    except ValueError:  # the catalog has no such row
        return math.inf
    return found if found > 0 else math.inf


def _too_dear(limit: _Limit, candidates: Iterable[Any], failed: Mapping[str, str]) -> UsageError:
    """The error when nothing is within the limit."""
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
    other = cost(best.copy(use_spot=not best.use_spot))
    beside = "" if other == math.inf else f" ({'on demand' if best.use_spot else 'spot'} ${other:.2f})"
    if best.use_spot and limit.fallback:
        beside = f" (spot ${cost(best):.2f}, but on-demand machines stand in for those)"
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
