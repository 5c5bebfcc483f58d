"""Makes checkpoints of Pixtral in Mistral's format with random weights, without a licence or a download.

The tokenizer is the real one, from the engine's mistral-common, so numbers of tokens are real.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixtral_sky.errors import RehearsalError
from pixtral_sky.rehearsal import engine

# params.json of mistralai/Pixtral-12B-2409.
PIXTRAL: dict[str, Any] = {
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
# The same with fewer and smaller layers: 34 MB.
TINY: dict[str, Any] = {
    **PIXTRAL,
    "dim": 64,
    "n_layers": 2,
    "head_dim": 32,
    "hidden_dim": 128,
    "n_heads": 2,
    "n_kv_heads": 1,
    "max_position_embeddings": 131072,
    "vision_encoder": {
        **PIXTRAL["vision_encoder"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}

# Runs in the engine's Python: PARAMS.JSON CONSOLIDATED.SAFETENSORS. The tensors have the real names.
WEIGHTS = """
import json, sys
import torch
from safetensors.torch import save_file

params = json.load(open(sys.argv[1]))
vision = params["vision_encoder"]
torch.manual_seed(0)
tensors = {}

def matrix(name, *shape):
    tensors[name] = (torch.randn(shape) * 0.02).to(torch.bfloat16)

def norm(name, size):
    tensors[name] = torch.ones(size, dtype=torch.bfloat16)

def layer(prefix, dim, hidden, queries, keys):
    for name, rows, columns in (
        ("attention.wq", queries, dim), ("attention.wk", keys, dim), ("attention.wv", keys, dim),
        ("attention.wo", dim, queries),
        ("feed_forward.w1", hidden, dim), ("feed_forward.w2", dim, hidden), ("feed_forward.w3", hidden, dim),
    ):
        matrix(f"{prefix}.{name}.weight", rows, columns)
    norm(f"{prefix}.attention_norm.weight", dim)
    norm(f"{prefix}.ffn_norm.weight", dim)

dim, size, patch = params["dim"], vision["hidden_size"], vision["patch_size"]
matrix("tok_embeddings.weight", params["vocab_size"], dim)
matrix("output.weight", params["vocab_size"], dim)
norm("norm.weight", dim)
for i in range(params["n_layers"]):
    heads = params["n_heads"] * params["head_dim"], params["n_kv_heads"] * params["head_dim"]
    layer(f"layers.{i}", dim, params["hidden_dim"], *heads)
matrix("vision_encoder.patch_conv.weight", size, vision["num_channels"], patch, patch)
norm("vision_encoder.ln_pre.weight", size)
for i in range(vision["num_hidden_layers"]):
    layer(f"vision_encoder.transformer.layers.{i}", size, vision["intermediate_size"], size, size)
for name, columns in (("w_in", size), ("w_out", dim)):
    matrix(f"vision_language_adapter.{name}.weight", dim, columns)
    matrix(f"vision_language_adapter.{name}.bias", dim)
save_file(tensors, sys.argv[2])
"""


TINY_NAME = "tiny-pixtral"


def tiny(venv: Path) -> Path:
    """The directory of a tiny Pixtral with random weights, which the engine in ``venv`` makes."""
    directory = _directory(TINY_NAME, TINY, venv)
    target = directory / "consolidated.safetensors"
    if not target.is_file():
        partial = directory / f".weights.{os.getpid()}"
        engine.run(
            [str(venv / "bin" / "python"), "-c", WEIGHTS, str(directory / "params.json"), str(partial)]
        )
        partial.chmod(0o644)  # safetensors writes 0600, and another user may run the server
        partial.replace(target)
    return directory


def is_tiny(root: str) -> bool:
    """Whether the ``root`` of a served model, in `GET /v1/models`, is such a directory."""
    return Path(root).name == TINY_NAME


def full(venv: Path) -> Path:
    """The directory of a Pixtral of full size without weights, for ``--load-format dummy``."""
    return _directory("full-pixtral", PIXTRAL, venv)


def _directory(name: str, params: Mapping[str, Any], venv: Path) -> Path:
    """A directory with params.json and tekken.json. A checkpoint with other params is removed first."""
    tokenizer = next(venv.glob("lib/python*/site-packages/mistral_common/data/tekken_240911.json"), None)
    if tokenizer is None:
        raise RehearsalError(f"The engine at {venv} has no tokenizer of Pixtral (mistral-common).")
    directory = engine.cache() / name
    text = json.dumps(params, indent=1)
    target = directory / "params.json"
    if not target.is_file() or target.read_text() != text:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        target.write_text(text)
    target = directory / "tekken.json"
    if not target.is_file() or target.stat().st_size != tokenizer.stat().st_size:
        partial = directory / f".tekken.{os.getpid()}"
        shutil.copyfile(tokenizer, partial)
        partial.replace(target)
    return directory
