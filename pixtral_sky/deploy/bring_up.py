"""What launching a cluster and bringing up a service have in common: options, checks, and SkyPilot's task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_sky import output
from pixtral_sky.deploy import candidates, huggingface, skypilot
from pixtral_sky.deploy.resolve import key_for
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import UsageError

CENT = 0.005  # USD: tolerance, as prices are shown in cents


@dataclass(frozen=True)
class Wanted:
    """The options of a launch, which replace values of its file; None or False: as in the file."""

    name: str
    infra: str | None = None  # in the syntax of --infra: aws/us-east-1
    gpus: str | None = None  # in the syntax of --gpus: L4:2
    spot: bool = False
    private: bool = False  # opens no port
    max_price: float | None = None  # USD an hour, for one machine


@dataclass(frozen=True)
class Checked:
    """What has passed all checks, and can be launched."""

    task: Any  # sky.Task
    max_price: float | None  # USD an hour, for one machine
    said: tuple[str, ...]  # what to tell the user about its candidates
    warned: tuple[str, ...]


def checked(the_task: Task, wanted: Wanted) -> tuple[str, str, list[str]]:
    """The key, the token and the warnings of a launch, after all checks that need no server.

    Raises UsageError or SkyError.
    """
    if wanted.max_price is not None and not wanted.max_price > 0:
        raise UsageError(f"--max-price {wanted.max_price:g} is no price.", "For example: --max-price 2.50")
    for option, value in (("--infra", wanted.infra), ("--gpus", wanted.gpus)):
        if value is not None and not value.strip():
            raise UsageError(f"{option} is empty.", "Leave it out to take what the file allows.")
    key, token = key_for(wanted.name), huggingface.token()
    skypilot.check_installed()
    candidates.check_infra(wanted.infra)
    return key, token, candidates.check_gpus(wanted.gpus, the_task.config, the_task.envs, wanted.infra)


def licence(envs: Mapping[str, str], token: str) -> list[str]:
    """Raise HubError when the token gives no access to the weights. A warning if the Hub does not say."""
    with output.phase("licence of the weights"):
        why = huggingface.check(envs.get("MODEL", ""), token, envs.get("MODEL_REVISION") or "main")
    return [why] if why else []


def enabled_for(resources: Any) -> list[str]:
    """What SkyPilot can launch on; empty if all ``resources`` name their cloud."""
    from sky import exceptions

    if all(each.cloud for each in resources):
        return []
    if not (found := skypilot.enabled()):
        raise exceptions.NoCloudAccessError
    return found


def made_task(
    sky: Any, config: Mapping[str, Any], wanted: Wanted, key: str, token: str, **resources: Any
) -> Any:
    """SkyPilot's task for a file as data, with the options of ``wanted``, made as `sky launch` makes it."""
    from sky.utils.infra_utils import InfraInfo

    if wanted.infra:
        # In parts: SkyPilot refuses a second `infra` beside the one in the file.
        place = InfraInfo.from_str(wanted.infra)
        resources["cloud"] = sky.CLOUD_REGISTRY.from_str(place.cloud)
        resources |= {"region": place.region, "zone": place.zone}
    if wanted.gpus:
        resources["accelerators"] = wanted.gpus
    if wanted.spot:
        resources["use_spot"] = True
    secrets = [("PIXTRAL_API_KEY", key), *([("HF_TOKEN", token)] if token else [])]
    # A copy: SkyPilot changes the dictionary.
    made = sky.Task.from_yaml_config(copy.deepcopy(dict(config)), secrets_overrides=secrets)
    made.set_resources_override(resources)
    # --gpus makes candidates equal, which differed in their GPUs.
    distinct = {repr(each): each for each in made.resources}.values()
    return made.set_resources(type(made.resources)(distinct))
