"""How many at once: against servers that are simulated, second by second, on a clock of their own."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest

from pixtral_sky.batch.concurrency import CUT, MOST, PER_SECOND, START, Limiter


@dataclass
class Server:
    """Computes ``capacity`` at once, in ``seconds``; with more, all take longer in proportion.

    What is more than ``most`` at once is refused, as is a ``rude`` share of all. It is asked again a second
    later, and others may be asked meanwhile, as far as the limiter allows it.
    """

    capacity: float
    seconds: float
    most: int = 10**9
    rude: float = 0.0
    refused: int = 0


class World:
    """A limiter, the requests that it lets go, and the time."""

    def __init__(self, limiter: Limiter | None = None, spread: float = 0.5) -> None:
        self.limiter, self.now = limiter or Limiter(), 0.0
        self._spread, self._random = spread, random.Random(4)
        # Ends, begun, is worked on, has left its place.
        self._on_their_way: list[tuple[float, float, bool, bool]] = []
        self._spared = 0
        self.starts: list[float] = []

    def run(self, server: Server, seconds: float) -> float:
        """Answers a second, of so long."""
        until, answered = self.now + seconds, 0
        while self.now < until:
            pause = 0.0
            while self._has_room() and not (pause := self.limiter.wait(self.now)):
                self._start(server)
            ends = self._on_their_way[0][0] if self._on_their_way else until
            if self._has_room():
                ends = min(ends, self.now + pause)
            self.now = ends
            while self._on_their_way and self._on_their_way[0][0] <= self.now:
                _, begun, worked_on, spared = heapq.heappop(self._on_their_way)
                self._spared -= spared
                if worked_on:
                    self.limiter.answered(self.now, self.now - begun)
                    answered += 1
        return answered / seconds

    def _has_room(self) -> bool:
        return len(self._on_their_way) - self._spared < self.limiter.limit

    def _start(self, server: Server) -> None:
        self.starts.append(self.now)
        working = sum(each[2] for each in self._on_their_way)
        if working >= server.most or self._random.random() < server.rude:
            server.refused += 1
            self.limiter.busy(self.now, taken=working)
            spared = self.limiter.spares()
            self._spared += spared
            heapq.heappush(self._on_their_way, (self.now + 1, self.now, False, spared))
            return
        chance = self._random.uniform(1 - self._spread, 1 + self._spread)
        taken = server.seconds * max(1, (working + 1) / server.capacity) * chance
        heapq.heappush(self._on_their_way, (self.now + taken, self.now, True, False))


@pytest.mark.parametrize(("capacity", "seconds"), [(4, 2), (16, 5), (32, 10), (64, 5), (200, 4)])
def test_it_finds_what_a_server_can_do(capacity: int, seconds: float) -> None:
    world, server = World(), Server(capacity, seconds)
    world.run(server, 60 * seconds)
    best = capacity / seconds
    assert world.run(server, 100 * seconds) > 0.9 * best
    # And it does not pile up in the server's queue what brings nothing.
    assert world.limiter.limit <= max(4 * capacity, START)


def test_it_grows_fast_where_that_pays() -> None:
    world = World()
    world.run(Server(64, 5), 90)
    assert world.limiter.limit >= 64


def test_one_at_a_time() -> None:
    world = World()
    assert world.run(Server(1, 1), 2000) > 0.95
    assert world.limiter.limit <= START


@pytest.mark.parametrize("fixed", [None, MOST])
def test_it_stays_below_what_a_balancer_passes_on(fixed: int | None) -> None:
    world, server = World(Limiter(fixed)), Server(10_000, 0.5)
    world.run(server, 60)
    assert world.run(server, 60) > 0.9 * PER_SECOND
    for begin in range(120):
        assert sum(begin <= start < begin + 1 for start in world.starts) <= PER_SECOND * 1.15
    assert world.limiter.limit <= MOST


def test_it_follows_a_server_that_gets_slower_and_recovers() -> None:
    world = World()
    fast, slow = Server(64, 5), Server(16, 5)
    world.run(fast, 600)
    assert world.limiter.limit >= 48
    assert world.run(slow, 1200) > 0.85 * 16 / 5
    assert world.limiter.limit <= 40
    world.run(fast, 900)
    assert world.run(fast, 300) > 0.85 * 64 / 5


def test_longer_answers_are_no_reason_for_fewer_at_once() -> None:
    world = World()
    world.run(Server(64, 2), 300)
    world.run(Server(64, 8), 900)
    assert world.run(Server(64, 8), 600) > 0.85 * 64 / 8


def test_it_backs_off_from_a_server_that_refuses_and_comes_back() -> None:
    world, strict = World(), Server(64, 5, most=40)
    world.run(strict, 600)
    strict.refused = 0
    rate = world.run(strict, 600)
    assert world.limiter.limit <= 45
    assert rate > 0.7 * 40 / 5
    assert strict.refused < 0.3 * rate * 600
    world.run(Server(64, 5), 600)
    assert world.run(Server(64, 5), 300) > 0.85 * 64 / 5


@pytest.mark.parametrize("fixed", [None, START])
@pytest.mark.parametrize("seconds", [0.5, 5])
def test_refusals_that_no_limit_ends_cost_half_of_the_speed_at_most(
    fixed: int | None, seconds: float
) -> None:
    polite, rude = (World(Limiter(fixed)) for _ in range(2))
    rates = [
        world.run(Server(40, seconds, rude=share), 600 * seconds)
        for world, share in ((polite, 0), (rude, 0.5))
    ]
    assert rates[1] > 0.6 * rates[0]


def test_all_that_is_refused_for_one_reason_cuts_once() -> None:
    limiter = Limiter()
    limiter.limit = 100
    for _ in range(100):
        limiter.lost(1.0)
    assert limiter.limit == int(100 * CUT)
    for number in range(200):
        limiter.answered(2 + number / 100, 1.0)
    limiter.lost(5.0)
    limiter.lost(5.1)
    assert limiter.limit == int(int(100 * CUT) * CUT)


def test_nothing_is_left_of_it_but_one() -> None:
    limiter = Limiter()
    for number in range(50):
        limiter.lost(float(number))
        limiter.lost(float(number))
        for _ in range(2 * START):
            limiter.answered(float(number), 1.0)
    assert limiter.limit == 1


def test_what_fails_now_and_then_is_no_reason_for_fewer() -> None:
    world, server = World(), Server(64, 5)
    world.run(server, 300)
    for _ in range(60):
        world.limiter.lost(world.now)
        world.run(server, 10)
    assert world.limiter.limit >= 48


def test_what_a_server_asks_to_wait_is_waited() -> None:
    limiter = Limiter()
    assert limiter.wait(10.0) == 0
    limiter.busy(10.0, wait=5.0)
    assert limiter.wait(11.0) == 4
    assert limiter.wait(15.0) == 0


def test_where_answers_take_minutes_no_more_are_asked_for() -> None:
    world = World()
    world.run(Server(1000, 150), 20_000)
    assert world.limiter.limit <= START


def test_a_fixed_number_stays() -> None:
    world = World(Limiter(12))
    world.run(Server(4, 1, most=6), 100)
    assert world.limiter.limit == 12
