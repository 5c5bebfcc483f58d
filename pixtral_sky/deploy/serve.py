"""Bring a service up, or update it: check, remember, do it, and follow it until it answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pixtral_sky import output
from pixtral_sky.deploy import (
    candidates,
    clusters,
    gpus,
    infra,
    replica_policy,
    services,
    skypilot,
    status,
    store,
    task,
)
from pixtral_sky.deploy.bring_up import CENT, Checked, Wanted, checked_here, enabled_for, licence, made_task
from pixtral_sky.deploy.resolve import endpoint_of, key_of_environment
from pixtral_sky.deploy.services import Replica, ServiceRecord
from pixtral_sky.deploy.skypilot import hide, sky_output, sky_sdk
from pixtral_sky.deploy.store import Cluster, Service
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import EndpointError, NoEndpoint, PixtralSkyError, SkyError, Untrusted, UsageError

POLL_SECONDS = 5.0
PATIENCE = 3  # consecutive errors of SkyPilot before `follow` fails: a start takes half an hour
BALANCER_SECONDS = 120.0  # to learn of a ready replica: it asks the controller every 20
# The states of a service that never becomes ready again.
ENDED = ("SHUTTING_DOWN", "CONTROLLER_FAILED", "FAILED_CLEANUP")


class GivenUp(SkyError):
    """Every replica that `follow` waits for has failed."""


@dataclass(frozen=True)
class Plan(Checked):
    """Of an `up` or an `update`."""

    service: Service  # to be remembered
    before: Service | None  # as it is remembered now
    running: ServiceRecord | None  # the service that it updates
    replaces: bool  # whether it replaces the machines; if not, only their number changes

    @property
    def fewest(self) -> int:
        """The least number of replicas."""
        return int(self.task.service.min_replicas)

    @property
    def most(self) -> int:
        return int(self.task.service.max_replicas or self.fewest)


def plan(the_task: Task, wanted: Wanted) -> Plan:
    """Plan the service of a file, after all checks: here, at the Hub, at SkyPilot.

    Raises UsageError, SkyError, and HubError for the licence.
    """
    config = replica_policy.with_replicas(the_task.config, wanted.replicas, wanted.target_qps, wanted.spot)
    key, token = checked_here(the_task, wanted, Service)
    warned = [*replica_policy.check(config, key, the_task.path), *licence(the_task.envs, token)]
    with output.phase("SkyPilot's view"):
        warned += gpus.check_names(wanted.gpus, the_task.config, wanted.infra)
        made = prepare(config, wanted, key, token)
    return replace(made, warned=(*made.warned, *warned))


def prepare(config: Mapping[str, Any], wanted: Wanted, key: str, token: str) -> Plan:
    """Plan the service of ``config``, a service file as data, at SkyPilot. Raises UsageError."""
    name = wanted.name
    before = store.recall_as(name, Service)
    if any(each.ours for each in clusters.records([name])):
        raise store.is_a(Cluster.kind, name)
    hide(key, token)
    with sky_sdk(silent=True) as sky:
        running = services.record(name)
        made = made_task(sky, config, wanted, key, token)
        if running and not running.ours and not before:
            raise UsageError(f"{name!r} is a service with something else on it.", "Take another --name")
        policy = made.service
        chosen = candidates.choose(
            sky,
            made.resources,
            enabled_for(made.resources),
            wanted.max_price,
            fallback=bool(policy.dynamic_ondemand_fallback or policy.base_ondemand_fallback_replicas),
        )
        made.set_resources(type(made.resources)(chosen.resources))
        # The server would refuse it as well, but only after the user has confirmed.
        sky.serve.validate_service_task(made, pool=False)
        replaces = running is None or _machines(made.to_yaml_config()) != _machines(running.task)
    url = (running.url or (before.url if before else "")) if running else ""
    begun, request = before.created if before and running else time.time(), before.request if before else ""
    service = Service(name, url, key, *task.limits(config.get("envs") or {}), begun, request)
    said = chosen.said
    if wanted.max_price is not None:
        said = (*said, "That is for each replica; the controller is not in it.")
    return Plan(made, wanted.max_price, said, chosen.warned, service, before, running, replaces)


def _machines(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a task that describes its machines: SkyServe keeps them if this part does not change."""
    from sky.utils import resources_utils

    # The comparison of SkyServe's replica_managers.update_version(): the order of candidates does not matter.
    resources = dict(config.get("resources") or {})
    candidates = resources_utils.normalize_any_of_resources_config(resources.pop("any_of", []))
    other = ("service", "pool", "resources", "_user_specified_yaml")
    same = {name: value for name, value in config.items() if name not in other}
    return {**same, "resources": resources, "candidates": candidates}


def up(plan: Plan) -> Service:
    """Bring it up, remember it, and return when the controller runs and the service has an address."""
    service = plan.service
    store.remember(service)  # first, so that the key of a server is never lost
    with sky_sdk(silent=True) as sky:  # it would show the candidates again
        request = sky.serve.up(plan.task, service.name)
    service = replace(service, request=str(request))
    store.remember(service)
    with sky_sdk() as sky:
        _, url = sky.stream_and_get(request, output_stream=sky_output)
    service = replace(service, url=skypilot.url_of(url))
    store.remember(service)
    return service


def update(plan: Plan, blue_green: bool) -> tuple[Service, int]:
    """Begin the update, and return the service and the number of its new version."""
    service = plan.service
    store.remember(service)  # first, so that a new key is never lost
    try:
        with sky_sdk(silent=True) as sky:
            mode = sky.serve.UpdateMode.BLUE_GREEN if blue_green else sky.serve.UpdateMode.ROLLING
            request = sky.serve.update(plan.task, service.name, mode)
        service = replace(service, request=str(request))
        store.remember(service)
        with sky_sdk() as sky:
            sky.stream_and_get(request, output_stream=sky_output)
            record = services.record(service.name)  # SkyServe's answer does not have the version
    except SkyError:
        keep(plan)
        raise
    return service, record.version if record else 0


def keep(plan: Plan) -> None:
    """Undo what a failed plan has remembered: the service keeps its earlier key."""
    if plan.before:
        store.remember(plan.before)
    else:
        store.forget(plan.service.name)


def follow(service: Service, version: int = 0) -> Iterator[str]:
    """Yield each phase as it begins, until a replica of ``version`` or later is ready and answers.

    In an update, until no older replica is ready. A service that is asleep has no replica to wait for.
    Raises GivenUp when every such replica has failed, and SkyError when the service has ended.
    """
    last, ready_since = "", 0.0
    while True:
        record = _patient_record(service.name)
        new = [each for each in record.replicas if each.version >= version]
        older = [each for each in record.replicas if each.version < version and each.status == "READY"]
        _check_alive(record, new, version)
        if record.state == "asleep":
            return
        if any(each.status == "READY" for each in new) and not older:
            if not (problem := _problem(record)):
                return
            ready_since = ready_since or time.monotonic()
            if time.monotonic() - ready_since > BALANCER_SECONDS:
                raise SkyError(
                    f"A replica of {record.name!r} is ready, but not its balancer: {problem}.",
                    f"Why: pixtral-sky serve logs {record.name} --balancer",
                )
        else:
            ready_since = 0.0
        phase = _phase(new, bool(older))
        if phase != last:
            last = phase
            yield phase
        time.sleep(POLL_SECONDS)


def _patient_record(name: str) -> ServiceRecord:
    """The record of a service, after a few tries. Raises SkyError when it is gone."""
    for left in reversed(range(PATIENCE)):
        try:
            record = services.record(name)
            break
        except SkyError:
            if not left:
                raise
            time.sleep(POLL_SECONDS)
    if record is None:
        raise SkyError(f"The service {name!r} is gone.", "What there is: pixtral-sky serve status")
    return record


def _check_alive(record: ServiceRecord, new: list[Replica], version: int) -> None:
    """Raise SkyError when the service has ended, and GivenUp when each of the ``new`` replicas has failed."""
    name = record.name
    if record.status in ENDED:
        raise SkyError(f"The service {name!r} is {record.status}.", f"Why: pixtral-sky serve logs {name}")
    if new and all(each.failed for each in new):
        raise GivenUp(
            f"Every {'new ' if version else ''}replica of {name!r} has failed ({new[0].status}).",
            f"Why: pixtral-sky serve logs {name} --replica {new[0].number}",
        )


def _problem(record: ServiceRecord) -> str:
    """Why the endpoint of a service does not answer; empty if it does.

    Raises SkyError where waiting does not help.
    """
    try:
        status.reach(endpoint_of(services.remembered(record)))
    except Untrusted as error:  # waiting does not change a certificate
        raise SkyError(f"{record.name!r} is up, but {error.what}", error.hint) from error
    except (EndpointError, NoEndpoint) as error:
        return error.what.rstrip(".")
    return ""


def follow_update(plan: Plan, service: Service, version: int) -> Iterator[str]:
    """Follow an update. When all new replicas fail, the old ones stay, and so does their key."""
    try:
        yield from follow(service, version)
    except GivenUp as error:
        keep(plan)
        error.what += " What ran before goes on, with its key."
        raise


def _phase(new: list[Replica], older: bool) -> str:
    """The phase of the most advanced replica."""
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
    live = [each for each in record.replicas if each.live]
    unknown = [each.infra for each in live if each.launched and each.hourly is None]
    if where := dict.fromkeys(each for each in unknown if each.partition("/")[0] not in infra.OWN):
        output.warn(
            f"No price is known of replicas in {', '.join(where)}: they may be more than"
            f" ${plan.max_price:.2f} an hour. Look: pixtral-sky serve status {name}"
        )
    if dear := [each for each in live if each.hourly and each.hourly > plan.max_price + CENT]:
        one = dear[0]
        raise SkyError(
            f"Replica {one.number} of {name!r} ({one.machine}, {one.infra}) costs ${one.hourly:.2f} an hour,"
            f" not ${plan.max_price:.2f}.",
            f"Take it down: pixtral-sky serve down {name}",
        )


def keep_to_price(plan: Plan) -> None:
    """As `check_costs`, for a new service, which is taken down when a replica costs more."""
    try:
        check_costs(plan)
    except SkyError as error:
        services.take_down(plan.service.name)
        raise SkyError(f"{error.what} The service was taken down.") from error


def check_new(plan: Plan) -> None:
    """Raise UsageError when the service exists already, or is being brought up."""
    name = plan.service.name
    if plan.running:
        ended = plan.running.status in ENDED
        raise UsageError(
            f"The service {name!r} is there already ({plan.running.status}).",
            f"Take it down first: pixtral-sky serve down {name}"
            if ended
            else f"To change it: pixtral-sky serve update --name {name}",
        )
    if plan.before and skypilot.is_launching(plan.before.request):
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
    """What an update does to the running replicas, in sentences."""
    assert plan.running
    said = []
    before, after = plan.running.policy, plan.task.service.autoscaling_policy_str()
    if before != after:
        said.append(f"{before} becomes: {after}.")
    number = sum(each.live for each in plan.running.replicas)
    how = "at once, when enough new ones are ready" if blue_green else "one after the other"
    if plan.replaces:
        return [*said, f"All are replaced ({number} now), {how}."]
    return [*said, "The machines stay as they are: none is replaced."]


def change_of_key(plan: Plan, blue_green: bool) -> str:
    """What a new key means for clients during the update; empty if the key stays."""
    if not plan.before or plan.before.key in ("", plan.service.key):
        return ""
    if blue_green:
        return "It gets another key, the moment the new replicas take over."
    return (
        "It gets another key. Until all are replaced, each replica takes one of both keys only, and a request"
        " may reach any: --blue-green changes it in one moment."
    )


def cost(name: str) -> str:
    """What a running service costs, in a sentence."""
    (record,) = services.priced(services.records([name]))
    controller = services.controller()
    known = [record.hourly, controller.hourly_now if controller else None]
    words = "what SkyPilot does not know" if None in known else f"${sum(filter(None, known)):.2f} an hour"
    machines = sum(each.launched is not None for each in record.replicas)
    return f"Its controller and {machines} replica{'s' * (machines != 1)} cost {words} now."


def left(plan: Plan) -> str:
    """A sentence on what a failed `up` has left that costs money."""
    name = plan.service.name
    known = store.recall_as(name, Service)
    try:
        there = services.record(name)
        controller = services.controller()
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky serve status {name}."
    if there or (known and skypilot.is_launching(known.request)):
        return f"It may cost money until: pixtral-sky serve down {name}."
    keep(plan)
    if controller and not services.records():
        return f"Its controller may cost money until: sky down {controller.name}."
    return "Nothing of it is left that costs money."
