"""What launching a cluster and bringing up a service have in common: options, checks, and SkyPilot's task."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_sky import output
from pixtral_sky.deploy import candidates, huggingface, infra, replica_policy, skypilot, store
from pixtral_sky.deploy import gpus as gpus_syntax
from pixtral_sky.deploy.resolve import key_for
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import UsageError

CENT = 0.005  # USD: tolerance, as prices are shown in cents
MOST_PRICE = 100_000.0  # USD an hour
MOST_MINUTES = 10_000_000.0  # 19 years


@dataclass(frozen=True)
class Wanted:
    """The options of a launch, which replace values of its file; None or False: as in the file.

    Raises UsageError for what no file and no cloud could make right.
    """

    name: str
    infra: str | None = None  # in the syntax of --infra: aws/us-east-1
    gpus: str | None = None  # in the syntax of --gpus: L4:2
    spot: bool = False
    private: bool = False  # opens no port
    max_price: float | None = None  # USD an hour, for one machine
    replicas: str | None = None  # of a service, in the syntax of --replicas: 2..8
    target_qps: float | None = None  # of a service: queries per second of one replica

    def __post_init__(self) -> None:
        store.check_name(self.name)
        if self.infra is not None:
            infra.parse(self.infra)
        if self.gpus is not None:
            gpus_syntax.parse(self.gpus)
        if self.max_price is not None and not 0 < self.max_price <= MOST_PRICE:
            raise UsageError(f"--max-price {self.max_price:g} is no price.", "For example: --max-price 2.50")
        if self.replicas is not None:
            replica_policy.replicas(self.replicas)
        if self.target_qps is not None:
            replica_policy.check_qps(self.target_qps)


def check_minutes(option: str, value: float | None) -> None:
    """Raise UsageError when the ``value`` of an option is no number of minutes."""
    if value is not None and not (math.isfinite(value) and 0 <= value <= MOST_MINUTES):
        raise UsageError(f"{option} {value:g} is no number of minutes.", f"For example: {option} 30")


@dataclass(frozen=True)
class Checked:
    """What has passed all checks, and can be launched."""

    task: Any  # sky.Task
    max_price: float | None  # USD an hour, for one machine
    said: tuple[str, ...]  # what to tell the user about its candidates
    warned: tuple[str, ...]


def checked_here(the_task: Task, wanted: Wanted, kind: type[store.Deployment]) -> tuple[str, str]:
    """The key and the token of a launch, after all checks that this machine can make alone.

    Raises UsageError, HubError for a token that cannot be read, and SkyError when SkyPilot is missing.
    """
    gpus_syntax.check_fit(wanted.gpus, the_task.config, the_task.envs)
    store.check_kind(wanted.name, kind)
    key, token = key_for(wanted.name), huggingface.token()
    skypilot.check_installed()
    return key, token


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
        candidates.check_region(sky, infra.parse(wanted.infra))
        # In parts: SkyPilot refuses a second `infra` beside the one in the file.
        place = InfraInfo.from_str(wanted.infra)
        resources["cloud"] = sky.CLOUD_REGISTRY.from_str(place.cloud)
        resources |= {"region": place.region, "zone": place.zone}
    if wanted.gpus:
        resources["accelerators"] = str(gpus_syntax.parse(wanted.gpus))
    if wanted.spot:
        resources["use_spot"] = True
    secrets = [("PIXTRAL_API_KEY", key), *([("HF_TOKEN", token)] if token else [])]
    # A copy: SkyPilot changes the dictionary.
    made = sky.Task.from_yaml_config(copy.deepcopy(dict(config)), secrets_overrides=secrets)
    made.set_resources_override(resources)
    # --gpus makes candidates equal, which differed in their GPUs.
    distinct = {repr(each): each for each in made.resources}.values()
    return made.set_resources(type(made.resources)(distinct))
