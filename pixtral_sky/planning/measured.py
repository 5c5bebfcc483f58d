"""Reads results of `vllm bench serve`, which replace an estimate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_sky.errors import UsageError
from pixtral_sky.memory import PRECISIONS, Workload
from pixtral_sky.planning.plan import gpus
from pixtral_sky.planning.speed import Range
from pixtral_sky.text import os_reason

Rates = dict[tuple[str, str], Range]  # requests a second by GPUs (L4:2) and precision


@dataclass(frozen=True)
class Measurement:
    gpus: str  # L4:2
    precision: str | None  # None: the file does not say
    rate: float  # requests a second
    answer: float | None  # tokens of an answer, on average


def read(files: Sequence[Path], workload: Workload) -> tuple[Rates, list[str]]:
    """The rates in files, a range where several measured the same; and warnings. Raises UsageError."""
    found: Rates = {}
    warnings = []
    for file in files:
        try:
            text = file.read_text()
        except (OSError, ValueError) as error:  # ValueError: not UTF-8
            raise UsageError(f"{file} cannot be read: {os_reason(error, 'it is no text')}.") from error
        one = measurement(text, str(file), workload.images)
        if one.answer is not None and abs(one.answer - workload.answer) > workload.answer / 10:
            warnings.append(
                f"{file} was measured with answers of {one.answer:.0f} tokens, and this plan has "
                f"{workload.answer}: --answer-tokens {one.answer:.0f}"
            )
        if one.precision is None:
            warnings.append(
                f"{file} does not say its precision, and counts as bf16: --metadata precision=bf16"
            )
        key = (one.gpus, one.precision or "bf16")
        before = found.get(key, Range(one.rate, one.rate))
        found[key] = Range(min(before.low, one.rate), max(before.high, one.rate))
    return found, warnings


def measurement(text: str, name: str, images: int) -> Measurement:
    """The measurement in the file ``name``, for requests with this number of ``images``.

    The keys are those of ``vllm bench serve --save-result`` (vLLM 0.32, ``vllm/benchmarks/serve.py``).
    Raises UsageError with what to add to its command.
    """
    again = f"Run vllm bench serve with: --save-result --metadata gpus=L4:2 images={images} precision=bf16"
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{name} is not one JSON object.", again)
    rate = found.get("request_throughput")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
        raise UsageError(f"{name} has no request_throughput above 0: it measured nothing.", again)
    if "gpus" not in found:
        raise UsageError(f"{name} does not say on which GPUs it was measured.", again)
    named = str(found["gpus"])
    ((gpu, count), *more) = gpus(named)
    if more:
        raise UsageError(f"{name} was measured on {named}, without their number.", again)
    if "images" not in found:  # it writes nothing of its data set
        raise UsageError(f"{name} does not say how many pictures a request had.", again)
    if str(found["images"]).strip() != str(images):
        raise UsageError(
            f"{name} was measured with {found['images']} to a request, and this plan has {images} pictures.",
            f"Give --images {found['images']}, or another measurement.",
        )
    if (sent := found.get("request_rate", "inf")) != "inf":
        raise UsageError(
            f"{name} sent {sent} requests a second: whether more could be answered is not known.",
            "Run vllm bench serve with: --request-rate inf",
        )
    precision = found.get("precision")
    if precision not in (None, *PRECISIONS):
        raise UsageError(f"{name} was measured in {precision!r}, which is neither bf16 nor fp8.", again)
    done, tokens = found.get("completed"), found.get("total_output_tokens")
    return Measurement(f"{gpu}:{count}", precision, float(rate), tokens / done if done and tokens else None)
