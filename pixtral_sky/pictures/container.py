"""What PNG and JPEG files hold besides their pixels, and whether their pixels are all there.

Pillow refuses a picture for a comment that it cannot read, and takes one whose lower half is missing. What
is sent has to be as sound: the server reads it with Pillow, too.
"""

from __future__ import annotations

import re
import struct
import zlib

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

# Where a PNG says which side is up: texts of these names, and "eXIf".
_TURNS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MOST_TEXT = 65_536  # bytes of such a chunk

# A marker, but for those within the entropy-coded data: stuffed zeros and restarts.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_END = b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# libjpeg wants to look 8 bytes ahead, and stops at the end of the file. It makes up what a marker cuts off.
_AHEAD = bytes(8)


def sound(data: bytes) -> tuple[bytes, bytes]:
    """The file ``data`` as it may be sent, and as a decoder should read it to notice what is missing.

    Both are ``data`` for other formats than PNG and JPEG.
    """
    if data.startswith(PNG):
        data = _png(data)
        return data, data
    return _jpeg(data) if data.startswith(JPEG) else (data, data)


def png_frames(data: bytes) -> int:
    """The number of frames of an animated PNG; 1 for any other file."""
    at = data.find(b"acTL", 8, data.find(b"IDAT")) if data.startswith(PNG) else -1
    return int.from_bytes(data[at + 4 : at + 8], "big") if at > 0 else 1


def _png(data: bytes) -> bytes:
    """``data`` without chunks that are not about pixels, and without what follows its end."""
    kept, at, kind = [data[:8]], 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if _matters(kind, data, at + 4, end - 4):
            kept.append(data[at:end])
        at = end
    if kind != b"IEND":
        kept.append(data[at:])
    return b"".join(kept)


def _matters(kind: bytes, data: bytes, first: int, last: int) -> bool:
    """Whether a chunk, its kind and content from ``first`` to before ``last``, decides what is seen."""
    if not kind[0] & 32 or kind == b"tRNS":  # the first letter of a critical one is upper case
        return True
    if kind != b"eXIf" and not data.startswith(_TURNS, first + 4):
        return False
    body = data[first:last]
    return len(body) <= _MOST_TEXT and data[last : last + 4] == struct.pack(">I", zlib.crc32(body))


def _jpeg(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG up to its first end. To be decoded, one of a single scan stops behind that: see _AHEAD.

    Of several scans all have to be there; that the last one is whole is not known.
    """
    frame = at = scans = components = behind = 0
    exact = set()  # the coefficients that a scan has sent to the last bit
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if scans and not behind:
            behind = found.start()
        if marker == _END[1]:
            at = found.start()
            break
        if marker == 0xD8:  # the start has no content
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + max(length, 2)
        if marker in _FRAMES and len(segment) > 5:
            frame, components = marker, segment[5]
        elif marker == 0xDA and segment:
            scans += 1
            count = 1 + 2 * segment[0]
            first, last, bits = segment[count : count + 3].ljust(3, b"\xff")
            if not bits & 15:
                exact |= {(each, k) for each in segment[1:count:2] for k in range(first, last + 1)}
    body = data[: at if found else len(data)].rstrip(b"\xff")
    sent = data if len(data) == len(body) + 2 and found else body + _END
    if scans <= 1 and frame in (0xC0, 0xC1):  # in Huffman's code
        return sent, (body[:behind] if behind else body).rstrip(b"\xff") + _AHEAD
    return sent, sent if len(exact) == 64 * components else body
