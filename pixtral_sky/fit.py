"""Which GPUs hold Pixtral 12B in bf16, and with how many tokens of context. Pure.

The weights and the KV cache are exact; what vLLM needs besides is an estimate on the safe side.
"""

from __future__ import annotations

from pixtral_sky.model import KV_BYTES_PER_TOKEN, TENSOR_PARALLEL, WEIGHT_BYTES

GIB = 2**30

# Memory of one GPU in GiB as CUDA reports it to a program: the lowest that PyTorch's own messages
# ("total capacity of ...") name for each. It is less than the name says: ECC and the driver take some.
GPU_MEMORY = {
    "L4": 21.95,
    "A10G": 21.98,
    "L40S": 44.39,
    "A100": 39.38,
    "A100-80GB": 79.14,
    "H100": 79.10,
}

GPU_MEMORY_UTILIZATION = 0.92  # vLLM 0.32's default

# Not weights, not KV cache: CUDA's context, NCCL, CUDA graphs; GiB a GPU, estimated.
FIXED_GIB = 2.0
# Activations of one prefill step, in bytes a token. The MLP holds its two inputs and their product
# (3 x 14,336), shared out among the GPUs; hidden states, attention and the residual (6 x 5,120) are on each.
MLP_BYTES = 3 * 14_336 * 2
HIDDEN_BYTES = 6 * 5_120 * 2


def kv_tokens(gpu: str, count: int, batched_tokens: int) -> int:
    """Tokens of KV cache that ``count`` GPUs of a kind hold beside the model; negative: it does not fit.

    ``batched_tokens`` is what vLLM computes in one step (``--max-num-batched-tokens``).
    Raises ValueError for a GPU that is not known here, or a count that the model cannot be split into.
    """
    if gpu not in GPU_MEMORY:
        raise ValueError(f"{gpu} is not known here; these are: {', '.join(GPU_MEMORY)}")
    if count not in TENSOR_PARALLEL:
        raise ValueError(f"Pixtral splits over 1, 2, 4 or 8 GPUs, not {count}")
    usable = GPU_MEMORY[gpu] * GPU_MEMORY_UTILIZATION * GIB
    activations = batched_tokens * (MLP_BYTES / count + HIDDEN_BYTES)
    free = usable - WEIGHT_BYTES / count - FIXED_GIB * GIB - activations
    return int(free // (KV_BYTES_PER_TOKEN / count))
