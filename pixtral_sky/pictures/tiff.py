"""The page of a TIFF that is meant, as Pillow reads it right."""

from __future__ import annotations

import contextlib
import re
from io import BytesIO
from itertools import count

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pixtral_sky.errors import PictureError
from pixtral_sky.pictures.picture import SAVE_ANEW
from pixtral_sky.pictures.pixels import PHOTOMETRIC

# Tags of TIFF and DNG. The lowest bit of the first: the page is another one at a lower resolution.
NEW_SUBFILE_TYPE, STRIP_BYTES, SUB_IFDS = 254, 279, 330
YCBCR = 6


def open_page(image: Image.Image, name: str, data: bytes) -> int:
    """Go to the first page of the file ``data`` that is no thumbnail, and return how many such there are.

    Raises PictureError for a page that Pillow cannot read.
    """
    assert isinstance(image, TiffImageFile)
    is_alone = not image.tag_v2.next
    inner = SUB_IFDS in image.tag_v2
    try:
        while image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:
            image.seek(image.tell() + 1)
    except (EOFError, SyntaxError) as error:  # no other page, or one of a kind that Pillow does not know
        if inner or isinstance(error, SyntaxError):
            raise PictureError(f"{name}: only its thumbnail can be read.", SAVE_ANEW) from error
        image.seek(0)
    packed = any(tile.codec_name == "libtiff" for tile in image.tile)
    if image.tag_v2.get(PHOTOMETRIC) == YCBCR and not packed:
        # Pillow reads it since 13, but where a color is shared by several pixels.
        stored = sum(image.tag_v2.get(STRIP_BYTES, ()))
        if image.mode != "YCbCr" or 0 < stored < image.width * image.height * 3:
            raise PictureError(f"{name} is of a kind that cannot be read.", SAVE_ANEW)
    # libtiff gives numbers in the order of this machine. Pillow knows so of unsigned ones of 16 bits alone.
    image.tile = [
        tile._replace(args=(re.sub(r";(16|32)B", r";\1N", tile.args[0]), *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]
    return 1 if is_alone else _pages(data)


def _pages(data: bytes) -> int:
    """How many pages are no thumbnails.

    It opens the file anew: Pillow does not come back from a page of a kind that it does not know.
    """
    pages = 0
    with Image.open(BytesIO(data), formats=("TIFF",)) as image:
        assert isinstance(image, TiffImageFile)
        with contextlib.suppress(Exception):  # the end, or damage behind the page that is sent
            for page in count():
                with contextlib.suppress(SyntaxError, ValueError):  # its tags are read all the same
                    image.seek(page)
                if image.tell() != page:
                    break
                pages += not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1
    return pages
