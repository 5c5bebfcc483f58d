"""Runs the script of pixtral.yaml on this machine's GPUs: does it start, does it fit, how fast is it?

    make gpu                              # needs a GPU, the network for vLLM, 60 GB of disk, and no licence

Its `setup` installs vLLM. Then its unchanged `run` serves a Pixtral of full size with random weights, in bf16
and in fp8, with nvcc on the PATH and without, and with other sizes of a step, and gets questions about
pictures. Each row has the estimate (memory.py, planning/speed.py) and the measured figure. A case that does
not start has a row too, and the end of its log is shown. A case takes some 3 minutes.

--tiny: the same with the tiny model on the CPU engine, without an estimate of the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pixtral_sky import memory
from pixtral_sky.bench.figures import Step, percentile
from pixtral_sky.bench.load import Bench, Length
from pixtral_sky.bench.questions import Questions
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import rehearsals, store, task
from pixtral_sky.deploy.resolve import endpoint_of
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.memory import Workload
from pixtral_sky.pictures.prepare import prepare
from pixtral_sky.pixtral import TENSOR_PARALLEL
from pixtral_sky.planning.speed import Range
from pixtral_sky.planning.speed import speed as estimated_speed
from pixtral_sky.rehearsal import checkpoint, engine, process

START_SECONDS = 600
ANSWER_SECONDS = 120
LOAD_SECONDS = 60
# Random weights write bytes that are no text; with "a" as the only allowed token, each token is text. Of the
# ids, 1,000 are special tokens; then comes one for each byte.
LETTER = 1_000 + ord("a")

# Lines of vLLM 0.32's log: gpu/model_runner.py, kv_cache_utils.py, platforms/cuda.py, monitor.py.
SAYS = {
    "weights": r"Model loading took ([\d.]+) GiB",
    "tokens": r"KV cache size: ([\d,]+) tokens",
    "attention": r"Using (\w+) attention backend",
    "compiled": r"torch\.compile took ([\d.]+) s in total",
    "graphs": r"Graph capturing finished in (\d+) secs",
}


@dataclass(frozen=True)
class Gpus:
    """This machine's GPUs: the names of nvidia-smi and of memory.py, and the number in use."""

    name: str
    known: str
    count: int
    driver: str


@dataclass(frozen=True)
class Case:
    """One start of the script. ``step_tokens`` 0: as the script chooses."""

    precision: str
    nvcc: bool = False
    step_tokens: int = 0

    def __str__(self) -> str:
        step = f"@{self.step_tokens}" if self.step_tokens else ""
        return f"{self.precision}{'+nvcc' if self.nvcc else ''}{step}"


def parse(text: str) -> Case:
    """The case that "fp8", "bf16+nvcc" or "bf16@16640" names."""
    found = re.fullmatch(rf"({'|'.join(memory.PRECISIONS)})(\+nvcc)?(?:@(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no case. It looks like fp8, bf16+nvcc or bf16@16640")
    return Case(found[1], bool(found[2]), int(found[3] or 0))


@dataclass(frozen=True)
class Load:
    """``requests`` with ``pictures`` each, ``concurrency`` at a time; none is begun after LOAD_SECONDS."""

    pictures: int
    concurrency: int
    requests: int
    answer: int = 128  # tokens

    @property
    def workload(self) -> Workload:
        """Full pictures of 4,160 tokens."""
        return Workload(images=self.pictures, text=8, answer=self.answer)


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


# The most important first, for a run that is cut short. A step has room for a full picture and some more, for
# what the script chooses on large GPUs, or for a prompt of four pictures.
CASES = ("bf16", "fp8", "bf16+nvcc", "bf16@4352", "bf16@16640")
ALONE = (Load(1, 1, 4), Load(4, 1, 3))
MANY = (Load(1, 16, 48), Load(1, 64, 160), Load(4, 16, 32))
STEPS = (Load(1, 64, 128),)
TINY = (Load(1, 1, 2, answer=16), Load(4, 2, 2, answer=16))


@dataclass
class Row:
    """The result of one case. ``said`` are the figures of vLLM's log, by the names of SAYS."""

    precision: str
    nvcc: bool
    step_tokens: int = 0
    seconds: float = 0
    context: int = 0
    answer: str = ""
    failure: str = ""
    said: dict[str, str] = field(default_factory=dict)
    speeds: list[Figures] = field(default_factory=list)
    stall: tuple[float, float] | None = None  # seconds: alone, and beside a request with four pictures

    @property
    def name(self) -> str:
        return str(Case(self.precision, self.nvcc, self.step_tokens))


@dataclass(frozen=True)
class Server:
    """What a case starts: vLLM's virtual environment, the model, more arguments and variables for vLLM."""

    venv: Path
    model: Path
    args: str
    machine: Mapping[str, str]
    start_seconds: int
    loads: Mapping[str, tuple[Load, ...]]
    logs: Path | None


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
    """PATH without nvcc, and variables that lead to none.

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
    # Empty, and not unset: vLLM and FlashInfer would look into /usr/local/cuda.
    return {"PATH": ":".join(path), "CUDA_HOME": str(folder), "CUDA_PATH": str(folder)}


def with_nvcc(environ: Mapping[str, str]) -> dict[str, str] | None:
    """PATH with the folder of an nvcc; None: this machine has none."""
    path = f"{environ.get('PATH', '')}:/usr/local/cuda/bin"
    found = shutil.which("nvcc", path=path)
    return {"PATH": f"{Path(found).parent}:{path}"} if found else None


def nvcc_environment(case: Case, folder: Path) -> dict[str, str] | None:
    """The environment of the case; None: this machine has no nvcc, and the case is left out."""
    return with_nvcc(os.environ) if case.nvcc else without_nvcc(os.environ, folder)


def installed(home: Path, venv: Path | None) -> Path:
    """The environment that the file's own `setup` makes, or ``venv``. Raises SystemExit when it fails."""
    shipped = task.load()
    environ = {**os.environ, **shipped.envs, "MODEL": str(home), "PIXTRAL_API_KEY": "", "HF_TOKEN": ""}
    environ["VENV"] = str(venv or "")
    if subprocess.run(["bash", "-c", shipped.setup], env=environ, cwd=home).returncode:  # noqa: S607
        raise SystemExit("The setup of pixtral.yaml has failed: see above.")
    return venv or Path.home() / ".pixtral-sky" / "venv"


def measured(case: Case, server: Server, machine: Mapping[str, str], until: float) -> Row:
    """Start the script, ask, and stop it. No load is begun after ``until``, by the monotonic clock."""
    row = Row(case.precision, case.nvcc, case.step_tokens)
    shipped = task.load()
    envs = {"PRECISION": case.precision, "START_MINUTES": str(math.ceil(server.start_seconds / 60))}
    args = server.args + (f" --max-num-batched-tokens {case.step_tokens}" if case.step_tokens else "")
    begin = time.monotonic()
    deployment = process.start(
        replace(shipped, envs={**shipped.envs, **envs}),
        server.venv, server.model, f"gpu-{case.precision}", store.free_port(0), args,
        {**server.machine, **machine},
    )  # fmt: skip
    try:
        process.wait_until_ready(deployment, server.start_seconds)
        row.seconds = time.monotonic() - begin
        endpoint = endpoint_of(deployment)
        ask_about_a_picture(endpoint, row)
        for load in server.loads["steps" if case.step_tokens else "nvcc" if case.nvcc else "plain"]:
            if time.monotonic() < until:
                row.speeds.append(put(load, endpoint))
                print(f"  {row.speeds[-1]}", file=sys.stderr, flush=True)
        if not case.nvcc and time.monotonic() < until:
            row.stall = longest_stall(endpoint, 4)
    except PixtralSkyError as error:
        row.failure = error.what
    finally:
        log = Path(deployment.log).read_text(errors="replace")
        rehearsals.stop(deployment)
    if server.logs:
        (server.logs / f"{re.sub(r'[^a-z0-9]', '-', str(case))}.log").write_text(log)
    if row.failure:
        print("\n".join(log.splitlines()[-40:]), file=sys.stderr, flush=True)
    for name, pattern in SAYS.items():
        if found := re.findall(pattern, log):
            row.said[name] = found[-1]
    return row


def put(load: Load, endpoint: Endpoint) -> Figures:
    """Put the load on the endpoint, which the first question has warmed up."""
    length = Length(LOAD_SECONDS, load.requests)
    return figures(load, Bench(endpoint, load.workload).measure(load.concurrency, length, warm_up=False))


def figures(load: Load, step: Step) -> Figures:
    each = percentile(step.per_token, 50)
    return Figures(
        pictures=load.pictures,
        concurrency=load.concurrency,
        answer=load.answer,
        answered=len(step.samples),
        failed=step.failed,
        seconds=step.seconds,
        first_token=percentile(step.first, 50),
        alone=1 / each if each else 0,
        requests=step.requests,
        tokens=step.tokens,
        error=next((failure.first for failure in step.failures.values()), ""),
    )


def longest_stall(endpoint: Endpoint, pictures: int) -> tuple[float, float]:
    """The longest pause of an answer in seconds: alone, and while a request with ``pictures`` comes."""
    other = Questions(Workload(images=pictures), time.monotonic_ns())[0]
    with Client(endpoint, budget=0, read_timeout=ANSWER_SECONDS, connections=2) as client:
        quiet = _longest_gap(client, 128)
        with ThreadPoolExecutor() as pool:
            watched = pool.submit(_longest_gap, client, 512)
            time.sleep(1)  # until its answer runs
            client.complete(other, max_tokens=16)
            return quiet, watched.result()


def _longest_gap(client: Client, tokens: int) -> float:
    """The longest time between two parts of an answer, each of which is one token with text."""
    answer = client.ask(["Describe it."], max_tokens=tokens, ignore_eos=True, allowed_token_ids=[LETTER])
    times = [time.monotonic() for _ in answer]
    return max((after - before for before, after in itertools.pairwise(times)), default=0)


def ask_about_a_picture(endpoint: Endpoint, row: Row) -> None:
    """The first question, which warms up what a start leaves cold."""
    picture = prepare(task.shipped("examples/chart.png").read_bytes(), "chart.png")
    with Client(endpoint, budget=0, read_timeout=ANSWER_SECONDS) as client:
        row.context = client.models()[0]["max_model_len"]
        begin = time.monotonic()
        usage = client.complete(["What is this?", picture], max_tokens=16)["usage"]
    row.answer = f"{usage['completion_tokens']} tokens in {time.monotonic() - begin:.1f} s"
    if usage["prompt_tokens"] < picture.tokens:
        row.failure = f"the picture has not reached the model: {usage['prompt_tokens']} tokens"


HEAD = (
    "case",
    "started",
    "weights, GiB a GPU: estimate, measured",
    "KV tokens: estimate, measured",
    "context",
    "a picture's answer",
    "attention",
    "compiling, graphs",
)


SPEED_HEAD = (
    "case",
    "pictures, at once",
    "answered, failed",
    "first token, s: estimate, measured",
    "tokens/s of one: estimate, measured",
    "requests/s: estimate, measured",
    "tokens/s",
)


def table(rows: list[Row], gpus: Gpus | None, versions: str) -> list[str]:
    """Markdown: estimated and measured; how each case starts, then how fast it answers."""
    if gpus:
        where = f"{gpus.count} x {gpus.name} (driver {gpus.driver})"
    else:
        where = "The CPU engine with the tiny model: nothing here is about a GPU"
    lines = [f"{where}, {versions}. Random weights.", ""]
    lines += markdown(HEAD, [cells(row, gpus) for row in rows])
    speeds = [speed_cells(row, figures, gpus) for row in rows for figures in row.speeds]
    if speeds:
        lines += ["", *markdown(SPEED_HEAD, speeds)]
    for row in rows:
        if row.stall:
            quiet, beside = row.stall
            lines += [
                "",
                f"{row.name}: the longest pause of an answer is {quiet * 1e3:.0f} ms, and"
                f" {beside * 1e3:.0f} ms while another request brings four pictures.",
            ]
    return lines


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def cells(row: Row, gpus: Gpus | None) -> tuple[str, ...]:
    weights, tokens = estimates(row, gpus)
    said = {name: row.said.get(name, "-") for name in SAYS}
    return (
        row.name,
        ": ".join(filter(None, (f"{row.seconds:.0f} s" if row.seconds else "no", row.failure))),
        f"{weights}, {said['weights']}",
        f"{tokens}, {said['tokens']}",
        f"{row.context:,}",
        row.answer or "-",
        said["attention"],
        f"{said['compiled']} s, {said['graphs']} s",
    )


def speed_cells(row: Row, figures: Figures, gpus: Gpus | None) -> tuple[str, ...]:
    first = alone = requests = "-"
    work = Load(figures.pictures, figures.concurrency, 0, figures.answer).workload
    fit = (
        memory.fits(gpus.known, gpus.count, workload=work, precision=row.precision)
        if gpus and gpus.known
        else None
    )
    if fit and fit.fits:
        estimate = estimated_speed(fit, work)
        if figures.concurrency == 1:
            first, alone = between(estimate.first_token), between(estimate.alone)
        elif figures.concurrency >= fit.requests:
            requests = between(estimate.requests)
    return (
        row.name,
        f"{figures.pictures}, {figures.concurrency}",
        f"{figures.answered}, {figures.failed}" + (f": {figures.error}" if figures.error else ""),
        f"{first}, {figures.first_token:.2f}",
        f"{alone}, {figures.alone:.1f}",
        f"{requests}, {figures.requests:.2f}",
        f"{figures.tokens:,.0f}",
    )


def between(estimate: Range) -> str:
    return f"{estimate.low:.3g} to {estimate.high:.3g}"


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


def dumped(rows: list[Row], gpus: Gpus | None, versions: str) -> str:
    """All figures as JSON."""
    document = {"gpus": gpus and asdict(gpus), "versions": versions, "rows": [asdict(row) for row in rows]}
    return json.dumps(document, indent=1) + "\n"


def loaded(text: str) -> tuple[list[Row], Gpus | None, str]:
    """What ``dumped`` wrote; its table is ``table(*loaded(text))``."""
    document = json.loads(text)
    rows = [
        Row(**{**row, "speeds": [Figures(**figures) for figures in row["speeds"]]})
        for row in document["rows"]
    ]
    return rows, document["gpus"] and Gpus(**document["gpus"]), document["versions"]


def main() -> int:
    arguments = parsed()
    # A server is in a session of its own: who ends this program must not leave it on the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gpus = None if arguments.tiny else gpus_here()
    until = time.monotonic() + arguments.seconds
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["PIXTRAL_SKY_HOME"] = home
        server = tiny_server(arguments) if gpus is None else full_server(arguments, gpus, Path(home))
        said = versions(server.venv)
        for case in arguments.cases:
            environ = nvcc_environment(case, Path(home) / "without-nvcc")
            if environ is None or time.monotonic() > until:
                print(f"{case} is left out: no {'time' if environ else 'nvcc'}", file=sys.stderr, flush=True)
                continue
            print(f"{case} ...", file=sys.stderr, flush=True)
            rows.append(measured(case, server, environ, until))
            if arguments.figures:  # after each, as the next may take the machine with it
                arguments.figures.write_text(dumped(rows, gpus, said))
        print("\n".join(table(rows, gpus, said)))
    return int(any(row.failure for row in rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="the tiny model on the CPU engine")
    parser.add_argument("--venv", type=Path, help="an environment with vLLM that is here already")
    parser.add_argument("--args", default="", help="more arguments for vllm serve")
    parser.add_argument("--seconds", type=float, default=3600, help="nothing is begun after so many")
    parser.add_argument(
        "--start-seconds", type=int, default=START_SECONDS, help="a start that takes longer is ended"
    )
    parser.add_argument("--figures", type=Path, help="a JSON file for all figures")
    parser.add_argument("--logs", type=Path, help="a directory for the logs of vLLM")
    parser.add_argument("cases", nargs="*", type=parse, help=f"as {', '.join(CASES)}")
    arguments = parser.parse_args()
    names = memory.PRECISIONS if arguments.tiny else CASES
    arguments.cases = arguments.cases or [parse(name) for name in names]
    return arguments


def tiny_server(arguments: argparse.Namespace) -> Server:
    venv = engine.ensure(task.load().vllm_version)
    return Server(
        venv, checkpoint.tiny(venv), f"{process.CPU_ARGS} {arguments.args}", process.CPU_ENVIRON,
        arguments.start_seconds, {"plain": TINY, "steps": TINY[:1], "nvcc": ()}, arguments.logs,
    )  # fmt: skip


def full_server(arguments: argparse.Namespace, gpus: Gpus, home: Path) -> Server:
    venv = installed(home, arguments.venv)
    return Server(
        venv, checkpoint.full(venv), f"--load-format dummy --dtype bfloat16 {arguments.args}",
        {"SKYPILOT_NUM_GPUS_PER_NODE": str(gpus.count)}, arguments.start_seconds,
        {"plain": ALONE + MANY, "steps": STEPS, "nvcc": ALONE[:1]}, arguments.logs,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
