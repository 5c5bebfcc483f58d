"""A plan: cost, time and replicas by hand, what decides the order, and what a measurement must say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pixtral_sky.deploy.prices import Offer
from pixtral_sky.errors import UsageError
from pixtral_sky.memory import GPUS, PRECISIONS, Fit, Workload, fits
from pixtral_sky.planning import measured, plan, report, service_file, speed
from pixtral_sky.planning.plan import Ask, Machine, Option
from pixtral_sky.planning.speed import Range

WORKLOAD = Workload(images=2, width=1920, height=1080, text=200, answer=300)
ASK = Ask(WORKLOAD, context=None, max_images=4)


def machine(gpu: str, count: int, low: float, high: float, precision: str = "bf16") -> Machine:
    return Machine(Fit(gpu, count, precision, "", 60_000, 80_000, 59_984, 10), Range(low, high), False)


def offer(
    gpu: str,
    count: int,
    hourly: float,
    spot: float | None = None,
    cloud="aws",
    region="r1",
    disk: float | None = None,
) -> Offer:
    return Offer(gpu, count, cloud, region, "m", hourly, spot, disk)


def options(*pairs: tuple[Machine, Offer], ask: Ask = ASK, spot: bool = False) -> list[Option]:
    return plan.options(ask, [each for each, _ in pairs], [each for _, each in pairs], spot)


def one(ask: Ask, spot: bool = False) -> Option:
    """The option of a machine for $2 an hour ($0.50 on spot) that answers 0.5 to 2 requests a second."""
    (found,) = options((machine("L4", 2, 0.5, 2), offer("L4", 2, 2.0, 0.5)), ask=ask, spot=spot)
    return found


def ends(value: Range) -> tuple[float, float]:
    return value.low, value.high


# By hand


def test_a_thousand_pictures_on_a_busy_machine():
    # 0.5 requests/s of 2 pictures are 3,600 pictures an hour, for $2; at best 14,400.
    found = one(ASK)
    assert ends(found.cost) == pytest.approx((2 / 14.4, 2 / 3.6))
    assert (found.replicas, ends(found.seconds)) == ((0, 0), (0, 0))
    assert ends(one(ASK, spot=True).cost) == pytest.approx((0.5 / 14.4, 0.5 / 3.6))


def test_a_disk_is_in_the_cost():
    # $2 an hour, and half a dollar more for the disk, on spot as well.
    pair = (machine("L4", 2, 0.5, 2), offer("L4", 2, 2.0, 0.5, disk=0.5))
    for spot, hourly in ((False, 2.0), (True, 0.5)):
        (found,) = options(pair, spot=spot)
        assert (found.hourly, found.whole) == (hourly, hourly + 0.5)
        assert ends(found.cost) == pytest.approx(((hourly + 0.5) / 14.4, (hourly + 0.5) / 3.6))
    (busy,) = options(pair, ask=replace(ASK, qps=5))
    assert ends(busy.cost) == pytest.approx((3 * 2.5 / 36, 10 * 2.5 / 36))


def test_the_time_for_all():
    # 7,200 pictures at 3,600 to 14,400 an hour
    found = one(replace(ASK, total=7_200))
    assert ends(found.seconds) == pytest.approx((1_800, 7_200))
    assert ends(found.cost) == ends(one(ASK).cost)


def test_replicas_and_their_cost():
    # 5 requests/s: 10 replicas at 0.5 each, 3 at 2. They see 36,000 pictures an hour, busy or not.
    found = one(replace(ASK, qps=5))
    assert found.replicas == (3, 10)
    assert ends(found.cost) == pytest.approx((3 * 2 / 36, 10 * 2 / 36))
    # A single one costs the same however little comes: 0.1 requests/s are 720 pictures an hour.
    alone = one(replace(ASK, qps=0.1))
    assert alone.replicas == (1, 1)
    assert ends(alone.cost) == pytest.approx((2 / 0.72, 2 / 0.72))


def test_a_service_has_its_least_replicas_and_one_that_is_not_on_spot():
    # One carries 0.5 requests/s, 3,600 pictures an hour; two run, for $4.
    ask = plan.asked(WORKLOAD, None, 4, qps=0.5, least=2)
    found = one(ask)
    assert (found.replicas, ends(found.together)) == ((2, 2), (4, 4))
    assert ends(found.cost) == pytest.approx((4 / 3.6, 4 / 3.6))
    # Of 3 to 10 on spot, for $0.50 each, one is on demand, for $2; each has its disk, for $0.25.
    pair = (machine("L4", 2, 0.5, 2), offer("L4", 2, 2.0, 0.5, disk=0.25))
    (found,) = options(pair, ask=replace(ask, qps=5), spot=True)
    assert ends(found.together) == pytest.approx((2 * 0.75 + 2.25, 9 * 0.75 + 2.25))
    assert ends(found.cost) == pytest.approx((3.75 / 36, 9 / 36))


@pytest.mark.parametrize(
    ("rate", "target"),
    [
        (0.5, 0.5),
        (0.3349, 0.334),
        (1.6799, 1.67),
        (12.999, 12.9),
        (3.0, 3.0),
        (0.0123456, 0.0123),
        (123.9, 123),
    ],
)
def test_a_target_is_never_above_the_rate(rate, target):
    assert plan.target(rate) == target


@pytest.mark.parametrize(
    ("qps", "rate", "count"), [(5, 0.5, 10), (5, 0.4999, 11), (0.3, 0.1, 3), (1e-3, 9, 1)]
)
def test_replicas_are_counted_as_the_autoscaler_does(qps, rate, count):
    assert plan.replicas(qps, rate) == count


@pytest.mark.parametrize(
    ("value", "shown"), [(44.0, "44.00"), (0.556, "0.56"), (0.0899, "0.090"), (0.00123, "0.0012")]
)
def test_money(value, shown):
    assert plan.usd(value) == shown


# What decides


@pytest.mark.parametrize(
    ("value", "shown"), [(9.96, "10"), (9.94, "9.9"), (0.999, "1.0"), (0.996, "1.0"), (1_234.5, "1,234")]
)
def test_a_rate(value, shown):
    assert report.a_rate(value) == shown


def test_the_slow_end_decides_the_order():
    # At best the first is far cheaper; at worst the second is.
    found = options(
        (machine("L4", 2, 0.1, 10), offer("L4", 2, 1.0)), (machine("H100", 1, 1, 1.1), offer("H100", 1, 3.0))
    )
    assert [each.machine.gpus for each in found] == ["H100:1", "L4:2"]
    assert found[1].cost.low < found[0].cost.low


def test_without_prices_the_slow_end_of_the_speed_decides():
    names = [("L4", 4, 0.5, 9), ("L4", 1, 1, 2), ("H100", 1, 3, 4), ("L40S", 2, 1, 5)]
    found = plan.plan(ASK, [machine(*each) for each in names], [], None, spot=False)
    assert [each.gpus for each in found.machines] == ["H100:1", "L4:1", "L40S:2", "L4:4"]


def test_whole_replicas_decide_the_order():
    # Busy, the large one is cheaper; for one request a second it is not.
    pairs = (
        (machine("L4", 2, 0.5, 1), offer("L4", 2, 2.0)),
        (machine("B200", 8, 50, 90), offer("B200", 8, 44.0)),
    )
    assert [each.machine.gpus for each in options(*pairs)] == ["B200:8", "L4:2"]
    assert [each.machine.gpus for each in options(*pairs, ask=replace(ASK, qps=1))] == ["L4:2", "B200:8"]


def test_the_cheapest_region_of_each_cloud():
    l4 = machine("L4", 2, 0.5, 1)
    offers = [
        offer("L4", 2, 2.0, 1.0, region="b"),
        offer("L4", 2, 2.0, 0.9, region="a"),
        offer("L4", 2, 2.5, 0.3, region="c"),
        offer("L4", 2, 1.9, None, "gcp"),
        offer("L4", 4, 0.1, 0.1),  # that machine is not asked for
    ]
    chosen = [(each.offer.cloud, each.offer.region) for each in plan.options(ASK, [l4], offers, spot=False)]
    assert chosen == [("gcp", "r1"), ("aws", "a")]
    assert plan.options(ASK, [l4], offers[::-1], spot=False) == plan.options(ASK, [l4], offers, spot=False)
    (spot,) = plan.options(ASK, [l4], offers, spot=True)
    assert (spot.offer.region, spot.hourly) == ("c", 0.3)


def test_each_precision_of_a_machine_is_an_option():
    both = [machine("L4", 2, 0.5, 1), machine("L4", 2, 0.8, 2, "fp8")]
    found = plan.options(ASK, both, [offer("L4", 2, 2.0), offer("L4", 2, 1.0, cloud="gcp")], spot=False)
    assert [(each.offer.cloud, each.machine.precision) for each in found] == [
        ("gcp", "fp8"),
        ("gcp", "bf16"),
        ("aws", "fp8"),
        ("aws", "bf16"),
    ]


def test_what_may_stand_in():
    found = options(
        (machine("A100", 1, 0.9, 2), offer("A100", 1, 2.0)),
        (machine("A100", 1, 0.9, 2), offer("A100", 1, 2.2, cloud="gcp")),  # the same, elsewhere
        (machine("L4", 2, 0.5, 3), offer("L4", 2, 1.5)),  # slower: the target would be too much for it
        (machine("H100", 1, 1, 3), offer("H100", 1, 4.0)),
        (machine("B200", 8, 50, 90), offer("B200", 8, 200.0)),  # a bill that nobody has planned
        (machine("H200", 1, 1, 4, "fp8"), offer("H200", 1, 4.1)),  # all replicas have one precision
    )
    assert service_file.accelerators(found) == ["A100:1", "H100:1"]


# What holds it


def test_every_gpu_fits_or_says_why():
    found, unfit = plan.machines(ASK, plan.gpus(None), {})
    every = {(f"{gpu}:{n}", each) for gpu in GPUS for n in (1, 2, 4, 8) for each in PRECISIONS}
    assert {(each.gpus, each.precision) for each in found + unfit} == every
    assert len(found + unfit) == len(every)
    assert [(each.gpus, each.precision) for each in unfit] == [
        *(("L4:1", "bf16"), ("A10G:1", "bf16"), ("RTX4090:1", "bf16"))
    ]
    for each in found:
        assert each.fit == fits(each.fit.gpu, each.fit.count, None, 4, WORKLOAD, each.precision)
        assert each.rate == speed.speed(each.fit, WORKLOAD).requests
        assert not each.measured


def test_what_was_measured_replaces_the_estimate():
    measured = {("L4:2", "fp8"): Range(0.7, 0.7)}
    found, _ = plan.machines(ASK, [("L4", 2)], measured)
    assert [(each.precision, each.measured, each.rate == Range(0.7, 0.7)) for each in found] == [
        ("bf16", False, False),
        ("fp8", True, True),
    ]


@pytest.mark.parametrize("context", [None, -1])
def test_a_context_of_what_fits_may_be_too_little(context):
    large = Ask(Workload(images=1, text=20_000), context, max_images=1)
    found, unfit = plan.machines(large, [("RTX5090", 1), ("H100", 1)], {}, ("bf16",))
    assert [each.gpus for each in found] == ["H100:1"]
    assert [each.gpus for each in unfit] == ["RTX5090:1"]
    assert unfit[0].why.endswith(" tokens, and a request is more.")


@pytest.mark.parametrize(
    ("images", "context", "needs"),
    [
        (2, 32_768, 4),
        (4, 32_768, 4),
        (5, 32_768, 5),
        (1, 8_192, 1),
        (2, -1, 4),
        (2, 16_640, 2),
        (2, 16_641, 4),
        (2, None, 4),
        (8, None, 8),
    ],
)
def test_how_many_pictures_the_server_is_for(images, context, needs):
    """As many as the file says (4), where its context holds them; else as many as are asked for."""
    workload = replace(WORKLOAD, images=images)
    assert plan.asked(workload, context, max_images=4) == Ask(workload, context, needs)


@pytest.mark.parametrize(("workload", "more", "says"), [
    ({}, {"qps": 1, "total": 1}, "--qps is a stream of requests, --total a pile of pictures. Give one of the two."),
    ({}, {"qps": 0}, "--qps is a number of requests a second, 0.001 to 10,000, not 0."),
    ({}, {"qps": float("nan")}, "--qps is a number of requests a second, 0.001 to 10,000, not nan."),
    ({}, {"qps": float("inf")}, "--qps is a number of requests a second, 0.001 to 10,000, not inf."),
    ({}, {"total": 0}, "--total is a number of pictures, 1 to 1,000,000,000,000, not 0."),
    ({"images": 0}, {}, "--images is a whole number from 1 on, not 0."),
    ({"text": -1}, {}, "--prompt-tokens is a whole number from 0 on, not -1."),
    ({"answer": 0}, {}, "--answer-tokens is a whole number from 1 on, not 0."),
    ({}, {"context": 0}, "--context is a number of tokens from 1 to 128,000, or -1 for all, not 0."),
    ({}, {"context": 128_001}, "--context is a number of tokens from 1 to 128,000, or -1 for all, not 128001."),
    ({"images": 8}, {}, "8 pictures can be 33,280 tokens, and the context is 32,768. For example: --context 33780"),
    ({"images": 31}, {"context": -1}, "31 pictures can be 128,960 tokens, and the context is 128,000. Less of it: --images"),
    ({"text": 10**7}, {}, "A request is 10,004,680 tokens with an answer of 300, and the context is 32,768. Less of it: --prompt-tokens"),
    ({"answer": 10**7}, {"context": -1}, "A request is 4,880 tokens with an answer of 10,000,000, and the context is 128,000. Less of it: --answer-tokens"),
    ({"text": 30_000}, {}, "A request is 34,680 tokens with an answer of 300, and the context is 32,768. For example: --context 46940"),
])  # fmt: skip
def test_what_cannot_be_asked(workload, more, says):
    with pytest.raises(UsageError) as error:
        plan.asked(replace(WORKLOAD, **workload), **{"context": 32_768, "max_images": 4, **more})
    assert str(error.value) == says


def test_the_context_that_is_named_is_enough():
    for images in (5, 8, 30):
        workload = replace(WORKLOAD, images=images)
        with pytest.raises(UsageError) as error:
            plan.asked(workload, 8_192, 4)
        assert plan.asked(workload, int(error.value.hint.rpartition(" ")[2]), 4)


# Words


def test_a_size():
    assert plan.size("1920x1080") == (1920, 1080)
    assert plan.size(" 16X16 ") == (16, 16)
    for word in ("12", "0x10", "12x", "1920*1080", "-1x5", "1e3x5", "1920x1080x3", ""):
        with pytest.raises(UsageError, match=r"is no size of a picture, in pixels. For example: --size"):
            plan.size(word)


def test_gpus():
    assert plan.gpus("L4, h100:1,A100-80gb:2,L4:2") == [
        *(("L4", count) for count in (1, 2, 4, 8)),
        ("H100", 1),
        ("A100-80GB", 2),
    ]
    for word, says in (
        ("T4", "The GPU 'T4' is not known here. These are: L4, A10G, "),
        ("H10:1", "The GPU 'H10' is not known here. Did you mean H100? These are: L4, "),
        ("", "--gpus is empty. Leave it out to take all that are known here."),
        ("L4,", "The GPU '' is not known here."),
        ("L4:3", "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
        ("L4:", "Pixtral splits over 1, 2, 4 or 8 GPUs, not none."),
    ):
        with pytest.raises(UsageError) as error:
            plan.gpus(word)
        assert str(error.value).startswith(says)


# As ``vllm bench serve --save-result`` writes it, vLLM 0.32, without what does not matter here.
RESULT = {
    "date": "20251122-153000",
    "backend": "openai-chat",
    "label": None,
    "model_id": "pixtral",
    "num_prompts": 200,
    "gpus": "L4:2",
    "images": "2",
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 400.0,
    "completed": 200,
    "failed": 0,
    "total_output_tokens": 60_000,
    "request_throughput": 0.5,
    "output_throughput": 150.0,
}
FEW = "At most 1% may. Why they fail: vllm bench serve ... --save-detailed"
AGAIN = "Run vllm bench serve with: --save-result --metadata gpus=L4:2 images=2 precision=bf16"


def test_a_measurement():
    assert measured.measurement(json.dumps(RESULT), "b.json", 2) == measured.Measurement(
        "L4:2", None, 0.5, 300, failed=0, requests=200
    )
    more = {"precision": "fp8", "failed": 2, "completed": 198, "max_concurrency": 16}
    more |= {"model_id": "mistralai/Pixtral-12B-2409"}
    assert measured.measurement(json.dumps(RESULT | more), "b.json", 2) == measured.Measurement(
        "L4:2", "fp8", 0.5, 60_000 / 198, failed=2, requests=200, at_once=16
    )
    two = json.dumps({**RESULT, "replicas": 2, "rehearsal": False, "max_concurrency": 16, "knee": 16})
    assert measured.measurement(two, "b.json", 2) == measured.Measurement(
        "L4:2", None, 0.25, 300, failed=0, requests=200
    )


@pytest.mark.parametrize(("change", "says"), [
    ({"gpus": None}, f"b.json does not say on which GPUs it was measured. {AGAIN}"),
    ({"gpus": "L4"}, f"b.json was measured on L4, without their number. {AGAIN}"),
    ({"gpus": "T4:1"}, f"The GPU 'T4' is not known here. These are: {', '.join(GPUS)}"),
    ({"precision": "int4"}, f"b.json was measured in 'int4', which is neither bf16 nor fp8. {AGAIN}"),
    ({"images": None}, f"b.json does not say how many pictures a request had. {AGAIN}"),
    ({"images": "1"}, "b.json was measured with 1 to a request, and this plan has 2 pictures. Give --images 1, or another measurement."),
    ({"rehearsal": True}, "b.json was measured on a rehearsal: a tiny model with random weights, on a CPU. Measure on GPUs: pixtral-sky bench --gpus L4:2"),
    ({"client_limited": True}, "b.json was measured where bench itself was the limit, and not the server. Run bench with fewer requests at once, or on a faster machine."),
    ({"replicas": 0}, f"b.json was measured on 0 replicas. {AGAIN}"),
    ({"request_rate": 2.0}, "b.json sent 2.0 requests a second: whether more could be answered is not known. Run vllm bench serve with: --request-rate inf"),
    ({"ramp_up_strategy": "linear"}, "b.json sent a rising number of requests a second: whether more could be answered is not known. Run vllm bench serve with: --request-rate inf"),
    ({"model_id": "llama"}, f"b.json was measured on the model 'llama', not on Pixtral 12B. {AGAIN}"),
    ({"model_id": "mistralai/Pixtral-Large-Instruct-2411"}, f"b.json was measured on the model 'mistralai/Pixtral-Large-Instruct-2411', not on Pixtral 12B. {AGAIN}"),
    ({"completed": 100, "failed": 100}, f"b.json: 100 of 200 requests failed, so it measured another load. {FEW}"),
    ({"completed": 197, "failed": 3}, f"b.json: 3 of 200 requests failed, so it measured another load. {FEW}"),
    ({"completed": 100, "failed": None}, f"b.json: 100 of 200 requests failed, so it measured another load. {FEW}"),
    ({"completed": 0, "failed": 200}, f"b.json has no completed above 0: it measured nothing. {AGAIN}"),
    ({"duration": None}, f"b.json has no duration above 0: it measured nothing. {AGAIN}"),
    ({"duration": float("inf")}, f"b.json has no duration above 0: it measured nothing. {AGAIN}"),
    ({"request_throughput": None}, f"b.json has no request_throughput above 0: it measured nothing. {AGAIN}"),
    ({"request_throughput": 0.0}, f"b.json has no request_throughput above 0: it measured nothing. {AGAIN}"),
    ({"request_throughput": "0.5"}, f"b.json has no request_throughput above 0: it measured nothing. {AGAIN}"),
])  # fmt: skip
def test_a_measurement_that_lacks_something(change, says):
    text = json.dumps({key: value for key, value in {**RESULT, **change}.items() if value is not None})
    with pytest.raises(UsageError) as error:
        measured.measurement(text, "b.json", 2)
    assert str(error.value) == says


@pytest.mark.parametrize("text", ["", "[]", "3", "{", f"{json.dumps(RESULT)}\n{json.dumps(RESULT)}"])
def test_what_is_no_measurement(text):
    with pytest.raises(UsageError) as error:
        measured.measurement(text, "b.json", 2)
    assert str(error.value) == f"b.json is not one JSON object. {AGAIN}"
