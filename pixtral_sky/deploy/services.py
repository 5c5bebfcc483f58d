"""Services on SkyServe: replicas behind one balancer; brought up, looked at, updated and taken down."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pixtral_sky import output
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import candidates, clusters, prices, task
from pixtral_sky.deploy import store as state
from pixtral_sky.deploy.resolve import endpoint_of
from pixtral_sky.deploy.skypilot import Voice, hide, sky_sdk, voice
from pixtral_sky.deploy.store import Service
from pixtral_sky.errors import (
    EndpointError,
    NoEndpoint,
    PixtralSkyError,
    SkyError,
    Untrusted,
    UsageError,
)

POLL_SECONDS = 5.0
PATIENCE = 3  # looks in a row that fail, in a wait of half an hour, before it is given up
BALANCER_SECONDS = 120.0  # to learn of a replica that is ready: it asks the controller every 20
REGISTER_SECONDS = 30.0  # for a service to appear whose bringing up was cancelled half-way
DOWN_SECONDS = 900.0
CONTROLLER = "sky-serve-controller-"  # what the name of SkyServe's own machine begins with
# States of a service that is never ready again.
ENDED = ("SHUTTING_DOWN", "CONTROLLER_FAILED", "FAILED_CLEANUP")


class GivenUp(SkyError):
    """Every replica that was waited for has failed."""


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
    status: str  # CONTROLLER_INIT, READY, NO_REPLICA (also while the first ones start), or one of ENDED
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
        return "PIXTRAL_API_KEY" in (self.task.get("secrets") or {})

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


@dataclass(frozen=True)
class Controller:
    """The machine of SkyServe's controller and balancers."""

    name: str
    status: str  # as of a cluster
    infra: str
    hourly: float | None  # USD; None when SkyPilot knows no price


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


def prepare(
    name: str,
    config: Mapping[str, Any],
    *,
    key: str,
    token: str,
    infra: str | None = None,
    gpus: str | None = None,
    spot: bool | None = None,
    max_price: float | None = None,
) -> Plan:
    """The service of ``config``, a service file as data, under ``name``; ``max_price`` is of one replica.

    Raises UsageError when it cannot be brought up as it is.
    """
    old = state.recall(name)
    before = old if isinstance(old, Service) else None
    ended = isinstance(old, state.Rehearsal) and not old.is_running()
    if old and not before and not ended:
        raise UsageError(f"{name!r} is a {old.kind}.", f"Take another --name, or: pixtral-sky down {name}")
    if any(each.ours for each in clusters.records([name])):
        raise UsageError(f"{name!r} is a cluster.", f"Take another --name, or: pixtral-sky down {name}")
    hide(key, token)
    secrets = {"PIXTRAL_API_KEY": key} | ({"HF_TOKEN": token} if token else {})
    with sky_sdk(silent=True) as sky:
        running = _find(sky, name)
        made = clusters.made_task(sky, config, secrets, infra=infra, gpus=gpus, spot=spot)
        if running and not running.ours and not before:
            raise UsageError(f"{name!r} is a service with something else on it.", "Take another --name")
        policy = made.service
        chosen = candidates.choose(
            sky,
            made.resources,
            clusters.enabled_for(sky, made.resources),
            max_price,
            fallback=bool(policy.dynamic_ondemand_fallback or policy.base_ondemand_fallback_replicas),
        )
        made.set_resources(type(made.resources)(chosen.resources))
        sky.serve.validate_service_task(made, pool=False)  # as the server does, after all the questions
        replaces = running is None or _machines(made.to_yaml_config()) != _machines(running.task)
    envs = config.get("envs") or {}
    service = Service(
        name=name,
        url=(running.url or (before.url if before else "")) if running else "",
        key=key,
        max_model_len=task.number(envs, "MAX_MODEL_LEN", -1),
        max_images=task.number(envs, "MAX_IMAGES", 4),
        created=before.created if before and running else time.time(),
        request=before.request if before else "",
    )
    return Plan(made, service, before, running, replaces, max_price, chosen.said, chosen.warned)


def _machines(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a task is about its machines: where two versions have the same of it, SkyServe keeps them."""
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
    """Bring it up, and remember it; returns when its controller runs, and has an address."""
    service = plan.service
    state.remember(service)  # the key, before anything is locked with it
    with sky_sdk(silent=True) as sky:  # it shows its candidates once more
        request = sky.serve.up(plan.task, service.name)
    service = replace(service, request=str(request))
    state.remember(service)
    with sky_sdk() as sky:
        _, url = sky.stream_and_get(request, output_stream=voice)
    service = replace(service, url=_url(url))
    state.remember(service)
    return service


def update(plan: Plan, blue_green: bool) -> tuple[Service, int]:
    """Have its replicas replaced; returns with the number of the new version when SkyServe has begun."""
    service = plan.service
    state.remember(service)  # the key, which may be another one
    try:
        with sky_sdk(silent=True) as sky:
            mode = sky.serve.UpdateMode.BLUE_GREEN if blue_green else sky.serve.UpdateMode.ROLLING
            request = sky.serve.update(plan.task, service.name, mode)
        service = replace(service, request=str(request))
        state.remember(service)
        with sky_sdk() as sky:
            sky.stream_and_get(request, output_stream=voice)
            record = _find(sky, service.name)  # SkyServe's answer does not say the version
    except SkyError:
        keep(plan)
        raise
    return service, record.version if record else 0


def keep(plan: Plan) -> None:
    """It has come to nothing: what was remembered before is so again, with its own key."""
    if plan.before:
        state.remember(plan.before)
    else:
        state.forget(plan.service.name)


def follow(service: Service, version: int = 0) -> Iterator[str]:
    """Names each phase as it begins, until one of ``version`` or later is ready and the balancer answers.

    An update is over when all that serve are of it; a service that nobody asks has no replica to wait for.
    Raises GivenUp when every such replica is, and SkyError when the service has ended.
    """
    name, last, failures, ready_since = service.name, "", 0, 0.0
    while True:
        try:
            record = next(iter(records([name])), None)
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
                clusters.reach(endpoint_of(remembered(record)))
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


def _phase(new: list[Replica], older: bool) -> str:
    """How far the replica is that is ahead of the others."""
    for status, words in (
        ("READY", "the older replicas are retired" if older else "the balancer learns of it"),
        ("NOT_READY", "a replica is not ready any more"),
        ("STARTING", "a replica sets up, downloads and starts"),
        ("PROVISIONING", "a machine for a replica"),
    ):
        if any(each.status == status for each in new):
            return words
    return "the controller plans"


# Looking ---------------------------------------------------------------------------------------------------


def records(names: list[str] | None = None) -> list[ServiceRecord]:
    """The services of those names that SkyServe has, or all of them. None, when it has no controller."""
    with sky_sdk(silent=True) as sky:
        return _records(sky, names)


def _find(sky: Any, name: str) -> ServiceRecord | None:
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
    from sky.utils import yaml_utils  # its loader is many times as fast as yaml's own

    replicas = [_replica(each) for each in given.get("replica_info") or []]
    first_ready = given.get("uptime")  # which is no duration, whatever SkyPilot's documentation says
    made_by = yaml_utils.safe_load(given.get("yaml_content") or "")
    made_by = made_by if isinstance(made_by, dict) else {}
    secrets = made_by.get("secrets")
    # SkyServe's log quotes them.
    hide(*(str(each) for each in (secrets.values() if isinstance(secrets, dict) else ()) if each))
    return ServiceRecord(
        name=given["name"],
        status=given["status"].value,
        url=_url(given.get("endpoint")),
        uptime=time.time() - first_ready if first_ready else None,
        target=given.get("target_num_replicas"),
        policy=given.get("policy") or "",
        version=given["version"],
        versions=tuple(given.get("active_versions") or ()),
        replicas=tuple(sorted(replicas, key=lambda each: each.number)),
        task=made_by,
    )


def _replica(given: Mapping[str, Any]) -> Replica:
    cloud, region = (given.get("cloud") or "").lower(), given.get("region") or ""
    # SkyPilot's server keeps the handle back, but: 1x[spot](gpus=L4:2, cpus=24, mem=96, g2-standard-24, ...)
    resources = (given.get("resources_str_full") or "").partition("(")[2].rstrip(")")
    words = [word for word in resources.split(", ") if word]
    return Replica(
        number=given["replica_id"],
        status=given["status"].value,
        detail=given.get("status_detail") or "",
        infra="/".join(filter(None, [cloud, region.removeprefix("ssh-") if cloud == "ssh" else region])),
        gpus=next((word.removeprefix("gpus=") for word in words if word.startswith("gpus=")), ""),
        machine=next((word for word in words if re.fullmatch(r"[\w.-]+", word)), ""),
        spot=bool(given.get("is_spot")),
        version=given["version"],
        launched=given.get("launched_at"),
        hourly=None,
        url=_url(given.get("endpoint")),
    )


def _url(address: str | None) -> str:
    """SkyServe's words for an address, as a URL. It may be missing, and it may be the word None in one."""
    if not address or address in ("-", "None") or address.endswith("://None"):
        return ""
    return address if "://" in address else f"http://{address}"


def priced(found: list[ServiceRecord]) -> list[ServiceRecord]:
    """The same, with the price of each replica that SkyPilot's catalogs have one for."""
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


def check_price(plan: Plan) -> None:
    """Raises SkyError when a replica costs more than it may: SkyPilot's server has other prices."""
    if plan.max_price is None:
        return
    name = plan.service.name
    (record,) = priced(records([name]))
    if unknown := [each for each in record.replicas if each.live and each.launched and each.hourly is None]:
        places = dict.fromkeys(
            each.infra for each in unknown if each.infra.partition("/")[0] not in prices.OWN
        )
        if places:
            output.warn(
                f"No price is known of replicas in {', '.join(places)}: they may be more than"
                f" ${plan.max_price:.2f} an hour. Look: pixtral-sky serve status {name}"
            )
    most = plan.max_price + clusters.CENT
    if dear := [each for each in record.replicas if each.live and each.hourly and each.hourly > most]:
        one = dear[0]
        raise SkyError(
            f"Replica {one.number} of {name!r} ({one.machine}, {one.infra}) costs ${one.hourly:.2f} an hour,"
            f" not ${plan.max_price:.2f}.",
            f"Take it down: pixtral-sky serve down {name}",
        )


def keep_to_price(plan: Plan) -> None:
    """The same of a new service, which is taken down then."""
    try:
        check_price(plan)
    except SkyError as error:
        down(plan.service.name)
        raise SkyError(f"{error.what} The service was taken down.") from error


def controller() -> Controller | None:
    """SkyServe's own machine, with its price; None when there is none."""
    with sky_sdk(silent=True) as sky:
        found = next(iter(_controllers(sky)), None)
        if not found:
            return None
        cost: Mapping[str, Any] = {}
        with contextlib.suppress(Exception):  # it is shown without its price too
            costs = sky.get(sky.cost_report())
            cost = next(each for each in costs if each.get("cluster_hash") == found.cluster_hash)
    spent, seconds = cost.get("total_cost"), cost.get("duration")
    runs = found.status.value != "STOPPED"
    return Controller(
        found.name,
        found.status.value,
        "/".join(filter(None, [(found.cloud or "").lower(), found.region])),
        spent * 3600 / seconds if runs and spent is not None and seconds else None,
    )


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
        return clusters.problem(service)
    if record.asleep:
        return "it has no replica, and the next request calls one"
    if record.state == "failed":
        return "every replica has failed"
    return "it has no endpoint yet" if record.ready else "no replica is ready"


def problem_of(replica: Replica, key: str) -> str:
    """Why a replica is not ready, from itself: its answer to the very request of SkyServe's probe."""
    if not replica.url or replica.status not in ("STARTING", "NOT_READY"):
        return replica.detail
    try:
        return clusters.problem_at(Endpoint(replica.url, key))
    except PixtralSkyError as error:  # the key is none
        return error.what


def remembered(record: ServiceRecord, key: str = "") -> Service:
    """What is remembered of a service, with its address as it is now.

    One that was not brought up from here is so from now on. ``key`` is for one whose key is not known.
    """
    known = state.recall(record.name)
    if isinstance(known, Service):
        theirs = key and not known.request  # nobody here has made its key
        service = replace(known, url=record.url or known.url, key=key if theirs else known.key)
    else:
        envs = record.task.get("envs") or {}
        service = Service(
            name=record.name,
            url=record.url,
            key=key,
            max_model_len=task.number(envs, "MAX_MODEL_LEN", -1),
            max_images=task.number(envs, "MAX_IMAGES", 4),
            created=time.time() - (record.uptime or 0),
            request="",
        )
    if service != known:
        state.remember(service)
    return service


def is_ours(record: ServiceRecord) -> bool:
    """Whether it is a service of this project, and its name is that of nothing else here."""
    try:
        known = state.recall(record.name)
    except PixtralSkyError:  # a damaged file is no reason not to show what costs money
        return record.ours
    return isinstance(known, Service) or (record.ours and known is None)


class _Log(Voice):
    """SkyServe's log on its way to stdout. It quotes whole task files, those of older versions too."""

    def write(self, text: str) -> int:
        hidden = re.sub(
            r"((?:PIXTRAL_API_KEY|HF_TOKEN)['\"]?\s*[:=]\s*['\"]?|Bearer )[^\s'\",}$]+", r"\1***", text
        )
        super().write(hidden)
        return len(text)


def logs(name: str, *, replica: int | None, balancer: bool, follow: bool, lines: int) -> None:
    """Write the log of a replica, of the balancer or, without these, of the controller to stdout."""
    if replica is not None and balancer:
        raise UsageError("A log is that of a replica, or of the balancer.", "Leave one of both out.")
    if follow and lines:
        raise UsageError("SkyServe follows a log from its beginning only.", "Leave out --lines, or --follow.")
    target = "replica" if replica is not None else "load_balancer" if balancer else "controller"
    out = _Log(sys.stdout)
    with sky_sdk() as sky:
        # Its own answer to an unknown name is a log that is empty.
        if not _find(sky, name):
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


# Taking down -----------------------------------------------------------------------------------------------


def down(name: str, request: str = "") -> bool:
    """Take a service down, and its controller when it was the last; return when SkyPilot has both no longer.

    ``request`` is a bringing up that may still be on its way. Returns whether there was one.
    Raises SkyError when something may still be there.
    """
    with sky_sdk(silent=True) as sky:
        cancelled = bool(request) and clusters.cancel(sky, request)
        found = _find(sky, name)
        deadline = time.monotonic() + REGISTER_SECONDS
        while cancelled and not found and time.monotonic() < deadline:  # the controller may have it already
            time.sleep(POLL_SECONDS)
            found = _find(sky, name)
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
    while left := _find(sky, name):  # SkyServe answers before the machines are gone
        if left.status in ("FAILED_CLEANUP", "CONTROLLER_FAILED") or time.monotonic() > deadline:
            raise SkyError(
                f"{name!r} is {left.status}: machines of it may still be there.",
                f"Look at your cloud, then: sky serve down {name} --purge",
            )
        time.sleep(POLL_SECONDS)
