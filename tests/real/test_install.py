"""The README's ways to a cloud: its own lines, in an empty home, as far as no cloud is needed. And the extras."""

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
from tests.support.command_line import KEY
from tests.support.fake_endpoint import FakeEndpoint

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


GIT = "https://github.com/pixtral-sky/pixtral-sky"


def lines(heading: str, page: str = README) -> list[list[str]]:
    """The lines of each bash block below a heading of a page, up to the next heading."""
    below = re.split(r"^#+ ", page.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"```bash\n(.*?)```", below, re.DOTALL)
    assert found, heading
    return [each.splitlines() for each in found]


def to_the_doctor() -> list[str]:
    """From `sky check` to `pixtral-sky doctor`."""
    found = lines("On GPUs")[0]
    last = next(number for number, line in enumerate(found) if line.startswith("pixtral-sky doctor"))
    assert found[last + 1].startswith("pixtral-sky launch")
    return found[: last + 1]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An empty home with uv, and no other program of this environment. GitHub has what is committed here."""
    here = str(Path(sys.executable).parent)
    kept = ("LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = [each for each in os.environ["PATH"].split(":") if each != here]
    environment |= {
        "HOME": str(tmp_path / "home"),
        "PATH": ":".join([str(tmp_path / "home/.local/bin"), *others]),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": GIT,
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_EC2_METADATA_DISABLED": "true",  # nobody answers there, which takes long
    }
    from uv import find_uv_bin

    programs = tmp_path / "home/.local/bin"
    programs.mkdir(parents=True)
    (programs / "uv").symlink_to(find_uv_bin())
    yield environment
    for sky in (programs / "sky", tmp_path / "pixtral/bin/sky"):
        if sky.exists():  # its server, that of its port
            subprocess.run([sky, "api", "stop"], env=environment, capture_output=True, timeout=60)


def shell(script: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", "\n".join(script)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.install
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", [0, 1], ids=["uv", "pip"])
def test_the_way_to_a_cloud(environment: dict[str, str], tmp_path: Path, way: int) -> None:
    """In an empty folder. What the cloud needs is there: its credentials are all that `sky check` misses."""
    install = lines("Install")[way]
    assert f"pixtral-sky[aws] @ git+{GIT}'" in install[-1]
    run = shell([*install, *to_the_doctor()], environment, tmp_path)
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
    assert "AWS credentials are not set" in run.stdout
    if way == 0:  # SkyPilot makes a wheel of itself when it launches, and calls `aws`
        tool = tmp_path / "home/.local/share/uv/tools/pixtral-sky/bin/python"
        programs = shell([f"{tool} -m pip --version", "aws --version"], environment, tmp_path)
        assert programs.returncode == 0, programs.stderr


@pytest.mark.install
@pytest.mark.timeout(300)
def test_without_skypilot_it_asks(environment: dict[str, str], tmp_path: Path) -> None:
    """As a colleague has it who did not launch. And: renewed, and removed without a rest."""
    page = (ROOT / "docs" / "getting-started.md").read_text()
    smallest = lines("uv", page)[1][-1]
    renew, remove = lines("uv", page)[2]
    assert smallest == f"uv tool install 'pixtral-sky @ git+{GIT}'"
    with FakeEndpoint(key=KEY) as fake:
        asking = [
            f"export PIXTRAL_ENDPOINT={fake.url}",
            f"pixtral-sky ask {ROOT}/examples/chart.png",
            f"pixtral-sky batch {ROOT}/examples/chart.png -o out.jsonl",
            "pixtral-sky endpoint --env",
        ]
        run = shell(
            [smallest, *asking, renew, "pixtral-sky --version"],
            {**environment, "PIXTRAL_API_KEY": KEY},
            tmp_path,
        )
    assert run.returncode == 0, run.stderr
    assert "A small red square." in run.stdout
    assert f"export PIXTRAL_ENDPOINT={fake.url}" in run.stdout
    assert not list(tmp_path.glob("home/.local/share/uv/tools/pixtral-sky/lib/*/site-packages/sky"))
    run = shell([remove], environment, tmp_path)
    assert run.returncode == 0, run.stderr
    assert [each.name for each in (tmp_path / "home/.local/bin").iterdir()] == ["uv"]


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
    assert f"SkyPilot {extras.skypilot()} with the SDK of your cloud" in README


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
