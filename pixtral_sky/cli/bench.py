"""pixtral-sky bench."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options

if TYPE_CHECKING:
    from pixtral_sky.bench.figures import Step
    from pixtral_sky.bench.load import Bench, Length
    from pixtral_sky.bench.report import Subject
    from pixtral_sky.client.endpoint import Endpoint
    from pixtral_sky.deploy.machines import Machines
    from pixtral_sky.memory import Workload

SECONDS = 30.0
Images = Annotated[int, typer.Option(min=0, metavar="N", help="Pictures in a request.")]
Size = Annotated[str, typer.Option(metavar="WxH", help="Of a picture, in pixels.")]
PromptTokens = Annotated[int, typer.Option(min=0, metavar="N", help="Tokens of the words beside them.")]
AnswerTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each answer, forced.")]
Concurrency = Annotated[
    str,
    typer.Option("--concurrency", "-c", metavar="N,...|auto", help="Requests at once; auto: until the knee."),
]
Seconds = Annotated[
    float | None,
    typer.Option(metavar="S", help=f"Of each step. [default: {SECONDS:g}]", show_default=False),
]
Requests = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Of each step, in place of --seconds.")
]
Slo = Annotated[
    str,
    typer.Option(
        metavar="ttft=S,...",
        help="Seconds to the first token (ttft), per token (tpot), of all (e2e): counts who meets them.",
        show_default=False,
    ),
]
PricePerHour = Annotated[
    float | None,
    typer.Option(min=0, metavar="USD", help="Of all its machines. Without it, SkyPilot's, if it has one."),
]
Gpus = Annotated[
    str | None,
    typer.Option(metavar="GPU:COUNT", help="Of one machine. Without it, as SkyPilot has it."),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="A JSON file, for `plan --measured`.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the steps: a .png, .svg or .pdf.")]
Write = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a service file for what one machine carries.")
]


def bench(
    images: Images = 2,
    size: Size = "1920x1080",
    prompt_tokens: PromptTokens = 200,
    answer_tokens: AnswerTokens = 300,
    concurrency: Concurrency = "auto",
    seconds: Seconds = None,
    requests: Requests = None,
    slo: Slo = "",
    price_per_hour: PricePerHour = None,
    gpus: Gpus = None,
    precision: Annotated[
        str | None, typer.Option(metavar="bf16|fp8", help="Of its weights, for the file.")
    ] = None,
    plot: Plot = None,
    write: Write = None,
    out: Out = None,
    as_json: options.Json = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Measure how fast an endpoint answers, and what it carries.

    Each request has pictures and words of its own, so that no cache helps. It takes GPU time from others who
    ask there. Ctrl-C ends it, and shows what was measured. Exit code 1 when requests have failed.

    \b
    FIRST TOKEN, PER TOKEN, WHOLE  seconds of an answer: p50/p90/p99
    GOOD/S    requests a second that met all of --slo
    the knee  more at once takes longer, and hardly brings more requests/s

    \b
    Examples:
      pixtral-sky bench --images 1 --size 1024x1024 --answer-tokens 128
      pixtral-sky bench -c 1,4,16 --slo ttft=2,tpot=0.1 --plot knee.png
      pixtral-sky bench --gpus L4:2 -o l4.json
      pixtral-sky bench --gpus L4:2 --write my-service.yaml
    """
    from pixtral_sky import files
    from pixtral_sky.bench import sweep
    from pixtral_sky.bench.figures import slo as parsed_slo
    from pixtral_sky.bench.load import Bench, Length
    from pixtral_sky.bench.report import Subject
    from pixtral_sky.deploy.resolve import find
    from pixtral_sky.memory import Workload
    from pixtral_sky.planning.plan import size as parsed_size

    length = Length(_seconds(seconds, requests, price_per_hour), requests)
    wanted = sweep.concurrencies(concurrency, requests)
    workload = Workload(images, *parsed_size(size), prompt_tokens, answer_tokens)
    goals = parsed_slo(slo)
    gpus, precision = _named(gpus, precision)
    common.check_files(plot, write)
    if out:
        files.check_writable(out, "--out")
    endpoint = find(url, api_key, name)
    machines = _machines(endpoint)
    endpoint, is_rehearsal = _learned(endpoint, machines)
    subject = Subject(
        workload,
        endpoint.model,
        goals,
        gpus or machines.gpus,
        precision or machines.precision,
        machines.replicas,
        machines.hourly if price_per_hour is None else price_per_hour,
        is_rehearsal,
    )
    if write:
        _check_write(subject, write)
    bench = Bench(endpoint, workload)
    _announce(endpoint, machines, workload, wanted, length)
    with output.phase("the first request"):
        bench.try_once()
    done = _measured(bench, wanted, length)
    _end(done, subject, plot, write, out, as_json)


# What is asked for -----------------------------------------------------------------------------------------


def _seconds(seconds: float | None, requests: int | None, price: float | None) -> float | None:
    """The seconds of a step; None where it ends after ``requests``. Raises UsageError."""
    from pixtral_sky.errors import UsageError

    if seconds is not None and requests is not None:
        raise UsageError("A step ends after --seconds, or after --requests.", "Give one of the two.")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds is a number above 0, not {seconds:g}.", "For example: --seconds 30")
    if price is not None and not math.isfinite(price):
        raise UsageError(f"--price-per-hour is a number of dollars, not {price:g}.")
    return seconds or (SECONDS if requests is None else None)


def _named(gpus: str | None, precision: str | None) -> tuple[str, str]:
    """GPUs as L4:2, and the precision; empty where they are not given. Raises UsageError."""
    from pixtral_sky.errors import UsageError
    from pixtral_sky.planning import plan

    if gpus is not None:
        ((gpu, count), *more) = plan.gpus(gpus)
        if more:
            raise UsageError(f"--gpus names one machine, not {gpus}.", "For example: --gpus L4:2")
        gpus = f"{gpu}:{count}"
    if precision is not None:
        found = plan.precisions(precision)
        if len(found) > 1:
            raise UsageError(f"--precision is bf16 or fp8 here, not {precision!r}.")
        precision = found[0]
    return gpus or "", precision or ""


def _check_write(subject: Subject, write: Path) -> None:
    from pixtral_sky.errors import UsageError

    if subject.is_rehearsal:
        raise UsageError("A rehearsal says nothing of what a replica carries.", f"Without --write {write}")
    if not subject.gpus:
        raise UsageError(
            "What a replica carries holds for its GPUs, and those are not known.", "For example: --gpus L4:2"
        )


# What is there ---------------------------------------------------------------------------------------------


def _machines(endpoint: Endpoint) -> Machines:
    """What SkyPilot knows of the machines, if it launched them."""
    from pixtral_sky.deploy import machines
    from pixtral_sky.errors import SkyError

    try:
        return machines.behind(endpoint.origin)
    except SkyError as error:
        output.warn(f"Its machines and their price are not known: {error.what}")
        return machines.Machines()


def _learned(endpoint: Endpoint, machines: Machines) -> tuple[Endpoint, bool]:
    """The endpoint with the model that it serves, and whether that is the tiny one of a rehearsal."""
    from pixtral_sky.client.client import Client
    from pixtral_sky.rehearsal.checkpoint import is_tiny

    with Client(endpoint, notify=output.say) as client:
        endpoint = client.learn()
        roots = [str(model.get("root")) for model in client.models() if model["id"] == endpoint.model]
    return endpoint, machines.kind == "rehearsal" or any(map(is_tiny, roots))


def _announce(
    endpoint: Endpoint,
    machines: Machines,
    workload: Workload,
    wanted: Sequence[int] | None,
    length: Length,
) -> None:
    """Say what will be sent."""
    from pixtral_sky.bench.report import pictures

    at_once = "1, 2, 4..." if wanted is None else ", ".join(map(str, wanted))
    until = " until the knee" if wanted is None else ""
    output.say(
        f"To {endpoint.url}: {at_once} requests at once{until}, {length} each, after a round that is not"
        f" counted.\nA request: {pictures(workload)}{workload.prompt:,} tokens in all, and an answer of"
        f" {workload.answer:,}. It takes GPU time from others who ask there."
    )
    if machines.kind == "service":
        output.warn("SkyServe's autoscaler sees these requests, and may start replicas, which cost money.")


# The measurement -------------------------------------------------------------------------------------------


def _measured(bench: Bench, wanted: Sequence[int] | None, length: Length) -> list[Step]:
    from pixtral_sky.batch.concurrency import MOST
    from pixtral_sky.bench import report, sweep

    def measure(concurrency: int) -> Step:
        with output.phase(f"{concurrency} at once"):
            return bench.measure(concurrency, length)

    done: list[Step] = []
    for step in sweep.steps(measure, wanted, min(MOST, length.requests or MOST)):
        done.append(step)
        output.say(report.line(step))
    return done


def _end(
    done: Sequence[Step],
    subject: Subject,
    plot: Path | None,
    write: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show what was measured, write the files, and raise for what went wrong."""
    from pixtral_sky.bench import report, sweep
    from pixtral_sky.errors import PixtralSkyError

    chosen = sweep.best(done, subject.slo)
    interrupted = any(step.stopped == "interrupted" for step in done)
    if chosen:
        document = report.document(done, chosen, subject)
        if as_json:
            output.document(document)
        else:
            output.say()
            common.table(report.HEAD, report.rows(done, subject))
            output.say(report.verdict(done, chosen, subject))
        if out:
            out.write_text(json.dumps(document, indent=1) + "\n")
            output.say(f"Written: {out}")
        if plot:
            from pixtral_sky.bench import plot as drawing

            drawing.draw(plot, done, subject)
            output.say(f"Drawn: {plot}")
    for warning in report.warnings(done, subject):
        output.warn(warning)
    if interrupted:
        raise typer.Exit(130)
    if not chosen:
        raise PixtralSkyError("Nothing was measured: no request was answered.")
    if failed := sum(step.failed for step in done):
        every = failed + sum(len(step.samples) for step in done)
        raise PixtralSkyError(f"{failed:,} of {every:,} requests failed.")
    if write:
        _write(write, chosen, subject)


def _write(path: Path, chosen: Step, subject: Subject) -> None:
    from pixtral_sky.planning import service_file

    goal = " and meet --slo" if subject.slo else ""
    why = f"of {subject.gpus}, measured: what {chosen.concurrency} at once bring{goal}"
    made = partial(
        service_file.measured_file,
        subject.gpus,
        subject.precision,
        subject.workload.images,
        subject.carried(chosen),
        why,
    )
    common.write_service(path, made)
