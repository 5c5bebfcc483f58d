"""Write docs/reference/cli.md and errors.md from the code; --check only compares."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"COLUMNS": "100", "XDG_CONFIG_HOME": "/nowhere"}
import typer.main
from generated import ROOT, complain

from pixtral_sky import errors
from pixtral_sky.cli import app

REFERENCE = ROOT / "docs" / "reference"
SOURCE = "<!-- Written by tools/reference.py -->\n"

CLI = """# Command line

Every command, its options and their defaults, as `--help` shows them. `-q` stands before or after it.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 141 when a pipe is closed early, as `head` does.
Results go to standard output, all else to standard error. `PIXTRAL_SKY_DEBUG=1` shows the traceback of an
error.

[What may stand in `pixtral-sky.toml`](config.md) is shown as the default where it applies.
"""
ERRORS = """# Errors

An error is one line: what happened, and the command that helps next. Search this page for its words; `…`
stands for what differs from case to case. `PIXTRAL_SKY_DEBUG=1` shows where in the code it arose.
"""


def cli_page() -> str:
    root = typer.main.get_command(app._app(""))
    context = root.make_context("pixtral-sky", [], resilient_parsing=True)
    parts = [SOURCE, CLI, _help(root, context)]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        parts += _described(name, command, context)
    return "\n".join(parts)


def _described(name: str, command: Any, parent: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent, resilient_parsing=True)
    yield f"## {context.command_path}\n"
    yield _help(command, context)
    for below, each in getattr(command, "commands", {}).items():
        yield from _described(below, each, context)


def _help(command: Any, context: Any) -> str:
    return f"```text\n{command.get_help(context)}\n```\n"


def errors_page() -> str:
    kinds = _kinds()
    parts = [SOURCE, ERRORS, "| error | exit code | it means |", "|---|---|---|"]
    for name, (exit_code, meaning) in kinds.items():
        parts.append(f"| `{name}` | {exit_code} | {_cell(meaning)} |")
    texts = _texts(set(kinds))
    for name in kinds:
        rows = sorted(texts.get(name, ()))
        if rows:
            parts += [f"\n## {name}\n", "| what happened | what helps |", "|---|---|"]
            parts += [f"| {_cell(what)} | {_cell(hint)} |" for what, hint in rows]
    return "\n".join(parts) + "\n"


def _kinds() -> dict[str, tuple[int, str]]:
    """Each public error with its exit code and its meaning: of pixtral_sky.errors, then of other modules."""
    found: dict[str, tuple[int, str]] = {}
    paths = sorted((ROOT / "pixtral_sky").rglob("*.py"))
    for path in (Path(errors.__file__), *paths):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            base = next((each.id for each in node.bases if isinstance(each, ast.Name)), "")
            if base in found or (base, path) == ("Exception", Path(errors.__file__)):
                meaning = (ast.get_docstring(node) or "").split("\n\n")[0]
                own = getattr(getattr(errors, node.name, None), "exit_code", None)
                found.setdefault(node.name, (own or found[base][0], meaning))
    return found


def _texts(kinds: set[str]) -> dict[str, set[tuple[str, str]]]:
    """The literal texts of each error in the code: what happened, and what helps."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / "pixtral_sky").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                what, hint = ([*map(_text, node.args), "", ""])[:2]
                hint = hint or next((_text(each.value) for each in node.keywords if each.arg == "hint"), "")
                if re.search(r"\w{3}", what):
                    found.setdefault(node.func.id, set()).add((what, hint))
    return found


def _text(node: ast.expr) -> str:
    """The text of a literal, with … for what is computed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def _cell(text: str) -> str:
    for character in "|*<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("``", "`").split())


def main() -> None:
    check = "--check" in sys.argv[1:]
    pages: dict[Path, str] = {REFERENCE / "cli.md": cli_page(), REFERENCE / "errors.md": errors_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        complain(stale, "python tools/reference.py")
        raise SystemExit(1)
    for path in stale:
        path.write_text(pages[path])


if __name__ == "__main__":
    main()
