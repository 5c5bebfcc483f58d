"""Runs a rehearsal: the unchanged script of the task file, on this machine.

It starts the real vLLM with a tiny random Pixtral in place of the 25 GB one. Only environment variables
differ from those that SkyPilot sets on a GPU machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pixtral_sky import files
from pixtral_sky.deploy import rehearsals, store
from pixtral_sky.deploy.resolve import new_key
from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.deploy.task import Task, limits
from pixtral_sky.errors import RehearsalError, UsageError
from pixtral_sky.text import reason

# Without compiling and profiling for a GPU.
CPU_ARGS = "--enforce-eager --skip-mm-profiling --distributed-executor-backend uni"
CPU_ENVIRON = {
    "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # The worker runs in the engine's process. A third busy process on two cores would keep the server from
    # sending: streams would come in bursts, and the start would take longer.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
READY_SECONDS = 300.0


def start(
    task: Task,
    venv: Path,
    checkpoint: Path,
    name: str,
    port: int,
    args: str = CPU_ARGS,
    machine: Mapping[str, str] = CPU_ENVIRON,
) -> Rehearsal:
    """Start the task's script on 127.0.0.1:``port`` with a new key, and remember it as ``name``.

    ``venv`` is the engine, ``checkpoint`` the model's directory. ``args`` and ``machine`` are more arguments
    and environment of vLLM; by default those for a machine without a GPU.
    """
    store.check_name(name)
    of_a_request = limits(task.envs)
    script = store.home() / f"{name}.sh"
    with files.whole(script) as file:
        file.write(task.run)
    key = new_key()
    log = store.home() / f"{name}.log"
    environ = _environ(task, venv, checkpoint, key, port, args, machine)
    process = _spawned(script, environ, log)
    rehearsals.started.append(process)
    try:
        url, born = f"http://127.0.0.1:{port}", store.born(psutil.Process(process.pid))
        deployment = Rehearsal(name, url, key, *of_a_request, time.time(), process.pid, born, str(log))
        store.remember(deployment)
    except BaseException:  # a server that is not remembered could not be stopped later
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return deployment


def _environ(
    task: Task, venv: Path, checkpoint: Path, key: str, port: int, args: str, machine: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the script, as SkyPilot makes it, but for the model and where it listens."""
    return {
        **_outside(),
        **task.envs,
        "PIXTRAL_API_KEY": key,
        "HF_TOKEN": "",
        "MODEL": str(checkpoint),
        "VENV": str(venv),
        "EXTRA_ARGS": f"{task.envs.get('EXTRA_ARGS', '')} {args}",
        "LISTEN": "127.0.0.1",
        "PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        **machine,
    }


def _spawned(script: Path, environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """The script, in its own session, so that a Ctrl-C reaches only this process, which then stops it."""
    log.unlink(missing_ok=True)
    with open(log, "xb", opener=functools.partial(os.open, mode=0o600)) as out:
        return subprocess.Popen(
            ["bash", str(script)],  # noqa: S607 (as SkyPilot does)
            env=environ,
            cwd=script.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextlib.contextmanager
def starting(name: str) -> Iterator[None]:
    """Allow one start at a time: two might get the same port or name.

    Raises UsageError when that name is running; the rest of one that has ended is stopped.
    """
    with (store.home() / ".starting").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.check_kind(name, Rehearsal)
        if old := store.recall_as(name, Rehearsal):
            if old.is_running():
                raise UsageError(
                    f"{name!r} is running already, at {old.url}.", f"Stop it: pixtral-sky down {name}"
                )
            rehearsals.stop(old)
        yield


def wait_until_ready(deployment: Rehearsal, seconds: float = READY_SECONDS) -> None:
    """Return when GET /health is 200 and comes from the deployment itself.

    Raises RehearsalError with the script's own reason when it ends before, or after ``seconds``.
    """
    import httpx

    deadline = time.monotonic() + seconds
    # trust_env=False: loopback needs no proxy of the environment.
    with httpx.Client(trust_env=False, timeout=2) as http:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if http.get(f"{deployment.url}/health").status_code == 200 and _is_listening(deployment):
                    return
            if not deployment.is_running():
                why = reason(Path(deployment.log).read_text(errors="replace").splitlines())
                raise RehearsalError(
                    f"The server ended: {why.rstrip('.')}.", f"All it said: {deployment.log}"
                )
            time.sleep(0.2)
    raise RehearsalError(f"The server is not ready after {seconds:.0f} s.", f"What it says: {deployment.log}")


def _is_listening(deployment: Rehearsal) -> bool:
    """Whether the deployment itself has the port: another server would be sent the key."""
    port = urlsplit(deployment.url).port
    for process in rehearsals.processes(deployment):
        with contextlib.suppress(psutil.Error):
            connections = process.net_connections("tcp")
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections):
                return True
    return False


def _outside() -> dict[str, str]:
    """This process's environment without variables that would change the server or slow it down."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith(("VLLM_", "SKYPILOT_", "PIXTRAL_"))
    }
