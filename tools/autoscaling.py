"""Write docs/autoscaling.png and the tables of docs/autoscaling.md; --check only compares.

`pixtral_sky.planning.capacity` simulates what they show. The picture has the fingerprint of its source, so
that a check needs no matplotlib, whatever its version.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from generated import PAGE, ROOT, complain, drawn_from, renewed

from pixtral_sky.deploy import task
from pixtral_sky.planning import capacity, loads

PICTURE = ROOT / "docs" / "autoscaling.png"

# Seconds from a decision until a replica answers. Assumed: 2 minutes for the machine, 2 for vLLM's wheels, 4
# for 25 GB of weights at 100 MB/s, 2 for vLLM's start; then the same without wheels and weights.
STARTS = {"10 minutes": 600, "4 minutes": 240}
SLOW, FAST = STARTS
LOW, HIGH = 1.0, 9.0  # queries per second
MINUTE = 60

Policy = tuple[int, int]  # upscale_delay_seconds, downscale_delay_seconds
# The last is SkyServe's own: sky.serve.constants.AUTOSCALER_DEFAULT_*_DELAY_SECONDS.
OTHERS = ((60, 600), (60, 1200), (120, 600), (120, 1200), (120, 2400), (300, 600), (300, 1200))

RISE, FALL = 10 * MINUTE, 70 * MINUTE  # of the load, in the step
LOADS: dict[str, tuple[loads.Rate, int]] = {
    "step": (loads.step(LOW, HIGH, RISE, FALL), 150 * MINUTE),
    "bursts": (loads.burst(LOW, HIGH, MINUTE, 30 * MINUTE), 360 * MINUTE),
    "pauses": (loads.burst(LOW, HIGH, 30 * MINUTE, 45 * MINUTE), 360 * MINUTE),
}


def service(**policy: Any) -> dict[str, Any]:
    """The ``service:`` section of service.yaml, with another policy where one is given."""
    section = written()
    return {**section, "replica_policy": {**section["replica_policy"], **policy}}


@cache
def written() -> dict[str, Any]:
    section: dict[str, Any] = task.read(ROOT / "service.yaml")["service"]
    return section


def shipped() -> Policy:
    policy = written()["replica_policy"]
    return policy["upscale_delay_seconds"], policy["downscale_delay_seconds"]


def named(policy: Policy) -> str:
    return f"{policy[0]}/{policy[1]}"


def play(
    rate: loads.Rate,
    seconds: int,
    start: str = SLOW,
    carries: float = 0,
    seed: int | None = None,
    **policy: Any,
) -> capacity.Outcome:
    """Simulate a load. A replica carries the file's target_qps_per_replica, or ``carries``."""
    spec = capacity.spec(service(**policy))
    carries = carries or spec.target_qps_per_replica
    return capacity.simulate(
        spec, arrivals(rate, seconds, seed), seconds, startup=STARTS[start], carries=carries
    )


@cache
def arrivals(rate: loads.Rate, seconds: int, seed: int | None) -> list[float]:
    return loads.arrivals(rate, seconds, seed)


# What is shown, as numbers --------------------------------------------------------------------------------


def gathered() -> dict[str, Any]:
    """The numbers of the page and the picture."""
    return {
        "steps": {start: step(play(*LOADS["step"], start)) for start in STARTS},
        "policies": {named(each): compared(each) for each in sorted({*OTHERS, shipped()})},
        "else": {
            "as shipped": one(play(*LOADS["step"])),
            f"a start of {FAST}": one(play(*LOADS["step"], FAST)),
            "each replica carries 3, and the target stays 2": one(play(*LOADS["step"], carries=3)),
            "`min_replicas: 3`": one(play(*LOADS["step"], min_replicas=3)),
            "5 replicas at all times": one(play(*LOADS["step"], min_replicas=5, max_replicas=5)),
        },
        "random": {
            name: sorted(100 * play(*LOADS[name], seed=seed).share_too_few for seed in range(1, 6))
            for name in LOADS
        },
    }


def step(outcome: capacity.Outcome) -> dict[str, Any]:
    """The step, moment by moment."""
    asked = next(each.time for each in outcome.decisions if each.up)
    sent = next(each.time for each in outcome.decisions if not each.up)
    answer = next(
        each.time for each in outcome.moments if each.ready == max(m.ready for m in outcome.moments)
    )
    return {
        "requests": outcome.requests,
        **one(outcome),
        "asked": asked - RISE,
        "more": sum(each.up for each in outcome.decisions),
        "answer": answer - RISE,
        "sent": sent - FALL,
        "free": sent + capacity.DRAIN - FALL,
        "moments": [(each.time, each.target, each.paid, each.ready) for each in outcome.moments],
    }


def one(outcome: capacity.Outcome) -> dict[str, Any]:
    return {"too_few": outcome.too_few, "share": outcome.share_too_few, "hours": outcome.replica_hours}


def compared(policy: Policy) -> dict[str, Any]:
    """What two delays cost under each load, and the longest burst and pause that change nothing."""
    delays: dict[str, Any] = {"upscale_delay_seconds": policy[0], "downscale_delay_seconds": policy[1]}

    def passes_burst(seconds: int) -> bool:
        rate = loads.step(LOW, HIGH, RISE, RISE + seconds)
        return not play(rate, RISE + seconds + 300, **delays).decisions

    def passes_pause(seconds: int) -> bool:
        rate = loads.step(HIGH, LOW, 3600, 3600 + seconds)
        return all(each.up for each in play(rate, 3600 + seconds + 300, **delays).decisions)

    return {
        **{
            name: {start: one(play(rate, seconds, start, **delays)) for start in STARTS}
            for name, (rate, seconds) in LOADS.items()
        },
        "burst": longest(10, passes_burst),
        "pause": longest(MINUTE, passes_pause),
    }


def longest(grain: int, passes: Callable[[int], bool]) -> int:
    """The longest seconds, in steps of ``grain``, that pass."""
    low, high = 0, 3600 // grain  # no delay here is longer than an hour
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle * grain) else (low, middle)
    return low * grain


# The page -------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def blocks(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each generated part of the page, by the name of its markers."""
    steps = [found["steps"][start] for start in STARTS]
    yield (
        "step",
        table(
            ["minutes after the rise", *(f"start: {name}" for name in STARTS)],
            [
                [
                    f"{steps[0]['more']} more replicas are asked for",
                    *(clock(each["asked"]) for each in steps),
                ],
                ["they answer", *(clock(each["answer"]) for each in steps)],
                ["the load falls", *(clock(FALL - RISE) for _ in steps)],
                ["they are sent away", *(clock(FALL - RISE + each["sent"]) for each in steps)],
                ["they cost nothing more", *(clock(FALL - RISE + each["free"]) for each in steps)],
                ["requests in 150 minutes", *(f"{each['requests']:,}" for each in steps)],
                [
                    "of these came to busy replicas",
                    *(f"{each['too_few']:,} ({each['share']:.1%})" for each in steps),
                ],
                ["replica-hours", *(f"{each['hours']:.1f}" for each in steps)],
            ],
        ),
    )
    rows = []
    for name, each in found["policies"].items():
        mark = "**" if name == named(shipped()) else ""
        rows.append(
            [
                f"{mark}{name}{mark}",
                *(
                    f"{each['step'][start]['share']:.1%}, {each['step'][start]['hours']:.1f}"
                    for start in STARTS
                ),
                f"{each['burst']} s",
                f"{each['bursts'][SLOW]['hours'] / 6:.1f}",
                f"{each['pause'] / 60:.0f} min",
                f"{each['pauses'][SLOW]['share']:.1%}, {each['pauses'][SLOW]['hours'] / 6:.1f}",
            ]
        )
    yield (
        "policies",
        table(
            [
                "delays, in seconds: up/down",
                *(f"step, start {name}: too few, replica-hours" for name in STARTS),
                "a burst that starts nothing: up to",
                "a minute's burst each half hour: replicas",
                "a pause that ends nothing: up to",
                "a pause of 15 minutes every 45: too few, replicas",
            ],
            rows,
        ),
    )
    yield (
        "else",
        table(
            [f"the step, start: {SLOW}", "too few", "replica-hours"],
            [[name, f"{each['share']:.1%}", f"{each['hours']:.1f}"] for name, each in found["else"].items()],
        ),
    )
    shares = {name: f"{each[0]:.1f} to {each[-1]:.1f}%" for name, each in found["random"].items()}
    at_random = (
        f"Requests come evenly spaced here. At random (5 seeds), {shares['step']} of them meet too few"
        f" replicas in the step, {shares['bursts']} in the bursts and {shares['pauses']} in the pauses,"
        " with the delays as shipped."
    )
    yield "random", at_random


def page(text: str, found: dict[str, Any]) -> str:
    """The page with its generated parts renewed."""
    for name, body in blocks(found):
        text = renewed(text, name, body)
    return text


# The picture ----------------------------------------------------------------------------------------------

BLUE, RED, DARK, PALE = "#2f78b7", "#d1495b", "#22303c", "#c9d6e2"
TITLES = {
    "step": "The step above",
    "bursts": "A burst of 1 minute each half hour",
    "pauses": "A pause of 15 minutes every 45",
}


def fingerprint(found: dict[str, Any]) -> str:
    """A hash of the numbers and of this file, which draws them."""
    return hashlib.sha256(json.dumps(found).encode() + Path(__file__).read_bytes()).hexdigest()


def draw(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 8.4), dpi=110)
    timeline(figure.add_axes((0.06, 0.58, 0.92, 0.32)), found["steps"])
    for column, load in enumerate(LOADS):
        left = 0.095 + column * 0.305
        too_few = figure.add_axes((left, 0.07, 0.125, 0.34))
        paid = figure.add_axes((left + 0.132, 0.07, 0.125, 0.34))
        bars(too_few, paid, found["policies"], load)
        if column:
            too_few.tick_params(labelleft=False)
        figure.text(left + 0.1285, 0.425, TITLES[load], ha="center", weight="bold", size=10.5)
    heading: dict[str, Any] = {"ha": "left", "weight": "bold", "size": 12, "color": DARK}
    figure.text(0.012, 0.965, "From 1 to 9 queries per second, and back after an hour", **heading)
    figure.text(0.012, 0.475, "Other delays (up/down, in seconds; in bold: as shipped)", **heading)
    figure.savefig(PICTURE, metadata={"Software": None, "Fingerprint": fingerprint(found)})


def timeline(axes: Any, runs: dict[str, Any]) -> None:
    """The load, what ready replicas carry, and what the paid ones would, in queries/s over minutes."""
    run, fast = runs[SLOW], runs[FAST]
    carries = written()["replica_policy"]["target_qps_per_replica"]
    rate, seconds = LOADS["step"]
    changes = sorted({0, RISE, FALL, seconds, *(each[0] for each in run["moments"])})
    now = [max(moment for moment in run["moments"] if moment[0] <= each) for each in changes]
    minutes = [(each - RISE) / MINUTE for each in changes]
    load = [rate(min(each, seconds - 1)) for each in changes]
    ready, paid = ([each[column] * carries for each in now] for column in (3, 2))
    area: dict[str, Any] = {"step": "post", "linewidth": 0}
    axes.fill_between(minutes, ready, **area, color=BLUE, alpha=0.55, label="what ready replicas carry")
    axes.fill_between(minutes, ready, paid, **area, color=PALE, label="replicas that start, or leave: paid")
    late = [a > b for a, b in zip(load, ready, strict=True)]
    axes.fill_between(minutes, ready, load, where=late, **area, color=RED, label="requests that meet too few")
    axes.step(minutes, load, where="post", color=DARK, linewidth=2.2, label="the load")
    spans = [
        (0, run["asked"], "upscale delay"),
        (run["asked"], run["answer"], "start of a replica"),
        (FALL - RISE, FALL - RISE + run["sent"], "downscale delay"),
    ]
    for begin, end, text in spans:
        axes.plot(
            [begin / 60 + 0.15, end / 60 - 0.15], [10.6, 10.6], color=DARK, linewidth=3, solid_capstyle="butt"
        )
        side = "right" if begin == 0 else "left"
        axes.text(end / 60 - 0.5 if side == "right" else begin / 60, 10.95, text, ha=side, color=DARK, size=9)
    when = fast["answer"] / 60
    axes.plot([when, when], [4, 9], color="white", linewidth=1.6, linestyle=(0, (3, 2)))
    axes.annotate(
        f"with a start of {FAST}\nthey are ready here", (when, 6.5), (18, 6.1), color=DARK, size=9,
        arrowprops={"arrowstyle": "-", "color": DARK, "lw": 0.9},
    )  # fmt: skip
    axes.text(
        109.5, 8.9,
        f"{run['share']:.1%} of {run['requests']:,} requests\nmet too few replicas\n"
        f"({fast['share']:.1%} with a start of {FAST}),\nfor {run['hours']:.1f} replica-hours",
        ha="right", va="top", color=DARK, size=9.5,
    )  # fmt: skip
    axes.set(xlim=(-10, 110), ylim=(0, 12), ylabel="queries per second", xlabel="minutes after the rise")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=4,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.6,
    )


def bars(too_few: Any, paid: Any, policies: dict[str, Any], load: str) -> None:
    """The cost of each pair of delays, to the right, and the requests that met too few, to the left."""
    hours = LOADS[load][1] / 3600
    for row, (name, each) in enumerate(policies.items()):
        ours = name == named(shipped())
        share, average = 100 * each[load][SLOW]["share"], each[load][SLOW]["hours"] / hours
        look: dict[str, Any] = {"height": 0.66, "alpha": 1 if ours else 0.5}
        weight = "bold" if ours else "normal"
        too_few.barh(row, share, color=RED, **look)
        paid.barh(row, average, color=BLUE, **look)
        fast = 100 * each[load][FAST]["share"]
        too_few.plot([fast, fast], [row - 0.33, row + 0.33], color=DARK, linewidth=1.6)
        too_few.text(share + 0.8, row, f"{share:.1f}", ha="right", va="center", size=9, weight=weight)
        paid.text(average + 0.1, row, f"{average:.1f}", va="center", size=9, weight=weight)
    for axes in (too_few, paid):
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set(
            ylim=(len(policies) - 0.5, -0.6), yticks=range(len(policies)), yticklabels=policies, xticks=[]
        )
        axes.tick_params(length=0)
    for label in too_few.get_yticklabels():
        label.set_weight("bold" if label.get_text() == named(shipped()) else "normal")
    too_few.set(xlim=(36, 0), xlabel=f"% that met too few\n(line: a start of {FAST})")
    paid.set(xlim=(0, 6.3), xlabel="replicas paid,\non average")
    paid.tick_params(labelleft=False)


# ----------------------------------------------------------------------------------------------------------


def main() -> int:
    home = os.environ.get("HOME", "")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["HOME"] = empty  # SkyPilot writes there when it is imported
        found = gathered()
    os.environ["HOME"] = home
    text = PAGE.read_text()
    stale = [PAGE] if text != page(text, found) else []
    if drawn_from(PICTURE) != fingerprint(found):
        stale.append(PICTURE)
    if "--check" in sys.argv:
        complain(stale, "python tools/autoscaling.py")
        return int(bool(stale))
    PAGE.write_text(page(text, found))
    if PICTURE in stale:
        draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
