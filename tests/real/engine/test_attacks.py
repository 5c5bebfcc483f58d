"""Requests with a valid key that would have held up or ended the server for all: it answers others as before.

Those that the gateway refuses (tests/server/test_judge.py), and those at its very limits.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import psutil
import pytest

from tests.real.engine.asked import family, request
from tests.server.test_judge import HOSTILE, bitmap, items, pictures, regex, said, schema

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SECONDS, MIB = 2.0, 1024
LIMITS = {
    "items": items(5000),
    "items in items": items(300, 300),
    "a string": schema(items={"type": "string", "minLength": 5000, "maxLength": 5000}),
    "many strings": schema(items={"type": "object", "properties": {
        f"p{n}": {"type": "string", "maxLength": 5000} for n in range(500)}}),
    "definitions": schema(**{"$defs": {f"d{n}": {"type": "array", "maxItems": 1000, "items": {"$ref": f"#/$defs/d{n + 1}"}}
                                       for n in range(20)} | {"d20": {"type": "string"}}, "items": {"$ref": "#/$defs/d0"}}),
    "one definition in itself": schema(**{"$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}] * 50}}, "items": {"$ref": "#/$defs/d"}}),
    "a regex": regex("(a{100}){990}"),
    "alternatives": regex("|".join("a" * n + "b*" for n in range(300))),
    "stars": regex("(a*)*" * 5000),
    "a dot": regex("(.{1,100}){1,900}"),
    "choices": {"structured_outputs": {"choice": ["x" * 60 + str(n) for n in range(1000)]}},
    "an enum": schema(items={"enum": ["x" * 60 + str(n) for n in range(1000)]}),
    "a grammar": {"structured_outputs": {"grammar": "start: " + " | ".join(f'"{n}" start "{n}"' for n in range(2000))}},
    "messages": {"messages": [{"role": "user", "content": "x"}] * 6000},
    "parts": said([{"type": "text", "text": "x"}] * 6000),
    "words": said("x " * 520_000),
    "one word": said("x" * 1_040_000),
    "odd letters": said("\u0e01\U0001f9d1\u200d" * 80_000),
    "ids": {"prompt": [5] * 131_000},
    "stops": {"stop": ["x" * 900 + str(n) for n in range(1000)]},
    "bias": {"logit_bias": {str(n): 1 for n in range(19_000)}},
    "tools": {"tools": [{"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object"}}} for n in range(2000)],
              "tool_choice": "required"},
    "bad words": {"bad_words": [f"word {n}" for n in range(1000)]},
    "answers": {"n": 16, "max_tokens": 200},
    "pixels": pictures(4990, 4),
    "one picture of 52 million": pictures(7211, 1),
    "a picture of one line": said([{"type": "image_url", "image_url": {"url": bitmap(1)}}] * 4),
    "probabilities": {"logprobs": True, "top_logprobs": 20, "max_tokens": 200},
}  # fmt: skip


def memory(deployment) -> float:
    found = 0.0
    for process in family(deployment):
        try:
            found += process.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return found


# What computes for long on a CPU: of these only the server itself has to answer at once.
COMPUTES = ("answers", "pixels", "one picture of 52 million", "probabilities")
ATTACKS = {f"refused: {name}": body for name, body in HOSTILE.items()} | LIMITS


@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_answered_meanwhile(running, name):
    attack = {"model": "pixtral", "max_tokens": 16, **said("x"), **ATTACKS[name]}
    path = "/v1/completions" if "prompt" in attack else "/v1/chat/completions"
    if "prompt" in attack:
        del attack["messages"]
    chat = {"model": "pixtral", "max_tokens": 1, **said("Hello")}
    statuses: list[int] = []
    before = memory(running)
    attacker = threading.Thread(target=lambda: statuses.append(request(running, "POST", path, attack)[0]))
    attacker.start()
    health, answer, most = 0.0, 0.0, 0.0
    try:
        while attacker.is_alive() or not answer:
            begin = time.monotonic()
            assert request(running, "GET", "/health")[0] == 200
            health = max(health, time.monotonic() - begin)
            if name not in COMPUTES or not attacker.is_alive():
                begin = time.monotonic()
                assert request(running, "POST", "/v1/chat/completions", chat)[0] == 200
                answer = max(answer, time.monotonic() - begin)
            most = max(most, memory(running) - before)
    finally:
        attacker.join()
    print(f"{name}: {statuses}, health {health:.2f} s, an answer {answer:.2f} s, {most:.0f} MiB")
    assert statuses[0] == 400 if name.startswith("refused") else statuses[0] in (200, 400)
    assert health < SECONDS
    assert answer < SECONDS
    # A photo of 50 megapixels is let in, and takes 24 bytes a pixel for a moment.
    assert most < MIB + 400 * (name in COMPUTES)


def test_many_huge_pictures_at_once(running):
    """Each is let in, and they wait for each other: together they would take 10 GiB."""
    attack = {"model": "pixtral", "max_tokens": 1, **pictures(7000, 2)}
    statuses: list[int] = []
    before, most = memory(running), 0.0
    attackers = [
        threading.Thread(
            target=lambda: statuses.append(request(running, "POST", "/v1/chat/completions", attack)[0])
        )
        for _ in range(12)
    ]
    for each in attackers:
        each.start()
    while any(each.is_alive() for each in attackers):
        begin = time.monotonic()
        assert request(running, "GET", "/health")[0] == 200
        assert time.monotonic() - begin < SECONDS
        most = max(most, memory(running) - before)
        time.sleep(0.05)
    print(f"{most:.0f} MiB")
    assert statuses == [200] * 12
    assert most < 6 * 1024


def test_silent_connections_are_closed(running):
    """A few hundred, each with a part of a head: after 15 s they are gone."""
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(300)]
        for each in silent:
            each.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert request(running, "GET", "/health")[0] == 200
        begin = time.monotonic()
        for each in silent:
            each.settimeout(20)
            assert each.recv(1) == b""
        assert 10 < time.monotonic() - begin < 20
