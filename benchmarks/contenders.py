"""Clients of an OpenAI-compatible endpoint, each run in its own process.

    python benchmarks/contenders.py NAME URL AT_ONCE SECONDS [RATE]

It prints as JSON the requests a second; with AT_ONCE 1 the milliseconds of a request; with RATE the percent
of a core that so many requests a second take. It imports only what the client needs. The OpenAI SDK and
pixtral-sky get messages, as their users have them; the others get a body that is already encoded.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

PICTURE = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 10_000  # 240 KB
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": PICTURE}},
        ],
    }
]
PATH = "/v1/chat/completions"
STREAMED = json.dumps({"model": "pixtral", "messages": MESSAGES, "stream": True}).encode()
WHOLE = json.dumps({"model": "pixtral", "messages": MESSAGES}).encode()
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer key"}
PIECES = 16  # parts of the measured time, with a median each, so that a disturbance affects few

Ask = Callable[[], object]
Make = Callable[[], Ask]  # called once a thread


def pixtral_sky(url: str, at_once: int) -> Make:
    from pixtral_sky.client.client import Client
    from pixtral_sky.client.endpoint import Endpoint

    client = Client(Endpoint(url, "key"), connections=at_once)

    def ask() -> None:
        assert client.complete(MESSAGES)["choices"][0]["message"]["content"] == "Hello"

    return lambda: ask


def openai(url: str, _: int) -> Make:
    import openai as sdk

    client = sdk.OpenAI(base_url=f"{url}/v1", api_key="key")

    def ask() -> None:
        answer = client.chat.completions.create(model="pixtral", messages=MESSAGES)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "Hello"

    return lambda: ask


def httpx_shared(url: str, at_once: int) -> Make:
    ask = httpx_each(url, at_once)()
    return lambda: ask


def httpx_each(url: str, at_once: int) -> Make:
    import httpx

    def make() -> Ask:
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        client = httpx.Client(base_url=url, headers=HEADERS, limits=limits, timeout=60)

        def ask() -> None:
            assert b"Hello" in client.post(PATH, content=WHOLE).raise_for_status().content

        return ask

    return make


def http_client(url: str, _: int) -> Make:
    def make() -> Ask:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

        def ask() -> None:
            connection.request("POST", PATH, WHOLE, HEADERS)
            assert b"Hello" in connection.getresponse().read()

        return ask

    return make


def raw_socket(url: str, _: int) -> Make:
    """No HTTP client: the lower bound."""

    def make() -> Ask:
        sock = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0))
        message = f"POST {PATH} HTTP/1.1\r\nContent-Length: {len(STREAMED)}\r\n\r\n".encode() + STREAMED

        def ask() -> None:
            sock.sendall(message)
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += sock.recv(2**16)

        return ask

    return make


async def aiohttp(url: str, at_once: int, begin: Callable[[], Awaitable[float]]) -> int:
    import aiohttp as library

    count = 0
    async with library.ClientSession(
        url, headers=HEADERS, connector=library.TCPConnector(limit=at_once)
    ) as session:

        async def work() -> None:
            nonlocal count
            until = await begin()
            while time.perf_counter() < until:
                async with session.post(PATH, data=WHOLE) as response:
                    assert b"Hello" in await response.read()
                count += 1

        await asyncio.gather(*(work() for _ in range(at_once)))
    return count


async def by_hand(url: str, at_once: int, begin: Callable[[], Awaitable[float]]) -> int:
    """asyncio's streams, with the little HTTP that this one answer needs."""
    count = 0
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(STREAMED)}\r\n\r\n"
    message = head.encode() + STREAMED

    async def work() -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        until = await begin()
        while time.perf_counter() < until:
            writer.write(message)
            await writer.drain()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            text = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                text += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
            assert b"Hello" in text
            count += 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(work() for _ in range(at_once)))
    return count


THREADS = {
    "pixtral-sky": pixtral_sky,
    "openai": openai,
    "httpx, shared": httpx_shared,
    "httpx": httpx_each,
    "http.client": http_client,
    "raw socket": raw_socket,
}
LOOPS = {"aiohttp": aiohttp, "asyncio": by_hand}


def one_by_one(ask: Ask, seconds: float) -> list[float]:
    """Milliseconds of a request, one after the other."""
    for _ in range(10):
        ask()
    medians = []
    for _ in range(PIECES):
        taken, until = [], time.perf_counter() + seconds / PIECES
        while time.perf_counter() < until:
            begin = time.perf_counter()
            ask()
            taken.append((time.perf_counter() - begin) * 1000)
        medians.append(statistics.median(taken))
    return medians


def in_threads(make: Make, at_once: int, seconds: float) -> float:
    counts, start = [0] * at_once, threading.Barrier(at_once)

    def work(index: int) -> None:
        ask = make()
        ask()
        start.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            ask()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def paced(make: Make, at_once: int, seconds: float, rate: float) -> float:
    """Percent of a core for ``rate`` requests a second."""
    start = threading.Barrier(at_once + 1)

    def work(index: int) -> None:
        ask = make()
        ask()
        start.wait()
        begin = time.perf_counter()
        for number in range(index, int(rate * seconds), at_once):
            time.sleep(max(begin + number / rate - time.perf_counter(), 0))
            ask()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(at_once)]
    for thread in threads:
        thread.start()
    start.wait()
    before = time.process_time()
    for thread in threads:
        thread.join()
    return 100 * (time.process_time() - before) / seconds


def in_a_loop(run: Callable[..., Awaitable[int]], url: str, at_once: int, seconds: float) -> float:
    async def main() -> int:
        async def begin() -> float:
            return time.perf_counter() + seconds

        return await run(url, at_once, begin)

    return asyncio.run(main()) / seconds


if __name__ == "__main__":
    name, url, at_once, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if len(sys.argv) > 5:
        result: object = paced(THREADS[name](url, at_once), at_once, seconds, float(sys.argv[5]))
    elif at_once == 1 and name in THREADS:
        result = one_by_one(THREADS[name](url, 1)(), seconds)
    elif at_once == 1:  # from the rate: the loops do not time single requests
        result = [1000 / in_a_loop(LOOPS[name], url, 1, seconds / PIECES) for _ in range(PIECES)]
    elif name in THREADS:
        result = in_threads(THREADS[name](url, at_once), at_once, seconds)
    else:
        result = in_a_loop(LOOPS[name], url, at_once, seconds)
    print(json.dumps(result))
