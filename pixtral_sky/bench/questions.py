"""Questions of a given size that no cache has seen: other words and other pictures in each.

vLLM keeps the beginnings of prompts and the encodings of pictures, so a picture that comes again costs a GPU
nothing.
"""

from __future__ import annotations

import io
import random
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pixtral_sky.batch.runner import PREPARERS
from pixtral_sky.memory import Workload
from pixtral_sky.pixtral import BOX

# One token each in Pixtral's tokenizer, after a space and without one (tests/real/engine/test_bench.py).
_WORDS = """
with that from this have which part class return more will also time your other been there first would data
work when into some result sign about only under then used where like could using need what name these just
back show value year said through type system second import follow test should cent most long high each pass
final number hand again char void main process know else effect point method same well true case list found
both person plus look present post while start before rest find line control does fact null being real because
down port private right level make even group made here direct model false three people string much file many
"""
WORDS = _WORDS.split()

DRAWN = 24  # pictures that are drawn; each question gets variants of them
BLOB = 8  # pixels: noise that a JPEG keeps, at the size of a photo
QUALITY = 85
DQT = b"\xff\xdb"  # the marker of a JPEG's quantization tables
# A variant has other factors in the first DIGITS places of a table, each up to BASE - 1 larger: other pixels
# all over the picture, made in microseconds: to draw and encode one takes 20 ms, to base64 it 0.4.
DIGITS, BASE = 6, 8


class Questions:
    """The questions of one bench, by number; the same ``seed`` makes the same ones. Thread-safe."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload, self._seed = workload, seed
        self._drawn: list[_Drawn] = []
        if workload.images:
            size = _sent(workload.width, workload.height)
            with ThreadPoolExecutor(PREPARERS) as pool:
                self._drawn = list(pool.map(lambda each: _Drawn(*size, f"{seed}-{each}"), range(DRAWN)))

    def __getitem__(self, number: int) -> list[dict[str, Any]]:
        """The OpenAI messages of a question: words, then the pictures."""
        chance = random.Random(f"{self._seed}-{number}")  # noqa: S311 (nothing secret)
        words = " ".join(chance.choices(WORDS, k=self._workload.text))
        content: list[dict[str, Any]] = [{"type": "text", "text": words}] if words else []
        for each in range(self._workload.images):
            variant, which = divmod(number * self._workload.images + each, DRAWN)
            content.append({"type": "image_url", "image_url": {"url": self._drawn[which].url(variant)}})
        return [{"role": "user", "content": content}]


class _Drawn:
    """A JPEG of coloured noise, and its variants."""

    def __init__(self, width: int, height: int, seed: str) -> None:
        data = _jpeg(width, height, seed)
        # The marker, two bytes of length and one of the table's number; then the factors, a byte each.
        self._place = data.index(DQT) + 5
        cut = -(-(self._place + DIGITS) // 3) * 3  # base64 makes four letters of three bytes
        self._head, self._tail = data[:cut], b64encode(data[cut:]).decode()

    def url(self, number: int) -> str:
        """The data: URL of a variant."""
        head = bytearray(self._head)
        for each in range(self._place, self._place + DIGITS):
            number, digit = divmod(number, BASE)
            head[each] += digit
        return f"data:image/jpeg;base64,{b64encode(head).decode()}{self._tail}"


def _sent(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture is sent, in pixels: the server would shrink a larger one by this rule."""
    ratio = max(width / BOX, height / BOX, 1)
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def _jpeg(width: int, height: int, seed: str) -> bytes:
    """Noise of ``width`` x ``height`` pixels."""
    from PIL import Image

    small = -(-width // BLOB), -(-height // BLOB)
    noise = random.Random(seed).randbytes(3 * small[0] * small[1])  # noqa: S311
    data = io.BytesIO()
    image = Image.frombytes("RGB", small, noise).resize((width, height), Image.Resampling.BILINEAR)
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
