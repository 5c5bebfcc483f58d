"""Draws plans and comparisons of replica policies. Only drawing imports matplotlib."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral_sky.deploy.prices import Offer
from pixtral_sky.errors import UsageError
from pixtral_sky.extras import install
from pixtral_sky.planning.plan import Option, Plan, options, usd

if TYPE_CHECKING:
    from pixtral_sky.planning.policies import Result, Terms

FORMATS = (".png", ".svg", ".pdf")
MOST = 12  # rows of a readable picture
BLUE, DARK, GOLD = "#8fb4d8", "#22303c", "#e08e1b"


def check(path: Path) -> None:
    """Raise UsageError where ``path`` cannot be drawn. matplotlib is not imported, which takes a second."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is no name of a picture that can be drawn.", "For example: --plot plan.png")
    if not path.parent.is_dir():
        raise UsageError(f"There is no directory {path.parent}.", f"Run: mkdir -p {path.parent}")
    if not importlib.util.find_spec("matplotlib"):
        raise UsageError("A picture needs matplotlib.", f"Run: {install('plot')}")


def _quieten() -> None:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # SkyPilot has all loggers speak


def draw_plan(path: Path, plan: Plan, offers: Sequence[Offer]) -> None:
    """Draw the best MOST of a plan in its order, with their cost on demand and on spot, as ranges."""
    _quieten()
    from matplotlib.figure import Figure

    rows = {_who(each): row for row, each in enumerate(plan.options[:MOST])}
    ask, workload = plan.ask, plan.ask.workload
    load = f"at {ask.qps:g} requests/s" if ask.qps else "on machines that are always busy"

    figure = Figure(figsize=(9, 1.7 + 0.48 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    widest = 0.0
    for name, at_spot, colour, aside in (
        ("on demand", False, "#1f4e79", -0.17),
        ("spot", True, "#c8741a", 0.17),
    ):
        shown = [each for each in options(ask, plan.machines, offers, at_spot) if _who(each) in rows]
        heights = [rows[_who(each)] + aside for each in shown]
        lows, highs = ([getattr(each.cost, end) for each in shown] for end in ("low", "high"))
        widest = max([widest, *highs])
        axes.hlines(heights, lows, highs, color=colour, linewidth=6, alpha=0.3, zorder=2)
        axes.scatter(highs, heights, color=colour, s=36, zorder=3, label=name)
        for each, height in zip(shown, heights, strict=True):
            words = f"${usd(each.cost.high)}" + ", measured" * each.machine.measured
            look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(words, (each.cost.high, height), (6, 0), color=colour, **look)
    for row in range(0, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f5f6f8", zorder=0)
    axes.set_yticks(list(rows.values()), ["  ".join(who) for who in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the best on top
    axes.set_xlim(0, widest * 1.15)  # with room for the last label
    axes.xaxis.set_major_formatter("${x:.2f}")
    axes.grid(axis="x", color="#d9dce1", linewidth=0.8, zorder=1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(
        "for 1,000 pictures, on machines with their disks; dot: the safe end of the estimate, bar: its range",
        fontsize=9,
    )
    axes.set_title(
        f"What 1,000 pictures cost with Pixtral 12B\n"
        f"{workload.images} of {workload.width}x{workload.height} a request, {load}",
        loc="left",
        fontsize=11,
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2, fontsize=9)
    figure.savefig(path)


def _who(option: Option) -> tuple[str, str, str]:
    return option.machine.gpus, option.machine.fit.precision, option.offer.cloud


def draw_capacity(path: Path, shown: Sequence[Result], terms: Terms, title: str) -> None:
    """Draw as bars what each policy costs, and how many requests met too few replicas. Raises OSError."""
    _quieten()
    from matplotlib.figure import Figure

    from pixtral_sky.planning.policies import percent

    colours = [GOLD if each.cheapest else DARK if each.own else BLUE for each in shown]
    names = [
        "   ".join([each.policy.replicas, *(() if each.policy.fixed else each.policy.scaling)])
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
        axes.bar_label(
            bars, words, padding=3, size=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}
        )
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
    figure.savefig(path)
