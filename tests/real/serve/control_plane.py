"""The control plane of SkyServe 0.14.1 on this machine: all of it is the real one, but for the machines.

    python -m tests.real.serve.control_plane up NAME TASK       what `sky serve up` has the controller run
    python -m tests.real.serve.control_plane update NAME TASK   what `sky serve update` has it do

Service, controller, replica manager, prober, autoscaler, load balancer and their database are SkyPilot's. What
asks a cloud is replaced: launch, down, and the look at what a machine, its job and its ports do. A machine is
a folder in ~/machines and a session of processes, which runs the task's own setup and run.

~/rig.json has the settings (see rig.py). The state goes to ~/status.json, four times a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from sky import backends, clouds, exceptions, global_user_state
from sky.backends import backend_utils
from sky.client import sdk
from sky.serve import constants, replica_managers, serve_state, serve_utils, service, service_spec
from sky.skylet import job_lib
from sky.utils import controller_utils, dag_utils, status_lib, yaml_utils

from pixtral_sky.deploy.rehearsals import of_session
from tests.support.processes import signal_session

HOME = Path.home()
RIG = json.loads((HOME / "rig.json").read_text())


def machine(cluster: str) -> Path:
    return HOME / "machines" / cluster


# --- what asks a cloud


def launch(task: Any, cluster_name: str, **_: Any) -> str:
    folder = machine(cluster_name)
    folder.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "port").write_text(str(port))
    for part in ("setup", "run"):
        (folder / f"{part}.sh").write_text(getattr(task, part) or "")
    environ = {
        **{name: os.environ[name] for name in ("HOME", "PATH")},
        **task.envs,
        **{name: value.get_secret_value() for name, value in task.secrets.items()},
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "LISTEN": "127.0.0.1",
        "PORT": str(port),
        "MACHINE": str(folder),
        **RIG["envs"],
    }
    with (folder / "log").open("wb") as log:
        # As SkyPilot's job does it; what it ends with is noted beside it.
        process = subprocess.Popen(
            ["bash", "-c", "(bash setup.sh && exec bash run.sh); echo $? > ended"],
            env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (folder / "pid.new").write_text(str(process.pid))
    (folder / "pid.new").replace(folder / "pid")  # whole, for who looks at it now
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie
    resources = next(iter(task.resources)).copy()
    # As the optimizer has it: some machine, of a cloud that has no catalog to be downloaded.
    resources._cloud, resources._region, resources._instance_type = clouds.Kubernetes(), "here", "4CPU--32GB"
    handle = backends.CloudVmRayResourceHandle(
        cluster_name=cluster_name,
        cluster_name_on_cloud=cluster_name,
        cluster_yaml=None,
        launched_nodes=1,
        launched_resources=resources,
    )
    global_user_state.add_or_update_cluster(cluster_name, handle, {resources}, ready=True)
    return cluster_name


def down(cluster_name: str) -> str:
    if not global_user_state.cluster_with_name_exists(cluster_name):
        raise ValueError(f"Cluster {cluster_name!r} does not exist.")
    end(int((machine(cluster_name) / "pid").read_text()))
    global_user_state.remove_cluster(cluster_name, terminate=True)
    return cluster_name


def end(session: int) -> None:
    """Every process of a session, in order, and by force where that takes too long."""
    deadline = time.monotonic() + 10
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_session(session, number)
        while of_session(session) and (number == signal.SIGKILL or time.monotonic() < deadline):
            time.sleep(0.05)


def get_endpoints(cluster: str, port: int, **_: Any) -> dict[int, str]:
    if not global_user_state.cluster_with_name_exists(cluster):
        raise exceptions.ClusterNotUpError(f"Cluster {cluster!r} not found.", cluster_status=None)
    return {port: f"127.0.0.1:{(machine(cluster) / 'port').read_text()}"}


def refresh_cluster_status_handle(cluster: str, **_: Any) -> tuple[Any, Any]:
    if (machine(cluster) / "preempted").exists():
        global_user_state.remove_cluster(cluster, terminate=True)
        return None, None
    return status_lib.ClusterStatus.UP, global_user_state.get_handle_from_cluster_name(cluster)


def get_job_status(_: Any, handle: Any, *__: Any, **___: Any) -> dict[int, Any]:
    folder = machine(handle.cluster_name)
    if (folder / "preempted").exists():
        raise exceptions.CommandError(255, "ssh", "No route to host", None)
    if not (folder / "ended").exists():
        return {1: job_lib.JobStatus.RUNNING}
    succeeded = (folder / "ended").read_text().strip() == "0"
    return {1: job_lib.JobStatus.SUCCEEDED if succeeded else job_lib.JobStatus.FAILED}


def download_and_stream_job_log(_: Any, handle: Any, *__: Any, **___: Any) -> str:
    return str(machine(handle.cluster_name) / "log")


def replace() -> None:
    sdk.launch, sdk.down = launch, down
    sdk.stream_and_get = sdk.api_cancel = lambda request: request
    backend_utils.get_endpoints = get_endpoints
    backend_utils.refresh_cluster_status_handle = refresh_cluster_status_handle
    backends.CloudVmRayBackend.get_job_status = get_job_status
    controller_utils.download_and_stream_job_log = download_and_stream_job_log


# --- its clocks, and where it listens


def hurry() -> None:
    """The fixed periods of SkyServe, shorter by the rig's speed, and the fields of the file that it changes."""
    for name in (
        "LB_CONTROLLER_SYNC_INTERVAL_SECONDS",
        "AUTOSCALER_QPS_WINDOW_SIZE_SECONDS",
        "AUTOSCALER_DEFAULT_DECISION_INTERVAL_SECONDS",
        "AUTOSCALER_NO_REPLICA_DECISION_INTERVAL_SECONDS",
    ):
        setattr(constants, name, getattr(constants, name) / RIG["speed"])
    for name in ("_PROCESS_POOL_REFRESH_INTERVAL", "_JOB_STATUS_FETCH_INTERVAL", "_DEFAULT_DRAIN_SECONDS"):
        setattr(replica_managers, name, getattr(replica_managers, name) / RIG["speed"])

    load = service_spec.SkyServiceSpec.from_yaml_config

    def changed(config: dict[str, Any]) -> service_spec.SkyServiceSpec:
        spec = load(config)
        for name, value in RIG["spec"].items():
            assert hasattr(spec, f"_{name}"), name
            setattr(spec, f"_{name}", value)
        return spec

    service_spec.SkyServiceSpec.from_yaml_config = staticmethod(changed)


def listen_here_only() -> None:
    """Controller and balancer on loopback, at free ports; the pid of each is noted."""
    run = uvicorn.run

    def here(app: Any, host: str, port: int, **options: Any) -> None:
        (HOME / f"pid-of-{port}").write_text(str(os.getpid()))
        run(app, host="127.0.0.1", port=port, **options)

    uvicorn.run = here
    constants.CONTROLLER_PORT_START, constants.LOAD_BALANCER_PORT_START = RIG["ports"]


def watch(name: str) -> None:
    """What `sky serve status` shows, for the tests."""
    while True:
        record = serve_utils._get_service_status(name, pool=False)
        if record:
            record["endpoint"] = f"127.0.0.1:{record['load_balancer_port']}"
            replicas = [
                {"id": each["replica_id"], "status": each["status"].value, "version": each["version"]}
                | {"url": each["endpoint"], "name": each["name"], "is_spot": each["is_spot"]}
                for each in record["replica_info"]
            ]
            state = {
                "status": record["status"].value,
                "replicas": replicas,
                "controller_port": record["controller_port"],
                "balancer_port": record["load_balancer_port"],
                "table": serve_utils.format_service_table([record], show_all=False, pool=False),
            }
            (HOME / "status.new").write_text(json.dumps(state))
            (HOME / "status.new").replace(HOME / "status.json")
        time.sleep(0.25)


# --- what `sky serve` has the controller do


def config_of(path: str) -> str:
    """The task as the controller gets it, with its port and its secrets."""
    task = dag_utils.load_chain_dag_from_yaml(path, secret_overrides=list(RIG["secrets"].items())).tasks[0]
    task.service.set_ports(next(iter(task.resources)).ports[0])
    serve_utils.validate_service_task(task, pool=False)
    return yaml_utils.dump_yaml_str(task.to_yaml_config())


def up(name: str, path: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # what is replaced stays so
    multiprocessing.Process(target=watch, args=(name,), daemon=True).start()
    folder = Path(serve_utils.generate_remote_service_dir_name(name)).expanduser()
    folder.mkdir(parents=True)
    (folder / "task.yaml.tmp").write_text(config_of(path))
    service._start(name, str(folder / "task.yaml.tmp"), job_id=1, entrypoint="sky serve up")


def update(name: str, path: str) -> None:
    version = serve_state.add_version(name)
    Path(serve_utils.generate_task_yaml_file_name(name, version)).write_text(config_of(path))
    serve_utils.update_service_encoded(name, version, mode=serve_utils.UpdateMode.ROLLING.value, pool=False)


if __name__ == "__main__":
    replace()
    hurry()
    listen_here_only()
    {"up": up, "update": update}[sys.argv[1]](*sys.argv[2:])
