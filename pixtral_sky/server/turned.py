"""Count a picture as it is shown: turned as its orientation says (EXIF, XMP).

vLLM turns a picture before the model sees it; mistral-common, which counts its tokens in the same process,
does not. Where the two differ, a request with the photo of a phone would fail with 500.
"""

import contextlib
import functools
import os


def mend():
    """Let mistral-common see pictures as vLLM does. Without mistral-common, or in another shape: nothing."""
    with contextlib.suppress(ImportError, AttributeError):
        from mistral_common.tokens.tokenizers import image
        from PIL import Image

        image.image_from_chunk = upright(image.image_from_chunk)
        # An icon is decoded before vLLM sees its size. Pillow refuses what is twice as large as its limit.
        Image.MAX_IMAGE_PIXELS = int(os.environ.get("VLLM_MAX_IMAGE_PIXELS", 52_000_000)) // 2


def upright(load):
    """`load` returns a PIL picture; so does what is returned here, turned as its orientation says."""
    from PIL import ExifTags, ImageOps

    @functools.wraps(load)
    def load_upright(chunk):
        picture = load(chunk)
        if picture is getattr(chunk, "image", None):  # one that vLLM has turned
            return picture
        # As in vLLM's normalize_image, and in its order: what cannot be turned there stays as it is here too.
        with contextlib.suppress(Exception):
            picture.load()
            if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else exif_transpose copies it
                picture = ImageOps.exif_transpose(picture)
        return picture

    return load_upright
