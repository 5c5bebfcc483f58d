"""The picture of a comparison of replica policies: what each costs, and how many requests met too few."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixtral_sky.errors import UsageError
from pixtral_sky.extras import install

if TYPE_CHECKING:
    from pixtral_sky.planning.policies import Result, Terms

BLUE, DARK, GOLD = "#8fb4d8", "#22303c", "#e08e1b"


def check(path: Path) -> None:
    """Raises UsageError where it cannot be drawn, without the second that matplotlib's import takes."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is drawn as a PNG.", f"Call it {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise UsageError(f"There is no directory {path.parent}.", f"Run: mkdir -p {path.parent}")
    if not importlib.util.find_spec("matplotlib"):
        raise UsageError("matplotlib is not installed here.", f"Run: {install('plot')}")


def draw(path: Path, shown: Sequence[Result], terms: Terms, title: str) -> None:
    """Write a PNG: what each policy costs, and how many requests met too few, as bars from 0.

    Raises OSError.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # SkyPilot has all loggers speak
    from matplotlib.figure import Figure

    from pixtral_sky.planning.policies import percent

    colours = [GOLD if each.cheapest else DARK if each.own else BLUE for each in shown]
    names = [
        each.policy.replicas
        if each.policy.fixed
        else "   ".join([each.policy.replicas, *each.policy.scaling])
        for each in shown
    ]
    cost = [each.hours if each.dollars is None else each.dollars for each in shown]
    too_few = [100 * each.share_too_few for each in shown]
    figure = Figure(figsize=(10, 1.9 + 0.3 * len(shown)), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    numbers = [f"{each:,.2f}" if terms.price else f"{each:.1f}" for each in cost]
    shares = [percent(each.share_too_few) for each in shown]
    for axes, values, words in ((left, cost, numbers), (right, too_few, shares)):
        bars = axes.barh(range(len(shown)), values, color=colours, height=0.7)
        axes.bar_label(bars, words, padding=3, size=9)
        axes.set_xlim(0, 1.17 * max(*values, 0.001))
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(shown)), names)
    left.invert_yaxis()  # the cheapest on top
    left.set_title("replicas, target, up/down", loc="left", x=-0.3, size=9, color=DARK)
    left.set_xlabel("$ a day" if terms.price else "replica-hours a day")
    right.set_xlabel("requests that met too few replicas, in %")
    within = f"{100 * terms.goal:g}%"
    if 100 * terms.goal <= right.get_xlim()[1]:
        right.axvline(100 * terms.goal, color=GOLD, linestyle="--", zorder=0)
        within += " (dashed)"
    figure.suptitle(title, x=0.01, ha="left", weight="bold", color=DARK)
    figure.supxlabel(f"orange: the cheapest within {within}; black: the file's own", size=9, color=DARK)
    figure.savefig(path, format="png", metadata={"Software": None})
