"""The player of SkyServe's autoscaler, against the class itself."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import random
import time
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixtral_sky.deploy import replica_policy, skypilot
from pixtral_sky.errors import SkyError, UsageError
from pixtral_sky.planning import capacity, loads, policies
from tests.conftest import ROOT
from tests.support.services import shown

HOUR = 3600.0
STARTUP = 600.0


def spec(name: str = "service.yaml", **policy):
    service = shown(name)["service"]
    service["replica_policy"] = {**service["replica_policy"], **policy}
    return capacity.spec(service)


def play(rate: loads.Rate, seconds: float = HOUR, seed: int | None = None, **arguments):
    """The outcome of a load; the policy of service.yaml, and its own queries per second, unless others are given."""
    arguments = {"spec": spec(), "startup": STARTUP, "carries": 2.0, **arguments}
    the_spec = arguments.pop("spec")
    return capacity.simulate(the_spec, loads.arrivals(rate, seconds, seed), seconds, **arguments)


# Its decisions are the class's own


class Direct:
    """SkyServe's loop written down a second time, second by second, with nothing of the module under test."""

    def __init__(self, monkeypatch, the_spec, startup: float, begin: int = 0) -> None:
        from sky.serve import autoscalers
        from sky.serve.serve_state import ReplicaStatus

        self.now, self.begin, self.startup, self.status = begin, begin, startup, ReplicaStatus
        monkeypatch.setattr(autoscalers, "time", SimpleNamespace(time=lambda: float(self.now)))
        logging.getLogger(autoscalers.__name__).setLevel(logging.CRITICAL)
        self.autoscaler = autoscalers.Autoscaler.from_spec("pixtral", the_spec)
        self.replicas = {}
        self.numbers = itertools.count(1)
        for _ in range(the_spec.min_replicas):
            self.launch(False, begin - startup)

    def launch(self, spot: bool, since: float) -> int:
        number = next(self.numbers)
        self.replicas[number] = SimpleNamespace(
            replica_id=number, version=1, cluster_name="", is_spot=spot, is_terminal=False, since=since
        )
        return number

    def infos(self) -> list:
        for each in self.replicas.values():
            each.is_ready = self.now - each.since >= self.startup
            each.status = self.status.READY if each.is_ready else self.status.STARTING
            each.status_property = SimpleNamespace(unrecoverable_failure=lambda: False)
        return list(self.replicas.values())

    def run(self, arrivals: list[float], seconds: int) -> list[tuple]:
        made, reported, look, begin = [], 0, self.begin, self.begin
        for self.now in range(begin, seconds):
            if (self.now - self.begin) % 20 == 5:  # the balancer tells
                told = list(itertools.takewhile(lambda each: each <= self.now, arrivals[reported:]))
                reported += len(told)
                self.autoscaler.collect_request_information({"timestamps": told})
            if self.now == look:
                for each in self.autoscaler.generate_scaling_decisions(self.infos(), [1]):
                    if up := each.operator.value == "scale_up":
                        spot = bool((each.target or {}).get("use_spot"))
                        number = self.launch(spot, self.now)
                    else:
                        number = each.target
                        self.replicas.pop(number)
                    made.append((self.now, up, number))
                look = self.now + self.autoscaler.get_decision_interval()
        return made


@pytest.mark.parametrize(("policy", "startup"), [
    ({}, 600), ({}, 240), ({"min_replicas": 0}, 600), ({"upscale_delay_seconds": 0}, 600), ({"max_replicas": 3}, 600),
    ({"upscale_delay_seconds": 20, "downscale_delay_seconds": 60}, 600), ({"num_overprovision": 1}, 600),
    ({"target_qps_per_replica": 0.7}, 240), ({"base_ondemand_fallback_replicas": 1}, 600),
    ({"dynamic_ondemand_fallback": True}, 600), ({"dynamic_ondemand_fallback": True}, 240),
    ({"dynamic_ondemand_fallback": True, "base_ondemand_fallback_replicas": 2, "downscale_delay_seconds": 100}, 240),
], ids=str)  # fmt: skip
def test_decision_by_decision(monkeypatch, policy, startup):
    load = loads.step(0.4, 9, 600, 2400)
    arrivals = loads.arrivals(lambda second: 0 if 3600 < second < 5400 else load(second), 7200, seed=11)
    the_spec = spec(**policy)
    outcome = capacity.simulate(the_spec, arrivals, 7200, startup=startup, carries=2)
    direct = Direct(monkeypatch, the_spec, startup).run(arrivals, 7200)
    assert [(each.time, each.up, each.replica) for each in outcome.decisions] == direct
    assert {up for _, up, _ in direct} == {True, False}


# Loads of three hours, of few requests: what a replica carries is less in the same measure.
CARRIES = 0.2
LOADS = {
    "steady": loads.arrivals(loads.steady(0.5), 10_800, seed=1),
    "day-night": loads.arrivals(loads.day_night(0, 0.9, 10_800), 10_800, seed=2),
    "burst": loads.arrivals(loads.burst(0, 0.9, 1800, 5400), 10_800, seed=3),
    "trace": sorted(map(random.Random(5).triangular, [0] * 5000, [10_799] * 5000, [3000] * 5000)),
}
TERMS = policies.Terms(startup=600, carries=CARRIES, goal=0.01, price=2.5)


def config(name: str = "service.yaml", **policy):
    made = shown(name)
    made["service"]["replica_policy"] |= {"target_qps_per_replica": CARRIES, **policy}
    return made


@pytest.mark.parametrize("load", LOADS)
def test_what_is_compared_decision_by_decision(monkeypatch, load):
    """None while nobody asks, lower targets, spot with ordinary ones to stand in: after a warm-up."""
    arrivals = loads.warmed(LOADS[load], 1800)
    every = policies.others(policies.own(config()), TERMS, (4, 5))
    zero = [each for each in every if each.minimum == 0]
    made = [policies.applied(config(), policy) for policy in (*zero[:2], every[0], *every[7:9])]
    ups = 0
    for file in (*made, config("spot")):
        the_spec = capacity.spec(file["service"])
        outcome = capacity.simulate(the_spec, arrivals, 10_800, startup=600, carries=CARRIES, warmup=1800)
        direct = Direct(monkeypatch, the_spec, 600, begin=-1800).run(arrivals, 10_800)
        assert [(each.time, each.up, each.replica) for each in outcome.decisions] == direct
        ups += sum(up for _, up, _ in direct)
    assert ups > 20


def test_the_kind_of_autoscaler_is_skypilots_choice(monkeypatch, sky):
    taken = []
    original = sky.serve.autoscalers.Autoscaler.from_spec
    monkeypatch.setattr(
        sky.serve.autoscalers.Autoscaler,
        "from_spec",
        lambda *each: taken.append(original(*each)) or taken[-1],
    )
    play(loads.steady(1), spec=spec())
    play(loads.steady(1), spec=spec("spot"))
    assert [type(each).__name__ for each in taken] == [
        "RequestRateAutoscaler",
        "FallbackRequestRateAutoscaler",
    ]


def test_the_numbers_are_skyserves_own(sky):
    from sky.serve import constants, replica_managers

    assert capacity.DRAIN == replica_managers._DEFAULT_DRAIN_SECONDS
    assert constants.LB_CONTROLLER_SYNC_INTERVAL_SECONDS == 20  # as the docstring has it
    assert constants.AUTOSCALER_DEFAULT_DECISION_INTERVAL_SECONDS == 20
    assert constants.AUTOSCALER_NO_REPLICA_DECISION_INTERVAL_SECONDS == 5
    assert policies.SKYSERVE_DELAYS == (
        constants.AUTOSCALER_DEFAULT_UPSCALE_DELAY_SECONDS,
        constants.AUTOSCALER_DEFAULT_DOWNSCALE_DELAY_SECONDS,
    )


def test_skypilot_is_left_as_it_was(sky):
    logger = logging.getLogger("sky.serve.autoscalers")
    logger.setLevel(logging.WARNING)
    play(loads.steady(1))
    assert sky.serve.autoscalers.time is time
    assert logger.level == logging.WARNING
    with pytest.raises(ZeroDivisionError):
        play(loads.steady(1), spec=spec(target_qps_per_replica=0), carries=1)
    assert sky.serve.autoscalers.time is time
    assert logger.level == logging.WARNING


# What comes of it


def test_a_steady_load_within_the_minimum_meets_no_trouble():
    outcome = play(loads.steady(3.9))
    assert (outcome.requests, outcome.too_few, outcome.unanswered) == (14_040, 0, 0)
    assert (outcome.decisions, outcome.replica_hours, outcome.most_paid()) == ((), 2.0, 2)
    assert {moment.ready for moment in outcome.moments} == {2}
    assert outcome.share_too_few == 0


def test_a_step_up_and_back():
    """1 to 9 queries per second, an hour long: each number follows from the policy."""
    outcome = play(loads.step(1, 9, 1800, 5400), 4 * HOUR)
    first, *_, last = outcome.decisions
    assert [each.up for each in outcome.decisions] == [True] * 3 + [False] * 3  # 5 replicas for 9 queries
    # Above 4 queries in the window 20 s after the step, told 5 s later at most; then 120 s of looks.
    assert 1800 + 120 < first.time <= 1800 + 120 + 40
    assert 5400 + 1200 < last.time <= 5400 + 1200 + 80
    # Until the three answer, 5 of 9 queries each second are too many, but for the first burst that is taken on.
    told = first.time + STARTUP + 20
    assert 5 * (first.time + STARTUP - 1800) - 100 <= outcome.too_few <= 5 * (told - 1800)
    assert outcome.unanswered == 0
    # Two replicas for four hours, three from the first decision to 120 s after the last.
    assert outcome.replica_hours == pytest.approx(8 + 3 * (last.time + 120 - first.time) / 3600)
    assert outcome.most_paid() == 5
    assert [target for target, _ in itertools.groupby(each.target for each in outcome.moments)] == [2, 5, 2]


def test_from_nothing():
    """A service that was just made: nobody is ready before its start."""
    outcome = play(loads.steady(1), ready=0)
    assert [(each.time, each.up) for each in outcome.decisions] == [(0.0, True), (0.0, True)]
    assert outcome.too_few == outcome.unanswered == 605  # the balancer hears of them 5 seconds later


def test_scale_to_zero():
    zero = spec("examples/scale-to-zero.yaml")
    asleep = capacity.simulate(zero, [], 2 * HOUR, startup=STARTUP, carries=2)
    assert (asleep.decisions, asleep.replica_hours, asleep.share_too_few) == ((), 0, 0)
    # One call: it is lost, and its replica comes all the same, and stays longer than it took to come.
    for second in range(1000, 1060, 7):
        one = capacity.simulate(zero, [float(second)], 2 * HOUR, startup=STARTUP, carries=2)
        assert (one.requests, one.too_few, one.unanswered) == (1, 1, 1)
        up, down = one.decisions
        assert (up.up, down.up) == (True, False)
        assert second <= up.time <= second + 25  # as the example says
        assert down.time > up.time + STARTUP + 1000
        assert one.moments[-1].target == 0
        # A caller who asks again finds it.
        again = [float(second), up.time + STARTUP + 20]
        assert capacity.simulate(zero, again, 2 * HOUR, startup=STARTUP, carries=2).unanswered == 1
    # With a wait that is shorter than the start, nobody who calls once ever gets an answer.
    hasty = spec("examples/scale-to-zero.yaml", downscale_delay_seconds=300)
    calls = [float(second) for second in range(0, 36_000, 900)]
    outcome = capacity.simulate(hasty, calls, 36_000, startup=STARTUP, carries=2)
    assert outcome.unanswered == outcome.requests == 40
    assert outcome.replica_hours > 4
    # A monitor that asks each minute keeps a replica for ever.
    awake = capacity.simulate(zero, [60.0 * n for n in range(600)], 36_000, startup=STARTUP, carries=2)
    assert awake.replica_hours == pytest.approx(10, abs=0.02)


def test_a_target_per_gpu_is_refused():
    service = yaml.safe_load((ROOT / "service.yaml").read_text())["service"]
    service["load_balancing_policy"] = "instance_aware_least_load"
    service["replica_policy"] |= {"min_replicas": 0, "target_qps_per_replica": {"L4": 1, "H100": 4}}
    with pytest.raises(UsageError, match="per GPU"):
        play(loads.steady(1), spec=capacity.spec(service))


def test_what_skypilot_does_not_take():
    with pytest.raises(UsageError, match="max_replicas must be greater"):
        spec(min_replicas=9)


def test_without_skypilot(monkeypatch):
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    with pytest.raises(SkyError, match="not installed"):
        spec()


def test_the_limits_hold():
    flood = play(loads.steady(50), 2 * HOUR)
    assert max(moment.target for moment in flood.moments) == flood.most_paid() == 8
    trickle = play(loads.steady(0.01), 2 * HOUR)
    assert {moment.target for moment in trickle.moments} == {2}
    fixed = play(loads.steady(50), spec=spec(min_replicas=3, max_replicas=3), ready=0)
    assert {moment.target for moment in fixed.moments} == {3}


def test_spot_with_ordinary_replicas_that_stand_in():
    outcome = play(loads.steady(3), 2 * HOUR, spec=spec("spot"), ready=0)
    # One on spot for the whole time, one not, and a stand-in until spot is ready.
    assert outcome.replica_hours == pytest.approx(4 + (STARTUP + 120) / 3600, abs=20 / 3600)
    assert outcome.most_paid() == 3


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.integers(0, 14_400).map(lambda half: half / 2), max_size=300).map(sorted),
    startup=st.sampled_from([30.0, 240.0, 600.0]),
    carries=st.sampled_from([0.05, 0.5, 2.0]),
    minimum=st.integers(0, 3),
    delays=st.sampled_from([(0, 20), (60, 600), (300, 100)]),
    spot=st.booleans(),
)
def test_every_request_and_every_hour_is_counted(times, startup, carries, minimum, delays, spot):
    seconds = 5000.0
    policy = {"min_replicas": minimum, "max_replicas": 4, "target_qps_per_replica": carries}
    policy |= {"upscale_delay_seconds": delays[0], "downscale_delay_seconds": delays[1]}
    policy |= {"dynamic_ondemand_fallback": True} if spot else {}
    outcome = capacity.simulate(spec(**policy), times, seconds, startup=startup, carries=carries)
    assert outcome.requests == sum(each <= seconds for each in times)
    assert 0 <= outcome.unanswered <= outcome.too_few <= outcome.requests
    # What was carried was within what could be.
    ready = [(each.time, each.ready) for each in outcome.moments] + [(seconds, 0)]
    room = sum((b[0] - a[0]) * a[1] * carries for a, b in itertools.pairwise(ready))
    assert outcome.requests - outcome.too_few <= room + max(1, 4 * carries * capacity.BURST) + 1
    # The hours are the area under what is paid; and the moments are in order.
    paid = [(each.time, each.paid) for each in outcome.moments] + [(seconds, 0)]
    area = sum((b[0] - a[0]) * a[1] for a, b in itertools.pairwise(paid)) / 3600
    assert outcome.replica_hours == pytest.approx(area)
    assert [each.time for each in outcome.moments] == sorted({each.time for each in outcome.moments})
    assert all(minimum <= each.target <= 4 for each in outcome.moments)
    assert all(each.ready <= each.paid for each in outcome.moments)
    # Who is launched is sent away once at most.
    ups = [each.replica for each in outcome.decisions if each.up]
    downs = [each.replica for each in outcome.decisions if not each.up]
    assert len(set(ups)) == len(ups)
    assert len(set(downs)) == len(downs)
    assert outcome.moments[-1].paid >= minimum + len(ups) - len(downs)  # and those who leave


def test_what_the_words_of_docs_autoscaling_md_rest_on():
    """Its tables are checked by tools/autoscaling.py --check; this is for the sentences beside them."""

    def delays(up: int, down: int):
        return spec(upscale_delay_seconds=up, downscale_delay_seconds=down)

    minute = loads.burst(1, 9, 60, 1800)
    as_shipped, hasty = (play(minute, 6 * HOUR, spec=delays(up, 1200)) for up in (120, 60))
    assert hasty.too_few == as_shipped.too_few  # not one request more is carried
    assert (as_shipped.replica_hours, hasty.replica_hours) == (
        12,
        pytest.approx(24, abs=0.5),
    )  # twice the bill

    pauses = loads.burst(1, 9, 1800, 2700)
    as_shipped, short = (play(pauses, 6 * HOUR, spec=delays(120, down)) for down in (1200, 600))
    assert short.too_few / as_shipped.too_few == pytest.approx(8, abs=0.5)  # an eighth of the trouble
    assert 1.03 < as_shipped.replica_hours / short.replica_hours < 1.08  # a few percent

    # Half a replica-hour per peak; and three minutes later with SkyServe's own delays.
    step = loads.step(1, 9, 600, 4200)
    as_shipped, short, late = (
        play(step, 9000, spec=delays(*each)) for each in ((120, 1200), (120, 600), (300, 1200))
    )
    assert as_shipped.replica_hours - short.replica_hours == pytest.approx(0.5)
    assert late.decisions[0].time - as_shipped.decisions[0].time == 180
    # Room in each replica is worth one replica that is always there.
    assert play(step, 9000, carries=3).too_few == pytest.approx(
        play(step, 9000, spec=spec(min_replicas=3)).too_few, rel=0.05
    )
    policy = yaml.safe_load((ROOT / "service.yaml").read_text())["service"]["replica_policy"]
    assert (policy["upscale_delay_seconds"], policy["downscale_delay_seconds"]) == (120, 1200)


def test_a_warm_up_is_in_no_number():
    load = loads.arrivals(loads.steady(5), HOUR)
    cold = capacity.simulate(spec(), load, HOUR, startup=STARTUP, carries=2)
    warm = capacity.simulate(spec(), loads.warmed(load, 2400), HOUR, startup=STARTUP, carries=2, warmup=2400)
    assert cold.too_few > 600  # one of five each second, until the third replica is there
    assert (warm.requests, warm.too_few, warm.unanswered) == (cold.requests, 0, 0)
    assert (warm.replica_hours, warm.most_paid()) == (3.0, 3)
    assert [each.up for each in warm.decisions] == [True]
    assert warm.decisions[0].time < 0
    assert any(moment.time == 0 for moment in warm.moments)
    # Nobody is there: who comes before second 0 is not counted, who comes at 0 is.
    early = capacity.simulate(
        spec(min_replicas=0), [-5.0, 0.0, 1.0], 60.0, startup=STARTUP, carries=2, warmup=60.0
    )
    assert (early.requests, early.too_few, early.unanswered, early.share_too_few) == (2, 2, 2, 1.0)
    assert early.replica_hours == pytest.approx(55 / 3600)  # the balancer tells of them at 5


def test_a_load_before_its_beginning():
    assert loads.warmed([0.0, 5.0, 10.0, 12.0], 10) == [-10.0, -5.0, 0.0, 5.0, 10.0, 12.0]
    assert loads.warmed([], 10) == []


@pytest.mark.parametrize(("times", "carries", "share", "replicas"), [
    ([float(second) for second in range(1000)], 0.5, 0, 2),
    ([0.0] * 30, 1, 0, 3),  # ten seconds of work each
    ([0.0] * 30, 1, 1 / 3, 2), ([0.0] * 30, 1, 0.3, 3), ([0.0] * 30, 1, 1, 1),
    ([], 1, 0, 1), ([-1.0] * 100, 1, 0, 1),  # a warm-up
])  # fmt: skip
def test_how_many_are_enough(times, carries, share, replicas):
    found = capacity.enough(times, 10_800, carries, share)
    assert found == replicas

    def too_few(number: int) -> float:
        fixed = spec(min_replicas=number, max_replicas=number, target_qps_per_replica=1)
        return capacity.simulate(fixed, times, 10_800, startup=STARTUP, carries=carries).share_too_few

    if times[:1] != [-1.0]:
        assert too_few(found) <= share
        assert found == 1 or too_few(found - 1) > share


# Policies, compared


def test_what_is_compared():
    own = policies.own(config(target_qps_per_replica=2))
    assert own == policies.Policy(2, 8, 2, 120, 1200)
    terms = dataclasses.replace(TERMS, carries=2)
    made = policies.others(own, terms, (5, 6))
    assert own not in made
    assert len(set(made)) == len(made)
    assert {each.minimum for each in made} == {0, 1, 2, 3, 4, 5, 6}
    assert {each.target for each in made} == {2, 1.5, 1}
    assert {each.maximum for each in made} == {5, 6, 8}
    assert [each.minimum for each in made if each.fixed] == [5, 6]
    assert all(each.down > TERMS.startup for each in made if each.minimum == 0)
    # More than the file allows, where it takes more.
    assert {each.maximum for each in policies.others(own, terms, (9, 10)) if not each.fixed} == {9}
    assert len(policies.others(own, terms, (90, 100))) < 60  # however many replicas


def load_of(arrivals: list[float], seconds: float) -> loads.Load:
    return loads.Load("a load", arrivals, seconds)


@pytest.mark.parametrize(("name", "base"), [
    ("service.yaml", 0), ("examples/scale-to-zero.yaml", 0), ("spot", 0), ("spot", 2),
])  # fmt: skip
def test_nothing_is_proposed_that_is_refused(name, base):
    file = config(name)
    if name == "spot":
        file["service"]["replica_policy"]["base_ondemand_fallback_replicas"] = base
    found = policies.compare(file, load_of(loads.arrivals(loads.steady(0.3), 1800), 1800), TERMS)
    assert len(found) > 6
    for result in found:
        made = policies.applied(file, result.policy)
        replica_policy.check(made, "key")
        capacity.spec(made["service"])
        assert name != "spot" or result.policy.minimum >= base


def test_the_cheapest_is_the_cheapest():
    """Each is simulated once more, and each cost is added up by hand."""
    file, goal = config(), TERMS.goal
    times = [each for each in LOADS["burst"] if each < 5400]
    found = policies.compare(file, load_of(times, 5400), TERMS)
    warm = loads.warmed(times, 2400)
    costs = []
    for result in found:
        made = capacity.spec(policies.applied(file, result.policy)["service"])
        outcome = capacity.simulate(made, warm, 5400, startup=600, carries=CARRIES, warmup=2400)
        assert result.hours == pytest.approx(16 * outcome.replica_hours)  # a day has 16 such loads
        assert result.dollars == pytest.approx(16 * outcome.replica_hours * 2.5)
        assert (result.requests, result.too_few) == (outcome.requests, outcome.too_few)
        assert (result.unanswered, result.at_once) == (outcome.unanswered, outcome.most_paid())
        if outcome.too_few <= goal * outcome.requests:
            costs.append(result.dollars)
    (cheapest,) = (each for each in found if each.cheapest)
    assert cheapest.dollars == min(costs)
    assert cheapest.share_too_few <= goal
    assert [each.hours for each in found] == sorted(each.hours for each in found)
    # Whatever is not shown is beaten by what is.
    shown = policies.shown(found)
    assert cheapest in shown
    assert [each.policy for each in shown if each.own] == [policies.own(file)]
    for each in found:
        assert any(other.hours <= each.hours and other.too_few <= each.too_few for other in shown)


def test_more_than_the_file_allows():
    load = load_of(loads.arrivals(loads.burst(0, 0.9, 1800, 5400), 5400), 5400)
    found = policies.compare(config(max_replicas=4), load, policies.Terms(600, CARRIES, 0.02))
    (own,), (cheapest,) = ([each for each in found if getattr(each, name)] for name in ("own", "cheapest"))
    assert own.policy.maximum == 4
    assert own.share_too_few > 0.02
    assert cheapest.share_too_few <= 0.02
    assert cheapest.policy.maximum == 5  # 0.9 queries per second, 0.2 for each
    assert cheapest.dollars is None
    with pytest.raises(UsageError, match=r"takes 878 replicas that carry 0.001 queries/s"):
        policies.compare(config(), load, policies.Terms(600, 0.001, 0.02))


def test_what_makes_a_policy_of_another():
    own = policies.Policy(2, 8, 2, 120, 1200)
    assert own.changes(own) == ({}, [])
    assert policies.Policy(1, 8, 1.5, 60, 600).changes(own) == (
        {"upscale_delay_seconds": 60, "downscale_delay_seconds": 600},
        ["--replicas", "1..8", "--target-qps", "1.5"],
    )
    assert policies.Policy(2, 8, 2, 120, 600).changes(own) == ({"downscale_delay_seconds": 600}, [])
    assert policies.Policy(4, 4, 1, 120, 1200).changes(own) == ({}, ["--replicas", "4"])
    assert own.replicas == "2..8"


# Loads


@pytest.mark.parametrize(("rate", "requests"), [
    (loads.steady(2.5), 9000), (loads.step(1, 9, 600, 1200), 3000 + 9 * 600),
    (loads.burst(1, 9, 60, 600), 3600 + 6 * 60 * 8), (loads.day_night(1, 9, 3600), 5 * 3600),
    (loads.steady(0), 0), (loads.steady(1 / 7), 514),
])  # fmt: skip
def test_as_many_arrive_as_the_rate_says(rate, requests):
    times = loads.arrivals(rate, HOUR)
    assert len(times) == pytest.approx(requests, abs=1)
    assert times == sorted(times)
    assert all(0 <= each < HOUR for each in times)
    at_random = loads.arrivals(rate, HOUR, seed=3)
    assert len(at_random) == pytest.approx(requests, abs=4 * math.sqrt(requests + 1))
    assert at_random == loads.arrivals(rate, HOUR, seed=3)  # a seed is a load
    assert requests == 0 or at_random != loads.arrivals(rate, HOUR, seed=4)


def test_evenly_spaced():
    assert loads.arrivals(loads.steady(2), 2) == [0.25, 0.75, 1.25, 1.75]
    assert loads.arrivals(loads.steady(0.5), 4) == [1.0, 3.0]
    with pytest.raises(ValueError, match="0 or more"):
        loads.arrivals(loads.steady(-1), 1)


def test_where_the_patterns_are_high():
    assert [loads.step(1, 9, 10, 20)(t) for t in (9, 10, 19, 20)] == [1, 9, 9, 1]
    assert [loads.burst(1, 9, 10, 60)(t) for t in (0, 49, 50, 59, 60, 110)] == [1, 1, 9, 9, 1, 9]
    wave = loads.day_night(1, 9)
    assert (wave(0), wave(43_200), wave(86_400)) == pytest.approx((1, 9, 1))
    assert wave(21_600) == pytest.approx(5)


@pytest.mark.parametrize("lines", [
    ["1700000000", "1700000002.5", "1700000001"],
    ["time,status", "1700000000,200", "1700000002.5,200", "1700000001,503", ""],
    ["\ufefftime", "2023-11-14T22:13:20Z", "2023-11-14T22:13:22.500000+00:00", "2023-11-14 22:13:21"],
    ["2023-11-14T23:13:20+01:00", "2023-11-14T22:13:21+00:00", "2023-11-14T22:13:22.500+00:00"],
])  # fmt: skip
def test_a_csv_of_times(tmp_path, lines):
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert loads.read_csv(path) == [0.0, 1.0, 2.5]


@pytest.mark.parametrize(("content", "says"), [
    (b"", "has no times"), (b"time\n\n", "has no times"), (b"1\n2\nsoon\n", "line 3: 'soon' is no time"),
    (b"1\nnan\n", "'nan' is no time"), (b"1\ninf\n", "'inf' is no time"), (b"\xff\xfe\x00\n1\n", "is no CSV file"),
])  # fmt: skip
def test_a_csv_that_is_none(tmp_path, content, says):
    path = tmp_path / "requests.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        loads.read_csv(path)
    with pytest.raises(UsageError, match="cannot be read"):
        loads.read_csv(tmp_path / "none.csv")


def test_a_trace_from_a_file_is_played(tmp_path):
    path = tmp_path / "requests.csv"
    chance = random.Random(1)
    path.write_text("\n".join(str(1_700_000_000 + chance.random() * 3600) for _ in range(5000)))
    times = loads.read_csv(path)
    outcome = capacity.simulate(spec(), times, HOUR, startup=STARTUP, carries=2)
    assert outcome.requests == 5000
