"""The Truss in examples/: its server is that of pixtral.yaml, and its README has its figures.

That the real Truss takes it is shown by `make truss` (tests/real/truss).
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pixtral_sky import memory
from pixtral_sky.deploy import task
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS, MODEL, SERVED_NAME
from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "truss"
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "config.yaml").read_text())
README = (FOLDER / "README.md").read_text()
# Truss's names of GPUs, and those of `memory`: there an A100 has 80 GB, if it does not say 40.
GPUS = {"A100": "A100-80GB", "A100_40GB": "A100", "A10G": "A10G", "H100": "H100", "L4": "L4", "L40S": "L40S"}


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
    assert flags["--middleware"] == ["pixtral_gateway.gateway.BehindPlatform"]
    assert flags["--allowed-media-domains"] == ["/"]
    assert CONFIG["environment_variables"]["MAX_IMAGES"] == str(images)
    # All flags of the script but those that a proxy makes needless, and no others.
    theirs = re.findall(r" (--[a-z0-9-]+)", shipped.run.partition(" vllm serve \"")[2].partition(" &\n")[0])
    proxy = {"--revision", "--host", "--api-server-count", "--h11-max-incomplete-event-size"}
    assert set(flags) == set(theirs) - proxy


def test_it_carries_the_gateway_of_pixtral_yaml() -> None:
    theirs, ours = ROOT / "pixtral_sky" / "server", FOLDER / "data" / "pixtral_gateway"
    assert {path.name: path.read_text() for path in ours.glob("*.py")} == {
        path.name: path.read_text() for path in theirs.glob("[!_]*.py")
    }


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
    gpu = GPUS[CONFIG["resources"]["accelerator"]]
    assert CONFIG["runtime"]["predict_concurrency"] == memory.fits(gpu, 1).requests


def test_the_readme_has_the_figures_of_fit() -> None:
    rows = re.findall(r"^\| `(\w+)(?::(\d))?` \| (\d) \| (\d+) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for name, count, split, requests in rows:
        assert split == (count or "1")
        assert memory.fits(GPUS[name], int(split)).requests == int(requests), name
    for name in ("L4", "A10G"):
        assert not memory.fits(name, 1).fits
    # The one L4 in FP8, with the context that the README gives it.
    assert "--max-model-len 20480" in README
    assert memory.fits("L4", 1, 20_480, precision="fp8").fits


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
