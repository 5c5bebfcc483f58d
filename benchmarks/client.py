"""Measures our client and command line beside others, against a server that answers at once (stub.py).

    python -m benchmarks.client             # prints the tables
    python -m benchmarks.client --write     # and puts them into docs/performance.md

All take turns in one run, each in its own process. A figure is the median, and in brackets the quartiles.
The OpenAI SDK, `llm` and the other libraries are installed into .cache/benchmark; the package needs none.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

from benchmarks import page

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ROOT / ".cache" / "benchmark"  # the environment of the others
PACKAGES = ("openai>=2,<4", "llm", "aiohttp", "httpx")
AT_ONCE = 64
A_SECOND = 150  # what a batch may ask
OURS = "pixtral-sky"

SCRIPT = """
import base64, sys
from openai import OpenAI
url, path = sys.argv[1:]
picture = "data:image/jpeg;base64," + base64.b64encode(open(path, "rb").read()).decode()
content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": picture}}]
answer = OpenAI(base_url=url + "/v1", api_key="key").chat.completions.create(
    model="pixtral", messages=[{"role": "user", "content": content}]
)
print(answer.choices[0].message.content)
"""
MODEL = """
- model_id: stub
  model_name: pixtral
  api_base: {url}/v1
  vision: true
"""

# The name in a table, and the name in contenders.py.
LIBRARIES = (
    ("OpenAI SDK, one client", "openai"),
    ("httpx, one client", "httpx, shared"),
    ("httpx, a client each", "httpx"),
    ("http.client, a connection each", "http.client"),
    ("aiohttp", "aiohttp"),
    ("asyncio by hand", "asyncio"),
    ("**pixtral-sky**", OURS),
)
PACED = (
    ("OpenAI SDK, one client", "openai"),
    ("httpx, a client each", "httpx"),
    ("**pixtral-sky**", OURS),
)
ALONE = (
    ("OpenAI SDK", "openai"),
    ("httpx", "httpx"),
    ("http.client", "http.client"),
    ("aiohttp", "aiohttp"),
    ("a socket, and no HTTP", "raw socket"),
    ("**pixtral-sky**", OURS),
)


def python_of(name: str) -> str:
    return sys.executable if name == OURS else str(OTHERS / "bin" / "python")


def environment(**more: str) -> dict[str, str]:
    """An environment without a proxy and without remembered deployments."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def stub() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "stub.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def contend(name: str, url: str, at_once: int, seconds: float, *rate: float) -> float | list[float]:
    script = str(ROOT / "benchmarks" / "contenders.py")
    command = [python_of(name), script, name, url, *map(str, (at_once, seconds, *rate))]
    result: float | list[float] = json.loads(subprocess.check_output(command, env=environment()))
    return result


def rates(names: list[str], url: str, rounds: int, seconds: float, *rate: float) -> dict[str, list[float]]:
    """Requests a second, or with a rate the percent of a core that it takes."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in taken.items():
            result = contend(name, url, AT_ONCE, seconds, *rate)
            assert isinstance(result, float)
            found.append(result)
    return taken


def latencies(url: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for _, name in ALONE}
    for _ in range(rounds):
        for name, found in taken.items():
            medians = contend(name, url, 1, seconds)
            assert isinstance(medians, list)
            found += medians
    return taken


def commands(url: str, folder: Path) -> dict[str, list[str]]:
    """The commands that ask about a small picture, by the name in the table."""
    picture, body, script = folder / "small.jpg", folder / "body.json", folder / "script.py"
    Image.effect_noise((320, 240), 64).save(picture)
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
    ]
    body.write_text(json.dumps({"model": "pixtral", "messages": [{"role": "user", "content": content}]}))
    script.write_text(SCRIPT)
    (folder / "extra-openai-models.yaml").write_text(MODEL.format(url=url))
    programs = OTHERS / "bin"
    post = ["curl", "-sS", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    return {
        "curl": [*post, "--data-binary", f"@{body}"],
        "**pixtral-sky ask**": [ours(), "ask", "--endpoint", url, "What is it?", str(picture)],
        "an OpenAI SDK script": [str(programs / "python"), str(script), url, str(picture)],
        "llm": [str(programs / "llm"), "--no-stream", "-m", "stub", "-a", str(picture), "What is it?"],
    }


def ours() -> str:
    return str(Path(sys.executable).with_name("pixtral-sky"))


def starts(url: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds until the question arrives, and of ``--help``."""
    with tempfile.TemporaryDirectory() as name, httpx.Client(base_url=url, trust_env=False) as http:
        folder = Path(name)
        env = environment(HOME=name, LLM_USER_PATH=name, OPENAI_API_KEY="key", PIXTRAL_API_KEY="key")
        asks = commands(url, folder)
        helps = {"llm --help": [asks["llm"][0], "--help"], "**pixtral-sky --help**": [ours(), "--help"]}
        asked: dict[str, list[float]] = {each: [] for each in asks}
        helped: dict[str, list[float]] = {each: [] for each in helps}
        for turn in range(rounds + 1):
            for each, command in asks.items():
                begin = time.monotonic()
                output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
                assert "Hello" in output, output
                if turn:  # the first time, files come from the disk
                    asked[each].append((http.get("/last").json() - begin) * 1000)
            for each, command in helps.items():
                begin = time.monotonic()
                subprocess.run(command, env=env, check=True, capture_output=True)
                if turn:
                    helped[each].append((time.monotonic() - begin) * 1000)
    return asked, helped


def table(
    head: str, rows: Sequence[tuple[str, list[float]]], digits: int, one: list[float], name: str
) -> list[str]:
    """A row for each, with its ratio to ``one`` of them."""
    lines = [f"| {head} | | x {name} |", "|---|---|---|"]
    for label, values in rows:
        share = statistics.median(values) / statistics.median(one)
        lines.append(f"| {label} | {page.spread(values, digits)} | {share:.2f} |")
    return [*lines, ""]


def measure(url: str, rounds: int) -> list[str]:
    rate = rates([name for _, name in LIBRARIES], url, rounds, 1.5)
    paced = rates([name for _, name in PACED], url, max(rounds // 2, 2), 4, A_SECOND)
    alone = latencies(url, max(rounds // 2, 1), 1.6)
    asked, helped = starts(url, rounds)
    return [
        *table(
            f"requests/s, {AT_ONCE} at once, 240 KB each",
            [(label, rate[name]) for label, name in LIBRARIES],
            0,
            rate["openai"],
            "OpenAI SDK",
        ),
        *table(
            f"% of a core at {A_SECOND} requests/s",
            [(label, paced[name]) for label, name in PACED],
            1,
            paced["openai"],
            "OpenAI SDK",
        ),
        *table(
            "ms for one at a time, 240 KB",
            [(label, alone[name]) for label, name in ALONE],
            2,
            alone["raw socket"],
            "socket",
        ),
        *table("ms from Enter to the question on the wire", list(asked.items()), 0, asked["llm"], "llm"),
        *table("ms of the help", list(helped.items()), 0, helped["llm --help"], "llm"),
    ]


def main() -> None:
    parser = page.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each")
    arguments = parser.parse_args()
    if not OTHERS.exists():
        subprocess.run([sys.executable, "-m", "venv", OTHERS], check=True)
    subprocess.run([OTHERS / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)

    with stub() as url:
        lines = measure(url, arguments.rounds)
    lines.append(f"{page.machine()}, server and clients on one machine.")
    page.show("client", lines, arguments.write)


if __name__ == "__main__":
    main()
