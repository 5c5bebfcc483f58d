"""Clusters on SkyPilot: launched, looked at, followed and taken down.

SkyPilot is called by its SDK (see ``skypilot``).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import itertools
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixtral_sky import output
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import candidates, prices, store, task
from pixtral_sky.deploy.resolve import endpoint_of, tunnel_of
from pixtral_sky.deploy.skypilot import NoMachine, Voice, enabled_by, hide, plain, shown, sky_sdk, voice
from pixtral_sky.deploy.store import Cluster
from pixtral_sky.errors import EndpointError, NoEndpoint, SkyError, UsageError
from pixtral_sky.text import reason

ALIAS_SECONDS = 180.0
RETRY_SECONDS = 60.0  # until it is asked again for a machine that nobody gives
POLL_SECONDS = 3.0  # between two looks at a server that is starting
CENT = 0.005  # USD: prices are shown by the cent, and one of two that look alike is no dearer
CONTROLLERS = ("sky-serve-controller-", "sky-jobs-controller-")  # machines of SkyPilot's own


class StoppedWaiting(KeyboardInterrupt):
    """Ctrl-C between two tries, when nothing is on its way."""


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
    def disk_hourly(self) -> float | None:
        """USD of its disk, which is not in ``hourly``, by list price; None when it is not known."""
        return prices.disk_hourly(self.infra.partition("/")[0], self.disk_gb) if self.disk_gb else None


@dataclass(frozen=True)
class Plan:
    """A launch that can be made."""

    task: Any  # sky.Task
    cluster: Cluster  # what will be remembered of it
    running: Record | None  # what it updates
    max_price: float | None = None  # USD an hour, for the machine
    said: tuple[str, ...] = ()  # what a person is told of its candidates
    warned: tuple[str, ...] = ()


def prepare(
    name: str,
    *,
    file: Path | None,
    envs: Mapping[str, str],
    key: str,
    token: str,
    infra: str | None = None,
    gpus: str | None = None,
    spot: bool | None = None,
    private: bool = False,
    max_price: float | None = None,
) -> Plan:
    """The launch of ``file`` under ``name``, with ``envs`` in place of its own. ``max_price``: USD an hour.

    What is running under that name is updated: on the same infra and GPUs, where no others are given.
    Raises UsageError when it cannot be launched as it is.
    """
    config = task.read(file)
    config["envs"] = {**(config.get("envs") or {}), **envs}
    old = store.recall(name)
    if isinstance(old, store.Rehearsal):
        if old.is_running():
            raise UsageError(
                f"{name!r} is a rehearsal that is running.",
                f"Take another --name, or: pixtral-sky down {name}",
            )
        old = None
    if isinstance(old, store.Service):
        raise UsageError(f"{name!r} is a service.", f"Take another --name, or: pixtral-sky down {name}")
    hide(key, token)
    port = task.number(config["envs"], "PORT", 8081)
    if "PORT" in config["envs"]:  # it may be empty, and the script takes it as it is
        config["envs"]["PORT"] = port
    with sky_sdk() as sky:
        running = _find(sky, name)
        if running and not running.ours and not isinstance(old, Cluster):
            raise UsageError(f"{name!r} is a cluster with something else on it.", "Take another --name")
        if running and max_price is not None:
            _check_price(running, max_price)
        infra = infra or (running.infra if running else None)
        gpus = gpus or (running.gpus if running else None)
        secrets = {"PIXTRAL_API_KEY": key} | ({"HF_TOKEN": token} if token else {})
        private = private or (isinstance(old, Cluster) and old.private)

        def made(**resources: Any) -> Any:
            return made_task(sky, config, secrets, infra=infra, gpus=gpus, spot=spot, **resources)

        anywhere = made(ports=None).resources
        enabled = enabled_for(sky, anywhere)
        private = private or not any(
            map(candidates.opens_ports, candidates.per_cloud(sky, anywhere, enabled))
        )
        if private:
            if not shutil.which("ssh"):
                raise UsageError("The way to it is ssh, and there is none here.", "Install OpenSSH's client.")
            config["envs"]["LISTEN"] = "127.0.0.1"
        elif str(config["envs"].get("LISTEN") or "").startswith("127."):
            raise UsageError("LISTEN=127.0.0.1 wants no open port.", "Add --private")
        the_task = made(ports=None if private else port)
        chosen = candidates.Chosen(list(the_task.resources))
        if not (running and running.infra):  # a machine that is there stays as it is
            chosen = candidates.choose(sky, the_task.resources, enabled, max_price)
            the_task.set_resources(type(the_task.resources)(chosen.resources))
    url = ""  # SkyPilot tells: the address of before may be another's by now
    if private:
        near = isinstance(old, Cluster) and old.private
        url = old.url if old and near else f"http://127.0.0.1:{store.free_port()}"
    cluster = Cluster(
        name=name,
        url=url,
        key=key,
        max_model_len=task.number(config["envs"], "MAX_MODEL_LEN", -1),
        max_images=task.number(config["envs"], "MAX_IMAGES", 4),
        created=time.time(),
        port=port,
        private=private,
        request=old.request if isinstance(old, Cluster) else "",
    )
    return Plan(the_task, cluster, running, max_price, chosen.said, chosen.warned)


def enabled_for(sky: Any, resources: Any) -> list[str]:
    """What SkyPilot can launch on, where the resources leave that open."""
    from sky import exceptions

    if all(each.cloud for each in resources):
        return []
    if not (found := enabled_by(sky)):
        raise exceptions.NoCloudAccessError
    return found


def _check_price(running: Record, max_price: float) -> None:
    """Raises UsageError when what runs costs more: an update does not change the machine."""
    if running.hourly is not None and running.hourly > max_price + CENT:
        raise UsageError(
            f"{running.name!r} is there already, at ${running.hourly:.2f} an hour, not ${max_price:.2f}.",
            f"Take it down first: pixtral-sky down {running.name}",
        )


def made_task(
    sky: Any,
    config: Mapping[str, Any],
    secrets: Mapping[str, str],
    *,
    infra: str | None,
    gpus: str | None,
    spot: bool | None,
    **resources: Any,
) -> Any:
    """SkyPilot's task of a file as data, with these in place of its own, as `sky launch` has it."""
    from sky.utils.infra_utils import InfraInfo

    if infra:
        # In parts, as `sky launch` does it: beside an `infra` in the file, SkyPilot takes no other one.
        place = InfraInfo.from_str(infra)
        resources["cloud"] = sky.CLOUD_REGISTRY.from_str(place.cloud)
        resources |= {"region": place.region, "zone": place.zone}
    if gpus:
        resources["accelerators"] = gpus
    if spot is not None:
        resources["use_spot"] = spot
    # It takes its dictionary apart.
    made = sky.Task.from_yaml_config(copy.deepcopy(dict(config)), secrets_overrides=list(secrets.items()))
    made.set_resources_override(resources)
    # With --gpus all its candidates become the same one.
    unlike = {repr(each): each for each in made.resources}.values()
    return made.set_resources(type(made.resources)(unlike))


def show_candidates(task: Any) -> None:
    """SkyPilot's own table of what it could launch on, with prices, and what it would choose."""
    with sky_sdk() as sky:
        with sky.Dag() as dag:
            dag.add(task)
        sky.stream_and_get(sky.optimize(dag), output_stream=voice)


# Launching -------------------------------------------------------------------------------------------------


def launch_patiently(
    plan: Plan, seconds: float, waits: Callable[[NoMachine, float], None]
) -> tuple[Cluster, int]:
    """Launch it as `launch` does; while nobody gives the machine, again and again for so long.

    ``waits`` is told why, and what is left of the time, before each wait. SkyPilot has no request meanwhile.
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
    """Launch it, and remember it; returns when its job is queued, with the job's number.

    What ran before under that name is cancelled then.
    """
    name, cluster = plan.cluster.name, plan.cluster
    old = store.recall(name)
    store.remember(cluster)  # the key, before anything is locked with it
    try:
        with sky_sdk() as sky:
            request = sky.launch(plan.task, cluster_name=name)
            cluster = replace(cluster, request=str(request))
            store.remember(cluster)
            job, handle = sky.stream_and_get(request, output_stream=voice)
            hourly = _hourly(sky, name, handle) if plan.max_price is not None and not plan.running else None
    except SkyError:
        if old and plan.running:  # what runs there goes on, with its own key
            store.remember(old)
        raise
    if plan.max_price is not None and not plan.running:
        _keep_to_price(name, handle, hourly, plan.max_price)
    with sky_sdk() as sky:
        older = [each.job_id for each in sky.get(sky.queue(name, skip_finished=True)) if each.job_id < job]
        if older:
            sky.get(sky.cancel(name, job_ids=older))
    if tunnel := tunnel_of(cluster):
        write_ssh_alias(name)
        tunnel.close()  # the way to the machine of before
    return cluster, job


def _hourly(sky: Any, name: str, handle: Any) -> float | None:
    """USD an hour, by the catalogs that are here, or else by the server's; None where neither says it."""
    with contextlib.suppress(Exception):
        if found := float(handle.launched_resources.get_cost(3600)):  # 0: the catalog has no price
            return found
    with contextlib.suppress(Exception):
        return _records(sky, [name])[0].hourly or None
    return None


def _keep_to_price(name: str, handle: Any, hourly: float | None, max_price: float) -> None:
    """Take a new machine down, and raise SkyError, when it costs more: SkyPilot's server has other prices."""
    machine = handle.launched_resources
    cloud = str(machine.cloud).lower()
    what = f"{machine.instance_type or 'a machine'} in {cloud}/{machine.region}"
    if hourly is None and cloud not in prices.OWN:
        output.warn(
            f"SkyPilot has made {what}, and no price of it is known: it may be more than"
            f" ${max_price:.2f} an hour. Look: pixtral-sky status {name}, pixtral-sky plan --clouds {cloud}"
        )
    if hourly is None or hourly <= max_price + CENT:
        return
    down(name)
    raise SkyError(
        f"SkyPilot has made {what}, at ${hourly:.2f} an hour and not ${max_price:.2f}: it was taken down at"
        " once.",
        f"What SkyPilot knows of prices: pixtral-sky plan --clouds {cloud}",
    )


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


def follow(cluster: Cluster, job: int) -> Iterator[str]:
    """Names each phase of a job as it begins, and ends when the server answers a request with the key.

    Raises SkyError with the script's own reason when the job ends before.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=500)
    begun: list[str] = []
    runs = False
    with sky_sdk(silent=True) as sky:
        _listen(sky, cluster.name, job, lines)
        yield "waiting for the machine"
        deadline = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=POLL_SECONDS / 3)
                if line is not None:
                    # What the job itself says begins with a name and a pid.
                    text, its_own = re.subn(r"^\([^)]*pid=\d+[^)]*\) ", "", plain(line))
                    runs = runs or bool(its_own)
                    said.append(text := shown(text.rstrip()))
                    if text.startswith("== ") and text not in begun:
                        begun.append(text)
                        yield text.removeprefix("== ")
                    continue
                # The log has ended, or the connection to it.
                status = sky.get(sky.job_status(cluster.name, [job]))[job]
                if status is None or status.is_terminal():
                    raise _ended(cluster.name, status, said)
                runs = runs or status is sky.JobStatus.RUNNING
                time.sleep(POLL_SECONDS)
                _listen(sky, cluster.name, job, lines)
            if runs and time.monotonic() > deadline:
                deadline = time.monotonic() + POLL_SECONDS
                cluster = located(cluster)
                if cluster.url and not problem(cluster):
                    return


def _listen(sky: Any, name: str, job: int, lines: queue.Queue[str | None]) -> None:
    """Put the lines of a job's log into ``lines`` as they come, and None when there are no more."""

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


def located(cluster: Cluster) -> Cluster:
    """The cluster with the URL that SkyPilot knows for it, remembered; without one while there is none."""
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


def problem(deployment: store.Deployment) -> str:
    """Why it does not answer a request with its key; empty when it does."""
    try:
        return problem_at(endpoint_of(deployment))
    except NoEndpoint as error:
        return error.what


def problem_at(endpoint: Endpoint) -> str:
    """The same of an endpoint."""
    try:
        reach(endpoint)
    except (EndpointError, NoEndpoint) as error:
        return error.what
    return ""


def reach(endpoint: Endpoint) -> None:
    """Ask it once, with its key. Raises EndpointError, or NoEndpoint."""
    from pixtral_sky.client.client import Client

    with Client(endpoint, budget=0, read_timeout=10) as client:
        client.models()


# Looking ---------------------------------------------------------------------------------------------------


def records(names: list[str] | None = None) -> list[Record]:
    """The clusters of those names that SkyPilot has, or all of them, as they are now."""
    with sky_sdk(silent=True) as sky:
        return _records(sky, names)


def _find(sky: Any, name: str) -> Record | None:
    found = _records(sky, [name])
    return found[0] if found else None


def _records(sky: Any, names: list[str] | None, all_users: bool = False) -> list[Record]:
    # AUTO: those that can end by themselves (spot, autostop) are looked up at their cloud.
    answer = sky.get(sky.status(names, refresh=sky.StatusRefreshMode.AUTO, all_users=all_users))
    costs: dict[str | None, Any] = {}
    if answer:
        with contextlib.suppress(Exception):  # what runs is shown without its price too
            costs = {each.get("cluster_hash"): each for each in sky.get(sky.cost_report())}
    return [_record(each, costs.get(each.cluster_hash, {})) for each in answer]


def _record(status: Any, cost: Mapping[str, Any]) -> Record:
    import yaml

    resources = getattr(status.handle, "launched_resources", None)
    spent, seconds = cost.get("total_cost"), cost.get("duration")
    made_by = yaml.safe_load(status.last_creation_yaml or "")
    made_by = made_by if isinstance(made_by, dict) else {}
    envs = made_by.get("envs")
    cloud, region = (status.cloud or "").lower(), status.region or ""
    accelerators = ast.literal_eval(status.accelerators) if status.accelerators else None
    return Record(
        name=status.name,
        status=status.status.value,
        reason=" ".join(shown(plain(status.init_status_reason or "")).split())[:300],
        # A pool of ssh machines is the context ssh-POOL inside of SkyPilot.
        infra="/".join(filter(None, [cloud, region.removeprefix("ssh-") if cloud == "ssh" else region])),
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
        ours="PIXTRAL_API_KEY" in (made_by.get("secrets") or {}),
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
    """The cluster of that name, with its endpoint where it has one; None when SkyPilot has none of ours.

    One that was not launched from here is remembered from now on. ``key`` is for one whose key is not known.
    """
    cluster = store.recall(name)
    if not isinstance(cluster, Cluster):
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
    cluster = Cluster(
        name=record.name,
        url=f"http://127.0.0.1:{store.free_port()}" if private else "",
        key=key,
        max_model_len=task.number(record.envs, "MAX_MODEL_LEN", -1),
        max_images=task.number(record.envs, "MAX_IMAGES", 4),
        created=record.launched,
        port=task.number(record.envs, "PORT", 8081),
        private=private,
        request="",
    )
    store.remember(cluster)
    if private:
        write_ssh_alias(record.name)
    return cluster


def logs(name: str, *, follow: bool, lines: int) -> None:
    """Write the last ``lines`` (0: all) of the last job's log to stdout; of the launch, while it lasts."""
    out = Voice(sys.stdout)
    if isinstance(one := store.recall(name), Cluster):
        hide(one.key)
    with sky_sdk() as sky:
        record = _find(sky, name)
        if not record:
            raise NoEndpoint(f"SkyPilot has no cluster {name!r}.", "What there is: pixtral-sky status")
        if record.status == "INIT":
            from sky.client import sdk

            sdk.tail_provision_logs(name, follow=follow, tail=lines, output_stream=out)
        else:
            sky.tail_logs(name, None, follow=follow, tail=lines, output_stream=out)


# Taking down -----------------------------------------------------------------------------------------------


def down(name: str, request: str = "") -> bool:
    """Take a cluster down, and return when SkyPilot and its cloud have it no longer.

    ``request`` is a launch that may still be on its way. Returns whether there was anything to take down.
    Raises SkyError when it may still be there.
    """
    with sky_sdk() as sky:
        from sky import exceptions

        cancelled = bool(request) and cancel(sky, request)
        try:
            sky.stream_and_get(sky.down(name), output_stream=voice)
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
        return _records(sky, [f"{name}*" for name in CONTROLLERS], all_users=True)


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
