"""The real SkyPilot launches the real pixtral.yaml on a real Slurm, all of it on this machine.

As root, on Debian: `make e2e`. The engine is that of a rehearsal, and so are the tiny weights; the script
is what the file has.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pixtral_sky.deploy import task
from pixtral_sky.rehearsal import checkpoint, engine
from pixtral_sky.rehearsal import process as rehearsal
from tests.conftest import ROOT
from tests.support.journey import Journey
from tests.support.processes import command

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
            "TMPDIR": str(root / "tmp"),
            "HF_TOKEN": "hf_e2e",
        }
        for name in ("XDG_CACHE_HOME", "PIXTRAL_ENDPOINT", "PIXTRAL_API_KEY"):
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
        (self.root / "tmp").mkdir()
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
        shutil.copytree(checkpoint.tiny(made), self.root / "model")
        return target

    def sky(self, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            ["sky", *arguments], env={**self.environ, "PIXTRAL_API_KEY": KEY}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
        assert result.returncode == 0 or not check, result.stdout
        return result

    def cli(
        self, *arguments: object, key: str = "", code: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`pixtral-sky`, as from a shell of its user's; ``key`` is the PIXTRAL_API_KEY there."""
        environ = {**self.environ, "PIXTRAL_API_KEY": key} if key else self.environ
        begin = time.monotonic()
        result = subprocess.run(
            ["pixtral-sky", *map(str, arguments)],
            env=environ,
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        print(f"{time.monotonic() - begin:5.1f} s  pixtral-sky", *arguments[:3])
        assert result.returncode == code, result.stdout + result.stderr
        if "--env" not in arguments or arguments[0] == "launch":
            assert not key or key not in result.stdout + result.stderr
        return result

    def row(self, **options) -> dict:
        """What `status` says of the one deployment."""
        return json.loads(self.cli("status", "pixtral", "--json", **options).stdout)[0]

    def key(self) -> str:
        """The one that is remembered."""
        return json.loads((self.home / "pixtral-sky/deployments/pixtral.json").read_text())["key"]

    def server(self) -> list[psutil.Process]:
        """The vLLM of the job."""
        return [each for each in self.processes() if "vllm serve" in command(each)]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    assert os.geteuid() == 0, "this test brings up a Slurm, and needs to be root: make e2e"
    rig = Rig(Path(tempfile.mkdtemp(prefix="pixtral-e2e-", dir="/tmp")))
    try:
        rig.up()
        yield rig
    finally:
        rig.down()


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(1)
    return result


@pytest.fixture(scope="module")
def launch(rig) -> list[str]:
    """What points pixtral.yaml at the engine of a rehearsal, at tiny weights, and at the one GPU that Slurm counts."""
    envs = {
        "MODEL": str(rig.root / "model"),
        "VENV": str(rig.engine()),
        "PORT": str(PORT),
        "EXTRA_ARGS": rehearsal.CPU_ARGS,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    words = [word for name, value in envs.items() for word in ("--env", f"{name}={value}")]
    return ["--yes", "--infra", "slurm/e2e", "--gpus", "A100:1", *words]


@pytest.fixture
def alone(rig) -> Iterator[None]:
    """What a test that failed has left running would be the next one's."""
    yield
    if (rig.home / "pixtral-sky/deployments/pixtral.json").exists():
        subprocess.run(["pixtral-sky", "down"], env=rig.environ, capture_output=True)


@pytest.fixture
def hub(rig, monkeypatch) -> Iterator[None]:
    """A hub that opens the model to the token of the rig."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == "Bearer hf_e2e" else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(rig.environ, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def it_answers(rig: Rig, tmp_path: Path, **options) -> None:
    """What a user does with a deployment that runs, and what a stranger may not."""
    row = rig.row(**options)
    assert (row["state"], row["infra"], row["gpus"], row["private"]) == ("up", "slurm/e2e", "A100:1", True)
    assert row["answers"], row
    assert row["spent"] == row["hourly"] == 0

    from PIL import Image

    logo = tmp_path / "logo.png"
    Image.new("RGB", (400, 400), "orange").save(logo)
    asked = rig.cli("ask", "Turn this logo into ASCII art.", logo, "--json", "--max-tokens", 4)
    assert json.loads(asked.stdout)["usage"]["prompt_tokens"] == 660
    pictures = [ROOT / "examples" / name for name in ("chart.png", "receipt.jpg")]
    asked = rig.cli("ask", "What is", pictures[0], "and", pictures[1], "--max-tokens", 4, "--usage")
    assert re.search(r"5,?\d\d\d tokens in the prompt, 4 in the answer", asked.stderr)

    url = rig.cli("endpoint").stdout.strip()
    refused = rig.cli("ask", "--endpoint", url, "--api-key", "wrong", "Hello", code=1)
    assert "does not take this key (401)" in refused.stderr
    assert "Application startup complete" in rig.cli("logs").stdout
    # vLLM listens for the tunnel only, and the tunnel for this machine only.
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port in (PORT, int(url.rpartition(":")[2]))
    }
    assert listening == {"127.0.0.1"}


def it_ends_itself(rig: Rig, minutes: float) -> None:
    """No bill by accident: nobody asks, the server ends, and the job is done."""
    wait_for(lambda: not rig.server(), minutes * 60 + 60)
    row = rig.row(code=1)
    assert "its server has ended itself" in row["problem"], row
    assert f"gateway: no request for {minutes:g} minutes" in rig.cli("logs").stdout


def it_is_gone(rig: Rig) -> str:
    """Take it down, and look; what `down` says."""
    said = rig.cli("down").stderr
    assert "nothing of it left" in said
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert queue == ""
    assert rig.server() == []
    assert "no deployment named 'pixtral'" in rig.cli("status", "pixtral", code=2).stderr
    assert list((rig.home / "pixtral-sky/deployments").iterdir()) == []
    # The tunnel too.
    assert not [each for each in rig.processes() if re.match(r"\S*ssh .*-L ", command(each))]
    return said


def test_from_the_command_line(rig, launch, hub, alone, tmp_path):
    said = rig.cli("doctor").stdout
    assert "slurm/e2e" in said
    assert "the token opens mistralai/Pixtral-12B-2409" in said

    # docs/journeys/slurm.md, whose launch is that of `launch` without what points it at the tiny model
    page = Journey("slurm")
    page.check(rig.cli(*page.next()).stdout)
    assert page.next() == ["launch", *launch[: launch.index("--env")]]
    begin = time.monotonic()
    launched = rig.cli("launch", *launch)
    page.check(launched.stderr.replace("you asked for it:\n", f"you asked for it:\n{launched.stdout}"))
    print(f"answers {time.monotonic() - begin:.0f} s after the launch")
    assert launched.stdout.startswith("http://127.0.0.1:")
    assert "Slurm (e2e)" in launched.stderr, "the candidates, with their price"
    for phase in ("machine", "starting the server", "Next:  pixtral-sky ask picture.jpg"):
        assert phase in launched.stderr
    key = rig.key()
    assert len(key) >= 43
    assert key not in launched.stdout + launched.stderr
    page.check(rig.cli(*page.next()).stdout)
    it_answers(rig, tmp_path)
    page.check("(noise)\n" + rig.cli(*page.next(), cwd=tmp_path).stderr)
    said = rig.cli("doctor").stdout
    assert re.search(r"ok +gateway +shut to all without the key", said)
    assert re.search(r"ok +picture ", said)
    the_key_is_where_skypilot_puts_it_and_nowhere_else(rig, key)

    # The second launch takes the place of the first, with the same key.
    before = {each.pid for each in rig.server()}
    again = rig.cli("launch", *launch, "--idle", "0.75")  # which has had an answer when it ends
    assert "it is updated" in again.stderr
    assert rig.key() == key
    assert not before & {each.pid for each in rig.server()}
    it_ends_itself(rig, 0.75)
    assert page.next() == ["down"]
    page.check(it_is_gone(rig))
    assert not page.left


def test_a_bare_sky_launch(rig, launch, alone, tmp_path):
    shutil.copy(ROOT / "pixtral.yaml", tmp_path)  # alone: nothing else of the project goes with it
    begin = time.monotonic()
    rig.sky(
        "launch", "--detach-run", "-c", "pixtral", "pixtral.yaml", *launch, "--ports", "none",
        "--env", "IDLE_MINUTES=1", "--env", "LISTEN=127.0.0.1", "--secret", "PIXTRAL_API_KEY", cwd=tmp_path,
    )  # fmt: skip
    print(f"launched in {time.monotonic() - begin:.0f} s")
    assert "5m (down)" in rig.sky("status", "pixtral").stdout
    wait_for(rig.server, 120)
    wait_for(
        lambda: "startup complete" in rig.sky("logs", "--no-follow", "pixtral", "1", check=False).stdout, 120
    )
    print(f"answers after {time.monotonic() - begin:.0f} s")
    it_answers(rig, tmp_path, key=KEY)
    the_key_is_where_skypilot_puts_it_and_nowhere_else(rig, KEY)
    it_ends_itself(rig, 1)
    it_is_gone(rig)


def the_key_is_where_skypilot_puts_it_and_nowhere_else(rig: Rig, key: str) -> None:
    """SkyPilot 0.14 hands a job's secrets on by the arguments of its own programs on a Slurm node, and by files."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            arguments = command(process)
            if key in arguments:
                assert "skypilot" in arguments, arguments[:200]
                assert "vllm" not in process.name().lower()
    holding = set()
    for path in [*rig.root.rglob("*"), *Path("/tmp").glob("sky_*")]:
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(rig.root / "engine"):
            with contextlib.suppress(OSError):
                if key.encode() in path.read_bytes():
                    name = str(path.relative_to(rig.root) if path.is_relative_to(rig.root) else path)
                    holding.add(re.sub(r"pixtral-[0-9a-f]{8}|(?<=/sky_)(job|app|setup)_[^/]+", "*", name))
                    assert not path.stat().st_mode & 0o077 or path.is_relative_to(rig.root / "node-home")
    assert holding <= {
        "home/pixtral-sky/deployments/pixtral.json",  # ours, and 0600
        # SkyPilot's, on the node, and Slurm's.
        "node-home/.sky_clusters/*/.bash_history",
        "node-home/.sky_clusters/*/.sky/sky_app/sky_*",
        "/tmp/sky_*",
        "state/job_state",
        "state/job_state.old",
    }, holding
    print("The key is kept in:", *sorted(holding))


def test_nothing_is_left(rig):
    """The last: it takes the rig down, and looks."""
    node = pwd.getpwnam("pixtral-e2e").pw_uid
    before = {process.pid for process in rig.processes()}
    assert before
    rig.down()
    assert rig.processes() == []
    assert not rig.root.exists()
    assert not Path("/etc/slurm/slurm.conf").exists()
    assert not [path for path in Path("/tmp").iterdir() if path.lstat().st_uid == node]
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & {2222, 6817, 6818, 46595, PORT}
