"""pixtral-sky plan."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import common

if TYPE_CHECKING:
    from pixtral_sky.deploy.prices import Prices
    from pixtral_sky.memory import Workload
    from pixtral_sky.planning.plan import Ask, Machine, Option, Unfit
    from pixtral_sky.planning.speed import Range

ROWS = 20  # of the table; the rest with --all


def plan(
    images: Annotated[int, typer.Option(help="Pictures in a request.")] = 2,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of a picture, in pixels.")] = "1920x1080",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the text beside them.")] = 200,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 300,
    context: Annotated[
        int | None,
        typer.Option(help="MAX_MODEL_LEN; -1: all that fits. Without it, that of pixtral.yaml."),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="bf16|fp8|both", help="Of the decoder's weights.")
    ] = "both",
    qps: Annotated[
        float | None, typer.Option(help="Requests a second at the busiest: how many replicas carry them?")
    ] = None,
    total: Annotated[
        int | None, typer.Option(help="Pictures in all: how long does one machine take?")
    ] = None,
    clouds: Annotated[
        str | None, typer.Option(metavar="CLOUD,...", help="At these. Without it, at all with prices.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="GPU[:COUNT],...", help="On these. Without it, on all known here.")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="By the price of spare capacity.")] = False,
    no_prices: Annotated[
        bool, typer.Option("--no-prices", help="What fits, and how fast: without SkyPilot, at once.")
    ] = False,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A result of `vllm bench serve --save-result --metadata gpus=L4:2 images=2 precision=fp8`,"
            " in place of the estimate; again for more.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help=f"All rows, not the best {ROWS}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the best: a .png, .svg or .pdf.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a service.yaml for --qps, under a name that is new."),
    ] = None,
) -> None:
    """Which GPUs hold the model with your pictures, and where a thousand pictures cost least.

    Nothing is launched, and no account is needed: the prices are in SkyPilot's catalogs. Speed is estimated
    from data sheets, as a range; its low end decides. FP8 halves the decoder's weights; what that does to
    answers was not measured: ask both with `pixtral-sky doctor --answers`.

    \b
    $/H, SPOT $/H     of the machine, as SkyPilot has it; its disk is in what follows
    CONTEXT, AT ONCE  tokens of the longest request, and requests that are computed at once
    REPLICAS, $/H ALL that carry --qps, no fewer than min_replicas of service.yaml, and their price
                      together; with --spot, one of them is on demand
    TIME              one machine's, for --total pictures
    $/1,000 IMAGES    on a machine that is busy all the time; with --qps, of the replicas for it

    \b
    Examples:
      pixtral-sky plan --images 4 --size 1024x1024 --clouds aws,gcp
      pixtral-sky plan --qps 5 --spot --write my-service.yaml
      pixtral-sky plan --total 1000000 --gpus L4,L40S,H100 --plot cost.png
    """
    from pixtral_sky.deploy import task
    from pixtral_sky.errors import UsageError
    from pixtral_sky.memory import Workload
    from pixtral_sky.planning import plan as planning

    if no_prices and (clouds or spot or plot or write):
        raise UsageError("--clouds, --spot, --plot and --write are about prices.", "Leave out --no-prices")
    if write and qps is None:
        raise UsageError("--write needs to know the requests a second.", "For example: --qps 5")
    if write and write.exists():
        raise UsageError(f"{write} is there already.", "Give --write another name.")
    if plot:
        from pixtral_sky.planning import chart

        chart.check(plot)
    width, height = planning.size(size)
    file = task.read()
    ask = planning.asked(
        Workload(images, width, height, prompt_tokens, answer_tokens),
        (task.number(file["envs"], "MAX_MODEL_LEN", 0) or None) if context is None else context,
        task.number(file["envs"], "MAX_IMAGES", 1),
        qps,
        total,
        1 if qps is None else _least(),
    )
    wanted = planning.gpus(gpus)
    machines, unfit = planning.machines(
        ask,
        wanted,
        _measured(measured or [], ask.workload),
        planning.precisions(precision),
    )
    if not machines:
        # The last is the largest: what speaks against it, speaks against all.
        raise UsageError(
            f"None of these GPUs holds it: {unfit[-1].why}", "Larger --gpus, or a smaller --context"
        )
    prices = None if no_prices else _prices(wanted, clouds, file["resources"], ports=qps is not None)
    options = planning.options(ask, machines, prices.offers, spot) if prices else []
    if prices and not options:
        what = "spot price" if spot else "price"
        raise UsageError(f"None of these clouds has a {what} for what fits.", "Name other --clouds or --gpus")

    if as_json:
        output.data(json.dumps(_document(ask, machines, options, unfit, prices, spot), indent=1))
    elif prices:
        shown = options if everything else options[:ROWS]
        _show(ask, shown)
        if len(options) > len(shown):
            output.say(f"{len(options) - len(shown)} more cost more: --all")
        output.say(_disks(shown, int(file["resources"]["disk_size"])))
    else:
        # The smallest first: this has no order by cost.
        fitting = sorted(machines, key=lambda each: each.fit.count)
        few = fitting if everything else fitting[:ROWS]
        _show_unpriced(ask, few)
        if len(fitting) > len(few):
            output.say(f"{len(fitting) - len(few)} more: --all")
    if not as_json:
        offered = {f"{each.gpu}:{each.count}" for each in prices.offers} if prices else None
        _explain(ask, machines, [each for each in unfit if not offered or each.gpus in offered], spot)
        if options and not write:
            output.say(f"Next:  {_next(ask, options[0], file['envs'], spot)}")
    if plot and prices:
        both = [planning.options(ask, machines, prices.offers, at_spot) for at_spot in (False, True)]
        chart.draw(plot, ask, both[0], both[1], spot)
        output.say(f"Drawn: {plot}")
    if write:
        _write(write, ask, options, spot)


def _least() -> int:
    """How many replicas a service has at all times."""
    from pixtral_sky.deploy import task

    policy: dict[str, int] = task.read(task.shipped("service.yaml"))["service"]["replica_policy"]
    return policy["min_replicas"]


def _measured(files: Sequence[Path], workload: Workload) -> dict[tuple[str, str], Range]:
    """Requests a second by GPUs and precision; a range where several files are of the same."""
    from pixtral_sky.errors import UsageError
    from pixtral_sky.planning import plan as planning
    from pixtral_sky.planning.speed import Range

    found: dict[tuple[str, str], Range] = {}
    for file in files:
        try:
            text = file.read_text()
        except (OSError, ValueError) as error:  # ValueError: not UTF-8
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"{file} cannot be read: {reason}.") from error
        one = planning.measurement(text, str(file), workload.images)
        if one.answer is not None and abs(one.answer - workload.answer) > workload.answer / 10:
            output.warn(
                f"{file} was measured with answers of {one.answer:.0f} tokens, and this plan has "
                f"{workload.answer}: --answer-tokens {one.answer:.0f}"
            )
        if one.precision is None:
            output.warn(f"{file} does not say its precision, and counts as bf16: --metadata precision=bf16")
        key = (one.gpus, one.precision or "bf16")
        before = found.get(key, Range(one.rate, one.rate))
        found[key] = Range(min(before.low, one.rate), max(before.high, one.rate))
    return found


def _prices(
    wanted: Sequence[tuple[str, int]], clouds: str | None, resources: dict[str, Any], ports: bool
) -> Prices:
    from pixtral_sky.deploy import prices

    named = [word.strip().lower() for word in clouds.split(",")] if clouds else []
    # As launch wants them: 4+, 32+
    cpus, memory = (float(str(resources[name]).rstrip("+")) for name in ("cpus", "memory"))
    kinds, counts = (dict.fromkeys(each) for each in zip(*wanted, strict=True))
    with output.phase("prices, from SkyPilot's catalogs"):
        found = prices.read(
            list(kinds), list(counts), cpus, memory, named, ports, int(resources["disk_size"])
        )
    reasons: dict[str, list[str]] = {}
    for cloud, reason in found.left_out.items():
        reasons.setdefault(reason, []).append(cloud)
    for reason, names in reasons.items():
        output.warn(f"Without {', '.join(names)}: {reason}.")
    return found


def _show(ask: Ask, options: Sequence[Option]) -> None:
    from pixtral_sky.planning import plan as planning

    head = (
        *("GPUS", "PRECISION", "CLOUD", "REGION", "$/H", "SPOT $/H", "CONTEXT", "AT ONCE"),
        *("REPLICAS", "$/H ALL", "TIME", "$/1,000 IMAGES", "BY"),
    )
    rows = [
        (
            each.machine.gpus,
            each.machine.precision,
            each.offer.cloud,
            each.offer.region,
            f"{each.offer.hourly:.2f}",
            "-" if each.offer.spot is None else f"{each.offer.spot:.2f}",
            *_held(each.machine),
            *_wanted(ask, each.replicas, each.seconds, each.together),
            _range(each.cost, planning.usd),
            "measured" if each.machine.measured else "estimate",
        )
        for each in options
    ]
    common.table(head, rows)


def _show_unpriced(ask: Ask, machines: Sequence[Machine]) -> None:
    from pixtral_sky.planning import plan as planning

    head = (
        *("GPUS", "PRECISION", "CONTEXT", "AT ONCE", "REQUESTS/S", "IMAGES/S"),
        *("REPLICAS", "$/H ALL", "TIME", "BY"),
    )
    rows = [
        (
            machine.gpus,
            machine.precision,
            *_held(machine),
            _range(machine.rate, _rate),
            _range(machine.rate, lambda value: _rate(value * ask.workload.images)),
            *_wanted(ask, planning.needed(ask, machine), planning.seconds(ask, machine), None),
            "measured" if machine.measured else "estimate",
        )
        for machine in machines
    ]
    common.table(head, rows)


def _held(machine: Machine) -> tuple[str, str]:
    """The context and the requests at once; "+": so many at least."""
    from pixtral_sky import memory as fitting

    fit = machine.fit
    all_that_fits = fit.context == fit.kv_tokens - fitting.BLOCK
    most = fitting.settings(fit.gpu, fit.count).sequences
    return f"{fit.context:,}" + "+" * all_that_fits, f"{fit.requests:,}" + "+" * (fit.requests < most)


def _disks(options: Sequence[Option], gb: int) -> str:
    """What their disks cost, in a line or two."""
    from pixtral_sky.deploy import prices

    found = dict(sorted((each.offer.cloud, each.offer.disk) for each in options))
    known = [f"{cloud} {price:.3f}" for cloud, price in found.items() if price is not None]
    others = [cloud for cloud, price in found.items() if price is None]
    said = f"Disks of {gb} GB cost besides, in $/h: {', '.join(known) or 'not known'}"
    if known and others:
        said += f"; not known: {', '.join(others)}"
    return f"{said}. List prices of {prices.DISK_PRICES_OF}; $/1,000 IMAGES is with them."


def _wanted(
    ask: Ask, replicas: tuple[int, int], seconds: Range, hourly: Range | None
) -> tuple[str, str, str]:
    few, many = replicas
    if ask.qps is None:
        count = together = "-"
    else:
        count = str(many) if few == many else f"{few}-{many}"
        together = "-" if hourly is None else f"{hourly.high:.2f}"
    if ask.total is None:
        return count, together, "-"
    unit, name = (86_400, "d") if seconds.high >= 48 * 3_600 else (3_600, "h")
    if seconds.high < 3_600:
        unit, name = 60, "min"
    return count, together, f"{_range(seconds, lambda value: _rate(value / unit))} {name}"


def _range(value: Range, shown: Any) -> str:
    low, high = shown(value.low), shown(value.high)
    return low if low == high else f"{low}-{high}"


def _rate(value: float) -> str:
    if value < 1:
        return f"{value:#.2g}"
    return f"{value:,.0f}" if round(value, 1) >= 10 else f"{value:.1f}"  # 9.96: 10, and not 10.0


def _explain(ask: Ask, machines: Sequence[Machine], unfit: Sequence[Unfit], spot: bool) -> None:
    """What the table does not say, once."""
    from pixtral_sky import memory as fit
    from pixtral_sky.planning import plan as planning

    workload = ask.workload
    pictures = f"{workload.images} picture{'s' * (workload.images != 1)}"
    if ask.context is None:
        context = f"a context of {fit.default_context(ask.max_images):,}, or what fits"
    else:
        context = "all the context that fits" if ask.context == -1 else f"a context of {ask.context:,}"
    output.say(
        f"\nA request: {pictures} of {workload.width}x{workload.height}, {workload.prompt:,} tokens, and an "
        f"answer of {workload.answer:,}; {context}."
    )
    if not all(machine.measured for machine in machines):
        output.say(
            "A range is an estimate from data sheets: nothing was measured on these GPUs. Its slow end is\n"
            "safe, and decides the order and the replicas; --measured FILE replaces it. A + is an estimate\n"
            "too: at least so many."
        )
    if ask.qps is not None:
        alone = f"; {planning.on_demand(ask)} of them on demand, the others on spot" if spot else ""
        output.say(f"Replicas: {ask.least} at least, as min_replicas of service.yaml says{alone}.")
    if spot:
        output.say(
            "Spot machines are taken away at any moment; the time and cost to begin again are not in it."
        )
    if any(machine.precision == "fp8" for machine in machines):
        output.say(
            "What FP8 does to the answers was not measured here: ask both with pixtral-sky doctor --answers,"
            "\nor leave it out: --precision bf16"
        )
    in_fp8 = {machine.gpus for machine in machines if machine.precision == "fp8"}
    if only := dict.fromkeys(each.gpus for each in unfit if each.gpus in in_fp8):
        output.say(f"In fp8 only: {', '.join(only)}")
    # The last precision needs the least: what speaks against it, speaks against both.
    for gpus, reason in {each.gpus: each.why for each in unfit}.items():
        if gpus not in in_fp8:
            output.say(f"Does not fit: {reason}")


def _next(ask: Ask, best: Option, envs: dict[str, Any], spot: bool) -> str:
    from pixtral_sky.planning import plan as planning

    if ask.qps is not None:
        return "the same with --write my-service.yaml, and: pixtral-sky serve up --file my-service.yaml"
    if ask.total is None:
        return "the same with --qps or --total; a machine that waits for requests costs as much as a busy one"
    words = [f"pixtral-sky launch --infra {best.offer.cloud} --gpus {best.machine.gpus}", "--spot" * spot]
    for name, value in planning.server_envs(ask, best.machine.precision).items():
        if envs[name] != value:
            words.append(f"--precision {value}" if name == "PRECISION" else f"--env {name}={value}")
    return " ".join(filter(None, words))


def _write(path: Path, ask: Ask, options: Sequence[Option], spot: bool) -> None:
    import yaml

    from pixtral_sky.deploy import replica_policy, task
    from pixtral_sky.planning import plan as planning

    shipped = task.shipped("service.yaml")
    name, command = (" ".join(words.split()) for words in (path.name, shlex.join(sys.argv[1:])))
    text = planning.service_file(
        shipped.read_text(), task.read(shipped), ask, options, spot, name, f"pixtral-sky {command}"
    )
    made = yaml.safe_load(text)
    for warning in replica_policy.check(made, "the one that `serve up` makes"):
        output.warn(warning)
    path.write_text(text)
    policy = made["service"]["replica_policy"]
    few, many = policy["min_replicas"], policy["max_replicas"]
    output.say(
        f"Written: {path}, {few if few == many else f'{few} to {many}'} replicas of "
        f"{', or else '.join(made['resources']['accelerators'])}, in {options[0].machine.precision}"
    )
    output.say(f"Next:  pixtral-sky serve up --file {path}")


def _document(
    ask: Ask,
    machines: Sequence[Machine],
    options: Sequence[Option],
    unfit: Sequence[Unfit],
    prices: Prices | None,
    spot: bool,
) -> dict[str, Any]:
    workload = ask.workload
    priced = [option.machine for option in options]
    return {
        "request": {
            "images": workload.images,
            "width": workload.width,
            "height": workload.height,
            "prompt_tokens": workload.prompt,
            "answer_tokens": workload.answer,
        },
        "server": {"MAX_MODEL_LEN": ask.context, "MAX_IMAGES": ask.max_images},
        "qps": ask.qps,
        "total": ask.total,
        "spot": spot,
        "options": [
            _row(
                ask,
                each.machine,
                {
                    **{name: getattr(each.offer, name) for name in ("cloud", "region", "machine")},
                    "usd_an_hour": each.offer.hourly,
                    "spot_usd_an_hour": each.offer.spot,
                    "disk_usd_an_hour": each.offer.disk,
                    "usd_per_1000_images": vars(each.cost),
                },
            )
            for each in options
        ],
        # What fits and has no price; all of it with --no-prices.
        "unpriced": [_row(ask, each, {}) for each in machines if each not in priced],
        "unfit": [vars(each) for each in unfit],
        "clouds_left_out": prices.left_out if prices else {},
    }


def _row(ask: Ask, machine: Machine, price: dict[str, Any]) -> dict[str, Any]:
    from pixtral_sky.planning import plan as planning

    few, many = planning.needed(ask, machine)
    return {
        "gpus": machine.gpus,
        "precision": machine.precision,
        **price,
        "context": machine.fit.context,
        "at_once": machine.fit.requests,
        "by": "measured" if machine.measured else "estimate",
        "requests_per_second": vars(machine.rate),
        "replicas": None if ask.qps is None else {"low": few, "high": many},
        "seconds": None if ask.total is None else vars(planning.seconds(ask, machine)),
    }
