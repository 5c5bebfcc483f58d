"""The Truss in examples/, and what `doctor --truss` says of it and of broken copies."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixtral_sky import memory
from pixtral_sky.deploy import task
from pixtral_sky.doctor import truss
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS, MODEL, SERVED_NAME
from tests.conftest import ROOT
from tests.support.command_line import run_main

FOLDER = ROOT / "examples" / "truss"
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "config.yaml").read_text())
README = (FOLDER / "README.md").read_text()
# What the original Truss for Pixtral had in these places: its README names another secret than its config.
ORIGINAL = {
    "base_image": {"image": "vllm/vllm-openai:v0.6.1.post1"},
    "docker_server": {
        "start_command": 'sh -c "HF_TOKEN=$(cat /secrets/hf_access_token) vllm serve mistralai/Pixtral-12B-2409 '
        "--served-model-name pixtral --tokenizer_mode mistral --limit_mm_per_prompt 'image=4'\"",
        "readiness_endpoint": "/health",
        "liveness_endpoint": "/health",
        "predict_endpoint": "/v1/chat/completions",
        "server_port": 8000,
    },
    "resources": {"accelerator": "A100", "use_gpu": True},
    "environment_variables": {"VLLM_LOGGING_LEVEL": "WARNING", "hf_access_token": None},
}


def arguments(config: dict[str, Any]) -> dict[str, list[str]]:
    """Each flag of its `vllm serve` with its values."""
    bash, _, script = shlex.split(config["docker_server"]["start_command"])
    assert bash == "bash"
    found: dict[str, list[str]] = {}
    for word in shlex.split(script.partition("vllm serve ")[2])[1:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


# What is in it ---------------------------------------------------------------------------------------------


def test_it_is_the_server_of_pixtral_yaml() -> None:
    shipped = task.load()
    flags = arguments(CONFIG)
    images, context = shipped.number("MAX_IMAGES"), memory.DEFAULT_CONTEXT
    assert CONFIG["base_image"]["image"] == f"vllm/vllm-openai:v{shipped.vllm_version}"
    assert flags["--served-model-name"] == [SERVED_NAME, MODEL]
    assert flags["--limit-mm-per-prompt"] == [f'{{"image": {images}}}']
    assert flags["--max-model-len"] == [str(context)]
    assert flags["--max-num-batched-tokens"] == ["4352"]
    assert context > images * MAX_IMAGE_TOKENS
    # All flags of the script but those of its gateway, and no others.
    theirs = re.findall(r" (--[a-z0-9-]+)", shipped.run.partition("\n  vllm serve ")[2].partition(" &\n")[0])
    gateway = {
        "--revision",
        "--host",
        "--allowed-media-domains",
        "--middleware",
        "--api-server-count",
        "--h11-max-incomplete-event-size",
    }
    assert set(flags) == set(theirs) - gateway


def test_it_follows_the_templates(tmp_path: Path) -> None:
    for name in ("tools", "templates", "pixtral_sky", "examples", "pixtral.yaml", "service.yaml"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    for name, old, new in (
        ("setup.sh", "vllm==0.32.0", "vllm==0.99.1"),
        ("envs.yaml", "MAX_IMAGES: 4", "MAX_IMAGES: 5"),
        ("run.sh", "--config-format mistral", "--config-format mistral --seed 7"),
    ):
        path = tmp_path / "templates" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    check = ["python3", "tools/render.py", "--check"]
    stale = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert "examples/truss/config.yaml differs from its rendering" in stale.stderr
    subprocess.run(check[:-1], cwd=tmp_path, check=True)
    changed = yaml.safe_load((tmp_path / "examples/truss/config.yaml").read_text())
    assert changed["base_image"]["image"] == "vllm/vllm-openai:v0.99.1"
    flags = arguments(changed)
    assert flags["--seed"] == ["7"]
    assert flags["--limit-mm-per-prompt"] == ['{"image": 5}']


def test_its_weights_are_those_that_setup_downloads() -> None:
    (weights,) = CONFIG["weights"]
    assert weights["source"] == f"hf://{MODEL}@main"
    assert weights["allow_patterns"] == re.findall(
        r'--include "?([^" ]+)', task.load().setup.replace("\n", " ")
    )
    assert weights["auth"]["auth_secret_name"] in CONFIG["secrets"]


def test_as_many_at_once_as_its_gpu_computes() -> None:
    gpu = truss.GPUS[CONFIG["resources"]["accelerator"]]
    assert CONFIG["runtime"]["predict_concurrency"] == memory.fits(gpu, 1).requests


def test_the_readme_has_the_figures_of_fit() -> None:
    rows = re.findall(r"^\| `(\w+)(?::(\d))?` \| (\d) \| (\d+) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for name, count, split, requests in rows:
        assert split == (count or "1")
        assert memory.fits(truss.GPUS[name], int(split)).requests == int(requests), name
    for name in ("L4", "A10G"):
        assert not memory.fits(name, 1).fits
    assert set(truss.NO_BF16) == {"T4", "V100"}
    assert f"Truss {truss.TRUSS}." in README


def test_the_readme_has_the_limits_of_the_config() -> None:
    flags = arguments(CONFIG)
    assert '"image": 4' in flags["--limit-mm-per-prompt"][0]
    assert "up to 4 pictures" in README
    assert flags["--max-model-len"] == ["32768"]
    assert "32,768 tokens" in README
    default = re.search(r"echo '(\{.*?\})'", shlex.split(CONFIG["docker_server"]["start_command"])[2])
    assert default
    assert yaml.safe_load(default[1]) == {"temperature": 0.7, "max_new_tokens": 512}
    assert "| 512 |" in README
    assert "| 0.7 |" in README


# The doctor ------------------------------------------------------------------------------------------------

Examine = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """The state and the text of each check of a Truss with that config and README."""

    def examine(config: Any = CONFIG, readme: str = README) -> dict[str, tuple[str, str]]:
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "README.md").write_text(readme)
        return {
            check.subject: (check.state, f"{check.text} {check.hint}".strip())
            for check in truss.examine(tmp_path)
        }

    return examine


def broken(path: str, value: Any = None, remove: bool = False, add: str = "") -> dict[str, Any]:
    """The shipped config with one value changed, removed, or followed by more text."""
    config = copy.deepcopy(CONFIG)
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    inner: Any = config
    for part in way:
        inner = inner[part]
    if remove:
        del inner[last]
    else:
        inner[last] = inner[last] + add if add else value
    return config


def command(old: str, new: str) -> dict[str, Any]:
    """The shipped config with its start_command changed."""
    given = CONFIG["docker_server"]["start_command"]
    assert old in given
    return broken("docker_server.start_command", given.replace(old, new))


def test_the_shipped_one_is_well(examine: Examine) -> None:
    assert {state for state, _ in examine().values()} == {"ok"}


@pytest.mark.parametrize(("config", "subject", "text"), [
    (broken("docker_server.readyness_endpoint", "/health"), "keys", "docker_server.readyness_endpoint (readiness_endpoint?)"),
    (broken("model_nam", "x"), "keys", "Truss knows no model_nam (model_name?). It builds all the same"),
    (broken("weights.0.allow_pattern", ["x"]), "keys", "weights.allow_pattern (allow_patterns?)"),
    (broken("weights.0.auth.secret", "x"), "keys", "weights.auth.secret"),
    (broken("runtime.health_checks", {"startup": 1}), "keys", "runtime.health_checks.startup"),
    (broken("docker_server", remove=True), "server", "There is no docker_server."),
    (broken("docker_server.server_port", remove=True), "server", "docker_server has no server_port."),
    (broken("docker_server.start_command", ""), "server", "docker_server has no start_command."),
    (broken("docker_server.predict_endpoint", "v1/chat/completions"), "server", "predict_endpoint is no path."),
    (broken("docker_server.server_port", 8080), "port", "where Truss's own proxy listens"),
    (broken("docker_server.server_port", "8081"), "port", "is '8081', and no number"),
    (command("--port 8081", "--port 8082"), "port", "start_command listens on 8082, and server_port is 8081. Write --port 8081"),
    (command("--port 8081", ""), "port", "start_command listens on 8000"),
    (broken("model_cache", [{"repo_id": MODEL, "revision": "main", "use_volume": True, "volume_folder": "x"}]),
     "weights", "There are weights and a model_cache. Truss takes one: weights"),
    (command("/models/pixtral", "/models/other"), "weights", "mounted at /models/pixtral, and start_command does not name that"),
    (broken("secrets", {"hf_access_key": "hf_abc"}), "secret", "The value of hf_access_key is in the file."),
    (broken("environment_variables.hf_access_key", None), "secret", "would be the text 'None'"),
    (command("mkdir", "cat /secrets/other && mkdir"), "secret", "/secrets/other, which is not among the secrets"),
    (broken("weights.0.auth", remove=True), "secret", "No secret opens the licence gate"),
    (broken("resources.accelerator", "L4"), "GPU", "With --quantization fp8_per_channel it holds a context of about 26,592 tokens. What holds it: pixtral-sky plan"),
    (broken("resources.accelerator", "T4"), "GPU", "T4 cannot compute in bf16"),
    (broken("resources.accelerator", "A1000"), "GPU", "Truss knows no accelerator A1000"),
    (broken("resources.accelerator", "L4:2"), "GPU", "is 2 GPUs, and vLLM uses 1. Write --tensor-parallel-size 2"),
    (broken("resources", {}), "GPU", "Truss knows no accelerator at all"),
    (command("--max-model-len 32768", "--max-model-len 200000"), "GPU", "Pixtral's context is 128,000 tokens"),
    (command("{\\\"image\\\": 4}", "{\\\"image\\\": 9}"), "GPU", "9 full pictures are 37,440 tokens"),
    (broken("base_image.image", "vllm/vllm-openai:v0.6.1.post1"), "image", "is not the version of pixtral.yaml. Write vllm/"),
    (broken("base_image.image", "vllm/vllm-openai:latest"), "image", "is not the version of pixtral.yaml"),
    (broken("base_image", {}), "image", "There is no base_image.image."),
    (broken("resources.accelerator", "H100"), "README", "disagree about GPUs: A100:1, and H100:1."),
    (broken("resources.accelerator", "A100:2"), "README", "disagree about GPUs: A100:1, and A100:2."),
])  # fmt: skip
def test_a_trap(examine: Examine, config: dict[str, Any], subject: str, text: str) -> None:
    state, said = examine(config)[subject]
    assert state == "failed"
    assert text in said
    assert "\n" not in said


def test_one_l4_in_fp8(examine: Examine) -> None:
    config = command("--max-model-len 32768", "--max-model-len 20480 --quantization fp8_per_channel")
    config["resources"]["accelerator"] = "L4"
    assert examine(config)["GPU"] == ("ok", "L4:1 holds it, with 20,480 tokens and 4 pictures a prompt")


@pytest.mark.parametrize(("readme", "text"), [
    (README.replace("hf_access_key", "hf_access_token"), "disagree about secrets: hf_access_token, and hf_access_key."),
    (README.replace("one A100", "two L4"), "disagree about GPUs: L4:2, and A100:1."),
    (README + "\nIt listens on port 8000.", "disagree about ports: 8000, and 8081."),
])  # fmt: skip
def test_a_readme_that_disagrees(examine: Examine, readme: str, text: str) -> None:
    assert examine(readme=readme)["README"] == ("failed", f"README.md and config.yaml {text}")


@pytest.mark.parametrize(("config", "subject"), [
    (broken("resources.instance_type", "A100:12x144"), "GPU"),
    (broken("resources.accelerator", "B300"), "GPU"),
    (command("--max-model-len 32768", "--max-model-len $LENGTH"), "GPU"),
    (broken("base_image.image", "registry.example/pixtral:1"), "image"),
])  # fmt: skip
def test_what_cannot_be_known_is_said(examine: Examine, config: dict[str, Any], subject: str) -> None:
    assert examine(config)[subject][0] == "unchecked"


def test_what_builds_on_a_server_is_not_checked_without_one(examine: Examine) -> None:
    checks = examine(broken("docker_server", remove=True))
    for subject in ("port", "weights", "GPU"):
        assert checks[subject] == ("unchecked", "not checked: 'server' comes first.")


def test_other_ways_to_say_the_same(examine: Examine) -> None:
    config = copy.deepcopy(CONFIG)
    config["resources"]["accelerator"] = {"accelerator": "L4", "count": 2}
    given = config["docker_server"]["start_command"]
    for old, new in (
        ("--port 8081", "--port=8081"),
        ("--tensor-parallel-size 1", "-tp 2"),
        ("--max-model-len 32768", "--max_model_len=32768"),
        ("--limit-mm-per-prompt '{\\\"image\\\": 4}'", "--limit-mm-per-prompt.image 4"),
    ):
        assert old in given
        given = given.replace(old, new)
    config["docker_server"]["start_command"] = given
    checks = examine(config, "Two L4s.")
    assert {subject for subject, (state, _) in checks.items() if state != "ok"} == set()
    assert checks["GPU"][1] == "L4:2 holds it, with 32,768 tokens and 4 pictures a prompt"


def test_the_original_truss(examine: Examine) -> None:
    checks = examine(ORIGINAL, "You need one A100. Its secret has the key `hf_access_key`.")
    assert checks["secret"][1].startswith("environment_variables.hf_access_token would be the text 'None'.")
    assert checks["weights"][0] == "absent"
    assert checks["README"][1].endswith("disagree about secrets: hf_access_key, and hf_access_token.")
    assert {subject for subject, (state, _) in checks.items() if state == "failed"} == {
        "secret",
        "image",
        "README",
    }


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "", "\x00"])
def test_a_config_that_is_none(examine: Examine, text: str) -> None:
    checks = examine(text)
    assert checks.pop("config.yaml")[0] == "failed"
    assert {state for state, _ in checks.values()} == {"unchecked"}


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run_main(monkeypatch, capsys, "doctor", "--truss", str(FOLDER))
    assert result.code == 0
    assert [line[:4].strip() for line in result.out.splitlines()] == ["ok"] * 9
    result = run_main(monkeypatch, capsys, "doctor", "--truss", str(tmp_path))
    assert result.code == 1
    assert result.out.splitlines()[0].startswith("FAIL config.yaml     There is no ")
    result = run_main(monkeypatch, capsys, "doctor", "pixtral", "--truss", str(FOLDER))
    assert result.code == 2
    assert "--truss is checked alone" in result.error
