"""A fake SkyPilot API server in this process, in place of the network.

Requests and answers are those of the real SDK: a ``sky.Task`` is dumped to YAML and loaded again, as the server
does, and each answer and error passes SkyPilot's own encoders and decoders. Only the clouds are simulated.

    server.cluster("pixtral", gpus={"L4": 2})          # a cluster that exists
    server.script = [*SETUP, run("== starting the server")]   # the log of the next job
    server.serve.service("pixtral", {1: "READY", 2: "STARTING"})   # a service that exists
    server.serve.course = [{1: "STARTING"}, {1: "READY"}]      # the states of the next service, a step per `status`
"""

from __future__ import annotations

import contextlib
import contextvars
import fnmatch
import functools
import io
import json
import os
import re
import sqlite3
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from pixtral_sky.deploy import clusters, launch, serve, services
from pixtral_sky.deploy import skypilot as sdk
from pixtral_sky.deploy.tunnel import Tunnel

PRICES = {"L4:2": 1.4, "L4:4": 4.6, "A10G:4": 5.67, "L40S:1": 1.86, "A100:1": 3.67, "H100:1": 2.99}
MACHINES = {"L4:2": "g2-standard-24", "A100:1": "a2-highgpu-1g", "H100:1": "a3-highgpu-1g"}
_COMMAND = functools.cache(typer.main.get_command)
_INSTALLED = functools.cache(sdk.installed)
CYAN, DIM, RED, RESET = "\x1b[36m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


def setup(text: str) -> str:
    """A line of the setup script, as SkyPilot sends it."""
    return f"{CYAN}(setup pid=2302){RESET} {text}\n"


def run(text: str) -> str:
    """A line of the run script, as SkyPilot sends it."""
    return f"{CYAN}(pixtral, pid=4800){RESET} {text}\n"


WAITING = f"{DIM}├── {RESET}{DIM}Waiting for task resources on 1 node.{RESET}\n"
SETUP = [WAITING, setup("== installing vLLM"), setup("== downloading mistralai/Pixtral-12B-2409")]
STARTING = run("== starting the server")


@dataclass
class Job:
    """``script``: lines of its log, exceptions that a reader gets once, and functions that are called once."""

    number: int
    script: list[Any]
    status: Any
    past: set[int] = field(default_factory=set)

    def lines(self, closed: threading.Event) -> Iterator[str]:
        for place, step in enumerate(self.script):
            if isinstance(step, str):
                yield step
            elif place not in self.past:
                self.past.add(place)
                if isinstance(step, BaseException):
                    raise step
                step(self)
        while not self.status.is_terminal() and not closed.wait(0.02):
            pass


@dataclass
class Machine:
    """A cluster of the server."""

    name: str
    status: Any
    resources: Any  # sky.Resources; None while unknown
    yaml: str | None
    endpoints: dict[int, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    hourly: float | None = 1.4  # None: not in the cost report
    seconds: int = 1800
    reason: str | None = None
    command: str | None = None
    mine: bool = True  # False: shown only with all_users
    hash: str = field(default_factory=lambda: str(uuid.uuid4()))


class FakeSky:
    """See the module. ``calls``: the name and the arguments of every request, in order.

    Every function raises ``down_with``. The answer to a request raises its entry in ``errors``; of a list, each
    once.
    """

    def __init__(self, sky: Any) -> None:
        from sky.server.requests import requests

        self.sky, self.wire = sky, requests
        self.machines: dict[str, Machine] = {}
        self.calls: list[tuple[str, Any]] = []
        self.down_with: Exception | None = None
        self.errors: dict[str, Any] = {}
        self.clouds = ["AWS"]
        self.check_says = ""  # the text of `check`, which enables nothing
        self.own_gpus: list[tuple[str, list[int], int, int]] = []  # name, counts, all, free
        self.script: list[Any] = [*SETUP, STARTING]
        self.endpoints: dict[int, str] = {}  # of the machines that are launched
        self.provision_log = ["Launching on AWS us-east-1.\n", "Waiting for ssh.\n"]
        self.during_launch: Callable[[str], None] = lambda name: None
        self.stays = False  # `down` does nothing
        self.lands: dict[str, Any] = {}  # how a launched machine differs from the requested one
        self.real: dict[str, Callable[..., Any]] = {}  # the functions that it replaces
        self.aliases: list[str] = []
        self.tunnels: list[tuple[str, str, int, int]] = []
        self.tasks: list[Any] = []  # as they came in
        self._requests: dict[str, Any] = {}
        self._bodies: dict[str, Callable[[io.TextIOBase], Any]] = {}
        self.closed = threading.Event()
        self.serve = FakeServe(self)

    # For tests --------------------------------------------------------------------------------------------

    def cluster(
        self,
        name: str = "pixtral",
        *,
        infra: str | None = "aws/us-east-1",
        gpus: dict[str, int] | None = None,
        ports: list[str] | None = None,
        spot: bool = False,
        status: str = "UP",
        job: str | None = "RUNNING",
        secrets: dict[str, str | None] | None = None,
        envs: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Machine:
        """Add a running cluster."""
        import yaml

        resources = self.sky.Resources(
            infra=infra, accelerators=gpus or {"L4": 2}, ports=ports, use_spot=spot or None
        )
        made_by = {
            "name": "pixtral",
            "envs": {"PORT": 8081, "MAX_IMAGES": 4, "MAX_MODEL_LEN": 32768, **(envs or {})},
            "secrets": {"PIXTRAL_API_KEY": "<redacted>", "HF_TOKEN": "<redacted>"}
            if secrets is None
            else secrets,
        }
        fields.setdefault("yaml", yaml.safe_dump(made_by))
        fields.setdefault("resources", resources)
        machine = Machine(name, self.sky.ClusterStatus(status), **fields)
        if job:
            machine.jobs.append(Job(1, [STARTING], self.sky.JobStatus(job)))
        self.machines[name] = machine
        return machine

    def pending(self, status: str = "RUNNING", name: str = "pixtral") -> str:
        """The id of a new launch with this status."""
        request = self._request("launch", name, lambda _: None, later=True)
        self._requests[request].status = self.wire.RequestStatus(status)
        self.calls.clear()
        return str(request)

    def asked(self, name: str) -> list[Any]:
        """The arguments of all requests with this name."""
        return [body for each, body in self.calls if each == name]

    def requests(self, name: str) -> list[str]:
        """The ids of all requests with this name."""
        return [each.request_id for each in self._requests.values() if each.name == f"sky.{name}"]

    def ends(self, status: str) -> Callable[[Job], None]:
        """A step of a script, which sets the job's status."""

        def step(job: Job) -> None:
            job.status = self.sky.JobStatus(status)

        return step

    # The SDK ----------------------------------------------------------------------------------------------

    def launch(self, task: Any, cluster_name: str | None = None, **_: Any) -> Any:
        import click
        from sky.utils import dag_utils

        self._up("launch", cluster_name)
        click.secho("Running on cluster: ", fg="cyan", nl=False)  # to stdout
        click.secho(cluster_name)
        dag = dag_utils.convert_entrypoint_to_dag(task)
        text = dag_utils.dump_dag_to_yaml_str(dag)
        assert cluster_name
        return self._request(
            "launch", cluster_name, lambda out: self._launch(text, cluster_name, out), later=True
        )

    def _launch(self, text: str, name: str, out: io.TextIOBase) -> Any:
        from sky.utils import dag_utils, yaml_utils

        (task,) = dag_utils.load_chain_dag_from_yaml_str(text).tasks
        self.tasks.append(task)
        machine = self.machines.get(name)
        self.during_launch(name)
        if not machine:
            chosen = self._optimize(task, out)
            cloud = str(chosen.cloud or self.clouds[0].partition("/")[0]).lower()
            place = chosen.region or {"aws": "us-east-1", "slurm": "lab"}.get(cloud, "here")
            price = self._price(chosen)
            there = chosen.copy(
                **{"cloud": self.sky.CLOUD_REGISTRY.from_str(cloud), "region": place, **self.lands}
            )
            machine = Machine(name, None, there, None, hourly=price)
            self.machines[name] = machine
        elif not any(each.less_demanding_than(machine.resources) for each in task.resources):
            raise self.sky.exceptions.ResourcesMismatchError(
                f"Requested resources do not match the existing cluster.\n  Requested:\t{task.resources}\n"
            )
        machine.yaml = yaml_utils.dump_yaml_str(task.to_yaml_config(use_user_specified_yaml=True))
        machine.status = self.sky.ClusterStatus.UP
        machine.endpoints = self.endpoints
        job = Job(len(machine.jobs) + 1, list(self.script), self.sky.JobStatus.RUNNING)
        machine.jobs.append(job)
        out.write(f"⚙︎ Launching on {machine.resources.infra.to_str()}.\n")
        out.write(f"{CYAN}⚙︎ Job submitted, ID: {job.number}{RESET}\n")
        return job.number, self._handle(machine)

    def optimize(self, dag: Any, *_: Any, **__: Any) -> Any:
        (task,) = dag.tasks
        return self._request("optimize", None, lambda out: self._optimize(task, out) and None)

    def _optimize(self, task: Any, out: io.TextIOBase) -> Any:
        if not self.clouds:
            raise self.sky.exceptions.NoCloudAccessError("No enabled cloud for task: pixtral")
        out.write(f"{CYAN}Considered resources (1 node):{RESET}\n INFRA   GPU   COST ($)   CHOSEN\n")
        found = sorted(task.resources, key=lambda each: self._price(each) or 99)
        for each in found:
            ((gpu, count),) = each.accelerators.items()
            out.write(
                f" {self.clouds[0]}   {gpu}:{count}   {self._price(each)}   {'✔' * (each is found[0])}\n"
            )
        return found[0]

    def status(
        self, cluster_names: list[str] | None = None, refresh: Any = None, all_users: bool = False
    ) -> Any:
        asked = {"names": cluster_names, "refresh": refresh and refresh.value}
        return self._request("status", asked, lambda _: self._status(cluster_names, all_users))

    def _status(self, names: list[str] | None, all_users: bool) -> list[Any]:
        from sky.schemas.api.responses import StatusResponse

        found = [
            each
            for each in self.machines.values()
            if (each.mine or all_users)
            and (names is None or any(fnmatch.fnmatchcase(each.name, name) for name in names))
        ]
        return [
            StatusResponse(
                name=each.name,
                launched_at=int(time.time()) - each.seconds,
                handle=self._handle(each),
                status=each.status,
                autostop=5,
                to_down=True,
                cluster_hash=each.hash,
                cluster_ever_up=True,
                user_hash="abcd1234",
                user_name="me",
                workspace="default",
                last_creation_yaml=each.yaml,
                last_creation_command=each.command,
                is_managed=False,
                init_status_reason=each.reason,
                nodes=1,
                # As backend_utils.get_clusters() fills them in.
                cloud=str(each.resources.cloud) if each.resources else None,
                region=each.resources.region if each.resources else None,
                accelerators=str(each.resources.accelerators or "") or None if each.resources else None,
            )
            for each in found
        ]

    def cost_report(self, days: int | None = None) -> Any:
        return self._request("cost_report", days, lambda _: self._costs())

    def _costs(self) -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "status": each.status,
                "cluster_hash": each.hash,
                "duration": each.seconds,
                "num_nodes": 1,
                "resources": each.resources,
                "total_cost": each.hourly * each.seconds / 3600,
            }
            for each in self.machines.values()
            if each.hourly is not None
        ]

    def endpoints_of(self, cluster: str, port: int | str | None = None) -> Any:
        def body(_: object) -> dict[int, str]:
            if cluster not in self.machines:  # unlike all the others
                raise self.sky.exceptions.ClusterNotUpError(f"Cluster {cluster!r} not found.")
            machine = self._up_or_raise(cluster)
            return {number: url for number, url in machine.endpoints.items() if port in (None, number)}

        return self._request("endpoints", (cluster, port), body)

    def queue(self, cluster_name: str, skip_finished: bool = False, all_users: bool = False) -> Any:
        from sky.schemas.api.responses import ClusterJobRecord

        def body(_: object) -> list[Any]:
            return [
                ClusterJobRecord(
                    job_id=each.number,
                    job_name="pixtral",
                    username="me",
                    user_hash="abcd1234",
                    submitted_at=time.time(),
                    resources="1x[L4:2]",
                    status=each.status,
                    log_path="~/sky_logs",
                )
                for each in self._up_or_raise(cluster_name).jobs
                if not (skip_finished and each.status.is_terminal())
            ]

        return self._request("queue", cluster_name, body)

    def cancel(self, cluster_name: str, *, job_ids: list[int]) -> Any:
        def body(_: object) -> None:
            for each in self._up_or_raise(cluster_name).jobs:
                if each.number in job_ids:
                    each.status = self.sky.JobStatus.CANCELLED

        return self._request("cancel", (cluster_name, job_ids), body)

    def job_status(self, cluster_name: str, job_ids: list[int] | None = None) -> Any:
        def body(_: object) -> dict[int | None, Any]:
            jobs = self._up_or_raise(cluster_name).jobs
            if job_ids is None:  # SkyPilot's encoders do not get over the second one
                return {jobs[-1].number: jobs[-1].status} if jobs else {None: None}
            known = {each.number: each.status for each in jobs}
            return {number: known.get(number) for number in job_ids}

        return self._request("job_status", (cluster_name, job_ids), body)

    def tail_logs(
        self,
        cluster_name: str,
        job_id: int | None,
        follow: bool,
        tail: int = 0,
        output_stream: Any = None,
        *,
        preload_content: bool = True,
    ) -> Any:
        assert not (output_stream and not preload_content)
        self._up("logs", (cluster_name, job_id, follow, tail))
        if not preload_content and cluster_name not in self.machines:
            return iter(())  # as it does: the error is the request's, which nobody asks
        jobs = self._up_or_raise(cluster_name).jobs
        job = next((each for each in reversed(jobs) if job_id in (None, each.number)), None)
        if not job:
            lines: Iterator[str] = iter(())
        elif follow:
            lines = job.lines(self.closed)
        else:
            lines = iter([step for step in job.script if isinstance(step, str)][-tail:])
        if not preload_content:
            return (each for each in lines)
        for line in lines:
            print(line, end="", flush=True, file=output_stream)
        return 0

    def tail_provision_logs(
        self,
        cluster_name: str,
        worker: Any = None,
        follow: bool = True,
        tail: int = 0,
        output_stream: Any = None,
    ) -> int:
        self._up("provision_logs", (cluster_name, follow, tail))
        for line in self.provision_log[-tail:]:
            print(line, end="", file=output_stream)
        return 0

    def down(self, cluster_name: str, **_: Any) -> Any:
        def body(out: io.TextIOBase) -> None:
            if cluster_name not in self.machines:
                raise self.sky.exceptions.ClusterDoesNotExist(f"Cluster {cluster_name!r} does not exist.")
            out.write(f"Terminating cluster {cluster_name}...done.\n")
            if not self.stays:
                del self.machines[cluster_name]

        return self._request("down", cluster_name, body)

    def list_accelerators(
        self,
        gpus_only: bool = True,
        name_filter: str = "",
        region_filter: str = "",
        quantity_filter: int | None = None,
        clouds: str | None = None,
    ) -> Any:
        from sky.catalog.common import InstanceTypeInfo

        def body(_: object) -> dict[str, list[Any]]:
            found: dict[str, list[Any]] = {}
            for gpus, price in PRICES.items():
                gpu, _, count = gpus.partition(":")
                if re.search(name_filter, gpu) and quantity_filter == int(count):
                    machine = MACHINES.get(gpus)
                    there = region_filter.strip("^$")
                    offer = (clouds, machine, gpu, float(count), 24.0, 24.0, 96.0, price, price / 2, there)
                    dear = (clouds, "g2-standard-96", gpu, float(count), 96.0, 24.0, 384.0, 99.0, None, there)
                    found[gpu] = [InstanceTypeInfo(*each) for each in (offer, dear)]
            return found

        return self._request("list_accelerators", (name_filter, region_filter, clouds), body)

    def enabled_clouds(self, workspace: str | None = None, expand: bool = False) -> Any:
        return self._request("enabled_clouds", expand, lambda _: [*self.clouds])

    def check(self, infra_list: Any, verbose: bool, workspace: str | None = None) -> Any:
        def body(out: io.TextIOBase) -> dict[str, Any]:
            out.write("Checking credentials to enable infra for SkyPilot.\n")
            out.write(self.check_says)
            return {}

        return self._request("check", infra_list, body)

    def realtime_slurm_gpu_availability(
        self,
        name_filter: str | None = None,
        quantity_filter: int | None = None,
        slurm_cluster_name: str | None = None,
    ) -> Any:
        def body(_: object) -> list[Any]:
            return [("there", self._gpus(), None), ("broken", [], "sinfo has failed")]

        return self._request("realtime_slurm_gpu_availability", slurm_cluster_name, body)

    def realtime_kubernetes_gpu_availability(
        self,
        context: str | None = None,
        name_filter: str | None = None,
        quantity_filter: int | None = None,
        is_ssh: bool | None = None,
    ) -> Any:
        return self._request(
            "realtime_kubernetes_gpu_availability", (context, is_ssh), lambda _: [("there", self._gpus())]
        )

    def _gpus(self) -> list[Any]:
        from sky.models import RealtimeGpuAvailability

        return [RealtimeGpuAvailability(*each) for each in self.own_gpus]

    def api_info(self) -> Any:
        from sky.schemas.api.responses import APIHealthResponse
        from sky.server.common import ApiServerStatus

        self._up("api_info")
        return APIHealthResponse(status=ApiServerStatus.HEALTHY, version="0.14.1")

    def api_status(self, request_ids: list[str] | None = None, **_: Any) -> list[Any]:
        from sky.server.requests.payloads import RequestPayload

        self._up("api_status", request_ids)
        return [
            RequestPayload(
                request_id=each.request_id,
                name=each.name,
                entrypoint="",
                request_body="null",
                status=each.status.value,
                created_at=each.created_at,
                user_id=each.user_id,
                return_value="null",
                error="null",
                pid=None,
                schedule_type=each.schedule_type.value,
            )
            for each in self._requests.values()
            if request_ids is None or any(each.request_id.startswith(prefix) for prefix in request_ids)
        ]

    def api_cancel(self, request_ids: Any = None, all_users: bool = False, silent: bool = False) -> Any:
        def body(_: object) -> list[str]:
            ended = []
            for each in request_ids:
                if self._requests[each].status in self.wire.RequestStatus.active_statuses():
                    self._requests[each].status = self.wire.RequestStatus.CANCELLED
                    ended.append(each)
            return ended

        return self._request("api_cancel", request_ids, body)

    def get(self, request_id: str) -> Any:
        return self._answer(request_id, io.StringIO())

    def stream_and_get(self, request_id: str, *_: Any, output_stream: Any = None, **__: Any) -> Any:
        assert output_stream, "it would print to stdout"
        return self._answer(request_id, output_stream)

    # How it does it ---------------------------------------------------------------------------------------

    def _up(self, name: str, body: Any = None) -> None:
        self.calls.append((name, body))
        if self.down_with:
            raise self.down_with

    def _request(
        self, name: str, asked: Any, body: Callable[[io.TextIOBase], Any], later: bool = False
    ) -> Any:
        from sky.server.common import RequestId
        from sky.server.requests.payloads import RequestBody

        if name != "launch":
            self._up(name, asked)
        request = self.wire.Request(
            request_id=str(uuid.uuid4()),
            name=f"sky.{name}",
            entrypoint=len,
            request_body=RequestBody(),
            status=self.wire.RequestStatus.RUNNING,
            created_at=time.time(),
            user_id="abcd1234",
        )
        self._requests[request.request_id] = request
        self._bodies[request.request_id] = body
        return RequestId(request.request_id)

    def _answer(self, request_id: str, out: io.TextIOBase) -> Any:
        assert isinstance(request_id, str), request_id
        request = self._requests[request_id]
        body = self._bodies.pop(request_id, None)
        if body and request.status is self.wire.RequestStatus.RUNNING:
            try:
                error = self.errors.get(request.name.removeprefix("sky."))
                if isinstance(error, list):
                    error = error.pop(0) if error else None
                if error:
                    raise error
                request.set_return_value(body(out))
                request.status = self.wire.RequestStatus.SUCCEEDED
            except Exception as error:
                request.set_error(error)
                request.status = self.wire.RequestStatus.FAILED
        got = self.wire.Request.decode(contextvars.copy_context().run(self._encoded, request))
        if error := got.get_error():
            raise error["object"]
        if got.status is self.wire.RequestStatus.CANCELLED:
            raise self.sky.exceptions.RequestCancelled("Current 'launch' request is cancelled.")
        return got.get_return_value()

    @staticmethod
    def _encoded(request: Any) -> Any:
        from sky.server import constants, versions

        versions.set_remote_api_version(constants.API_VERSION)  # of the client: it gets less than it could
        return request.encode()

    def _handle(self, machine: Machine) -> Any:
        from sky.backends import CloudVmRayResourceHandle

        if not machine.resources:
            return None
        return CloudVmRayResourceHandle(
            cluster_name=machine.name,
            cluster_name_on_cloud=f"{machine.name}-abcd1234",
            cluster_yaml=None,
            launched_nodes=1,
            launched_resources=machine.resources,
        )

    def _up_or_raise(self, name: str) -> Machine:
        """As backend_utils.check_cluster_available() has it."""
        if name not in self.machines:
            raise self.sky.exceptions.ClusterDoesNotExist(f"Cluster {name!r} does not exist.")
        machine = self.machines[name]
        if machine.status.value not in ("UP", "AUTOSTOPPING"):
            raise self.sky.exceptions.ClusterNotUpError(
                f"Cluster {name!r} (status: {machine.status.value}) is not UP.\nStart it: sky start {name}",
                cluster_status=machine.status,
            )
        return machine

    @staticmethod
    def _price(resources: Any) -> float | None:
        ((gpu, count),) = resources.accelerators.items()
        return PRICES.get(f"{gpu}:{count:g}")


@dataclass
class Replica:
    """A replica of the controller: SkyServe's own ``ReplicaInfo``, and the machine."""

    info: Any
    resources: Any  # sky.Resources
    launched: float
    url: str | None
    progress: str | None = None  # of its launch


@dataclass
class Service:
    """A service of the controller."""

    name: str
    tasks: dict[int, str]  # the YAML of each version
    balancer: str | None  # host:port
    status: str | None = None  # None: as the prober sets it
    target: int | None = 2
    replicas: dict[int, Replica] = field(default_factory=dict)
    # One step per `status`: {replica: its state; None removes it}, or a function.
    course: list[Any] = field(default_factory=list)
    mode: Any = None
    first_ready: int | None = None
    logs: dict[str, list[str]] = field(default_factory=dict)  # of controller, load_balancer, replica-1...

    @property
    def version(self) -> int:
        return max(self.tasks)


class FakeServe:
    """SkyServe's part of the SDK; SkyServe's own functions make records and replicas.

    ``course``: the steps of the next service that is brought up; ``update_course``: of the next update.
    """

    def __init__(self, server: FakeSky) -> None:
        self.server = server
        self.services: dict[str, Service] = {}
        self.balancer: str | None = "127.0.0.1:9"
        self.course: list[Any] = []
        self.update_course: list[Any] = []
        self.during_up: Callable[[str], None] = lambda name: None
        self.leaves = ""  # the state that `down` leaves it in, in place of taking it down
        self.real: dict[str, Callable[..., Any]] = {}

    # For tests

    def controller(self, status: str = "UP", **fields: Any) -> Machine:
        """SkyServe's machine, which is added if there is none."""
        name = "sky-serve-controller-abcd1234"
        if name not in self.server.machines:
            sky = self.server.sky
            fields = {"resources": sky.Resources(infra="aws/us-east-1", cpus="4+"), **fields}
            fields = {"yaml": None, "hourly": 0.38, "mine": False, **fields}
            self.server.machines[name] = Machine(name, sky.ClusterStatus(status), **fields)
        return self.server.machines[name]

    def service(
        self,
        name: str = "pixtral",
        replicas: dict[int, str] | None = None,
        *,
        file: Path | None = None,
        secrets: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Service:
        """Add a running service."""
        from pixtral_sky.deploy import task

        made_of = json.dumps(config) if config else (file or task.shipped("service.yaml")).read_text()
        given = {"PIXTRAL_API_KEY": "unknown-here", "HF_TOKEN": ""} if secrets is None else secrets
        self.controller()
        text = _task_text(made_of, tuple(given.items()))
        self.services[name] = Service(name, {1: text}, **{"balancer": self.balancer, **fields})
        self.moves(self.services[name], replicas or {})
        return self.services[name]

    def moves(self, service: Service, step: Any) -> None:
        """Apply a step of a course."""
        if callable(step):
            step(service)
            return
        for number, status in step.items():
            if status is None:
                del service.replicas[number]
                continue
            replica = service.replicas.get(number) or self.replica(service, number)
            replica.info.status_property = self._property(status)
            assert replica.info.status.value == status
            if status == "READY" and not service.first_ready:
                service.first_ready = int(time.time())

    def replica(
        self,
        service: Service,
        number: int,
        *,
        infra: str = "gcp/us-central1",
        gpus: str = "L4:2",
        spot: bool = False,
        url: str | None = None,
        seconds: int = 1800,
    ) -> Replica:
        """Add a replica of the latest version, without a state."""
        from sky.serve.replica_managers import ReplicaInfo

        info = ReplicaInfo(number, f"{service.name}-{number}", "8081", spot, None, service.version, None)
        gpu, _, count = gpus.partition(":")
        made = self.server.sky.Resources(
            infra=infra, accelerators={gpu: int(count)}, use_spot=spot, ports=["8081"]
        )
        made._instance_type = MACHINES[gpus]
        service.replicas[number] = Replica(info, made, time.time() - seconds, url)
        return service.replicas[number]

    @staticmethod
    def _property(status: str) -> Any:
        from sky.serve.replica_managers import ReplicaStatusProperty
        from sky.utils.common_utils import ProcessStatus

        up, ended = ProcessStatus.SUCCEEDED, {"sky_down_status": ProcessStatus.SUCCEEDED}
        running = {"sky_down_status": ProcessStatus.RUNNING}
        launch, fields = {
            "PENDING": (ProcessStatus.SCHEDULED, {}),
            "PROVISIONING": (ProcessStatus.RUNNING, {}),
            "STARTING": (up, {}),
            "READY": (up, {"service_ready_now": True, "first_ready_time": 1.0}),
            "NOT_READY": (up, {"first_ready_time": 1.0}),
            "SHUTTING_DOWN": (up, {"first_ready_time": 1.0, **running}),
            "PREEMPTED": (up, {"preempted": True, **running}),
            "FAILED": (up, {"user_app_failed": True, **ended}),
            "FAILED_INITIAL_DELAY": (up, {"first_ready_time": -1.0, **ended}),
            "FAILED_PROBING": (up, {"first_ready_time": 1.0, **ended}),
            "FAILED_PROVISION": (ProcessStatus.FAILED, ended),
            "FAILED_CLEANUP": (up, {"sky_down_status": ProcessStatus.FAILED}),
            "UNKNOWN": (up, {"service_ready_now": True, "first_ready_time": 1.0, **ended}),
        }[status]
        return ReplicaStatusProperty(sky_launch_status=launch, **fields)

    # The SDK

    def up(self, task: Any, service_name: str, _need_confirmation: bool = False) -> Any:
        from sky.server.requests import payloads

        text = self._sent(task)
        payloads.ServeUpBody(task=text, service_name=service_name)

        def body(out: io.TextIOBase) -> Any:
            made = self._received(text)
            out.write(f"Launching controller for {service_name!r}...\n")
            self.during_up(service_name)
            self.controller().status = self.server.sky.ClusterStatus.UP
            if service_name in self.services:
                raise RuntimeError("Failed to spin up the service. Please check the logs above for more.")
            service = Service(service_name, {1: made}, self.balancer, course=[*self.course])
            self.services[service_name] = service
            return service_name, f"http://{self.balancer}"

        return self.server._request("serve.up", service_name, body, later=True)

    def update(self, task: Any, service_name: str, mode: Any, _need_confirmation: bool = False) -> Any:
        from sky.server.requests import payloads

        text = self._sent(task)
        payloads.ServeUpdateBody(task=text, service_name=service_name, mode=mode)

        def body(out: io.TextIOBase) -> None:
            made = self._received(text)
            self._controller_or_raise()
            service = self.services[service_name]
            service.tasks[service.version + 1], service.mode = made, mode
            self._bump(service)
            service.course = [*self.update_course]
            out.write(f"Service {service_name!r} update scheduled.\n")

        return self.server._request("serve.update", (service_name, mode.value), body, later=True)

    def down(self, service_names: str, all: bool = False, purge: bool = False) -> Any:  # noqa: A002
        from sky.server.requests import payloads

        payloads.ServeDownBody(service_names=service_names, all=all, purge=purge)

        def body(out: io.TextIOBase) -> None:
            self._controller_or_raise()
            like = sqlite3.connect(":memory:").execute  # as serve_state.get_glob_service_names() has it
            for name in [*self.services]:
                if like("SELECT ? LIKE ?", (name, service_names)).fetchone()[0]:
                    self._end(self.services[name], out)

        return self.server._request("serve.down", service_names, body)

    def status(self, service_names: list[str] | None) -> Any:
        def body(_: object) -> list[dict[str, Any]]:
            self._controller_or_raise()
            found = [
                each for each in self.services.values() if service_names is None or each.name in service_names
            ]
            for each in found:
                if each.course:
                    self.moves(each, each.course.pop(0))
            return [self._record(each) for each in found if each.name in self.services]

        return self.server._request("serve.status", service_names, body)

    def tail_logs(
        self,
        service_name: str,
        target: Any,
        replica_id: int | None = None,
        follow: bool = True,
        output_stream: Any = None,
        tail: int | None = None,
    ) -> None:
        from sky.server.requests import payloads

        payloads.ServeLogsBody(
            service_name=service_name, target=target, replica_id=replica_id, follow=follow, tail=tail
        )
        assert output_stream, "it would print to stdout"
        assert (target == "replica") == (replica_id is not None)
        self.server._up("serve.logs", (service_name, target, replica_id, follow, tail))
        if error := self.server.errors.get("serve.logs"):
            raise error
        if service_name not in self.services:
            lines = [f"Service {service_name!r} does not exist."]
        else:
            name = target if replica_id is None else f"replica-{replica_id}"
            lines = self.services[service_name].logs.get(name, [])
            if tail is not None:  # which the real one does not do together
                lines = [] if follow else lines[-tail:]
        for line in lines:
            print(line, end="", flush=True, file=output_stream)

    # How it does it

    def _sent(self, task: Any) -> str:
        from sky.utils import dag_utils

        self.server._optimize(task, sys.stdout)  # which the real one prints
        return str(dag_utils.dump_dag_to_yaml_str(dag_utils.convert_entrypoint_to_dag(task)))

    def _received(self, text: str) -> str:
        from sky.serve import serve_utils
        from sky.utils import dag_utils, yaml_utils

        (task,) = dag_utils.load_chain_dag_from_yaml_str(text).tasks
        self.server.tasks.append(task)
        serve_utils.validate_service_task(task, pool=False)
        return str(yaml_utils.dump_yaml_str(task.to_yaml_config()))

    def _controller_or_raise(self) -> None:
        """As backend_utils.is_controller_accessible() has it."""
        from sky.utils.controller_utils import Controllers

        words = Controllers.SKY_SERVE_CONTROLLER.value
        found = [each for each in self.server.machines.values() if each.name.startswith(services.CONTROLLER)]
        status = found[0].status if found else None
        if not found or status.value == "STOPPED" or not found[0].resources:
            raise self.server.sky.exceptions.ClusterNotUpError(
                words.default_hint_if_non_existent, cluster_status=status
            )
        if status.value == "INIT":
            raise self.server.sky.exceptions.ClusterNotUpError(
                words.connection_error_hint, cluster_status=status
            )

    def _bump(self, service: Service) -> None:
        """By SkyServe's own rule, replicas whose machines stay as they are become of the new version."""
        from sky.serve import replica_managers, serve_state

        manager = SimpleNamespace(
            lock=threading.Lock(), latest_version=service.version - 1, _service_name=service.name
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serve_state, "get_yaml_content", lambda _, version: service.tasks[version])
            infos = [each.info for each in service.replicas.values()]
            patch.setattr(serve_state, "get_replica_infos", lambda _: infos)
            patch.setattr(serve_state, "add_or_update_replica", lambda *_: None)
            replica_managers.SkyPilotReplicaManager.update_version(
                manager, service.version, None, service.mode
            )

    def _end(self, service: Service, out: io.TextIOBase) -> None:
        if service.status in ("CONTROLLER_FAILED", "FAILED_CLEANUP"):
            out.write(f"Service {service.name!r} is in failed status. Skipping its termination.\n")
            return
        out.write(f"Service {service.name!r} is scheduled to be terminated.\n")

        def begins(service: Service) -> None:
            service.status = "SHUTTING_DOWN"
            self.moves(service, dict.fromkeys(service.replicas, "SHUTTING_DOWN"))

        def ends(service: Service) -> None:
            if self.leaves:
                service.status = self.leaves
            else:
                del self.services[service.name]

        service.course = [{}, begins, {}, ends]

    def _record(self, service: Service) -> dict[str, Any]:
        """As serve_utils._get_service_status() and impl.status() have it."""
        from sky.serve import serve_state

        infos = [each.info for each in service.replicas.values()]
        ready = [each for each in infos if each.is_ready]
        spec = _spec(service.tasks[service.version])
        status = (
            service.status
            or serve_state.ServiceStatus.from_replica_statuses([each.status for each in ready]).value
        )
        row = {
            "max_version": service.version,
            "name": service.name,
            "status": status,
            "uptime": service.first_ready,
            "active_versions": str(sorted({each.version for each in ready})),
            "load_balancer_port": 30001,
            "tls_encrypted": spec.tls_credential is not None,
            "pool": 0,
            "yaml_content": service.tasks[service.version],
        }
        rest = ("controller_job_id", "controller_port", "policy", "requested_resources_str", "hash")
        rest += ("load_balancing_policy", "controller_pid", "controller_ip", "entrypoint", "user_hash")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serve_state, "get_spec", lambda *_: spec)
            record: dict[str, Any] = serve_state._get_service_from_row({**dict.fromkeys(rest), **row})
        record["target_num_replicas"] = service.target
        record["replica_info"] = [self._info(each) for each in service.replicas.values()]
        record["endpoint"] = f"{'https' if record['tls_encrypted'] else 'http'}://{service.balancer}"
        return record

    def _info(self, replica: Replica) -> dict[str, Any]:
        from sky.backends import CloudVmRayResourceHandle

        status, cluster = replica.info.status.value, None
        ended = status.startswith("FAILED") and status != "FAILED_CLEANUP"
        if not ended and status not in ("PENDING", "UNKNOWN"):
            handle = CloudVmRayResourceHandle(
                cluster_name=replica.info.cluster_name,
                cluster_name_on_cloud=replica.info.cluster_name,
                cluster_yaml=None,
                launched_nodes=1,
                launched_resources=replica.resources,
            )
            cluster = {"launched_at": int(replica.launched), "handle": handle}
        found = replica.info.to_info_dict(
            with_handle=True, with_url=False, cluster_record=cluster, launch_progress=replica.progress
        )
        if cluster and status != "PROVISIONING":
            found["endpoint"] = replica.url
        return dict(found)


@functools.cache
def _task_text(text: str, secrets: tuple[tuple[str, str], ...]) -> str:
    """A service file as the controller has it."""
    import sky
    from sky.utils import yaml_utils

    made = sky.Task.from_yaml_config(yaml_utils.safe_load(text), secrets_overrides=[*secrets])
    return str(yaml_utils.dump_yaml_str(made.to_yaml_config()))


@functools.cache
def _spec(text: str) -> Any:
    from sky.serve import SkyServiceSpec

    return SkyServiceSpec.from_yaml_str(text)


@contextlib.contextmanager
def started(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeSky]:
    """A server in place of the network, for a user who has used SkyPilot before; ssh fails."""
    server = FakeSky(_package(folder))
    _install(server, patch)
    (Path.home() / ".sky" / "api_server").mkdir(parents=True)
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    patch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    patch.setattr(sdk, "installed", _INSTALLED)  # it takes a while, for each request anew
    patch.setattr(launch, "POLL_SECONDS", 0.03)
    patch.setattr(serve, "POLL_SECONDS", 0.002)
    patch.setattr(services, "POLL_SECONDS", 0.002)
    patch.setattr(services, "REGISTER_SECONDS", 0.03)
    patch.setattr(typer.main, "get_command", _COMMAND)
    patch.setattr(clusters, "write_ssh_alias", server.aliases.append)

    def noted(what: str) -> Callable[[Tunnel], None]:
        return lambda tunnel: server.tunnels.append((what, tunnel.name, tunnel.local_port, tunnel.port))

    patch.setattr(Tunnel, "open", noted("open"))
    patch.setattr(Tunnel, "close", noted("close"))
    patch.setattr(Tunnel, "is_open", lambda _: True)
    try:
        yield server
    finally:
        server.closed.set()


def _package(folder: Path) -> Any:
    """Import SkyPilot. It writes to the home directory of that moment, which is not a test's."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SkyPilot's own
        patch.setenv("HOME", str(folder / "imported"))
        patch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
        with contextlib.redirect_stdout(io.StringIO()):  # its logger keeps it
            import sky
            import sky.serve
    return sky


def _install(server: FakeSky, patch: pytest.MonkeyPatch) -> None:
    """Replace the SDK's functions by those of ``server``; any other request to a server fails."""
    from sky import clouds
    from sky.client import sdk
    from sky.serve.client import sdk as serve_sdk
    from sky.server import common, rest

    for name in ("up", "update", "down", "status", "tail_logs"):
        server.serve.real[name] = getattr(serve_sdk, name)
        for module in (server.sky.serve, serve_sdk):
            patch.setattr(module, name, getattr(server.serve, name))
    # From its catalogs, which it downloads.
    for cloud in (clouds.AWS, clouds.GCP):
        patch.setattr(cloud, "get_vcpus_mem_from_instance_type", staticmethod(lambda _: (24.0, 96.0)))
    server.real["list_accelerators"] = sdk.list_accelerators
    patch.setattr(sdk, "list_accelerators", server.list_accelerators)  # sky's own of that name is another

    for name in (
        *("launch", "down", "status", "endpoints", "cost_report", "optimize", "enabled_clouds", "check"),
        *("queue", "cancel", "job_status", "tail_logs", "tail_provision_logs"),
        *("get", "stream_and_get", "api_info", "api_status", "api_cancel"),
        *("realtime_slurm_gpu_availability", "realtime_kubernetes_gpu_availability"),
    ):
        ours = server.endpoints_of if name == "endpoints" else getattr(server, name)
        server.real[name] = getattr(sdk, name)
        for module in (server.sky, sdk):
            if hasattr(module, name):
                patch.setattr(module, name, ours)

    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("a test asked SkyPilot's own API server")

    patch.setattr(common, "make_authenticated_request", none)
    patch.setattr(common, "check_server_healthy_or_start_fn", none)
    patch.setattr(rest, "request", none)
