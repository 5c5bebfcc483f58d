"""Measures what SkyServe's balancer costs: the same requests through it, and straight to the replica.

    python -m benchmarks.balancer             # prints the table
    python -m benchmarks.balancer --write     # and puts it into docs/performance.md

SkyPilot's real balancer and control plane run with one replica: the script of service.yaml with its gateway,
before a stand-in for vLLM that answers at once. Both sides take turns in one run. A figure is the median, and
in brackets the quartiles.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx

from benchmarks import page
from tests.real.serve.rig import KEY, Service

ROUNDS = 8
MIB = 2**20

Ask = Callable[[httpx.Client], list[float]]  # milliseconds of each thing that was timed


def body(tokens: int = 1, pace: float = 0.0, stream: bool = False, padding: int = 0) -> bytes:
    """A chat request; ``padding`` bytes stand for a picture."""
    question = json.dumps({"id": "bench", "tokens": tokens, "pace": pace})
    content: list[dict[str, object]] = [{"type": "text", "text": question}]
    if padding:
        content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * padding}})
    message = {"role": "user", "content": content}
    return json.dumps({"model": "pixtral", "messages": [message], "stream": stream}).encode()


def answers(content: bytes, times: int) -> Ask:
    """Times requests one after the other, on one connection."""

    def ask(http: httpx.Client) -> list[float]:
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            http.post("/v1/chat/completions", content=content).raise_for_status()
            taken.append((time.perf_counter() - begin) * 1000)
        return taken

    return ask


def first_pieces(content: bytes, times: int) -> Ask:
    """Times the first token of a stream."""

    def ask(http: httpx.Client) -> list[float]:
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            with http.stream("POST", "/v1/chat/completions", content=content) as response:
                for line in response.iter_lines():
                    if '"content": "bench:"' in line or '"content":"bench:"' in line:
                        taken.append((time.perf_counter() - begin) * 1000)
        assert len(taken) == times
        return taken

    return ask


def gaps(content: bytes) -> Ask:
    """Times the gaps between the tokens of one stream."""

    def ask(http: httpx.Client) -> list[float]:
        at = []
        with http.stream("POST", "/v1/chat/completions", content=content) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    at.append(time.perf_counter())
        return [(after - before) * 1000 for before, after in pairwise(at[1:-1])]

    return ask


def per_second(url: str, clients: int, seconds: float = 4.0) -> float:
    """Requests a second of ``clients`` at once, each on its own connection."""
    content, counts, until = body(), [0] * clients, time.perf_counter() + seconds

    def work(index: int) -> None:
        with client(url) as http:
            while time.perf_counter() < until:
                http.post("/v1/chat/completions", content=content).raise_for_status()
                counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def client(url: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120)


def spread(values: list[float]) -> str:
    return page.spread(values, digits=0 if statistics.median(values) >= 100 else 1)


def measure(direct: str, balanced: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, ask in (
        ("a short answer, ms", answers(body(), 60)),
        ("30 MiB in the request, ms", answers(body(padding=30 * MIB), 1)),
        ("the first token of a stream, ms", first_pieces(body(tokens=4, stream=True), 30)),
        ("between two tokens that are 10 ms apart, ms", gaps(body(tokens=100, pace=0.01, stream=True))),
    ):
        taken: dict[str, list[float]] = {direct: [], balanced: []}
        with client(direct) as one, client(balanced) as other:
            for http in (one, other):
                ask(http)  # warm
            for _ in range(ROUNDS):
                for url, http in ((direct, one), (balanced, other)):
                    taken[url] += ask(http)
        added = statistics.median(taken[balanced]) - statistics.median(taken[direct])
        rows.append((name, spread(taken[direct]), spread(taken[balanced]), f"{round(added, 1) + 0:+.1f} ms"))
    for clients in (1, 8, 32):
        rates: dict[str, list[float]] = {direct: [], balanced: []}
        for _ in range(4):
            for url in (direct, balanced):
                rates[url].append(per_second(url, clients))
        share = statistics.median(rates[balanced]) / statistics.median(rates[direct])
        name = f"requests/s, {clients} at once"
        rows.append((name, spread(rates[direct]), spread(rates[balanced]), f"x{share:.2f}"))
    return rows


def main() -> None:
    arguments = page.parser(__doc__).parse_args()

    def one_replica(config: dict) -> None:  # type: ignore[type-arg]
        config["service"]["replica_policy"].update(min_replicas=1, max_replicas=1)

    with (
        tempfile.TemporaryDirectory(prefix="balancer-") as folder,
        Service(Path(folder), change=one_replica) as service,
    ):
        (machine,) = service.wait_for(ready=1)
        rows = measure(f"http://127.0.0.1:{machine.port}", service.url)
    lines = ["| | straight to the replica | through the balancer | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{page.machine()}, all on one machine."]
    page.show("balancer", lines, arguments.write)


if __name__ == "__main__":
    main()
