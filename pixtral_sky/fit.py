"""Which GPUs hold Pixtral 12B in bf16, with how much context, and for how many requests at once. Pure.

Exact, and checked against vLLM's own code by ``tests/test_fit_engine.py``: the weights on each GPU, and
the tokens and the context that an amount of memory holds. Estimated, on the safe side: what vLLM needs
besides (``activations``, ``OTHER_GIB``). So a number of tokens is a range, and its low end decides.

Not in it: before it loads the model, vLLM 0.32 wants GPU_MEMORY_UTILIZATION of each GPU free, with CUDA and
NCCL running. On an L4 that leaves these 1.75 GiB, which one L4 is far from; two, joined by Ray under
PyTorch 2.11, have been over it (pytorch/pytorch#175666).
"""

from __future__ import annotations

from dataclasses import dataclass

from pixtral_sky.model import (
    BOX,
    KV_BYTES_PER_TOKEN,
    MAX_IMAGE_TOKENS,
    PATCH,
    TENSOR_PARALLEL,
    WEIGHT_BYTES,
    image_tokens,
)

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    ``memory`` is in GiB as CUDA reports it to a program: less than the name says, as ECC and the driver
    take some. ``tflops`` are 10^12 dense bf16 operations a second, a multiplication and an addition being
    two; ``bandwidth`` is 10^9 bytes a second. ``nvlink``: several in a machine are joined by it.
    """

    memory: float
    tflops: float
    bandwidth: float
    nvlink: bool = False


# The names are SkyPilot's. Memory: the lowest that messages of PyTorch ("GPU 0 has a total capacity of")
# and of vLLM ("Free memory on device") name for each, found in public repositories; where a thread is
# named, it shows this figure or one within 0.1 GiB. Speed: NVIDIA's data sheet, without sparsity; of the
# form that clouds sell most (SXM, where there is one).
GPUS = {
    # pytorch/pytorch#175666: 22.05, older drivers 21.95. Data sheet of the L4: 242 with sparsity.
    "L4": Gpu(21.95, 121, 300),
    # 21.98 to 22.19 (vllm-project/vllm#17835). Made for AWS, without a data sheet of NVIDIA: the TFLOPS are
    # an estimate (Baseten, "NVIDIA A10 vs A10G": 70, where an A10 has 125); the memory is that of an A10.
    "A10G": Gpu(21.98, 70, 600),
    # stepfun-ai/Step-Video-T2V#8: 44.42; 44.34 is the lowest of cards of its size. Data sheet of the L40S.
    "L40S": Gpu(44.34, 362, 864),
    # vllm-project/vllm#16570. Data sheet of the A100, 40 GB.
    "A100": Gpu(39.38, 312, 1_555, nvlink=True),
    # 79.14 to 79.25. Data sheet of the A100, 80 GB PCIe: the slower of the two forms.
    "A100-80GB": Gpu(79.14, 312, 1_935, nvlink=True),
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

GPU_MEMORY_UTILIZATION = 0.92  # vLLM 0.32's default
BLOCK = 16  # tokens; vLLM 0.32's DEFAULT_BLOCK_SIZE, which its CUDA backends keep
# What --max-model-len -1 and larger numbers come to: params.json names no limit, and then this is vLLM's.
MODEL_CONTEXT = 128_000

HIDDEN = 5_120  # params.json: dim
MLP = 14_336  # params.json: hidden_dim
VOCABULARY = 131_072  # params.json: vocab_size
# On every GPU in full, in vLLM 0.32's pixtral.py: the adapter, all norms, and the vision encoder's first
# convolution. All else is shared out, the vision encoder and both vocabularies too.
REPLICATED_BYTES = 2 * (31_467_520 + 81 * HIDDEN + 49 * 1_024 + 1_024 * 3 * PATCH * PATCH)
ROPE_BYTES = MODEL_CONTEXT * 128 * 2  # its table of cosines and sines, for each position and head_dim

# What is not computed here, in GiB a GPU: CUDA graphs, kernels, cuBLAS, NCCL. Estimated; the low end is
# below what vLLM 0.26 and 0.29 said of single L4 (0.07 + 0.78, and 0.33 + 0.24 with some buffers), the
# high end leaves room for several GPUs. The margin of all tokens comes from here.
OTHER_GIB = (0.5, 2.0)

DEFAULT_CONTEXT = 32_768  # MAX_MODEL_LEN and MAX_IMAGES of pixtral.yaml
DEFAULT_IMAGES = 4


@dataclass(frozen=True)
class Workload:
    """What one request is: pictures of a size in pixels; tokens of the text beside them and of the answer."""

    images: int = 1
    width: int = BOX
    height: int = BOX
    text: int = 75
    answer: int = 300

    @property
    def prompt(self) -> int:
        """Tokens of the prompt: its pictures and its text."""
        pictures = self.images * image_tokens(self.width, self.height) if self.images else 0
        return pictures + self.text

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and its answer: what it takes of the context."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Fit:
    """What ``count`` GPUs of a kind hold.

    ``kv_tokens`` of context in all requests together can be counted on; up to ``kv_tokens_most`` are
    possible. ``context`` is the longest prompt with its answer that can be counted on, in tokens.
    ``requests`` of the workload are computed at once; more wait. All are 0 where nothing fits.
    """

    gpu: str
    count: int
    why_not: str
    kv_tokens: int
    kv_tokens_most: int
    context: int
    requests: int

    @property
    def fits(self) -> bool:
        return not self.why_not


def fits(
    gpu: str,
    count: int,
    max_model_len: int = DEFAULT_CONTEXT,
    max_images: int = DEFAULT_IMAGES,
    workload: Workload | None = None,
) -> Fit:
    """Whether GPUs hold the model with a context of ``max_model_len`` tokens (-1: all that fits).

    ``max_images`` pictures of full size fit one prompt and are computed in one step, as pixtral.yaml has
    it. An estimate; see the top of this module.

    Raises ValueError for a GPU that is not known here, and for no picture or no context.
    """
    batched = _batched(max_images)
    if max_model_len < 1 and max_model_len != -1:
        raise ValueError(f"a context has 1 token or more, or is -1 for all that fits, not {max_model_len}")
    _known(gpu)
    if count not in TENSOR_PARALLEL:
        return _nothing(gpu, count, f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}.")
    pictures = max_images * MAX_IMAGE_TOKENS
    needed = pictures + 1 if max_model_len == -1 else max_model_len
    if needed > MODEL_CONTEXT:
        return _nothing(gpu, count, f"Pixtral's context is {MODEL_CONTEXT:,} tokens, not {needed:,}.")
    if needed <= pictures:
        return _nothing(
            gpu, count, f"{max_images} full pictures are {pictures:,} tokens, and the context is {needed:,}."
        )

    least, most = (available(gpu, count, batched, other) for other in reversed(OTHER_GIB))
    context = context_in(least, count)
    if context < needed:
        usable, weights = GPUS[gpu].memory * GPU_MEMORY_UTILIZATION, weight_bytes(count) / GIB
        each = "" if count == 1 else " on each GPU"
        has = f"{gpu}:{count} has {usable:.1f} GiB for vLLM{each}"
        if weights > usable:
            return _nothing(gpu, count, f"{has}, and the weights alone are {weights:.1f} GiB.")
        return _nothing(
            gpu,
            count,
            f"{has}; beside {weights:.1f} GiB of weights that is a context of about {max(context, 0):,} "
            f"tokens, not {needed:,}.",
        )
    tokens = tokens_in(least, count)
    allowed = context if max_model_len == -1 else max_model_len
    return Fit(
        gpu,
        count,
        why_not="",
        kv_tokens=tokens,
        kv_tokens_most=tokens_in(most, count),
        context=context,
        requests=_at_once(gpu, tokens, allowed, workload or Workload()),
    )


def why_not(
    gpu: str, count: int, max_model_len: int = DEFAULT_CONTEXT, max_images: int = DEFAULT_IMAGES
) -> str:
    """Why ``fits`` says no, in one line; empty when it fits. Raises ValueError as ``fits`` does."""
    return fits(gpu, count, max_model_len, max_images).why_not


def kv_tokens(gpu: str, count: int, batched_tokens: int) -> int:
    """Tokens of KV cache that GPUs hold beside the model, on the safe side; negative: it does not fit.

    ``batched_tokens`` is what vLLM computes in one step (``--max-num-batched-tokens``).
    Raises ValueError for a GPU that is not known here, or a count that the model cannot be split into.
    """
    _known(gpu)
    if count not in TENSOR_PARALLEL:
        raise ValueError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}")
    return tokens_in(available(gpu, count, batched_tokens, max(OTHER_GIB)), count)


def weight_bytes(count: int) -> int:
    """Bytes of weights on each of ``count`` GPUs, in bf16. Exact."""
    return REPLICATED_BYTES + (WEIGHT_BYTES - REPLICATED_BYTES) // count


def tokens_in(free: int, count: int) -> int:
    """Tokens of KV cache in ``free`` bytes on each of ``count`` GPUs, as vLLM counts them. Exact."""
    return free // (BLOCK * KV_BYTES_PER_TOKEN // count) * BLOCK


def context_in(free: int, count: int) -> int:
    """What ``--max-model-len -1`` comes to with ``free`` bytes for the cache on each GPU. Exact.

    One block is vLLM's own. 0 or less: not one token fits.
    """
    return min(MODEL_CONTEXT, tokens_in(free, count) - BLOCK)


def activations(batched_tokens: int, count: int) -> int:
    """Bytes on each GPU while one step of ``batched_tokens`` is computed. An estimate, on the safe side.

    In the decoder's MLP: its two inputs and their product, shared out; and on each GPU hidden states, the
    residual, and a sum before and after it is shared. Besides, the pictures that such a step may bring,
    as the encoder left them: 4,096 patches each. The tensors of vLLM 0.32's own layers, run one by one, are
    11 to 22% less (``tests/test_fit_engine.py``); the rest is for what its kernels need.
    """
    images = max(1, batched_tokens // (BOX // PATCH) ** 2)
    decoder = batched_tokens * 2 * (4 * HIDDEN + 3 * MLP // count)
    return decoder + images * (BOX // PATCH) ** 2 * 2 * HIDDEN


def available(gpu: str, count: int, batched_tokens: int, other: float) -> int:
    """Bytes that are left for the KV cache on each GPU; negative: nothing is.

    ``other`` is what else is needed, in GiB (OTHER_GIB). Nothing is checked.
    """
    usable = int(GPUS[gpu].memory * GPU_MEMORY_UTILIZATION * GIB)
    # Buffers that vLLM 0.32's model runner makes at its start: embeddings of one step, and for each
    # request how often it has had each token (32 bits), and which are in its prompt (1 bit).
    buffers = batched_tokens * 2 * HIDDEN + requests_at_most(gpu) * VOCABULARY * 33 // 8 + ROPE_BYTES
    return usable - weight_bytes(count) - activations(batched_tokens, count) - buffers - int(other * GIB)


def requests_at_most(gpu: str) -> int:
    """What vLLM 0.32 computes at once at most: its default of ``--max-num-seqs`` for a server on this GPU."""
    return 1_024 if GPUS[gpu].memory >= 70 and not gpu.startswith("A100") else 256


def _batched(max_images: int) -> int:
    """``--max-num-batched-tokens``, as templates/run.sh sets it."""
    if max_images < 1:
        raise ValueError(f"a prompt has 1 picture or more, not {max_images}")
    return max(8_192, max_images * MAX_IMAGE_TOKENS)


def _known(gpu: str) -> None:
    if gpu not in GPUS:
        raise ValueError(f"{gpu} is not known here; these are: {', '.join(GPUS)}")


def _at_once(gpu: str, tokens: int, allowed: int, workload: Workload) -> int:
    if workload.tokens > allowed:
        return 0
    blocks = -(-workload.tokens // BLOCK)
    return min((tokens // BLOCK - 1) // blocks, requests_at_most(gpu))


def _nothing(gpu: str, count: int, reason: str) -> Fit:
    return Fit(gpu, count, reason, kv_tokens=0, kv_tokens_most=0, context=0, requests=0)
