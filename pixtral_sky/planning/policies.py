"""Which `replica_policy:` holds a goal at the least cost: others beside a file's own, all under one load.

Each is run by `capacity.simulate`. Compared are fewer and more replicas at the least, a fixed number, none
while nobody asks, lower targets, and quicker delays; nothing is searched beyond them.
"""

from __future__ import annotations

import math
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
MINIMUMS = 4  # so many between 1 replica and as many as always suffice
# The load had been as at its beginning for a start of a replica, and so long: until there are as many
# replicas as it asks for. Seconds.
WARMUP = 1800.0
# A comparison with more replicas than this takes minutes, and nobody has them.
MOST = 100


@dataclass(frozen=True)
class Policy:
    """What is compared of a `replica_policy:`; seconds, and queries per second."""

    minimum: int
    maximum: int
    target: float | None  # None: a fixed number, and nothing says what one is meant for
    up: float
    down: float

    @property
    def fixed(self) -> bool:
        return self.minimum == self.maximum

    @property
    def replicas(self) -> str:
        """As `--replicas` takes it."""
        return str(self.minimum) if self.fixed else f"{self.minimum}..{self.maximum}"

    @property
    def scaling(self) -> tuple[str, str]:
        """Its target and both delays, in words."""
        return ("-", "-") if self.fixed else (f"{self.target:g}", f"{self.up:g}/{self.down:g}")

    def changes(self, own: Policy) -> tuple[dict[str, float], list[str]]:
        """What makes it of a file's ``own``: lines of `replica_policy:`, and options of `serve up`."""
        delays = {"upscale_delay_seconds": self.up, "downscale_delay_seconds": self.down}
        before = {"upscale_delay_seconds": own.up, "downscale_delay_seconds": own.down}
        options = [] if self.replicas == own.replicas else ["--replicas", self.replicas]
        if self.target != own.target and not self.fixed:
            options += ["--target-qps", f"{self.target:g}"]
        return {key: seconds for key, seconds in delays.items() if seconds != before[key]}, options


@dataclass(frozen=True)
class Terms:
    """What is assumed of replicas, and what is wanted of a policy."""

    startup: float  # seconds until a replica answers
    carries: float  # queries per second
    goal: float  # the share of requests that may meet too few replicas: 0 to 1
    price: float | None = None  # $ per hour of a replica


@dataclass(frozen=True)
class Result:
    """What a policy has come to; hours and dollars are those of a day, whatever the load's length."""

    policy: Policy
    hours: float  # of replicas
    dollars: float | None
    requests: int
    too_few: int  # of the requests: they came when every ready replica was busy
    unanswered: int  # of those: they came when none was ready
    at_once: int  # replicas that cost money at the same time, at most
    own: bool = False  # it is the file's own
    cheapest: bool = False  # that holds the goal

    @property
    def share_too_few(self) -> float:
        """Of all requests; 0 to 1."""
        return self.too_few / self.requests if self.requests else 0.0


def shown(results: Sequence[Result]) -> list[Result]:
    """What a person chooses from: without those that cost no less than another and spare nobody more.

    The file's own is always among them.
    """
    kept: list[Result] = []
    for each in results:
        if each.own or all(each.too_few < other.too_few for other in kept):
            kept.append(each)
    return kept


def percent(share: float) -> str:
    """As it is shown."""
    return "<0.01%" if 0 < share < 0.00005 else f"{share:.2%}"


def own(config: Mapping[str, Any]) -> Policy:
    """The policy of a service file. Raises UsageError for what `serve`, SkyPilot or `capacity` refuses."""
    replica_policy.check(config, key="-")  # whose key it will be is no matter here
    spec = capacity.spec(config["service"])
    up, down = spec.upscale_delay_seconds, spec.downscale_delay_seconds
    return Policy(
        spec.min_replicas,
        spec.min_replicas if spec.max_replicas is None else spec.max_replicas,
        spec.target_qps_per_replica,
        SKYSERVE_DELAYS[0] if up is None else up,
        SKYSERVE_DELAYS[1] if down is None else down,
    )


def terms(own: Policy, start_minutes: float, carries: float | None, goal: str, price: float | None) -> Terms:
    """The terms that are given as options of the command. Raises UsageError."""
    for option, value in (("--start-minutes", start_minutes), ("--carries", carries), ("--price", price)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{option} is a number above 0, not {value:g}.", f"For example: {option} 2")
    found = re.fullmatch(r"(\d{1,2}(?:\.\d+)?|100)%?", goal.strip(), re.ASCII)
    if not found:
        raise UsageError(f"--goal is a percentage from 0 to 100, not {goal!r}.", "For example: --goal 1%")
    carries = carries or own.target
    if carries is None:
        raise UsageError(
            "What a replica carries is not known: the file has no target_qps_per_replica.",
            "For example: --carries 2",
        )
    return Terms(60 * start_minutes, carries, float(found[1]) / 100, price)


def applied(config: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """A service file with another policy. Raises UsageError for one that `serve` refuses."""
    if policy == own(config):
        return dict(config)
    made = replica_policy.policy(policy.minimum, policy.maximum, policy.target)
    made |= {"upscale_delay_seconds": policy.up, "downscale_delay_seconds": policy.down}
    return replica_policy.scaled(config, made)


def warnings(config: Mapping[str, Any], policy: Policy) -> list[str]:
    """What a person must know before a service file is launched with it."""
    said = replica_policy.check(applied(config, policy), key="-")
    if (config.get("resources") or {}).get("use_spot"):
        said.append("Spot replicas are never taken away here, and all replicas have one price.")
    return said


def others(own: Policy, terms: Terms, enough: Sequence[int]) -> list[Policy]:
    """What is compared with a file's own policy; ``enough`` replicas suffice when they are always there."""
    start = replace(own, maximum=max(own.maximum, enough[0]), target=own.target or terms.carries)
    targets = [start.target, *(float(f"{terms.carries * part:.3g}") for part in LOWER_TARGETS)]
    between = enough[0] - 1
    steps = [1 + round(step * (between - 1) / (MINIMUMS - 1)) for step in range(MINIMUMS)] if between else []
    # Longer than a start: a replica that one request has called would else go before it is ready.
    stays = max(own.down, terms.startup + 1200)
    made = [  # the simplest first: it is taken where others cost the same
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
    """Simulate the policy of a service file, and others, under a load: from the cheapest on.

    Others that `serve` or SkyPilot refuses are left out. Raises UsageError as `own` does, and where the load
    takes more than `MOST` replicas.
    """
    if load.seconds <= terms.startup:
        raise UsageError(
            f"{load.title} is over after {load.seconds:.0f} s, before a replica could have started.",
            "Give the requests of a day or more.",
        )
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
        except UsageError:  # with what else the file says, such as its replicas that are not on spot
            continue
    results.sort(key=lambda each: (each.hours, each.too_few, not each.own))
    best = next((each for each in results if each.share_too_few <= terms.goal), None)
    return [replace(each, cheapest=True) if each is best else each for each in results]
