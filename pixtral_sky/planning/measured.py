"""Reads results of `pixtral-sky bench` and `vllm bench serve`, which replace an estimate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_sky.errors import UsageError
from pixtral_sky.memory import PRECISIONS, Workload
from pixtral_sky.pixtral import SERVED_NAME
from pixtral_sky.planning.plan import gpus
from pixtral_sky.planning.speed import Range
from pixtral_sky.text import os_reason, shown

Rates = dict[tuple[str, str], Range]  # requests a second by GPUs (L4:2) and precision


TOLERATED = 0.01  # of all requests: a few time out in a long run, and then the rate is hardly another


@dataclass(frozen=True)
class Measurement:
    gpus: str  # L4:2
    precision: str | None  # None: the file does not say
    rate: float  # requests a second
    answer: float | None  # tokens of an answer, on average
    failed: int = 0  # of `requests`
    requests: int = 0
    at_once: int | None = None  # requests, at most; None: as many as come, or as many as are of use


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
        if one.failed:
            warnings.append(f"{file}: {one.failed:,} of {one.requests:,} requests failed.")
        if one.at_once is not None:
            warnings.append(
                f"{file} was measured with {one.at_once:,} requests at once: more may be answered faster"
            )
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

    The keys are those of ``vllm bench serve --save-result`` (vLLM 0.32, ``vllm/benchmarks/serve.py``), and
    `bench` has some more.
    Raises UsageError with what to add to its command.
    """
    again = f"Run vllm bench serve with: --save-result --metadata gpus=L4:2 images={images} precision=bf16"
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{name} is not one JSON object.", again)
    _check_source(found, name)
    rate, done, failed = _results(found, name, again)
    named = _setting(found, name, images, again)
    tokens, at_once = found.get("total_output_tokens"), found.get("max_concurrency")
    replicas = found.get("replicas", 1)
    if not isinstance(replicas, int) or replicas < 1:
        raise UsageError(f"{name} was measured on {shown(str(replicas))} replicas.", again)
    return Measurement(
        named,
        found.get("precision"),
        rate / replicas,
        tokens / done if _number(tokens) and tokens else None,
        failed,
        done + failed,
        at_once if isinstance(at_once, int) and not found.get("knee") else None,
    )


def _results(found: Mapping[str, Any], name: str, again: str) -> tuple[float, int, int]:
    """Requests a second; requests that were answered, and that failed."""
    for key in ("request_throughput", "duration", "completed"):
        if not _number(found.get(key)) or found[key] <= 0:
            raise UsageError(f"{name} has no {key} above 0: it measured nothing.", again)
    done = found["completed"]
    failed: Any = found.get("failed")
    if not _number(failed):  # older versions do not write it
        failed = max(found["num_prompts"] - done, 0) if _number(found.get("num_prompts")) else 0
    if failed > TOLERATED * (done + failed):
        raise UsageError(
            f"{name}: {failed:,} of {done + failed:,} requests failed, so it measured another load.",
            f"At most {TOLERATED:.0%} may. Why they fail: vllm bench serve ... --save-detailed",
        )
    return found["request_throughput"], done, failed


def _setting(found: Mapping[str, Any], name: str, images: int, again: str) -> str:
    """The GPUs (L4:2) on which Pixtral was measured, with as many ``images`` to a request."""
    model = str(found.get("model_id", SERVED_NAME))
    # The served name, or a repository or folder; Pixtral Large is another model.
    if "pixtral" not in model.lower() or "large" in model.lower():
        raise UsageError(f"{name} was measured on the model {shown(model)!r}, not on Pixtral 12B.", again)
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
    sent = "a rising number of" if "ramp_up_strategy" in found else found.get("request_rate", "inf")
    if sent != "inf":
        raise UsageError(
            f"{name} sent {sent} requests a second: whether more could be answered is not known.",
            "Run vllm bench serve with: --request-rate inf",
        )
    precision = found.get("precision")
    if precision not in (None, *PRECISIONS):
        raise UsageError(f"{name} was measured in {precision!r}, which is neither bf16 nor fp8.", again)
    return f"{gpu}:{count}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_source(found: Mapping[str, Any], name: str) -> None:
    """Raise UsageError for a file in which `bench` says that its figures are not those of GPUs."""
    if found.get("rehearsal"):
        raise UsageError(
            f"{name} was measured on a rehearsal: a tiny model with random weights, on a CPU.",
            "Measure on GPUs: pixtral-sky bench --gpus L4:2",
        )
    if found.get("client_limited"):
        raise UsageError(
            f"{name} was measured where bench itself was the limit, and not the server.",
            "Run bench with fewer requests at once, or on a faster machine.",
        )
