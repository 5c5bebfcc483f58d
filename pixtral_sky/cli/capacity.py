"""pixtral-sky capacity."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import common
from pixtral_sky.errors import UsageError

if TYPE_CHECKING:
    from pixtral_sky.planning.capacity import Rate
    from pixtral_sky.planning.policies import Comparison, Load, Policy, Result, Terms

PATTERNS = ("steady", "day-night", "burst")
# A burst is longer than a replica takes to start, or no autoscaler could do anything about it.
BURST_SECONDS, BURST_EVERY = 1800.0, 10_800.0
SEED = 1
PREEMPTIONS = 4.0  # a day: a guess
MOST_QPS = 100.0  # 9 million requests in a day, which take minutes
LONGEST_DAYS = 31


def capacity(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRACE.csv]",
            help="When requests arrived: a CSV whose first column is seconds since the epoch, or ISO 8601.",
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="|".join(PATTERNS), help="A day of made-up requests instead.")
    ] = None,
    qps: Annotated[
        str | None, typer.Option(metavar="X, or LOW..HIGH", help="Queries per second of the pattern.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Another day of that pattern. [default: {SEED}]", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="The service file; without it the shipped service.yaml."),
    ] = None,
    start_minutes: Annotated[
        float, typer.Option(metavar="MINUTES", help="From the decision for a replica until it answers.")
    ] = 10,
    carries: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Queries per second that one replica carries; without it target_qps_per_replica.",
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="$", help="Of a replica, per hour.")] = None,
    spot_price: Annotated[
        float | None, typer.Option(metavar="$", help="Of one on a spare machine: compares those as well.")
    ] = None,
    preemptions: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help=f"Spot replicas that are taken away in a day. [default: {PREEMPTIONS:g}]",
            show_default=False,
        ),
    ] = None,
    goal: Annotated[
        str, typer.Option(metavar="PERCENT", help="So many requests may meet too few replicas.")
    ] = "1%",
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw it as well; needs matplotlib.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show how many replicas a day of traffic needs, and what replica policy carries it at the least cost.

    SkyServe's own autoscaler decides, under a fake clock. No machine is asked for. What is assumed is in
    docs/autoscaling.md; the price of the controller is not in it.

    \b
    steady      X queries per second
    day-night   a wave from LOW at midnight to HIGH at noon
    burst       HIGH for the last half hour of every three, LOW between

    \b
    TOO FEW     requests that came when every ready replica was busy
    NONE        those of them that came when none was ready, and got 503
    AT ONCE     replicas that cost money at the same time, at most
    UP/DOWN     upscale_delay_seconds and downscale_delay_seconds

    \b
    Examples:
      pixtral-sky capacity --pattern day-night --qps 1..9 --price 2.50
      pixtral-sky capacity requests.csv --price 2.50 --spot-price 0.90 --goal 0.5%
    """
    from pixtral_sky.deploy import task
    from pixtral_sky.planning import policies

    chart = _chart(plot)
    share, startup = _percent(goal), 60 * _above_zero("--start-minutes", start_minutes)
    for option, value in (("--carries", carries), ("--price", price), ("--spot-price", spot_price)):
        _above_zero(option, 1 if value is None else value)
    load, title, described = _load(trace, pattern, qps, seed, startup)
    # The file that is shipped is found wherever one stands, and has this name in a clone.
    config, name = task.read(file or task.shipped("service.yaml")), str(file or "service.yaml")
    own = policies.own(config)
    _check_spot(own, price, spot_price, preemptions)
    spot = own.spot or spot_price is not None
    terms = policies.Terms(
        startup=startup,
        carries=carries or _meant_for(own, name),
        goal=share,
        price=price,
        spot_price=spot_price,
        preemptions=(PREEMPTIONS if preemptions is None else preemptions) if spot else 0.0,
    )
    with output.phase("playing a day of replicas"):
        found = policies.compare(config, load, terms)
    if chart:
        chart.draw(plot, found, load, terms, title, name)
    if as_json:
        output.data(json.dumps(_document(described, found, load, terms), indent=1))
        return
    _say_assumed(title, found, load, terms, own)
    _table(found, name, goal)
    _name_the_cheapest(found, terms, config, name, file)


# What was asked for ----------------------------------------------------------------------------------------


def _load(
    trace: Path | None, pattern: str | None, qps: str | None, seed: int | None, startup: float
) -> tuple[Load, str, dict[str, Any]]:
    """The load, what it is called, and how it was asked for. Raises UsageError."""
    from pixtral_sky.planning import capacity, policies

    if trace and pattern:
        raise UsageError("A trace and a pattern are two loads.", "Give one of them.")
    if trace:
        if qps is not None or seed is not None:
            raise UsageError("A trace is played as it is.", "Leave out --qps and --seed.")
        times = capacity.read_csv(trace)
        seconds = times[-1]
        if seconds <= startup:
            raise UsageError(
                f"{trace} is over after {_span(seconds)}, before a replica could have started.",
                "Give the requests of a day or more.",
            )
        if seconds > LONGEST_DAYS * policies.DAY:
            raise UsageError(
                f"{trace} spans {seconds / policies.DAY:,.0f} days, and {LONGEST_DAYS} are played at most.",
                "Times are seconds since the epoch, or ISO 8601.",
            )
        return policies.Load(times, seconds), str(trace), {"trace": str(trace)}
    if not pattern:
        raise UsageError(
            "Nothing to play.",
            "Give a CSV of times, or for example: pixtral-sky capacity --pattern day-night --qps 1..9",
        )
    if pattern not in PATTERNS:
        raise UsageError(f"There is no pattern {pattern!r}.", f"There are {', '.join(PATTERNS)}.")
    low, high = _qps(qps, pattern)
    seed = SEED if seed is None else seed
    times = capacity.arrivals(_rate(pattern, low, high), policies.DAY, seed)
    if not times:
        raise UsageError("At this rate no request comes in a day.", "Give a higher --qps.")
    title = f"{pattern}, {low:g} queries/s" if low == high else f"{pattern}, {low:g} to {high:g} queries/s"
    return policies.Load(times, policies.DAY), title, {"pattern": pattern, "qps": [low, high], "seed": seed}


def _rate(pattern: str, low: float, high: float) -> Rate:
    from pixtral_sky.planning import capacity, policies

    if pattern == "steady":
        return capacity.steady(high)
    if pattern == "day-night":
        return capacity.day_night(low, high, policies.DAY)
    return capacity.burst(low, high, BURST_SECONDS, BURST_EVERY)


def _qps(text: str | None, pattern: str) -> tuple[float, float]:
    """``5`` of a steady load, ``1..9`` of the others. Raises UsageError."""
    steady = pattern == "steady"
    example = f"For example: --pattern {pattern} --qps {'5' if steady else '1..9'}"
    number = r"(\d{1,9}(?:\.\d+)?)"
    wanted = number if steady else rf"{number}\.\.{number}"
    found = re.fullmatch(wanted, (text or "").strip(), re.ASCII)
    if not found:
        what = "one number of" if steady else "LOW..HIGH"
        given = f", not {text!r}" if text else ""
        raise UsageError(f"{pattern} takes {what} queries per second{given}.", example)
    low, high = float(found[1]), float(found[found.lastindex or 1])
    if low > high:
        raise UsageError(f"--qps {text} does not go from the lower to the higher.", example)
    if not 0 < high <= MOST_QPS:
        raise UsageError(f"--qps is above 0, and {MOST_QPS:g} at most, not {high:g}.", example)
    return low, high


def _percent(text: str) -> float:
    """``1%``, with or without its sign, as a share. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*%?", text.strip(), re.ASCII)
    if not found or float(found[1]) > 100:
        raise UsageError(f"--goal is a percentage from 0 to 100, not {text!r}.", "For example: --goal 1%")
    return float(found[1]) / 100


def _above_zero(option: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{option} is a number above 0, not {value:g}.", f"For example: {option} 2")
    return value


def _meant_for(own: Policy, name: str) -> float:
    """The queries per second that a replica is meant for, and so carries. Raises UsageError."""
    if own.target is None:
        raise UsageError(
            f"{name} has no target_qps_per_replica: what a replica carries is not known.",
            "For example: --carries 2",
        )
    return own.target


def _check_spot(
    own: Policy, price: float | None, spot_price: float | None, preemptions: float | None
) -> None:
    """Raises UsageError for prices and preemptions that do not go together."""
    if own.spot and price is not None and spot_price is None:
        raise UsageError("This service is on spot machines.", "Give their price: --spot-price 0.90")
    if spot_price is not None and price is None:
        raise UsageError("Ordinary machines stand in for spot.", "Give their price as well: --price 2.50")
    if preemptions is not None:
        if not own.spot and spot_price is None:
            raise UsageError("Only spot replicas are taken away.", "Give their price: --spot-price 0.90")
        if not 0 <= preemptions <= 1000:
            raise UsageError(f"--preemptions is from 0 to 1000 a day, not {preemptions:g}.")


def _chart(plot: Path | None) -> Any:
    """The module that draws, where it is asked for: all that it lacks is said before minutes of work."""
    if not plot:
        return None
    from pixtral_sky.planning import capacity_chart

    if plot.suffix.lower() != ".png":
        raise UsageError(f"{plot} is drawn as a PNG.", f"Call it {plot.with_suffix('.png')}")
    if not plot.parent.is_dir():
        raise UsageError(f"There is no directory {plot.parent}.", f"Run: mkdir -p {plot.parent}")
    capacity_chart.check()
    return capacity_chart


# What is said ----------------------------------------------------------------------------------------------


def _say_assumed(title: str, found: Comparison, load: Load, terms: Terms, own: Policy) -> None:
    scaled = "" if abs(load.days - 1) < 0.01 else " Hours and $ are scaled to a day."
    output.say(f"{title}: {found.own.outcome.requests:,} requests in {_span(load.seconds)}.{scaled}")
    spot = own.spot or terms.spot_price is not None
    taken = f" {terms.preemptions:g} spot replicas are taken away in a day." if spot else ""
    output.say(
        f"A replica starts in {terms.startup / 60:g} minutes and carries {terms.carries:g} queries/s.{taken}"
    )
    left_out = len(found.results) - len(found.shown())
    output.say(
        f"{len(found.results)} policies; {left_out} that cost no less than another and spare nobody more are"
        " left out here (--json has all).\n"
    )


def _table(found: Comparison, name: str, goal: str) -> None:
    marks = {id(found.own): f"as in {name}"}
    if found.cheapest:
        best = f"cheapest within {goal.rstrip('%')}%"
        marks[id(found.cheapest)] = ", ".join(filter(None, (marks.get(id(found.cheapest)), best)))
    rows = [
        (
            "-" if each.dollars is None else f"{each.dollars:.2f}",
            f"{each.hours:.1f}",
            percent(each.outcome.share_too_few),
            percent(each.outcome.share_unanswered),
            str(each.outcome.most_paid()),
            replicas(each.policy),
            "-" if each.policy.fixed else f"{each.policy.target:g}",
            "-" if each.policy.fixed else f"{each.policy.up:g}/{each.policy.down:g}",
            "yes" if each.policy.spot else "-",
            marks.get(id(each), ""),
        )
        for each in found.shown()
    ]
    head = ("$/DAY", "HOURS/DAY", "TOO FEW", "NONE", "AT ONCE", "REPLICAS", "TARGET", "UP/DOWN", "SPOT", "")
    common.table(head, rows)


def _name_the_cheapest(
    found: Comparison, terms: Terms, config: dict[str, Any], name: str, file: Path | None
) -> None:
    """In words, and as what to type."""
    from pixtral_sky.deploy import replica_policy
    from pixtral_sky.planning import policies

    own, within = found.own, f"{100 * terms.goal:g}%"
    if best := found.cheapest:
        if best is own:
            output.data(f"\nThe cheapest within {within} is what {name} has: {_cost(own)}.")
        else:
            output.data(f"\nThe cheapest within {within}: {_cost(best)}. As in {name}: {_cost(own)}.")
    else:
        output.data(
            f"\nNone of these keeps it within {within}. Of replicas, {name} allows"
            f" {own.policy.maximum}, and it takes {found.enough:,}, if only for a while."
        )
        if not (best := found.beyond):
            return
        output.data(f"The cheapest that does: {_cost(best)}.")
    delays, options = how(own.policy, best.policy)
    if delays:
        output.data(f"With these lines in replica_policy: of {'' if file else 'a copy of '}{name}:")
        for key, seconds in delays.items():
            output.data(f"    {key}: {seconds:g}")
    given = ["--file", shlex.quote(name)] if file or delays else []
    output.data("  " + " ".join(["pixtral-sky serve up", *given, *options]))
    for warning in replica_policy.check(policies.applied(config, best.policy), key="-"):
        output.warn(warning)


def how(own: Policy, policy: Policy) -> tuple[dict[str, float], list[str]]:
    """What goes into `replica_policy:`, and the options of `serve up`, that make one policy of another."""
    delays, options = {}, []
    if policy.up != own.up:
        delays["upscale_delay_seconds"] = policy.up
    if policy.down != own.down:
        delays["downscale_delay_seconds"] = policy.down
    if (policy.minimum, policy.maximum) != (own.minimum, own.maximum):
        options += ["--replicas", replicas(policy)]
    if policy.target != own.target and not policy.fixed:
        options += ["--target-qps", f"{policy.target:g}"]
    if policy.spot and not own.spot:
        options.append("--spot")
    return delays, options


def replicas(policy: Policy) -> str:
    """As `--replicas` takes it."""
    return str(policy.minimum) if policy.fixed else f"{policy.minimum}..{policy.maximum}"


def percent(share: float) -> str:
    return "<0.01%" if 0 < share < 0.00005 else f"{share:.2%}"


def _cost(result: Result) -> str:
    cost = "" if result.dollars is None else f"${result.dollars:,.2f} a day, "
    return f"{cost}{result.hours:.1f} replica-hours, {percent(result.outcome.share_too_few)} too few"


def _span(seconds: float) -> str:
    if seconds == 86_400:
        return "a day"
    return common.minutes(seconds) if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _document(described: dict[str, Any], found: Comparison, load: Load, terms: Terms) -> dict[str, Any]:
    own, best = found.own.policy, found.cheapest or found.beyond
    delays, options = how(own, best.policy) if best else ({}, [])
    return {
        "load": {**described, "seconds": load.seconds, "requests": found.own.outcome.requests},
        "assumed": {
            "start_seconds": terms.startup,
            "carries": terms.carries,
            "price": terms.price,
            "spot_price": terms.spot_price,
            "preemptions": terms.preemptions,
        },
        "goal": terms.goal,
        "policies": [
            {**_figures(each), "own": each is found.own, "cheapest": each is found.cheapest}
            for each in found.results
        ],
        "beyond": _figures(found.beyond) if found.beyond else None,
        "enough": found.enough,
        "replica_policy": delays,
        "options": options,
    }


def _figures(result: Result) -> dict[str, Any]:
    policy, outcome = result.policy, result.outcome
    return {
        "min_replicas": policy.minimum,
        "max_replicas": policy.maximum,
        "target_qps_per_replica": policy.target,
        "upscale_delay_seconds": policy.up,
        "downscale_delay_seconds": policy.down,
        "spot": policy.spot,
        "dollars_a_day": result.dollars,
        "replica_hours_a_day": result.hours,
        "on_demand_hours": outcome.on_demand_hours,
        "spot_hours": outcome.spot_hours,
        "too_few": outcome.too_few,
        "unanswered": outcome.unanswered,
        "share_too_few": outcome.share_too_few,
        "share_unanswered": outcome.share_unanswered,
        "most_at_once": outcome.most_paid(),
    }
