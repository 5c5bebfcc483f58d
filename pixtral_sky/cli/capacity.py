"""pixtral-sky capacity."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options

if TYPE_CHECKING:
    from pixtral_sky.planning.loads import Load
    from pixtral_sky.planning.policies import Result, Terms

Trace = Annotated[
    Path | None,
    typer.Argument(
        metavar="[TRACE.csv]",
        help="When requests arrived: a CSV whose first column is seconds since the epoch, or ISO 8601.",
        show_default=False,
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        metavar="steady|day-night|burst",
        help="A synthetic day of requests instead.",
        autocompletion=options.one_of("steady", "day-night", "burst"),
    ),
]
Qps = Annotated[
    str | None, typer.Option(metavar="X, or LOW..HIGH", help="Queries per second of the pattern.")
]
Seed = Annotated[int, typer.Option(help="Another number makes another day of the pattern.")]
StartMinutes = Annotated[
    float, typer.Option(metavar="MINUTES", help="From the decision to launch a replica until it answers.")
]
Carries = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Queries per second that one replica carries; without it target_qps_per_replica."
    ),
]
Price = Annotated[float | None, typer.Option(metavar="$", help="Price of a replica per hour.")]
Goal = Annotated[
    str, typer.Option(metavar="PERCENT", help="Share of requests that may meet too few replicas.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the table: a .png, .svg or .pdf.")]


def capacity(
    trace: Trace = None,
    pattern: Pattern = None,
    qps: Qps = None,
    seed: Seed = 1,
    file: options.ServiceFile = None,
    start_minutes: StartMinutes = 10,
    carries: Carries = None,
    price: Price = None,
    goal: Goal = "1%",
    plot: Plot = None,
    as_json: options.Json = False,
) -> None:
    """Find how many replicas a day of traffic needs.

    And the replica policy that carries it at the least cost.

    SkyServe's own autoscaler decides, under a fake clock; nothing is launched. The assumptions are in
    docs/autoscaling.md; the price of the controller is not in it.

    \b
    steady, day-night, burst   X queries per second; a wave from LOW at midnight to HIGH at noon;
                               HIGH for the last half hour of every three, LOW between
    TOO FEW, NONE              requests that came when every ready replica was busy; and those of them that
                               came when none was ready, and got 503
    AT ONCE, UP/DOWN           replicas paid at the same time, at most; the two delays, in seconds

    \b
    Example: pixtral-sky capacity --pattern day-night --qps 1..9 --price 2.50
    """
    from pixtral_sky.deploy import task
    from pixtral_sky.planning import loads, policies

    given = policies.terms(start_minutes, carries, goal, price)
    if plot:
        from pixtral_sky.planning import charts

        charts.check(plot)
    load = loads.load(trace, pattern, qps, seed)
    policies.check_length(load, given)
    config, name = task.read(file or task.shipped("service.yaml")), str(file or "service.yaml")
    terms = policies.with_target(given, policies.own(config, name))
    with output.phase("simulating replicas"):
        found = policies.compare(config, load, terms)
    if plot:
        charts.draw_capacity(plot, policies.shown(found), terms, load.title)
    if as_json:
        document = {"load": load.title, "terms": asdict(terms), "policies": [asdict(each) for each in found]}
        output.document(document)
        return
    _table(found, load, terms, name)
    _name_the_cheapest(found, config, file)


def _table(found: Sequence[Result], load: Load, terms: Terms, name: str) -> None:
    from pixtral_sky.planning.policies import percent, shown

    output.say(
        f"{load.title}: {found[0].requests:,} requests in {load.seconds / 3600:.1f} hours. A replica starts"
        f" in {terms.startup / 60:g} minutes and carries {terms.carries:g} queries/s.\n"
        f"{len(found)} policies; {len(found) - len(shown(found))} that cost no less than another and spare"
        " nobody more are left out here (--json has all).\n"
    )
    best = f"cheapest within {100 * terms.goal:g}%"
    rows = [
        (
            "-" if each.dollars is None else f"{each.dollars:.2f}",
            f"{each.hours:.1f}",
            percent(each.share_too_few),
            percent(each.unanswered / each.requests),
            str(each.at_once),
            each.policy.replicas,
            *each.policy.scaling,
            ", ".join([f"as in {name}"] * each.own + [best] * each.cheapest),
        )
        for each in shown(found)
    ]
    head = ("$/DAY", "HOURS/DAY", "TOO FEW", "NONE", "AT ONCE", "REPLICAS", "TARGET", "UP/DOWN", "")
    common.table(head, rows)


def _name_the_cheapest(found: Sequence[Result], config: dict[str, Any], file: Path | None) -> None:
    """Print the cheapest policy as what to type."""
    from pixtral_sky.planning import policies

    own = next(each.policy for each in found if each.own)
    policy = next((each.policy for each in found if each.cheapest), None)
    if not policy:
        output.data("\nNone of these holds the goal.")
        return
    name = str(file or "service.yaml")
    delays, options = policy.changes(own)
    if delays:
        output.data(f"\nIn replica_policy: of {'' if file else 'a copy of '}{name}:")
        for key, seconds in delays.items():
            output.data(f"    {key}: {seconds:g}")
    given = ["--file", name] if file or delays else []
    output.data("\n  " + shlex.join(["pixtral-sky", "serve", "up", *given, *options]))
    for warning in policies.warnings(config, policy):
        output.warn(warning)
