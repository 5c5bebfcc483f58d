"""A picture that its orientation turns is counted as it is shown, by the real vLLM behind the gateway."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixtral_sky.deploy.store import Rehearsal
from tests.real.engine.asked import request
from tests.support.pictures import plain, saved

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

WIDE = Image.linear_gradient("L").resize((48, 20)).convert("RGB")  # (3 + 1) * 2 tokens; turned (2 + 1) * 3


def with_exif(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(WIDE, kind, exif=exif)


def with_xmp(kind: str, orientation: int) -> bytes:
    """Without EXIF, as some editors write it."""
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    if kind != "PNG":
        return saved(WIDE, kind, xmp=text.encode())
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    return saved(WIDE, kind, pnginfo=info)


def prompt_tokens(deployment: Rehearsal, *pictures: bytes) -> int:
    """Of a request with these pictures: its count by the server."""
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"model": "pixtral", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    status, answer = request(deployment, "POST", "/v1/chat/completions", body)
    assert status == 200, answer
    count: int = json.loads(answer)["usage"]["prompt_tokens"]
    return count


@pytest.mark.parametrize(
    ("mark", "kind"),
    [(mark, kind) for mark in (with_exif, with_xmp) for kind in ("JPEG", "WEBP", "PNG", "AVIF")]
    + [(with_exif, "TIFF")],
)
def test_it_costs_what_it_costs_upright(running, mark, kind):
    wide, tall = (prompt_tokens(running, plain(*size)) for size in (WIDE.size, WIDE.size[::-1]))
    assert tall == wide + 1
    for orientation in range(1, 9):
        turned = mark(kind, orientation)
        assert prompt_tokens(running, turned) == (wide if orientation < 5 else tall), orientation
    assert prompt_tokens(running, turned, plain(*WIDE.size), turned) == prompt_tokens(
        running, *[plain(*size) for size in (WIDE.size[::-1], WIDE.size, WIDE.size[::-1])]
    )


LOADED = """
import sys
from mistral_common.protocol.instruct.chunk import ImageURLChunk
from mistral_common.tokens.tokenizers.image import image_from_chunk
print(*image_from_chunk(ImageURLChunk(image_url=sys.argv[1])).size)
"""


def test_mistral_common_itself_does_not_turn_it(venv):
    url = "data:image/jpeg;base64," + base64.b64encode(with_exif("JPEG", 6)).decode()
    done = subprocess.run(
        [venv / "bin/python", "-c", LOADED, url], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["48", "20"], "mistral-common turns pictures now: server/turned.py can go"
