"""Fails when a folder of the package imports one that is above it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "pixtral_sky"
# Each folder, and those that it may import from; the modules beside the folders are the base of all.
BELOW = {
    "base": (),
    "pictures": ("base",),
    "client": ("pictures", "base"),
    "deploy": ("client", "pictures", "base"),
    "batch": ("client", "pictures", "base"),
    "bench": ("batch", "client", "pictures", "base"),
    "planning": ("deploy", "client", "pictures", "base"),
    "rehearsal": ("deploy", "client", "pictures", "base"),
    "chat": ("client", "pictures", "base"),
    "doctor": ("deploy", "client", "pictures", "base"),
    "server": (),  # it runs on the GPU machine, alone
    "api": ("client", "pictures", "base"),
    "cli": (
        "doctor",
        "rehearsal",
        "planning",
        "chat",
        "bench",
        "batch",
        "deploy",
        "client",
        "pictures",
        "base",
    ),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """The folders that a module imports from, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pixtral_sky":
            yield from (folder(["pixtral_sky", each.name]) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pixtral_sky."):
            yield folder((node.module or "").split("."))
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.startswith("pixtral_sky."):
                    yield folder(each.name.split("."))


def folder(names: list[str]) -> str:
    if names[1] in BELOW:
        return names[1]
    # Modules have small letters; the package's other names are its public API and its version.
    return "api" if names[1][0].isupper() or names[1] == "read_picture" else "base"


def wrong(package: Path) -> list[str]:
    """Each import that goes up, as a line."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = str(path.relative_to(package.parent))
        inside = path.relative_to(package).parts
        own = inside[0] if len(inside) > 1 else "base"
        own = {"pixtral_sky/__init__.py": "api", "pixtral_sky/__main__.py": "cli"}.get(name, own)
        for other in sorted(set(imports(ast.parse(path.read_text())))):
            if other != own and other not in BELOW[own]:
                found.append(f"{name}: {own} imports {other}, which is above it.")
    return found


if __name__ == "__main__":
    found = wrong(PACKAGE)
    for line in found:
        print(line)
    sys.exit(bool(found))
