"""The hints that install something name the way in which this copy was installed."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from pathlib import Path

import pytest

from pixtral_sky import extras

HEIC = "'pillow-heif<2,>=1.0'"
VERSION = extras.skypilot()
SKY = f"skypilot=={VERSION}"


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a copy that has pip, and is not the shell's."""
    folder = tmp_path / "pixtral-sky"
    folder.mkdir()
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(extras, "find_spec", lambda _: True)
    return folder


def has_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)


def test_pip(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.install("heic") == f"{prefix}/bin/python -m pip install {HEIC}"
    assert len(extras.install("fast").split("install ")[1].split()) == 2
    pip = prefix / "bin" / "pip"
    pip.parent.mkdir()
    pip.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(pip.parent))  # as an activated environment has it
    assert extras.install("heic") == f"pip install {HEIC}"
    assert extras.install("sky") == f"pip install {SKY}"


def test_a_path_with_a_space(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a b/python")
    assert shlex.split(extras.install("heic"))[0] == "/a b/python"


def test_skypilot_with_its_cloud(prefix: Path) -> None:
    """As this package is on no index, SkyPilot is named, with its one version."""
    said = extras.install_skypilot()
    assert said.endswith(
        f" install 'skypilot[aws]=={extras.skypilot()}' (or [gcp], [azure], [kubernetes], [slurm]: your cloud)"
    )
    assert extras.install_skypilot("gcp").endswith(f" install 'skypilot[gcp]=={extras.skypilot()}'")


def test_uvs_environment(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_no_pip(monkeypatch)
    assert extras.install("heic") == f"uv pip install --python {prefix} {HEIC}"
    # SkyPilot makes its wheel with pip.
    assert (
        extras.install("aws") == f"uv pip install --python {prefix} 'skypilot[aws]=={extras.skypilot()}' pip"
    )
    monkeypatch.setenv("VIRTUAL_ENV", str(prefix))
    assert extras.install("heic") == f"uv pip install {HEIC}"


def test_pipx(prefix: Path) -> None:
    (prefix / "pipx_metadata.json").write_text("{}")
    assert extras.install("heic") == f"pipx inject pixtral-sky {HEIC}"
    assert (
        extras.install("aws") == f"pipx inject --include-apps pixtral-sky 'skypilot[aws]=={VERSION}' awscli"
    )


@pytest.mark.parametrize(
    ("requirements", "arguments"),
    [
        ('{ name = "pixtral-sky", path = "/w/pixtral_sky-1-py3-none-any.whl" }',
         ["pixtral-sky[heic] @ file:///w/pixtral_sky-1-py3-none-any.whl"]),
        ('{ name = "pixtral-sky", directory = "/a b" }', ["pixtral-sky[heic] @ file:///a%20b"]),
        ('{ name = "pixtral-sky", extras = ["aws"], editable = "/clone" }', ["--editable", "/clone[aws,heic]"]),
        ('{ name = "pixtral-sky", extras = ["pdf"], git = "https://host/x?rev=v1" }',
         ["pixtral-sky[heic,pdf] @ git+https://host/x@v1"]),
        ('{ name = "pixtral-sky", git = "ssh://git@host/x" }', ["pixtral-sky[heic] @ git+ssh://git@host/x"]),
        ('{ name = "pixtral-sky", url = "https://host/x.whl" }', ["pixtral-sky[heic] @ https://host/x.whl"]),
        ('{ name = "pixtral-sky", specifier = "==1" }', ["pixtral-sky[heic]==1"]),
        ('{ name = "pixtral-sky" }, { name = "pip" }, { name = "x", extras = ["y"], specifier = ">1" }',
         ["--with", "pip", "--with", "x[y]>1", "pixtral-sky[heic]"]),
    ],
)  # fmt: skip
def test_uvs_tool(prefix: Path, requirements: str, arguments: list[str]) -> None:
    """It is made anew, with all that it has: uv forgets what is not said again."""
    receipt = f'[tool]\nrequirements = [{requirements}]\npython = "3.12"\n'
    (prefix / "uv-receipt.toml").write_text(receipt)
    assert shlex.split(extras.install("heic")) == ["uv", "tool", "install", "--python", "3.12", *arguments]


def test_uvs_tool_gets_pip_for_skypilot(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_no_pip(monkeypatch)
    (prefix / "uv-receipt.toml").write_text('[tool]\nrequirements = [{ name = "pixtral-sky" }]\n')
    said = "uv tool install --with pip --with-executables-from {} 'pixtral-sky[{}]'"
    assert extras.install("aws") == said.format("awscli,skypilot", "aws")
    assert extras.install("gcp") == said.format("skypilot", "gcp")


def test_programs_stay(prefix: Path) -> None:
    """As `uv tool install --with pip --with-executables-from skypilot,httpx pixtral-sky` writes it down."""
    (prefix / "uv-receipt.toml").write_text("""[tool]
requirements = [{ name = "pixtral-sky" }, { name = "pip" }, { name = "httpx" }, { name = "skypilot" }]
entrypoints = [
    { name = "httpx", install-path = "/b/httpx", from = "httpx" },
    { name = "sky", install-path = "/b/sky", from = "skypilot" },
    { name = "pixtral-sky", install-path = "/b/pixtral-sky", from = "pixtral-sky" },
]""")
    assert extras.install("heic") == (
        "uv tool install --with pip --with-executables-from httpx,skypilot 'pixtral-sky[heic]'"
    )


def test_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert extras.install("heic") == 'pip install -e ".[heic]"'
    assert extras.skypilot() == ""
