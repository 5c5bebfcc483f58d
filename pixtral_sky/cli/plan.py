"""pixtral-sky plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options

if TYPE_CHECKING:
    from pixtral_sky.deploy.prices import Prices
    from pixtral_sky.memory import Workload
    from pixtral_sky.planning.measured import Rates
    from pixtral_sky.planning.plan import Ask, Plan

ROWS = 20  # of the table; the rest with --all

Images = Annotated[int, typer.Option(help="Pictures in a request.")]
Size = Annotated[str, typer.Option(metavar="WxH", help="Of a picture, in pixels.")]
PromptTokens = Annotated[int, typer.Option(help="Tokens of the text beside them.")]
AnswerTokens = Annotated[int, typer.Option(help="Tokens of the answer.")]
Context = Annotated[
    int | None, typer.Option(help="MAX_MODEL_LEN; -1: all that fits. Without it, that of pixtral.yaml.")
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="bf16|fp8|both",
        help="Precision of the decoder's weights.",
        autocompletion=options.one_of("bf16", "fp8", "both"),
    ),
]
Qps = Annotated[
    float | None, typer.Option(help="Requests a second at the busiest: how many replicas carry them?")
]
Total = Annotated[int | None, typer.Option(help="Pictures in all: how long does one machine take?")]
Clouds = Annotated[
    str | None, typer.Option(metavar="CLOUD,...", help="Only these clouds. Without it, all with prices.")
]
Gpus = Annotated[
    str | None, typer.Option(metavar="GPU[:COUNT],...", help="Only these GPUs. Without it, all known here.")
]
Spot = Annotated[bool, typer.Option("--spot", help="Use spot prices.")]
NoPrices = Annotated[
    bool, typer.Option("--no-prices", help="What fits and how fast, at once and without SkyPilot.")
]
Measured = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="A result of `vllm bench serve --save-result --metadata gpus=L4:2 images=2 precision=fp8`,"
        " to replace the estimate; repeat it for more.",
    ),
]
Everything = Annotated[bool, typer.Option("--all", help=f"All rows, not only the best {ROWS}.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the best: a .png, .svg or .pdf.")]
Write = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a service file for --qps to a new FILE."),
]


def plan(
    images: Images = 2,
    size: Size = "1920x1080",
    prompt_tokens: PromptTokens = 200,
    answer_tokens: AnswerTokens = 300,
    context: Context = None,
    precision: Precision = "both",
    qps: Qps = None,
    total: Total = None,
    clouds: Clouds = None,
    gpus: Gpus = None,
    spot: Spot = False,
    no_prices: NoPrices = False,
    measured: Measured = None,
    everything: Everything = False,
    as_json: options.Json = False,
    plot: Plot = None,
    write: Write = None,
) -> None:
    """Find the GPUs that hold it, and where pictures cost least.

    No account is needed: the prices are in SkyPilot's catalogs. Speed is estimated from data sheets, as a
    range; its low end decides. What FP8 does to answers: `pixtral-sky doctor --answers` asks both.

    \b
    $/H, SPOT $/H     SkyPilot's prices of the machine, without its disk
    CONTEXT, AT ONCE  tokens of the longest request, and requests that are computed at once
    REPLICAS, $/H ALL  that carry --qps, at least min_replicas of service.yaml, and their price with disks
    TIME              that one machine takes for --total pictures
    $/1,000 IMAGES    with disks, on a machine that is always busy; with --qps, on the replicas for it

    \b
    Example:
      pixtral-sky plan --qps 5 --spot --clouds aws,gcp --write my-service.yaml
    """
    from pixtral_sky.deploy import prices
    from pixtral_sky.errors import UsageError
    from pixtral_sky.memory import Workload
    from pixtral_sky.planning import plan as planning
    from pixtral_sky.planning import report

    about_prices = clouds is not None or spot or bool(plot or write)
    if no_prices and about_prices:
        raise UsageError("--clouds, --spot, --plot and --write are about prices.", "Leave out --no-prices")
    if write and qps is None:
        raise UsageError("--write needs to know the requests a second.", "For example: --qps 5")
    wanted, precisions, named = planning.gpus(gpus), planning.precisions(precision), prices.named(clouds)
    workload = Workload(images, *planning.size(size), prompt_tokens, answer_tokens)
    ask = _ask(workload, context, qps, total)
    common.check_files(plot, write)
    machines, unfit = planning.machines(ask, wanted, _rates(measured or [], workload), precisions)
    priced, why_not = (None, "--no-prices") if no_prices else _prices(wanted, named, qps, about_prices)
    found = planning.plan(ask, machines, unfit, priced.offers if priced else None, spot)
    if as_json:
        output.document(report.document(found, priced, why_not))
    else:
        _show(found, priced, everything, next_too=not write)
    _draw_and_write(found, priced, plot, write)


def _ask(workload: Workload, context: int | None, qps: float | None, total: int | None) -> Ask:
    from pixtral_sky.deploy import task
    from pixtral_sky.planning import plan as planning

    envs, least = task.read()["envs"], 1
    if qps is not None:
        least = task.read(task.shipped("service.yaml"))["service"]["replica_policy"]["min_replicas"]
    if context is None:
        context = task.number(envs, "MAX_MODEL_LEN", 0) or None
    return planning.asked(workload, context, task.number(envs, "MAX_IMAGES", 1), qps, total, least)


def _rates(files: Sequence[Path], workload: Workload) -> Rates:
    from pixtral_sky.planning import measured

    rates, warnings = measured.read(files, workload)
    for warning in warnings:
        output.warn(warning)
    return rates


def _prices(
    wanted: Sequence[tuple[str, int]], clouds: Sequence[str], qps: float | None, needed: bool
) -> tuple[Prices | None, str]:
    """The prices; or None, and why there are none. Raises NoPrices where they are ``needed``."""
    from pixtral_sky.deploy import prices, task
    from pixtral_sky.errors import NoPrices

    resources = task.read()["resources"]
    # The sizes that a launch asks for: 4+, 32+
    cpus, memory = (float(str(resources[name]).rstrip("+")) for name in ("cpus", "memory"))
    kinds, counts = (list(dict.fromkeys(each)) for each in zip(*wanted, strict=True))
    ports, disk = qps is not None, int(resources["disk_size"])
    try:
        with output.phase("prices, from SkyPilot's catalogs"):
            found = prices.read(kinds, counts, cpus, memory, clouds, ports, disk)
    except NoPrices as error:
        if needed:
            raise NoPrices(error.what, f"{error.hint}; or, without prices: {prices.WITHOUT}") from error
        output.warn(str(error))
        return None, str(error)
    reasons: dict[str, list[str]] = {}
    for cloud, reason in found.left_out.items():
        reasons.setdefault(reason, []).append(cloud)
    for reason, names in reasons.items():
        output.warn(f"Without {', '.join(names)}: {reason}.")
    return found, ""


def _show(found: Plan, priced: Prices | None, everything: bool, next_too: bool) -> None:
    from pixtral_sky.deploy import task
    from pixtral_sky.planning import report

    rows = report.rows(found)
    shown = rows if everything else rows[:ROWS]
    common.table(report.HEAD, shown)
    if len(rows) > len(shown):
        output.say(f"{len(rows) - len(shown)} more {'cost more' if priced else 'are slower'}: --all")
    if priced:
        gb = int(task.read()["resources"]["disk_size"])
        output.say(report.sources(found.options[: len(shown)], priced, gb))
    for paragraph in report.explained(found):
        output.say(paragraph)
    if found.options and next_too:
        output.say(f"Next:  {report.following(found, task.read()['envs'])}")


def _draw_and_write(found: Plan, priced: Prices | None, plot: Path | None, write: Path | None) -> None:
    if plot and priced:
        from pixtral_sky.planning import charts

        charts.draw_plan(plot, found, priced)
        output.say(f"Drawn: {plot}")
    if write:
        from pixtral_sky.planning import service_file

        common.write_service(write, partial(service_file.service_file, found))
