"""Runs in the engine's Python (``test_memory.py``): what the real vLLM makes of GPUs that are not there.

The model is the real one in its sizes, on the meta device: shapes without memory. vLLM is told that it is one of
so many GPUs. What is asked comes as JSON by standard input, and the answers go as JSON to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import types
import weakref
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"

import mistral_common
import torch
import vllm.model_executor.kernels.linear as kernels
import vllm.model_executor.kernels.linear.scaled_mm.marlin as marlin
import vllm.model_executor.layers.activation as activation
import vllm.model_executor.layers.layernorm as layernorm
import vllm.model_executor.layers.linear as linear
import vllm.model_executor.layers.rotary_embedding.base as rotary
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm import _custom_ops as ops
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
from vllm.model_executor.layers.quantization.online.fp8 import Fp8PtpcOnlineLinearMethod, OnlineLinearBase
from vllm.model_executor.layers.quantization.utils import quant_utils
from vllm.model_executor.models.pixtral import PixtralForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget
from vllm.platforms.interface import DeviceCapability
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.mem_utils import MemorySnapshot
from vllm.v1.core import kv_cache_utils
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.utils import request_memory

sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("kernels of CUDA, which are never called")
from vllm.platforms.cuda import CudaPlatformBase  # noqa: E402


class Cuda(CudaPlatformBase):
    """What the choice of a kernel for FP8 looks at: that it is CUDA, and which."""

    capability: tuple[int, int]

    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(*cls.capability)


class Group:
    """One of ``world_size`` GPUs; what others would send is made up."""

    rank = rank_in_group = 0
    is_first_rank = is_last_rank = True
    device_group = None

    def __init__(self, world_size):
        self.world_size = world_size

    def all_reduce(self, tensor):
        return torch.empty_like(tensor)


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are there at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id_of(tensor) not in self.known | given:
                storage = tensor.untyped_storage()
                self.known.add(id_of(tensor))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, id_of(tensor), storage.nbytes())
        return out

    def freed(self, identity, size):
        self.known.discard(identity)
        self.now -= size


def id_of(tensor):
    return tensor.untyped_storage()._cdata


# Kernels of a GPU, by the tensors that they take and give: there is none for the meta device.
KERNELS = {
    (MMEncoderAttention, "forward"): lambda self, query, *_, **__: torch.empty_like(query),
    (Attention, "forward"): lambda self, query, *_, **__: torch.empty_like(query),
    (layernorm.RMSNorm, "forward"): lambda self, x, residual=None: (
        torch.empty_like(x) if residual is None else (torch.empty_like(x), residual)
    ),
    (rotary.RotaryEmbedding, "forward"): lambda self, positions, query, key=None, *_: (query, key),
    (activation.SiluAndMul, "forward"): lambda self, x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2),
    (linear.UnquantizedLinearMethod, "apply"): lambda self, layer, x, bias=None: torch.nn.functional.linear(
        x, layer.weight, bias
    ),
    (QuantFP8, "forward"): lambda self, x, *_: (
        torch.empty_like(x, dtype=torch.float8_e4m3fn),
        x.new_empty(x.shape[0], 1, dtype=torch.float32),
    ),
    (ops, "cutlass_scaled_mm"): lambda a, b, out_dtype, **_: a.new_empty(
        a.shape[0], b.shape[1], dtype=out_dtype
    ),
    # For GPUs without FP8 units: Marlin keeps the weights in another order.
    (ops, "scaled_fp8_quant"): lambda weight, scale, **_: (
        torch.empty_like(weight, dtype=torch.float8_e4m3fn),
        scale,
    ),
    (ops, "gptq_marlin_repack"): lambda b_q_weight, size_k, size_n, num_bits, **_: b_q_weight.new_empty(
        size_k // 16, size_n * 16 // (32 // num_bits)
    ),
    (marlin, "apply_fp8_marlin_linear"): lambda **given: given["input"].new_empty(
        *given["input"].shape[:-1], given["size_n"]
    ),
    # csrc/libtorch_stable/quantization/w8a8/cutlass/scaled_mm_entry.cu, with CUDA 12.4 or newer
    (ops, "cutlass_scaled_mm_supports_fp8"): lambda capability: capability >= 89,
    (torch.distributed, "all_reduce"): lambda *_, **__: None,
}


@contextlib.contextmanager
def replaced(new):
    before = {(owner, name): getattr(owner, name) for owner, name in new}
    for (owner, name), value in new.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


def on_cuda():
    """Kernels for FP8 are chosen as on a GPU."""
    parts = ("vllm.model_executor.kernels.", "vllm.model_executor.layers.quantization.")
    found = [module for name, module in sys.modules.items() if name.startswith(parts)]
    return replaced(
        {(module, "current_platform"): Cuda() for module in found if hasattr(module, "current_platform")}
    )


# --- What vLLM makes of flags


def model_folder(params):
    folder = Path(tempfile.mkdtemp())
    (folder / "params.json").write_text(json.dumps(params))
    tokenizer = Path(mistral_common.__file__).parent / "data/tekken_240911.json"
    (folder / "tekken.json").symlink_to(tokenizer)
    return folder


def config(words):
    """vLLM's own, of the words after `vllm serve MODEL`, in the blocks of tokens that a GPU has."""
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = EngineArgs.from_cli_args(parser.parse_args(["--model", str(MODEL), *words]))
    arguments.block_size = 16
    arguments.dtype = "bfloat16"
    arguments.load_format = "dummy"
    arguments.enforce_eager = True
    arguments.distributed_executor_backend = "mp"
    made = arguments.create_engine_config()
    made.cache_config.kv_cache_memory_bytes = None  # what vLLM for CPUs sets; on a GPU it is measured
    return made


def join(gpus):
    parallel_state._TP = Group(gpus)
    parallel_state._PP = parallel_state._DP = parallel_state._EP = Group(1)
    parallel_state._DCP = parallel_state._PCP = Group(1)


def build(made):
    """The model on one of its GPUs, as it is after loading."""
    torch.set_default_dtype(torch.bfloat16)
    with set_current_vllm_config(made), on_cuda(), replaced(KERNELS):
        with torch.device("meta"):
            pixtral = PixtralForConditionalGeneration(vllm_config=made)
        for layer in pixtral.modules():
            if isinstance(getattr(layer, "quant_method", None), OnlineLinearBase):
                layer.quant_method.process_weights_after_loading(layer)
    return pixtral


def caches(made):
    layers = get_layers_from_vllm_config(made, AttentionLayerBase)
    return {name: spec for name, layer in layers.items() if (spec := layer.get_kv_cache_spec(made))}


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activations(made, pixtral, batched, images):
    """Bytes at once at most while a step with pictures is computed."""
    with set_current_vllm_config(made), replaced(KERNELS), torch.inference_mode(), Peak() as peak:
        pictures = [torch.empty(3, 1024, 1024, device="meta") for _ in range(images)]
        encoded = pixtral.embed_multimodal(images=pictures)
        del pictures
        embeds = torch.empty(batched, 5120, device="meta")
        peak.now -= embeds.untyped_storage().nbytes()  # a buffer that is always there
        positions = torch.empty(batched, dtype=torch.long, device="meta")
        pixtral.language_model.model(None, positions, None, inputs_embeds=embeds)
    assert len(encoded) == images
    return peak.most


def cache(made, specs, gpus, free, length, limit):
    """Tokens that vLLM says the cache has, and the context, for a --max-model-len."""
    made.model_config.original_max_model_len = length
    made.model_config.max_model_len = limit if length == -1 else length
    made.cache_config.kv_cache_layout = "LBNHC"
    configs = kv_cache_utils.get_kv_cache_configs(made, [specs] * gpus, [free] * gpus)
    scheduled = kv_cache_utils.generate_scheduler_kv_cache_config(configs)
    tokens, _ = kv_cache_utils.get_kv_cache_capacity(made, scheduled)
    return tokens, made.model_config.max_model_len


def cached(made, specs, gpus, free, limit):
    tokens, context = cache(made, specs, gpus, free, -1, limit)
    exact = cache(made, specs, gpus, free, context, limit)[1]
    refused = ""
    if context < limit:
        try:
            cache(made, specs, gpus, free, context + 1, limit)
        except ValueError as error:
            refused = str(error)
    return {"free": free, "tokens": tokens, "context": context, "exact": exact, "refused": refused}


def of_model(gpus, precision):
    """The model in parts on so many GPUs, and what memory that is left holds."""
    Cuda.capability = (8, 9)
    quantized = [] if precision == "bf16" else ["--quantization", "fp8_per_channel"]
    formats = [f"--{name}=mistral" for name in ("config-format", "tokenizer-mode")]
    limits = ["--max-model-len", "-1", "--limit-mm-per-prompt", '{"image": 4}']
    join(gpus)
    made = config([*formats, *limits, "--tensor-parallel-size", str(gpus), *quantized])
    limit = made.model_config.max_model_len
    pixtral = build(made)
    specs = caches(made)
    kinds = {}
    for name, each in pixtral.named_parameters():
        part = next(part for part in PARTS if name.startswith(part))
        kinds.setdefault(part, set()).add(str(each.dtype).removeprefix("torch."))
    return {
        "limit": limit,
        "layers": len(specs),
        "weights": size(pixtral.parameters()),
        "kinds": {part: sorted(found) for part, found in kinds.items()},
        "tables": size(pixtral.buffers()),
        "caches": [cached(made, specs, gpus, free, limit) for free in ASKED["free"][str(gpus)]],
        "activations": {
            batched: activations(made, pixtral, int(batched), images)
            for batched, images in ASKED["batched"].items()
        },
    }


PARTS = (
    *("language_model.model.layers", "language_model.model.embed_tokens", "language_model.model.norm"),
    *("language_model.lm_head", "vision_encoder", "vision_language_adapter"),
)


# --- A machine from its start to its KV cache, by vLLM's own worker


class Memory:
    """Of a GPU, as torch.accelerator says it: ``total`` with ``taken`` before vLLM is there."""

    def __init__(self, total, free):
        self.total, self.taken = total, total - free
        self.tensors = self.peak = self.besides = 0

    def stats(self, *_):
        return {"allocated_bytes.all.peak": self.peak, "allocated_bytes.all.current": self.tensors}

    def info(self, *_):
        return self.total - self.taken - self.tensors - self.besides, self.total

    def functions(self):
        return {
            (torch.accelerator, "memory_stats"): self.stats,
            (torch.accelerator, "get_memory_info"): self.info,
            (torch.accelerator, "memory_reserved"): lambda *_: self.tensors,
            (torch.accelerator, "empty_cache"): lambda *_: None,
            (torch.accelerator, "reset_peak_memory_stats"): lambda *_: setattr(self, "peak", self.tensors),
        }


class Runner:
    """In place of the worker's model runner: what it makes stays, and what a step takes comes and goes."""

    def __init__(self, memory, made, pixtral, images, besides):
        self.memory = memory
        self.step = activations(made, pixtral, made.scheduler_config.max_num_batched_tokens, images)
        self.besides = besides
        self.model_memory_usage = size(pixtral.parameters()) + size(pixtral.buffers())
        memory.tensors += self.model_memory_usage + buffers(made)

    def profile_run(self, **_):
        self.memory.peak = self.memory.tensors + self.step
        self.memory.besides = self.besides


def buffers(made):
    """The large ones of vllm/v1/worker/gpu: mm/encoder_runner.py and sample/penalties.py."""
    tokens, requests = made.scheduler_config.max_num_batched_tokens, made.scheduler_config.max_num_seqs
    words = made.model_config.get_vocab_size()
    return tokens * 5120 * 2 + requests * (words * 4 + -(-words // 32) * 4)


def of_machine(machine):
    """What vLLM does on GPUs with the script's flags; ``besides``: bytes that no tensor of the model takes."""
    gpus = machine["count"]
    Cuda.capability = tuple(machine["capability"])
    join(gpus)
    made = config(machine["flags"])
    limit = made.model_config.max_model_len
    budget = MultiModalBudget(made, MULTIMODAL_REGISTRY, enable_cache=False)
    memory = Memory(machine["total"], machine["free"])
    with replaced(memory.functions()):
        before = MemorySnapshot(device="cpu")
        try:
            requested = request_memory(before, made.cache_config)
        except ValueError as error:
            return {"refused": str(error)}
        pixtral = build(made)
        worker = object.__new__(Worker)
        vars(worker).update(
            vllm_config=made,
            cache_config=made.cache_config,
            model_config=made.model_config,
            parallel_config=made.parallel_config,
            init_snapshot=before,
            requested_memory=requested,
            randomize_dummy_inputs=False,
            model_runner=Runner(
                memory, made, pixtral, budget.mm_max_items_per_batch["image"], machine["besides"]
            ),
        )
        free = Worker.determine_available_memory(worker)
    tokens, context = cache(made, caches(made), gpus, free, made.model_config.original_max_model_len, limit)
    return {
        "requested": requested,
        "weights": size(pixtral.parameters()),
        "step": worker.model_runner.step,
        "free": free,
        "tokens": tokens,
        "context": context,
        "encoder": budget.get_encoder_budget(),
        "picture": budget.mm_max_toks_per_item["image"],
        "kv_dtype": made.cache_config.cache_dtype,
    }


# --- Which kernel computes in FP8


def of_capability(capability):
    """The kernel for weights with a scale for each output, and what vLLM then says."""
    Cuda.capability = capability
    wanted = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=quant_utils.kFp8StaticChannelSym,
        activation_quant_key=quant_utils.kFp8DynamicTokenSym,
        input_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
        weight_shape=(6144, 5120),
    )
    refused = ""
    with on_cuda(), replaced(KERNELS):
        kernel = kernels.choose_scaled_mm_linear_kernel(
            config=wanted, possible_kernels=kernels._POSSIBLE_FP8_KERNELS, quantization="fp8_w8a8"
        )
        with set_current_vllm_config(config(["--config-format=mistral", "--tokenizer-mode=mistral"])):
            try:
                Fp8PtpcOnlineLinearMethod().create_weights(
                    torch.nn.Module(), 5120, [6144], 5120, 6144, torch.bfloat16
                )
            except ValueError as error:
                refused = str(error)
    return {"kernel": kernel.__name__, "refused": refused}


ASKED = json.load(sys.stdin)
MODEL = model_folder(ASKED["params"])
answers = {
    "models": {
        precision: {gpus: of_model(gpus, precision) for gpus in ASKED["gpus"]}
        for precision in ("bf16", "fp8")
    },
    "machines": [of_machine(machine) for machine in ASKED["machines"]],
    "kernels": {str(each): of_capability(tuple(each)) for each in ASKED["capabilities"]},
}
print("ANSWERS", json.dumps(answers))
