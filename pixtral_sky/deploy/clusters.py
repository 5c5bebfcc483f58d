"""Clusters on SkyPilot: looked at, found, followed and taken down. A `backend.Backend`.

They are launched by ``launch``. SkyPilot is called by its SDK (see ``skypilot``).
"""

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

from pixtral_sky.deploy import prices, skypilot, store, task
from pixtral_sky.deploy.resolve import key_of_environment
from pixtral_sky.deploy.skypilot import SkyOutput, hide, infra, plain, shown, sky_output, sky_sdk, task_of
from pixtral_sky.deploy.status import Row, problem
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError

kind, at_skypilot = Cluster, True
ALIAS_SECONDS = 180.0
CONTROLLERS = ("sky-serve-controller-", "sky-jobs-controller-")  # machines of SkyPilot's own
STATES = {"UP": "up", "INIT": "launching", "STOPPED": "stopped", "AUTOSTOPPING": "ending"}


@dataclass(frozen=True)
class Record:
    """A cluster as SkyPilot has it."""

    name: str
    status: str  # UP, INIT, STOPPED, AUTOSTOPPING or PENDING
    reason: str  # why it is INIT, where SkyPilot says so
    infra: str  # as for --infra: aws/us-east-1
    gpus: str  # as for --gpus: L4:2
    spot: bool
    launched: float  # seconds since the epoch
    hourly: float | None  # USD; None when SkyPilot knows no price
    spent: float | None  # USD since it was launched
    disk_gb: int  # as SkyPilot orders it without a disk_tier; 0: not known
    envs: dict[str, str]  # of the task that made it
    ports: bool  # whether it was given an open port
    ours: bool  # whether that task is one of this project

    @property
    def hourly_now(self) -> float | None:
        """USD; None also for one that is stopped."""
        return None if self.status == "STOPPED" else self.hourly

    @property
    def price(self) -> str:
        """What follows its state in a sentence."""
        return f", ${self.hourly_now:.2f} an hour" if self.hourly_now else ""

    @property
    def disk_hourly(self) -> float | None:
        """USD of its disk, which is not in ``hourly``, by list price; None when it is not known."""
        return prices.disk_hourly(self.infra.partition("/")[0], self.disk_gb) if self.disk_gb else None


def records(names: list[str] | None = None) -> list[Record]:
    """The clusters of those names that SkyPilot has, or all of them, as they are now."""
    with sky_sdk(silent=True) as sky:
        return records_by(sky, names)


def records_by(sky: Any, names: list[str] | None, all_users: bool = False) -> list[Record]:
    # AUTO: those that can end by themselves (spot, autostop) are looked up at their cloud.
    answer = sky.get(sky.status(names, refresh=sky.StatusRefreshMode.AUTO, all_users=all_users))
    costs: dict[str | None, Any] = {}
    if answer:
        with contextlib.suppress(Exception):  # what runs is shown without its price too
            costs = {each.get("cluster_hash"): each for each in sky.get(sky.cost_report())}
    return [_record(each, costs.get(each.cluster_hash, {})) for each in answer]


def _record(status: Any, cost: Mapping[str, Any]) -> Record:
    resources = getattr(status.handle, "launched_resources", None)
    spent, seconds = cost.get("total_cost"), cost.get("duration")
    made_by = task_of(status.last_creation_yaml)
    envs = made_by.get("envs")
    accelerators = ast.literal_eval(status.accelerators) if status.accelerators else None
    return Record(
        name=status.name,
        status=status.status.value,
        reason=" ".join(shown(plain(status.init_status_reason or "")).split())[:300],
        infra=infra(status.cloud, status.region),
        gpus=",".join(f"{gpu}:{count:g}" for gpu, count in (accelerators or {}).items()),
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
    """Those of `sky launch --env NAME=VALUE`, which the file that it was given does not have."""
    try:
        words = shlex.split(command)
    except ValueError:  # it was cut off
        return {}
    given = [word for option, word in itertools.pairwise(words) if option == "--env"]
    given += [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    return dict(word.split("=", 1) for word in given if "=" in word)


def job_status(name: str) -> str:
    """What the last job of a cluster does: RUNNING, FAILED...; empty when it has none, or does not say."""
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        status = next(iter(sky.get(sky.job_status(name)).values()), None)
        return status.value if status else ""
    return ""


def find(name: str, key: str = "") -> Cluster | None:
    """The cluster of that name, with its endpoint if it has one; None when SkyPilot has none of this project.

    One that was not launched from here is remembered from now on. ``key`` is for one whose key is not known.
    """
    cluster = store.recall_as(name, Cluster)
    if not cluster:
        found = [each for each in records([name]) if each.ours and each.status == "UP"]
        return located(adopted(found[0], key)) if found else None
    if key and not cluster.request:  # nobody here has made its key
        cluster = replace(cluster, key=key)
        store.remember(cluster)
    # It is asked for again: after a stop and a start the address is another.
    return located(cluster if cluster.private else replace(cluster, url=""))


def adopted(record: Record, key: str) -> Cluster:
    """A cluster that was not launched from here, remembered from now on. ``key`` may be empty."""
    private = not record.ports or record.envs.get("LISTEN", "").startswith("127.")
    url = f"http://127.0.0.1:{store.free_port()}" if private else ""
    port, limits = task.number(record.envs, "PORT", 8081), task.limits(record.envs)
    cluster = Cluster(record.name, url, key, *limits, record.launched, port, private, request="")
    store.remember(cluster)
    if private:
        write_ssh_alias(record.name)
    return cluster


def locate(name: str, key: str) -> bool:
    return find(name, key) is not None


def row(name: str, one: Cluster | None, record: Record | None, asked: bool) -> Row:
    state = STATES.get(record.status, record.status.lower()) if record else "ended" if asked else "unknown"
    if state == "ended" and one and is_launching(one.request):
        state = "launching"
    why = {
        "ended": "SkyPilot has it no longer: idle, preempted or taken down",
        "launching": (record and record.reason) or "it is being launched",
        "stopped": f"it is stopped, and its disk costs money: pixtral-sky launch --name {name}",
    }.get(state, "")
    try:
        if state == "up":
            one = find(name, key_of_environment())
        if not why:
            why = problem(one) if one else "its endpoint is not known"
            if why and state == "up":
                why = _of_job(job_status(name), name) or why
    except PixtralSkyError as error:  # the others are shown all the same
        why = str(error)
    return Row(
        name,
        Cluster.kind,
        state,
        infra=record.infra if record else "",
        gpus=f"{record.gpus}{' spot' * record.spot}" if record else "",
        age=time.time() - (record.launched if record else one.created if one else time.time()),
        hourly=record.hourly_now if record else None,
        spent=record.spent if record else None,
        endpoint=one.url if one else "",
        private=bool(one and one.private),
        answers=not why,
        problem=why,
    )


def _of_job(job: str, name: str) -> str:
    """Why a server does not answer, by the state of its job."""
    if job == "SUCCEEDED":
        return (
            f"its server has ended itself, and the machine follows; again: pixtral-sky launch --name {name}"
        )
    return f"its job is {job}: pixtral-sky logs {name}" if job and job != "RUNNING" else ""


def logs(name: str, *, follow: bool, lines: int) -> None:
    """Write the last ``lines`` (0: all) of the last job's log to stdout; of the launch, while it lasts."""
    out = SkyOutput(sys.stdout)
    if one := store.recall_as(name, Cluster):
        hide(one.key)
    with sky_sdk() as sky:
        record = next(iter(records_by(sky, [name])), None)
        if not record:
            raise NoEndpoint(f"SkyPilot has no cluster {name!r}.", "What there is: pixtral-sky status")
        if record.status == "INIT":
            from sky.client import sdk

            sdk.tail_provision_logs(name, follow=follow, tail=lines, output_stream=out)
        else:
            sky.tail_logs(name, None, follow=follow, tail=lines, output_stream=out)


def located(cluster: Cluster) -> Cluster:
    """The cluster with the URL that SkyPilot has for it, remembered; without a URL until SkyPilot has one."""
    if cluster.url:
        return cluster
    address = ""
    with sky_sdk(silent=True) as sky:
        from sky import exceptions

        # Not yet, or no longer.
        with contextlib.suppress(exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError):
            address = sky.get(sky.endpoints(cluster.name, cluster.port)).get(cluster.port)
    if address:
        cluster = replace(cluster, url=address if "://" in address else f"http://{address}")
        store.remember(cluster)
    return cluster


def write_ssh_alias(name: str) -> None:
    """Have SkyPilot write how ssh reaches a cluster: its own command line does, its SDK does not."""
    program = shutil.which("sky", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not program:
        raise SkyError("There is no program 'sky' beside SkyPilot's package.", "Reinstall skypilot.")
    with contextlib.suppress(subprocess.TimeoutExpired):  # the next to go that way is told
        subprocess.run(
            [program, "status", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ALIAS_SECONDS,
        )


# Taking down -----------------------------------------------------------------------------------------------


def down(name: str) -> str:
    one = store.recall_as(name, Cluster)
    if not one:
        record = next(iter(records([name])), None) if skypilot.was_used() else None
        if not record:
            return ""
        if not record.ours:
            raise UsageError(f"{name!r} is a cluster with something else on it.", f"sky down {name}")
    if one and (tunnel := one.tunnel()):
        tunnel.close()
    was_there = take_down(name, one.request if one else "")
    store.forget(name)
    if was_there:
        return f"{name} is down: SkyPilot and its cloud have nothing of it left."
    return f"{name} had ended by itself; it is forgotten."


def take_down(name: str, request: str = "") -> bool:
    """Take a cluster down, and return when SkyPilot and its cloud have it no longer.

    ``request`` is a launch that may still be on its way. Returns whether there was anything to take down.
    Raises SkyError when it may still be there.
    """
    with sky_sdk() as sky:
        from sky import exceptions

        cancelled = bool(request) and cancel(sky, request)
        try:
            sky.stream_and_get(sky.down(name), output_stream=sky_output)
        except exceptions.ClusterDoesNotExist:
            return cancelled
        if left := sky.get(sky.status([name], refresh=sky.StatusRefreshMode.FORCE)):
            raise SkyError(
                f"{name!r} is still {left[0].status.value}.", f"Try again: pixtral-sky down {name}"
            )
    return True


def cancel(sky: Any, request: str) -> bool:
    """End a launch that is still on its way, and say if it was: it would make a machine after `down`."""
    if not _pending(sky, request):
        return False
    sky.get(sky.api_cancel([request], silent=True))
    return True


def controllers() -> list[Record]:
    """SkyPilot's own machines, which cost money as long as they are there."""
    with sky_sdk(silent=True) as sky:
        # They belong to the API server, which may be that of many users.
        return records_by(sky, [f"{name}*" for name in CONTROLLERS], all_users=True)


def leftover(machine: Record) -> str:
    """What is said of such a machine that nothing needs."""
    return (
        f"SkyPilot's {machine.name} is still {machine.status}{machine.price}. End it: sky down {machine.name}"
    )


def is_launching(request: str) -> bool:
    """Whether that launch is still on its way at SkyPilot."""
    if not request:
        return False
    with contextlib.suppress(SkyError), sky_sdk(silent=True) as sky:
        return bool(_pending(sky, request))
    return False


def _pending(sky: Any, request: str) -> bool:
    # WAITING: for a retry of its own.
    return any(each.status in ("PENDING", "WAITING", "RUNNING") for each in sky.api_status([request]))
