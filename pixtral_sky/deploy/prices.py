"""Reads what machines with GPUs cost an hour from the catalogs of SkyPilot's optimizer.

This needs no account and no API server. SkyPilot downloads catalogs that are missing or out of date. On GCP,
which adds a GPU to a host, a price is that of both, as in the optimizer (``tests/deploy/test_prices.py``).
Disks are not in these catalogs: their prices are listed below.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pixtral_sky import extras
from pixtral_sky.deploy import infra
from pixtral_sky.deploy.skypilot import opens_ports, shown, sky_sdk
from pixtral_sky.errors import NoPrices, SkyError, UsageError
from pixtral_sky.text import closest

CLOUDS = tuple(each for each in infra.CLOUDS if each not in infra.OWN)  # those with a catalog
WITHOUT = "pixtral-sky plan --no-prices"

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
    # The day of a cloud's catalog, as 2026-11-27; clouds whose catalog has none here are left out.
    days: Mapping[str, str] = field(default_factory=dict)

    def dated(self, clouds: Iterable[str]) -> str:
        """The day of the prices of ``clouds``, or the first and the last; empty if it is not known."""
        days = sorted({self.days[each] for each in clouds if each in self.days})
        return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def named(text: str | None) -> list[str]:
    """The clouds of ``aws,gcp``; without a text, none. Raises UsageError for one without prices."""
    if text is None:
        return []
    if not text.strip():
        raise UsageError("--clouds is empty.", "Leave it out to take all with prices.")
    clouds = [word.strip().lower() for word in text.split(",")]
    for cloud in clouds:
        if infra.named(cloud) in infra.OWN:
            raise UsageError(f"Machines of your own have no prices: {cloud}.", f"What holds it: {WITHOUT}")
        if cloud not in CLOUDS:
            close = closest(cloud, CLOUDS)
            raise UsageError(
                f"SkyPilot has no prices of {cloud!r}.",
                f"Did you mean {close}?" if close else f"It has: {', '.join(CLOUDS)}",
            )
    return clouds


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
    clouds that open ports count. A cloud whose catalog cannot be read is left out. Raises NoPrices where none
    can be read, or there is no SkyPilot.
    """
    offers: list[Offer] = []
    left_out: dict[str, str] = {}
    days: dict[str, str] = {}
    failed: dict[Path, Exception] = {}
    try:
        with sky_sdk(silent=True) as sky, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas' words to SkyPilot
            for cloud in clouds or CLOUDS:
                if ports and not opens_ports(sky.CLOUD_REGISTRY.from_str(cloud), sky.Resources()):
                    left_out[cloud] = "no ports to open, and replicas need one"
                    continue
                file = _catalog(cloud)
                try:
                    # All have one host: without a connection, each would wait for it again.
                    if (lost := next(filter(_no_connection, failed.values()), None)) and not file.exists():
                        raise lost
                    disk = disk_hourly(cloud, disk_gb)
                    offers += [
                        offer
                        for row in _rows(sky, cloud, gpus)
                        if (offer := _offer(cloud, row, counts, cpus, memory, disk))
                    ]
                    days[cloud] = _day(file)
                except Exception as error:  # a broken catalog raises anything
                    failed[file] = error
                    left_out[cloud] = why(error) + (
                        f"; renew it: {_renew(file)}" if _unreadable(error) else ""
                    )
    except (SkyError, ImportError) as error:
        raise _no_skypilot(error) from error
    if failed and not days:
        raise _no_catalog(failed)
    return Prices(tuple(offers), left_out, {cloud: day for cloud, day in days.items() if day})


def _rows(sky: Any, cloud: str, gpus: Sequence[str]) -> list[Any]:
    """SkyPilot's rows (``InstanceTypeInfo``) of machines with these GPUs."""
    # One cloud a call: one missing catalog fails the whole call.
    found = sky.catalog.list_accelerators(
        gpus_only=True, name_filter=f"^(?:{'|'.join(gpus)})$", all_regions=True, clouds=[cloud]
    )
    return [row for rows in found.values() for row in rows]


def _catalog(cloud: str) -> Path:
    """The file that SkyPilot keeps of a cloud's prices."""
    from sky.catalog import common

    return Path(common.get_catalog_path(f"{cloud}/vms.csv"))


def _day(file: Path) -> str:
    """The day of a catalog: when SkyPilot downloaded it, or somebody put it there. Empty if there is none."""
    # SkyPilot touches a catalog when it fails to download it again, but not the file with its hash.
    downloaded = file.parent.parent / ".meta" / file.parent.name / f"{file.name}.md5"
    for each in (downloaded, file):
        if each.is_file():
            return datetime.fromtimestamp(each.stat().st_mtime, timezone.utc).date().isoformat()
    return ""


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


def _no_skypilot(error: Exception) -> NoPrices:
    if isinstance(error, SkyError):
        return NoPrices(f"There are no prices: {error.what}", error.hint)
    return NoPrices(
        f"There are no prices: SkyPilot cannot be imported ({error}).", f"Run: {extras.install_skypilot()}"
    )


def _no_catalog(failed: Mapping[Path, Exception]) -> NoPrices:
    """The error where no catalog can be read."""
    if unreadable := next(filter(_unreadable, failed.values()), None):
        files = [file for file, error in failed.items() if _unreadable(error)]
        return NoPrices(
            f"There are no prices: SkyPilot's catalog has {why(unreadable)}.", f"Renew it: {_renew(*files)}"
        )
    kind = type(next(iter(failed.values()))).__name__
    return NoPrices(
        f"There are no prices: SkyPilot's catalogs cannot be downloaded ({kind}).",
        "Try again with a network",
    )


def _renew(*files: Path) -> str:
    """The command after which SkyPilot downloads these catalogs again."""
    return f"rm {shlex.join(map(str, files))}"


def _no_connection(error: Exception) -> bool:
    from requests import exceptions  # what SkyPilot downloads with

    return isinstance(error, (exceptions.ConnectionError, exceptions.Timeout))


def _unreadable(error: Exception) -> bool:
    """Whether a catalog is there, but is none."""
    return not isinstance(error, OSError)  # requests' errors are OSErrors, too


def why(error: Exception) -> str:
    """Why the catalog that raised ``error`` has no prices."""
    kind = type(error).__name__
    if not _unreadable(error):  # their texts are long, and name no cause
        return f"no prices to be had ({kind})"
    lines = shown(str(error)).strip().splitlines()
    return f"prices that cannot be read ({kind}{f': {lines[0][:100]}' if lines else ''})"
