"""How many replicas SkyServe would run under a load, and how many requests would meet too few of them.

The decisions are those of SkyPilot's own class (``sky.serve.autoscalers``, skypilot 0.14.1), made under a
fake clock about replicas that exist only here. Nothing asks the API server or the network.

As in SkyServe, the balancer counts every request, and tells the controller every 20 seconds; then it also
hears which replicas are ready. The controller decides every 20 seconds, every 5 while it wants no replica. A
replica that is sent away gets no more requests, and costs money for 120 seconds more.

Not in it: requests that are tried again, machines that nobody has, replicas that fail.
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
    """How things are from ``time`` on (seconds), until the next moment."""

    time: float
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
    """What a load has met.

    ``too_few`` requests came when all ready replicas were busy, and some of them, ``unanswered``, when none
    was ready (the balancer answers those with 503). All others were carried. Moments and decisions of a
    warm-up have times below 0; it is in no number.
    """

    moments: tuple[Moment, ...]
    decisions: tuple[Decision, ...]
    requests: int
    too_few: int
    unanswered: int
    replica_hours: float

    @property
    def share_too_few(self) -> float:
        """Of all requests; 0 to 1."""
        return self.too_few / self.requests if self.requests else 0.0

    def most_paid(self) -> int:
        """Replicas that cost money at once, at most."""
        return max((moment.paid for moment in self.moments if moment.time >= 0), default=0)


def spec(service: Mapping[str, Any]) -> Any:
    """The ``service:`` section of a task file as SkyPilot's own SkyServiceSpec.

    Raises UsageError, also for a target_qps_per_replica per kind of GPU: what comes of it depends on which
    GPUs are found.
    """
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
        from sky.serve import autoscalers, constants

    now, reported = 0.0 - warmup, 0
    next_sync, next_decision = now + FIRST_SYNC, now
    fleet, requests = _Fleet(), _Requests(arrivals, carries, now)
    for _ in range(spec.min_replicas if ready is None else ready):
        fleet.launch(now, now, spot=False)
    fleet.until(now)
    fleet.tell_balancer()
    decisions: list[Decision] = []
    moments: list[Moment] = []
    with _fake_clock(autoscalers, lambda: now):
        autoscaler: Any = autoscalers.Autoscaler.from_spec("pixtral", spec)
        while True:
            begins = 0.0 if now < 0 else math.inf
            now = min(next_sync, next_decision, fleet.next_change(now), begins)
            requests.until(min(now, seconds), fleet.serving())
            if now >= seconds:
                break
            fleet.until(now)
            if now >= next_sync:
                told = list(arrivals[reported : requests.came])
                autoscaler.collect_request_information({"timestamps": told})
                reported = requests.came
                fleet.tell_balancer()
                next_sync = now + constants.LB_CONTROLLER_SYNC_INTERVAL_SECONDS
            if now >= next_decision:
                infos = fleet.alive()
                for each in autoscaler.generate_scaling_decisions(infos, [constants.INITIAL_VERSION]):
                    up = each.operator == autoscalers.AutoscalerDecisionOperator.SCALE_UP
                    if up:
                        spot = bool((each.target or {}).get("use_spot"))
                        replica = fleet.launch(now, now + startup, spot)
                    else:
                        replica = fleet.every[each.target - 1]
                        replica.until = now + DRAIN
                    decisions.append(Decision(now, up, replica.replica_id))
                next_decision = now + autoscaler.get_decision_interval()
            target = autoscaler.get_final_target_num_replicas()
            moments.append(Moment(now, target, len(fleet.paid), fleet.serving()))
    return Outcome(
        tuple(moments),
        tuple(decisions),
        requests.counted,
        requests.too_few,
        requests.unanswered,
        fleet.hours(seconds),
    )


def enough(arrivals: Sequence[float], seconds: float, carries: float, share: float) -> int:
    """The fewest replicas, ready at all times, where no more than this ``share`` of requests meet too few."""

    def are_enough(ready: int) -> bool:
        requests = _Requests(arrivals, carries, min([0.0, *arrivals[:1]]))
        requests.until(seconds, ready)
        return requests.too_few <= share * requests.counted

    low, high = 0, 1  # the first are too few
    while not are_enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if are_enough(middle) else (middle, high)
    return high


@dataclass(eq=False)
class _Replica:
    """A replica, with what the autoscaler looks at: this much of SkyServe's own ReplicaInfo."""

    replica_id: int
    is_spot: bool
    since: float
    ready_at: float
    status: Any  # a ReplicaStatus; `is_ready` is kept beside it, as it is looked at often
    until: float = math.inf  # when it stops to cost money
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
    """Replicas: all there ever were (``every``), and of these what costs money now (``paid``)."""

    every: list[_Replica] = field(default_factory=list)
    paid: list[_Replica] = field(default_factory=list)

    def launch(self, now: float, ready_at: float, spot: bool) -> _Replica:
        from sky.serve.serve_state import ReplicaStatus

        replica = _Replica(len(self.every) + 1, spot, now, ready_at, ReplicaStatus.STARTING)
        self.every.append(replica)
        self.paid.append(replica)
        return replica

    def alive(self) -> list[_Replica]:
        """Those that the autoscaler has: none that it has sent away."""
        return [each for each in self.paid if each.until == math.inf]

    def next_change(self, now: float) -> float:
        return min(
            (time for each in self.paid for time in (each.ready_at, each.until) if time > now),
            default=math.inf,
        )

    def until(self, now: float) -> None:
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
        self.came = self.too_few = self.unanswered = 0
        self.early = bisect_left(arrivals, 0.0)  # so many belong to a warm-up
        self.room, self.last = math.inf, begin  # a service that is up is not busy at first

    @property
    def counted(self) -> int:
        return max(self.came - self.early, 0)

    def until(self, time: float, ready: int) -> None:
        """All that arrive up to ``time``, while so many replicas are ready."""
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


@contextmanager
def _fake_clock(autoscalers: Any, clock: Callable[[], float]) -> Iterator[None]:
    """SkyPilot's module ``autoscalers`` with a fake clock, and silent: it logs every number that it sees."""
    logger = logging.getLogger(autoscalers.__name__)
    time, level = autoscalers.time, logger.level
    autoscalers.time = SimpleNamespace(time=clock)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        autoscalers.time = time
        logger.setLevel(level)
