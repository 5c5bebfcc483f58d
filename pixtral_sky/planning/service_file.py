"""Writes the service file for a plan: a copy of service.yaml with the values of the plan."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

import yaml

from pixtral_sky.deploy import replica_policy, task
from pixtral_sky.errors import UsageError
from pixtral_sky.planning.plan import Ask, Option, Plan, replicas, target

STAND_IN = 2  # the most that a stand-in costs an hour, as a multiple of the best machine's price


def accelerators(options: Sequence[Option]) -> list[str]:
    """The best machine (L4:2) and its stand-ins, in the order of the plan.

    A service has one target and one precision for all replicas, so a stand-in has the precision of the best
    machine, and answers at least as many requests.
    """
    best = options[0]
    return list(
        dict.fromkeys(
            each.machine.gpus
            for each in options
            if each.machine.precision == best.machine.precision
            and each.machine.rate.low >= best.machine.rate.low
            and each.hourly <= STAND_IN * best.hourly
        )
    )


def service_file(plan: Plan, name: str, command: str) -> str:
    """The text of service.yaml with the values of a plan for Ask.qps; each changed line says why.

    ``name`` is the name of the new file, and ``command`` the command that writes it.
    """
    shipped = task.shipped("service.yaml")
    text, config, ask, spot = shipped.read_text(), task.read(shipped), plan.ask, plan.spot
    assert ask.qps is not None
    best = plan.options[0]
    kind = "measured" if best.machine.measured else "the low end of an estimate: measure yours"
    count, most = replicas(ask.qps, best.machine.rate.low), best.replicas[1]
    carry = f"{count} carr{'ies' if count == 1 else 'y'} {ask.qps:g} requests/s"
    policy = replica_policy.policy(ask.least, most, target(best.machine.rate.low), spot)
    reasons = {
        "max_replicas": carry if count == most else f"{carry}; min_replicas are more",
        "target_qps_per_replica": f"of {best.machine.gpus}, {kind}",
        "base_ondemand_fallback_replicas": "never taken away",
        "dynamic_ondemand_fallback": "an on-demand replica in place of each spot replica that is not ready",
    }
    text = _headed(text, name, command)
    after = "min_replicas"
    for key, value in policy.items():
        if key != "min_replicas":
            text = _with(text, key, json.dumps(value), reasons[key], after)
        after = key
    kinds = accelerators(plan.options)
    order = "in this order, by the cost of the work: the first that can be had is taken"
    text = _on(text, kinds, order if len(kinds) > 1 else "the least cost of the work")
    if spot:
        text = _with(
            text, "use_spot", "true", "the on-demand ones come from the policy above", "accelerators"
        )
    for env, wanted in server_envs(ask, best.machine.precision).items():
        if config["envs"][env] != wanted:
            why = "as planned"
            if wanted == "fp8":
                why += "; to compare it with bf16, ask both with: pixtral-sky doctor --answers"
            text = _with(text, env, str(wanted), why)
    return text


def measured_file(
    gpus: str, precision: str, images: int, rate: float, why: str, name: str, command: str
) -> str:
    """The text of service.yaml for replicas that carry a measured ``rate`` of requests a second.

    ``gpus`` (L4:2), ``precision`` (empty: unknown) and ``images`` in a request are those of the measurement,
    for which alone it holds; ``why`` says where the rate is from. ``name`` is the name of the new file, and
    ``command`` the command that writes it. Raises UsageError for a rate that is no target.
    """
    if not target(rate):
        raise UsageError("No request was answered as it should be: there is no rate to write.")
    shipped = task.shipped("service.yaml")
    envs = task.read(shipped)["envs"]
    text = _headed(shipped.read_text(), name, command)
    text = _with(text, "target_qps_per_replica", json.dumps(target(rate)), why)
    text = _on(text, [gpus], "on which the target was measured")
    wanted = {"PRECISION": precision or envs["PRECISION"], "MAX_IMAGES": max(images, envs["MAX_IMAGES"])}
    for env, value in wanted.items():
        if envs[env] != value:
            text = _with(text, env, str(value), "as measured")
    return text


def warnings(text: str) -> list[str]:
    return replica_policy.check(yaml.safe_load(text), "the one that `serve up` makes")


def summary(text: str) -> str:
    """The replicas of a service file, in a line."""
    made = yaml.safe_load(text)
    policy = made["service"]["replica_policy"]
    few, many = policy["min_replicas"], policy["max_replicas"]
    return (
        f"{few if few == many else f'{few} to {many}'} replicas of "
        f"{', or else '.join(made['resources']['accelerators'])}, in {made['envs']['PRECISION']}"
    )


def server_envs(ask: Ask, precision: str) -> dict[str, str | int]:
    """The envs of a server for ``ask``."""
    context = "" if ask.context is None else ask.context
    return {"PRECISION": precision, "MAX_IMAGES": ask.max_images, "MAX_MODEL_LEN": context}


def _headed(text: str, name: str, command: str) -> str:
    """The ``text`` with a header about the file ``name``, which ``command`` writes."""
    head, _, rest = text.partition("# This file is rendered")
    up = "sky serve up -n pixtral "
    assert head.count(f"{up}service.yaml") == 1
    head = head.replace(f"{up}service.yaml", up + shlex.quote(name))
    return f"{head}# Written by: {command}\n" + rest.partition("\n")[2]


def _on(text: str, kinds: Sequence[str], why: str) -> str:
    """The ``text`` with these accelerators, in their order."""
    # The comment above them is about the file's own.
    text = re.sub(r"(?m)(?:^ *#.*\n)+(?=^ *accelerators:)", "", text)
    return _with(text, "accelerators", json.dumps(kinds), why)


def _with(text: str, name: str, value: str, why: str, after: str = "") -> str:
    """The ``text`` with ``value`` in the one line of ``name``; a missing line is added ``after`` another."""
    line = f"{name}: {value} # {why}"
    made, times = re.subn(rf"(?m)^( *){name}:.*$", rf"\g<1>{line}", text)
    if not times and after:
        made, times = re.subn(rf"(?m)^( *){after}:.*$", rf"\g<0>\n\g<1>{line}", text)
    assert times == 1, f"{times} lines of {name}"
    return made
