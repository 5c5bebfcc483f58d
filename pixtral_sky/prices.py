"""What machines with GPUs cost an hour: SkyPilot's own catalogs, by which its optimizer chooses.

No account is needed, and no API server: the catalogs are read in this process. SkyPilot downloads those that
are not there or are out of date. On GCP, where a GPU is added to a host, a price is that of both, as the
optimizer has it (``tests/test_prices.py``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixtral_sky.errors import UsageError
from pixtral_sky.sdk import shown, sky_sdk

OWN = ("kubernetes", "slurm", "ssh", "vsphere")  # of SkyPilot's clouds; machines of one's own have no price


@dataclass(frozen=True)
class Offer:
    """A machine that a cloud rents out in a region, with ``count`` GPUs. Prices are in USD an hour."""

    gpu: str
    count: int
    cloud: str
    region: str
    machine: str  # the cloud's name for it: g6e.xlarge
    hourly: float
    spot: float | None  # None: it has none


@dataclass(frozen=True)
class Prices:
    offers: tuple[Offer, ...]
    left_out: dict[str, str]  # clouds without prices here, and why


def read(
    gpus: Sequence[str],
    counts: Sequence[int],
    cpus: float,
    memory: float,
    clouds: Sequence[str] = (),
    ports: bool = False,
) -> Prices:
    """What ``clouds`` (none: all that have catalogs) ask for machines with so many of these GPUs.

    A machine has ``cpus`` vCPUs and ``memory`` GB at least. ``ports``: only of clouds that open ports. A
    cloud whose catalog cannot be had is left out. Raises UsageError for a cloud that is none.
    """
    offers: list[Offer] = []
    left_out: dict[str, str] = {}
    with sky_sdk(silent=True) as sky, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' words to SkyPilot
        for cloud in _named(clouds):
            if ports and not _opens_ports(sky, cloud):
                left_out[cloud] = "no ports to open, and replicas need one"
                continue
            try:
                # One cloud a call: where one catalog is missing, the whole call fails.
                found = sky.catalog.list_accelerators(
                    gpus_only=True,
                    name_filter=f"^(?:{'|'.join(gpus)})$",
                    all_regions=True,
                    clouds=[cloud],
                )
                offers += [
                    offer
                    for each in found.values()
                    for row in each
                    if (offer := _offer(cloud, row, counts, cpus, memory))
                ]
            except Exception as error:  # a broken catalog raises anything
                left_out[cloud] = _why(error)
    return Prices(tuple(offers), left_out)


def _named(clouds: Sequence[str]) -> list[str]:
    from sky.skylet import constants

    known = sorted(set(constants.ALL_CLOUDS) - set(OWN))
    for cloud in clouds:
        if cloud not in known:
            raise UsageError(f"SkyPilot has no prices of {cloud!r}.", f"It has: {', '.join(known)}")
    return list(clouds) or known


def _opens_ports(sky: Any, cloud: str) -> bool:
    from sky import clouds, exceptions

    try:
        sky.CLOUD_REGISTRY.from_str(cloud).check_features_are_supported(
            sky.Resources(), {clouds.CloudImplementationFeatures.OPEN_PORTS}
        )
    except exceptions.NotSupportedError:
        return False
    return True


def _offer(cloud: str, row: Any, counts: Sequence[int], cpus: float, memory: float) -> Offer | None:
    """A row of SkyPilot's (``InstanceTypeInfo``); None: not what is wanted, or no price known."""
    # A size that is not known (NaN) is no size, to SkyPilot as well.
    if row.accelerator_count not in counts or not (row.cpu_count >= cpus and row.memory >= memory):
        return None
    if not (hourly := _price(row.price)):
        return None
    return Offer(
        row.accelerator_name,
        int(row.accelerator_count),
        cloud,
        row.region,
        row.instance_type,
        hourly,
        _price(row.spot_price),
    )


def _price(value: Any) -> float | None:
    """0.00, nothing and NaN are how a catalog says that there is no such price."""
    price = float(value)
    return price if math.isfinite(price) and price > 0 else None


def _why(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, OSError):  # requests' errors too; their words are long, and name no cause
        return f"no prices to be had ({kind})"
    lines = shown(str(error)).strip().splitlines()
    return f"prices that cannot be read ({kind}{f': {lines[0][:100]}' if lines else ''})"
