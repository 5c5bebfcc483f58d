"""Render pixtral.yaml, service.yaml and examples/ from templates/ (`make render`); --check only compares.

A line `# include: FILE` is replaced by that file, with the indent of the line; `# modules: NAME FOLDER` by a
Bash function that writes the folder's Python modules; `# vllm serve: without FLAGS` by the other arguments of
vLLM in run.sh; `@VLLM@` by the version of vLLM in setup.sh. The Truss carries the modules as files.
"""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "templates"
SERVER = ROOT / "pixtral_sky" / "server"
# What is rendered, and of what.
FILES = {
    name: TEMPLATES / name
    for name in (
        "pixtral.yaml",
        "service.yaml",
        *sorted(str(path.relative_to(TEMPLATES)) for path in (TEMPLATES / "examples").rglob("*.yaml")),
    )
} | {f"examples/truss/data/pixtral_gateway/{path.name}": path for path in sorted(SERVER.glob("[!_]*.py"))}


def render(path: Path) -> str:
    """The text of ``path`` with what it includes, and what that includes in turn."""
    lines = []
    for line in path.read_text().splitlines():
        text = line.lstrip()
        indent = line[: len(line) - len(text)]
        if text.startswith("# include: "):
            included = render(path.parent / text.removeprefix("# include: ")).splitlines()
            lines += [indent + part if part else "" for part in included]
        elif text.startswith("# modules: "):
            name, folder = text.removeprefix("# modules: ").split()
            lines += [indent + part if part else "" for part in writer(name, path.parent / folder)]
        elif text.startswith("# vllm serve: without "):
            without = text.removeprefix("# vllm serve: without ").split()
            lines += [indent + flag for flag in flags() if flag.split()[0] not in without]
        else:
            lines.append(line.replace("@VLLM@", version()))
    return "\n".join(lines) + "\n"


def writer(name: str, folder: Path) -> list[str]:
    """A Bash function ``name`` FOLDER that writes the modules, gateway.py first."""
    lines = [f"{name}() {{", '  mkdir "$1"']
    for module in sorted(folder.glob("[!_]*.py"), key=lambda path: (path.name != "gateway.py", path.name)):
        lines += [f"  cat > \"$1/{module.name}\" <<'PYTHON'", *module.read_text().splitlines(), "PYTHON"]
    return [*lines, "}"]


@functools.cache
def version() -> str:
    """The version of vLLM, from the one place that names it."""
    found = re.search(r"\bvllm==([\w.]+)", (TEMPLATES / "setup.sh").read_text())
    assert found, "setup.sh pins no vLLM"
    return found[1]


def serve_script() -> str:
    """Bash that prints the arguments of `vllm serve MODEL` in run.sh, one a line.

    It runs check.sh, and of run.sh the choice for the GPUs, which calls nvidia-smi, and the command.
    """
    script = (TEMPLATES / "run.sh").read_text()
    choice = script[script.index("# What the GPUs decide") : script.index("start() {")]
    command = script[script.index('vllm serve "$MODEL"') :].partition(" &\n")[0]
    stand_in = 'vllm() { shift 2; printf "%s\\n" "$@"; }; extra_args=()'
    return "\n".join([(TEMPLATES / "check.sh").read_text(), stand_in, f"{{ {choice}}} >&2", command])


@functools.cache
def flags() -> list[str]:
    """Each flag of run.sh's `vllm serve` with its values, for one A100 of 80 GB and the values of envs.yaml.

    They are quoted for a shell that gets them within double quotes.
    """
    envs = re.findall(r'^(\w+): "?(.*?)"?(?: #.*)?$', (TEMPLATES / "envs.yaml").read_text(), re.MULTILINE)
    environ = {
        **dict(envs),
        "MAX_MODEL_LEN": "32768",  # which one A100 holds
        "IDLE_MINUTES": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "PATH": "/usr/bin:/bin",
    }
    a100 = 'nvidia-smi() { echo "NVIDIA A100-SXM4-80GB, 81920, 8.0"; }'
    said = subprocess.run(
        ["bash", "-c", f"{a100}\n{serve_script()}"],  # noqa: S607
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[str]] = []
    for word in said.stdout.splitlines():
        if word.startswith("--"):
            found.append([])
        found[-1].append(word)
    return [shlex.join(words).replace('"', '\\"') for words in found]


def main() -> int:
    check = "--check" in sys.argv
    stale = [
        name
        for name, source in FILES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != render(source)
    ]
    for name in stale:
        if check:
            print(f"{name} differs from its rendering. Run: make render", file=sys.stderr)
        else:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(render(FILES[name]))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
