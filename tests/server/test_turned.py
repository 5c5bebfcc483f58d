"""mistral-common's way to a picture, mended: it is turned as its orientation says, and else left alone."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image, ImageOps

from pixtral_sky.server import turned
from tests.support.pictures import saved


def load(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def marked(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.linear_gradient("L").resize((48, 20)), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_it_is_what_pillow_makes_upright(kind, orientation):
    data = marked(orientation, kind)
    picture = turned.upright(load)(data)
    assert picture.size == ((48, 20) if orientation < 5 else (20, 48))
    assert picture.tobytes() == ImageOps.exif_transpose(load(data)).tobytes()


@pytest.mark.parametrize("data", [marked(1), saved(Image.new("RGB", (48, 20)), "PNG")])
def test_a_picture_without_orientation_is_decoded_once_and_not_copied(data):
    loaded = []

    def once(chunk: bytes) -> Image.Image:
        loaded.append(load(chunk))
        return loaded[-1]

    assert turned.upright(once)(data) is loaded[0]


def test_a_picture_that_vllm_hands_over_is_left_alone():
    picture = load(marked(6))
    assert turned.upright(lambda chunk: chunk.image)(SimpleNamespace(image=picture)) is picture


def test_what_cannot_be_decoded_is_left_to_the_caller():
    data = saved(Image.effect_noise((480, 200), 90), "JPEG")
    picture = turned.upright(load)(data[: len(data) // 2])
    assert picture.size == (480, 200)
    with pytest.raises(OSError, match="truncated"):
        picture.load()


MODULE = "mistral_common.tokens.tokenizers.image"


def installed(patch: pytest.MonkeyPatch, module: str, **functions: object) -> ModuleType:
    """Stand-ins for a module of mistral-common, which has these functions, and for the packages above it."""
    name = ""
    for part in module.split("."):
        parent, name = sys.modules.get(name), f"{name}.{part}".lstrip(".")
        patch.setitem(sys.modules, name, ModuleType(name))
        if parent:
            setattr(parent, part, sys.modules[name])
    vars(sys.modules[name]).update(functions)
    return sys.modules[name]


def test_mistral_common_is_mended_and_pillow_has_the_limit_of_vllm(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "10000")
    module = installed(monkeypatch, MODULE, image_from_chunk=load)
    turned.mend()
    assert vars(module)["image_from_chunk"](marked(6)).size == (20, 48)
    assert Image.MAX_IMAGE_PIXELS == 5000  # Pillow refuses from twice as many


def test_without_it_or_in_another_shape_nothing_happens(monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    turned.mend()
    module = installed(monkeypatch, MODULE)
    turned.mend()
    assert not hasattr(module, "image_from_chunk")
    assert limit == Image.MAX_IMAGE_PIXELS
