"""The README's way to a cloud: its own lines, in an empty home, as far as no cloud is needed. And the extras."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixtral_sky import extras
from pixtral_sky.doctor.answers import QUESTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(heading: str) -> list[str]:
    """The lines of the first bash block below a heading of the README."""
    below = README.split(f"\n## {heading}\n", 1)[1]
    found = re.search(r"```bash\n(.*?)```", below, re.DOTALL)
    assert found
    return found[1].splitlines()


def way_to_a_cloud() -> list[str]:
    """From `git clone` to `pixtral-sky doctor`."""
    lines = block("Two commands")[:1] + block("Install") + block("On GPUs")
    assert lines[0].startswith("git clone ")
    last = next(number for number, line in enumerate(lines) if line.startswith("pixtral-sky doctor"))
    assert lines[last + 1].startswith("pixtral-sky launch")
    return lines[: last + 1]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An empty home, and none of the programs of this environment. The clone is of this checkout."""
    here = str(Path(sys.executable).parent)
    kept = ("LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {
        "HOME": str(tmp_path / "home"),
        "PATH": ":".join(each for each in os.environ["PATH"].split(":") if each != here),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/pixtral-sky/pixtral-sky",
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_EC2_METADATA_DISABLED": "true",  # nobody answers there, which takes long
    }
    (tmp_path / "home").mkdir()
    yield environment
    sky = tmp_path / "pixtral-sky" / ".venv" / "bin" / "sky"
    if sky.exists():
        subprocess.run(
            [sky, "api", "stop"], env=environment, capture_output=True, timeout=60
        )  # that of its port


@pytest.mark.install
@pytest.mark.timeout(600)
def test_the_way_to_a_cloud(environment: dict[str, str], tmp_path: Path) -> None:
    script = "\n".join(["set -e", *way_to_a_cloud()])
    run = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    found = re.findall(r"^(ok|FAIL|\?|-) +(.{15}) (.+)$", run.stdout, re.MULTILINE)
    assert found, run.stdout[-2000:] + run.stderr[-2000:]
    said = {subject.rstrip(): f"{mark} {text}" for mark, subject, text in found}
    assert run.returncode == 1
    assert said["SkyPilot"] == f"ok {extras.skypilot()}"
    assert said["SkyPilot server"].startswith("ok ")
    assert said["SkyPilot infra"] == "FAIL No cloud, Kubernetes or Slurm is enabled. Run: sky check"
    assert said["SkyPilot task"].startswith("ok ")
    assert said["GPUs"].startswith("ok ")
    assert said["Hugging Face"].endswith("Look at HF_TOKEN.")  # it is "..."
    assert said["endpoint"] == "- Nothing is deployed as 'pixtral'. Run: pixtral-sky launch"
    # What that cloud needs is there: its credentials are all that `sky check` misses.
    assert "AWS credentials are not set" in run.stdout


def test_an_extra_for_each_cloud_of_skypilot() -> None:
    """By its own name. Its other extras are stores of files, SkyPilot's own parts, and all of them."""
    others = {"all", "cloudflare", "coreweave", "docker", "huggingface", "remote", "server", "vastdata"}
    theirs = set(importlib.metadata.metadata("skypilot").get_all("Provides-Extra") or ())
    ours = set(importlib.metadata.metadata("pixtral-sky").get_all("Provides-Extra") or ())
    assert ours - theirs == {"rehearse", "heic", "fast", "pdf", "plot", "sky"}
    assert theirs - ours == others
    assert f"{len(theirs & ours)} clouds" in README


def test_one_pin() -> None:
    assert (ROOT / "pyproject.toml").read_text().count("skypilot==") == 1
    assert f"SkyPilot {extras.skypilot()}, with the SDK of your cloud" in README


def test_hints_name_what_is_on_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert extras.install("sky") == f"pip install skypilot=={extras.skypilot()}"
    assert extras.install("heic") == "pip install 'pillow-heif<2,>=1.0'"
    assert len(extras.install("fast").split()) == 4
    assert extras.install_skypilot().startswith('pip install -e ".[aws]" (or ')
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/pixtral_sky/extras.py"))
    assert extras.install_skypilot().startswith(f"pip install 'skypilot[aws]=={extras.skypilot()}'")


def test_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert extras.install("heic") == 'pip install -e ".[heic]"'
    assert extras.skypilot() == ""


def test_the_page_about_answers_has_the_questions() -> None:
    page = (ROOT / "docs" / "answers.md").read_text()
    for each in QUESTIONS:
        assert re.search(
            rf"^\| {each.name} \| .+ \| {re.escape(each.text)} \| {' and '.join(each.expected)} \|$",
            page,
            re.MULTILINE,
        ), each.name
