"""Draws plans and comparisons of replica policies. Only drawing imports matplotlib."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral_sky import files
from pixtral_sky.deploy.prices import Prices
from pixtral_sky.errors import UsageError
from pixtral_sky.extras import install
from pixtral_sky.planning.plan import Option, Plan, options, usd

if TYPE_CHECKING:
    from pixtral_sky.planning.policies import Result, Terms

FORMATS = (".png", ".svg", ".pdf")
MOST = 12  # rows of a readable picture
BLUE, DARK, GOLD = "#8fb4d8", "#22303c", "#e08e1b"
NAVY, ORANGE, GREY, BAND = "#1f4e79", "#b35f0f", "#8a9099", "#f5f6f8"


def check(path: Path) -> None:
    """Raise UsageError where ``path`` cannot be drawn. matplotlib is not imported, which takes a second."""
    if path.suffix.lower() not in FORMATS:
        example = f"{path}.png" if not path.suffix else str(path.with_suffix(".png"))
        raise UsageError(
            f"{path} is no name of a picture that can be drawn.",
            f"For example: --plot {shlex.quote(example)}",
        )
    files.check_writable(path, "--plot")
    if not importlib.util.find_spec("matplotlib"):
        raise UsageError("A picture needs matplotlib.", f"Run: {install('plot')}")


def _quieten() -> None:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # SkyPilot has all loggers speak


def draw_plan(path: Path, plan: Plan, prices: Prices) -> None:
    """Draw the best MOST of a plan in its order, with their cost on demand and on spot, as ranges."""
    _quieten()
    from matplotlib.figure import Figure

    rows = {_who(each): row for row, each in enumerate(plan.options[:MOST])}
    on_demand, on_spot = (
        {
            _who(each): each
            for each in options(plan.ask, plan.machines, prices.offers, spot)
            if _who(each) in rows
        }
        for spot in (False, True)
    )
    lines = [_Line(on_demand[who], row - 0.2 * bool(on_spot), NAVY) for who, row in rows.items()]
    if on_spot:
        lines += [_Line(on_spot.get(who), row + 0.2, ORANGE) for who, row in rows.items()]
    labels = [each.label for each in lines]
    width = 9 + 0.065 * max(0, max(map(len, labels)) - 40)  # inches: a long name takes no room of the marks
    figure = Figure(
        figsize=(width, 2.1 + (0.52 if on_spot else 0.4) * len(rows)), dpi=150, layout="constrained"
    )
    axes = figure.add_subplot()
    for row in range(0, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, zorder=0)
    for each in lines:
        each.draw(axes)
    axes.set_yticks([each.height for each in lines], labels, fontsize=8.5)
    for tick, each in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_color(each.colour)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the best on top
    widest = max(each.option.cost.high for each in lines if each.option)
    axes.set_xlim(0, widest * 1.2)  # with room for the last label
    axes.xaxis.set_major_formatter(lambda value, _: f"${round(value, 9):g}")
    axes.grid(axis="x", color="#d9dce1", linewidth=0.8, zorder=1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    shown = {each.option.offer.cloud for each in lines if each.option}
    figure.supxlabel(_caption(prices.dated(shown), bool(on_spot)), fontsize=9)
    figure.suptitle(_title(plan), x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


@dataclass(frozen=True)
class _Line:
    """What an option costs, at a height of the picture. ``option`` None: it has no spot price."""

    option: Option | None
    height: float
    colour_of_price: str

    @property
    def colour(self) -> str:
        return self.colour_of_price if self.option else GREY

    @property
    def label(self) -> str:
        """The machine and its price; of a spot price, which stands below, the region and the price."""
        if self.option is None:
            return "no spot price"
        machine, offer = self.option.machine, self.option.offer
        price = f"{offer.region.strip(', ')}  ${self.option.hourly:.2f}/h"
        if self.colour_of_price == ORANGE:
            return f"spot  {price}"
        return f"{machine.gpus}  {machine.precision}  {offer.cloud}  {price}"

    def draw(self, axes: Any) -> None:
        if self.option is None:
            return
        cost, colour = self.option.cost, self.colour
        axes.hlines(self.height, cost.low, cost.high, color=colour, linewidth=6, alpha=0.3, zorder=2)
        axes.scatter(cost.high, self.height, color=colour, s=36, zorder=3)
        words = f"${usd(cost.high)}" + ", measured" * self.option.machine.measured
        band = "white" if round(self.height) % 2 else BAND
        axes.annotate(
            words,
            (cost.high, self.height),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
            bbox={"facecolor": band, "edgecolor": "none", "pad": 1},  # the grid's lines do not cross it
        )


def _title(plan: Plan) -> str:
    ask, workload = plan.ask, plan.ask.workload
    load = f"at {ask.qps:g} requests/s" if ask.qps else "on machines that are always busy"
    return (
        f"What 1,000 pictures cost with Pixtral 12B\n{workload.images} of {workload.width}x{workload.height} "
        f"a request, {load}; by cost{' on spot' * plan.spot}"
    )


def _caption(day: str, has_spot: bool) -> str:
    colours = "blue: on demand; orange: on spot" if has_spot else "none has a spot price here"
    return (
        f"USD for 1,000 pictures, disks included; {colours}\n"
        "dot: the safe end of the estimate; bar: its range\n"
        f"$/h: of the machine alone, in SkyPilot's catalogs of {day or 'an unknown day'}"
    )


def _who(option: Option) -> tuple[str, str, str]:
    return option.machine.gpus, option.machine.fit.precision, option.offer.cloud


def draw_capacity(path: Path, shown: Sequence[Result], terms: Terms, title: str) -> None:
    """Draw as bars what each policy costs, and how many requests met too few replicas. Raises OSError."""
    _quieten()
    from matplotlib.figure import Figure

    from pixtral_sky.planning.policies import percent

    colours = [GOLD if each.cheapest else DARK if each.own else BLUE for each in shown]
    cost = [each.hours if each.dollars is None else each.dollars for each in shown]
    too_few, goal = [100 * each.share_too_few for each in shown], 100 * terms.goal
    numbers = [f"{each:,.2f}" if terms.price else f"{each:.1f}" for each in cost]
    figure = Figure(figsize=(10, 2.1 + 0.3 * len(shown)), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, cost, numbers, colours)
    _bars(right, too_few, [percent(each.share_too_few) for each in shown], colours, goal)
    names = ["   ".join([each.policy.replicas, *_scaling(each)]) for each in shown]
    left.set_yticks(range(-1, len(shown)), ["replicas   target   up/down", *names])
    left.set_ylim(len(shown) - 0.5, -1.5)  # the cheapest on top
    left.set_xlabel("$ a day" if terms.price else "replica-hours a day")
    right.set_xlabel("requests that met too few replicas, in %")
    within = f"{goal:g}%{' (dashed)' if goal <= right.get_xlim()[1] else ''}"
    figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", weight="bold", color=DARK)
    figure.supxlabel(f"orange: the cheapest within {within}; black: the file's own", size=9, color=DARK)
    figure.savefig(path)


def _scaling(result: Result) -> tuple[str, ...]:
    return () if result.policy.fixed else result.policy.scaling


def _bars(
    axes: Any,
    values: Sequence[float],
    words: Sequence[str],
    colours: Sequence[str],
    goal: float | None = None,
) -> None:
    """Bars with their numbers beside them, and a dashed line at ``goal``, if that is in the picture."""
    axes.barh(range(len(values)), values, color=colours, height=0.7)
    widest = 1.17 * max(*values, 0.001 if goal is None else 1)
    axes.set_xlim(0, widest)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    line = goal if goal is not None and goal <= widest else None
    if line is not None:
        axes.axvline(line, color=GOLD, linestyle="--", zorder=0)
    for row, (value, word) in enumerate(zip(values, words, strict=True)):
        # A number that would lie on the line stands behind it.
        covers = line is not None and value <= line < value + 0.16 * widest
        axes.annotate(
            word,
            (line if covers else value, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
