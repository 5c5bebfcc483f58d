"""Makes the `replica_policy:` of a service from `--replicas 2..8 --target-qps 2 --spot`, and checks it. Pure.

SkyPilot 0.14.1 accepts the policies that are refused here, and then does something other than they say;
``tests/deploy/test_replica_policy.py`` shows each reason on SkyPilot's own classes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pixtral_sky.errors import UsageError

KEY = "PIXTRAL_API_KEY"
START_SECONDS = 600  # of a replica: docs/autoscaling.md
MOST_QPS = 100_000.0  # of one replica: more than any server takes
ON_DEMAND = 1  # replicas of a spot service that are on demand, so that no cloud takes them away


def replicas(text: str) -> tuple[int, int]:
    """The fewest and the most replicas of ``2..8``, or of ``3`` for a fixed number. Raises UsageError."""
    if not (found := re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text.strip(), re.ASCII)):
        raise UsageError(
            f"{text!r} is no number of replicas.", "For example: --replicas 2..8, or --replicas 3"
        )
    return int(found[1]), int(found[2] or found[1])


def policy(minimum: int, maximum: int, target_qps: float | None = None, spot: bool = False) -> dict[str, Any]:
    """The ``replica_policy`` of ``minimum`` to ``maximum`` replicas that get ``target_qps`` queries/s each.

    With ``spot``, on-demand machines stand in while spot ones are missing. Raises UsageError.
    """
    made: dict[str, Any] = {"min_replicas": minimum, "max_replicas": maximum}
    if target_qps is not None:
        made["target_qps_per_replica"] = target_qps
    if spot:
        made["base_ondemand_fallback_replicas"] = min(minimum, ON_DEMAND)
        made["dynamic_ondemand_fallback"] = True
    _check_policy(made)
    return made


def scaled(config: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a service file with the values of ``policy``, on spot machines where it uses them."""
    made = copy.deepcopy(dict(config))
    service = made["service"]
    service["replica_policy"] = {**(service.get("replica_policy") or {}), **policy}
    service.pop("replicas", None)  # SkyPilot takes one of the two
    if policy.get("dynamic_ondemand_fallback"):
        for resources in _resources(made):
            if resources is made["resources"] or "use_spot" in resources:
                resources["use_spot"] = True
    return made


def with_replicas(
    config: Mapping[str, Any], wanted: str | None, target_qps: float | None, spot: bool
) -> Mapping[str, Any]:
    """A service file with the replicas that --replicas, --target-qps and --spot ask for."""
    section = config.get("service")
    if not isinstance(section, dict) or not (wanted or target_qps is not None or spot):
        return config
    if not isinstance(given := _policy(section), dict):
        return config  # `check` refuses it
    low: Any = given.get("min_replicas", 1)
    high: Any = given.get("max_replicas", low)
    if wanted:
        low, high = replicas(wanted)
    target = given.get("target_qps_per_replica") if target_qps is None else target_qps
    return scaled(config, policy(low, high, target, spot))


def check(config: Mapping[str, Any], key: str, name: object = "This file") -> list[str]:
    """Warnings about a service file; ``key`` is the key that the service will get, ``name`` the file's name.

    Raises UsageError for a file that would not do what it says.
    """
    service = config.get("service")
    if not isinstance(service, dict):
        raise UsageError(
            f"{name} is no service: it has no 'service:' section.", "The shipped one: service.yaml"
        )
    secrets = config.get("secrets") or {}
    if not key and not secrets.get(KEY):
        # With an empty key each replica ends in its setup; with null the probe sends "$PIXTRAL_API_KEY".
        raise UsageError(
            f"A service needs a key: without {KEY} no replica of it is ever ready.",
            f"Run: export {KEY}=$(openssl rand -hex 32)",
        )
    idle = (config.get("envs") or {}).get("IDLE_MINUTES") or 0
    if not re.fullmatch(r"0+(\.0+)?", str(idle).strip()):
        raise UsageError(
            "A replica that ends itself when it is idle is only replaced by another one.",
            "Set IDLE_MINUTES to 0. To have none while nobody asks: --replicas 0..8",
        )
    if any(resources.get("autostop") for resources in _resources(config)):
        raise UsageError(
            "'autostop' takes the machines of a service down one by one, and SkyServe replaces them.",
            "Remove it from 'resources:'. To have none while nobody asks: --replicas 0..8",
        )
    policy = _policy(service)
    if not isinstance(policy, dict):
        raise UsageError("'replica_policy:' is a mapping.")
    _check_policy(policy)
    return _warnings(policy)


def _policy(service: Mapping[str, Any]) -> Any:
    """The policy of a file's `service:`; SkyPilot's short form is a fixed number."""
    return service.get("replica_policy") or {"min_replicas": service.get("replicas", 1)}


def _check_policy(policy: Mapping[str, Any]) -> None:
    minimum = _whole(policy, "min_replicas", 1)
    maximum = _whole(policy, "max_replicas", minimum)
    if minimum > maximum:
        raise UsageError(f"The fewest replicas, {minimum}, are more than the most, {maximum}.")
    if maximum < 1:
        raise UsageError("A service with 0 replicas at most never answers.", "For example: --replicas 0..1")
    target = policy.get("target_qps_per_replica")
    if target is None and minimum != maximum:
        raise UsageError(
            f"To know when {minimum} are too few, it needs the queries per second of one replica.",
            "For example: --target-qps 2",
        )
    for qps in target.values() if isinstance(target, dict) else [target]:
        if qps is None:
            continue
        check_qps(qps)
    if isinstance(target, dict):
        if hyphened := [gpu for gpu in target if "-" in str(gpu)]:
            raise UsageError(
                f"SkyPilot takes no hyphen in target_qps_per_replica: {', '.join(hyphened)}.",
                "Give one number for all GPUs.",
            )
        if minimum == 0:
            raise UsageError(
                "With a target_qps_per_replica per GPU, a service with no replica never gets one: SkyServe"
                " computes the number from the GPUs of the running replicas.",
                "Give one number for all GPUs, or --replicas 1..8",
            )
    if (more := _whole(policy, "num_overprovision", 0)) > 0:
        raise UsageError(
            f"num_overprovision comes on top of max_replicas: up to {maximum + more} replicas would run, not"
            f" {maximum}, and `sky serve update` cannot change it.",
            "Leave it out, and raise min_replicas or lower target_qps_per_replica",
        )
    base = _whole(policy, "base_ondemand_fallback_replicas", 0)
    if base > minimum:
        raise UsageError(
            f"With base_ondemand_fallback_replicas {base} above min_replicas {minimum}, the autoscaler fails"
            " each time it decides, and launches nothing at all.",
            f"Set base_ondemand_fallback_replicas to {minimum} or less",
        )


def _warnings(policy: Mapping[str, Any]) -> list[str]:
    said = []
    minimum, maximum = policy["min_replicas"], policy.get("max_replicas", policy["min_replicas"])
    if minimum == 0:
        said.append(
            "With no replica left, the first callers get 503 until one is ready: some"
            f" {START_SECONDS // 60} minutes after the first request."
        )
        delay = policy.get("downscale_delay_seconds")
        if isinstance(delay, (int, float)) and delay <= START_SECONDS:
            said.append(
                f"downscale_delay_seconds {delay:g} is no longer than a start: a replica that one request has"
                " called goes before it is ready, unless the caller asks again every minute."
            )
    if policy.get("dynamic_ondemand_fallback"):
        base = policy.get("base_ondemand_fallback_replicas", 0)
        said.append(
            f"While spot replicas start, or are missing, an on-demand one runs in place of each: up to"
            f" {2 * maximum - base} machines at once, not {maximum}."
        )
    return said


def check_qps(value: Any) -> None:
    """Raise UsageError when ``value`` is no number of queries per second."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= MOST_QPS:
        # The autoscaler divides by it: at 0 it fails at each decision, and launches nothing.
        raise UsageError(f"The queries per second of a replica are a number above 0, not {value}.")


def _whole(policy: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = policy.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} is a whole number from 0 on, not {value}.")
    return value


def _resources(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each mapping in ``resources:``, and in its lists of candidates."""
    resources = config.get("resources")
    if isinstance(resources, dict):
        yield resources
        for name in ("any_of", "ordered"):
            yield from (each for each in resources.get(name) or [] if isinstance(each, dict))
