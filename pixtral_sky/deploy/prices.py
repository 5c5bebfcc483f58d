"""Reads what machines with GPUs cost an hour from the catalogs of SkyPilot's optimizer.

This needs no account and no API server. SkyPilot downloads catalogs that are missing or out of date. On GCP,
which adds a GPU to a host, a price is that of both, as in the optimizer (``tests/deploy/test_prices.py``).
Disks are not in these catalogs: their prices are listed below.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixtral_sky.deploy.skypilot import opens_ports, shown, sky_sdk
from pixtral_sky.errors import PixtralSkyError, UsageError

OWN = (
    "kubernetes",
    "slurm",
    "ssh",
    "vsphere",
)  # SkyPilot's clouds of a user's own machines: no prices

# The disk that SkyPilot 0.14.1 orders for a task without disk_tier ("medium"): list prices in USD a month, in
# the cloud's first region in the US, as of:
DISK_PRICES_OF = "November 2026"
MONTH = 730  # hours
# AWS (sky/clouds/aws.py): gp3 with 3,500 IOPS and 218 MB/s, of which 3,000 and 125 cost nothing. 0.08 a GB,
# 0.005 an IOPS, 0.04 a MB/s: aws.amazon.com/ebs/pricing; aws/agent-toolkit-for-aws, ebs-optimization.md.
AWS_GB, AWS_SPEED = 0.08, (3_500 - 3_000) * 0.005 + (218 - 125) * 0.04
# Azure (azure.py): Premium SSD, by the next size up: P10, P15, P20 and P30, LRS. Azure's Retail Prices API
# for eastus (P15: 38.012142 on 2026-09-20), azure.microsoft.com/pricing/details/managed-disks.
AZURE_SIZES = {128: 19.71, 256: 38.01, 512: 73.22, 1_024: 135.17}
GB_MONTH = {
    # gcp.py: pd-balanced; cloud.google.com/compute/disks-image-pricing. A few machines (H200, B200,
    # RTX PRO 6000) have hyperdisk-balanced, which is 0.08.
    "gcp": 0.10,
    # The container's disk: docs.runpod.io/pods/storage
    "runpod": 0.10,
    # SkyPilot orders none (templates/lambda-ray.yml.j2): a machine has its own.
    "lambda": 0.0,
}


def disk_hourly(cloud: str, gb: int) -> float | None:
    """USD an hour for the disk of ``gb`` GB that SkyPilot orders with a machine; None: unknown."""
    if cloud == "aws":
        month = gb * AWS_GB + AWS_SPEED
    elif cloud == "azure" and gb <= max(AZURE_SIZES):
        month = next(price for size, price in AZURE_SIZES.items() if gb <= size)
    elif cloud in GB_MONTH:
        month = gb * GB_MONTH[cloud]
    else:
        return None
    return month / MONTH


@dataclass(frozen=True)
class Offer:
    """A machine that a cloud rents out in a region, with ``count`` GPUs. Prices are in USD an hour."""

    gpu: str
    count: int
    cloud: str
    region: str
    machine: str  # the cloud's name for it: g6e.xlarge
    hourly: float  # without the disk
    spot: float | None  # None: no spot price
    disk: float | None = None  # None: unknown


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
    disk_gb: int = 0,
) -> Prices:
    """The offers of ``clouds`` (empty: all with catalogs) for machines with these counts of these GPUs.

    A machine has at least ``cpus`` vCPUs and ``memory`` GB, and a disk of ``disk_gb``. With ``ports``, only
    clouds that open ports count. A cloud whose catalog cannot be read is left out. Raises UsageError for an
    unknown cloud, and PixtralSkyError where no catalog can be downloaded.
    """
    offers: list[Offer] = []
    left_out: dict[str, str] = {}
    reached: list[bool] = []
    with sky_sdk(silent=True) as sky, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' words to SkyPilot
        for cloud in _named(clouds):
            if ports and not opens_ports(sky.CLOUD_REGISTRY.from_str(cloud), sky.Resources()):
                left_out[cloud] = "no ports to open, and replicas need one"
                continue
            try:
                # One cloud a call: one missing catalog fails the whole call.
                found = sky.catalog.list_accelerators(
                    gpus_only=True,
                    name_filter=f"^(?:{'|'.join(gpus)})$",
                    all_regions=True,
                    clouds=[cloud],
                )
                disk = disk_hourly(cloud, disk_gb)
                offers += [
                    offer
                    for each in found.values()
                    for row in each
                    if (offer := _offer(cloud, row, counts, cpus, memory, disk))
                ]
            except Exception as error:  # a broken catalog raises anything
                left_out[cloud] = why(error)
                reached.append(not _no_connection(error))
            else:
                reached.append(True)
    if reached and not any(reached):
        raise PixtralSkyError(
            "SkyPilot's price catalogs cannot be downloaded (no network?).",
            "Without prices: pixtral-sky plan --no-prices",
        )
    return Prices(tuple(offers), left_out)


def _named(clouds: Sequence[str]) -> list[str]:
    from sky.skylet import constants

    known = sorted(set(constants.ALL_CLOUDS) - set(OWN))
    for cloud in clouds:
        if cloud not in known:
            raise UsageError(f"SkyPilot has no prices of {cloud!r}.", f"It has: {', '.join(known)}")
    return list(clouds) or known


def _offer(
    cloud: str, row: Any, counts: Sequence[int], cpus: float, memory: float, disk: float | None
) -> Offer | None:
    """The offer in a row of SkyPilot's (``InstanceTypeInfo``); None: another machine, or no price."""
    # An unknown size (NaN) is too small, as it is to SkyPilot.
    large_enough = row.cpu_count >= cpus and row.memory >= memory
    hourly = _price(row.price)
    if row.accelerator_count not in counts or not large_enough or not hourly:
        return None
    return Offer(
        row.accelerator_name,
        int(row.accelerator_count),
        cloud,
        row.region,
        row.instance_type,
        hourly,
        _price(row.spot_price),
        disk,
    )


def _price(value: Any) -> float | None:
    """None for 0.00, an empty value and NaN, which a catalog has where there is no price."""
    price = float(value)
    return price if math.isfinite(price) and price > 0 else None


def _no_connection(error: Exception) -> bool:
    from requests import exceptions  # what SkyPilot downloads with

    return isinstance(error, (exceptions.ConnectionError, exceptions.Timeout))


def why(error: Exception) -> str:
    """Why the catalog that raised ``error`` has no prices."""
    kind = type(error).__name__
    if isinstance(error, OSError):  # requests' errors too; their texts are long, and name no cause
        return f"no prices to be had ({kind})"
    lines = shown(str(error)).strip().splitlines()
    return f"prices that cannot be read ({kind}{f': {lines[0][:100]}' if lines else ''})"
