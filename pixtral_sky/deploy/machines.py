"""The machines behind an endpoint: their GPUs, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from pixtral_sky.deploy import clusters, services, store
from pixtral_sky.deploy.store import Cluster, Rehearsal, Service


@dataclass(frozen=True)
class Machines:
    """What is known of them; unknown values are None or empty."""

    kind: str = ""  # of the deployment: rehearsal, cluster or service; empty: it was not launched from here
    gpus: str = ""  # of one machine: L4:2
    precision: str = ""
    replicas: int = 1  # that are ready
    hourly: float | None = None  # USD, of all


def behind(name: str) -> Machines:
    """The machines of the deployment ``name``, which may be none. Raises SkyError."""
    deployment = store.recall(name) if name in store.known() else None
    match deployment:
        case Rehearsal():
            return Machines(deployment.kind)
        case Cluster() if record := clusters.record(name):
            precision = record.envs.get("PRECISION", "")
            return Machines(deployment.kind, record.gpus, precision, hourly=record.hourly_now)
        case Service() if found := services.record(name):
            (service,) = services.priced([found])
            kinds = {each.gpus for each in service.replicas if each.status == "READY"}
            envs = service.task.get("envs") or {}
            return Machines(
                deployment.kind,
                kinds.pop() if len(kinds) == 1 else "",
                str(envs.get("PRECISION", "")),
                max(service.ready, 1),
                service.hourly,
            )
    return Machines(deployment.kind if deployment else "")
