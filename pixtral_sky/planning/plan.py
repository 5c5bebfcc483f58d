"""Plans which GPUs carry a workload, and what that costs. Pure.

``memory`` says what GPUs hold, ``speed`` or a measurement how fast they are. The safe end of a range decides
the order and the number of replicas: the low end of a speed, the high end of a cost.
"""

from __future__ import annotations

import decimal
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from pixtral_sky.deploy.prices import Offer
from pixtral_sky.deploy.replica_policy import ON_DEMAND
from pixtral_sky.errors import UsageError
from pixtral_sky.memory import GPUS, MODEL_CONTEXT, PRECISIONS, Fit, Workload, fits, wanted_context
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS, TENSOR_PARALLEL
from pixtral_sky.planning import speed
from pixtral_sky.planning.speed import Range
from pixtral_sky.text import closest

LEAST_QPS, MOST_QPS = 0.001, 10_000  # what a person may mean, and a table can show
MOST_TOTAL = 10**12


@dataclass(frozen=True)
class Ask:
    """What a plan is for: requests like ``workload``, and how many."""

    workload: Workload
    context: int | None  # MAX_MODEL_LEN of the server; None: the script's choice
    max_images: int  # MAX_IMAGES of the server
    qps: float | None = None  # requests a second, at the busiest
    total: int | None = None  # pictures
    least: int = 1  # replicas at all times, where qps is given


@dataclass(frozen=True)
class Machine:
    """GPUs that hold the model."""

    fit: Fit
    rate: Range  # requests a second, as many at once as they hold
    measured: bool

    @property
    def gpus(self) -> str:
        """The value for --gpus: L4:2."""
        return f"{self.fit.gpu}:{self.fit.count}"

    @property
    def precision(self) -> str:
        return self.fit.precision


@dataclass(frozen=True)
class Unfit:
    """GPUs that do not hold the model in a precision, and why, in a line."""

    gpus: str
    precision: str
    why: str


@dataclass(frozen=True)
class Option:
    """A machine at a price. What depends on a number that Ask has not is (0, 0)."""

    machine: Machine
    offer: Offer
    hourly: float  # USD an hour of one machine, without its disk
    whole: float  # USD an hour with its disk, where the disk's price is known
    cost: Range  # USD for 1,000 pictures, by `whole`
    replicas: tuple[int, int]  # that carry Ask.qps
    together: Range  # USD an hour of all replicas
    seconds: Range  # that one machine takes for Ask.total


@dataclass(frozen=True)
class Plan:
    ask: Ask
    spot: bool
    machines: Sequence[Machine]  # the fastest first, by the low end
    unfit: Sequence[Unfit]
    options: Sequence[Option]  # the machines with a price; the least cost of the work first
    offered: Set[str] | None  # GPUs (L4:2) with a price; None: prices were not read


# The question ----------------------------------------------------------------------------------------


def asked(
    workload: Workload,
    context: int | None,
    max_images: int,
    qps: float | None = None,
    total: int | None = None,
    least: int = 1,
) -> Ask:
    """The checked Ask. ``max_images`` is the file's; where that does not fit, the workload's number is taken.

    Raises UsageError.
    """
    if qps is not None and total is not None:
        raise UsageError("--qps is a stream of requests, --total a pile of pictures.", "Give one of the two.")
    if qps is not None and not LEAST_QPS <= qps <= MOST_QPS:  # not so for NaN, too
        raise UsageError(f"--qps is a number of requests a second, {LEAST_QPS} to {MOST_QPS:,}, not {qps:g}.")
    if total is not None and not 1 <= total <= MOST_TOTAL:
        raise UsageError(f"--total is a number of pictures, 1 to {MOST_TOTAL:,}, not {total:,}.")
    for name, value, lowest in (
        ("--images", workload.images, 1),
        ("--prompt-tokens", workload.text, 0),
        ("--answer-tokens", workload.answer, 1),
    ):
        if value < lowest:
            raise UsageError(f"{name} is a whole number from {lowest} on, not {value}.")
    if context not in (None, -1) and not 1 <= context <= MODEL_CONTEXT:
        raise UsageError(
            f"--context is a number of tokens from 1 to {MODEL_CONTEXT:,}, or -1 for all, not {context}."
        )
    if workload.images > max_images or wanted_context(context, max_images) <= max_images * MAX_IMAGE_TOKENS:
        max_images = workload.images
    limit = wanted_context(context, max_images)
    pictures = max_images * MAX_IMAGE_TOKENS
    needed = pictures + workload.text + workload.answer
    shares = {"--images": pictures, "--prompt-tokens": workload.text, "--answer-tokens": workload.answer}
    largest = max(shares, key=lambda option: shares[option])
    more = f"For example: --context {needed}" if needed <= MODEL_CONTEXT else f"Less of it: {largest}"
    if limit <= pictures:
        raise UsageError(
            f"{max_images} picture{'s' * (max_images != 1)} can be {pictures:,} tokens, and the context is "
            f"{limit:,}.",
            more,
        )
    if workload.tokens > limit:
        raise UsageError(
            f"A request is {workload.prompt:,} tokens with an answer of {workload.answer:,}, and the context "
            f"is {limit:,}.",
            more,
        )
    return Ask(workload, context, max_images, qps, total, least)


def size(text: str) -> tuple[int, int]:
    """Width and height of ``1920x1080``. Raises UsageError."""
    found = re.fullmatch(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})", text.strip(), re.ASCII)
    if not found:
        raise UsageError(f"{text!r} is no size of a picture, in pixels.", "For example: --size 1920x1080")
    return int(found[1]), int(found[2])


def gpus(text: str | None) -> list[tuple[str, int]]:
    """GPUs and counts of ``L4,H100:1``. No count means each count, no text all GPUs. Raises UsageError."""
    if text is None:
        return [(gpu, count) for gpu in GPUS for count in TENSOR_PARALLEL]
    if not text.strip():
        raise UsageError("--gpus is empty.", "Leave it out to take all that are known here.")
    known = {gpu.lower(): gpu for gpu in GPUS}
    found: dict[tuple[str, int], None] = {}
    for word in text.split(","):
        name, sign, count = word.strip().partition(":")
        if not (gpu := known.get(name.lower())):
            close = closest(name, GPUS)
            question = f"Did you mean {close}? " if close else ""
            raise UsageError(
                f"The GPU {name!r} is not known here.", f"{question}These are: {', '.join(GPUS)}"
            )
        if sign and count not in map(str, TENSOR_PARALLEL):
            raise UsageError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count or 'none'}.")
        found |= dict.fromkeys((gpu, each) for each in ([int(count)] if sign else TENSOR_PARALLEL))
    return list(found)


def precisions(text: str) -> tuple[str, ...]:
    """The precisions that ``bf16``, ``fp8`` or ``both`` names. Raises UsageError."""
    word = text.lower()
    if word == "both":
        return PRECISIONS
    if word not in PRECISIONS:
        raise UsageError(f"--precision is bf16, fp8 or both, not {text!r}.")
    return (word,)


# The answer ------------------------------------------------------------------------------------------


def plan(
    ask: Ask,
    machines: Iterable[Machine],
    unfit: Sequence[Unfit],
    offers: Sequence[Offer] | None,
    spot: bool,
) -> Plan:
    """The plan for machines at the prices of ``offers`` (None: without prices).

    Raises UsageError where no machine has a price.
    """

    def order(machine: Machine) -> tuple[float, int, str, str]:
        # Where they are as fast, fewer GPUs come first, and then bf16, as in `options`.
        return -machine.rate.low, machine.fit.count, machine.precision, machine.fit.gpu

    machines = sorted(machines, key=order)
    if offers is None:
        return Plan(ask, spot, machines, unfit, [], None)
    found = options(ask, machines, offers, spot)
    if not found:
        what = "spot price" if spot else "price"
        raise UsageError(f"None of these clouds has a {what} for what fits.", "Name other --clouds or --gpus")
    return Plan(ask, spot, machines, unfit, found, {f"{each.gpu}:{each.count}" for each in offers})


def machines(
    ask: Ask,
    wanted: Iterable[tuple[str, int]],
    measured: Mapping[tuple[str, str], Range],
    precisions: Sequence[str] = PRECISIONS,
) -> tuple[list[Machine], list[Unfit]]:
    """The GPUs that hold the model, and those that do not.

    ``measured`` has requests a second by GPUs (L4:2) and precision. Raises UsageError when none holds it.
    """
    found: list[Machine] = []
    unfit: list[Unfit] = []
    for (gpu, count), precision in itertools.product(wanted, precisions):
        fit = fits(gpu, count, ask.context, ask.max_images, ask.workload, precision)
        name = f"{gpu}:{count}"
        why = fit.why_not
        if fit.fits and not fit.requests:
            # With a context of all that fits, that may be too little for this request.
            why = f"{name} holds a context of about {fit.context:,} tokens, and a request is more."
        if why:
            unfit.append(Unfit(name, precision, why))
        else:
            rate = measured.get((name, precision)) or speed.speed(fit, ask.workload).requests
            found.append(Machine(fit, rate, (name, precision) in measured))
    if not found:
        # The last is the largest: its reason holds for all.
        raise UsageError(
            f"None of these GPUs holds it: {unfit[-1].why}", "Larger --gpus, or a smaller --context"
        )
    return found, unfit


def target(rate: float) -> float:
    """The target_qps_per_replica for a ``rate``: three digits, rounded down."""
    return float(decimal.Context(prec=3, rounding=decimal.ROUND_FLOOR).create_decimal(repr(rate)))


def replicas(qps: float, rate: float) -> int:
    """The number of replicas that answer ``qps``, as SkyServe's autoscaler counts them."""
    return math.ceil(qps / target(rate))


def options(ask: Ask, machines: Iterable[Machine], offers: Iterable[Offer], spot: bool) -> list[Option]:
    """Each machine in the cheapest region of each cloud; the least cost of the work first.

    With ``spot``, at the spot price; offers without one are left out.
    """
    held: dict[tuple[str, int], list[Machine]] = {}
    for machine in machines:
        held.setdefault((machine.fit.gpu, machine.fit.count), []).append(machine)
    cheapest: dict[tuple[str, int, str], tuple[float, Offer]] = {}
    for offer in offers:
        hourly = offer.spot if spot else offer.hourly
        if hourly is None or (offer.gpu, offer.count) not in held:
            continue
        key = (offer.gpu, offer.count, offer.cloud)
        # The region's name breaks a tie, so that a plan does not depend on the order of a catalog.
        if key not in cheapest or (hourly, offer.region) < (cheapest[key][0], cheapest[key][1].region):
            cheapest[key] = (hourly, offer)
    found = [
        _option(ask, machine, offer, hourly, spot)
        for hourly, offer in cheapest.values()
        for machine in held[offer.gpu, offer.count]
    ]

    def order(option: Option) -> tuple[float, float, str, str, str]:
        # Where both precisions cost the same, bf16 comes first: its answers are those of the model.
        machine = option.machine
        return option.cost.high, option.whole, machine.gpus, machine.precision, option.offer.cloud

    return sorted(found, key=order)


def needed(ask: Ask, machine: Machine) -> tuple[int, int]:
    """The fewest and the most replicas that Ask.qps may need; the most are safe."""
    if ask.qps is None:
        return 0, 0
    few, many = (replicas(ask.qps, rate) for rate in (machine.rate.high, machine.rate.low))
    return max(few, ask.least), max(many, ask.least)


def on_demand(ask: Ask) -> int:
    """The number of replicas of a spot service that are never on spot, as in ``replica_policy.policy``."""
    return min(ask.least, ON_DEMAND)


def seconds(ask: Ask, machine: Machine) -> Range:
    """The seconds that one machine takes for Ask.total pictures."""
    if ask.total is None:
        return Range(0, 0)
    images = ask.workload.images
    return Range(ask.total / (machine.rate.high * images), ask.total / (machine.rate.low * images))


def usd(value: float) -> str:
    """In cents, or below ten cents in two digits."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:#.2g}"


def _option(ask: Ask, machine: Machine, offer: Offer, hourly: float, spot: bool) -> Option:
    count = needed(ask, machine)
    whole = hourly + (offer.disk or 0)
    together = Range(0, 0)
    if ask.qps is not None:
        # SkyServe's FallbackRequestRateAutoscaler counts them in its target.
        more = on_demand(ask) * (offer.hourly - hourly) if spot else 0
        together = Range(*(whole * each + more for each in count))
        # Idle replicas cost money too, so the cost is spread over the pictures that come.
        low, high = together.low / ask.qps, together.high / ask.qps
    else:
        low, high = whole / machine.rate.high, whole / machine.rate.low
    thousand = 1_000 / 3_600 / ask.workload.images
    cost = Range(low * thousand, high * thousand)
    return Option(machine, offer, hourly, whole, cost, count, together, seconds(ask, machine))
