"""The task files: what SkyPilot itself says of them, and what their scripts do on a bad machine."""

from __future__ import annotations

import contextlib
import copy
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from pixtral_sky.deploy import task
from pixtral_sky.errors import UsageError
from pixtral_sky.pixtral import MODEL
from tests.conftest import ROOT
from tests.support.services import SNIPPETS
from tests.support.services import shown as config

FILES = ("pixtral.yaml", "service.yaml")
EXAMPLES = ("examples/scale-to-zero.yaml", "examples/tls.yaml")
SERVICES = ("service.yaml", *EXAMPLES, *SNIPPETS)
ALL = ("pixtral.yaml", *SERVICES)
# What snippets of the guide say of where replicas run, and no file does.
PLACES = {
    "kubernetes": {"Kubernetes"},
    "regions": {"GCP/europe-west4", "AWS/eu-central-1", "Nebius/eu-north1"},
}


def validate(sky, cfg: dict, key: str = "abc", is_service: bool = False):
    loaded = sky.Task.from_yaml_config(copy.deepcopy(cfg), secrets_overrides=[("PIXTRAL_API_KEY", key)])
    if is_service or loaded.service is not None:
        sky.serve.serve_utils.validate_service_task(loaded, pool=False)
    return loaded


@pytest.mark.parametrize("name", ALL)
def test_skypilot_takes_it(sky, name):
    loaded = validate(sky, config(name))
    assert loaded.name == "pixtral"
    assert {next(iter(r.accelerators.items())) for r in loaded.resources} == {
        ("L4", 2), ("L4", 4), ("A10G", 4), ("L40S", 1), ("A100", 1), ("A100-80GB", 1), ("H100", 1),
    }  # fmt: skip
    # Where it may run; each GPU in each of the places.
    places = {f"{r.cloud}/{r.region}".removesuffix("/None") for r in loaded.resources}
    assert places == PLACES.get(name, {"None"})
    assert len(loaded.resources) == 7 * len(places)
    for resources in loaded.resources:
        assert resources.ports == ["8081"]
        assert resources.use_spot == (name == "spot")
        # Nothing that is asked for keeps Kubernetes out, and no zone or machine type is named.
        unsupported = set(sky.clouds.Kubernetes._CLOUD_UNSUPPORTED_FEATURES)
        if resources.use_spot:  # which is for those clusters that have it
            unsupported -= {sky.clouds.CloudImplementationFeatures.SPOT_INSTANCE}
        assert not resources.get_required_cloud_features() & unsupported
        assert resources.zone is resources.instance_type is resources.image_id is None
        if name != "kubernetes":  # where a disk is the node's own
            assert resources.disk_size == 200


def test_a_machine_is_taken_down_and_a_replica_is_not(sky):
    for resources in validate(sky, config("pixtral.yaml")).resources:
        assert resources.autostop_config.enabled
        assert resources.autostop_config.down
        assert resources.autostop_config.idle_minutes == 5
    assert task.load(ROOT / "pixtral.yaml").number("IDLE_MINUTES") == 30
    for name in SERVICES:
        for resources in validate(sky, config(name)).resources:
            assert resources.autostop_config is None
        assert config(name)["envs"]["IDLE_MINUTES"] == 0


def test_the_machine_is_no_service(sky):
    """What older guides do: said before anything is made, or even asked for."""
    from click.testing import CliRunner
    from sky.client.cli.command import cli

    done = CliRunner().invoke(cli, ["serve", "up", "-y", "-n", "pixtral", str(ROOT / "pixtral.yaml")])
    assert isinstance(done.exception, ValueError)
    said = "Service section not found in the YAML file. To fix, add a valid `service` field."
    assert str(done.exception) == said
    page = (ROOT / "docs/guides/replicas.md").read_text()
    assert said in page


@pytest.mark.parametrize("name", SERVICES)
def test_the_probe_carries_the_key_and_generates_nothing(sky, name):
    service = validate(sky, config(name), "sesame").service
    assert service.readiness_headers == {"Authorization": "Bearer sesame"}
    assert service.readiness_path == "/v1/models"
    assert service.post_data is None
    # 25 GB at 20 MB/s, and ten minutes for the wheels and the start.
    assert service.initial_delay_seconds >= 25e9 / 20e6 + 600
    fewest = 0 if name == "examples/scale-to-zero.yaml" else 2
    assert (service.min_replicas, service.max_replicas, service.target_qps_per_replica) == (fewest, 8, 2)
    assert service.load_balancing_policy == "least_load"
    assert service.lb_stream_timeout_seconds == 600


def test_an_example_differs_from_the_service_in_what_it_is_about(sky):
    one = config("service.yaml")
    inner = ("service", "resources")

    def differences(other: dict) -> set[str]:
        pairs = [(f"{part}.", one[part], other[part]) for part in inner] + [("", one, other)]
        return {
            prefix + key
            for prefix, a, b in pairs
            for key in {*a, *b} - {*inner}
            if a.get(key) != b.get(key)
        }  # fmt: skip

    assert {name: differences(config(name)) for name in SERVICES[1:]} == {
        "spot": {"service.replica_policy", "resources.use_spot"},
        "examples/scale-to-zero.yaml": {"service.replica_policy"},
        "examples/tls.yaml": {"service.tls"},
        "kubernetes": {
            "config",
            "resources.infra",
            "resources.disk_size",
        },
        "regions": {"resources.any_of"},
    }
    policy = one["service"]["replica_policy"]
    fallback = {"base_ondemand_fallback_replicas": 1, "dynamic_ondemand_fallback": True}
    assert config("spot")["service"]["replica_policy"] == {**policy, **fallback}
    zero = {"min_replicas": 0, "downscale_delay_seconds": 1800}
    assert config("examples/scale-to-zero.yaml")["service"]["replica_policy"] == {**policy, **zero}

    tls = validate(sky, config("examples/tls.yaml")).service.tls_credential
    assert (tls.keyfile, tls.certfile) == ("~/.pixtral-sky/tls/key.pem", "~/.pixtral-sky/tls/cert.pem")
    for resources in validate(sky, config("kubernetes")).resources:
        assert resources.disk_size == 64
        assert resources.cluster_config_overrides == {"kubernetes": {"provision_timeout": 900}}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_begins_with_its_own_command(name):
    head = (ROOT / name).read_text().partition("\nname: pixtral\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"sky serve up -n pixtral {name} --secret HF_TOKEN --secret PIXTRAL_API_KEY" in head
    assert "until: sky serve down pixtral" in head


def broken(cfg: dict, *path: str, value=None, remove: str | None = None) -> dict:
    cfg = copy.deepcopy(cfg)
    inner = cfg
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if remove:
        del cfg[remove]
    return cfg


@pytest.mark.parametrize(("name", "path", "value"), [
    ("pixtral.yaml", ("resource",), {}),
    ("pixtral.yaml", ("resources", "acelerators"), "L4:2"),
    ("pixtral.yaml", ("resources", "accelerators"), "A100:none"),
    ("pixtral.yaml", ("resources", "autostop"), {"idle_minutes": 5, "dwon": True}),
    ("pixtral.yaml", ("resources", "disk_tier"), "fast"),
    ("pixtral.yaml", ("resources", "ports"), "http"),
    ("pixtral.yaml", ("envs", "MODEL"), None),
    ("service.yaml", ("service", "readiness_probe"), {"path": "/v1/models", "header": {}}),
    ("service.yaml", ("service", "replica_policy", "min_replicas"), 9),
    ("service.yaml", ("service", "load_balancing_policy"), "random"),
    ("service.yaml", ("service", "load_balancer"), {"stream_timeout": 600}),
    ("service.yaml", ("service",), None),
    ("spot", ("resources", "use_spot"), False),
    ("spot", ("service", "replica_policy", "spot_placer"), "dynamic_fallback"),
    ("examples/tls.yaml", ("service", "tls"), {"keyfile": "key.pem"}),
    ("kubernetes", ("resources", "infra"), "kubernets"),
    ("kubernetes", ("config", "kubernetes", "provision_timeout"), "long"),
    ("regions", ("resources", "any_of"), [{"infra": "gcp", "use_spot": True}, {"infra": "aws"}]),
])  # fmt: skip
def test_skypilot_rejects_a_broken_copy(sky, name, path, value):
    cfg = broken(config(name), *path, value=value)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        validate(sky, cfg, is_service=name in SERVICES)


def test_the_files_are_as_rendered():
    result = subprocess.run(
        ["python3", "tools/render.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_changed_file_is_noticed(tmp_path):
    for name in ("tools", "templates", "pixtral_sky", "examples", *FILES):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    with (tmp_path / "service.yaml").open("a") as file:
        file.write("# changed\n")
    (tmp_path / "examples" / "tls.yaml").unlink()
    result = subprocess.run(
        ["python3", "tools/render.py", "--check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "service.yaml differs from its rendering" in result.stderr
    assert "examples/tls.yaml differs from its rendering" in result.stderr
    assert subprocess.run(["python3", "tools/render.py"], cwd=tmp_path, check=True)
    for name in (*FILES, *EXAMPLES):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


@pytest.mark.parametrize("name", ["service.yaml", *EXAMPLES])
def test_all_files_run_the_same_scripts(name):
    one, other = task.load(ROOT / "pixtral.yaml"), task.load(ROOT / name)
    assert (one.run, one.setup) == (other.run, other.setup)
    assert {**one.envs, "IDLE_MINUTES": ""} == {**other.envs, "IDLE_MINUTES": ""}
    assert one.envs["MODEL"] == MODEL


SERVER = sorted((ROOT / "pixtral_sky" / "server").glob("[!_]*.py"))


def test_the_gateway_is_small_enough_to_be_carried_and_read():
    lines = [line for path in SERVER for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 900
    for name in ("pixtral.yaml", "service.yaml", *EXAMPLES):
        assert len(task.load(ROOT / name).run.encode()) < 100 * 1024  # SkyPilot's limit of an inline script


@pytest.mark.parametrize("path", SERVER, ids=lambda path: path.name)
def test_the_gateway_needs_the_standard_library_alone_until_it_is_asked(path):
    """vLLM's environment has the rest of what it imports where it uses it."""
    imports = re.findall(r"^(?:import|from) (\w[\w.]*|\.)", path.read_text(), re.M)
    assert set(imports) <= {*sys.stdlib_module_names, "."}


# --- the scripts, in a shell with the programs of a GPU machine played by stand-ins


class Hub(http.server.BaseHTTPRequestHandler):
    """The licence gate: 401 without a token, 403 with one that has not accepted, 200 with the right one."""

    def do_HEAD(self):
        token = self.headers.get("Authorization")
        status = {None: 401, "Bearer good": 200, "Bearer other": 403}.get(token, 401)
        if not self.path.startswith(
            (f"/{MODEL}/resolve/main/params.json", f"/{MODEL}/resolve/refs%2Fpr%2F1/params.json")
        ):
            status = 404
        if status == 200 and self.path.endswith("params.json"):
            self.send_response(307)
            self.send_header("Location", self.path + "?there")
        else:
            self.send_response(status)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def quick(script: str) -> str:
    """It looks ten times a second, not once, whether the server is up; what it counts are still seconds."""
    return script.replace("sleep 1", "sleep 0.1")


class Machine:
    """A GPU machine: nvidia-smi and uv are stand-ins that write down how they are called."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder, self.calls = folder, folder / "calls"
        (folder / "bin").mkdir()
        self.env = {
            "PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "HF_ENDPOINT": hub, "HF_TOKEN": "good",
            "PIXTRAL_API_KEY": "sesame", "SKYPILOT_NUM_GPUS_PER_NODE": "2", "no_proxy": "*",
            **task.load(ROOT / "pixtral.yaml").envs,
        }  # fmt: skip
        self.gpus("NVIDIA L4", 23034, 2)
        # It makes an environment that has hf, or installs the pinned uv, which is this one.
        self.program(
            "uv",
            f"""
            env | sort >> $HOME/environment.uv
            for last in "$@"; do :; done
            case "$1 $2" in
              venv*) mkdir -p "$last/bin"; cp {folder}/bin/hf "$last/bin/"; touch "$last/bin/python"; chmod +x "$last/bin/python" ;;
              "pip install") [ "$5" != --target ] || {{ mkdir -p "$6/bin"; cp {folder}/bin/uv "$6/bin/"; cp "$last" $HOME/uv.txt; }} ;;
            esac""",
        )
        self.program("hf", "")
        self.program(
            "vllm", "env | sort > $HOME/environment; cp -r ${PYTHONPATH%%:*}/pixtral_gateway $HOME/gateway"
        )

    def gpus(
        self, name: str, mib: int, count: int, nvlink: bool = False, capability="8.9", driver="580.95.05"
    ) -> None:
        """nvidia-smi as it answers there: a line a GPU, and the matrix of its links."""
        link = "NV12" if nvlink else "PHB"
        self.env["SKYPILOT_NUM_GPUS_PER_NODE"] = str(count)
        self.program("nvidia-smi", f"""
            case "$1" in
              topo) echo "GPU0 X {link if count > 1 else ""}"; echo "Legend: NV#  = a bonded set of # NVLinks" ;;
              *) for i in $(seq {count}); do
                   case "$1" in *driver*) echo {driver} ;; *) echo "{name}, {mib}, {capability}" ;; esac
                 done ;;
            esac""")  # fmt: skip

    def program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def run(
        self, script: str, changed: Callable[[str], str] = str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        file = self.folder / "script.sh"
        file.write_text(changed(quick(getattr(task.load(ROOT / "pixtral.yaml"), script))))
        return subprocess.run(
            ["bash", file], env={**self.env, **env}, capture_output=True, text=True, cwd=self.folder
        )

    def called(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def machine(tmp_path, hub):
    return Machine(tmp_path, hub)


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pixtral: ")
    return lines[0]


def test_setup_installs_the_pinned_vllm_and_the_mistral_files(machine):
    result = machine.run("setup")
    assert result.returncode == 0, result.stderr
    assert (
        f"--compile-bytecode --exclude-newer {machine.env['PACKAGES_AS_OF']} vllm==0.32.0" in machine.called()
    )
    assert (
        f"hf download {MODEL} --revision main --include consolidated*.safetensors --include params.json --include tekken.json"
        in (machine.called())
    )
    assert "good" not in machine.called()  # the token is in nobody's arguments


def test_setup_takes_a_pinned_uv_and_shows_nobody_the_keys(machine):
    machine.run("setup", HF_TOKEN="good")
    assert re.fullmatch(
        r"uv==[\d.]+( --hash=sha256:[0-9a-f]{64}){2}\n", (machine.folder / "uv.txt").read_text()
    )
    seen = (machine.folder / "environment.uv").read_text()
    assert "good" not in seen
    assert "sesame" not in seen
    assert "curl" not in task.load().setup.partition("installing vLLM")[2]
    # It is there: nothing is installed again.
    machine.calls.unlink()
    machine.run("setup")
    assert "--require-hashes" not in machine.called()


def test_setup_takes_pip_where_there_is_no_uv(machine):
    (machine.folder / "bin/uv").rename(machine.folder / "pinned")
    machine.program("python3", 'for last in "$@"; do :; done; mkdir -p "$7/bin"; cp $HOME/pinned "$7/bin/uv"')
    result = machine.run("setup")
    assert result.returncode == 0, result.stderr
    assert "python3 -m pip install --quiet --require-hashes --target" in machine.called()
    machine.program("python3", "exit 1")
    shutil.rmtree(machine.folder / ".pixtral-sky")
    assert "cannot be installed" in one_line(machine.run("setup"))


def test_setup_with_a_mirror_that_knows_no_dates(machine):
    machine.run("setup", PACKAGES_AS_OF="")
    assert "--compile-bytecode vllm==0.32.0" in machine.called()


def test_setup_takes_another_revision_of_the_weights(machine):
    assert machine.run("setup", MODEL_REVISION="refs/pr/1").returncode == 0
    assert f"hf download {MODEL} --revision refs/pr/1 " in machine.called()
    assert "at revision v2) at" in one_line(machine.run("setup", MODEL_REVISION="v2"))


def test_setup_without_a_c_compiler(machine):
    """All programs that it needs but a compiler: as root where it is root, else by sudo."""
    for name in (
        "bash",
        "env",
        "curl",
        "mkdir",
        "cp",
        "sort",
        "touch",
        "chmod",
        "seq",
        "id",
        "cat",
        "sed",
        "dirname",
    ):
        if found := shutil.which(name):
            (machine.folder / "bin" / name).symlink_to(found)
    machine.program("apt-get", "env >> $HOME/environment.apt-get")
    machine.program("sudo", 'shift; "$@"')
    alone = {"PATH": f"{machine.folder}/bin"}
    assert machine.run("setup", **alone).returncode == 0
    assert "apt-get install -y gcc libc6-dev" in machine.called()
    assert "sesame" not in (machine.folder / "environment.apt-get").read_text()
    machine.program("apt-get", "exit 100")
    assert "no C compiler on this machine (gcc)" in one_line(machine.run("setup", **alone))
    machine.program("gcc", "")
    machine.calls.unlink()
    assert machine.run("setup", **alone).returncode == 0
    assert "apt-get" not in machine.called()


def test_setup_on_an_old_driver(machine):
    machine.gpus("NVIDIA L4", 23034, 2, driver="570.86.15")
    line = one_line(machine.run("setup"))
    assert "driver here is 570.86.15" in line
    assert "580 or newer" in line
    assert "image_id" in line
    assert "uv" not in machine.called()


def test_setup_without_a_driver(machine):
    (machine.folder / "bin" / "nvidia-smi").unlink()
    assert "no NVIDIA driver" in one_line(machine.run("setup"))


@pytest.mark.parametrize(("token", "says"), [
    ("", "token is missing or wrong"), ("expired", "token is missing or wrong"), ("other", "Accept the licence"),
])  # fmt: skip
def test_setup_at_a_closed_licence_gate(machine, token, says):
    result = machine.run("setup", HF_TOKEN=token)
    line = one_line(result)
    assert says in line
    assert f"/{MODEL}" in line
    assert not token or token not in line
    assert "uv" not in machine.called()  # before anything is downloaded


def test_setup_with_a_model_that_is_not_there(machine):
    assert "no mistralai/Nothing in Mistral's format" in one_line(
        machine.run("setup", MODEL="mistralai/Nothing")
    )


def test_setup_with_no_hub(machine):
    assert "does not answer" in one_line(machine.run("setup", HF_ENDPOINT="http://127.0.0.1:1"))


@pytest.mark.parametrize("script", ["setup", "run"])
@pytest.mark.parametrize(("name", "values"), [
    ("MAX_IMAGES", ["four"]), ("MAX_MODEL_LEN", ["32k"]), ("PRECISION", ["fp16"]), ("MODEL_REVISION", ["$(id)"]),
    ("PACKAGES_AS_OF", ["today"]), ("IDLE_MINUTES", ["30 min"]), ("START_MINUTES", ["1.5"]), ("MAX_BODY_MIB", ["0"]),
    ("PORT", [""]), ("PIXTRAL_API_KEY", ["with space", 'a"b', "a\\b", "\u00fc", "a\nb", "$(id)"]),
])  # fmt: skip
def test_a_value_that_is_none_is_said_at_once(machine, script, name, values):
    """Many more values: test_checks.py."""
    for value in values:
        line = one_line(machine.run(script, **{name: value}))
        assert line.startswith(f"pixtral: {name}")
    assert machine.called() == ""


def test_a_token_cannot_reach_the_options_of_curl(machine):
    for token in ('a"b', "a\nurl = x", "a b"):
        assert "HF_TOKEN has characters" in one_line(machine.run("setup", HF_TOKEN=token))


def test_run_says_what_is_wrong_with_its_arguments(machine):
    assert "EXTRA_ARGS is not quoted" in one_line(machine.run("run", EXTRA_ARGS="it's"))
    (machine.folder / "bin" / "vllm").unlink()
    assert "there is no vllm in VENV=/nowhere" in one_line(machine.run("run", VENV="/nowhere"))


def test_who_ends_the_script_ends_the_server(machine):
    machine.program(
        "vllm",
        "trap 'echo ended >> $HOME/calls; exit 0' TERM; echo up >> $HOME/calls; while :; do sleep 0.05; done",
    )
    (machine.folder / "script.sh").write_text(quick(task.load(ROOT / "pixtral.yaml").run))
    process = subprocess.Popen(["bash", machine.folder / "script.sh"], env=machine.env, cwd=machine.folder)
    while "up" not in machine.called():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(10) == 0
    assert "ended" in machine.called()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_whole_group_ends_the_server_in_order(machine, number):
    """As scancel and a closing terminal send it: the script's own sleep dies of it as well."""
    machine.program(
        "vllm", "trap 'sleep 0.3; exit 0' TERM; echo $$ > $HOME/pid; while :; do sleep 0.05; done"
    )
    (machine.folder / "script.sh").write_text(task.load(ROOT / "pixtral.yaml").run)
    process = subprocess.Popen(
        ["bash", machine.folder / "script.sh"], env=machine.env, cwd=machine.folder, start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores HUP, and so would the script
    )  # fmt: skip
    pid = machine.folder / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    os.killpg(process.pid, number)
    assert process.wait(10) == 0
    assert not psutil.pid_exists(int(pid.read_text()))


def test_no_server_stays_behind_however_the_script_ends(mortal):
    mortal.ends("time.sleep(60)")
    mortal.program("vllm", f"echo child $$; exec {sys.executable} $HOME/server.py")
    result = mortal.run("run", lambda script: script.replace("  is_up=1\n", "  exit 9\n"))
    assert result.returncode == 9
    (pid,) = re.findall(r"^child (\d+)", result.stdout, re.MULTILINE)
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(int(pid))
        deadline = time.monotonic() + 5  # it was killed, and a busy machine takes a moment for that
        while server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_port_that_is_in_use(machine):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = machine.run(
            "run",
            lambda script: script.replace("{1..60}", "{1..2}"),
            LISTEN="127.0.0.1",
            PORT=str(other.getsockname()[1]),
        )
    assert "is in use on this machine" in one_line(result)
    assert "vllm serve" not in machine.called()


@pytest.mark.parametrize(
    "said", ["NVIDIA GB10, [N/A], 12.1", "No devices were found", "WARNING: infoROM is corrupted"]
)
def test_gpus_that_say_nothing_of_use_are_taken_for_small_ones(machine, said):
    machine.program("nvidia-smi", f"echo '{said}'")
    result = machine.run("run")
    assert (
        "On 2 x CPU: bf16, at most 32768 tokens of context, 4352 a step, 0.88 of the memory" in result.stdout
    )
    assert result.stderr == ""


@pytest.mark.parametrize("script", ["setup", "run"])
def test_a_service_without_a_key_ends_at_once(machine, script):
    line = one_line(machine.run(script, PIXTRAL_API_KEY="", SKYPILOT_SERVE_REPLICA_ID="1"))
    assert "a service needs a key" in line
    assert "--secret PIXTRAL_API_KEY" in line
    assert machine.called() == ""


def test_setup_with_all_that_is_there_already_does_nothing(machine):
    (machine.folder / "bin" / "nvidia-smi").unlink()
    result = machine.run("setup", MODEL=str(machine.folder), VENV="/somewhere")
    assert (result.returncode, result.stderr, machine.called()) == (0, "", "")


def environment(machine) -> dict[str, str]:
    lines = (machine.folder / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_run_starts_vllm_behind_the_door(machine):
    result = machine.run("run", EXTRA_ARGS="""--seed 7 --default-chat-template-kwargs '{"a": "b c"}'""")
    assert (result.returncode, result.stderr) == (1, "")  # as nobody has asked it to end
    called = machine.called()
    for flag in (
        f"serve {MODEL} --revision main --served-model-name pixtral {MODEL}", "--host 0.0.0.0 --port 8081", "--tensor-parallel-size 2",
        "--tokenizer-mode mistral --config-format mistral --load-format mistral",
        '--limit-mm-per-prompt {"image": 4}', "--enable-auto-tool-choice --tool-call-parser mistral",
        "--allowed-media-domains /", "--middleware pixtral_gateway.gateway.Gateway", "--api-server-count 1",
        "--seed 7", '{"a": "b c"}',
    ):  # fmt: skip
        assert flag in called
    assert "sesame" not in called  # the key is in nobody's arguments
    env = environment(machine)
    assert {
        "VLLM_API_KEY": "sesame",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
        "VLLM_USE_DEEP_GEMM": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
        "VLLM_MAX_IMAGE_PIXELS": "52000000",
        "VLLM_MAX_N_SEQUENCES": "16",
        "UV_THREADPOOL_SIZE": "64",
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
    }.items() <= env.items()
    assert len(env["VLLM_RPC_BASE_PATH"]) <= 107 - 37  # of a socket's path, and what vLLM adds
    # The gateway's modules, to the letter.
    carried = {path.name: path.read_text() for path in (machine.folder / "gateway").iterdir()}
    assert carried == {path.name: path.read_text() for path in SERVER}
    assert not Path(env["PYTHONPATH"].split(":")[0]).exists()  # it is gone with the server


def test_run_without_a_key_listens_on_loopback_only(machine):
    result = machine.run("run", PIXTRAL_API_KEY="", LISTEN="0.0.0.0")
    assert "--host 127.0.0.1 " in machine.called()
    assert "no PIXTRAL_API_KEY, so it listens on 127.0.0.1 only" in result.stdout
    assert "ssh -N -L 8081:localhost:8081 pixtral" in result.stdout


def test_run_refuses_a_context_that_its_pictures_do_not_fit(machine):
    line = one_line(machine.run("run", MAX_MODEL_LEN="10240"))
    assert "MAX_IMAGES=4 pictures can need 16640 tokens" in line
    assert machine.called() == ""


def test_the_script_says_what_the_gpus_decided(machine):
    """What they decide: tests/test_memory.py."""
    assert (
        "\nOn 2 x NVIDIA L4: bf16, at most 32768 tokens of context, 4352 a step, 0.88 of the memory "
        "--disable-custom-all-reduce --hf-overrides" in "\n" + machine.run("run").stdout
    )


def test_without_a_gpu_it_is_as_on_a_small_one(machine):
    machine.env["SKYPILOT_NUM_GPUS_PER_NODE"] = "1"
    for change in (
        lambda: machine.program("nvidia-smi", "exit 9"),
        (machine.folder / "bin/nvidia-smi").unlink,
    ):
        change()
        assert "On 1 x CPU: bf16" in machine.run("run").stdout
        assert "--max-num-batched-tokens 4352 --gpu-memory-utilization 0.92 " in machine.called()


@pytest.mark.parametrize(("images", "context", "flags"), [
    ("1", "8192", '{"image": 1} --max-model-len 8192 '),
    ("8", "-1", '{"image": 8} --max-model-len -1 '),
    ("6", "", '--hf-overrides {"text_config": {"max_position_embeddings": 32768}} '),
    ("8", "", '--hf-overrides {"text_config": {"max_position_embeddings": 37376}} '),
])  # fmt: skip
def test_run_follows_its_numbers(machine, images, context, flags):
    machine.run("run", MAX_IMAGES=images, MAX_MODEL_LEN=context)
    assert flags in machine.called()
    assert ("--max-model-len -1 " in machine.called()) == (context in ("", "-1"))
    assert ("--hf-overrides" in machine.called()) == (context == "")


def test_on_a_cpu_it_is_by_channel(machine):
    machine.program("nvidia-smi", "exit 9")
    machine.run("run", PRECISION="fp8")
    assert "--quantization fp8_per_channel " in machine.called()


def test_nothing_in_extra_args_is_run(machine):
    machine.run("run", EXTRA_ARGS="--a $(touch gone) `touch gone` --b '$HOME' --c '' > gone; touch gone")
    assert "--a $(touch gone) `touch gone` --b $HOME --c  > gone; touch gone\n" in machine.called()
    assert not (machine.folder / "gone").exists()


def test_a_folder_for_temporary_files_may_have_a_long_name(machine):
    deep = machine.folder / ("d" * 120)
    deep.mkdir()
    machine.run("run", TMPDIR=str(deep))
    assert len(environment(machine)["VLLM_RPC_BASE_PATH"]) <= 107 - 37


def test_the_old_name_of_image_urls_is_refused(machine):
    result = machine.run("run", ALLOWED_MEDIA_HOSTS="a.example b.example")
    assert (result.returncode, machine.called()) == (1, "")
    assert "ALLOWED_MEDIA_HOSTS is called IMAGE_URLS now: IMAGE_URLS=a.example,b.example" in result.stderr


def test_run_ends_a_server_that_never_comes_up(machine):
    machine.program("vllm", "trap '' TERM; echo hangs; exec sleep 60")
    result = machine.run("run", partial(counted, seconds=40), START_MINUTES="1", PORT="9")
    assert "not up after START_MINUTES=1" in one_line(result)
    assert "hangs" in result.stdout


def test_run_passes_on_how_vllm_ended(machine):
    machine.program("vllm", "exit 3")
    assert machine.run("run").returncode == 3
    assert machine.called().count("vllm serve") == 1  # one that was never up is not started again


@pytest.fixture
def mortal(machine):
    """A server that listens, and ends when somebody connects, in a way of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        machine.env |= {"PORT": str(free.getsockname()[1]), "LISTEN": "127.0.0.1", "IDLE_MINUTES": "1"}

    def ends(how: str) -> None:
        (machine.folder / "server.py").write_text(
            "import os, pathlib, signal, socket, subprocess, sys, time\n"
            'server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))\n'
            f"server.accept()\nserver.close()\n{how}\n"
        )
        machine.program("vllm", f"exec {sys.executable} $HOME/server.py")

    machine.ends = ends
    return machine


def test_a_server_that_is_killed_is_started_again_three_times(mortal):
    # As vLLM does it, it leaves a process behind, which holds the GPU's memory.
    mortal.ends(
        'child = subprocess.Popen(["sleep", "60"])\n'
        'print("child", child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)'
    )
    result = mortal.run("run")
    assert result.returncode == 128 + signal.SIGKILL
    again = "== the server died (exit code 137), and is started again: {} of 3 times in an hour\n"
    assert [again.format(number) in result.stdout for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert "pixtral: the server died (exit code 137), after 3 restarts in an hour." in result.stderr
    assert mortal.called().count("vllm serve") == 4
    children = re.findall(r"^child (\d+)", result.stdout, re.MULTILINE)
    assert len(children) == 4
    with contextlib.suppress(psutil.NoSuchProcess):  # or init has not looked at it yet
        assert {psutil.Process(int(pid)).status() for pid in children} == {psutil.STATUS_ZOMBIE}


def test_an_engine_that_dies_is_a_failure_although_vllm_ends_with_0(mortal):
    mortal.ends("")
    started = 'date >> $HOME/starts; [ "$(wc -l < $HOME/starts)" -lt 2 ] || exit 5\n'
    mortal.program("vllm", f"{started}exec {sys.executable} $HOME/server.py")
    result = mortal.run("run")
    assert "the server died (exit code 1), and is started again: 1 of 3" in result.stdout
    assert result.returncode == 5  # that one was never up


def test_a_server_that_nobody_asks_is_not_started_again(mortal):
    mortal.ends('pathlib.Path(os.environ["GATEWAY_STATE"], "idle").touch()')
    result = mortal.run("run")
    assert (result.returncode, result.stderr) == (0, "")
    assert mortal.called().count("vllm serve") == 1


def test_a_replica_is_started_again_where_that_is_faster_than_another_one(mortal):
    mortal.ends("sys.exit(3)")
    service = {"SKYPILOT_SERVE_REPLICA_ID": "1", "IDLE_MINUTES": "0"}
    # Nobody waits 150 seconds here: a second counts for as many.
    for seconds, starts in ((1, 4), (150, 1)):
        (mortal.folder / "calls").unlink(missing_ok=True)
        result = mortal.run("run", partial(counted, seconds=seconds), **service)
        assert result.returncode == 3
        assert mortal.called().count("vllm serve") == starts
    assert "a start takes longer than SkyServe waits" in result.stderr


def counted(script: str, seconds: int) -> str:
    assert script.count("starting=$((starting + 1))") == 1
    return script.replace("starting + 1)", f"starting + {seconds})")


def test_all_starts_together_take_start_minutes_at_most(mortal):
    mortal.ends("sys.exit(3)")
    slow = 'date >> $HOME/starts; [ "$(wc -l < $HOME/starts)" -lt 2 ] || exec sleep 60\n'
    mortal.program("vllm", f"{slow}exec {sys.executable} $HOME/server.py")
    result = mortal.run("run", partial(counted, seconds=40), START_MINUTES="1")
    assert "not up after START_MINUTES=1" in one_line(result)


# --- the batch, a managed job


BATCH = "examples/batch.yaml"


def test_skypilot_takes_the_batch(sky):
    def load(bucket: list[tuple[str, str]]):
        return sky.Task.from_yaml_config(config(BATCH), env_overrides=bucket, secrets_overrides=[])

    loaded, one = load([("BUCKET", "s3://my-bucket")]), validate(sky, config("pixtral.yaml"))
    assert loaded.name == "pixtral-batch"
    assert loaded.service is None
    accelerators = [{str(each.accelerators) for each in task.resources} for task in (loaded, one)]
    assert accelerators[0] == accelerators[1]
    for resources in loaded.resources:
        assert resources.use_spot
        assert resources.ports is resources.autostop_config is None
    mounted = loaded.storage_mounts["/bucket"]
    assert (mounted.source, mounted.mode.value) == ("s3://my-bucket", "MOUNT")
    with pytest.raises(ValueError, match="BUCKET"):
        load([])


def test_the_batch_shares_its_scripts_and_begins_with_its_command():
    one, other = task.load(ROOT / "pixtral.yaml"), task.load(ROOT / BATCH)
    assert one.setup in other.setup
    assert f"serve() {{\n{one.run}" in other.run
    assert {**one.envs, "IDLE_MINUTES": ""}.items() <= {**other.envs, "IDLE_MINUTES": ""}.items()
    head = (ROOT / BATCH).read_text().partition("\nname: ")[0]
    assert f"sky jobs launch -n pixtral-batch --num-jobs 4 {BATCH} --env BUCKET=s3://my-bucket" in head


@pytest.fixture
def worker(machine):
    """A machine of the batch, the second of four, with a bucket; its server listens, and its batch writes a line."""
    envs = {name: "" if value is None else str(value) for name, value in config(BATCH)["envs"].items()}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    machine.env |= envs | {
        "PORT": port,
        "SKYPILOT_JOB_RANK": "1",
        "SKYPILOT_NUM_JOBS": "4",
        "PIXTRAL_API_KEY": "",
    }
    (machine.folder / "bucket").mkdir()
    machine.program("vllm", f"exec {sys.executable} -m http.server {port} --bind 127.0.0.1 2>/dev/null")
    machine.program(
        "pixtral-sky",
        'echo {} > "$HOME/pixtral-batch/part-2-of-4.jsonl.run.json"\n'
        'echo "{\\"id\\": \\"$PIXTRAL_ENDPOINT\\"}" >> "$HOME/pixtral-batch/part-2-of-4.jsonl"\neval "$THEN"',
    )
    programs = machine.folder / ".pixtral-sky/batch/bin"
    programs.mkdir(parents=True)
    (machine.folder / "bin/pixtral-sky").rename(programs / "pixtral-sky")
    (programs / "python").symlink_to(sys.executable)

    def start(**env: str) -> subprocess.Popen[str]:
        script = machine.folder / "script.sh"
        script.write_text(quick(task.load(ROOT / BATCH).run).replace("/bucket", f"{machine.folder}/bucket"))
        return subprocess.Popen(
            ["bash", script], env={**machine.env, **env}, text=True, cwd=machine.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    machine.start, machine.results = start, machine.folder / "bucket/results"
    return machine


def test_a_worker_does_its_share_and_saves_it(worker):
    with worker.start(BATCH_ARGS="--max-tokens 9 --system 'Be short.'") as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "== share 2 of 4" in out
    called = [line for line in worker.called().splitlines() if line.startswith("pixtral-sky")]
    assert called == [
        f"pixtral-sky batch {worker.folder}/bucket/pictures -o {worker.folder}/pixtral-batch/part-2-of-4.jsonl "
        "--shard 2/4 -p Describe this image in detail please. --max-tokens 9 --system Be short."
    ]
    assert (
        worker.results / "part-2-of-4.jsonl"
    ).read_text() == f'{{"id": "http://127.0.0.1:{worker.env["PORT"]}"}}\n'
    assert (worker.results / "part-2-of-4.jsonl.run.json").exists()
    assert not (worker.results / "part-2-of-4.errors.jsonl").exists()


def test_a_worker_goes_on_with_what_another_has_saved(worker):
    worker.results.mkdir()
    for end, text in (
        ("jsonl", '{"id": "a"}\n'),
        ("errors.jsonl", '{"id": "b"}\n'),
        ("jsonl.run.json", "{}"),
    ):
        (worker.results / f"part-2-of-4.{end}").write_text(text)
    with worker.start(THEN="exit 1") as process:
        process.communicate(timeout=20)
    assert process.returncode == 1  # as the batch says it
    saved = (worker.results / "part-2-of-4.jsonl").read_text().splitlines()
    assert (saved[0], len(saved)) == ('{"id": "a"}', 2)
    assert (worker.results / "part-2-of-4.errors.jsonl").read_text() == '{"id": "b"}\n'


def test_a_worker_saves_now_and_then_and_when_it_is_told_to_end(worker):
    with worker.start(SAVE_SECONDS="0.1", THEN="trap 'exit 143' TERM; sleep 30 & wait") as process:
        deadline = time.monotonic() + 20
        while not (worker.results / "part-2-of-4.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with (worker.folder / "pixtral-batch/part-2-of-4.jsonl").open("a") as file:
            file.write("{}\n")
        process.terminate()
        assert process.wait(20) == 143
    assert len((worker.results / "part-2-of-4.jsonl").read_text().splitlines()) == 2


def test_a_worker_without_a_server_ends(worker):
    worker.program("vllm", "echo no memory >&2; exit 3")
    with worker.start() as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the server has ended. Its last words are above." in err
    with worker.start(BATCH_ARGS="it's") as process:
        assert "BATCH_ARGS is not quoted" in process.communicate(timeout=20)[1]
    assert process.returncode == 1


# --- reading a task file


def test_load_reads_the_pin_from_the_setup():
    assert task.load().vllm_version == "0.32.0"


@pytest.mark.parametrize(("text", "says"), [
    ("a: [", "is not YAML"), ("just words", "no 'run:' script"), ("run: [1]", "no 'run:' script"),
    ("run: echo\nenvs: 5", "'envs:' is a mapping"), ("\x00", "is not YAML"),
])  # fmt: skip
def test_load_says_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        task.load(path)
    assert "\n" not in str(error.value)


def test_load_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        task.load(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="pins no vLLM"):
        _ = task.Task(Path("x"), "", "pip install vllm", {}).vllm_version
    with pytest.raises(UsageError, match=r"envs.MAX_IMAGES is 'four'"):
        task.Task(Path("x"), "", "", {"MAX_IMAGES": "four"}).number("MAX_IMAGES")


def test_shipped_files_are_found():
    assert task.shipped("pixtral.yaml") == ROOT / "pixtral.yaml"
    assert os.access(task.shipped("service.yaml"), os.R_OK)
    with pytest.raises(FileNotFoundError):
        task.shipped("nothing.yaml")
