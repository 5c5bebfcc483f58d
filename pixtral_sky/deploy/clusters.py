"""Clusters on SkyPilot: list, locate, logs, down. A `backend.Backend`. ``launch`` makes them."""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixtral_sky.deploy import skypilot, store, task
from pixtral_sky.deploy.resolve import key_of_environment
from pixtral_sky.deploy.skypilot import SkyOutput, hide, infra, plain, shown, sky_output, sky_sdk, task_of
from pixtral_sky.deploy.status import Row, problem, row_of
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError

kind, at_skypilot = Cluster, True
ALIAS_SECONDS = 180.0
CONTROLLERS = ("sky-serve-controller-", "sky-jobs-controller-")  # prefixes: SkyPilot's own machines
ABSENT = {
    "ended": "SkyPilot has it no longer: idle, preempted or taken down",
    "launching": "it is being launched",
}
STATES = {"UP": "up", "INIT": "launching", "STOPPED": "stopped", "AUTOSTOPPING": "ending"}


@dataclass(frozen=True)
class Record:
    """A cluster as SkyPilot has it."""

    name: str
    status: str  # UP, INIT, STOPPED, AUTOSTOPPING or PENDING
    reason: str  # why it is INIT, if SkyPilot says so
    infra: str  # in the syntax of --infra: aws/us-east-1
    gpus: str  # in the syntax of --gpus: L4:2
    spot: bool
    launched: float  # seconds since the epoch
    hourly: float | None  # USD, while it runs; None if SkyPilot knows no price
    spent: float | None  # USD since it was launched
    disk_gb: int  # the disk that SkyPilot orders without a disk_tier; 0 if unknown
    envs: dict[str, str]  # of the task that made it
    ports: bool  # whether it has an open port
    ours: bool  # whether its task is one of this project

    @property
    def hourly_now(self) -> float | None:
        """USD; None also for a stopped cluster."""
        return None if self.status == "STOPPED" else self.hourly


def records(names: list[str] | None = None, all_users: bool = False) -> list[Record]:
    """The current state of the clusters that SkyPilot has, or of those with these names."""

    def found(sky: Any) -> list[Record]:
        # AUTO: SkyPilot asks the cloud about clusters that can end by themselves (spot, autostop).
        answer = sky.get(sky.status(names, refresh=sky.StatusRefreshMode.AUTO, all_users=all_users))
        costs: dict[str | None, Any] = {}
        if answer:
            with contextlib.suppress(Exception):  # clusters are shown without prices then
                costs = {each.get("cluster_hash"): each for each in sky.get(sky.cost_report())}
        return [_record(each, costs.get(each.cluster_hash, {})) for each in answer]

    return skypilot.ask(found, [])


def record(name: str) -> Record | None:
    return next(iter(records([name])), None)


def _record(status: Any, cost: Mapping[str, Any]) -> Record:
    resources = getattr(status.handle, "launched_resources", None)
    spent, seconds = cost.get("total_cost"), cost.get("duration")
    made_by = task_of(status.last_creation_yaml)
    envs = made_by.get("envs")
    accelerators = ast.literal_eval(status.accelerators) if status.accelerators else {}
    return Record(
        name=status.name,
        status=status.status.value,
        reason=" ".join(shown(plain(status.init_status_reason or "")).split())[:300],
        infra=infra(status.cloud, status.region),
        gpus=",".join(f"{gpu}:{count:g}" for gpu, count in accelerators.items()),
        spot=bool(getattr(resources, "use_spot", False)),
        launched=float(status.launched_at),
        hourly=spent * 3600 / seconds if spent is not None and seconds else None,
        spent=spent,
        disk_gb=resources.disk_size if resources and not resources.disk_tier else 0,
        envs={
            **({name: str(value) for name, value in envs.items()} if isinstance(envs, dict) else {}),
            **_envs_of(status.last_creation_command or ""),
        },
        ports=bool(getattr(resources, "ports", None)),
        ours=task.is_ours(made_by),
    )


def _envs_of(command: str) -> dict[str, str]:
    """The values of `sky launch --env NAME=VALUE`: SkyPilot keeps the task file without them."""
    try:
        words = shlex.split(command)
    except ValueError:  # SkyPilot has truncated it
        return {}
    given = [word for option, word in itertools.pairwise(words) if option == "--env"]
    given += [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    return dict(word.split("=", 1) for word in given if "=" in word)


def job_status(name: str) -> str:
    """The status of a cluster's last job: RUNNING, FAILED...; empty if there is none, or it is unknown."""
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        status = next(iter(sky.get(sky.job_status(name)).values()), None)
        return status.value if status else ""
    return ""


def locate(name: str) -> Cluster | None:
    """The cluster ``name``, with its current endpoint if it has one; None if SkyPilot has none of ours.

    A cluster that was not launched from here is remembered, with the key of the environment.
    """
    key, cluster = key_of_environment(), store.recall_as(name, Cluster)
    if not cluster:
        found = record(name)
        return located(_adopted(found, key)) if found and found.ours and found.status == "UP" else None
    if key and not cluster.request:  # not launched from here: the environment knows its key better
        cluster = replace(cluster, key=key)
        store.remember(cluster)
    # A public address changes when the cluster is stopped and started.
    return located(cluster if cluster.private else replace(cluster, url=""))


def _adopted(record: Record, key: str) -> Cluster:
    """Remember a cluster that was not launched from here."""
    private = not record.ports or record.envs.get("LISTEN", "").startswith("127.")
    url = f"http://127.0.0.1:{store.free_port()}" if private else ""
    port, limits = task.number(record.envs, "PORT", 8081), task.limits(record.envs)
    cluster = Cluster(record.name, url, key, *limits, record.launched, port, private, request="")
    store.remember(cluster)
    if private:
        write_ssh_alias(record.name)
    return cluster


def located(cluster: Cluster) -> Cluster:
    """Ask SkyPilot for the URL of a cluster without one, and remember it; the URL may still be missing."""
    if cluster.url:
        return cluster
    url = ""
    with sky_sdk(silent=True) as sky:
        from sky import exceptions

        # Not up yet, or no longer.
        with contextlib.suppress(exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError):
            addresses = sky.get(sky.endpoints(cluster.name, cluster.port))
            url = skypilot.url_of(addresses.get(cluster.port))
    if url:
        cluster = replace(cluster, url=url)
        store.remember(cluster)
    return cluster


def write_ssh_alias(name: str) -> None:
    """Have SkyPilot write its ssh configuration of a cluster: `sky status` does that, the SDK does not."""
    program = shutil.which("sky", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not program:
        raise SkyError("There is no program 'sky' beside SkyPilot's package.", "Reinstall skypilot.")
    with contextlib.suppress(subprocess.TimeoutExpired):  # opening the tunnel reports a missing file
        subprocess.run(
            [program, "status", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ALIAS_SECONDS,
        )


def row(one: Cluster | None, record: Record | None, otherwise: str) -> Row:
    if not record:
        assert one
        return row_of(one, otherwise, ABSENT.get(otherwise, ""))
    state = STATES.get(record.status, record.status.lower())
    why = {
        "launching": record.reason or ABSENT["launching"],
        "stopped": f"it is stopped, and its disk costs money: pixtral-sky launch --name {record.name}",
    }.get(state, "")
    try:
        if state == "up":
            one = locate(record.name)
        if not why:
            why = problem(one) if one else "its endpoint is not known"
            if why and state == "up":
                why = _problem_of_job(record.name) or why
    except PixtralSkyError as error:  # one cluster's error does not hide the others
        why = str(error)
    return Row(
        record.name,
        Cluster.kind,
        state,
        infra=record.infra,
        gpus=f"{record.gpus}{' spot' * record.spot}",
        age=time.time() - record.launched,
        hourly=record.hourly_now,
        spent=record.spent,
        endpoint=one.url if one else "",
        private=bool(one and one.private),
        answers=not why,
        problem=why,
    )


def _problem_of_job(name: str) -> str:
    """Why the server does not answer, if its job is the reason."""
    job = job_status(name)
    if job == "SUCCEEDED":
        return (
            f"its server has ended itself, and the machine follows; again: pixtral-sky launch --name {name}"
        )
    return f"its job is {job}: pixtral-sky logs {name}" if job and job != "RUNNING" else ""


def logs(name: str, *, follow: bool, lines: int) -> None:
    """Write the log of the last job to stdout, or of the launch while it lasts."""
    out = SkyOutput(sys.stdout)  # here: within sky_sdk, sys.stdout leads to stderr
    if one := store.recall_as(name, Cluster):
        hide(one.key)
    with sky_sdk() as sky:
        found = record(name)
        if not found:
            raise NoEndpoint(f"SkyPilot has no cluster {name!r}.", "What there is: pixtral-sky status")
        if found.status == "INIT":
            from sky.client import sdk

            sdk.tail_provision_logs(name, follow=follow, tail=lines, output_stream=out)
        else:
            sky.tail_logs(name, None, follow=follow, tail=lines, output_stream=out)


def down(name: str, one: Cluster | None) -> bool:
    if one and (tunnel := one.tunnel()):
        tunnel.close()
    return take_down(name, one.request if one else "")


def take_down(name: str, request: str = "") -> bool:
    """Take a cluster down, and return when neither SkyPilot nor its cloud has it any more.

    ``request``: of a launch that may still be in progress. Returns whether there was anything to take down.
    Raises SkyError when the cluster may still be there.
    """
    with sky_sdk() as sky:
        from sky import exceptions

        cancelled = skypilot.cancel(request)
        try:
            sky.stream_and_get(sky.down(name), output_stream=sky_output)
        except exceptions.ClusterDoesNotExist:
            return cancelled
        if left := sky.get(sky.status([name], refresh=sky.StatusRefreshMode.FORCE)):
            raise SkyError(
                f"{name!r} is still {left[0].status.value}.", f"Try again: pixtral-sky down {name}"
            )
    return True


def controllers() -> list[Record]:
    """SkyPilot's own machines, which cost money while they exist."""
    # They belong to the API server, which may have many users.
    return records([f"{name}*" for name in CONTROLLERS], all_users=True)
