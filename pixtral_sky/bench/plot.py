"""Draws the throughput of a sweep against its latency. Only drawing imports matplotlib."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixtral_sky.bench.figures import Step, percentile
from pixtral_sky.bench.report import Subject, pictures
from pixtral_sky.bench.sweep import knee

BLUE, LIGHT, GOLD, DARK = "#1f4e79", "#8fb4d8", "#e08e1b", "#22303c"


def draw(path: Path, done: Sequence[Step], subject: Subject) -> None:
    """Draw requests a second of each step over the time of a whole answer, p50 and p99. Raises OSError."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # SkyPilot has all loggers speak
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [step for step in done if step.samples]
    rates = [step.requests for step in shown]
    middle, slow = ([percentile(step.whole, share) for step in shown] for share in (50, 99))
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(slow, rates, "o--", color=LIGHT, markersize=4, linewidth=1, zorder=2, label="p99")
    axes.plot(middle, rates, "o-", color=BLUE, markersize=6, zorder=3, label="median")
    found = knee(done)
    for step, seconds in zip(shown, middle, strict=True):
        marked = step is found
        words = f"{step.concurrency} at once" + ", the knee" * marked + ", with failures" * bool(step.failed)
        look: dict[str, Any] = {"color": GOLD, "weight": "bold"} if marked else {"color": DARK}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        # To the left and above: the line to the p99 is on the right.
        axes.annotate(
            words, (seconds, step.requests), (-6, 6), textcoords="offset points", ha="right", size=8, **look
        )
    if found:
        point = percentile(found.whole, 50), found.requests
        axes.plot(*point, "o", color=GOLD, markersize=11, zorder=4)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(middle) / 2, max(slow) * 1.2)
    axes.set_ylim(0, max(rates) * 1.15)
    axes.grid(color="#d9dce1", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds until an answer is whole")
    axes.set_ylabel("requests a second")
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(_title(subject), loc="left", size=10, color=DARK)
    figure.savefig(path)


def _title(subject: Subject) -> str:
    work = subject.workload
    where = " in ".join(filter(None, (subject.gpus or subject.model, subject.precision)))
    if subject.replicas > 1:
        where = f"{subject.replicas} replicas of {where}"
    if subject.is_rehearsal:
        where = "A REHEARSAL: a tiny model with random weights, on a CPU"
    words = f"{work.text:,} tokens of words, and an answer of {work.answer:,} tokens"
    return f"{where}\nA request: {pictures(work)}{words}"
