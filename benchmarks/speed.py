"""Measures how fast an endpoint answers concurrent requests, each with new pictures."""

from __future__ import annotations

import io
import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.pictures.picture import Picture

SIDE = 1024  # pixels: a full picture, 4,160 tokens
READ_SECONDS = 120
BLOB = 8  # pixels: noise that a JPEG keeps, at the size of a photo
# Random weights end an answer anywhere, and write bytes that are no text. With "a" as the only allowed token,
# all answers have one length, and each token is text. The ids: 1,000 special tokens, then one for each byte.
LETTER = 1_000 + ord("a")


@dataclass(frozen=True)
class Load:
    """``requests`` with ``pictures`` each, ``concurrency`` at a time, until ``seconds`` are over."""

    pictures: int
    concurrency: int
    requests: int
    answer: int = 128  # tokens
    seconds: float = 60


@dataclass(frozen=True)
class Figures:
    """The figures of a load. Seconds and tokens/s of one request are medians over the requests."""

    pictures: int
    concurrency: int
    answer: int  # tokens of each
    answered: int
    failed: int
    seconds: float  # of all
    first_token: float  # seconds
    alone: float  # tokens/s of one request after its first token
    requests: float  # a second, of all together
    tokens: float  # of answers, a second, of all together
    error: str = ""


@dataclass(frozen=True)
class _Answered:
    first_token: float
    seconds: float
    tokens: int
    longest_gap: float  # seconds between two parts of the answer


def picture(number: int) -> Picture:
    """A picture of SIDE x SIDE pixels in colours of its own."""
    side = SIDE // BLOB
    noise = Image.frombytes("RGB", (side, side), random.Random(number).randbytes(3 * side**2))  # noqa: S311
    data = io.BytesIO()
    noise.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(data, "JPEG", quality=85)
    return Picture(f"noise-{number}.jpg", SIDE, SIDE, "image/jpeg", data.getvalue())


def measure(endpoint: Endpoint, load: Load, seed: int) -> Figures:
    """Put the load on the endpoint. Another ``seed`` makes other pictures, which are in no cache."""
    # All pictures are made before the clock starts.
    numbers = range(seed, seed + load.requests * load.pictures)
    with ThreadPoolExecutor() as pool:
        made = iter(list(pool.map(picture, numbers)))
    questions = iter([[next(made) for _ in range(load.pictures)] for _ in range(load.requests)])
    lock, answered, errors = threading.Lock(), [], []
    begin = time.monotonic()

    def ask(client: Client) -> None:
        while time.monotonic() - begin < load.seconds:
            with lock:
                pictures = next(questions, None)
            if pictures is None:
                return
            try:
                answered.append(_ask(client, pictures, load.answer))
            except PixtralSkyError as error:
                errors.append(error.what)

    with _client(endpoint, load.concurrency) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(load.concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return _figures(load, answered, errors, time.monotonic() - begin)


def longest_stall(endpoint: Endpoint, pictures: int, seed: int) -> tuple[float, float]:
    """The longest pause of an answer in seconds: alone, and while a request with ``pictures`` comes."""
    with _client(endpoint, 2) as client:
        quiet = _ask(client, [], 128).longest_gap
        other = [picture(seed + number) for number in range(pictures)]
        with ThreadPoolExecutor() as pool:
            watched = pool.submit(_ask, client, [], 512)
            time.sleep(1)  # until its answer runs
            _ask(client, other, 16)
            return quiet, watched.result().longest_gap


def _client(endpoint: Endpoint, connections: int) -> Client:
    return Client(endpoint, budget=0, read_timeout=READ_SECONDS, connections=connections)


def _ask(client: Client, pictures: list[Picture], tokens: int) -> _Answered:
    fields: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "allowed_token_ids": [LETTER]}
    begin = time.monotonic()
    answer = client.ask(["Describe it.", *pictures], **fields)
    times = list(_times(answer))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return _Answered(
        times[0] - begin, times[-1] - begin, answer.usage["completion_tokens"], max(gaps, default=0)
    )


def _times(answer: Any) -> Iterator[float]:
    """The time of each part of the answer, or of its end where no part had text."""
    came = False
    for _ in answer:
        came = True
        yield time.monotonic()
    if not came:
        yield time.monotonic()


def _figures(load: Load, answered: list[_Answered], errors: list[str], seconds: float) -> Figures:
    error = errors[0] if errors else ""
    if not answered:
        return Figures(
            load.pictures, load.concurrency, load.answer, 0, len(errors), seconds, 0, 0, 0, 0, error
        )
    rates = [(each.tokens - 1) / max(each.seconds - each.first_token, 1e-9) for each in answered]
    return Figures(
        pictures=load.pictures,
        concurrency=load.concurrency,
        answer=load.answer,
        answered=len(answered),
        failed=len(errors),
        seconds=seconds,
        first_token=statistics.median(each.first_token for each in answered),
        alone=statistics.median(rates),
        requests=len(answered) / seconds,
        tokens=sum(each.tokens for each in answered) / seconds,
        error=error,
    )
