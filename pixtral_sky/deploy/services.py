"""Services on SkyServe: replicas behind one balancer; looked at, followed and taken down.

A `backend.Backend`. They are brought up and updated by ``serve``.
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
from pixtral_sky.deploy.status import Row
from pixtral_sky.deploy.store import Service
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError

kind, at_skypilot = Service, True
POLL_SECONDS = 5.0
REGISTER_SECONDS = 30.0  # for a service to appear whose bringing up was cancelled half-way
DOWN_SECONDS = 900.0
CONTROLLER = "sky-serve-controller-"  # what the name of SkyServe's own machine begins with


@dataclass(frozen=True)
class Replica:
    """One machine of a service, as SkyServe has it."""

    number: int
    status: str  # PENDING, PROVISIONING, STARTING, READY, NOT_READY, PREEMPTED, SHUTTING_DOWN, FAILED...
    detail: str  # what it waits for, where SkyServe says so
    infra: str  # as for --infra: aws/us-east-1
    gpus: str  # as for --gpus: L4:2
    machine: str  # the cloud's name for such a one; empty where it has none
    spot: bool
    version: int
    launched: float | None  # seconds since the epoch
    hourly: float | None  # USD; None when no price is known, or nobody has asked for it
    url: str  # of its own; empty while it has none

    @property
    def failed(self) -> bool:
        """Whether SkyServe has given it up."""
        return self.status.startswith("FAILED") or self.status == "UNKNOWN"

    @property
    def live(self) -> bool:
        return not self.failed and self.status not in ("SHUTTING_DOWN", "PREEMPTED")


@dataclass(frozen=True)
class ServiceRecord:
    """A service as SkyServe has it."""

    name: str
    status: str  # CONTROLLER_INIT, READY, NO_REPLICA (also while the first ones start), or one of serve.ENDED
    url: str  # of the balancer; empty while it has none
    uptime: float | None  # seconds since it was first ready
    target: int | None  # replicas that the autoscaler wants
    policy: str
    version: int  # the latest
    versions: tuple[int, ...]  # that serve; more than one during an update
    replicas: tuple[Replica, ...]
    task: Mapping[str, Any] = field(repr=False)  # its file, as data: with its secrets

    @property
    def ours(self) -> bool:
        """Whether that file is one of this project."""
        return task.is_ours(self.task)

    @property
    def ready(self) -> int:
        return sum(each.status == "READY" for each in self.replicas)

    @property
    def asleep(self) -> bool:
        """Whether it has no replica because nobody asks."""
        return (
            self.status == "NO_REPLICA" and self.target == 0 and not any(each.live for each in self.replicas)
        )

    @property
    def state(self) -> str:
        """In words."""
        if self.status != "NO_REPLICA":
            return self.status.lower().replace("_", " ")
        if any(each.live for each in self.replicas):
            return "starting"
        return "asleep" if self.asleep else "failed" if self.replicas else "no replica"

    @property
    def hourly(self) -> float | None:
        """USD of all replicas together; None when that of one is not known."""
        prices = [each.hourly for each in self.replicas if each.launched]
        return None if None in prices else sum(filter(None, prices))


def records(names: list[str] | None = None) -> list[ServiceRecord]:
    """The services of those names that SkyServe has, or all of them. None, when it has no controller."""
    with sky_sdk(silent=True) as sky:
        return _records(sky, names)


def find(sky: Any, name: str) -> ServiceRecord | None:
    return next(iter(_records(sky, [name])), None)


def _records(sky: Any, names: list[str] | None) -> list[ServiceRecord]:
    from sky import exceptions
    from sky.serve import serve_utils
    from sky.utils.controller_utils import Controllers

    # Asked for services, SkyPilot 0.14 without a controller tries for half a minute. (In its consolidation
    # mode the API server is the controller.)
    if not _controllers(sky) and not serve_utils.is_consolidation_mode():
        return []
    try:
        return [_record(each) for each in sky.get(sky.serve.status(names))]
    except exceptions.ClusterNotUpError as error:
        # Its controller is stopped, or has never come up; not: it cannot be reached.
        if str(error) == Controllers.SKY_SERVE_CONTROLLER.value.default_hint_if_non_existent:
            return []
        raise


def _controllers(sky: Any) -> list[Any]:
    # It belongs to the API server, which may be that of many users.
    return list(sky.get(sky.status([f"{CONTROLLER}*"], all_users=True)))


def _record(given: Mapping[str, Any]) -> ServiceRecord:
    replicas = [_replica(each) for each in given.get("replica_info") or []]
    first_ready = given.get("uptime")  # which is no duration, whatever SkyPilot's documentation says
    made_by = task_of(given.get("yaml_content"))
    secrets = made_by.get("secrets")
    # SkyServe's log quotes them.
    hide(*(str(each) for each in (secrets.values() if isinstance(secrets, dict) else ()) if each))
    return ServiceRecord(
        name=given["name"],
        status=given["status"].value,
        url=url_of(given.get("endpoint")),
        uptime=time.time() - first_ready if first_ready else None,
        target=given.get("target_num_replicas"),
        policy=given.get("policy") or "",
        version=given["version"],
        versions=tuple(given.get("active_versions") or ()),
        replicas=tuple(sorted(replicas, key=lambda each: each.number)),
        task=made_by,
    )


def _replica(given: Mapping[str, Any]) -> Replica:
    # SkyPilot's server keeps the handle back, but: 1x[spot](gpus=L4:2, cpus=24, mem=96, g2-standard-24, ...)
    resources = (given.get("resources_str_full") or "").partition("(")[2].rstrip(")")
    words = [word for word in resources.split(", ") if word]
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
        url=url_of(given.get("endpoint")),
    )


def url_of(address: str | None) -> str:
    """An address of SkyServe as a URL, or empty: it may be missing, or contain the word None."""
    if not address or address in ("-", "None") or address.endswith("://None"):
        return ""
    return address if "://" in address else f"http://{address}"


def priced(found: list[ServiceRecord]) -> list[ServiceRecord]:
    """The services with the price of each replica, where SkyPilot's catalogs have one."""
    prices: dict[tuple[str, str], list[Any]] = {}

    def price(replica: Replica) -> float | None:
        offers = prices.get((replica.infra, replica.gpus)) or []
        both = [(each.price, each.spot_price) for each in offers if each.instance_type == replica.machine]
        known = [spot if replica.spot else ordinary for ordinary, spot in both]
        return min((each for each in known if each is not None), default=None)

    # What runs is shown without its price too.
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        from sky.client import sdk

        machines = [each for one in found for each in one.replicas if each.machine]
        for infra, gpus in {(each.infra, each.gpus) for each in machines}:
            (cloud, _, region), (gpu, _, count) = infra.partition("/"), gpus.partition(":")
            if gpu:
                offers = sky.get(
                    sdk.list_accelerators(
                        name_filter=f"^{gpu}$",
                        region_filter=f"^{region}$",
                        quantity_filter=int(float(count)),
                        clouds=cloud,
                    )
                )
                prices[infra, gpus] = offers.get(gpu) or []
    return [
        replace(one, replicas=tuple(replace(each, hourly=price(each)) for each in one.replicas))
        for one in found
    ]


def controller() -> Record | None:
    """The machine of SkyServe's controller and balancers, if it is there."""
    return next((each for each in clusters.controllers() if each.name.startswith(CONTROLLER)), None)


def qps(name: str) -> float | None:
    """The queries per second of the last minute, as SkyServe has counted them; None when it does not say."""
    said = io.StringIO()
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        sky.serve.tail_logs(name, "controller", follow=False, tail=100, output_stream=said)
    counted = re.findall(
        r"(?:equests[ _]per[ _]second|requests in the last (\d+) seconds): (\d+(?:\.\d+)?)", said.getvalue()
    )
    return float(counted[-1][1]) / float(counted[-1][0] or 1) if counted else None


def problem(service: Service, record: ServiceRecord) -> str:
    """Why it does not answer a request with its key; empty when it does.

    It is asked only where a replica is ready: to the autoscaler, every request is one that wants a replica.
    """
    if record.ready and service.url:
        return status.problem(service)
    if record.asleep:
        return "it has no replica, and the next request calls one"
    if record.state == "failed":
        return "every replica has failed"
    return "it has no endpoint yet" if record.ready else "no replica is ready"


def problem_of(replica: Replica, key: str) -> str:
    """Why a replica is not ready: its own answer to the request of SkyServe's probe."""
    if not replica.url or replica.status not in ("STARTING", "NOT_READY"):
        return replica.detail
    try:
        return status.problem_at(Endpoint(replica.url, key))
    except PixtralSkyError as error:  # the key is none
        return error.what


def remembered(record: ServiceRecord, key: str = "") -> Service:
    """Remember a service with its current address.

    ``key`` is for a service that was not brought up from here: its key is not known.
    """
    known = store.recall_as(record.name, Service)
    if known:
        theirs = key and not known.request  # nobody here has made its key
        service = replace(known, url=record.url or known.url, key=key if theirs else known.key)
    else:
        limits, begun = task.limits(record.task.get("envs") or {}), time.time() - (record.uptime or 0)
        service = Service(record.name, record.url, key, *limits, begun, request="")
    if service != known:
        store.remember(service)
    return service


def locate(name: str, key: str) -> bool:
    ours = [each for each in records([name]) if store.is_ours(each, Service) and each.url]
    for each in ours:
        remembered(each, key)
    return bool(ours)


def row(name: str, one: Service | None, record: ServiceRecord | None, asked: bool) -> Row:
    state = record.state if record else "ended" if asked else "unknown"
    if not record and one and clusters.is_launching(one.request):
        state = "launching"
    why = {
        "ended": "SkyServe has it no longer: taken down",
        "launching": "it is being brought up",
    }.get(state, "")
    if record:
        (record,) = priced([record])
        one, why = _asked(record, one)
        why = f"{why} (pixtral-sky serve status {name})" if why else ""
    elif one and not why:
        why = status.problem(one)
    replicas = record.replicas if record else ()
    return Row(
        name,
        Service.kind,
        f"{state}, {record.ready}/{len(replicas)}" if record else state,
        infra=", ".join(sorted({each.infra for each in replicas} - {""})),
        gpus=", ".join(sorted({f"{each.gpus}{' spot' * each.spot}" for each in replicas if each.gpus})),
        age=time.time() - one.created if one else None,
        hourly=record.hourly if record else None,
        endpoint=one.url if one else "",
        answers=not why,
        problem=why,
    )


def _asked(record: ServiceRecord, service: Service | None = None) -> tuple[Service | None, str]:
    """The service, remembered with its address as it is now, and why it does not answer."""
    try:
        service = remembered(record, key_of_environment())
        return service, problem(service, record)
    except PixtralSkyError as error:  # the others are shown all the same
        return service, str(error)


def document(record: ServiceRecord) -> dict[str, Any]:
    """All that is to be known of it, for --json. Each replica that is not ready is asked why."""
    service, why = _asked(record)

    def of_replica(replica: Replica) -> str:
        if replica.failed:
            return f"pixtral-sky serve logs {record.name} --replica {replica.number}"
        return problem_of(replica, service.key if service else "")

    # Each may take 10 s to say nothing.
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(of_replica, record.replicas))
    return {
        "name": record.name,
        "status": record.status,
        "state": record.state,
        "endpoint": service.url if service else record.url,
        "answers": not why,
        "problem": why,
        "ready": record.ready,
        "target": record.target,
        "policy": record.policy,
        "qps": qps(record.name),
        "version": record.version,
        "versions": list(record.versions),
        "uptime": record.uptime,
        "hourly": record.hourly,
        "replicas": [
            {**vars(each), "problem": problem}
            for each, problem in zip(record.replicas, problems, strict=True)
        ],
    }


def documents(name: str | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """All services, or that one, and their controller, for --json. Raises NoEndpoint: there is none."""
    known = None
    if name:
        store.check_name(name)
        known = store.recall_as(name, Service)
    found = records([name] if name else None) if skypilot.was_used() else []
    if name and not found:
        if known and clusters.is_launching(known.request):
            raise SkyError(f"{name!r} is being brought up.", f"Stop that: pixtral-sky serve down {name}")
        if known:
            raise SkyError(f"SkyServe has {name!r} no longer.", f"Forget it: pixtral-sky serve down {name}")
        raise NoEndpoint(f"There is no service named {name!r}.", "What there is: pixtral-sky serve status")
    ours = priced([each for each in found if store.is_ours(each, Service)])
    if name and not ours:
        raise NoEndpoint(
            f"The service {name!r} at SkyServe is none of this project.", f"sky serve status {name}"
        )
    machine = controller() if ours else None
    if not machine:
        return [document(each) for each in ours], None
    about = {"name": machine.name, "status": machine.status, "infra": machine.infra}
    return [document(each) for each in ours], {**about, "hourly": machine.hourly_now}


class _Log(SkyOutput):
    """SkyServe's log, which quotes whole task files, older versions too: without their secrets."""

    def write(self, text: str) -> int:
        hidden = re.sub(
            r"((?:PIXTRAL_API_KEY|HF_TOKEN)['\"]?\s*[:=]\s*['\"]?|Bearer )[^\s'\",}$]+", r"\1***", text
        )
        super().write(hidden)
        return len(text)


def logs(name: str, *, follow: bool, lines: int, replica: int | None = None, balancer: bool = False) -> None:
    """Write the log of a replica, of the balancer or, without these, of the controller to stdout."""
    if replica is not None and balancer:
        raise UsageError("A log is that of a replica, or of the balancer.", "Leave one of both out.")
    if follow and lines:
        raise UsageError("SkyServe follows a log from its beginning only.", "Leave out --lines, or --follow.")
    target = "replica" if replica is not None else "load_balancer" if balancer else "controller"
    out = _Log(sys.stdout)
    with sky_sdk() as sky:
        # Its own answer to an unknown name is a log that is empty.
        if not find(sky, name):
            raise NoEndpoint(
                f"There is no service named {name!r}.", "What there is: pixtral-sky serve status"
            )
        sky.serve.tail_logs(
            name,
            target,
            replica_id=replica,
            follow=follow,
            tail=lines or None,
            output_stream=out,
        )


def down(name: str) -> str:
    one = store.recall_as(name, Service)
    if not one:
        record = next(iter(records([name])), None) if skypilot.was_used() else None
        if not record:
            return ""
        if not record.ours:
            raise UsageError(f"{name!r} is a service with something else on it.", f"sky serve down {name}")
    with output.phase(f"taking {name} down"):
        was_there = take_down(name, one.request if one else "")
    if one:
        store.forget(name)
    if was_there:
        return f"{name} is down: SkyPilot has no replica of it left."
    return f"{name} was gone already; it is forgotten."


def take_down(name: str, request: str = "") -> bool:
    """Take a service down, and its controller when it was the last; return when SkyPilot has both no longer.

    ``request`` is a bringing up that may still be on its way. Returns whether there was one.
    Raises SkyError when something may still be there.
    """
    with sky_sdk(silent=True) as sky:
        cancelled = bool(request) and clusters.cancel(sky, request)
        found = find(sky, name)
        deadline = time.monotonic() + REGISTER_SECONDS
        while cancelled and not found and time.monotonic() < deadline:  # the controller may have it already
            time.sleep(POLL_SECONDS)
            found = find(sky, name)
        if found:
            _check_alone(sky, name)
            sky.get(sky.serve.down(name))
            _wait_until_gone(sky, name)
        elif not cancelled:
            return False
        machine = next(iter(_controllers(sky)), None)
        if machine and not _records(sky, None):
            sky.get(sky.down(machine.name))
            if sky.get(sky.status([machine.name], refresh=sky.StatusRefreshMode.FORCE, all_users=True)):
                raise SkyError(
                    f"{name!r} is down, but its controller is not.", f"Try: sky down {machine.name}"
                )
    return True


def _check_alone(sky: Any, name: str) -> None:
    """SkyServe finds what it takes down by SQL's LIKE: '_' is any character, and letters have no case."""
    like = "".join("." if each == "_" else re.escape(each) for each in name)
    others = [each.name for each in _records(sky, None) if each.name != name]
    if along := [each for each in others if re.fullmatch(like, each, re.IGNORECASE)]:
        raise SkyError(
            f"SkyPilot would take {', '.join(along)} down together with {name!r}: to it the names are alike.",
            f"If that is right: sky serve down {name}",
        )


def _wait_until_gone(sky: Any, name: str) -> None:
    deadline = time.monotonic() + DOWN_SECONDS
    while left := find(sky, name):  # SkyServe answers before the machines are gone
        if left.status in ("FAILED_CLEANUP", "CONTROLLER_FAILED") or time.monotonic() > deadline:
            raise SkyError(
                f"{name!r} is {left.status}: machines of it may still be there.",
                f"Look at your cloud, then: sky serve down {name} --purge",
            )
        time.sleep(POLL_SECONDS)


def leftover(machine: Record) -> str:
    """What SkyServe's controller costs that is left, and for what it is."""
    others = ""
    with contextlib.suppress(SkyError):  # it costs money also where it cannot be asked
        others = ", ".join(each.name for each in records())
    if others:
        return f"SkyPilot's {machine.name} stays {machine.status}{machine.price}, for: {others}."
    return clusters.leftover(machine)
