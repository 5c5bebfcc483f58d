"""How fast GPUs may answer: an estimate by their data sheets, as a range. Pure.

Nothing here was measured on Pixtral. What is assumed:

- A picture is encoded once, and a prompt computed once (no prompt shares its beginning with another).
  Both are bound by arithmetic: the operations below, at PREFILL of what the data sheet says.
- Each token of an answer reads all weights of the decoder once, for all requests that are computed
  together, and the KV cache of each. That is bound by the memory's bandwidth, at DECODE of the data
  sheet's, or by arithmetic where many requests are computed together.
- Steps that compute prompts and steps that compute answers take turns, and their times add up.
- In FP8 the linear layers of the decoder are read at half the bytes. GPUs that compute in FP8 compute them up
  to twice as fast: NVIDIA's data sheets have twice the FP8 operations of the bf16 ones for each GPU that has
  them. At worst it is no faster, as each layer's inputs have to be converted. Others compute them in bf16.
- GPUs share all work evenly. Without NVLink they may wait for each other as long as they compute.
- Each step costs STEP_SECONDS besides, however fast the GPUs are.

Not in it: the machine's CPUs, which unpack some 10 pictures a second and core; the network; and waiting
for other requests, where more come than can be answered.
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

# params.json: vision_encoder. What each patch is multiplied with: the encoder's layers (402,653,184), its
# first convolution, and the adapter's two matrices.
VISION_LAYERS, VISION_HIDDEN, VISION_MLP = 24, 1_024, 4_096
VISION = (
    VISION_LAYERS * (4 * VISION_HIDDEN**2 + 3 * VISION_HIDDEN * VISION_MLP)
    + 3 * PATCH**2 * VISION_HIDDEN
    + (VISION_HIDDEN + HIDDEN) * HIDDEN
)


@dataclass(frozen=True)
class Range:
    """An estimate: it is likely between ``low`` and ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """An estimate of what GPUs do with a workload.

    Of one request that has them to itself: the seconds to its ``first_token``, and the tokens of its
    answer a second after that (``alone``). Of as many as they hold at once (``Fit.requests``), all
    together: ``requests`` a second.
    """

    first_token: Range
    alone: Range
    requests: Range


def speed(fit: Fit, workload: Workload) -> Speed:
    """How fast the GPUs of ``fit`` may be at a workload that they hold. An estimate; see above.

    Raises ValueError when they do not hold it.
    """
    if not fit.fits:
        raise ValueError(fit.why_not)
    if not fit.requests:
        raise ValueError(f"a request has {workload.tokens:,} tokens, more than the context")
    slow, fast = (_speeds(fit, workload, best) for best in (False, True))
    # Seconds are the other way round: the slow way's are more.
    first = Range(fast[0], slow[0])
    alone, requests = (Range(slow[i], fast[i]) for i in (1, 2))
    return Speed(first, alone, requests)


def picture_operations(width: int, height: int) -> int:
    """Operations to encode a picture of ``width`` x ``height`` pixels, once."""
    columns, rows = patches(width, height)
    count = columns * rows
    # In the attention each patch meets each other one twice: to be compared, and to be summed up.
    return 2 * VISION * count + 4 * VISION_LAYERS * VISION_HIDDEN * count**2


def prompt_operations(tokens: int) -> int:
    """Operations to compute a prompt of so many tokens, its pictures' encoding aside."""
    # A token meets those before it only: half of all pairs.
    return 2 * (DECODER * tokens + OUTPUT) + 2 * LAYERS * HEADS * HEAD_DIM * tokens**2


def step_bytes(precision: str) -> int:
    """Bytes of weights that are read for each token; the other vocabulary is looked up, not read."""
    return (1 if precision == "fp8" else 2) * DECODER + 2 * OUTPUT


def _speeds(fit: Fit, workload: Workload, best: bool) -> tuple[float, float, float]:
    """Seconds to the first token; tokens a second of one request; requests a second of all."""
    gpu = GPUS[fit.gpu]
    together = fit.count * (1 if best or gpu.nvlink or fit.count == 1 else APART)
    arithmetic = gpu.tflops * 1e12 * PREFILL[best] * together
    bandwidth = gpu.bandwidth * 1e9 * DECODE[best] * together
    quicker = FP8[best] if fit.precision == "fp8" and gpu.fp8 else 1
    # Over an answer the context grows from the prompt to the prompt with all of it.
    context = workload.prompt + workload.answer / 2

    def step(requests: int) -> float:
        """Seconds to compute one token for each of so many requests."""
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
