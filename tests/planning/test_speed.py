"""The estimate of speed: figures by hand, what makes it faster or slower, and its bounds."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest

from pixtral_sky import memory
from pixtral_sky.memory import GPUS, Workload
from pixtral_sky.pixtral import DECODER, MAX_IMAGE_TOKENS, OUTPUT, PARAMETERS
from pixtral_sky.planning import speed
from pixtral_sky.planning.speed import DECODE, PREFILL, STEP_SECONDS, Range, Speed

FULL = Workload(images=1, width=1024, height=1024, text=75, answer=300)


def estimated(gpu: str, count: int = 1, workload: Workload = FULL, precision: str = "bf16") -> Speed:
    return speed.speed(memory.fits(gpu, count, workload=workload, precision=precision), workload)


def test_the_weights_are_all_of_them():
    norms = 81 * 5120 + 49 * 1024
    looked_up, biases = 131_072 * 5120, 2 * 5120
    counted = DECODER + OUTPUT + speed.VISION
    assert counted + looked_up + biases + norms == PARAMETERS
    assert DECODER == 10_905_190_400
    assert speed.step_bytes("bf16") == 23_152_558_080
    assert speed.step_bytes("fp8") == 23_152_558_080 - 10_905_190_400


def test_operations_by_hand():
    # 4,096 patches: 2 x 434,896,896 each, and 24 layers x 4 x 1,024 for each pair.
    assert speed.picture_operations(1024, 1024) == pytest.approx(3.563e12 + 1.649e12, rel=1e-3)
    # As many patches as it is shrunk to, however large it is.
    assert speed.picture_operations(4096, 4096) == speed.picture_operations(1024, 1024)
    # 4,160 tokens: 2 x 10.9e9 each, and 40 layers x 2 x 4,096 for each pair.
    assert speed.prompt_operations(MAX_IMAGE_TOKENS) == pytest.approx(90.73e12 + 5.67e12, rel=1e-3)


def test_one_h100_by_hand():
    estimate = estimated("H100")
    # 4,235 tokens: 98.25e12 operations, and 5.21e12 for the picture, at 35 to 75% of 989e12 a second.
    assert FULL.prompt == 4_160 + 75
    assert estimate.first_token.low == pytest.approx(103.4e12 / (0.75 * 989e12) + 0.001, rel=2e-3)
    assert estimate.first_token.high == pytest.approx(103.4e12 / (0.35 * 989e12) + 0.005, rel=2e-3)
    # A token reads 23.15 GB of weights and 4,385 x 163,840 bytes of cache, at 50 to 92% of 3,350 GB/s.
    step = 23.153e9 + 4_385 * 163_840
    assert estimate.alone.low == pytest.approx(1 / (step / (0.5 * 3350e9) + 0.005), rel=1e-3)
    assert estimate.alone.high == pytest.approx(1 / (step / (0.92 * 3350e9) + 0.001), rel=1e-3)


def test_one_h100_in_fp8_by_hand():
    estimate = estimated("H100", precision="fp8")
    # At best the 92.36e12 operations of the decoder's weights take half as long; at worst no less.
    assert pytest.approx(92.36e12, rel=1e-3) == 4_235 * 2 * DECODER
    best = (103.4e12 - 92.36e12 / 2) / (0.75 * 989e12)
    assert estimate.first_token.low == pytest.approx(best + 0.001, rel=2e-3)
    assert estimate.first_token.high == estimated("H100").first_token.high
    step = 12.247e9 + 4_385 * 163_840
    assert estimate.alone.low == pytest.approx(1 / (step / (0.5 * 3350e9) + 0.005), rel=1e-3)


@pytest.mark.parametrize("gpu", ["A10G", "A100", "A100-80GB"])
def test_without_fp8_units_only_reading_is_faster(gpu):
    count = 2 if gpu == "A10G" else 1
    bf16, fp8 = (estimated(gpu, count, precision=each) for each in memory.PRECISIONS)
    assert fp8.first_token == bf16.first_token
    assert fp8.alone.low > 1.5 * bf16.alone.low
    assert fp8.requests.low > bf16.requests.low


def test_what_was_measured_of_another_model_is_within_the_method():
    """29.8 tokens/s of 9.25 GB on an L4, by vLLM 0.29: the time of a step is that of reading, and a little."""
    seconds = [9.25e9 / (GPUS["L4"].bandwidth * 1e9 * DECODE[best]) + STEP_SECONDS[best] for best in (1, 0)]
    assert 0.95 / seconds[0] < 29.8 < 1.05 / seconds[0]
    assert 1 / seconds[1] < 29.8


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_low_is_below_high_and_neither_is_above_the_data_sheet(gpu, count):
    if not memory.fits(gpu, count).fits:
        return
    estimate = estimated(gpu, count)
    for name in (field.name for field in fields(Speed)):
        value: Range = getattr(estimate, name)
        assert 0 < value.low < value.high, name
        assert value.high < 10 * value.low, name  # wider, it would say nothing
    # Nobody computes or reads faster than the data sheet.
    ideal = speed.prompt_operations(FULL.prompt) / (GPUS[gpu].tflops * 1e12 * count)
    assert estimate.first_token.low > ideal / max(PREFILL)
    assert estimate.alone.high < GPUS[gpu].bandwidth * 1e9 * count / speed.step_bytes("bf16")
    assert estimate.alone.high < 1 / min(STEP_SECONDS)
    assert estimate.requests.high < 1 / ideal


def test_more_gpus_are_faster_at_best():
    for gpu in GPUS:
        counts = [count for count in (1, 2, 4, 8) if memory.fits(gpu, count).fits]
        best = [estimated(gpu, count) for count in counts]
        for fewer, more in pairwise(best):
            assert more.requests.high > fewer.requests.high
            assert more.first_token.low < fewer.first_token.low


def test_without_nvlink_two_may_be_as_slow_as_one():
    one, two = (estimated("L40S", count) for count in (1, 2))
    assert two.first_token.high == one.first_token.high
    assert two.alone.low == one.alone.low
    assert two.alone.high > 1.5 * one.alone.high
    assert estimated("H100", 2).first_token.high < 0.6 * estimated("H100").first_token.high


@pytest.mark.parametrize(
    ("more", "slower"),
    [
        ({"images": 2}, ("first_token", "alone", "requests")),
        ({"width": 2048, "height": 1024}, ()),  # it is shrunk to 1024 x 512: less
        ({"text": 750}, ("first_token", "alone", "requests")),
        ({"answer": 600}, ("alone", "requests")),
    ],
)
def test_more_to_do_takes_longer(more, slower):
    for gpu, count in (("L4", 2), ("A100", 1), ("B200", 8)):
        before, after = estimated(gpu, count), estimated(gpu, count, replace(FULL, **more))
        for name in slower:
            for end in ("low", "high"):
                change = getattr(getattr(after, name), end) - getattr(getattr(before, name), end)
                assert change > 0 if name == "first_token" else change < 0, (gpu, name, end)
        if not slower:
            assert after.first_token.high < before.first_token.high


def test_words_alone():
    words = Workload(images=0, text=150, answer=150)
    estimate = estimated("L4", 2, words)
    assert estimate.first_token.low < 0.1 * estimated("L4", 2).first_token.low
    assert estimate.requests.low > estimated("L4", 2).requests.low


def test_what_does_not_fit_has_no_speed():
    with pytest.raises(ValueError, match=r"L4:1 has 20\.2 GiB"):
        estimated("L4")
    with pytest.raises(ValueError, match="a request has 41,975 tokens, more than the context"):
        estimated("L4", 2, Workload(images=10))
