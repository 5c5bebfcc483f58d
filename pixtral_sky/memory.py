"""Which GPUs hold Pixtral 12B in bf16 and FP8, with how much context, for how many requests at once. Pure.

The weights on each GPU, and the tokens and the context that an amount of memory holds, are exact:
``tests/real/engine/test_memory.py`` checks them against vLLM's own code. What vLLM needs besides
(``activations``, ``OTHER_GIB``) is estimated. So a number of tokens is a range, and its safe low end decides.

FP8 is vLLM's online quantization of the decoder's linear layers. The vision encoder, the adapter, both
vocabularies and all norms stay in bf16. So does the KV cache: with FP8 there, vLLM leaves FlashAttention.
"""

from __future__ import annotations

from dataclasses import dataclass

from pixtral_sky.pixtral import (
    BOX,
    DECODER,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_BYTES_PER_TOKEN,
    KV_HEADS,
    LAYERS,
    MAX_IMAGE_TOKENS,
    MLP,
    PATCH,
    TENSOR_PARALLEL,
    VOCABULARY,
    WEIGHT_BYTES,
    image_tokens,
)

PRECISIONS = ("bf16", "fp8")

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    memory: float  # GiB that CUDA reports: less than the name says, as ECC and the driver take some
    tflops: float  # 10^12 dense bf16 operations a second; a multiplication and an addition are two
    bandwidth: float  # 10^9 bytes a second
    nvlink: bool = False  # joins several in a machine
    fp8: bool = True  # the tensor cores compute in FP8 (compute capability 8.9 and newer)


# The names are SkyPilot's. Memory: the lowest that messages of PyTorch ("GPU 0 has a total capacity of")
# and of vLLM ("Free memory on device") name for each, found in public repositories; where a thread is
# named, it shows this figure or one within 0.1 GiB. Speed: NVIDIA's data sheet, without sparsity; of the
# form that clouds sell most (SXM, where there is one).
GPUS = {
    # pytorch/pytorch#175666: 22.05, older drivers 21.95. Data sheet of the L4: 242 with sparsity.
    "L4": Gpu(21.95, 121, 300),
    # 21.98 to 22.19 (vllm-project/vllm#17835). Made for AWS, without a data sheet of NVIDIA: the TFLOPS are
    # an estimate (Baseten, "NVIDIA A10 vs A10G": 70, where an A10 has 125); the memory is that of an A10.
    "A10G": Gpu(21.98, 70, 600, fp8=False),
    # stepfun-ai/Step-Video-T2V#8: 44.42; 44.34 is the lowest of cards of its size. Data sheet of the L40S.
    "L40S": Gpu(44.34, 362, 864),
    # vllm-project/vllm#16570. Data sheet of the A100, 40 GB.
    "A100": Gpu(39.38, 312, 1_555, nvlink=True, fp8=False),
    # 79.14 to 79.25. Data sheet of the A100, 80 GB PCIe: the slower of the two forms.
    "A100-80GB": Gpu(79.14, 312, 1_935, nvlink=True, fp8=False),
    # vllm-project/vllm#27508: 79.11. Data sheet of the H100 SXM; as a PCIe card it is 756 and 2,000.
    "H100": Gpu(79.10, 989, 3_350, nvlink=True),
    # 139.72 to 139.81. Data sheet of the H200 SXM.
    "H200": Gpu(139.72, 989, 4_800, nvlink=True),
    # 178.35 and 178.36. Data sheet of the HGX B200, for each of its eight.
    "B200": Gpu(178.35, 2_250, 7_700, nvlink=True),
    # 3DTopia/Phidias-Diffusion#8: 23.64; the lowest is 23.51. Ada white paper, with FP32 accumulation.
    "RTX4090": Gpu(23.51, 165, 1_008),
    # Wan-Video/Wan2.1#465: 31.37; the lowest is 31.34. RTX Blackwell white paper, with FP32 accumulation.
    "RTX5090": Gpu(31.34, 209, 1_792),
    # DINGYANB/MTVCrafter#21: 44.43, with ECC on; 47.4 without. Data sheet: a quarter of 1,457 in sparse FP8.
    "RTX6000-Ada": Gpu(44.43, 364, 960),
    # antirez/ds4#431. Data sheet of the Server Edition, which clouds sell. It names no bf16, so the TFLOPS
    # are an estimate: four times its 120 in FP32, as with the RTX 6000 Ada.
    "RTXPRO6000": Gpu(94.97, 480, 1_597),
}

BLOCK = 16  # tokens; vLLM 0.32's DEFAULT_BLOCK_SIZE, which its CUDA backends keep
# vLLM's limit, as params.json names none: what --max-model-len -1 and larger numbers mean.
MODEL_CONTEXT = 128_000

# vLLM 0.32's pixtral.py has the adapter, all norms and the vision encoder's first convolution on every GPU.
# It splits the rest, with the vision encoder and both vocabularies.
REPLICATED_BYTES = 2 * (31_467_520 + 81 * HIDDEN + 49 * 1_024 + 1_024 * 3 * PATCH * PATCH)
# FP8 has a scale of 32 bits for each output of a linear layer. Two layers have all outputs on every GPU.
SCALES_SHARED = 4 * LAYERS * (HEAD_DIM * (HEADS + 2 * KV_HEADS) + 2 * MLP)
SCALES_REPLICATED = 4 * LAYERS * 2 * HIDDEN
ROPE_BYTES = MODEL_CONTEXT * HEAD_DIM * 2  # the table of cosines and sines for each position

# Other memory, in GiB a GPU: CUDA graphs, kernels, cuBLAS, NCCL. Estimated. The low end is below what vLLM
# 0.26 and 0.29 reported for one L4 (0.07 + 0.78, and 0.33 + 0.24 with some buffers), and vLLM 0.32 for one
# H200 (docs/measured.md); the high end leaves room for several GPUs. The range of all tokens comes from here.
OTHER_GIB = (0.3, 2.0)

DEFAULT_CONTEXT = 32_768  # the script's choice where MAX_MODEL_LEN is empty, but ...
DEFAULT_ROOM = 4_096  # ... at least this many tokens more than all pictures take
DEFAULT_IMAGES = 4  # MAX_IMAGES of pixtral.yaml


@dataclass(frozen=True)
class Settings:
    """What the script of pixtral.yaml chooses for vLLM, by what nvidia-smi says of the GPUs."""

    batched_tokens: int  # computed in one step
    sequences: int  # the most requests in one step
    memory_utilization: float  # the share of a GPU's memory that vLLM takes; it has to be free at the start
    custom_all_reduce: bool


def settings(gpu: str, count: int) -> Settings:
    """What the script chooses for GPUs (templates/run.sh)."""
    kind, several = GPUS[gpu], count > 1
    # A step has room for at least one full picture, 4,160 tokens. All other answers wait for it: on an H100
    # 0.3 to 0.6 s for 8,192 tokens (planning/speed.py). vLLM's arg_utils.py gives the A100 smaller steps too.
    large = kind.memory >= 70 and not gpu.startswith("A100")
    # With CUDA and NCCL running, two L4 had 19.77 of 22.05 GiB free (pytorch/pytorch#175666): 0.8966.
    tight = several and kind.memory < 30
    return Settings(
        batched_tokens=8_192 if large else 4_352,
        sequences=64,
        memory_utilization=0.88 if tight else 0.92,
        custom_all_reduce=kind.nvlink or not several,
    )


@dataclass(frozen=True)
class Workload:
    """One request."""

    images: int = 1
    width: int = BOX  # pixels
    height: int = BOX
    text: int = 75  # tokens
    answer: int = 300  # tokens

    @property
    def prompt(self) -> int:
        """Tokens of the pictures and the text."""
        pictures = self.images * image_tokens(self.width, self.height) if self.images else 0
        return pictures + self.text

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and the answer: what a request takes of the context."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Fit:
    """What ``count`` GPUs of a kind hold. All numbers but that are 0 where the model does not fit."""

    gpu: str
    count: int
    precision: str
    why_not: str  # in a line; empty: it fits
    kv_tokens: int  # of context that all requests together can count on
    kv_tokens_most: int  # of context that they may have at best
    context: int  # the server's: tokens of the longest prompt with its answer
    requests: int  # of the workload that are computed at once; more wait

    @property
    def fits(self) -> bool:
        return not self.why_not


def fits(
    gpu: str,
    count: int,
    max_model_len: int | None = None,
    max_images: int = DEFAULT_IMAGES,
    workload: Workload | None = None,
    precision: str = "bf16",
) -> Fit:
    """Whether GPUs hold the model with a context of ``max_model_len`` tokens, in which ``max_images`` fit.

    None: the script's choice, or what fits where that is less; -1: all that fits. An estimate; see the top of
    this module. Raises ValueError for an unknown GPU or precision, and for less than one picture or token.
    """
    if max_images < 1:
        raise ValueError(f"a prompt has 1 picture or more, not {max_images}")
    if max_model_len is not None and max_model_len < 1 and max_model_len != -1:
        raise ValueError(f"a context has 1 token or more, or is -1 for all that fits, not {max_model_len}")
    if precision not in PRECISIONS:
        raise ValueError(f"a precision is {' or '.join(PRECISIONS)}, not {precision}")
    if gpu not in GPUS:
        raise ValueError(f"{gpu} is not known here; these are: {', '.join(GPUS)}")
    refusal = _refusal(gpu, count, max_model_len, max_images, precision)
    if refusal:
        return Fit(gpu, count, precision, refusal, kv_tokens=0, kv_tokens_most=0, context=0, requests=0)
    least, most = (available(gpu, count, other, precision) for other in reversed(OTHER_GIB))
    tokens = tokens_in(least, count)
    context = min(context_in(least, count), wanted_context(max_model_len, max_images))
    request = (workload or Workload()).tokens
    at_once = (tokens // BLOCK - 1) // -(-request // BLOCK) if request <= context else 0
    return Fit(
        gpu,
        count,
        precision,
        why_not="",
        kv_tokens=tokens,
        kv_tokens_most=tokens_in(most, count),
        context=context,
        requests=min(at_once, settings(gpu, count).sequences),
    )


def default_context(max_images: int) -> int:
    """The context that the script takes where MAX_MODEL_LEN is empty and the context fits."""
    return min(MODEL_CONTEXT, max(DEFAULT_CONTEXT, max_images * MAX_IMAGE_TOKENS + DEFAULT_ROOM))


def wanted_context(max_model_len: int | None, max_images: int) -> int:
    """The context that the server takes where it fits; ``max_model_len`` as in ``fits``."""
    if max_model_len is None:
        return default_context(max_images)
    return MODEL_CONTEXT if max_model_len == -1 else max_model_len


def weight_bytes(count: int, precision: str = "bf16") -> int:
    """Bytes of weights on each of ``count`` GPUs. Exact, but for Marlin: its scales take 4 MB less."""
    whole = REPLICATED_BYTES + (WEIGHT_BYTES - REPLICATED_BYTES) // count
    if precision == "bf16":
        return whole
    return whole - DECODER // count + SCALES_SHARED // count + SCALES_REPLICATED


def tokens_in(free: int, count: int) -> int:
    """Tokens of KV cache in ``free`` bytes on each of ``count`` GPUs, as vLLM counts them. Exact."""
    return free // (BLOCK * KV_BYTES_PER_TOKEN // count) * BLOCK


def context_in(free: int, count: int) -> int:
    """Tokens of ``--max-model-len -1`` with ``free`` bytes of cache on each GPU; below 1: none. Exact."""
    # vLLM keeps one block for itself.
    return min(MODEL_CONTEXT, tokens_in(free, count) - BLOCK)


def activations(batched_tokens: int, count: int) -> int:
    """Bytes on each GPU while it computes one step of ``batched_tokens``. An estimate, on the safe side.

    The decoder's MLP has two inputs and their product, split over the GPUs. Each GPU has hidden states, the
    residual, and a sum before and after the all-reduce; and the encoded pictures of the step, 4,096 patches
    each. The tensors of vLLM 0.32's own layers, run one by one, are 11 to 23% smaller, in FP8 as well
    (``tests/real/engine/test_memory.py``); the rest is for its kernels.
    """
    images = max(1, batched_tokens // (BOX // PATCH) ** 2)
    decoder = batched_tokens * 2 * (4 * HIDDEN + 3 * MLP // count)
    return decoder + images * (BOX // PATCH) ** 2 * 2 * HIDDEN


def available(gpu: str, count: int, other: float, precision: str = "bf16") -> int:
    """Bytes left for the KV cache on each GPU, or a negative number. ``other`` is one of OTHER_GIB."""
    chosen = settings(gpu, count)
    step = chosen.batched_tokens
    # Buffers that vLLM 0.32's model runner makes at its start: the embeddings of one step, and for each
    # request and token a count (32 bits) and whether the prompt has it (1 bit).
    buffers = step * 2 * HIDDEN + chosen.sequences * VOCABULARY * 33 // 8 + ROPE_BYTES
    taken = weight_bytes(count, precision) + activations(step, count) + buffers
    return int(_usable(gpu, count) * GIB) - taken - int(other * GIB)


def _usable(gpu: str, count: int) -> float:
    """GiB that vLLM takes of each GPU."""
    return GPUS[gpu].memory * settings(gpu, count).memory_utilization


def _refusal(gpu: str, count: int, max_model_len: int | None, max_images: int, precision: str) -> str:
    """Why known GPUs do not hold the model, and whether they do in FP8."""
    if count not in TENSOR_PARALLEL:
        return f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}."
    pictures = max_images * MAX_IMAGE_TOKENS
    needed = pictures + 1 if max_model_len in (None, -1) else max_model_len
    assert needed
    if needed > MODEL_CONTEXT:
        return f"Pixtral's context is {MODEL_CONTEXT:,} tokens, not {needed:,}."
    if needed <= pictures:
        return f"{max_images} full pictures are {pictures:,} tokens, and the context is {needed:,}."
    context = _safe_context(gpu, count, precision)
    if context >= needed:
        return ""
    each = "" if count == 1 else " on each GPU"
    usable, weights = _usable(gpu, count), weight_bytes(count, precision) / GIB
    has = f"{gpu}:{count} has {usable:.1f} GiB for vLLM{each}"
    if weights > usable:
        reason = f"{has}, and the {precision} weights alone are {weights:.1f} GiB."
    else:
        reason = (
            f"{has}; beside {weights:.1f} GiB of {precision} weights that is a context of about "
            f"{max(context, 0):,} tokens, not {needed:,}."
        )
    more = _safe_context(gpu, count, "fp8")
    if precision == "bf16" and more > pictures:
        more = min(more, wanted_context(max_model_len, max_images))
        reason += f" With --precision fp8 it holds a context of about {more:,} tokens."
    return reason


def _safe_context(gpu: str, count: int, precision: str) -> int:
    return context_in(available(gpu, count, max(OTHER_GIB), precision), count)
