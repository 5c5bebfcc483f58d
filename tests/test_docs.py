"""The documents: their links lead somewhere, and their commands and options exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.command_line import run_main

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/truss/README.md")
] + sorted((ROOT / "docs").rglob("*.md"))


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
    """Each line of a bash block that runs pixtral-sky, and its page."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"\$\(|&&|\|", re.sub(r"(^|\s)#.*", "", line)):
                    if part.strip().startswith("pixtral-sky "):
                        yield part.strip(), str(page.relative_to(ROOT))


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
