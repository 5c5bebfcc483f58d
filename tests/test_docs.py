"""The documents: their links lead somewhere, their commands and options exist, and what they list is so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pixtral_sky.deploy import task
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT
from tests.support.command_line import run_main
from tests.support.documents import PAGES, blocks


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


def test_every_page_is_linked_from_the_readme() -> None:
    """Directly, or from one that is."""
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        found = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        left += [(page.parent / each).resolve() for each in found if not re.match(r"https?:", each)]
    assert set(PAGES) <= seen


def commands() -> Iterator[tuple[str, str]]:
    """Each command of pixtral-sky in a bash block, and its block."""
    for block in blocks():
        for line in block.lines:
            for part in re.split(r"\$\(|&&|\|", line):
                if part.strip().startswith("pixtral-sky "):
                    yield part.strip(), str(block)


def test_commands_and_their_options_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = partial(run_main, monkeypatch, capsys)
    known: dict[tuple[str, ...], set[str]] = {}
    lines = list(commands())
    assert len(lines) > 30
    for line, page in lines:
        words = line.split()[1:]
        name = tuple(words[:2] if words[0] == "serve" else words[:1])
        if name not in known:
            result = run(*name, "--help")
            assert result.code == 0, f"{page}: {line}"
            known[name] = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", result.out))
        given = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert given <= known[name], f"{page}: {line}"


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table whose first heading is ``first``."""
    text = (ROOT / "docs" / page).read_text()
    table = re.search(rf"^\| {first} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def test_credentials_are_those_of_skypilot() -> None:
    """Each cloud that is an extra; the file or the command stands in SkyPilot's own code for that cloud."""
    found = {cloud.strip("`"): given for cloud, given, *_ in rows("guides/credentials.md", "cloud")[:25]}
    extras = set(importlib.metadata.metadata("pixtral-sky").get_all("Provides-Extra") or ())
    assert set(found) == extras - {"rehearse", "heic", "fast", "chat", "pdf", "plot", "sky"}
    package = Path(importlib.util.find_spec("sky").origin or "").parent  # type: ignore[union-attr]
    for cloud, given in found.items():
        if cloud == "kubernetes":
            continue  # read by Kubernetes' own client
        files = [each for each in package.rglob(f"*{cloud}*.py") if each.parent.name != "data_fetchers"]
        files += (package / "provision" / cloud).rglob("*.py")
        code = " ".join(each.read_text() for each in files)
        for each in re.findall(r"`([^`]+)`", given):
            wanted = each.rpartition("/")[2] if each.startswith("~") else each
            assert wanted in code, (cloud, each)


def test_envs_of_the_guide_to_networks_are_taken() -> None:
    shipped = task.load()
    for names, _ in rows("guides/networks.md", "env"):
        for name in re.findall(r"`(\w+)", names):
            shipped.check({name: shipped.envs.get(name, "x")})
    for refused in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        with pytest.raises(UsageError, match=f"has no env {refused}"):
            shipped.check({refused: "x"})


def test_quotas_are_of_the_gpus_of_the_file() -> None:
    named = {cells[0].split("`")[1] for cells in rows("guides/credentials.md", "GPUs")}
    assert named == {*task.read(ROOT / "pixtral.yaml")["resources"]["accelerators"], "L4:1"}
