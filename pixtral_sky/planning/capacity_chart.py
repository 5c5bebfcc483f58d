"""The picture of a comparison of replica policies: two of them over the load, and all of them by cost."""

from __future__ import annotations

import importlib.util
import logging
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral_sky.errors import UsageError
from pixtral_sky.extras import install

if TYPE_CHECKING:
    from pixtral_sky.planning.policies import Comparison, Load, Result, Terms

BLUE, RED, DARK, PALE, GOLD = "#2f78b7", "#d1495b", "#22303c", "#c9d6e2", "#e08e1b"
BINS = 288  # of the load: 5 minutes each in a day
HOUR, DAY = 3600.0, 86_400.0


def check() -> None:
    """Raises UsageError where there is no matplotlib, without the second that its import takes."""
    if not importlib.util.find_spec("matplotlib"):
        raise UsageError("matplotlib is not installed here.", f"Run: {install('plot')}")


def draw(path: Path, found: Comparison, load: Load, terms: Terms, title: str, name: str) -> None:
    """Write it as a PNG; ``name`` is that of the service file. Raises OSError."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # SkyPilot has everyone talk
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    best = found.cheapest or found.beyond
    lines = [(f"As in {name}", found.own)]
    if best and best is not found.own:
        within = f"within {100 * terms.goal:g}%"
        lines.append((f"The cheapest {within}" if found.cheapest else f"With more replicas, {within}", best))
    style: Any = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 2.1 + 2.5 * len(lines)), dpi=110, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=12, color=DARK)
        grid = figure.add_gridspec(len(lines), 2, width_ratios=(2.3, 1))
        first: Any = None
        for row, (words, result) in enumerate(lines):
            axes = figure.add_subplot(grid[row, 0], sharex=first, sharey=first)
            first = first or axes
            _timeline(axes, result, load, terms)
            axes.set_title(f"{words}: {_policy(result)}", loc="left", size=9.5, color=DARK)
            axes.tick_params(labelbottom=row == len(lines) - 1)
        carried = max(each.paid for _, result in lines for each in result.outcome.moments) * terms.carries
        axes.set_ylim(0, 1.05 * max(carried, *_rates(load)))
        if load.seconds <= 3 * DAY:
            axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10]))
        axes.set_xlabel("hours" if load.seconds <= 3 * DAY else "days")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower left",
            ncols=5,
            frameon=False,
            handlelength=1.4,
        )
        _scatter(figure.add_subplot(grid[:, 1]), found, best, terms)
        figure.savefig(path, format="png", metadata={"Software": None})


def _policy(result: Result) -> str:
    policy = result.policy
    number = policy.minimum if policy.fixed else f"{policy.minimum} to {policy.maximum}"
    target = "" if policy.target is None or policy.fixed else f", target {policy.target:g}"
    delays = "" if policy.fixed else f", delays {policy.up:g}/{policy.down:g} s"
    share = f"{result.outcome.share_too_few:.2%} too few, {result.hours:.1f} replica-hours a day"
    return f"{number} replicas{' on spot' * policy.spot}{target}{delays}\n{share}"


def _edges(load: Load) -> list[float]:
    return [load.seconds * each / BINS for each in range(BINS + 1)]


def _rates(load: Load) -> list[float]:
    """Queries per second, bin by bin."""
    come = [bisect_right(load.arrivals, edge) for edge in _edges(load)]
    return [(after - before) * BINS / load.seconds for before, after in pairwise(come)]


def _timeline(axes: Any, result: Result, load: Load, terms: Terms) -> None:
    """The load, and what replicas carry, in queries per second over time."""
    unit = HOUR if load.seconds <= 3 * DAY else DAY
    moments = [each for each in result.outcome.moments if each.time >= 0]
    times = [each.time / unit for each in moments] + [load.seconds / unit]
    ready, paid, target = (
        [getattr(each, what) * terms.carries for each in (*moments, moments[-1])]
        for what in ("ready", "paid", "target")
    )
    area: dict[str, Any] = {"step": "post", "linewidth": 0}
    axes.fill_between(times, ready, **area, color=BLUE, alpha=0.55, label="what ready replicas carry")
    axes.fill_between(times, ready, paid, **area, color=PALE, label="replicas that start, or leave: paid")
    axes.step(times, target, where="post", color=BLUE, linewidth=1.2, label="replicas that are wanted")

    edges = _edges(load)
    begins = [each.time for each in moments]
    late = [moments[max(bisect_right(begins, edge) - 1, 0)].too_few for edge in edges[:-1]]
    late.append(result.outcome.too_few)
    rate = _rates(load)
    carried = [
        each - (after - before) * BINS / load.seconds
        for each, (before, after) in zip(rate, pairwise(late), strict=True)
    ]
    where = [edge / unit for edge in edges]
    area = {"step": "post", "linewidth": 0, "color": RED}
    axes.fill_between(
        where, [*carried, carried[-1]], [*rate, rate[-1]], **area, label="requests that meet too few"
    )
    axes.step(where, [*rate, rate[-1]], where="post", color=DARK, linewidth=1.3, label="the load")
    axes.set(xlim=(0, load.seconds / unit), ylabel="queries per second")
    replicas = axes.secondary_yaxis(
        "right", functions=(lambda each: each / terms.carries, lambda each: each * terms.carries)
    )
    replicas.yaxis.get_major_locator().set_params(integer=True)
    replicas.set_ylabel("replicas")


def _scatter(axes: Any, found: Comparison, best: Result | None, terms: Terms) -> None:
    """Every policy by what it costs and by the requests that met too few."""
    for spot, words in ((False, "a policy"), (True, "on spot")):
        each = [result for result in found.results if result.policy.spot == spot]
        if each:
            axes.scatter(
                [result.cost for result in each],
                [100 * result.outcome.share_too_few for result in each],
                s=26,
                linewidth=1,
                facecolor="none" if spot else BLUE,
                edgecolor=BLUE,
                alpha=0.7,
                label=words,
                clip_on=False,
                zorder=2,
            )
    marked = [(found.own, "s", DARK, "the file's own")]
    if best:
        marked.append((best, "*", GOLD, "the cheapest that holds the goal"))
    for result, marker, color, words in marked:
        place = result.cost, 100 * result.outcome.share_too_few
        size = 150 if marker == "*" else 45
        axes.scatter(*place, s=size, marker=marker, color=color, label=words, zorder=3, clip_on=False)
    axes.axhspan(
        0,
        100 * terms.goal,
        color=PALE,
        alpha=0.5,
        linewidth=0,
        zorder=0,
        label=f"within {100 * terms.goal:g}%",
    )
    # As far as the goal in equal steps, and above it ever closer: a few percent and a third are both seen.
    axes.set_yscale("symlog", linthresh=max(100 * terms.goal, 0.1), linscale=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    most = max(each.outcome.share_too_few for each in found.results)
    axes.set_ylim(0, 100 * max(12 * most, 25 * terms.goal, 0.025))  # with room for the legend
    axes.set_xlim(0, 1.08 * max(result.cost for result in (*found.results, *filter(None, [best]))))
    dollars = found.own.dollars is not None
    axes.set(xlabel="$ a day" if dollars else "replica-hours a day", ylabel="requests that met too few")
    axes.set_title("All that were compared", loc="left", size=9.5, color=DARK)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
