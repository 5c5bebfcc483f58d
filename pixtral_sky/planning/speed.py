"""Estimates from data sheets how fast GPUs answer, as a range. Pure.

Nothing here was measured on Pixtral. The assumptions:

- A picture is encoded once, and a prompt computed once (no prompt shares its beginning with another).
  Arithmetic bounds both: the operations below, at the share PREFILL of the data sheet.
- Each token of an answer reads all weights of the decoder, once for all requests in the step, and the KV
  cache of each request. The memory's bandwidth bounds it, at the share DECODE of the data sheet, or
  arithmetic where a step has many requests.
- Steps that compute prompts and steps that compute answers take turns, and their times add up.
- FP8 halves the bytes of the decoder's linear layers. GPUs that compute in FP8 are up to twice as fast there:
  their data sheets have twice the FP8 operations of the bf16 ones. At worst they are no faster, as each
  layer's inputs have to be converted. Other GPUs compute in bf16.
- GPUs share all work evenly. Without NVLink they may wait for each other as long as they compute.
- Each step takes STEP_SECONDS more, however fast the GPUs are.

Not in the estimate: the machine's CPUs, which decode some 10 pictures a second and core; the network; and
the wait for other requests, where more come than the GPUs answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from pixtral_sky.memory import GPUS, Fit, Workload
from pixtral_sky.pixtral import (
    DECODER,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_BYTES_PER_TOKEN,
    LAYERS,
    OUTPUT,
    PATCH,
    patches,
)

# Shares of the data sheet, (worst, best), estimated. The best of DECODE was seen: one L4 with vLLM 0.29 made
# 29.8 tokens/s of 9.25 GB of weights, which is 92% of its 300 GB/s.
PREFILL = (0.35, 0.75)
DECODE = (0.5, 0.92)
FP8 = (1.0, 2.0)  # times bf16, where a GPU computes in FP8; (worst, best)
APART = 0.5  # what is left at worst of several GPUs without NVLink
STEP_SECONDS = (0.005, 0.001)  # to schedule a step, to sample, to start kernels; (worst, best), estimated

# params.json: vision_encoder. The weights that multiply each patch: the encoder's layers (402,653,184), its
# first convolution, and the adapter's two matrices.
VISION_LAYERS, VISION_HIDDEN, VISION_MLP = 24, 1_024, 4_096
VISION = (
    VISION_LAYERS * (4 * VISION_HIDDEN**2 + 3 * VISION_HIDDEN * VISION_MLP)
    + 3 * PATCH**2 * VISION_HIDDEN
    + (VISION_HIDDEN + HIDDEN) * HIDDEN
)


@dataclass(frozen=True)
class Range:
    """An estimate: the value is likely between ``low`` and ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    first_token: Range  # seconds, of a request that has the GPUs to itself
    alone: Range  # tokens a second of its answer after that
    requests: Range  # requests a second, with as many at once as the GPUs hold (Fit.requests)


def speed(fit: Fit, workload: Workload) -> Speed:
    """The speed of the GPUs of ``fit``, estimated. Raises ValueError when they do not hold the workload."""
    if not fit.fits:
        raise ValueError(fit.why_not)
    if not fit.requests:
        raise ValueError(f"a request has {workload.tokens:,} tokens, more than the context")
    slow, fast = (_speeds(fit, workload, best) for best in (False, True))
    # The slow case has more seconds.
    first = Range(fast[0], slow[0])
    alone, requests = (Range(slow[i], fast[i]) for i in (1, 2))
    return Speed(first, alone, requests)


def picture_operations(width: int, height: int) -> int:
    """Operations to encode a picture of ``width`` x ``height`` pixels, once."""
    columns, rows = patches(width, height)
    count = columns * rows
    # Attention uses each pair of patches twice: to compare them, and to sum up.
    return 2 * VISION * count + 4 * VISION_LAYERS * VISION_HIDDEN * count**2


def prompt_operations(tokens: int) -> int:
    """Operations to compute a prompt of ``tokens``, without the encoding of its pictures."""
    # A token attends to those before it only: half of all pairs.
    return 2 * (DECODER * tokens + OUTPUT) + 2 * LAYERS * HEADS * HEAD_DIM * tokens**2


def step_bytes(precision: str) -> int:
    """Bytes of weights that a step reads; of the input vocabulary it reads single rows only."""
    return (1 if precision == "fp8" else 2) * DECODER + 2 * OUTPUT


def _speeds(fit: Fit, workload: Workload, best: bool) -> tuple[float, float, float]:
    """Seconds to the first token; tokens a second of one request; requests a second of all."""
    gpu = GPUS[fit.gpu]
    together = fit.count * (1 if best or gpu.nvlink or fit.count == 1 else APART)
    arithmetic = gpu.tflops * 1e12 * PREFILL[best] * together
    bandwidth = gpu.bandwidth * 1e9 * DECODE[best] * together
    quicker = FP8[best] if fit.precision == "fp8" and gpu.fp8 else 1
    # On average an answer is half done.
    context = workload.prompt + workload.answer / 2

    def step(requests: int) -> float:
        """Seconds to compute one token for each of ``requests``."""
        reading = (step_bytes(fit.precision) + requests * context * KV_BYTES_PER_TOKEN) / bandwidth
        computing = requests * 2 * (DECODER / quicker + OUTPUT) / arithmetic
        return max(reading, computing) + STEP_SECONDS[best]

    operations: float = prompt_operations(workload.prompt)
    if workload.images:
        operations += workload.images * picture_operations(workload.width, workload.height)
    operations -= 2 * DECODER * workload.prompt * (1 - 1 / quicker)
    first = operations / arithmetic + STEP_SECONDS[best]
    each = first + workload.answer * step(fit.requests) / fit.requests
    return first, 1 / step(1), 1 / each
