"""The script of pixtral.yaml on this machine's GPUs: does it start, and is the memory as memory.py has it?

    make gpu                              # needs a GPU, the network for vLLM, 60 GB of disk, and no licence

Its `setup` installs vLLM as on any machine. Then its `run`, to the letter, serves a Pixtral of full size with
random weights, in bf16 and in fp8, with nvcc on the PATH and without; a picture is asked about. Each row has
what was estimated, and what was measured. A case that does not start is a row too, and the end of its log is
shown. It takes some 5 minutes a case, 12 at most.

--tiny: the same with the tiny model on the CPU engine, where nothing is known of the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pixtral_sky import memory
from pixtral_sky.client.client import Client
from pixtral_sky.client.messages import messages
from pixtral_sky.deploy import rehearsals, store, task
from pixtral_sky.deploy.resolve import endpoint_of
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.pictures import picture as images
from pixtral_sky.pixtral import TENSOR_PARALLEL
from pixtral_sky.rehearsal import checkpoint, engine, process

START_SECONDS = 600
ANSWER_SECONDS = 120

# What vLLM 0.32 says on its way up: gpu/model_runner.py, kv_cache_utils.py, platforms/cuda.py, monitor.py.
SAYS = {
    "weights": r"Model loading took ([\d.]+) GiB",
    "tokens": r"KV cache size: ([\d,]+) tokens",
    "attention": r"Using (\w+) attention backend",
    "compiled": r"torch\.compile took ([\d.]+) s in total",
    "graphs": r"Graph capturing finished in (\d+) secs",
}


@dataclass(frozen=True)
class Gpus:
    """Those of this machine: nvidia-smi's name for them, memory.py's, and how many are used."""

    name: str
    known: str
    count: int
    driver: str


@dataclass
class Row:
    """What came of one case. ``said`` are the figures of vLLM's log, by the names of SAYS."""

    precision: str
    nvcc: bool
    seconds: float = 0
    context: int = 0
    answer: str = ""
    failure: str = ""
    said: dict[str, str] = field(default_factory=dict)


def gpus_here() -> Gpus:
    """Raises SystemExit where there are none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = []
    with contextlib.suppress(OSError):
        said = subprocess.run(command, capture_output=True, text=True).stdout
        lines = [line for line in said.splitlines() if "," in line]
    if not lines:
        raise SystemExit("There is no NVIDIA GPU on this machine. Without one: make prove")
    name, driver = (word.strip() for word in lines[0].split(",", 1))
    count = max(each for each in TENSOR_PARALLEL if each <= len(lines))
    return Gpus(name, known(name), count, driver)


def known(name: str) -> str:
    """memory.py's name of what nvidia-smi calls "NVIDIA A100-SXM4-80GB"; empty: it knows none."""
    words = re.split(r"[\s-]+", name.upper())
    if {"MIG", "LAPTOP"} & set(words):  # less of it
        return ""
    if "A100" in words:
        return "A100-80GB" if "80GB" in words else "A100"
    # RTX 4090 is in two words, RTX6000-Ada in three.
    joined = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return next((gpu for gpu in memory.GPUS if gpu.upper().replace("-", "") in joined), "")


def without_nvcc(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """PATH without nvcc, and no variable that leads to one.

    Of a folder that has it, all else stays, by links in ``folder``: Debian's nvcc is in /usr/bin.
    """
    path = []
    for number, each in enumerate(environ.get("PATH", "").split(":")):
        if not Path(each, "nvcc").exists():
            path.append(each)
            continue
        rest = folder / str(number)
        rest.mkdir(parents=True, exist_ok=True)
        for program in Path(each).iterdir():
            if program.name != "nvcc" and not (rest / program.name).is_symlink():
                (rest / program.name).symlink_to(program)
        path.append(str(rest))
    return {"PATH": ":".join(path), "CUDA_HOME": "", "CUDA_PATH": ""}


def with_nvcc(environ: Mapping[str, str]) -> dict[str, str] | None:
    """PATH with the folder of an nvcc; None: this machine has none."""
    path = f"{environ.get('PATH', '')}:/usr/local/cuda/bin"
    found = shutil.which("nvcc", path=path)
    return {"PATH": f"{Path(found).parent}:{path}"} if found else None


def cases(tiny: bool, folder: Path) -> Iterator[tuple[str, bool, dict[str, str]]]:
    """Precision, whether there is an nvcc, and the environment for it."""
    for precision in memory.PRECISIONS:
        yield precision, False, without_nvcc(os.environ, folder)
        if not tiny and (found := with_nvcc(os.environ)):
            yield precision, True, found


def installed(home: Path) -> Path:
    """The environment that the file's own `setup` makes. Raises SystemExit when it fails."""
    shipped = task.load()
    environ = {**os.environ, **shipped.envs, "MODEL": str(home), "PIXTRAL_API_KEY": "", "HF_TOKEN": ""}
    if subprocess.run(["bash", "-c", shipped.setup], env=environ, cwd=home).returncode:  # noqa: S607
        raise SystemExit("The setup of pixtral.yaml has failed: see above.")
    return Path.home() / ".pixtral-sky" / "venv"


def measured(
    precision: str, nvcc: bool, venv: Path, model: Path, args: str, machine: Mapping[str, str]
) -> Row:
    """Start the script, ask about one picture, and stop it."""
    row = Row(precision, nvcc)
    shipped = task.load()
    envs = {"PRECISION": precision, "START_MINUTES": str(START_SECONDS // 60)}
    begin = time.monotonic()
    deployment = process.start(
        replace(shipped, envs={**shipped.envs, **envs}),
        venv, model, f"gpu-{precision}", store.free_port(0), args, machine,
    )  # fmt: skip
    try:
        process.wait_until_ready(deployment, START_SECONDS)
        row.seconds = time.monotonic() - begin
        picture = images.prepare(task.shipped("examples/chart.png").read_bytes(), "chart.png")
        with Client(endpoint_of(deployment), budget=0, read_timeout=ANSWER_SECONDS) as client:
            row.context = client.models()[0]["max_model_len"]
            begin = time.monotonic()
            usage = client.complete(messages(["What is this?", picture]), max_tokens=16)["usage"]
        row.answer = f"{usage['completion_tokens']} tokens in {time.monotonic() - begin:.1f} s"
        if usage["prompt_tokens"] < picture.tokens:
            row.failure = f"the picture has not reached the model: {usage['prompt_tokens']} tokens"
    except PixtralSkyError as error:
        row.failure = error.what
    finally:
        log = Path(deployment.log).read_text(errors="replace")
        rehearsals.stop(deployment)
    if row.failure:
        print("\n".join(log.splitlines()[-40:]), file=sys.stderr, flush=True)
    for name, pattern in SAYS.items():
        if found := re.findall(pattern, log):
            row.said[name] = found[-1]
    return row


HEAD = (
    "precision",
    "nvcc",
    "started",
    "weights, GiB a GPU: estimate, measured",
    "KV tokens: estimate, measured",
    "context",
    "a picture's answer",
    "attention",
    "compiling, graphs",
)


def table(rows: list[Row], gpus: Gpus | None, versions: str) -> list[str]:
    """Markdown: estimated and measured, a row a case."""
    if gpus:
        where = f"{gpus.count} x {gpus.name} (driver {gpus.driver})"
    else:
        where = "The CPU engine with the tiny model: nothing here is about a GPU"
    lines = [f"{where}, {versions}. Random weights.", "", " | ".join(HEAD), "|".join("---" for _ in HEAD)]
    lines += [" | ".join(cells(row, gpus)) for row in rows]
    return lines[:2] + [f"| {line} |" for line in lines[2:]]


def cells(row: Row, gpus: Gpus | None) -> tuple[str, ...]:
    weights, tokens = estimates(row, gpus)
    said = {name: row.said.get(name, "-") for name in SAYS}
    return (
        row.precision,
        "yes" if row.nvcc else "no",
        ": ".join(filter(None, (f"{row.seconds:.0f} s" if row.seconds else "no", row.failure))),
        f"{weights}, {said['weights']}",
        f"{tokens}, {said['tokens']}",
        f"{row.context:,}",
        row.answer or "-",
        said["attention"],
        f"{said['compiled']} s, {said['graphs']} s",
    )


def estimates(row: Row, gpus: Gpus | None) -> tuple[str, str]:
    """memory.py's weights in GiB on each GPU, and its range of tokens."""
    if not gpus or not gpus.known:
        return "-", "-"
    found = memory.fits(gpus.known, gpus.count, precision=row.precision)
    weights = memory.weight_bytes(gpus.count, row.precision) / memory.GIB
    tokens = f"{found.kv_tokens:,} to {found.kv_tokens_most:,}" if found.fits else "does not fit"
    return f"{weights:.2f}", tokens


def versions(venv: Path) -> str:
    """Of vLLM and torch in the environment."""
    program = (
        "import importlib.metadata as m; print('vLLM', m.version('vllm') + ', torch', m.version('torch'))"
    )
    command = [str(venv / "bin/python"), "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="the tiny model on the CPU engine")
    tiny = parser.parse_args().tiny
    gpus = None if tiny else gpus_here()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["PIXTRAL_SKY_HOME"] = home
        if gpus is None:
            venv = engine.ensure(task.load().vllm_version)
            model, args, machine = checkpoint.tiny(venv), process.CPU_ARGS, process.CPU_ENVIRON
        else:
            venv = installed(Path(home))
            model, args = checkpoint.full(venv), "--load-format dummy --dtype bfloat16"
            machine = {"SKYPILOT_NUM_GPUS_PER_NODE": str(gpus.count)}
        for precision, nvcc, environ in cases(tiny, Path(home) / "without-nvcc"):
            print(f"{precision}, {'with' if nvcc else 'without'} nvcc ...", file=sys.stderr, flush=True)
            rows.append(measured(precision, nvcc, venv, model, args, {**machine, **environ}))
        print("\n".join(table(rows, gpus, versions(venv))))
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
