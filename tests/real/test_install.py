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
    assert ours - theirs == {"rehearse", "heic", "fast", "chat", "pdf", "plot", "sky"}
    assert theirs - ours == others
    assert f"{len(theirs & ours)} clouds" in README


def test_one_pin() -> None:
    assert (ROOT / "pyproject.toml").read_text().count("skypilot==") == 1
    assert f"SkyPilot {extras.skypilot()} with the SDK of your cloud" in README


# A copy, in each way to install one: how, from a wheel or a clone, and where its command is then.
WAYS = {
    "pip": "python3 -m venv own && own/bin/pip install -q {wheel}",
    "clone": "python3 -m venv own && uv pip install -q --python own -e {clone}",  # uv: it is quick; pip is beside it
    "uv": "uv venv -q own && uv pip install -q --python own {wheel}",
    "uv tool": "uv tool install -q 'pixtral-sky[pdf] @ file://{wheel}' --with simplejpeg --with-executables-from httpx",
    "uv tool, clone": "uv tool install -q -e {clone}",
    "uv tool, git": "uv tool install -q 'pixtral-sky @ git+file://{clone}'",
    "pipx": "pipx install {wheel}",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with uv and pipx, a clone, and a wheel of it."""
    folder = tmp_path_factory.mktemp("copy")
    subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
    uv = Path(sys.executable).with_name("uv")
    for words in (
        ["venv", "-q", folder / "tools"],
        ["pip", "install", "-q", "--python", folder / "tools", "pipx"],
        ["build", "-q", "--wheel", "-o", folder, folder / "clone"],
    ):
        subprocess.run([uv, *words], check=True, timeout=300, env={**os.environ, **uvs_index()})
    (folder / "tools/bin/uv").symlink_to(uv)
    return folder


@pytest.mark.install
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_a_hint_works(environment: dict[str, str], copy: Path, tmp_path: Path, way: str) -> None:
    """The command that a copy says installs what that copy lacks, and takes nothing of it away."""
    (wheel,) = copy.glob("*.whl")
    environment |= {
        "PATH": f"{tmp_path}/links:{environment['PATH']}:{copy}/tools/bin",
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "links"),
        "UV_PYTHON_DOWNLOADS": "never",
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "links"),
        **uvs_index(),
    }

    def does(line: str) -> str:
        run = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert run.returncode == 0, f"{line}\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        return run.stdout

    does(WAYS[way].format(wheel=wheel, clone=copy / "clone"))
    command = tmp_path / ("own/bin" if (tmp_path / "own").exists() else "links") / "pixtral-sky"
    python = command.read_text().splitlines()[0].removeprefix("#!")
    before = does(f"{python} -c 'import PIL, importlib.util as u; print(u.find_spec(\"pillow_heif\"))'")
    assert before == "None\n"
    hint = does(f"{python} -c 'from pixtral_sky import extras; print(extras.install(\"heic\"))'")
    does(hint)
    does(f"{python} -c 'import pillow_heif, pixtral_sky'")
    if way == "uv tool":
        does(f"{python} -c 'import pypdfium2, simplejpeg'")
        assert (tmp_path / "links" / "httpx").exists()
    assert does(f"{command} --version").startswith("pixtral-sky ")


def uvs_index() -> dict[str, str]:
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
