"""Simulates how many replicas SkyServe runs under a load, and how many requests meet too few of them.

SkyPilot's own class (``sky.serve.autoscalers``, skypilot 0.14.1) decides under a fake clock, about replicas
that exist only here. Nothing asks the API server or the network.

As in SkyServe, the balancer counts every request. Every 20 seconds it reports to the controller, and hears
which replicas are ready. The controller decides every 20 seconds, every 5 while it wants no replica. A
replica that is sent away gets no more requests, and costs money for 120 seconds more.

Not simulated: requests that are tried again, machines that no cloud has, replicas that fail.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pixtral_sky.deploy import skypilot
from pixtral_sky.errors import UsageError

FIRST_SYNC = 5.0  # seconds: SkyServeLoadBalancer._sync_with_controller sleeps so long before the first
DRAIN = 120.0  # seconds: replica_managers._DEFAULT_DRAIN_SECONDS
# Seconds of work that ready replicas take on at once, about what one answer takes: vLLM computes many
# requests side by side, so a handful in one second is no overload. An assumption.
BURST = 10.0


@dataclass(frozen=True)
class Moment:
    """The state from ``time`` until the next moment."""

    time: float  # seconds
    target: int  # replicas that the autoscaler wants
    paid: int  # replicas that cost money: starting, ready and leaving
    ready: int  # replicas that the balancer sends requests to


@dataclass(frozen=True)
class Decision:
    """What the autoscaler decided: to launch replica number ``replica``, or to send it away."""

    time: float
    up: bool
    replica: int


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation. A warm-up counts in no number; its moments have times below 0."""

    moments: tuple[Moment, ...]
    decisions: tuple[Decision, ...]
    requests: int
    too_few: int  # of the requests: they came when all ready replicas were busy
    unanswered: int  # of those: they came when no replica was ready, and the balancer answered 503
    replica_hours: float

    @property
    def share_too_few(self) -> float:
        """Of all requests; 0 to 1."""
        return self.too_few / self.requests if self.requests else 0.0

    def most_paid(self) -> int:
        """Replicas that cost money at once, at most."""
        return max((moment.paid for moment in self.moments if moment.time >= 0), default=0)


def spec(service: Mapping[str, Any]) -> Any:
    """The ``service:`` section of a task file as SkyPilot's own SkyServiceSpec. Raises UsageError."""
    with skypilot.sky_sdk(silent=True):
        from sky.serve import service_spec

        try:
            made = service_spec.SkyServiceSpec.from_yaml_config(dict(service))
        except (ValueError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"SkyPilot does not take this service: {reason}") from error
    if isinstance(made.target_qps_per_replica, dict):
        raise UsageError(
            "A target_qps_per_replica per GPU cannot be simulated: nobody knows which GPUs will be found.",
            "Give one number for all GPUs.",
        )
    return made


def simulate(
    spec: Any,
    arrivals: Sequence[float],
    seconds: float,
    *,
    startup: float,
    carries: float,
    ready: int | None = None,
    warmup: float = 0.0,
) -> Outcome:
    """Run the autoscaler of ``spec`` (a SkyServiceSpec) over requests that arrive at these seconds, in order.

    ``startup`` are the seconds from a decision until a replica answers its probe, and ``carries`` the queries
    per second that it carries then. ``ready`` replicas are there at the start; without it, the minimum.
    ``warmup`` seconds come before second 0, with the requests that have a time below 0 (`loads.warmed`): they
    are simulated, and not counted.
    """
    with skypilot.sky_sdk(silent=True):
        from sky.serve import autoscalers

    now = 0.0 - warmup
    fleet, requests = _Fleet(), _Requests(arrivals, carries, now)
    for _ in range(spec.min_replicas if ready is None else ready):
        fleet.launch(now, now, spot=False)
    fleet.advance(now)
    fleet.tell_balancer()
    moments: list[Moment] = []
    with _fake_clock(autoscalers, lambda: now):
        controller = _Controller(spec, fleet, requests, startup, now)
        while True:
            begins = 0.0 if now < 0 else math.inf
            now = min(controller.next_sync, controller.next_decision, fleet.next_change(now), begins)
            requests.advance(min(now, seconds), fleet.serving())
            if now >= seconds:
                break
            fleet.advance(now)
            if now >= controller.next_sync:
                controller.sync(now)
            if now >= controller.next_decision:
                controller.decide(now)
            moments.append(Moment(now, controller.target(), len(fleet.paid), fleet.serving()))
    return Outcome(
        tuple(moments),
        tuple(controller.decisions),
        requests.counted,
        requests.too_few,
        requests.unanswered,
        fleet.hours(seconds),
    )


def enough(arrivals: Sequence[float], seconds: float, carries: float, share: float) -> int:
    """The fewest replicas, ready at all times, so that at most this ``share`` of requests meets too few."""

    def are_enough(ready: int) -> bool:
        requests = _Requests(arrivals, carries, min([0.0, *arrivals[:1]]))
        requests.advance(seconds, ready)
        return requests.too_few <= share * requests.counted

    high = 1
    while not are_enough(high):
        high *= 2
    return bisect_left(range(high), True, lo=high // 2 + 1, key=are_enough)


@dataclass(eq=False)
class _Replica:
    """A replica with what the autoscaler reads of SkyServe's own ReplicaInfo."""

    replica_id: int
    is_spot: bool
    since: float
    ready_at: float
    status: Any  # a ReplicaStatus; `is_ready` stands beside it because it is read often
    until: float = math.inf  # when it stops costing money
    version: int = 1
    cluster_name: str = ""
    is_terminal: bool = False
    is_ready: bool = False
    known: bool = False  # to the balancer

    @property
    def status_property(self) -> _Replica:
        return self

    def unrecoverable_failure(self) -> bool:
        return False


@dataclass
class _Fleet:
    """All replicas ever launched (``every``), and those that cost money now (``paid``)."""

    every: list[_Replica] = field(default_factory=list)
    paid: list[_Replica] = field(default_factory=list)

    def launch(self, now: float, ready_at: float, spot: bool) -> _Replica:
        from sky.serve.serve_state import ReplicaStatus

        replica = _Replica(len(self.every) + 1, spot, now, ready_at, ReplicaStatus.STARTING)
        self.every.append(replica)
        self.paid.append(replica)
        return replica

    def alive(self) -> list[_Replica]:
        """The replicas that the autoscaler has not sent away."""
        return [each for each in self.paid if each.until == math.inf]

    def next_change(self, now: float) -> float:
        return min(
            (time for each in self.paid for time in (each.ready_at, each.until) if time > now),
            default=math.inf,
        )

    def advance(self, now: float) -> None:
        self.paid = [each for each in self.paid if each.until > now]
        for replica in self.paid:
            if replica.ready_at <= now and not replica.is_ready:
                replica.status, replica.is_ready = type(replica.status).READY, True

    def tell_balancer(self) -> None:
        for replica in self.alive():
            replica.known = replica.is_ready

    def serving(self) -> int:
        return sum(each.known for each in self.alive())

    def hours(self, end: float) -> float:
        """Replica-hours from second 0 to ``end``."""
        return sum(max(min(each.until, end) - max(each.since, 0.0), 0.0) for each in self.every) / 3600


class _Requests:
    """Requests as they arrive, and the room that ready replicas have for them: it comes back as they work."""

    def __init__(self, arrivals: Sequence[float], carries: float, begin: float) -> None:
        self.arrivals, self.carries = arrivals, carries
        self.came = self.reported = self.too_few = self.unanswered = 0
        self.early = bisect_left(arrivals, 0.0)  # the number that belongs to a warm-up
        self.room, self.last = math.inf, begin  # a service that is up is not busy at first

    @property
    def counted(self) -> int:
        return max(self.came - self.early, 0)

    def advance(self, time: float, ready: int) -> None:
        """Take all requests up to ``time``, while ``ready`` replicas serve."""
        rate = ready * self.carries
        most = max(1.0, rate * BURST)
        room, last = self.room, self.last
        before = self.counted
        coming = self.arrivals[self.came : bisect_right(self.arrivals, time, self.came)]
        for arrival in coming:
            room = min(room + (arrival - last) * rate, most)
            last = arrival
            if ready and room >= 1:
                room -= 1
            elif arrival >= 0:
                self.too_few += 1
        self.came += len(coming)
        self.unanswered += 0 if ready else self.counted - before
        self.room, self.last = min(most, room + (time - last) * rate), time

    def report(self) -> list[float]:
        """The arrivals since the last report."""
        new = list(self.arrivals[self.reported : self.came])
        self.reported = self.came
        return new


class _Controller:
    """SkyServe's controller: it hears from the balancer, and lets the autoscaler decide."""

    def __init__(self, spec: Any, fleet: _Fleet, requests: _Requests, startup: float, now: float) -> None:
        from sky.serve import autoscalers

        self.autoscaler: Any = autoscalers.Autoscaler.from_spec("pixtral", spec)
        self.fleet, self.requests, self.startup = fleet, requests, startup
        self.next_sync, self.next_decision = now + FIRST_SYNC, now
        self.decisions: list[Decision] = []

    def target(self) -> int:
        return int(self.autoscaler.get_final_target_num_replicas())

    def sync(self, now: float) -> None:
        from sky.serve.constants import LB_CONTROLLER_SYNC_INTERVAL_SECONDS

        self.autoscaler.collect_request_information({"timestamps": self.requests.report()})
        self.fleet.tell_balancer()
        self.next_sync = now + LB_CONTROLLER_SYNC_INTERVAL_SECONDS

    def decide(self, now: float) -> None:
        from sky.serve.autoscalers import AutoscalerDecisionOperator
        from sky.serve.constants import INITIAL_VERSION

        for each in self.autoscaler.generate_scaling_decisions(self.fleet.alive(), [INITIAL_VERSION]):
            up = each.operator == AutoscalerDecisionOperator.SCALE_UP
            if up:
                spot = bool((each.target or {}).get("use_spot"))
                replica = self.fleet.launch(now, now + self.startup, spot)
            else:
                replica = self.fleet.every[each.target - 1]
                replica.until = now + DRAIN
            self.decisions.append(Decision(now, up, replica.replica_id))
        self.next_decision = now + self.autoscaler.get_decision_interval()


@contextmanager
def _fake_clock(autoscalers: Any, clock: Callable[[], float]) -> Iterator[None]:
    """Give SkyPilot's module ``autoscalers`` a fake clock, and silence its many log lines."""
    logger = logging.getLogger(autoscalers.__name__)
    time, level = autoscalers.time, logger.level
    autoscalers.time = SimpleNamespace(time=clock)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        autoscalers.time = time
        logger.setLevel(level)
