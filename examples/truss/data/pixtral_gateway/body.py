"""The body of a request: read whole, within limits, and handed on to vLLM."""

import asyncio

from .refusal import Refusal

HELD_BYTES = 256 * 2**20  # of all bodies that are read at one time
SECONDS = 600  # for a body (32 MiB at 0.5 Mbit/s): a client may vanish without a word, and keep its share
PIXELS = 400_000_000  # of all pictures that vLLM decodes at one time, in 8 bytes each


class Share:
    """The memory that one request takes: at most ``limit`` bytes, with its pictures, until its release."""

    held = pixels = 0  # of all requests

    def __init__(self, limit):
        self.limit, self.taken, self.decoding = limit, 0, 0

    def room(self):
        return self.limit - self.taken

    def take(self, count):
        if count > self.room():
            limit = f"{self.limit / 2**20:g} MiB"
            raise Refusal(413, "request_too_large", f"A request may have {limit} here, with its pictures.")
        if Share.held + count > HELD_BYTES:
            message = "The requests that are arriving fill the memory kept for them. Ask again in a moment."
            raise Refusal(503, "overloaded", message, [(b"retry-after", b"2")])
        self.taken += count
        Share.held += count

    def release(self):
        Share.held -= self.taken
        self.taken = 0

    async def decode(self, count):
        """Wait until there is room for so many pixels."""
        while Share.pixels and Share.pixels + count > PIXELS:
            await asyncio.sleep(0.05)
        self.decoding = count
        Share.pixels += count

    def decoded(self):
        Share.pixels -= self.decoding
        self.decoding = 0


async def read(scope, receive, share):
    """The whole body; None when the client hangs up before its end. Raises Refusal."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > share.room():
            share.take(int(value))  # refused before it comes
    try:
        return await asyncio.wait_for(arriving(receive, share), SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, "timeout", f"The body of the request did not arrive in {SECONDS} s.") from None


async def arriving(receive, share):
    parts, more = [], True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body") or b"")
            share.take(len(parts[-1]))
            more = message.get("more_body")
        return b"".join(parts)
    finally:
        parts.clear()  # a refusal would keep them until Python's garbage collector comes


def parse(data):
    """The JSON object in ``data``. Raises Refusal."""
    import msgspec

    try:
        # As vLLM does, with the mark that Windows' tools put before a text.
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=dict)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"The body of the request is no JSON object: {error}.") from None


def unparse(body):
    import msgspec

    return msgspec.json.encode(body)


def handed_on(data, scope, receive, share):
    """``scope`` and ``receive`` for the app, which gets ``data`` at once and then learns of a hang-up."""
    headers = [each for each in scope["headers"] if each[0] not in (b"content-length", b"transfer-encoding")]
    headers.append((b"content-length", str(len(data)).encode()))
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive_data():
        share.release()
        return messages.pop() if messages else await receive()

    return {**scope, "headers": headers}, receive_data
