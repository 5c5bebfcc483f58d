"""Checks of the place to launch at, in the order in which a person meets what is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from pixtral_sky import extras
from pixtral_sky.deploy import candidates, gpus, places, skypilot
from pixtral_sky.deploy.infra import Infra
from pixtral_sky.doctor.check import Absent, Facts, Unchecked
from pixtral_sky.errors import PixtralSkyError

PAGE = "https://docs.skypilot.co/en/latest/getting-started/installation.html"
# Where SkyPilot 0.14.1's own hints lead (sky/clouds/*.py), and the headings of that page.
ANCHORS = {
    "aws": "#aws-installation",
    "kubernetes": "#kubernetes-installation",
    "gcp": "#google-cloud-platform-gcp",
    "nebius": "#nebius",
    "oci": "#oracle-cloud-infrastructure-oci",
    "paperspace": "#paperspace",
    "runpod": "#runpod",
    "slurm": "#slurm-installation",
    "vast": "#vast",
    "vsphere": "#vmware-vsphere",
}
QUOTA_PAGE = "https://docs.skypilot.co/en/latest/cloud-setup/quota.html"
SHOWN = 4  # offers on a line


def page(cloud: str) -> str:
    """SkyPilot's page about the credentials of a cloud."""
    return f"{PAGE}{ANCHORS.get(cloud, '')}"


def package(facts: Facts) -> str:
    """SkyPilot itself."""
    cloud = facts.place.cloud if facts.place else ""
    version, made_for = skypilot.installed(), extras.skypilot()
    if not version:
        raise PixtralSkyError(
            "It is not installed; a launch needs it.", f"Run: {extras.install_skypilot(cloud)}"
        )
    return version if made_for in ("", version) else f"{version}; {made_for} is what was tested"


def packages(facts: Facts) -> str:
    """What SkyPilot needs beside itself for the place."""
    cloud = _place(facts).cloud
    if places.is_elsewhere():
        return "they are beside SkyPilot's server"
    missing = places.missing_packages(cloud)
    if not importlib.util.find_spec("pip"):
        missing.append("pip")  # SkyPilot makes a wheel of itself for the machine
    if missing:
        raise PixtralSkyError(
            f"SkyPilot needs for {cloud}: {', '.join(missing)}.", f"Run: {extras.install_skypilot(cloud)}"
        )
    return f"all that SkyPilot needs for {cloud}"


def without(_: Facts) -> str:
    """Whoever only asks PIXTRAL_ENDPOINT needs no SkyPilot."""
    raise Absent(
        "It is not installed, and asking PIXTRAL_ENDPOINT does not need it.",
        f"To launch: {extras.install_skypilot()}",
    )


def server(_: Facts) -> str:
    return skypilot.server()


def enabled(facts: Facts) -> str:
    """What SkyPilot may launch on, as of its last check."""
    facts.enabled = skypilot.enabled()
    if not facts.enabled:
        raise PixtralSkyError("No cloud, Kubernetes or Slurm is enabled.", "Run: sky check")
    return ", ".join(facts.enabled)


def credentials(facts: Facts) -> str:
    """Whether SkyPilot has access to the place; it is checked anew."""
    place = _place(facts)
    disabled = places.check(place)
    if disabled is None:
        facts.enabled = [str(place)]
        return f"SkyPilot may launch on {place}"
    commands = "; ".join((*disabled.commands, f"sky check {place.cloud}"))
    raise PixtralSkyError(
        disabled.reason or f"SkyPilot may not launch on {place}.",
        f"Run: {commands}. SkyPilot's page: {page(place.cloud)}",
    )


def quota(facts: Facts) -> str:
    """Whether the account may have one of the machines."""
    place = _place(facts)
    if place.cloud not in places.QUOTAS:
        raise Absent("" if place.is_own else f"SkyPilot does not know the quotas of {place.cloud}.")
    see = f"See what you have, and ask for more: {QUOTA_PAGE}"
    if places.is_elsewhere() or not places.can_tell_quota(place):
        raise Unchecked("SkyPilot can ask for it only beside the cloud's own tools.", see)
    none: list[str] = []
    try:
        for offer in places.offers(facts.the_task.config, place)[: places.MOST_ASKED]:
            if places.has_quota(offer):
                less = f"; none for {', '.join(none)}" if none else ""
                return f"not zero for {offer.machine} ({offer.gpus}) in {offer.region}{less}"
            none.append(f"{offer.machine} ({offer.gpus}) in {offer.region}")
    except PixtralSkyError as error:
        raise Unchecked(error.what, see) from error
    if not none:
        raise Absent("")  # it has no such machine, which `machines` says
    raise PixtralSkyError(f"It is zero: {', '.join(none)}.", f"Ask for more: {QUOTA_PAGE}")


def image(facts: Facts) -> str:
    """Only where Azure is meant: setup would find its old driver after the machine costs money."""
    if "azure" not in [each.partition("/")[0] for each in facts.enabled] or not any(
        map(_on_azures_default_image, gpus.alternatives(facts.resources))
    ):
        return ""
    others = len(facts.enabled) > 1
    raise (Unchecked if others else PixtralSkyError)(
        f"{candidates.OLD_IMAGE}{', and a launch goes elsewhere' if others else ''}.",
        f"Under resources: of a file of yours, infra: azure, image_id: {candidates.NEW_IMAGE}",
    )


def sky_task(facts: Facts) -> str:
    skypilot.check_file(facts.file)
    return "SkyPilot takes the task file"


def machines(facts: Facts) -> str:
    """Which of the file's GPUs the place has, and their price if it has one."""
    place = _place(facts)
    if place.is_own and place.cloud != "vsphere":
        return _own(facts, place)
    try:
        found = places.offers(facts.the_task.config, place)
    except PixtralSkyError as error:
        if error.exit_code == 2:  # the place is none
            raise
        raise Unchecked(error.what, "Its own view: sky gpus list") from error
    if not found:
        raise PixtralSkyError(
            f"{place} has none of the file's GPUs.", f"What it has: sky gpus list --infra {place}"
        )
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"an hour: {', '.join(map(str, found[:SHOWN]))}{more}"


def _own(facts: Facts, place: Infra) -> str:
    there = places.own_gpus(place)
    wanted = list(gpus.named(None, facts.the_task.config))
    fitting = {
        each.name: there[name]
        for name in there
        for each in wanted
        if each.name.lower() == name.lower() and each.count <= there[name][0]
    }
    if fitting:
        return ", ".join(f"{name}: {free} of {all_} free" for name, (_, all_, free) in fitting.items())
    has = [f"{name}:{most}" for name, (most, *_) in there.items()]
    raise PixtralSkyError(
        f"{place} has none of the file's GPUs, but {', '.join(has) or 'no GPU at all'}.",
        f"Run: pixtral-sky launch --infra {place} --gpus {has[0]}" if has else "Look: sky gpus list",
    )


def _place(facts: Facts) -> Infra:
    assert facts.place
    return facts.place


def _on_azures_default_image(resources: Mapping[str, Any]) -> bool:
    """Whether ``resources`` let SkyPilot take a machine of Azure with SkyPilot's own image."""
    cloud = str(resources.get("infra") or resources.get("cloud") or "azure").lower().partition("/")[0]
    image = str(resources.get("image_id") or "docker:")  # a container runs on the machine's own image
    return cloud == "azure" and image.startswith("docker:")
