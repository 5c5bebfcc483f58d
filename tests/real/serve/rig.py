"""A service of this project on this machine: service.yaml behind the real control plane of SkyServe.

    with Service(folder) as service:
        service.wait_for(ready=2)
        with service.client() as client:
            ...

Its home is ``folder``. A replica is the script of service.yaml, run to the letter, with its gateway, before a
light stand-in for vLLM (stand_in.py). The periods of SkyServe and of the file are shorter by SERVE_SPEED (20; at
1 they are those that are shipped). Everything is stopped by its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from pixtral_sky.client.client import READ_SECONDS, Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy.rehearsals import of_session
from tests.conftest import ROOT
from tests.support.processes import signal_session

SPEED = float(os.environ.get("SERVE_SPEED") or 20)
KEY = "serve-key-that-every-replica-asks-for"
PATIENCE = 60 + 600 / SPEED  # seconds for anything that the control plane is waited for
# Of the balancer, for an answer to begin and between two pieces of it.
STREAM_TIMEOUT = 600 if SPEED == 1 else 4

# What of service.yaml is shorter here, and SkyServe's defaults for what it does not say.
SPEC = {
    "lb_stream_timeout_seconds": STREAM_TIMEOUT,
    "endpoint_probe_interval_seconds": 10 / SPEED,
    "readiness_timeout_seconds": max(15 / SPEED, 3),  # of a machine that does other things besides
    "consecutive_failure_threshold_timeout": 180 / SPEED,
    "initial_delay_seconds": max(2400 / SPEED, 60),
    "upscale_delay_seconds": 120 / SPEED,
    "downscale_delay_seconds": 1200 / SPEED,
    "target_qps_per_replica": 10_000,  # a test that counts requests wants no more replicas for them
}


class Machine:
    """What a replica runs on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.session = int((folder / "pid").read_text())
        self.port = int((folder / "port").read_text())

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def mood(self, word: str) -> None:
        (self.folder / "mood.new").write_text(word)
        (self.folder / "mood.new").replace(self.folder / "mood")

    def kill_server(self) -> None:
        """kill -9 of the server alone: its script starts it again."""
        os.kill(int((self.folder / "server").read_text()), signal.SIGKILL)

    def kill_job(self) -> None:
        """kill -9 of the script and the server; the machine is still there."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.cmdline() == ["bash", "run.sh"]:
                    process.kill()
        self.kill_server()

    def preempt(self) -> None:
        """The cloud takes the machine back: it is gone, with all that runs there."""
        (self.folder / "preempted").touch()
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """To everything that runs there. STOP makes it take connections, and never answer."""
        signal_session(self.session, number)

    def runs(self) -> bool:
        return bool(self.processes())

    def processes(self) -> list[psutil.Process]:
        return of_session(self.session)

    def requests(self) -> list[dict[str, Any]]:
        """What its server noted: the id of a question, what came of it, and when."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "requests").read_text().splitlines()]
        return []


class Service:
    """See the module. ``change`` edits service.yaml before it is used; ``spec`` are further fields of SkyServe's
    SkyServiceSpec, ``envs`` those of the replicas."""

    name = "pixtral"

    def __init__(
        self,
        folder: Path,
        *,
        key: str = KEY,
        change: Callable[[dict[str, Any]], None] | None = None,
        spec: dict[str, Any] | None = None,
        envs: dict[str, str] | None = None,
    ) -> None:
        self.home, self.key = folder, key
        self._spec = {**SPEC, **(spec or {})}
        self._envs = envs
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._task = folder / "service.yaml"
        self.write(change)

    def write(self, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        """service.yaml, as it is shipped but for what ``change`` does to it."""
        shutil.copy(ROOT / "service.yaml", self._task)
        if change:
            config = yaml.safe_load(self._task.read_text())
            change(config)
            self._task.write_text(yaml.safe_dump(config, sort_keys=False))

    # Up, update, down

    def __enter__(self) -> Service:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """What `sky serve up` does. It returns when the balancer answers."""
        secrets = {"PIXTRAL_API_KEY": self.key} if self.key else {}
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports.append(free.getsockname()[1])
        rig = {
            "speed": SPEED,
            "spec": self._spec,
            "secrets": secrets,
            "ports": ports,
            "envs": self._envs or self._light(),
        }
        (self.home / "rig.json").write_text(json.dumps(rig))
        # SkyPilot would download its list of GPUs.
        catalog = self.home / ".sky/catalogs/v8/common"
        catalog.mkdir(parents=True)
        gpus = ("L4", "A10G", "L40S", "A100", "A100-80GB", "H100")
        rows = ["AcceleratorName,Clouds", *(f"{gpu},\"['AWS', 'GCP']\"" for gpu in gpus)]
        (catalog / "accelerators.csv").write_text("\n".join(rows))
        with (self.home / "control-plane.log").open("wb") as log:
            self._process = self._run("up", stdout=log, stderr=log, start_new_session=True)
        self.until(lambda: self.status().get("balancer_port"), "a balancer")
        self.until(self._answers, "an answer of the balancer")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.balancer_port), 1):
            return True
        return False

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """What `sky serve update` does, with service.yaml changed."""
        self.write(change)
        with (self.home / "update.log").open("wb") as log:
            process = self._run("update", stdout=log, stderr=log)
            assert process.wait(PATIENCE) == 0, (self.home / "update.log").read_text()

    def down(self) -> None:
        """What `sky serve down` does, until the control plane has ended."""
        assert self._process
        signals = self.home / ".sky/signals"
        signals.mkdir(exist_ok=True)
        (signals / f"sky_serve_controller_signal_{self.name}").write_text("terminate")
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """End all that is left of it, at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for machine in self.all_machines():
            machine.signal(signal.SIGKILL)

    def _run(self, command: str, **options: Any) -> subprocess.Popen[bytes]:
        environ = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }
        program = [
            sys.executable,
            "-m",
            "tests.real.serve.control_plane",
            command,
            self.name,
            str(self._task),
        ]
        return subprocess.Popen(program, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, **options)

    def _light(self) -> dict[str, str]:
        """What points the script of service.yaml at the stand-in for vLLM, and at no model."""
        vllm = self.home / "venv/bin/vllm"
        vllm.parent.mkdir(parents=True)
        vllm.write_text(
            f'#!/bin/sh\nexec env SERVE_SPEED={SPEED:g} {sys.executable} -m tests.real.serve.stand_in "$@"\n'
        )
        vllm.chmod(0o755)
        (self.home / "model").mkdir()
        venv, model = str(self.home / "venv"), str(self.home / "model")
        return {"VENV": venv, "MODEL": model, "PYTHONPATH": str(ROOT)}

    # What it does

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.home / "status.json").read_text()))
        return {}

    @property
    def balancer_port(self) -> int:
        return int(self.status()["balancer_port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.balancer_port}"

    def http(self, timeout: float = 30) -> httpx.Client:
        """To the balancer, with the key and with nothing of our client."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=timeout)

    def client(self, **options: Any) -> Client:
        """Ours. It waits for an answer as long as it does as it is shipped, at the rig's speed."""
        options = {"read_timeout": READ_SECONDS / SPEED, **options}
        return Client(Endpoint(self.url, self.key, max_model_len=32768), **options)

    def pid(self, part: str) -> int:
        """Of the `controller`, or of the `balancer`."""
        return int((self.home / f"pid-of-{self.status()[f'{part}_port']}").read_text())

    def log(self, part: str) -> str:
        """What `sky serve logs` shows of the `controller`, the `load_balancer` or of `replica_1`."""
        if part == "controller":
            return (self.home / "control-plane.log").read_text(errors="replace")
        return (self.home / f".sky/serve/{self.name}/{part}.log").read_text(errors="replace")

    def all_machines(self) -> list[Machine]:
        """Those that are, and those that were, in their order."""
        folders = (self.home / "machines").glob("*/pid")
        return sorted((Machine(pid.parent) for pid in folders), key=lambda m: int(m.name.rpartition("-")[2]))

    def machines(self) -> list[Machine]:
        """Those whose replica is ready."""
        replicas = self.status().get("replicas", [])
        ready = {each["name"] for each in replicas if each["status"] == "READY"}
        return [machine for machine in self.all_machines() if machine.name in ready]

    def balanced(self) -> set[str]:
        """The replicas that the balancer asks, by its own word."""
        found = re.findall(r"Available Replica URLs: (\[.*\])", self.log("load_balancer"))
        return set(re.findall(r"http://[^']+", found[-1])) if found else set()

    def until(self, what: Callable[[], Any], name: str, seconds: float = PATIENCE) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := what()):
            ended = self._process and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(
                    f"no {name}. {self.status().get('table')}\n{self.log('controller')[-3000:]}"
                )
            time.sleep(0.1)
        return result

    def wait_for(self, ready: int, version: int | None = None, seconds: float = PATIENCE) -> list[Machine]:
        """Until so many replicas are ready, no other is there, and the balancer knows them."""

        def there() -> bool:
            # SkyServe keeps the record of one that has failed.
            replicas = [each for each in self.status().get("replicas", []) if "FAILED" not in each["status"]]
            return (
                len(replicas) == ready
                and all(each["status"] == "READY" for each in replicas)
                and all(version in (None, each["version"]) for each in replicas)
                and self.balanced() == {each["url"] for each in replicas}
            )

        self.until(there, f"{ready} ready replicas", seconds)
        return self.machines()
