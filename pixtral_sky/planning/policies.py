"""Compares a file's `replica_policy:` with others under one load: which holds a goal at the least cost?

`capacity.simulate` runs each. The others have another minimum, a fixed number of replicas, no replica while
nobody asks, lower targets or shorter delays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pixtral_sky.deploy import replica_policy
from pixtral_sky.errors import UsageError
from pixtral_sky.planning import capacity, loads

SKYSERVE_DELAYS = (300.0, 1200.0)  # seconds; sky.serve.constants.AUTOSCALER_DEFAULT_*_DELAY_SECONDS
QUICK_DELAYS = (60.0, 600.0)  # the shortest of docs/autoscaling.md
LOWER_TARGETS = (0.75, 0.5)  # of what a replica carries
MINIMUMS = 4  # policies with a minimum between 1 and the number that always suffices
WARMUP = 1800.0  # seconds beside a replica's start, until the number of replicas has settled
MOST = 100  # replicas; to compare more takes minutes
LEAST_VALUE, MOST_VALUE = 0.0001, 10_000  # of an option: what a person may mean


@dataclass(frozen=True)
class Policy:
    """The parts of a `replica_policy:` that are compared."""

    minimum: int
    maximum: int
    target: float | None  # queries per second of a replica; None: not given, and the number is fixed
    up: float  # delay in seconds
    down: float

    @property
    def fixed(self) -> bool:
        return self.minimum == self.maximum

    @property
    def replicas(self) -> str:
        """The value for `--replicas`."""
        return str(self.minimum) if self.fixed else f"{self.minimum}..{self.maximum}"

    @property
    def scaling(self) -> tuple[str, str]:
        """The target and both delays, in words."""
        return ("-", "-") if self.fixed else (f"{self.target:g}", f"{self.up:g}/{self.down:g}")

    def changes(self, own: Policy) -> tuple[dict[str, float], list[str]]:
        """What turns a file's ``own`` policy into this one: lines of the file, and options of `serve up`."""
        options = [] if self.replicas == own.replicas else ["--replicas", self.replicas]
        if self.target != own.target and not self.fixed:
            options += ["--target-qps", f"{self.target:g}"]
        return {key: seconds for key, seconds in self.delays.items() if seconds != own.delays[key]}, options

    @property
    def delays(self) -> dict[str, float]:
        return {"upscale_delay_seconds": self.up, "downscale_delay_seconds": self.down}


@dataclass(frozen=True)
class Terms:
    """What is assumed of replicas, and the goal of a policy."""

    startup: float  # seconds until a replica answers
    carries: float  # queries per second; 0: as many as the file's target
    goal: float  # the share of requests that may meet too few replicas: 0 to 1
    price: float | None = None  # $ per hour of a replica


@dataclass(frozen=True)
class Result:
    """What a policy costs a day, and how many requests of the load meet too few replicas."""

    policy: Policy
    hours: float  # of replicas
    dollars: float | None
    requests: int
    too_few: int  # of the requests: they came when every ready replica was busy
    unanswered: int  # of those: they came when none was ready
    at_once: int  # replicas that cost money at the same time, at most
    own: bool = False  # the file's own
    cheapest: bool = False  # of those that hold the goal

    @property
    def share_too_few(self) -> float:
        """0 to 1, of all requests."""
        return self.too_few / self.requests if self.requests else 0.0


def shown(results: Sequence[Result]) -> list[Result]:
    """The file's own policy, and those that lose fewer requests than every cheaper one."""
    kept: list[Result] = []
    for each in results:
        if each.own or all(each.too_few < other.too_few for other in kept):
            kept.append(each)
    return kept


def percent(share: float) -> str:
    return "<0.01%" if 0 < share < 0.00005 else f"{share:.2%}"


def own(config: Mapping[str, Any], name: object = "This file") -> Policy:
    """The policy of a service file. Raises UsageError for what `serve`, SkyPilot or `capacity` refuses."""
    replica_policy.check(config, "-", name)  # any key will do here
    spec = capacity.spec(config["service"])
    up, down = spec.upscale_delay_seconds, spec.downscale_delay_seconds
    return Policy(
        spec.min_replicas,
        spec.min_replicas if spec.max_replicas is None else spec.max_replicas,
        spec.target_qps_per_replica,
        SKYSERVE_DELAYS[0] if up is None else up,
        SKYSERVE_DELAYS[1] if down is None else down,
    )


def terms(start_minutes: float, carries: float | None, goal: str, price: float | None) -> Terms:
    """The terms that the options of the command give. Raises UsageError."""
    for option, value in (("--start-minutes", start_minutes), ("--carries", carries), ("--price", price)):
        if value is not None and not LEAST_VALUE <= value <= MOST_VALUE:  # not so for NaN, too
            raise UsageError(
                f"{option} is a number from {LEAST_VALUE} to {MOST_VALUE:,}, not {value:g}.",
                f"For example: {option} 2",
            )
    found = re.fullmatch(r"(\d{1,2}(?:\.\d+)?|100)%?", goal.strip(), re.ASCII)
    if not found:
        raise UsageError(f"--goal is a percentage from 0 to 100, not {goal!r}.", "For example: --goal 1%")
    return Terms(60 * start_minutes, carries or 0.0, float(found[1]) / 100, price)


def check_length(load: loads.Load, terms: Terms) -> None:
    """Raise UsageError for a load that is over before a replica could have started."""
    if load.seconds <= terms.startup:
        raise UsageError(
            f"{load.title} is over after {load.seconds:.0f} s, before a replica could have started.",
            "Give the requests of a day or more.",
        )


def with_target(terms: Terms, own: Policy) -> Terms:
    """The terms; where they do not say what a replica carries, with the file's target. Raises UsageError."""
    if terms.carries:
        return terms
    if own.target is None:
        raise UsageError(
            "What a replica carries is not known: the file has no target_qps_per_replica.",
            "For example: --carries 2",
        )
    return replace(terms, carries=own.target)


def applied(config: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """A service file with another policy. Raises UsageError for one that `serve` refuses."""
    if policy == own(config):
        return dict(config)
    made = replica_policy.policy(policy.minimum, policy.maximum, policy.target)
    return replica_policy.scaled(config, made | policy.delays)


def warnings(config: Mapping[str, Any], policy: Policy) -> list[str]:
    """Warnings about the service file with this policy."""
    said = replica_policy.check(applied(config, policy), key="-")
    if (config.get("resources") or {}).get("use_spot"):
        said.append("The simulation never takes spot replicas away, and all replicas have one price.")
    return said


def others(own: Policy, terms: Terms, enough: Sequence[int]) -> list[Policy]:
    """The policies to compare with a file's own; ``enough`` replicas suffice when they are always there."""
    start = replace(own, maximum=max(own.maximum, enough[0]), target=own.target or terms.carries)
    targets = [start.target, *(float(f"{terms.carries * part:.3g}") for part in LOWER_TARGETS)]
    between = enough[0] - 1
    steps = [1 + round(step * (between - 1) / (MINIMUMS - 1)) for step in range(MINIMUMS)] if between else []
    # Longer than a start, or a replica that one request has called would leave before it is ready.
    stays = max(own.down, terms.startup + 1200)
    made = [  # the simplest first, which wins where others cost the same
        *(replace(own, minimum=number, maximum=number, target=start.target) for number in enough),
        *(
            replace(start, minimum=minimum, target=target, up=up, down=down)
            for minimum, target, (up, down) in product(
                sorted({own.minimum, *steps} - {start.maximum}), targets, [(own.up, own.down), QUICK_DELAYS]
            )
        ),
        *(replace(start, minimum=0, target=target, down=stays) for target in targets),
    ]
    return [each for each in dict.fromkeys(made) if each != own]


def compare(config: Mapping[str, Any], load: loads.Load, terms: Terms) -> list[Result]:
    """Simulate the policy of a service file and others under a load; the cheapest comes first.

    Others that `serve` or SkyPilot refuses are left out. Raises UsageError as `own` does, and where the load
    needs more than `MOST` replicas.
    """
    policy = own(config)
    warmup = min(terms.startup + WARMUP, load.seconds)
    warm = loads.warmed(load.arrivals, warmup)
    shares = dict.fromkeys((terms.goal, 0.0))
    enough = [capacity.enough(warm, load.seconds, terms.carries, share) for share in shares]
    if enough[0] > MOST:
        raise UsageError(
            f"This load takes {enough[0]:,} replicas that carry {terms.carries:g} queries/s; "
            f"{MOST} are compared at most."
        )

    def simulated(policy: Policy, own: bool = False) -> Result:
        made = applied(config, policy)
        replica_policy.check(made, key="-")
        found = capacity.simulate(
            capacity.spec(made["service"]),
            warm,
            load.seconds,
            startup=terms.startup,
            carries=terms.carries,
            warmup=warmup,
        )
        hours = found.replica_hours / load.days
        dollars = None if terms.price is None else hours * terms.price
        counts = (found.requests, found.too_few, found.unanswered, found.most_paid())
        return Result(policy, hours, dollars, *counts, own)

    results = [simulated(policy, own=True)]
    for each in others(policy, terms, enough):
        try:
            results.append(simulated(each))
        except UsageError:  # it does not go with the rest of the file, as with replicas that are not on spot
            continue
    results.sort(key=lambda each: (each.hours, each.too_few, not each.own))
    best = next((each for each in results if each.share_too_few <= terms.goal), None)
    return [replace(each, cheapest=True) if each is best else each for each in results]
