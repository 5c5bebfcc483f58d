"""Presents what was measured: a table, a line a step, and a file.

The file is one JSON object with the keys of ``vllm bench serve --save-result`` (vLLM 0.32), so that what
reads those reads it: `plan --measured` among them. Its figures are of the step that stands for the endpoint;
``steps`` has all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pixtral_sky import __version__
from pixtral_sky.bench.figures import PERCENTILES, SLO_NAMES, Step, percentile
from pixtral_sky.bench.sweep import GAIN, knee
from pixtral_sky.memory import Workload
from pixtral_sky.text import counted

HEAD = (
    *("AT ONCE", "REQUESTS/S", "GOOD/S", "PICTURES/S", "TOKENS/S", "FIRST TOKEN", "PER TOKEN", "WHOLE"),
    *("FAILED", "$/1,000 PICTURES", ""),
)
MS = 1_000


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what. Unknown values are empty or None."""

    workload: Workload
    model: str
    slo: Mapping[str, float] = field(default_factory=dict)
    gpus: str = ""  # of one machine: L4:2
    precision: str = ""
    replicas: int = 1
    hourly: float | None = None  # USD, of all machines
    is_rehearsal: bool = False

    def carried(self, step: Step) -> float:
        """Requests a second that one machine carries at a step: those that meet the SLO, if there is one."""
        return (step.goodput(self.slo) if self.slo else step.requests) / self.replicas

    def cost(self, step: Step) -> float | None:
        """USD for 1,000 pictures; None where it is not known."""
        if self.hourly is None or not step.pictures:
            return None
        return self.hourly / 3_600 / step.pictures * 1_000


def rows(done: Sequence[Step], subject: Subject) -> list[tuple[str, ...]]:
    """A row of HEAD for each step; times in seconds, as their percentiles."""
    found = knee(done)
    return [
        (
            str(step.concurrency),
            f"{step.requests:.2f}",
            f"{step.goodput(subject.slo):.2f}" if subject.slo else "-",
            f"{step.pictures:.2f}" if step.images else "-",
            f"{step.tokens:,.0f}",
            times(step.first),
            times(step.per_token),
            times(step.whole),
            f"{step.failed:,}" if step.failed else "-",
            "-" if (cost := subject.cost(step)) is None else f"{cost:.2f}",
            ", ".join(["the knee"] * (step is found) + [step.stopped] * bool(step.stopped)),
        )
        for step in done
    ]


def pictures(workload: Workload) -> str:
    """The pictures of a request, in words."""
    if not workload.images:
        return ""
    return f"{counted(workload.images, 'picture')} of {workload.width}x{workload.height}, "


def times(seconds: Sequence[float]) -> str:
    """The percentiles, in seconds."""
    values = [percentile(seconds, share) for share in PERCENTILES]
    return (
        "/".join(f"{value:.2g}" if value < 99.5 else f"{value:.0f}" for value in values) if seconds else "-"
    )


def line(step: Step) -> str:
    """A step in a line."""
    return (
        f"  {step.concurrency} at once: {counted(len(step.samples), 'answer')} in {step.seconds:.1f} s, "
        f"{step.requests:.2f} requests/s; half of them whole after {percentile(step.whole, 50):.2f} s"
    )


def verdict(done: Sequence[Step], chosen: Step, subject: Subject) -> str:
    """What a sweep has found, a line each."""
    if len(done) < 2:
        return ""
    said = "No knee was found: throughput still gains at the most that was measured."
    if found := knee(done):
        said = (
            f"The knee is at {found.concurrency} at once, {found.requests:.2f} requests/s: more at once takes"
            f" longer, and brings less than {GAIN:.0%} of what would be in proportion."
        )
    if subject.slo:
        good = chosen.goodput(subject.slo)
        said += f"\nThe most that meets --slo is at {chosen.concurrency} at once: {good:.2f} requests/s."
    return said


def warnings(done: Sequence[Step], subject: Subject) -> list[str]:
    """What a reader of the figures has to know, a line each."""
    said = []
    for step in done:
        at = f"With {step.concurrency} at once"
        for kind, failure in step.failures.items():
            said.append(f"{at}, {counted(failure.count, 'request')} FAILED ({kind}): {failure.first}")
        if step.is_own_limit:
            said.append(
                f"{at}, bench itself is the limit, and not the server: it took {step.cpu:.0%} of a core, and"
                " Python uses no second one. These figures are not the server's."
            )
        elif step.is_late:
            said.append(
                f"{at}, this machine was busy: it let bench wait {step.late * MS:.0f} ms for its processor,"
                " and the times are longer by as much."
            )
        wanted, made = subject.workload.answer, step.answer_tokens / max(len(step.samples), 1)
        if step.samples and abs(made - wanted) > wanted / 20:
            said.append(f"{at}, answers had {made:.0f} tokens, not {wanted}: the endpoint ends them itself.")
    if short := [str(step.concurrency) for step in done if step.is_short and not step.stopped]:
        said.append(
            f"Few answers at {', '.join(short)} at once: the end of a step, when fewer are in flight, weighs"
            " in its rates. Give more --seconds or --requests."
        )
    if subject.is_rehearsal:
        said.append(
            "These are figures of a rehearsal: a tiny model with random weights, on a CPU. They say nothing"
            " of Pixtral on GPUs, and `plan --measured` does not take them."
        )
    return said


def document(done: Sequence[Step], chosen: Step, subject: Subject) -> dict[str, Any]:
    """The file."""
    work = subject.workload
    about: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": None,
        "model_id": subject.model,
        "version": f"pixtral-sky {__version__}",
        "images": work.images,
        "size": f"{work.width}x{work.height}",
        "prompt_tokens": work.text,
        "answer_tokens": work.answer,
        "request_rate": "inf",
        "burstiness": 1.0,
    }
    known = {"gpus": subject.gpus, "precision": subject.precision}
    about |= {name: value for name, value in known.items() if value}
    about |= {"replicas": subject.replicas} if subject.replicas > 1 else {}
    about |= {"usd_per_hour": subject.hourly} if subject.hourly is not None else {}
    about |= {"slo": _slo(subject.slo)} if subject.slo else {}
    about |= {"rehearsal": True} if subject.is_rehearsal else {}
    found = knee(done)
    steps = [_step(each, subject) for each in done]
    return about | _step(chosen, subject) | {"knee": found and found.concurrency, "steps": steps}


def _step(step: Step, subject: Subject) -> dict[str, Any]:
    tokens = step.prompt_tokens + step.answer_tokens
    found: dict[str, Any] = {
        "max_concurrency": step.concurrency,
        "num_prompts": len(step.samples) + step.failed,
        "duration": step.seconds,
        "completed": len(step.samples),
        "failed": step.failed,
        "total_input_tokens": step.prompt_tokens,
        "total_output_tokens": step.answer_tokens,
        "request_throughput": step.requests,
        "request_goodput": step.goodput(subject.slo) if subject.slo else None,
        "output_throughput": step.tokens,
        "total_token_throughput": tokens / step.seconds if step.seconds else 0.0,
        "image_throughput": step.pictures,
        "usd_per_1000_images": subject.cost(step),
        "failures": {kind: vars(failure) for kind, failure in step.failures.items()},
        "stopped": step.stopped or None,
        "client_cpu": step.cpu,
        "client_late_ms": step.late * MS,
        "client_limited": step.is_own_limit,
    }
    for name, values in (("ttft", step.first), ("tpot", step.per_token), ("e2el", step.whole)):
        found[f"mean_{name}_ms"] = statistics.fmean(values) * MS if values else 0.0
        found[f"std_{name}_ms"] = statistics.pstdev(values) * MS if values else 0.0
        found[f"median_{name}_ms"] = percentile(values, 50) * MS
        for share in PERCENTILES:
            found[f"p{share}_{name}_ms"] = percentile(values, share) * MS
    return found


def _slo(wanted: Mapping[str, float]) -> dict[str, float]:
    """By the names of --slo."""
    return {name: wanted[field] for name, field in SLO_NAMES.items() if field in wanted}
