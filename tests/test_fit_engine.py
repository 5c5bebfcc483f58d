"""The memory side of fit.py, against the real vLLM: its own model, its own arithmetic of the KV cache.

The model is the real one in its sizes, on the meta device: shapes without memory. vLLM is told that it
is one of so many GPUs.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from typing import Any

import pytest

from pixtral_sky import engine, fit, task
from pixtral_sky.model import MAX_IMAGE_TOKENS, PARAMETERS, TENSOR_PARALLEL

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PARAMS = {  # params.json of mistralai/Pixtral-12B-2409
    "dim": 5120,
    "n_layers": 40,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "rope_theta": 1e9,
    "norm_eps": 1e-5,
    "vocab_size": 131072,
    "vision_encoder": {
        "hidden_size": 1024,
        "num_channels": 3,
        "image_size": 1024,
        "patch_size": 16,
        "rope_theta": 1e4,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_token_id": 10,
    },
}
BATCHED = {4 * MAX_IMAGE_TOKENS: 4, 8192: 2}  # tokens of a step, and the pictures that come with it at most


def probe() -> None:
    """Runs in the engine's Python: what vLLM makes of each number of GPUs, as JSON on stdout."""
    import json
    import os
    import sys
    import tempfile
    import weakref
    from pathlib import Path

    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1")
    os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"

    import mistral_common
    import torch
    import vllm.model_executor.layers.activation as activation
    import vllm.model_executor.layers.layernorm as layernorm
    import vllm.model_executor.layers.linear as linear
    import vllm.model_executor.layers.rotary_embedding.base as rotary
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention import MMEncoderAttention
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.models.pixtral import PixtralForConditionalGeneration
    from vllm.v1.core import kv_cache_utils

    asked = json.load(sys.stdin)
    model = Path(tempfile.mkdtemp())
    (model / "params.json").write_text(json.dumps(asked["params"]))
    tokenizer = Path(mistral_common.__file__).parent / "data/tekken_240911.json"
    (model / "tekken.json").symlink_to(tokenizer)

    class Group:
        """One of ``world_size`` GPUs; what others would send is made up."""

        rank = rank_in_group = 0
        is_first_rank = is_last_rank = True

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

    def config(gpus):
        arguments = EngineArgs(
            model=str(model), config_format="mistral", tokenizer_mode="mistral", load_format="dummy",
            dtype="bfloat16", tensor_parallel_size=gpus, distributed_executor_backend="mp", max_model_len=-1,
            limit_mm_per_prompt={"image": 4}, block_size=16, enforce_eager=True,
        )  # fmt: skip
        return arguments.create_engine_config()

    def cache(made, specs, gpus, free, length):
        """Tokens that vLLM says the cache has, and the context, for a --max-model-len."""
        made.model_config.original_max_model_len = length
        made.model_config.max_model_len = limit if length == -1 else length
        made.cache_config.kv_cache_layout = "LBNHC"
        configs = kv_cache_utils.get_kv_cache_configs(made, [specs] * gpus, [free] * gpus)
        scheduled = kv_cache_utils.generate_scheduler_kv_cache_config(configs)
        tokens, _ = kv_cache_utils.get_kv_cache_capacity(made, scheduled)
        return tokens, made.model_config.max_model_len

    answers = {}
    # Kernels of a GPU, by the tensors that they take and give: there is none for the meta device.
    patches = {
        (MMEncoderAttention, "forward"): lambda self, query, *_, **__: torch.empty_like(query),
        (Attention, "forward"): lambda self, query, *_, **__: torch.empty_like(query),
        (layernorm.RMSNorm, "forward"): lambda self, x, residual=None: (
            torch.empty_like(x) if residual is None else (torch.empty_like(x), residual)
        ),
        (rotary.RotaryEmbedding, "forward"): lambda self, positions, query, key=None, *_: (query, key),
        (activation.SiluAndMul, "forward"): lambda self, x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2),
        (linear.UnquantizedLinearMethod, "apply"): lambda self, layer, x, bias=None: (
            torch.nn.functional.linear(x, layer.weight, bias)
        ),
    }
    for gpus in asked["gpus"]:
        made = config(gpus)
        limit = made.model_config.max_model_len
        parallel_state._TP = Group(gpus)
        parallel_state._PP = parallel_state._DP = parallel_state._EP = Group(1)
        parallel_state._DCP = parallel_state._PCP = Group(1)
        torch.set_default_dtype(torch.bfloat16)
        with set_current_vllm_config(made), torch.device("meta"):
            pixtral = PixtralForConditionalGeneration(vllm_config=made)
        layers = get_layers_from_vllm_config(made, AttentionLayerBase)
        specs = {name: spec for name, layer in layers.items() if (spec := layer.get_kv_cache_spec(made))}
        answer = answers[gpus] = {
            "limit": limit,
            "layers": len(specs),
            "weights": sum(p.numel() * p.element_size() for p in pixtral.parameters()),
            "tables": sum(b.numel() * b.element_size() for b in pixtral.buffers()),
            "caches": [],
            "activations": {},
        }
        for free in asked["free"][str(gpus)]:
            tokens, context = cache(made, specs, gpus, free, -1)
            exact = cache(made, specs, gpus, free, context)[1]
            refused = ""
            if context < limit:
                try:
                    cache(made, specs, gpus, free, context + 1)
                except ValueError as error:
                    refused = str(error)
            answer["caches"].append(
                {"free": free, "tokens": tokens, "context": context, "exact": exact, "refused": refused}
            )
        before = {(kind, name): getattr(kind, name) for kind, name in patches}
        for (kind, name), patch in patches.items():
            setattr(kind, name, patch)
        for batched, images in asked["batched"].items():
            with set_current_vllm_config(made), torch.inference_mode(), Peak() as peak:
                pictures = [torch.empty(3, 1024, 1024, device="meta") for _ in range(images)]
                encoded = pixtral.embed_multimodal(images=pictures)
                del pictures
                embeds = torch.empty(int(batched), 5120, device="meta")
                peak.now -= embeds.untyped_storage().nbytes()  # a buffer that is always there
                positions = torch.empty(int(batched), dtype=torch.long, device="meta")
                pixtral.language_model.model(None, positions, None, inputs_embeds=embeds)
            assert len(encoded) == images
            answer["activations"][batched] = peak.most
        for (kind, name), original in before.items():
            setattr(kind, name, original)
    print("ANSWERS", json.dumps(answers))


def frees(gpus: int) -> list[int]:
    """Bytes a GPU that may be left for the cache: on each kind of GPU, and next to nothing."""
    step = max(BATCHED)
    real = [fit.available(gpu, gpus, step, other) for gpu in fit.GPUS for other in fit.OTHER_GIB]
    return [50_000_000, 123_456_789, *(free for free in real if free > 0)]


@pytest.fixture(scope="module")
def vllm() -> dict[int, dict[str, Any]]:
    """What the real vLLM says, by number of GPUs."""
    python = engine.ensure(task.load().vllm_version) / "bin" / "python"
    asked = {
        "params": PARAMS,
        "gpus": TENSOR_PARALLEL,
        "free": {gpus: frees(gpus) for gpus in TENSOR_PARALLEL},
        "batched": BATCHED,
    }
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [python, "-c", f"{inspect.getsource(probe)}\nprobe()"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environ,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("ANSWERS "))
    return {int(gpus): answer for gpus, answer in json.loads(line.removeprefix("ANSWERS ")).items()}


@pytest.mark.parametrize("gpus", TENSOR_PARALLEL)
def test_the_weights_on_each_gpu(vllm, gpus):
    print(f"{gpus} GPUs: vLLM {vllm[gpus]['weights']:,} bytes each, here {fit.weight_bytes(gpus):,}")
    assert vllm[gpus]["weights"] == fit.weight_bytes(gpus)
    if gpus == 1:
        assert vllm[gpus]["weights"] == 2 * PARAMETERS
    assert vllm[gpus]["tables"] == pytest.approx(fit.ROPE_BYTES, rel=0.001)


@pytest.mark.parametrize("gpus", TENSOR_PARALLEL)
def test_the_tokens_and_the_context(vllm, gpus):
    assert vllm[gpus]["layers"] == 40
    assert vllm[gpus]["limit"] == fit.MODEL_CONTEXT
    assert len(vllm[gpus]["caches"]) > 12
    worst = 0.0
    for cache in vllm[gpus]["caches"]:
        free = cache["free"]
        tokens, context = fit.tokens_in(free, gpus), fit.context_in(free, gpus)
        worst = max(worst, abs(tokens / cache["tokens"] - 1), abs(context / cache["context"] - 1))
        # Nearly exact: vLLM rounds a context to whole blocks, and says tokens by it.
        assert tokens == pytest.approx(cache["tokens"], rel=0.02), free
        assert context == pytest.approx(cache["context"], rel=0.02), free
        assert context == cache["context"] == cache["exact"], free
        # One more token is refused, and vLLM names the same number.
        if context < fit.MODEL_CONTEXT:
            assert f"estimated maximum model length is {context}." in cache["refused"], cache["refused"]
    print(f"{gpus} GPUs: {len(vllm[gpus]['caches'])} amounts of memory, {worst:.3%} apart at most")


@pytest.mark.parametrize("gpus", TENSOR_PARALLEL)
def test_a_step_takes_no_more_than_is_estimated(vllm, gpus):
    for batched in BATCHED:
        taken, estimate = vllm[gpus]["activations"][str(batched)], fit.activations(batched, gpus)
        print(f"{gpus} GPUs, {batched} tokens: {taken / 2**30:.2f} GiB, estimated {estimate / 2**30:.2f}")
        assert 0.75 * estimate < taken <= estimate
