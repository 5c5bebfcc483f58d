"""Launch a cluster: check, remember, launch, and follow it until it answers."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pixtral_sky import output
from pixtral_sky.deploy import candidates, clusters, gpus, infra, prices, services, skypilot, store, task
from pixtral_sky.deploy.bring_up import CENT, Checked, Wanted, checked_here, enabled_for, licence, made_task
from pixtral_sky.deploy.clusters import Record
from pixtral_sky.deploy.skypilot import NoMachine, hide, plain, shown, sky_output, sky_sdk
from pixtral_sky.deploy.status import problem
from pixtral_sky.deploy.store import Cluster, Service
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import PixtralSkyError, SkyError, UsageError
from pixtral_sky.text import reason

RETRY_SECONDS = 60.0  # between two launches, while no machine is to be had
POLL_SECONDS = 3.0  # between two requests to a server that is starting


@dataclass(frozen=True)
class Plan(Checked):
    cluster: Cluster  # to be remembered
    running: Record | None  # the cluster that it updates


class StoppedWaiting(KeyboardInterrupt):
    """Ctrl-C between two launches, when none is in progress."""


def plan(the_task: Task, wanted: Wanted) -> Plan:
    """Plan the launch of a task file, after all checks: here, at the Hub, at SkyPilot.

    Raises UsageError, SkyError, and HubError for the licence of the weights.
    """
    key, token = checked_here(the_task, wanted, Cluster)
    if wanted.private:
        _check_ssh()
    warned = licence(the_task.envs, token)
    with output.phase("SkyPilot's view"):
        warned += gpus.check_names(wanted.gpus, the_task.config, wanted.infra)
        with contextlib.suppress(SkyError):  # a cluster needs no controller that answers
            if any(each.ours for each in services.records([wanted.name])):
                raise store.is_a(Service.kind, wanted.name)
        made = prepare(the_task, wanted, key, token)
    return replace(made, warned=(*made.warned, *warned))


def _check_ssh() -> None:
    if not shutil.which("ssh"):
        raise UsageError("It is reached through ssh, which is not here.", "Install OpenSSH's client.")


def prepare(the_task: Task, wanted: Wanted, key: str, token: str) -> Plan:
    """Plan the launch at SkyPilot. A cluster that runs under this name is updated, and keeps its machine."""
    name, envs = wanted.name, dict(the_task.config.get("envs") or {})
    config = {**the_task.config, "envs": envs}
    old = store.recall_as(name, Cluster)
    hide(key, token)
    port = task.number(envs, "PORT", 8081)
    if "PORT" in envs:  # an empty one too, for the script has no default
        envs["PORT"] = port
    with sky_sdk() as sky:
        running = clusters.record(name)
        if running:
            _check_running(running, old, wanted.max_price)
            wanted = replace(
                wanted,
                infra=wanted.infra or running.infra or None,  # empty while SkyPilot does not know it
                gpus=wanted.gpus or running.gpus or None,
            )
        anywhere = made_task(sky, config, wanted, key, token, ports=None).resources
        enabled = enabled_for(anywhere)
        places = candidates.per_cloud(sky, anywhere, enabled)
        private = wanted.private or bool(old and old.private)
        private = private or not any(skypilot.opens_ports(each.cloud, each) for each in places)
        if private:
            _check_ssh()
            envs["LISTEN"] = "127.0.0.1"
            if envs.get("IMAGE_URLS") == "public" and the_task.is_default("IMAGE_URLS"):
                envs["IMAGE_URLS"] = "none"  # who opens no port wants no other way out either
        elif str(envs.get("LISTEN") or "").startswith("127."):
            raise UsageError("LISTEN=127.0.0.1 needs no open port.", "Add --private")
        the_sky_task = made_task(sky, config, wanted, key, token, ports=None if private else port)
        chosen = candidates.Chosen(list(the_sky_task.resources))
        if not (running and running.infra):  # an update keeps the machine
            chosen = candidates.choose(sky, the_sky_task.resources, enabled, wanted.max_price)
            the_sky_task.set_resources(type(the_sky_task.resources)(chosen.resources))
    url = ""  # the previous address may be someone else's by now
    if private:
        url = old.url if old and old.private else f"http://127.0.0.1:{store.free_port()}"
    request = old.request if old else ""
    cluster = Cluster(name, url, key, *task.limits(envs), time.time(), port, private, request)
    return Plan(the_sky_task, wanted.max_price, chosen.said, chosen.warned, cluster, running)


def _check_running(running: Record, old: Cluster | None, max_price: float | None) -> None:
    """Raise UsageError when it belongs to another project, or costs more than ``max_price``."""
    if not running.ours and not old:
        raise UsageError(f"{running.name!r} is a cluster with something else on it.", "Take another --name")
    if max_price is not None and running.hourly is not None and running.hourly > max_price + CENT:
        raise UsageError(
            f"{running.name!r} is there already, at ${running.hourly:.2f} an hour, not ${max_price:.2f}.",
            f"Take it down first: pixtral-sky down {running.name}",
        )


def show_candidates(task: Any) -> None:
    """Show SkyPilot's table of candidates and prices, and its choice."""
    with sky_sdk() as sky:
        with sky.Dag() as dag:
            dag.add(task)
        sky.stream_and_get(sky.optimize(dag), output_stream=sky_output)


def launch_patiently(
    plan: Plan, seconds: float, waits: Callable[[NoMachine, float], None]
) -> tuple[Cluster, int]:
    """Launch as `launch` does, and again for ``seconds`` while no cloud has the machine.

    ``waits`` is called before each wait, with the reason and the seconds left. Ctrl-C during a wait raises
    StoppedWaiting.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return launch(plan)
        except NoMachine as error:
            left = deadline - time.monotonic()
            if not error.later or left < RETRY_SECONDS:
                raise
            waits(error, left)
        try:
            time.sleep(RETRY_SECONDS)
        except KeyboardInterrupt:
            raise StoppedWaiting from None


def launch(plan: Plan) -> tuple[Cluster, int]:
    """Launch, remember the cluster, and return it with the job's number when the job is queued.

    The cluster's earlier jobs are cancelled.
    """
    name, cluster = plan.cluster.name, plan.cluster
    old = store.recall(name)
    store.remember(cluster)  # first, so that the key of a server is never lost
    try:
        with sky_sdk() as sky:
            request = sky.launch(plan.task, cluster_name=name)
            cluster = replace(cluster, request=str(request))
            store.remember(cluster)
            job, handle = sky.stream_and_get(request, output_stream=sky_output)
    except SkyError:
        if old and plan.running:  # the running server keeps its key
            store.remember(old)
        raise
    with sky_sdk() as sky:
        if plan.max_price is not None and not plan.running:
            _keep_to_price(name, handle, plan.max_price)
        older = [each.job_id for each in sky.get(sky.queue(name, skip_finished=True)) if each.job_id < job]
        if older:
            sky.get(sky.cancel(name, job_ids=older))
    if tunnel := cluster.tunnel():
        clusters.write_ssh_alias(name)
        tunnel.close()  # it may lead to an earlier machine
    return cluster, job


def _hourly(name: str, handle: Any) -> float | None:
    """USD an hour by the catalogs here, else by the API server; None if neither has a price."""
    with contextlib.suppress(Exception):
        if found := float(handle.launched_resources.get_cost(3600)):  # 0: no price
            return found
    with contextlib.suppress(Exception):
        return clusters.records([name])[0].hourly or None
    return None


def _keep_to_price(name: str, handle: Any, max_price: float) -> None:
    """Take a new machine down and raise SkyError if it costs more: the API server may have other prices."""
    machine, hourly = handle.launched_resources, _hourly(name, handle)
    cloud = str(machine.cloud).lower()
    what = f"{machine.instance_type or 'a machine'} in {cloud}/{machine.region}"
    if hourly is None and cloud not in infra.OWN:
        output.warn(
            f"SkyPilot has made {what}, and no price of it is known: it may be more than"
            f" ${max_price:.2f} an hour. Look: pixtral-sky status {name}, pixtral-sky plan --clouds {cloud}"
        )
    if hourly is None or hourly <= max_price + CENT:
        return
    clusters.take_down(name)
    raise SkyError(
        f"SkyPilot has made {what}, at ${hourly:.2f} an hour and not ${max_price:.2f}: it was taken down at"
        " once.",
        f"What SkyPilot knows of prices: pixtral-sky plan --clouds {cloud}",
    )


def follow(cluster: Cluster, job: int) -> Iterator[str]:
    """Yield each phase of a job as it begins; end when the server answers a request with the key.

    Raises SkyError with the script's reason when the job ends first.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=500)
    begun: list[str] = []
    runs = False  # until then, the server of an earlier job may still answer
    with sky_sdk(silent=True) as sky:
        _listen(sky, cluster.name, job, lines)
        yield "waiting for the machine"
        deadline = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=POLL_SECONDS / 3)
                if line is not None:
                    # The job's own lines begin with a name and a pid.
                    text, its_own = re.subn(r"^\([^)]*pid=\d+[^)]*\) ", "", plain(line))
                    runs = runs or bool(its_own)
                    said.append(text := shown(text.rstrip()))
                    if text.startswith("== ") and text not in begun:
                        begun.append(text)
                        yield text.removeprefix("== ")
                    continue
                # The end of the log, or a lost connection.
                status = sky.get(sky.job_status(cluster.name, [job]))[job]
                if status is None or status.is_terminal():
                    raise _ended(cluster.name, status, said)
                runs = runs or status is sky.JobStatus.RUNNING
                time.sleep(POLL_SECONDS)
                _listen(sky, cluster.name, job, lines)
            if runs and time.monotonic() > deadline:
                deadline = time.monotonic() + POLL_SECONDS
                cluster = clusters.located(cluster)
                if cluster.url and not problem(cluster):
                    return


def _listen(sky: Any, name: str, job: int, lines: queue.Queue[str | None]) -> None:
    """Put each new line of a job's log into ``lines``, and None at the end."""

    def run() -> None:
        with contextlib.suppress(Exception):
            for line in sky.tail_logs(name, job, follow=True, preload_content=False):
                if line is not None:
                    lines.put(line)
        lines.put(None)

    threading.Thread(target=run, daemon=True).start()


def _ended(name: str, status: Any, said: deque[str]) -> SkyError:
    why = reason(said).removeprefix("pixtral: ").rstrip(".")
    word = status.value if status else "gone"
    return SkyError(f"The job on {name!r} is {word}: {why}.", f"All it said: pixtral-sky logs {name}")


def left(plan: Plan) -> str:
    """A sentence on what a failed launch has left that costs money. If nothing is left, it is forgotten."""
    name = plan.cluster.name
    try:
        there = clusters.record(name)
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky status {name}."
    if there:
        return f"Its machine may cost money until: pixtral-sky down {name}."
    if not plan.running:
        store.forget(name)
    return "Nothing is left that costs money."


def cost(name: str) -> str:
    """The price of its machine and, if known, of its disk, for people."""
    record = None
    with contextlib.suppress(PixtralSkyError):
        record = clusters.record(name)
    if not record or not record.hourly:
        return "nothing that SkyPilot knows of"
    words = f"${record.hourly:.2f} an hour"
    cloud = record.infra.partition("/")[0]
    if record.disk_gb and (price := prices.disk_hourly(cloud, record.disk_gb)):
        words += f", and about ${price:.2f} for its disk of {record.disk_gb} GB"
        words += f" (list price, {prices.DISK_PRICES_OF})"
    return words
