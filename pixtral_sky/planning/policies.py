"""Which `replica_policy:` holds a goal at the least cost: others beside a file's own, all under one load.

Each is played by `capacity.simulate`. What is compared, and nothing is searched beyond it: fewer and more
replicas at the least, targets below what a replica carries, other delays, several of these at once, a fixed
number, none while nobody asks, and spot machines with ordinary ones to stand in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pixtral_sky.deploy import replica_policy
from pixtral_sky.errors import UsageError
from pixtral_sky.planning import capacity

DAY = 86_400.0  # seconds
SKYSERVE_DELAYS = (300.0, 1200.0)  # seconds; sky.serve.constants.AUTOSCALER_DEFAULT_*_DELAY_SECONDS
QUICK_DELAYS = (60.0, 600.0)  # the shortest of docs/autoscaling.md
LOWER_TARGETS = (1, 0.75, 0.5)  # of what a replica carries
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
    spot: bool = False  # on spot machines

    @property
    def fixed(self) -> bool:
        return self.minimum == self.maximum


@dataclass(frozen=True)
class Load:
    """When requests arrive, in order: seconds, of so many."""

    arrivals: Sequence[float]
    seconds: float

    @property
    def days(self) -> float:
        return self.seconds / DAY


@dataclass(frozen=True)
class Terms:
    """What is assumed of replicas, and what is wanted of a policy."""

    startup: float  # seconds until a replica answers
    carries: float  # queries per second
    goal: float  # the share of requests that may meet too few replicas: 0 to 1
    price: float | None = None  # $ per hour of a replica
    spot_price: float | None = None  # $ per hour of one on a spot machine; None: spot is not compared
    preemptions: float = 0  # spot replicas that are taken away in a day


@dataclass(frozen=True)
class Result:
    """What a policy has come to. Hours and cost are those of a day, whatever the load's length."""

    policy: Policy
    outcome: capacity.Outcome
    hours: float  # of replicas
    dollars: float | None

    @property
    def cost(self) -> float:
        """What results are sorted by: $, or without prices replica-hours."""
        return self.hours if self.dollars is None else self.dollars


@dataclass(frozen=True)
class Comparison:
    """``results`` from the cheapest on. ``beyond`` holds the goal with more replicas than the file allows:
    it is there, unless that takes more than `MOST`, where no result holds it (``cheapest`` is None)."""

    results: tuple[Result, ...]
    own: Result
    cheapest: Result | None
    beyond: Result | None
    enough: int  # replicas that hold the goal when they are there at all times

    def shown(self) -> list[Result]:
        """What a person chooses from: without those that cost no less than another and spare nobody more,
        on spot machines and on others. The file's own, the fixed numbers, and the cheapest that is none
        while nobody asks are always among them."""
        kept: list[Result] = []
        fewest: dict[bool, int] = {}
        zero = next((each for each in self.results if each.policy.minimum == 0), None)
        for each in self.results:
            spot, too_few = each.policy.spot, each.outcome.too_few
            if spot not in fewest or too_few < fewest[spot]:
                fewest[spot] = too_few
            elif not (each.policy.fixed or each is self.own or each is zero):
                continue
            kept.append(each)
        return kept


def own(config: Mapping[str, Any]) -> Policy:
    """The policy of a service file. Raises UsageError for what `service`, `capacity` or SkyPilot refuses."""
    replica_policy.check(config, key="-")  # whose key it will be is no matter here
    spec = capacity.spec(config["service"])
    up, down = spec.upscale_delay_seconds, spec.downscale_delay_seconds
    return Policy(
        spec.min_replicas,
        spec.min_replicas if spec.max_replicas is None else spec.max_replicas,
        capacity.target(spec),
        SKYSERVE_DELAYS[0] if up is None else up,
        SKYSERVE_DELAYS[1] if down is None else down,
        any(each.get("use_spot") for each in replica_policy._resources(config)),
    )


def applied(config: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """A service file with another policy. Raises UsageError for one that `service` refuses."""
    before = own(config)
    if policy == before:
        return dict(config)
    made = replica_policy.policy(
        policy.minimum, policy.maximum, policy.target, spot=policy.spot and not before.spot
    )
    if (policy.up, policy.down) != (before.up, before.down):
        made |= {"upscale_delay_seconds": policy.up, "downscale_delay_seconds": policy.down}
    return replica_policy.scaled(config, made)


def others(own: Policy, terms: Terms, enough: Sequence[int], most: int) -> list[Policy]:
    """What is compared with a file's own policy; ``enough`` replicas suffice when they are always there.

    None has more than ``most`` replicas.
    """
    start = replace(own, maximum=most, target=own.target or terms.carries)
    targets = [start.target, *(float(f"{terms.carries * part:.3g}") for part in LOWER_TARGETS)]
    between = min(enough[0] - 1, most)
    steps = [1 + round(step * (between - 1) / (MINIMUMS - 1)) for step in range(MINIMUMS)] if between else []
    minimums = sorted({own.minimum, *steps})
    delays = [(own.up, own.down), QUICK_DELAYS]
    more_delays = [(QUICK_DELAYS[0], own.down), (own.up, QUICK_DELAYS[1]), SKYSERVE_DELAYS]
    # Longer than a start: a replica that one request has called would else go before it is ready.
    stays = max(own.down, terms.startup + 1200)
    made = [  # the simplest first: it is taken where others cost the same
        *(replace(start, minimum=number, maximum=number) for number in enough if number <= most),
        *(
            replace(start, minimum=minimum, target=target, up=up, down=down)
            for minimum, target, (up, down) in product(minimums, targets, delays)
        ),
        *(replace(start, up=up, down=down) for up, down in more_delays),
        *(replace(start, minimum=0, target=target, down=stays) for target in targets),
    ]
    if terms.spot_price is not None and not own.spot:
        made += [replace(start, minimum=minimum, spot=True) for minimum in minimums]
        made += [replace(each, spot=True) for each in made if each.fixed]
    # A fixed number never uses its target and its delays: those that differ in them only are one.
    same = [
        replace(each, target=start.target, up=own.up, down=own.down) if each.fixed else each for each in made
    ]
    return [each for each in dict.fromkeys(same) if each != own]


def compare(config: Mapping[str, Any], load: Load, terms: Terms) -> Comparison:
    """Play the policy of a service file, and others, under a load. Raises as `own` and `applied` do.

    What of the others is refused, by `service` or by SkyPilot, is left out.
    """
    policy = own(config)
    warmup = min(terms.startup + WARMUP, load.seconds)
    warm = capacity.warmed(load.arrivals, warmup)
    enough = [
        capacity.enough(warm, load.seconds, terms.carries, share)
        for share in dict.fromkeys((terms.goal, 0.0))
    ]

    def play(policy: Policy) -> Result:
        made = applied(config, policy)
        replica_policy.check(made, key="-")
        outcome = capacity.simulate(
            capacity.spec(made["service"]),
            warm,
            load.seconds,
            startup=terms.startup,
            carries=terms.carries,
            spot=policy.spot,
            losses=losses(terms.preemptions, load),
            warmup=warmup,
        )
        return _result(policy, outcome, load, terms)

    def play_all(policies: Sequence[Policy]) -> list[Result]:
        results = []
        for each in policies:
            try:
                results.append(play(each))
            except UsageError:  # with what else the file says, such as its replicas that are not on spot
                continue
        return results

    ours = play(policy)
    results = sorted(
        [ours, *play_all(others(policy, terms, enough, policy.maximum))],
        key=lambda each: (each.cost, each.outcome.too_few, each is not ours),
    )
    cheapest, beyond = cheapest_within(results, terms.goal), None
    if cheapest is None and enough[0] <= MOST:
        beyond = cheapest_within(play_all(others(policy, terms, enough, enough[0])), terms.goal)
    return Comparison(tuple(results), ours, cheapest, beyond, enough[0])


def cheapest_within(results: Sequence[Result], goal: float) -> Result | None:
    """The first of the cheapest that let no more than this share of requests meet too few replicas."""
    return min(
        (each for each in results if each.outcome.share_too_few <= goal),
        key=lambda each: (each.cost, each.outcome.too_few),
        default=None,
    )


def losses(preemptions: float, load: Load) -> list[tuple[float, int]]:
    """So many spot replicas a day are taken away, one at a time, evenly over the load."""
    number = round(preemptions * load.days)
    return [((each + 0.5) * load.seconds / number, 1) for each in range(number)]


def _result(policy: Policy, outcome: capacity.Outcome, load: Load, terms: Terms) -> Result:
    on_demand, spot = outcome.on_demand_hours / load.days, outcome.spot_hours / load.days
    dollars = None
    if terms.price is not None:
        dollars = on_demand * terms.price + spot * (terms.spot_price or 0)
    return Result(policy, outcome, on_demand + spot, dollars)
