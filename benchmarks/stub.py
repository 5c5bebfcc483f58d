"""A server that answers every question at once, so that a benchmark measures the client.

It prints its port. `GET /last` is the time.monotonic() at which the last question began to arrive.

    python benchmarks/stub.py FIRST EACH TOKENS

answers in TOKENS chunks instead, the first after FIRST seconds and then one every EACH.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

HEAD = {"id": "chatcmpl-1", "created": 1, "model": "pixtral"}
USAGE = {"prompt_tokens": 660, "completion_tokens": 1, "total_tokens": 661}
CHOICE = {"index": 0, "logprobs": None, "finish_reason": "stop"}
MESSAGE = {"role": "assistant", "content": "Hello"}
MODELS = {"object": "list", "data": [{"id": "pixtral", "object": "model", "max_model_len": 32768}]}


def chunk(data: object) -> bytes:
    event = b"data: %s\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode())
    return b"%x\r\n%s\r\n" % (len(event), event)


def plain(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


WHOLE = plain(
    {**HEAD, "object": "chat.completion", "choices": [{**CHOICE, "message": MESSAGE}], "usage": USAGE}
)
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PART = {**HEAD, "object": "chat.completion.chunk", "choices": [{**CHOICE, "delta": MESSAGE}]}
END = chunk(b"[DONE]") + b"0\r\n\r\n"
STREAMED = STREAM + chunk({**PART, "usage": USAGE}) + END
last = 0.0


class Answers(asyncio.BufferedProtocol):
    """One connection. Its buffer begins with the part of the request that has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = bytearray(2**20)
        self.size = self.expected = 0

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return memoryview(self.buffer)[self.size :]

    def buffer_updated(self, nbytes: int) -> None:
        global last
        if not self.size and self.buffer.startswith(b"POST"):
            last = time.monotonic()
        self.size += nbytes
        if not self.expected:
            end = self.buffer.find(b"\r\n\r\n", 0, self.size)
            if end < 0:
                return
            lines = bytes(self.buffer[:end]).lower().split(b"\r\n")
            lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
            self.expected = end + 4 + sum(lengths)
        if self.size >= self.expected:
            self.transport.write(self.answer())
            self.size = self.expected = 0

    def answer(self) -> bytes:
        if self.buffer.startswith(b"GET /last"):
            return plain(last)
        if self.buffer.startswith(b"GET"):
            return plain(MODELS)
        # "stream" stands before or after the messages.
        ends = bytes(self.buffer[:1000] + self.buffer[max(self.expected - 1000, 0) : self.expected])
        return STREAMED if b'"stream":true' in ends.replace(b" ", b"") else WHOLE


class Timed(Answers):
    """One connection, on which a streamed answer takes its time."""

    def __init__(self, first: float, each: float, tokens: int) -> None:
        self.first, self.each, self.tokens = first, each, tokens
        self.part = chunk(PART)
        usage = {**USAGE, "completion_tokens": tokens}
        self.last = chunk({**PART, "choices": [], "usage": usage}) + END

    def answer(self) -> bytes:
        found = super().answer()
        if found is not STREAMED:
            return found
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(self.tokens):
            part = self.part + self.last if number == self.tokens - 1 else self.part
            loop.call_at(begun + self.first + number * self.each, self.transport.write, part)
        return STREAM


async def main(first: float = 0, each: float = 0, tokens: float = 0) -> None:
    def connection() -> Answers:
        return Timed(first, each, int(tokens)) if tokens else Answers()

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    times = [float(word) for word in sys.argv[1:]]
    # uvloop is the faster one, and its timers the less exact ones.
    (asyncio if times else uvloop).run(main(*times))
