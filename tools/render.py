"""Render pixtral.yaml, service.yaml and examples/*.yaml from templates/ (`make render`).

--check only compares. A line `# include: FILE` is replaced by that file, indented as the line is.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "templates"
FILES = (
    "pixtral.yaml",
    "service.yaml",
    *sorted(f"examples/{path.name}" for path in (TEMPLATES / "examples").glob("*.yaml")),
)


def render(path: Path) -> str:
    """The text of ``path`` with what it includes, and what that includes in turn."""
    lines = []
    for line in path.read_text().splitlines():
        text = line.lstrip()
        if text.startswith("# include: "):
            indent = line[: len(line) - len(text)]
            included = render(path.parent / text.removeprefix("# include: ")).splitlines()
            lines += [indent + part if part else "" for part in included]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    check = "--check" in sys.argv
    stale = [
        name
        for name in FILES
        if not (ROOT / name).exists() or (ROOT / name).read_text() != render(TEMPLATES / name)
    ]
    for name in stale:
        if check:
            print(f"{name} differs from its rendering. Run: make render", file=sys.stderr)
        else:
            (ROOT / name).write_text(render(TEMPLATES / name))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
