"""What SkyPilot says of one place: the packages that it needs, its credentials, its GPUs, its quota."""

from __future__ import annotations

import importlib.metadata
import io
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_sky.deploy import candidates, prices
from pixtral_sky.deploy.bring_up import Wanted, made_task
from pixtral_sky.deploy.infra import Infra
from pixtral_sky.deploy.skypilot import plain, shown, sky_sdk
from pixtral_sky.errors import PixtralSkyError

MOST_ASKED = 8  # regions and machines whose quota is asked for, a second each
QUOTAS = ("aws", "gcp")  # the clouds whose quota SkyPilot 0.14.1 reads; to it, others have any


@dataclass(frozen=True)
class Disabled:
    """Why SkyPilot does not launch at a place, and the ``commands`` that it advises."""

    reason: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """The cheapest machine at a place with GPUs that a file names; in USD an hour, None: no price."""

    gpus: str
    machine: str
    region: str
    hourly: float | None
    spot: float | None
    resources: Any  # sky.Resources

    def __str__(self) -> str:
        cost = "no price" if self.hourly is None else f"${self.hourly:.2f}"
        spot = "" if self.spot is None else f", spot ${self.spot:.2f}"
        return f"{self.gpus} at {cost}{spot} ({self.machine} in {self.region})"


def is_elsewhere() -> bool:
    """Whether SkyPilot's API server runs on another machine: packages and credentials are there then."""
    return "SKYPILOT_API_SERVER_ENDPOINT" in os.environ


def missing_packages(cloud: str) -> list[str]:
    """The packages that SkyPilot needs for ``cloud``, and that are not installed here, by name."""
    from packaging.requirements import Requirement  # SkyPilot requires it

    missing = []
    for line in importlib.metadata.requires("skypilot") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if not marker or "extra" not in str(marker) or not marker.evaluate({"extra": cloud}):
            continue
        try:
            importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
    return missing


def check(place: Infra) -> Disabled | None:
    """Let SkyPilot check its access to ``place``, as `sky check` does; None: it may launch there."""
    log = io.StringIO()
    with sky_sdk(silent=True) as sky:
        from sky.client import sdk

        sky.stream_and_get(sdk.check((place.cloud,), verbose=False), output_stream=log)
        enabled = [name.lower() for name in sky.get(sdk.enabled_clouds(expand=True))]
    if place.cloud in enabled or (
        place.is_own and any(_is_at(place, name.split("/", 1)[-1]) for name in enabled if _of(place, name))
    ):
        return None
    text = shown(plain(log.getvalue()))
    reason = _of_context(text, place.region) or _of_cloud(text)
    if not reason and any(_of(place, name) for name in enabled):
        reason = f"SkyPilot knows no {place}, but {', '.join(name for name in enabled if _of(place, name))}."
    words, _, commands = reason.partition("$ ")
    words = re.sub(r"\s*(Run the following commands:|by running:)\s*$", "", words.strip())
    advised = [line.partition("  #")[0].strip() for line in commands.splitlines()[:1]]
    advised += re.findall(r"^\s*\$ (.+?)(?:  #.*)?$", commands, re.MULTILINE)
    return Disabled(" ".join(words.split())[:300], tuple(each.strip() for each in advised))


def _of(place: Infra, name: str) -> bool:
    return name.partition("/")[0] == place.cloud


def _is_at(place: Infra, name: str) -> bool:
    return not place.region or place.region.lower() == name


def _of_context(text: str, name: str) -> str:
    """SkyPilot's reason for one context, node pool or Slurm."""
    found = re.search(rf"^\W*{re.escape(name)}: disabled\. (.+(?:\n(?!\W*[─└├]).+)*)", text, re.MULTILINE)
    return found[1] if name and found else ""


def _of_cloud(text: str) -> str:
    """SkyPilot's reason why a cloud gives no machines."""
    found = re.search(r"Reason \[[^]]*compute[^]]*\]: ((?:.+\n?)*)", text)
    return re.split(r"\n\s*(?:Reason|Hint) \[", found[1])[0] if found else ""


def offers(config: Mapping[str, Any], place: Infra) -> list[Offer]:
    """For each of the GPUs of a file that a cloud has at ``place``, its cheapest machine; cheapest first.

    By SkyPilot's catalogs, which it downloads where they are missing. Raises PixtralSkyError.
    """
    cheapest: dict[str, Offer] = {}
    with sky_sdk(silent=True) as sky:
        made = made_task(sky, config, Wanted("pixtral", infra=str(place)), "unused", "")
        try:
            for each in candidates.per_cloud(sky, made.resources, [place.cloud]):
                for machine in _machines(each):
                    offer = _offer(machine)
                    best = cheapest.get(offer.gpus)
                    if best is None or _cost(offer) < _cost(best):
                        cheapest[offer.gpus] = offer
        except OSError as error:  # requests' errors too
            raise PixtralSkyError(f"{place.cloud}: {prices.why(error)}.") from error
    return sorted(cheapest.values(), key=_cost)


def _machines(candidate: Any) -> Iterator[Any]:
    for places in candidates.machines(candidate):
        yield from places


def _offer(machine: Any) -> Offer:
    ((gpu, count),) = machine.accelerators.items()
    hourly, spot = (candidates.cost(machine.copy(use_spot=each)) for each in (False, True))
    return Offer(
        f"{gpu}:{count:g}",
        machine.instance_type,
        machine.region,
        hourly if math.isfinite(hourly) else None,
        spot if math.isfinite(spot) else None,
        machine,
    )


def _cost(offer: Offer) -> float:
    return math.inf if offer.hourly is None else offer.hourly


def own_gpus(place: Infra) -> dict[str, tuple[int, int, int]]:
    """The GPUs of a Kubernetes or Slurm of the user: the most on one node, all, and those that are free."""
    region = f"ssh-{place.region}" if place.cloud == "ssh" and place.region else place.region
    with sky_sdk(silent=True) as sky:
        from sky.client import sdk

        if place.cloud == "slurm":
            request = sdk.realtime_slurm_gpu_availability(slurm_cluster_name=region or None)
        else:
            request = sdk.realtime_kubernetes_gpu_availability(
                context=region or None, is_ssh=place.cloud == "ssh"
            )
        found: dict[str, tuple[int, int, int]] = {}
        for _, gpus, *_ in sky.get(request):
            for gpu, counts, capacity, available in gpus:
                most, all_, free = found.get(gpu, (0, 0, 0))
                # -1 are available where SkyPilot is not told.
                found[gpu] = (max(most, *counts), all_ + capacity, free + max(available, 0))
        return found


def has_quota(offer: Offer) -> bool:
    """Whether the account may have such a machine in its region, as far as SkyPilot can tell.

    SkyPilot takes an answer that it does not get for a yes. Raises whatever the cloud's SDK does.
    """
    with sky_sdk(silent=True):
        return bool(offer.resources.cloud.check_quota_available(offer.resources))


def can_tell_quota(place: Infra) -> bool:
    """Whether SkyPilot, on this machine, can ask the cloud for its quota."""
    return place.cloud in QUOTAS and (place.cloud != "gcp" or bool(shutil.which("gcloud")))
