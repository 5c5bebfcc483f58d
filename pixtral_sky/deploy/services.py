"""Services on SkyServe, replicas behind one balancer: list, locate, logs, down. A `backend.Backend`.

``serve`` brings them up and updates them.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pixtral_sky import output
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import clusters, skypilot, status, store, task
from pixtral_sky.deploy.clusters import Record
from pixtral_sky.deploy.resolve import key_of_environment
from pixtral_sky.deploy.skypilot import SkyOutput, hide, infra, sky_sdk, task_of
from pixtral_sky.deploy.status import Row, row_of
from pixtral_sky.deploy.store import Service
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError

kind, at_skypilot = Service, True
POLL_SECONDS = 5.0
REGISTER_SECONDS = 30.0  # after a cancelled `up`, in which the service may still appear
DOWN_SECONDS = 900.0
ABSENT = {"ended": "SkyServe has it no longer: taken down", "launching": "it is being brought up"}
CONTROLLER = "sky-serve-controller-"  # prefix: the name of SkyServe's own machine


@dataclass(frozen=True)
class Replica:
    """One machine of a service, as SkyServe has it."""

    number: int
    status: str  # PENDING, PROVISIONING, STARTING, READY, NOT_READY, PREEMPTED, SHUTTING_DOWN, FAILED...
    detail: str  # what it waits for, if SkyServe says so
    infra: str  # in the syntax of --infra: aws/us-east-1
    gpus: str  # in the syntax of --gpus: L4:2
    machine: str  # the cloud's name of the machine type; empty if it has none
    spot: bool
    version: int
    launched: float | None  # seconds since the epoch
    hourly: float | None  # USD; None until `priced`, or if no price is known
    url: str  # of this replica alone; empty while it has none

    @property
    def failed(self) -> bool:
        """Whether SkyServe has given up on it."""
        return self.status.startswith("FAILED") or self.status == "UNKNOWN"

    @property
    def live(self) -> bool:
        return not self.failed and self.status not in ("SHUTTING_DOWN", "PREEMPTED")


@dataclass(frozen=True)
class ServiceRecord:
    """A service as SkyServe has it."""

    name: str
    status: str  # CONTROLLER_INIT, READY, NO_REPLICA (also while the first ones start), or one of serve.ENDED
    url: str  # of the balancer; empty while there is none
    uptime: float | None  # seconds since it was first ready
    target: int | None  # replicas that the autoscaler wants
    policy: str
    version: int  # the latest
    versions: tuple[int, ...]  # with ready replicas; more than one during an update
    replicas: tuple[Replica, ...]
    task: Mapping[str, Any] = field(repr=False)  # its file as data, with its secrets

    @property
    def ours(self) -> bool:
        """Whether its file is one of this project."""
        return task.is_ours(self.task)

    @property
    def ready(self) -> int:
        return sum(each.status == "READY" for each in self.replicas)

    @property
    def state(self) -> str:
        """Its status for people. NO_REPLICA has four meanings; asleep: there are no requests."""
        if self.status != "NO_REPLICA":
            return self.status.lower().replace("_", " ")
        if any(each.live for each in self.replicas):
            return "starting"
        return "asleep" if self.target == 0 else "failed" if self.replicas else "no replica"

    @property
    def hourly(self) -> float | None:
        """USD of all replicas together; None if the price of one is unknown."""
        prices = [each.hourly for each in self.replicas if each.launched]
        return None if None in prices else sum(filter(None, prices))


def records(names: list[str] | None = None) -> list[ServiceRecord]:
    """The services that SkyServe has, or those with these names. Empty if there is no controller."""

    def found(sky: Any) -> list[ServiceRecord]:
        from sky import exceptions
        from sky.serve import serve_utils
        from sky.utils.controller_utils import Controllers

        # Without a controller, SkyPilot 0.14 tries for half a minute to ask it.
        # In consolidation mode, the API server is the controller.
        if not _controllers(sky) and not serve_utils.is_consolidation_mode():
            return []
        try:
            return [_record(each) for each in sky.get(sky.serve.status(names))]
        except exceptions.ClusterNotUpError as error:
            # This text: the controller is stopped, or has never come up. Another text: it cannot be reached.
            if str(error) == Controllers.SKY_SERVE_CONTROLLER.value.default_hint_if_non_existent:
                return []
            raise

    return skypilot.ask(found, [])


def record(name: str) -> ServiceRecord | None:
    return next(iter(records([name])), None)


def _controllers(sky: Any) -> list[Any]:
    # The controller belongs to the API server, which may have many users.
    return list(sky.get(sky.status([f"{CONTROLLER}*"], all_users=True)))


def _record(given: Mapping[str, Any]) -> ServiceRecord:
    replicas = [_replica(each) for each in given.get("replica_info") or []]
    first_ready = given.get("uptime")  # a time, although SkyPilot's documentation calls it a duration
    made_by = task_of(given.get("yaml_content"))
    secrets = made_by.get("secrets")
    # SkyServe's log quotes secrets.
    hide(*(str(each) for each in (secrets.values() if isinstance(secrets, dict) else ()) if each))
    return ServiceRecord(
        name=given["name"],
        status=given["status"].value,
        url=skypilot.url_of(given.get("endpoint")),
        uptime=time.time() - first_ready if first_ready else None,
        target=given.get("target_num_replicas"),
        policy=given.get("policy") or "",
        version=given["version"],
        versions=tuple(given.get("active_versions") or ()),
        replicas=tuple(sorted(replicas, key=lambda each: each.number)),
        task=made_by,
    )


def _replica(given: Mapping[str, Any]) -> Replica:
    # SkyPilot's server sends only this text: 1x[spot](gpus=L4:2, cpus=24, mem=96, g2-standard-24, ...)
    resources = (given.get("resources_str_full") or "").partition("(")[2].rstrip(")")
    words = resources.split(", ")
    return Replica(
        number=given["replica_id"],
        status=given["status"].value,
        detail=given.get("status_detail") or "",
        infra=infra(given.get("cloud"), given.get("region")),
        gpus=next((word.removeprefix("gpus=") for word in words if word.startswith("gpus=")), ""),
        machine=next((word for word in words if re.fullmatch(r"[\w.-]+", word)), ""),
        spot=bool(given.get("is_spot")),
        version=given["version"],
        launched=given.get("launched_at"),
        hourly=None,
        url=skypilot.url_of(given.get("endpoint")),
    )


def priced(found: list[ServiceRecord]) -> list[ServiceRecord]:
    """The services with the price of each replica, as far as SkyPilot's catalogs know it."""
    offers: dict[tuple[str, str], list[Any]] = {}
    machines = {
        (each.infra, each.gpus) for one in found for each in one.replicas if each.machine and each.gpus
    }
    if not machines:
        return found
    # Without the catalogs, services are shown without prices.
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        from sky.client import sdk

        for infra, gpus in machines:
            (cloud, _, region), (gpu, _, count) = infra.partition("/"), gpus.partition(":")
            request = sdk.list_accelerators(
                name_filter=f"^{gpu}$",
                region_filter=f"^{region}$",
                quantity_filter=int(float(count)),
                clouds=cloud,
            )
            offers[infra, gpus] = sky.get(request).get(gpu) or []

    def with_price(replica: Replica) -> Replica:
        same = [
            each
            for each in offers.get((replica.infra, replica.gpus), ())
            if each.instance_type == replica.machine
        ]
        known = [each.spot_price if replica.spot else each.price for each in same]
        return replace(replica, hourly=min((each for each in known if each is not None), default=None))

    return [replace(one, replicas=tuple(map(with_price, one.replicas))) for one in found]


def controller() -> Record | None:
    """The machine of SkyServe's controller and balancers, if there is one."""
    return next((each for each in clusters.controllers() if each.name.startswith(CONTROLLER)), None)


def qps(name: str) -> float | None:
    """The queries per second of the last minute, from the controller's log; None if it does not say."""
    log = io.StringIO()
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        sky.serve.tail_logs(name, "controller", follow=False, tail=100, output_stream=log)
    counted = re.findall(
        r"(?:equests[ _]per[ _]second|requests in the last (\d+) seconds): (\d+(?:\.\d+)?)", log.getvalue()
    )
    return float(counted[-1][1]) / float(counted[-1][0] or 1) if counted else None


def problem(service: Service, record: ServiceRecord) -> str:
    """Why it does not answer a request with its key; empty if it does.

    The request is made only if a replica is ready: for each request, the autoscaler may start a replica.
    """
    if record.ready and service.url:
        return status.problem(service)
    if record.state == "asleep":
        return "it has no replica, and the next request calls one"
    if record.state == "failed":
        return "every replica has failed"
    return "it has no endpoint yet" if record.ready else "no replica is ready"


def problem_of(replica: Replica, key: str) -> str:
    """Why a replica is not ready: its answer to a request like the one of SkyServe's probe."""
    if not replica.url or replica.status not in ("STARTING", "NOT_READY"):
        return replica.detail
    try:
        return status.problem_at(Endpoint(replica.url, key))
    except PixtralSkyError as error:  # the key has characters that no key can have
        return error.what


def remembered(record: ServiceRecord) -> Service:
    """Remember a service with its current address.

    A service that was not brought up from here gets the key of the environment.
    """
    key, known = key_of_environment(), store.recall_as(record.name, Service)
    if known:
        theirs = key and not known.request  # not brought up from here: the environment knows its key better
        service = replace(known, url=record.url or known.url, key=key if theirs else known.key)
    else:
        limits, begun = task.limits(record.task.get("envs") or {}), time.time() - (record.uptime or 0)
        service = Service(record.name, record.url, key, *limits, begun, request="")
    if service != known:
        store.remember(service)
    return service


def locate(name: str) -> Service | None:
    found = record(name)
    return remembered(found) if found and found.url and store.is_ours(found, Service) else None


def row(one: Service | None, record: ServiceRecord | None, otherwise: str) -> Row:
    if not record:
        assert one
        return row_of(one, otherwise, ABSENT.get(otherwise, ""))
    (record,) = priced([record])
    one, why = _asked(record, one)
    why = f"{why} (pixtral-sky serve status {record.name})" if why else ""
    return Row(
        record.name,
        Service.kind,
        f"{record.state}, {record.ready}/{len(record.replicas)}",
        infra=", ".join(sorted({each.infra for each in record.replicas} - {""})),
        gpus=", ".join(
            sorted({f"{each.gpus}{' spot' * each.spot}" for each in record.replicas if each.gpus})
        ),
        age=time.time() - one.created if one else None,
        hourly=record.hourly,
        endpoint=one.url if one else "",
        answers=not why,
        problem=why,
    )


def _asked(record: ServiceRecord, service: Service | None = None) -> tuple[Service | None, str]:
    """The service, remembered with its current address, and why it does not answer."""
    try:
        service = remembered(record)
        return service, problem(service, record)
    except PixtralSkyError as error:  # one service's error does not hide the others
        return service, str(error)


def document(record: ServiceRecord) -> dict[str, Any]:
    """All that is known of a service, for --json. Replicas that are not ready are asked why."""
    service, why = _asked(record)

    def of_replica(replica: Replica) -> str:
        if replica.failed:
            return f"pixtral-sky serve logs {record.name} --replica {replica.number}"
        return problem_of(replica, service.key if service else "")

    # A silent replica takes 10 s.
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(of_replica, record.replicas))
    same = ("name", "status", "state", "ready", "target", "policy", "version", "versions", "uptime", "hourly")
    return {
        **{each: getattr(record, each) for each in same},
        "endpoint": service.url if service else record.url,
        "answers": not why,
        "problem": why,
        "qps": qps(record.name),
        "replicas": [
            {**vars(each), "problem": problem}
            for each, problem in zip(record.replicas, problems, strict=True)
        ],
    }


def documents(name: str | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """All services, or the one called ``name``, and their controller, for --json.

    Raises NoEndpoint when there is no service ``name``, and SkyError when it is starting or has ended.
    """
    known = None if name is None else store.recall_as(name, Service)
    found = records([name] if name else None)
    if name and not found:
        if known and skypilot.is_launching(known.request):
            raise SkyError(f"{name!r} is being brought up.", f"Stop that: pixtral-sky serve down {name}")
        if known:
            raise SkyError(f"SkyServe has {name!r} no longer.", f"Forget it: pixtral-sky serve down {name}")
        raise nothing(name)
    ours = priced([each for each in found if store.is_ours(each, Service)])
    if name and not ours:
        raise NoEndpoint(
            f"The service {name!r} at SkyServe is none of this project.", f"sky serve status {name}"
        )
    about: dict[str, Any] | None = None
    if ours and (machine := controller()):
        about = {"name": machine.name, "status": machine.status, "infra": machine.infra}
        about["hourly"] = machine.hourly_now
    return [document(each) for each in ours], about


def nothing(name: str) -> NoEndpoint:
    return NoEndpoint(f"There is no service named {name!r}.", "What there is: pixtral-sky serve status")


class _Log(SkyOutput):
    """Removes secrets from SkyServe's log, which quotes whole task files, of older versions too."""

    def write(self, text: str) -> int:
        hidden = re.sub(
            r"((?:PIXTRAL_API_KEY|HF_TOKEN)['\"]?\s*[:=]\s*['\"]?|Bearer )[^\s'\",}$]+", r"\1***", text
        )
        super().write(hidden)
        return len(text)


def logs(name: str, *, follow: bool, lines: int, replica: int | None = None, balancer: bool = False) -> None:
    """Write the log of a replica, of the balancer, or else of the controller to stdout."""
    if replica is not None and balancer:
        raise UsageError("--replica and --balancer are two logs.", "Give one of them.")
    if follow and lines:
        raise UsageError("SkyServe follows a log from its beginning only.", "Leave out --lines, or --follow.")
    target = "replica" if replica is not None else "load_balancer" if balancer else "controller"
    store.check_name(name)
    if not record(name):  # SkyPilot would show an empty log
        raise nothing(name)
    out = _Log(sys.stdout)  # here: within sky_sdk, sys.stdout leads to stderr
    with sky_sdk() as sky:
        sky.serve.tail_logs(
            name,
            target,
            replica_id=replica,
            follow=follow,
            tail=lines or None,
            output_stream=out,
        )


def down(name: str, one: Service | None) -> bool:
    with output.phase(f"taking {name} down"):
        return take_down(name, one.request if one else "")


def take_down(name: str, request: str = "") -> bool:
    """Take a service down, and the controller with the last service; return when SkyPilot has neither.

    ``request``: of an `up` that may still be in progress. Returns whether there was anything to take down.
    Raises SkyError when something may still be there.
    """
    with sky_sdk(silent=True) as sky:
        cancelled = skypilot.cancel(request)
        found = record(name)
        deadline = time.monotonic() + REGISTER_SECONDS
        while cancelled and not found and time.monotonic() < deadline:  # the controller may be adding it now
            time.sleep(POLL_SECONDS)
            found = record(name)
        if found:
            _check_alone(name)
            sky.get(sky.serve.down(name))
            _wait_until_gone(name)
        elif not cancelled:
            return False
        machine = next(iter(_controllers(sky)), None)
        if machine and not records():
            sky.get(sky.down(machine.name))
            if sky.get(sky.status([machine.name], refresh=sky.StatusRefreshMode.FORCE, all_users=True)):
                raise SkyError(
                    f"{name!r} is down, but its controller is not.", f"Try: sky down {machine.name}"
                )
    return True


def _check_alone(name: str) -> None:
    """Raise SkyError if `serve down` would end other services too.

    SkyServe selects names by SQL's LIKE: '_' matches any character, and case is ignored.
    """
    like = "".join("." if each == "_" else re.escape(each) for each in name)
    others = [each.name for each in records() if each.name != name]
    if along := [each for each in others if re.fullmatch(like, each, re.IGNORECASE)]:
        raise SkyError(
            f"SkyPilot would take {', '.join(along)} down together with {name!r}: to it the names are alike.",
            f"If that is right: sky serve down {name}",
        )


def _wait_until_gone(name: str) -> None:
    deadline = time.monotonic() + DOWN_SECONDS
    while left := record(name):  # SkyServe answers before the machines are gone
        if left.status in ("FAILED_CLEANUP", "CONTROLLER_FAILED") or time.monotonic() > deadline:
            raise SkyError(
                f"{name!r} is {left.status}: machines of it may still be there.",
                f"Look at your cloud, then: sky serve down {name} --purge",
            )
        time.sleep(POLL_SECONDS)


def leftover(machine: Record) -> str:
    """What a controller costs, and which services need it."""
    price = f", ${machine.hourly_now:.2f} an hour" if machine.hourly_now else ""
    others = ""
    if machine.name.startswith(CONTROLLER):
        with contextlib.suppress(SkyError):  # a controller that does not answer costs money, too
            others = ", ".join(each.name for each in records())
    if others:
        return f"SkyPilot's {machine.name} stays {machine.status}{price}, for: {others}."
    return f"SkyPilot's {machine.name} is still {machine.status}{price}. End it: sky down {machine.name}"
