"""How many replicas SkyServe would run under a load, and how many requests would meet too few of them.

The decisions are those of SkyPilot's own class (``sky.serve.autoscalers``, skypilot 0.14.1), made under a
clock of ours about replicas that only exist here. So this is the one module beside `sdk` that imports from
``sky``, through its door: this one class, and nothing that asks the SDK, the API server or the network.

Played as SkyServe does it: the balancer counts every request, and tells the controller every 20 seconds; then
it also hears which replicas are ready. The controller decides every 20 seconds, every 5 while it wants no
replica. A replica that is sent away gets no more requests, and costs money for 120 seconds more.

Not in it: requests that are tried again, machines that nobody has, replicas that fail.
"""

from __future__ import annotations

import csv
import logging
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
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
    qps: float  # as the autoscaler measures it, over the last minute
    target: int  # replicas that the autoscaler wants
    paid: int  # replicas that cost money: starting, ready and leaving
    ready: int  # replicas that the balancer sends requests to
    too_few: int  # requests that have met too few of them until now


@dataclass(frozen=True)
class Decision:
    """What the autoscaler decided: to launch replica number ``replica``, or to send it away."""

    time: float
    up: bool
    replica: int
    spot: bool


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
    on_demand_hours: float
    spot_hours: float

    @property
    def replica_hours(self) -> float:
        return self.on_demand_hours + self.spot_hours

    @property
    def share_too_few(self) -> float:
        """Of all requests; 0 to 1."""
        return self.too_few / self.requests if self.requests else 0.0

    @property
    def share_unanswered(self) -> float:
        """Of all requests; 0 to 1."""
        return self.unanswered / self.requests if self.requests else 0.0

    def most_paid(self) -> int:
        """Replicas that cost money at once, at most."""
        return max((moment.paid for moment in self.moments if moment.time >= 0), default=0)


# The autoscaler --------------------------------------------------------------------------------------------


def spec(service: Mapping[str, Any]) -> Any:
    """The ``service:`` section of a task file as SkyPilot's own SkyServiceSpec. Raises UsageError."""
    with skypilot.sky_sdk(silent=True):
        from sky.serve import service_spec

        try:
            return service_spec.SkyServiceSpec.from_yaml_config(dict(service))
        except (ValueError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"SkyPilot does not take this service: {reason}") from error


def simulate(
    spec: Any,
    arrivals: Sequence[float],
    seconds: float,
    *,
    startup: float,
    carries: float,
    ready: int | None = None,
    spot: bool = False,
    losses: Sequence[tuple[float, int]] = (),
    warmup: float = 0.0,
) -> Outcome:
    """Run the autoscaler of ``spec`` (a SkyServiceSpec) over requests that arrive at these seconds, in order.

    ``startup`` are the seconds from a decision until a replica answers its probe, and ``carries`` the queries
    per second that it carries then. ``ready`` replicas are there at the start; without it, the minimum.
    ``spot``: replicas are on spot machines, where the decision does not say. ``losses`` are (second, number)
    of ready spot replicas that are taken away, those that are there longest first. ``warmup`` seconds come
    before second 0, with the requests that have a time below 0 (`warmed`): they are played, and not counted.

    Raises UsageError as `target` does.
    """
    target(spec)
    if startup <= 0 or carries <= 0:
        raise UsageError("A replica takes more than 0 seconds to start, and carries more than 0 queries.")
    with skypilot.sky_sdk(silent=True):
        from sky.serve import autoscalers, constants

    now, lost, reported = 0.0 - warmup, sorted(losses), 0
    next_sync, next_decision = now + FIRST_SYNC, now
    fleet = _Fleet(startup, spot, now)
    fleet.begin(spec.min_replicas if ready is None else ready)
    crowd = _Crowd(arrivals, carries, now)
    decisions: list[Decision] = []
    moments: list[Moment] = []
    with _played(autoscalers, lambda: now):
        autoscaler: Any = autoscalers.Autoscaler.from_spec("pixtral", spec)
        while True:
            begins = 0.0 if now < 0 else math.inf
            now = min(next_sync, next_decision, fleet.next_change(), begins, *(time for time, _ in lost[:1]))
            crowd.until(min(now, seconds), fleet.serving())
            if now >= seconds:
                break
            fleet.until(now)
            while lost and lost[0][0] <= now:
                fleet.lose(lost.pop(0)[1], now)
            if now >= next_sync:
                autoscaler.collect_request_information({"timestamps": list(arrivals[reported : crowd.came])})
                reported = crowd.came
                fleet.tell_balancer()
                next_sync = now + constants.LB_CONTROLLER_SYNC_INTERVAL_SECONDS
            if now >= next_decision:
                infos = list(fleet.alive)
                for each in autoscaler.generate_scaling_decisions(infos, [constants.INITIAL_VERSION]):
                    up = each.operator == autoscalers.AutoscalerDecisionOperator.SCALE_UP
                    replica = fleet.launch(now, each.target) if up else fleet.send_away(now, each.target)
                    decisions.append(Decision(now, up, replica.replica_id, replica.is_spot))
                next_decision = now + autoscaler.get_decision_interval()
            moments.append(
                Moment(
                    now,
                    len(autoscaler.request_timestamps) / autoscaler.qps_window_size,
                    autoscaler.get_final_target_num_replicas(),
                    len(fleet.alive) + len(fleet.leaving),
                    fleet.serving(),
                    crowd.too_few,
                )
            )
    return Outcome(
        tuple(moments),
        tuple(decisions),
        requests=crowd.requests,
        too_few=crowd.too_few,
        unanswered=crowd.unanswered,
        on_demand_hours=fleet.hours(seconds, spot=False),
        spot_hours=fleet.hours(seconds, spot=True),
    )


def target(spec: Any) -> float | None:
    """The ``target_qps_per_replica`` of a SkyServiceSpec; None: a fixed number of replicas.

    Raises UsageError for one per kind of GPU: what comes of it depends on which GPUs are found.
    """
    given: float | dict[str, float] | None = spec.target_qps_per_replica
    if isinstance(given, dict):
        raise UsageError(
            "A target_qps_per_replica per GPU cannot be played: nobody knows which GPUs will be found.",
            "Give one number for all GPUs.",
        )
    return given


def enough(arrivals: Sequence[float], seconds: float, carries: float, share: float = 0.0) -> int:
    """The fewest replicas, ready at all times, where no more than this ``share`` of requests meet too few."""

    def do(ready: int) -> bool:
        crowd = _Crowd(arrivals, carries, min([0.0, *arrivals[:1]]))
        crowd.until(seconds, ready)
        return crowd.too_few <= share * crowd.requests

    low, high = 0, 1  # the first are too few
    while not do(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if do(middle) else (middle, high)
    return high


@dataclass(eq=False)
class _Replica:
    """A replica, with what the autoscaler looks at: this much of SkyServe's own ReplicaInfo."""

    replica_id: int
    is_spot: bool
    status: Any  # a ReplicaStatus; `is_ready` is kept beside it, as it is looked at often
    since: float
    ready_at: float
    until: float = math.inf  # when it stops to cost money
    version: int = 1
    cluster_name: str = ""
    is_terminal: bool = False
    is_ready: bool = False

    @property
    def status_property(self) -> _Replica:
        return self

    def unrecoverable_failure(self) -> bool:
        return False


class _Fleet:
    """Replicas: those that the autoscaler has (``alive``), and those that only cost money still."""

    def __init__(self, startup: float, spot: bool, begin: float) -> None:
        from sky.serve.serve_state import ReplicaStatus

        self.statuses: Any = ReplicaStatus
        self.startup, self.spot, self.first = startup, spot, begin
        self.every: list[_Replica] = []
        self.alive: list[_Replica] = []
        self.leaving: list[_Replica] = []
        self.known: set[_Replica] = set()  # to the balancer

    def begin(self, ready: int) -> None:
        for _ in range(ready):
            self._add(self.first, self.first, self.spot)
        self.until(self.first)
        self.tell_balancer()

    def launch(self, now: float, override: Mapping[str, Any] | None) -> _Replica:
        return self._add(now, now + self.startup, (override or {}).get("use_spot", self.spot))

    def _add(self, now: float, ready_at: float, spot: bool) -> _Replica:
        replica = _Replica(len(self.every) + 1, spot, self.statuses.STARTING, now, ready_at)
        self.every.append(replica)
        self.alive.append(replica)
        return replica

    def send_away(self, now: float, number: int) -> _Replica:
        replica = next(each for each in self.alive if each.replica_id == number)
        replica.until = now + DRAIN
        self.alive.remove(replica)
        self.leaving.append(replica)
        return replica

    def lose(self, number: int, now: float) -> None:
        for replica in [each for each in self.alive if each.is_spot and each.is_ready][:number]:
            replica.until = now
            self.alive.remove(replica)

    def next_change(self) -> float:
        starting = (each.ready_at for each in self.alive if not each.is_ready)
        return min([*starting, *(each.until for each in self.leaving)], default=math.inf)

    def until(self, now: float) -> None:
        for replica in self.alive:
            if replica.ready_at <= now:
                replica.status, replica.is_ready = self.statuses.READY, True
        self.leaving = [each for each in self.leaving if each.until > now]

    def tell_balancer(self) -> None:
        self.known = {each for each in self.alive if each.is_ready}

    def serving(self) -> int:
        return sum(each in self.known for each in self.alive)

    def hours(self, end: float, spot: bool) -> float:
        paid = (
            max(min(each.until, end) - max(each.since, 0.0), 0.0)
            for each in self.every
            if each.is_spot == spot
        )
        return sum(paid) / 3600


class _Crowd:
    """Requests as they arrive, and the room that ready replicas have for them: it comes back as they work."""

    def __init__(self, arrivals: Sequence[float], carries: float, begin: float) -> None:
        self.arrivals, self.carries = arrivals, carries
        self.came = self.too_few = self.unanswered = 0
        self.early = bisect_left(arrivals, 0.0)  # so many belong to a warm-up
        self.room, self.last = math.inf, begin  # a service that is up is not busy at first

    @property
    def requests(self) -> int:
        return max(self.came - self.early, 0)

    def until(self, time: float, ready: int) -> None:
        """All that arrive up to ``time``, while so many replicas are ready."""
        rate = ready * self.carries
        most = max(1.0, rate * BURST)
        room, last = self.room, self.last
        before = self.requests
        coming = self.arrivals[self.came : bisect_right(self.arrivals, time, self.came)]
        for arrival in coming:
            room += (arrival - last) * rate
            last = arrival
            if room > most:
                room = most
            if ready and room >= 1:
                room -= 1
            elif arrival >= 0:
                self.too_few += 1
        self.came += len(coming)
        self.unanswered += 0 if ready else self.requests - before
        self.room, self.last = min(most, room + (time - last) * rate), time


@contextmanager
def _played(autoscalers: Any, clock: Callable[[], float]) -> Iterator[None]:
    """SkyPilot's module ``autoscalers`` with our clock, and silent: it logs every number that it looks at."""
    logger = logging.getLogger(autoscalers.__name__)
    time, level = autoscalers.time, logger.level
    autoscalers.time = SimpleNamespace(time=clock)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        autoscalers.time = time
        logger.setLevel(level)


# Loads -----------------------------------------------------------------------------------------------------

Rate = Callable[[float], float]  # queries per second at a second


def steady(qps: float) -> Rate:
    """The same at all times."""
    return lambda _: qps


def step(low: float, high: float, start: float, end: float) -> Rate:
    """``high`` from ``start`` to ``end``, and ``low`` before and after."""
    return lambda second: high if start <= second < end else low


def day_night(low: float, high: float, day: float = 86_400.0) -> Rate:
    """A wave: ``low`` when the day begins and ends, ``high`` in its middle."""
    return lambda second: low + (high - low) * (1 - math.cos(2 * math.pi * second / day)) / 2


def burst(low: float, high: float, length: float, every: float) -> Rate:
    """``high`` for ``length`` seconds at the end of each ``every`` seconds, and ``low`` between."""
    return lambda second: high if second % every >= every - length else low


def arrivals(rate: Rate, seconds: float, seed: int | None = None) -> list[float]:
    """When requests of that rate arrive: evenly spaced, or with a ``seed`` at random (as by Poisson)."""
    chance = random.Random(seed)  # noqa: S311, nothing secret
    times, due = [], 0.0
    gap = 0.5 if seed is None else chance.expovariate(1.0)  # in the middle of its share of time
    for second in range(math.ceil(seconds)):
        qps = rate(float(second))
        if qps < 0:
            raise ValueError(f"a rate is 0 or more, not {qps}")
        left = qps
        while due + left >= gap:
            left -= gap - due
            times.append(second + (1 - left / qps))
            due, gap = 0.0, 1.0 if seed is None else chance.expovariate(1.0)
        due += left
    return [time for time in times if time < seconds]


def warmed(arrivals: Sequence[float], seconds: float) -> list[float]:
    """The load, and before second 0 its first ``seconds`` once more: as if it had been so already."""
    return [time - seconds for time in arrivals[: bisect_left(arrivals, seconds)]] + list(arrivals)


def read_csv(path: Path) -> list[float]:
    """When requests arrived, in seconds from the first, sorted: the first column of a CSV file.

    Seconds since the epoch, or ISO 8601 (UTC where it names no zone); a first line may be its title.
    Raises UsageError.
    """
    times = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if row and row[0].strip():
                    try:
                        times.append(_timestamp(row[0].strip()))
                    except ValueError:
                        if number > 1:
                            raise UsageError(f"{path}, line {number}: {row[0]!r} is no time.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file: {error}.") from error
    if not times:
        raise UsageError(f"{path} has no times.", "Its first column: seconds since the epoch, or ISO 8601.")
    first = min(times)
    return sorted(time - first for time in times)


def _timestamp(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no Z
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds
