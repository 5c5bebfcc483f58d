"""Presents a plan: a table, notes, the next command, and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pixtral_sky import memory
from pixtral_sky.deploy.prices import DISK_PRICES_OF, Prices
from pixtral_sky.planning.plan import Ask, Machine, Option, Plan, needed, on_demand, seconds, usd
from pixtral_sky.planning.service_file import server_envs
from pixtral_sky.planning.speed import Range
from pixtral_sky.text import counted

HEAD = (
    *("GPUS", "PRECISION", "CLOUD", "REGION", "$/H", "SPOT $/H", "CONTEXT", "AT ONCE", "REQUESTS/S"),
    *("IMAGES/S", "REPLICAS", "$/H ALL", "TIME", "$/1,000 IMAGES", "BY"),
)


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """A row of HEAD for each option; without prices for each machine, the fastest first."""
    if plan.offered is None:
        return [_row(plan.ask, each, None) for each in plan.machines]
    return [_row(plan.ask, each.machine, each) for each in plan.options]


def _row(ask: Ask, machine: Machine, option: Option | None) -> tuple[str, ...]:
    fit, rate = machine.fit, machine.rate
    # "+" means at least.
    all_that_fits = fit.context == fit.kv_tokens - memory.BLOCK
    more = fit.requests < memory.settings(fit.gpu, fit.count).sequences
    priced, speed, together, cost = ("-", "-", "-", "-"), ("-", "-"), "-", "-"
    if option is None:
        images = Range(rate.low * ask.workload.images, rate.high * ask.workload.images)
        speed = (_range(rate, a_rate), _range(images, a_rate))
    else:
        offer = option.offer
        spot = "-" if offer.spot is None else f"{offer.spot:.2f}"
        priced = (offer.cloud, offer.region, f"{offer.hourly:.2f}", spot)
        together = "-" if ask.qps is None else f"{option.together.high:.2f}"
        cost = _range(option.cost, usd)
    few, many = needed(ask, machine)
    return (
        machine.gpus,
        machine.precision,
        *priced,
        f"{fit.context:,}" + "+" * all_that_fits,
        f"{fit.requests:,}" + "+" * more,
        *speed,
        "-" if ask.qps is None else str(many) if few == many else f"{few}-{many}",
        together,
        "-" if ask.total is None else _time(seconds(ask, machine)),
        cost,
        "measured" if machine.measured else "estimate",
    )


def a_rate(value: float) -> str:
    if value < 1:
        return f"{value:#.2g}"
    return f"{value:,.0f}" if round(value, 1) >= 10 else f"{value:.1f}"  # 9.96: 10, and not 10.0


def _time(value: Range) -> str:
    unit, name = (86_400, "d") if value.high >= 48 * 3_600 else (3_600, "h")
    if value.high < 3_600:
        unit, name = 60, "min"
    return f"{_range(value, lambda each: a_rate(each / unit))} {name}"


def _range(value: Range, shown: Callable[[float], str]) -> str:
    low, high = shown(value.low), shown(value.high)
    return low if low == high else f"{low}-{high}"


def sources(options: Sequence[Option], prices: Prices, gb: int) -> str:
    """Of when the prices of ``options`` are, and what their disks cost, in a line."""
    found = dict(sorted((each.offer.cloud, each.offer.disk) for each in options))
    known = [f"{cloud} {price:.3f}" for cloud, price in found.items() if price is not None]
    others = [cloud for cloud, price in found.items() if price is None]
    day = prices.dated(found)
    said = f"Prices of {day}. " if day else ""
    said += f"Disks of {gb} GB cost besides, in $/h: {', '.join(known) or 'not known'}"
    if known and others:
        said += f"; not known: {', '.join(others)}"
    return f"{said}. List prices of {DISK_PRICES_OF}; $/1,000 IMAGES is with them."


def explained(plan: Plan) -> Iterator[str]:
    """Notes on what the table does not say, a paragraph each."""
    ask, workload = plan.ask, plan.ask.workload
    pictures = f"{workload.images} picture{'s' * (workload.images != 1)}"
    if ask.context is None:
        context = f"a context of {memory.default_context(ask.max_images):,}, or what fits"
    else:
        context = "all the context that fits" if ask.context == -1 else f"a context of {ask.context:,}"
    yield (
        f"\nA request: {pictures} of {workload.width}x{workload.height}, {workload.prompt:,} tokens, and an "
        f"answer of {workload.answer:,}; {context}."
    )
    if not all(machine.measured for machine in plan.machines):
        yield (
            "A range is an estimate from data sheets: nothing was measured on these GPUs. Its slow end is\n"
            "safe, and decides the order and the replicas; --measured FILE replaces it. A + is an estimate\n"
            "too: at least so many."
        )
    if ask.qps is not None:
        alone = f"; {on_demand(ask)} of them on demand, the others on spot" if plan.spot else ""
        yield f"Replicas: {ask.least} at least, as min_replicas of service.yaml says{alone}."
    if plan.spot:
        yield "Spot machines are taken away at any moment; the time and cost to begin again are not in it."
    in_fp8 = {machine.gpus for machine in plan.machines if machine.precision == "fp8"}
    if in_fp8:
        yield (
            "What FP8 does to the answers was not measured here: ask both with pixtral-sky doctor --answers,"
            "\nor leave it out: --precision bf16"
        )
    if plan.offered is not None and (unpriced := _unpriced(plan)):
        names = {machine.gpus for machine in unpriced}
        price = "spot price" if plan.spot else "price"
        machines = counted(len(names), "other machine")
        yield f"{machines} without a {price} here would hold it, too: --json names them."
    # GPUs that no cloud offers are left out.
    unfit = [each for each in plan.unfit if plan.offered is None or each.gpus in plan.offered]
    if only := dict.fromkeys(each.gpus for each in unfit if each.gpus in in_fp8):
        yield f"In fp8 only: {', '.join(only)}"
    # The last precision needs the least memory, so its reason holds for both.
    for gpus, reason in {each.gpus: each.why for each in unfit}.items():
        if gpus not in in_fp8:
            yield f"Does not fit: {reason}"


def following(plan: Plan, envs: Mapping[str, Any]) -> str:
    """The next command, for a task file with these ``envs``."""
    ask, best = plan.ask, plan.options[0]
    if ask.qps is not None:
        return "the same with --write my-service.yaml, and: pixtral-sky serve up --file my-service.yaml"
    if ask.total is None:
        return "the same with --qps or --total; a machine that waits for requests costs as much as a busy one"
    words = [f"pixtral-sky launch --infra {best.offer.cloud} --gpus {best.machine.gpus}"]
    words += ["--spot"] * plan.spot
    for name, value in server_envs(ask, best.machine.precision).items():
        if envs[name] != value:
            words.append(f"--precision {value}" if name == "PRECISION" else f"--env {name}={value}")
    return " ".join(words)


def _unpriced(plan: Plan) -> list[Machine]:
    """The machines that fit and have no price; without prices, all."""
    priced = [option.machine for option in plan.options]
    return [each for each in plan.machines if each not in priced]


def document(plan: Plan, prices: Prices | None, why_not: str) -> dict[str, Any]:
    """The plan for JSON; ``why_not``: why there are no prices."""
    ask, workload = plan.ask, plan.ask.workload
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
        "spot": plan.spot,
        "options": [_figures(ask, each.machine, _price(each)) for each in plan.options],
        "unpriced": [_figures(ask, each, {}) for each in _unpriced(plan)],
        "unfit": [vars(each) for each in plan.unfit],
        "no_prices": why_not or None,
        "days_of_prices": dict(prices.days) if prices else {},
        "clouds_left_out": prices.left_out if prices else {},
    }


def _price(option: Option) -> dict[str, Any]:
    offer = option.offer
    return {
        "cloud": offer.cloud,
        "region": offer.region,
        "machine": offer.machine,
        "usd_an_hour": offer.hourly,
        "spot_usd_an_hour": offer.spot,
        "disk_usd_an_hour": offer.disk,
        "usd_per_1000_images": vars(option.cost),
    }


def _figures(ask: Ask, machine: Machine, price: Mapping[str, Any]) -> dict[str, Any]:
    few, many = needed(ask, machine)
    return {
        "gpus": machine.gpus,
        "precision": machine.precision,
        **price,
        "context": machine.fit.context,
        "at_once": machine.fit.requests,
        "by": "measured" if machine.measured else "estimate",
        "requests_per_second": vars(machine.rate),
        "replicas": None if ask.qps is None else {"low": few, "high": many},
        "seconds": None if ask.total is None else vars(seconds(ask, machine)),
    }
