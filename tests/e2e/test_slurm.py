"""The real SkyPilot launches the real pixtral.yaml on a real Slurm, all of it on this machine.

As root, on Debian: `make e2e`. The engine is that of a rehearsal, and so are the tiny weights; the script
is what the file has.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pixtral_sky import engine, rehearsal, state, task
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
KEY = "e2e-key-that-is-in-no-log-and-no-argument"
PORT = 18083
NODE_PYTHON = "/usr/bin/python3"


class Rig:
    """A Slurm, and a home from which SkyPilot launches on it. All of it is in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.environ = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIXTRAL_SKY_HOME": str(self.home / "pixtral-sky"),
            "SKYPILOT_API_SERVER_LOCAL_PORT": "46595",  # apart from one that the user may have
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }
        for name in ("XDG_CACHE_HOME", "PIXTRAL_ENDPOINT"):
            self.environ.pop(name, None)

    def up(self) -> None:
        from uv import find_uv_bin

        # Not only for its owner: the jobs are another user's.
        self.root.chmod(0o755)
        subprocess.run(
            ["bash", HERE / "slurm.sh", "up", self.root], check=True, env={**os.environ, "UV": find_uv_bin()}
        )
        for folder in (".slurm", ".sky/catalogs/v8/common"):
            (self.home / folder).mkdir(parents=True)
        (self.home / ".slurm/config").write_text(
            "Host e2e\n  HostName 127.0.0.1\n  Port 2222\n  User pixtral-e2e\n"
            f"  IdentityFile {self.root}/etc/client\n  IdentitiesOnly yes\n"
        )
        (self.home / ".sky/config.yaml").write_text(
            f"slurm:\n  cluster_configs:\n    e2e:\n      tmpdir: {self.root}/node-tmp\n"
        )
        # SkyPilot would download its list of GPUs.
        (self.home / ".sky/catalogs/v8/common/accelerators.csv").write_text(
            "AcceleratorName,Clouds\nA100,\"['AWS', 'GCP', 'Azure']\"\n"
        )

    def down(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.sky("down", "--all", "--yes", check=False, timeout=120)
            self.sky("api", "stop", check=False, timeout=60)
        subprocess.run(["bash", HERE / "slurm.sh", "down", self.root], check=False)
        for process in self.processes():  # SkyPilot's own connections, which it keeps for a while
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """All that were started from its home, or run from its folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("HOME", "").startswith(str(self.root))
                if process.status() != psutil.STATUS_ZOMBIE and (
                    mine or str(self.root) in " ".join(process.cmdline())
                ):
                    found.append(process)
        return found

    def engine(self) -> Path:
        """The engine of a rehearsal where every user can read it, with a Python that every user can run."""
        made = engine.ensure(task.load().vllm_version)
        target = self.root / "engine"
        shutil.copytree(made, target, symlinks=True, copy_function=os.link)
        version = next(target.glob("lib/python*")).name
        node = subprocess.run([NODE_PYTHON, "--version"], check=True, capture_output=True, text=True)
        assert node.stdout.lower().replace(" ", "").startswith(version), (
            f"the node has {node.stdout}, not {version}"
        )
        for name in ("python", "python3", version, "vllm"):
            (target / "bin" / name).unlink(missing_ok=True)
        (target / "bin" / "python").symlink_to(NODE_PYTHON)
        (target / "pyvenv.cfg").unlink()
        (target / "pyvenv.cfg").write_text(f"home = {Path(NODE_PYTHON).parent}\n")
        (target / "bin" / "vllm").write_text(
            f"#!{target}/bin/python\nimport sys\nfrom vllm.entrypoints.cli.main import main\n"
            'if __name__ == "__main__":\n    sys.exit(main())\n'
        )
        (target / "bin" / "vllm").chmod(0o755)
        shutil.copytree(engine.checkpoint(made), self.root / "model")
        return target

    def sky(self, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            ["sky", *arguments], env={**self.environ, "PIXTRAL_API_KEY": KEY}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
        assert result.returncode == 0 or not check, result.stdout
        return result

    def job(self) -> str:
        """The state of the first job of the cluster."""
        found = re.search(r"^1 +pixtral .*\b([A-Z_]{4,})\b +~", self.sky("queue", "pixtral").stdout, re.M)
        return found.group(1) if found else ""

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[str]:
        """The endpoint, through the ssh alias that SkyPilot has written."""
        port = state.free_port(0)
        command = ["ssh", "-F", f"{self.home}/.sky/generated/ssh/pixtral"]
        # ssh asks the system, not $HOME, where a home is.
        command += [
            "-i",
            f"{self.home}/.sky/generated/ssh-keys/pixtral.key",
            "-o",
            "ExitOnForwardFailure=yes",
        ]
        command += ["-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{PORT}", "pixtral"]
        process = subprocess.Popen(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    assert os.geteuid() == 0, "this test brings up a Slurm, and needs to be root: make e2e"
    rig = Rig(Path(tempfile.mkdtemp(prefix="pixtral-e2e-", dir="/tmp")))
    try:
        rig.up()
        yield rig
    finally:
        rig.down()


def status(url: str, key: str) -> int:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(1)
    return result


def test_a_bare_sky_launch(rig, tmp_path):
    venv = rig.engine()
    shutil.copy(ROOT / "pixtral.yaml", tmp_path)  # alone: nothing else of the project goes with it
    envs = {
        "MODEL": str(rig.root / "model"),
        "VENV": str(venv),
        "LISTEN": "127.0.0.1",
        "PORT": str(PORT),
        "IDLE_MINUTES": "0.75",
        "EXTRA_ARGS": rehearsal.CPU_ARGS,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    begin = time.monotonic()
    rig.sky(
        "launch", "--yes", "--detach-run", "-c", "pixtral", "pixtral.yaml",
        # What a Slurm wants: a name of its own, no public port, and here the one GPU that it counts.
        "--infra", "slurm/e2e", "--ports", "none", "--gpus", "A100:1",
        "--secret", "PIXTRAL_API_KEY",
        *(word for name, value in envs.items() for word in ("--env", f"{name}={value}")),
        cwd=tmp_path,
    )  # fmt: skip
    print(f"launched in {time.monotonic() - begin:.0f} s")
    assert "5m (down)" in rig.sky("status", "pixtral").stdout

    with rig.tunnel() as url:
        wait_for(lambda: status(url, KEY) == 200, 120)
        print(f"answers after {time.monotonic() - begin:.0f} s")
        assert status(url, "wrong") == 401
        assert status(url, "") == 401

        logo = tmp_path / "logo.png"
        from PIL import Image

        Image.new("RGB", (400, 400), "orange").save(logo)
        program = [sys.executable, "-m", "pixtral_sky", "ask", "--endpoint", url, "--max-tokens", "4"]
        environ = {**rig.environ, "PIXTRAL_API_KEY": KEY}

        def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*program, *map(str, arguments)], env=environ, capture_output=True, text=True
            )

        one = ask("Turn this logo into ASCII art.", logo, "--json")
        assert one.returncode == 0, one.stderr
        assert json.loads(one.stdout)["usage"]["prompt_tokens"] == 660
        two = ask(
            "What is",
            ROOT / "examples" / "chart.png",
            "and what",
            ROOT / "examples" / "receipt.jpg",
            "--usage",
        )
        assert two.returncode == 0, two.stderr
        assert re.search(r"5\d\d\d tokens in the prompt, 4 in the answer", two.stderr)

        # vLLM listens for the tunnel only.
        ports = {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == PORT
        }
        assert ports == {"127.0.0.1"}
        the_key_is_where_skypilot_puts_it_and_nowhere_else(rig)

    # No bill by accident: nobody asks, the server ends, and the job is done.
    wait_for(lambda: rig.job() == "SUCCEEDED", 120)
    log = rig.sky("logs", "--no-follow", "pixtral", "1", check=False).stdout
    assert "front door: no request for 0.75 minutes" in log
    assert KEY not in log
    assert not [process for process in rig.processes() if "vllm" in " ".join(process.cmdline())]

    rig.sky("down", "--yes", "pixtral")
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert queue == ""
    assert "pixtral" not in rig.sky("status").stdout.split("Managed jobs")[0].replace("pixtral-e2e", "")


def the_key_is_where_skypilot_puts_it_and_nowhere_else(rig: Rig) -> None:
    """SkyPilot 0.14 hands a job's secrets on by the arguments of its own programs on a Slurm node, and by files."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            arguments = " ".join(process.cmdline())
            if KEY in arguments:
                assert "skypilot" in arguments, arguments[:200]
                assert "vllm" not in process.name().lower()
    holding = set()
    for path in rig.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(rig.root / "engine"):
            with contextlib.suppress(OSError):
                if KEY.encode() in path.read_bytes():
                    holding.add(
                        re.sub(r"pixtral-[0-9a-f]{8}|sky_job_\d+", "*", str(path.relative_to(rig.root)))
                    )
    allowed = {
        "node-home/.sky_clusters/*/.bash_history",
        "node-home/.sky_clusters/*/.sky/sky_app/*",
        "state/job_state",
        "state/job_state.old",
    }
    assert not [name for name in holding - allowed if not name.startswith("home/.sky/")], holding
    print("SkyPilot and Slurm keep the key in:", *sorted(holding))
    assert not [name for name in holding if name.endswith(".log")]


def test_nothing_is_left(rig):
    """The last: it takes the rig down, and looks."""
    before = {process.pid for process in rig.processes()}
    assert before
    rig.down()
    assert rig.processes() == []
    assert not rig.root.exists()
    assert not Path("/etc/slurm/slurm.conf").exists()
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & {2222, 6817, 6818, 46595, PORT}
