"""A SkyPilot API server in this process: the functions of the real SDK, without the network.

What goes in is the real SDK's (a ``sky.Task`` is dumped to YAML, and loaded again as the server does), and what
comes out as well: each answer and each error goes through SkyPilot's own encoders and decoders. Only what the
server would do at a cloud is played here.

    server.cluster("pixtral", gpus={"L4": 2})          # one that is there already
    server.script = [*SETUP, run("== starting the server")]   # what the next job says
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import ssl
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

from pixtral_sky import deployment
from pixtral_sky.tunnel import Tunnel

PRICES = {"L4:2": 1.4, "L4:4": 4.6, "A10G:4": 5.67, "L40S:1": 1.86, "A100:1": 3.67, "H100:1": 2.99}
_COMMAND = functools.cache(typer.main.get_command)
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
    """``script`` is what its log has: lines, what is raised once to whoever reads it, and what is called once."""

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
    """A cluster that the server has."""

    name: str
    status: Any
    resources: Any  # sky.Resources; None while it is not known
    yaml: str | None
    endpoints: dict[int, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    hourly: float | None = 1.4  # None: it is in no cost report
    seconds: int = 1800
    reason: str | None = None
    command: str | None = None
    to_down: bool = True
    hash: str = field(default_factory=lambda: str(uuid.uuid4()))


class FakeSky:
    """See the module. ``calls`` has the name of every request and what it was asked, in order.

    ``down_with`` is raised by every function, ``errors`` by the answer to a request of that name.
    """

    def __init__(self, sky: Any) -> None:
        from sky.server.requests import requests

        self.sky, self.wire = sky, requests
        self.machines: dict[str, Machine] = {}
        self.calls: list[tuple[str, Any]] = []
        self.down_with: Exception | None = None
        self.errors: dict[str, BaseException] = {}
        self.clouds = ["AWS"]
        self.script: list[Any] = [*SETUP, STARTING]
        self.endpoints: dict[int, str] = {}  # of the machines that are launched
        self.provision_log = ["Launching on AWS us-east-1.\n", "Waiting for ssh.\n"]
        self.during_launch: Callable[[str], None] = lambda name: None
        self.stays = False  # `down` does nothing
        self.real: dict[str, Callable[..., Any]] = {}  # what it is in place of
        self.aliases: list[str] = []
        self.tunnels: list[tuple[str, str, int, int]] = []
        self.tasks: list[Any] = []  # as they came in
        self._requests: dict[str, Any] = {}
        self._bodies: dict[str, Callable[[io.TextIOBase], Any]] = {}
        self.closed = threading.Event()

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
        """A cluster that is there, as somebody has launched it."""
        import yaml

        resources = self.sky.Resources(
            infra=infra, accelerators=gpus or {"L4": 2}, ports=ports, use_spot=spot or None, disk_tier="best"
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
        """The id of a launch that is on its way."""
        request = self._request("launch", name, lambda _: None, later=True)
        self._requests[request].status = self.wire.RequestStatus(status)
        self.calls.clear()
        return str(request)

    def asked(self, name: str) -> list[Any]:
        """What the requests of that name have asked for."""
        return [body for each, body in self.calls if each == name]

    def ends(self, status: str) -> Callable[[Job], None]:
        """A step of a script: the job is in that state then."""

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
            there = chosen.copy(cloud=self.sky.CLOUD_REGISTRY.from_str(cloud), region=place)
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

    def status(self, cluster_names: list[str] | None = None, refresh: Any = None, **_: Any) -> Any:
        asked = {"names": cluster_names, "refresh": refresh and refresh.value}
        return self._request("status", asked, lambda _: self._status(cluster_names))

    def _status(self, names: list[str] | None) -> list[Any]:
        from sky.schemas.api.responses import StatusResponse

        found = [each for each in self.machines.values() if names is None or each.name in names]
        return [
            StatusResponse(
                name=each.name,
                launched_at=int(time.time()) - each.seconds,
                handle=self._handle(each),
                status=each.status,
                autostop=5,
                to_down=each.to_down,
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

    def enabled_clouds(self, workspace: str | None = None, expand: bool = False) -> Any:
        return self._request("enabled_clouds", expand, lambda _: [*self.clouds])

    def check(self, infra_list: Any, verbose: bool, workspace: str | None = None) -> Any:
        return self._request("check", infra_list, lambda _: {})

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
                if error := self.errors.get(request.name.removeprefix("sky.")):
                    raise error
                request.set_return_value(body(out))
                request.status = self.wire.RequestStatus.SUCCEEDED
            except Exception as error:
                request.set_error(error)
                request.status = self.wire.RequestStatus.FAILED
        got = self.wire.Request.decode(request.encode())
        if error := got.get_error():
            raise error["object"]
        if got.status is self.wire.RequestStatus.CANCELLED:
            raise self.sky.exceptions.RequestCancelled("Current 'launch' request is cancelled.")
        return got.get_return_value()

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


@contextlib.contextmanager
def started(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeSky]:
    """A server in place of the network, for somebody who has used SkyPilot; no ssh either."""
    server = FakeSky(_package(folder))
    _install(server, patch)
    (Path.home() / ".sky").mkdir(parents=True)
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    patch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    patch.setattr(deployment, "POLL_SECONDS", 0.03)
    patch.setattr(typer.main, "get_command", _COMMAND)
    # Nothing here speaks TLS, and to read all certificates takes a while, for each client anew.
    patch.setattr(httpx, "create_ssl_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    patch.setattr(deployment, "write_ssh_alias", server.aliases.append)

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
    """SkyPilot's own package. It writes to the home that it is imported with: to none that a test looks at."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SkyPilot's own
        patch.setenv("HOME", str(folder / "imported"))
        patch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
        with contextlib.redirect_stdout(io.StringIO()):  # its logger keeps it
            import sky
            import sky.serve
    return sky


def _install(server: FakeSky, patch: pytest.MonkeyPatch) -> None:
    """``server`` in place of the SDK's own functions; whatever else would go to a server fails."""
    from sky.client import sdk
    from sky.server import common, rest

    for name in (
        *("launch", "down", "status", "endpoints", "cost_report", "optimize", "enabled_clouds", "check"),
        *("queue", "cancel", "job_status", "tail_logs", "tail_provision_logs"),
        *("get", "stream_and_get", "api_info", "api_status", "api_cancel"),
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
