"""Everything that runs, known here or to SkyPilot, as one table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pixtral_sky.deploy import clusters as deployment
from pixtral_sky.deploy import services as serving
from pixtral_sky.deploy import skypilot
from pixtral_sky.deploy import store as state
from pixtral_sky.deploy.clusters import Record
from pixtral_sky.deploy.resolve import key_of_environment
from pixtral_sky.deploy.services import ServiceRecord
from pixtral_sky.deploy.store import Cluster, Deployment, Rehearsal, Service
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError

STATES = {"UP": "up", "INIT": "launching", "STOPPED": "stopped", "AUTOSTOPPING": "ending"}


@dataclass(frozen=True)
class Row:
    """One deployment. What is not known is None, or empty."""

    name: str
    kind: str
    state: str
    infra: str = ""
    gpus: str = ""
    age: float | None = None  # seconds
    hourly: float | None = None  # USD
    spent: float | None = None  # USD
    endpoint: str = ""
    private: bool = False
    answers: bool = False  # a request with its key was answered just now
    problem: str = ""  # why it does not


def rows(name: str | None = None) -> tuple[list[Row], list[str]]:
    """What runs, or only what has that name; and what could not be found out.

    Raises NoEndpoint when nothing has that name, and SkyError when that could not be found out.
    """
    found: list[Row] = []
    remembered: dict[str, Deployment] = {}
    for each in state.known() if name is None else [name]:
        try:
            if one := state.recall(each):
                remembered[each] = one
        except UsageError:
            raise
        except PixtralSkyError as damaged:
            found.append(Row(each, "?", "damaged", problem=str(damaged)))
    clusters, trouble = _clusters(name, remembered)
    services: dict[str, ServiceRecord] = {}
    more = trouble
    if not trouble:
        services, more = _services(name, remembered, clusters)
    for each in sorted({*remembered, *clusters, *services}):
        one = remembered.get(each)
        if isinstance(one, Rehearsal):
            found.append(_rehearsal(one))
        elif isinstance(one, Service) or each in services:
            service = one if isinstance(one, Service) else None
            found.append(_service(each, service, services.get(each), more))
        else:
            found.append(
                _cluster(each, one if isinstance(one, Cluster) else None, clusters.get(each), trouble)
            )
    if name and not found:
        if more:
            raise SkyError(more[0])
        raise NoEndpoint(
            f"There is no deployment named {name!r} here{' or at SkyPilot' * skypilot.was_used()}.",
            "What there is: pixtral-sky status",
        )
    return found, more


def _clusters(name: str | None, remembered: Mapping[str, Deployment]) -> tuple[dict[str, Record], list[str]]:
    """What SkyPilot has of ours. It is not asked where it cannot have anything."""
    if isinstance(remembered.get(name or ""), (Rehearsal, Service)):
        return {}, []
    try:
        if not skypilot.was_used() and not any(isinstance(one, Cluster) for one in remembered.values()):
            return {}, []
        records = deployment.records([name] if name else None)
    except SkyError as error:
        return {}, [str(error)]
    # One of SkyPilot's that has the name of a rehearsal here is another thing.
    return {
        each.name: each
        for each in records
        if (each.ours or each.name in remembered)
        and not isinstance(remembered.get(each.name), (Rehearsal, Service))
    }, []


def _services(
    name: str | None, remembered: Mapping[str, Deployment], clusters: Mapping[str, Record]
) -> tuple[dict[str, ServiceRecord], list[str]]:
    """What SkyServe has of ours. It is not asked for what is known to be another thing."""
    if name and (name in clusters or isinstance(remembered.get(name), (Rehearsal, Cluster))):
        return {}, []
    try:
        if not skypilot.was_used() and not any(isinstance(one, Service) for one in remembered.values()):
            return {}, []
        found = serving.records([name] if name else None)
        ours = [each for each in found if serving.is_ours(each) and each.name not in clusters]
        return {each.name: each for each in serving.priced(ours)}, []
    except SkyError as error:
        return {}, [str(error)]


def _service(name: str, one: Service | None, record: ServiceRecord | None, trouble: list[str]) -> Row:
    known = record.state if record else "unknown" if trouble else "ended"
    if not record and one and deployment.is_launching(one.request):
        known = "launching"
    problem = {
        "ended": "SkyServe has it no longer: taken down",
        "launching": "it is being brought up",
    }.get(known, "")
    try:
        if record:
            one = serving.remembered(record, key_of_environment())
            problem = serving.problem(one, record)
        elif one and not problem:
            problem = deployment.problem(one)
    except PixtralSkyError as error:  # the others are shown all the same
        problem = str(error)
    replicas = record.replicas if record else ()
    return Row(
        name,
        Service.kind,
        f"{known}, {record.ready}/{len(replicas)}" if record else known,
        infra=", ".join(sorted({each.infra for each in replicas} - {""})),
        gpus=", ".join(sorted({f"{each.gpus}{' spot' * each.spot}" for each in replicas if each.gpus})),
        age=time.time() - one.created if one else None,
        hourly=record.hourly if record else None,
        endpoint=one.url if one else "",
        answers=not problem,
        problem=f"{problem} (pixtral-sky serve status {name})" if problem and record else problem,
    )


def _rehearsal(one: Rehearsal) -> Row:
    running = one.is_running()
    # It is not asked once it has ended: somebody else may have its port.
    problem = deployment.problem(one) if running else f"it has ended; its log: {one.log}"
    return Row(
        one.name,
        one.kind,
        "running" if running else "ended",
        age=time.time() - one.created,
        endpoint=one.url,
        answers=not problem,
        problem=problem,
    )


def _cluster(name: str, one: Cluster | None, record: Record | None, trouble: list[str]) -> Row:
    known = STATES.get(record.status, record.status.lower()) if record else "unknown" if trouble else "ended"
    if known == "ended" and one and deployment.is_launching(one.request):
        known = "launching"
    problem = {
        "ended": "SkyPilot has it no longer: idle, preempted or taken down",
        "launching": (record and record.reason) or "it is being launched",
        "stopped": f"it is stopped, and its disk costs money: pixtral-sky launch --name {name}",
    }.get(known, "")
    try:
        if known == "up":
            one = deployment.find(name, key_of_environment())
        if not problem:
            problem = deployment.problem(one) if one else "its endpoint is not known"
            if problem and known == "up":
                problem = _of_job(deployment.job_status(name), name) or problem
    except PixtralSkyError as error:  # the others are shown all the same
        problem = str(error)
    return Row(
        name,
        Cluster.kind,
        known,
        infra=record.infra if record else "",
        gpus=f"{record.gpus}{' spot' if record.spot else ''}" if record else "",
        age=time.time() - (record.launched if record else one.created if one else time.time()),
        hourly=record.hourly if record and known != "stopped" else None,
        spent=record.spent if record else None,
        endpoint=one.url if one else "",
        private=bool(one and one.private),
        answers=not problem,
        problem=problem,
    )


def _of_job(job: str, name: str) -> str:
    """What the state of its job says of a server that does not answer."""
    if job == "SUCCEEDED":
        return (
            f"its server has ended itself, and the machine follows; again: pixtral-sky launch --name {name}"
        )
    return f"its job is {job}: pixtral-sky logs {name}" if job and job != "RUNNING" else ""
