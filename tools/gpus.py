"""Write the figures of `memory.py` for each GPU into docs/gpus.md; --check only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import yaml
from generated import ROOT, complain, renewed

from pixtral_sky import memory

PAGE = ROOT / "docs" / "gpus.md"
FILES = ("pixtral.yaml", "service.yaml", "examples/*.yaml")
HEAD = (
    *("GPUs", "step", "memory", "all-reduce"),
    *(
        f"{precision}: {what}"
        for precision in memory.PRECISIONS
        for what in ("GiB", "context", "KV tokens", "at once")
    ),
)


def named() -> set[tuple[str, int]]:
    """The accelerators of the files that SkyPilot runs."""
    found = set()
    for file in (path for pattern in FILES for path in ROOT.glob(pattern)):
        for name in yaml.safe_load(file.read_text())["resources"]["accelerators"]:
            gpu, _, count = name.partition(":")
            found.add((gpu, int(count or 1)))
    return found


def page(text: str) -> str:
    files = named()
    machines = [
        (gpu, count) for gpu in memory.GPUS for count in (1, 2, 4, 8) if count < 4 or (gpu, count) in files
    ]
    rows = [HEAD, ["---"] * len(HEAD), *(row(*each, bold=each in files) for each in machines)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    reasons = [f"- {why}" for each in machines if (why := memory.fits(*each).why_not)]
    return renewed(text, "gpus", f"{table}\n\n" + "\n".join(reasons))


def row(gpu: str, count: int, bold: bool) -> list[str]:
    chosen = memory.settings(gpu, count)
    name = f"{gpu}:{count}"
    several = "custom" if chosen.custom_all_reduce else "NCCL's"
    return [
        f"**{name}**" if bold else name,
        f"{chosen.batched_tokens:,}",
        f"{chosen.memory_utilization}",
        several if count > 1 else "",
        *(cell for precision in memory.PRECISIONS for cell in held(gpu, count, precision)),
    ]


def held(gpu: str, count: int, precision: str) -> Iterator[str]:
    found = memory.fits(gpu, count, precision=precision)
    yield f"{memory.weight_bytes(count, precision) / memory.GIB:.2f}"
    for value in (found.context, found.kv_tokens, found.requests):
        yield f"{value:,}" if found.fits else "-"


def main() -> int:
    text = PAGE.read_text()
    new = page(text)
    if "--check" in sys.argv:
        stale = [PAGE] if text != new else []
        complain(stale, "python tools/gpus.py")
        return int(bool(stale))
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
