"""Each client of docs/guides/clients.md, by the very lines of that page. `make clients` runs those that its
table says, and `make clients ALL=1` all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from pixtral_sky.pixtral import image_tokens
from pixtral_sky.rehearsal import engine
from tests.conftest import ROOT
from tests.real.clients.conftest import LOGO

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

INTRODUCTION, *SECTIONS = re.split(r"^## ", (ROOT / "docs/guides/clients.md").read_text(), flags=re.MULTILINE)
ROWS = re.findall(
    r"^\| \[(.*)\]\(#(.*)\) \| `\w+ install .*` \| `(make clients.*?)` \|", INTRODUCTION, re.MULTILINE
)
OPENAI, ANTHROPIC = ["OPENAI_BASE_URL", "OPENAI_API_KEY"], ["ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"]
SETTINGS = [*OPENAI, *ANTHROPIC, "PIXTRAL_ENDPOINT", "PIXTRAL_API_KEY"]
WORDS = 40  # tokens that a question has at most
RECEIPT = {
    "type": "object",
    "properties": {"currency": {"enum": ["EUR", "USD", "other"]}, "paid_in_cash": {"type": "boolean"}},
    "required": ["currency", "paid_in_cash"],
    "additionalProperties": False,
}


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environ(running, folder, tmp_path) -> dict[str, str]:
    """What the guide's own lines set for the clients, and nothing else of this process."""
    _, settings = blocks("bash", INTRODUCTION)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    shell = subprocess.run(
        ["bash", "-ec", f"{settings}\nenv -0"],
        env={**os.environ, "PIXTRAL_SKY_HOME": str(folder), "PATH": path},
        capture_output=True,
        check=True,
    )
    every = dict(line.split("=", 1) for line in shell.stdout.decode().split("\0") if line)
    return {name: every[name] for name in SETTINGS} | {"HOME": str(tmp_path)}


def said(name: str, title: str, site: str, environ: dict[str, str], folder: Path) -> str:
    """What the lines of a section print."""
    (section,) = (each for each in SECTIONS if each.startswith(f"{title}\n"))
    environment = engine.cache() / "clients" / name
    assert (environment / "complete").exists(), "It is made by: make clients"
    if lines := blocks("js", section):
        program, file = ["node"], folder / "example.mjs"
        (folder / "node_modules").symlink_to(environment / "node_modules")
    elif lines := blocks("python", section):
        lines = [*blocks("python", INTRODUCTION), *lines]
        program, file = [str(environment / "bin" / "python")], folder / "example.py"
    else:
        lines = blocks("bash", section)
        program, file = ["bash", "-e"], folder / "example.sh"
    text = "\n".join(lines).replace("https://example.com", site)
    assert site in text
    file.write_text(text)
    result = subprocess.run(
        [*program, str(file)],
        env={**environ, "PATH": f"{environment}/bin:/usr/local/bin:/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def of_file(name: str) -> int:
    with Image.open(ROOT / "examples" / name) as picture:
        return image_tokens(*picture.size)


@pytest.mark.parametrize(("title", "name", "run_by"), ROWS, ids=[name for _, name, _ in ROWS])
def test_a_client_gets_its_answers(running, sites, environ, tmp_path, title, name, run_by):
    if run_by != "make clients" and not os.environ.get("ALL"):
        pytest.skip(f"run by: {run_by}")
    out = said(name, title, sites[0], environ, tmp_path)
    print(out)

    def printed(pattern: str) -> str:
        found = re.search(f"^{pattern}$", out, re.MULTILINE)
        assert found, f"{pattern}: {out}"
        return found[1]

    assert printed(r"text ((?:.|\n)*?)\npictures .*").strip()
    tokens = int(printed(r"pictures \D*([\d,]+) .*").replace(",", ""))
    assert 0 < tokens - image_tokens(*LOGO) - of_file("chart.png") - of_file("receipt.jpg") < WORDS
    jsonschema.validate(json.loads(printed(r"schema (.*)")), RECEIPT)
    if name != "llm":  # a command, which shows its chunks to nobody and names no tool
        assert int(printed(r"stream (\d+) chunks")) > 1
        assert printed(r"tool Book \W*account\W+(\w+)\W*") in ("travel", "meals")
    if name == "openai-python":
        assert printed("models (.*)") == "pixtral mistralai/Pixtral-12B-2409"
    if name == "anthropic":
        assert 0 < int(printed(r"count (\d+)")) < WORDS


def test_the_table_has_every_section():
    titles = {each.partition("\n")[0] for each in SECTIONS}
    assert titles - {"Web pages", "Others"} == {title for title, _, _ in ROWS}
    assert [run_by for _, _, run_by in ROWS].count("make clients") == 5
