"""Facts of Pixtral 12B, and the arithmetic that follows from them. Pure.

Sources: ``params.json`` of mistralai/Pixtral-12B-2409; mistral-common 1.13.1, ``tokens/tokenizers/image.py``.
The tests check them against mistral-common and the running vLLM.
"""

from __future__ import annotations

MODEL = "mistralai/Pixtral-12B-2409"
SERVED_NAME = "pixtral"

# Parameters: decoder 12,247,782,400 + vision encoder 403,489,792 + adapter 31,467,520.
PARAMETERS = 12_682_739_712
WEIGHT_BYTES = PARAMETERS * 2  # bf16; 23.62 GiB

LAYERS = 40
HEADS = 32
KV_HEADS = 8
HEAD_DIM = 128
HIDDEN = 5_120  # params.json: dim
MLP = 14_336  # params.json: hidden_dim
VOCABULARY = 131_072  # params.json: vocab_size
# Weights that multiply each token, in all layers of the decoder: 10,905,190,400.
DECODER = LAYERS * (HIDDEN * HEAD_DIM * (HEADS + 2 * KV_HEADS) + HEADS * HEAD_DIM * HIDDEN + 3 * HIDDEN * MLP)
OUTPUT = HIDDEN * VOCABULARY  # the output head: once a prompt, and once a token of an answer
# Keys and values of one token over all layers, in bf16: 163,840 bytes.
KV_BYTES_PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2

# Heads (32), KV heads (8) and vision heads (16) must divide evenly among the GPUs.
TENSOR_PARALLEL = (1, 2, 4, 8)

PATCH = 16  # pixels a side of one image token
BOX = 1024  # pixels: a larger picture is shrunk into BOX x BOX, a smaller one keeps its size
MAX_IMAGE_TOKENS = (BOX // PATCH + 1) * (BOX // PATCH)  # 4,160


def patches(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of the patches of a picture of ``width`` x ``height`` pixels. Raises ValueError."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least 1x1 pixels, not {width}x{height}")
    # Division rounds as in mistral-common; a multiplication by the inverse would not.
    ratio = max(height / BOX, width / BOX)
    if ratio > 1:
        width = max(round(width / ratio), 1)
        height = max(round(height / ratio), 1)
    return -(-width // PATCH), -(-height // PATCH)


def image_tokens(width: int, height: int) -> int:
    """Prompt tokens of a picture of ``width`` x ``height`` pixels: 2 to 4,160.

    One for each patch, and one for the end of each row.
    """
    columns, rows = patches(width, height)
    return (columns + 1) * rows


def fit(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels at which the model sees a picture: whole patches, at most 1024 a side."""
    columns, rows = patches(width, height)
    return columns * PATCH, rows * PATCH
