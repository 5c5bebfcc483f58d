"""A rehearsal: the script of the task file, unchanged, on this machine.

The real vLLM runs it, with a tiny random Pixtral in place of the 25 GB one. Only environment variables
differ from what SkyPilot would set on a GPU machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pixtral_sky import endpoint
from pixtral_sky.endpoint import Deployment
from pixtral_sky.errors import RehearsalError, UsageError
from pixtral_sky.task import Task

# What a CPU needs: random weights (no file to read them from), and no compiling and profiling for a GPU.
CPU_ARGS = "--load-format dummy --enforce-eager --skip-mm-profiling --distributed-executor-backend uni"
READY_SECONDS = 300.0
STOP_SECONDS = 15.0

# What this process has started. It may outlive us, on purpose; until then somebody has to hold it.
_started: list[subprocess.Popen[bytes]] = []


def start(task: Task, venv: Path, checkpoint: Path, name: str, port: int) -> Deployment:
    """Start the task's script on 127.0.0.1:``port`` with a new key, and remember it under ``name``.

    ``venv`` is the engine, ``checkpoint`` the model's directory. It returns at once.
    """
    max_images, max_model_len = task.number("MAX_IMAGES"), task.number("MAX_MODEL_LEN")
    script = endpoint.home() / f"{name}.sh"
    script.write_text(task.run)
    key = secrets.token_urlsafe(32)
    environ = {
        **_outside(),
        **task.envs,
        "PIXTRAL_API_KEY": key,
        "HF_TOKEN": "",
        "MODEL": str(checkpoint),
        "VENV": str(venv),
        "EXTRA_ARGS": f"{task.envs.get('EXTRA_ARGS', '')} {CPU_ARGS}",
        "LISTEN": "127.0.0.1",
        "PORT": str(port),
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # The worker lives in the engine's process. As a third busy process it would, on two cores, keep
        # the server from sending what is there: streams would come in bursts, and the start take longer.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    log = endpoint.home() / f"{name}.log"
    with _private(log) as out:
        # A session of its own: a Ctrl-C at the terminal reaches us only, and we stop all of it in order.
        process = subprocess.Popen(
            ["bash", str(script)],  # noqa: S607 (as SkyPilot does)
            env=environ,
            cwd=endpoint.home(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started.append(process)
    deployment = Deployment(
        name=name,
        kind="rehearsal",
        url=f"http://127.0.0.1:{port}",
        key=key,
        max_model_len=max_model_len,
        max_images=max_images,
        created=time.time(),
        pid=process.pid,
        pid_started=psutil.Process(process.pid).create_time(),
        log=str(log),
    )
    endpoint.remember(deployment)
    return deployment


def wait_until_ready(deployment: Deployment, seconds: float = READY_SECONDS) -> None:
    """Return when GET /health is 200.

    Raises RehearsalError with the script's own reason when it ends before, or when ``seconds`` are over.
    """
    import httpx

    deadline = time.monotonic() + seconds
    # Straight to loopback: a proxy of the environment has no business here.
    with httpx.Client(trust_env=False, timeout=2) as http:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if http.get(f"{deployment.url}/health").status_code == 200:
                    return
            if not deployment.is_running():
                raise RehearsalError(
                    f"The server ended: {reason(Path(deployment.log))}", f"All it said: {deployment.log}"
                )
            time.sleep(0.2)
    raise RehearsalError(f"The server is not ready after {seconds:.0f} s.", f"What it says: {deployment.log}")


def stop(deployment: Deployment) -> None:
    """End it with all its children, and forget it. A process that only took over its pid is left alone."""
    if deployment.is_running():
        leader = psutil.Process(deployment.pid)
        family = [leader, *leader.children(recursive=True)]
        # vLLM's own process ends the others in order. The script's shell, which waits for it, then cleans up.
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
    (endpoint.home() / f"{deployment.name}.sh").unlink(missing_ok=True)
    endpoint.forget(deployment.name)


def free_port(wanted: int | None = None) -> int:
    """``wanted``; without it 8081, or any other that is free. Raises UsageError when ``wanted`` is taken."""
    for port in (wanted,) if wanted else (8081, 0):
        with socket.socket() as probe:
            # As the server will: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port or 0))
                return int(probe.getsockname()[1])
    raise UsageError(f"Port {wanted} is taken.", "Leave --port out to get a free one.")


def reason(log: Path) -> str:
    """The line of a log that says best why the server ended."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("pixtral: ")]
    errors = [line for line in lines if "rror: " in line]
    found = (ours or errors or lines or ["it said nothing"])[-1]
    return found[:300]


def _outside() -> dict[str, str]:
    """This process's environment without what would change the server or slow it down."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith(("VLLM_", "SKYPILOT_", "PIXTRAL_"))
    }


@contextlib.contextmanager
def _private(path: Path) -> Iterator[int]:
    """An empty file that only its owner can read, open for writing."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
