"""Bringing a service up and updating it: what is checked before, what is remembered, and following it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pixtral_sky import output
from pixtral_sky.deploy import (
    candidates,
    clusters,
    prices,
    replica_policy,
    services,
    status,
    store,
    task,
)
from pixtral_sky.deploy.launch import CENT, Wanted, checked, enabled_for, licence, made_task
from pixtral_sky.deploy.resolve import endpoint_of, key_of_environment
from pixtral_sky.deploy.services import Replica, ServiceRecord
from pixtral_sky.deploy.skypilot import hide, sky_output, sky_sdk
from pixtral_sky.deploy.store import Cluster, Service
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import EndpointError, NoEndpoint, PixtralSkyError, SkyError, Untrusted, UsageError

POLL_SECONDS = 5.0
PATIENCE = 3  # looks in a row that fail, in a wait of half an hour, before it is given up
BALANCER_SECONDS = 120.0  # to learn of a replica that is ready: it asks the controller every 20
# States of a service that is never ready again.
ENDED = ("SHUTTING_DOWN", "CONTROLLER_FAILED", "FAILED_CLEANUP")


class GivenUp(SkyError):
    """Every replica that was waited for has failed."""


@dataclass(frozen=True)
class Plan:
    """A service that can be brought up, or updated."""

    task: Any  # sky.Task
    service: Service  # what will be remembered of it
    before: Service | None  # what was
    running: ServiceRecord | None  # what it updates
    replaces: bool  # whether there are other machines after it; else only their number changes
    max_price: float | None = None  # USD an hour, for the machine of one replica
    said: tuple[str, ...] = ()  # what a person is told of its candidates
    warned: tuple[str, ...] = ()

    @property
    def fewest(self) -> int:
        """How many replicas it has at the least."""
        return int(self.task.service.min_replicas)

    @property
    def most(self) -> int:
        return int(self.task.service.max_replicas or self.fewest)


def plan(the_task: Task, wanted: Wanted, replicas: str | None, target_qps: float | None) -> Plan:
    """The service of a file, after all that can be checked: here, then at SkyPilot, then at the Hub.

    ``replicas``: as for --replicas. Raises UsageError when it cannot be brought up as it is, SkyError, and
    HubError: the licence of the weights.
    """
    config = replica_policy.with_replicas(the_task.config, replicas, target_qps, wanted.spot)
    key, token, warned = checked(wanted, config, the_task.envs)
    warned = [*replica_policy.check(config, key), *warned]
    with output.phase("SkyPilot's view"):
        made = prepare(config, wanted, key, token)
    return replace(made, warned=(*made.warned, *warned, *licence(the_task.envs, token)))


def prepare(config: Mapping[str, Any], wanted: Wanted, key: str, token: str) -> Plan:
    """The service of ``config``, a service file as data, as SkyPilot takes it. Raises UsageError."""
    name = wanted.name
    store.check_kind(name, Service)
    before = store.recall_as(name, Service)
    if any(each.ours for each in clusters.records([name])):
        raise store.is_a(Cluster.kind, name)
    hide(key, token)
    with sky_sdk(silent=True) as sky:
        running = services.find(sky, name)
        made = made_task(sky, config, wanted, key, token)
        if running and not running.ours and not before:
            raise UsageError(f"{name!r} is a service with something else on it.", "Take another --name")
        policy = made.service
        chosen = candidates.choose(
            sky,
            made.resources,
            enabled_for(sky, made.resources),
            wanted.max_price,
            fallback=bool(policy.dynamic_ondemand_fallback or policy.base_ondemand_fallback_replicas),
        )
        made.set_resources(type(made.resources)(chosen.resources))
        sky.serve.validate_service_task(made, pool=False)  # as the server does, after all the questions
        replaces = running is None or _machines(made.to_yaml_config()) != _machines(running.task)
    url = (running.url or (before.url if before else "")) if running else ""
    begun, request = before.created if before and running else time.time(), before.request if before else ""
    service = Service(name, url, key, *task.limits(config.get("envs") or {}), begun, request)
    return Plan(made, service, before, running, replaces, wanted.max_price, chosen.said, chosen.warned)


def _machines(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a task that describes its machines: where it does not change, SkyServe keeps them."""
    from sky.utils import resources_utils

    # As replica_managers.update_version() has it: candidates come in any order.
    resources = dict(config.get("resources") or {})
    candidates = resources_utils.normalize_any_of_resources_config(resources.pop("any_of", []))
    same = {
        name: value
        for name, value in config.items()
        if name not in ("service", "pool", "resources", "_user_specified_yaml")
    }
    return {**same, "resources": resources, "candidates": candidates}


def up(plan: Plan) -> Service:
    """Bring it up, remember it, and return when its controller runs and has an address."""
    service = plan.service
    store.remember(service)  # the key, before anything is locked with it
    with sky_sdk(silent=True) as sky:  # it shows its candidates once more
        request = sky.serve.up(plan.task, service.name)
    service = replace(service, request=str(request))
    store.remember(service)
    with sky_sdk() as sky:
        _, url = sky.stream_and_get(request, output_stream=sky_output)
    service = replace(service, url=services.url_of(url))
    store.remember(service)
    return service


def update(plan: Plan, blue_green: bool) -> tuple[Service, int]:
    """Have its replicas replaced, and return with the number of the new version when SkyServe has begun."""
    service = plan.service
    store.remember(service)  # the key, which may be another one
    try:
        with sky_sdk(silent=True) as sky:
            mode = sky.serve.UpdateMode.BLUE_GREEN if blue_green else sky.serve.UpdateMode.ROLLING
            request = sky.serve.update(plan.task, service.name, mode)
        service = replace(service, request=str(request))
        store.remember(service)
        with sky_sdk() as sky:
            sky.stream_and_get(request, output_stream=sky_output)
            record = services.find(sky, service.name)  # SkyServe's answer does not say the version
    except SkyError:
        keep(plan)
        raise
    return service, record.version if record else 0


def keep(plan: Plan) -> None:
    """Remember again what was there before the plan, with its own key: the plan has failed."""
    if plan.before:
        store.remember(plan.before)
    else:
        store.forget(plan.service.name)


def follow(service: Service, version: int = 0) -> Iterator[str]:
    """Yield each phase as it begins, until a replica of ``version`` or later is ready, and answers.

    An update is over when no older replica serves; a service that nobody asks has no replica to wait for.
    Raises GivenUp when every such replica has failed, and SkyError when the service has ended.
    """
    name, last, failures, ready_since = service.name, "", 0, 0.0
    while True:
        try:
            record = next(iter(services.records([name])), None)
            failures = 0
        except SkyError:
            failures += 1
            if failures == PATIENCE:
                raise
            time.sleep(POLL_SECONDS)
            continue
        if record is None:
            raise SkyError(f"The service {name!r} is gone.", "What there is: pixtral-sky serve status")
        if record.status in ENDED:
            raise SkyError(f"The service {name!r} is {record.status}.", f"Why: pixtral-sky serve logs {name}")
        new = [each for each in record.replicas if each.version >= version]
        older = [each for each in record.replicas if each.version < version and each.status == "READY"]
        if new and all(each.failed for each in new):
            raise GivenUp(
                f"Every {'new ' if version else ''}replica of {name!r} has failed ({new[0].status}).",
                f"Why: pixtral-sky serve logs {name} --replica {new[0].number}",
            )
        if record.asleep:
            return
        if any(each.status == "READY" for each in new) and not older:
            try:
                status.reach(endpoint_of(services.remembered(record)))
                return
            except Untrusted as error:  # it is up, and no waiting helps
                raise SkyError(f"{name!r} is up, but {error.what}", error.hint) from error
            except (EndpointError, NoEndpoint) as error:
                problem = error.what.rstrip(".")
            ready_since = ready_since or time.monotonic()
            if time.monotonic() - ready_since > BALANCER_SECONDS:
                raise SkyError(
                    f"A replica of {name!r} is ready, but not its balancer: {problem}.",
                    f"Why: pixtral-sky serve logs {name} --balancer",
                )
        else:
            ready_since = 0.0
        phase = _phase(new, bool(older))
        if phase != last:
            last = phase
            yield phase
        time.sleep(POLL_SECONDS)


def follow_update(plan: Plan, service: Service, version: int) -> Iterator[str]:
    """Follow an update. When all new replicas fail, what ran before goes on, with its key."""
    try:
        yield from follow(service, version)
    except GivenUp as error:
        keep(plan)
        error.what += " What ran before goes on, with its key."
        raise


def _phase(new: list[Replica], older: bool) -> str:
    """The phase of the replica that is furthest."""
    for state, words in (
        ("READY", "the older replicas are retired" if older else "the balancer learns of it"),
        ("NOT_READY", "a replica is not ready any more"),
        ("STARTING", "a replica sets up, downloads and starts"),
        ("PROVISIONING", "a machine for a replica"),
    ):
        if any(each.status == state for each in new):
            return words
    return "the controller plans"


def check_costs(plan: Plan) -> None:
    """Raise SkyError when a replica costs more than it may: the API server may have other prices."""
    if plan.max_price is None:
        return
    name = plan.service.name
    (record,) = services.priced(services.records([name]))
    if unknown := [each for each in record.replicas if each.live and each.launched and each.hourly is None]:
        where = dict.fromkeys(
            each.infra for each in unknown if each.infra.partition("/")[0] not in prices.OWN
        )
        if where:
            output.warn(
                f"No price is known of replicas in {', '.join(where)}: they may be more than"
                f" ${plan.max_price:.2f} an hour. Look: pixtral-sky serve status {name}"
            )
    most = plan.max_price + CENT
    if dear := [each for each in record.replicas if each.live and each.hourly and each.hourly > most]:
        one = dear[0]
        raise SkyError(
            f"Replica {one.number} of {name!r} ({one.machine}, {one.infra}) costs ${one.hourly:.2f} an hour,"
            f" not ${plan.max_price:.2f}.",
            f"Take it down: pixtral-sky serve down {name}",
        )


def keep_to_price(plan: Plan) -> None:
    """Check the costs of a new service, and take it down when a replica costs more."""
    try:
        check_costs(plan)
    except SkyError as error:
        services.take_down(plan.service.name)
        raise SkyError(f"{error.what} The service was taken down.") from error


def check_new(plan: Plan) -> None:
    """Raise UsageError when the service is there already, or on its way."""
    name = plan.service.name
    if plan.running:
        ended = plan.running.status in ENDED
        raise UsageError(
            f"The service {name!r} is there already ({plan.running.status}).",
            f"Take it down first: pixtral-sky serve down {name}"
            if ended
            else f"To change it: pixtral-sky serve update --name {name}",
        )
    if plan.before and clusters.is_launching(plan.before.request):
        raise UsageError(
            f"The service {name!r} is being brought up already.", f"Stop that: pixtral-sky serve down {name}"
        )


def check_update(plan: Plan) -> None:
    """Raise UsageError or SkyError when there is nothing to update."""
    name = plan.service.name
    if not plan.running:
        raise UsageError(f"There is no service {name!r}.", f"Bring it up: pixtral-sky serve up --name {name}")
    if plan.running.status in ENDED:
        raise SkyError(
            f"The service {name!r} is {plan.running.status}, and takes no update.",
            f"Take it down first: pixtral-sky serve down {name}",
        )
    if not (plan.before and plan.before.key) and not key_of_environment():
        raise UsageError(
            f"The key of {name!r} is not known here.", "Its own, or another: export PIXTRAL_API_KEY=..."
        )


def changes(plan: Plan, blue_green: bool) -> list[str]:
    """What an update does to the replicas that run, in sentences."""
    assert plan.running
    said = []
    before, after = plan.running.policy, plan.task.service.autoscaling_policy_str()
    if before != after:
        said.append(f"{before} becomes: {after}.")
    number = sum(each.live for each in plan.running.replicas)
    if not plan.replaces:
        said.append("The machines stay as they are: none is replaced.")
    elif blue_green:
        said.append(f"All are replaced ({number} now), at once, when enough new ones are ready.")
    else:
        said.append(f"All are replaced ({number} now), one after the other.")
    return said


def change_of_key(plan: Plan, blue_green: bool) -> str:
    """What another key means for clients during the update; empty when the key stays."""
    if not plan.before or plan.before.key in ("", plan.service.key):
        return ""
    if blue_green:
        return "It gets another key, the moment the new replicas take over."
    return (
        "It gets another key. Until all are replaced, each replica takes one of both keys only, and a request"
        " may reach any: --blue-green changes it in one moment."
    )


def cost(name: str) -> str:
    """What a service that is up costs, in a sentence."""
    (record,) = services.priced(services.records([name]))
    controller = services.controller()
    known = [record.hourly, controller.hourly_now if controller else None]
    words = "what SkyPilot does not know" if None in known else f"${sum(filter(None, known)):.2f} an hour"
    machines = sum(each.launched is not None for each in record.replicas)
    return f"Its controller and {machines} replica{'s' * (machines != 1)} cost {words} now."


def left(plan: Plan) -> str:
    """What a failed `up` has left that costs money, in a sentence."""
    name = plan.service.name
    known = store.recall_as(name, Service)
    try:
        there = bool(services.records([name]))
        controller = services.controller()
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky serve status {name}."
    if there or (known and clusters.is_launching(known.request)):
        return f"It may cost money until: pixtral-sky serve down {name}."
    keep(plan)
    if controller and not services.records():
        return f"Its controller may cost money until: sky down {controller.name}."
    return "Nothing of it is left that costs money."
