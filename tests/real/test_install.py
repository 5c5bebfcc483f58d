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


# A copy, in each way to install one: how, from a wheel or a clone, and where its command is then.
WAYS = {
    "pip": "python3 -m venv own && own/bin/pip install -q {wheel}",
    "clone": "python3 -m venv own && own/bin/pip install -q -e {clone}",
    "uv": "uv venv -q own && uv pip install -q --python own {wheel}",
    "uv tool": "uv tool install -q 'pixtral-sky[pdf] @ file://{wheel}' --with simplejpeg",
    "uv tool, clone": "uv tool install -q -e {clone}",
    "uv tool, git": "uv tool install -q 'pixtral-sky @ git+file://{clone}'",
    "pipx": "pipx install {wheel}",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with uv and pipx, a clone, and a wheel of it."""
    folder = tmp_path_factory.mktemp("copy")
    subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
    for words in (
        [sys.executable, "-m", "venv", folder / "tools"],
        [folder / "tools/bin/pip", "install", "-q", "uv", "pipx"],
        [folder / "tools/bin/pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "clone"],
    ):
        subprocess.run(words, check=True, timeout=300)
    return folder


@pytest.mark.install
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_a_hint_works(environment: dict[str, str], copy: Path, tmp_path: Path, way: str) -> None:
    """The command that a copy says installs what that copy lacks, and takes nothing of it away."""
    (wheel,) = copy.glob("*.whl")
    environment |= {
        "PATH": f"{tmp_path}/bin:{environment['PATH']}:{copy}/tools/bin",
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "UV_PYTHON_DOWNLOADS": "never",
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        **uvs_index(environment),
    }

    def does(line: str) -> str:
        run = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert run.returncode == 0, f"{line}\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        return run.stdout

    does(WAYS[way].format(wheel=wheel, clone=copy / "clone"))
    command = tmp_path / ("own/bin" if (tmp_path / "own").exists() else "bin") / "pixtral-sky"
    python = command.read_text().splitlines()[0].removeprefix("#!")
    before = does(f"{python} -c 'import PIL, importlib.util as u; print(u.find_spec(\"pillow_heif\"))'")
    assert before == "None\n"
    hint = does(f"{python} -c 'from pixtral_sky import extras; print(extras.install(\"heic\"))'")
    does(hint)
    does(f"{python} -c 'import pillow_heif, pixtral_sky'")
    if way == "uv tool":
        does(f"{python} -c 'import pypdfium2, simplejpeg'")
    assert does(f"{command} --version").startswith("pixtral-sky ")


def uvs_index(environment: dict[str, str]) -> dict[str, str]:
    """pip's indexes, for uv, which does not read pip's configuration."""

    def configured(name: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True
        )
        return os.environ.get(f"PIP_{name.replace('-', '_').upper()}") or " ".join(run.stdout.split())

    given = {
        "UV_DEFAULT_INDEX": configured("index-url"),
        "UV_INDEX": configured("extra-index-url"),
        "UV_FIND_LINKS": configured("find-links").replace(" ", ","),
    }
    return {name: value for name, value in given.items() if value}


def test_the_page_about_answers_has_the_questions() -> None:
    page = (ROOT / "docs" / "answers.md").read_text()
    for each in QUESTIONS:
        assert re.search(
            rf"^\| {each.name} \| .+ \| {re.escape(each.text)} \| {' and '.join(each.expected)} \|$",
            page,
            re.MULTILINE,
        ), each.name
