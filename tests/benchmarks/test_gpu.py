"""`make gpu`: what it reads and shows. On the CPU engine it runs whole, in `make prove`."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Figures
from pixtral_sky import memory
from pixtral_sky.planning.speed import speed
from tests.conftest import ROOT


@pytest.mark.parametrize(("name", "known"), [
    ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("NVIDIA A10G", "A10G"), ("NVIDIA A100-SXM4-40GB", "A100"),
    ("NVIDIA A100 80GB PCIe", "A100-80GB"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H200", "H200"), ("NVIDIA B200", "B200"), ("NVIDIA GeForce RTX 4090", "RTX4090"), ("Tesla T4", ""),
    ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"), ("NVIDIA L40", ""), ("NVIDIA GH200 480GB", ""),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", ""), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""), ("NVIDIA A10", ""),
])  # fmt: skip
def test_the_names_of_gpus(name, known):
    assert gpu.known(name) == known


def test_nvcc_is_put_on_the_path_and_taken_from_it(tmp_path):
    cuda = tmp_path / "cuda" / "bin"
    cuda.mkdir(parents=True)
    for name in ("nvcc", "bash"):
        (cuda / name).touch(mode=0o755)
    environ = {"PATH": f"/nowhere:{cuda}:/bin", "CUDA_HOME": str(cuda.parent)}
    without = gpu.without_nvcc(environ, tmp_path / "links")
    # vLLM would look into /usr/local/cuda where they are empty.
    assert without["CUDA_HOME"] == without["CUDA_PATH"] == str(tmp_path / "links")
    assert not (tmp_path / "links" / "bin").exists()
    assert not shutil.which("nvcc", path=without["PATH"].removesuffix(":/bin"))
    # Debian has it in /usr/bin: the rest of that folder stays.
    assert Path(shutil.which("bash", path=without["PATH"]) or "").resolve() == (cuda / "bash").resolve()
    found = gpu.with_nvcc(environ)
    assert found
    assert found["PATH"].startswith(f"{cuda}:")


def test_cases_are_named():
    assert [str(gpu.parse(name)) for name in gpu.CASES] == list(gpu.CASES)
    assert gpu.parse("bf16@4352") == gpu.Case("bf16", step_tokens=4352)
    for wrong in ("fp16", "bf16@", "bf16@x", "fp8 nvcc", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="looks like"):
            gpu.parse(wrong)


def test_estimates_stand_beside_what_was_measured():
    here = gpu.Gpus("NVIDIA L4", "L4", 2, "580.95.05")
    rows = [
        gpu.Row("bf16", False, 0, 181.2, 32_768, "16 tokens in 0.9 s", said={"weights": "11.95", "tokens": "36,000"},
                speeds=[Figures(1, 1, 128, 4, 0, 30.0, 2.5, 12.5, 0.2, 17.0), Figures(1, 64, 128, 3, 1, 30.0, 9.0, 6.0, 0.5, 60.0, "broke off")],
                stall=(0.01, 2.5)),
        gpu.Row("fp8", True, failure="The server ended: no nvcc"),
    ]  # fmt: skip
    lines = gpu.table(rows, here, "vLLM 0.32.0, torch 2.13.0")
    assert lines[0] == "2 x NVIDIA L4 (driver 580.95.05), vLLM 0.32.0, torch 2.13.0. Random weights."
    found = memory.fits("L4", 2)
    assert f"| {memory.weight_bytes(2) / memory.GIB:.2f}, 11.95 |" in lines[4]
    assert f"| {found.kv_tokens:,} to {found.kv_tokens_most:,}, 36,000 | 32,768 |" in lines[4]
    assert "| fp8+nvcc | no: The server ended: no nvcc |" in lines[5]
    work = memory.Workload(text=8, answer=128)
    estimate = speed(memory.fits("L4", 2, workload=work), work)
    assert (
        f"| {gpu.between(estimate.first_token)}, 2.50 | {gpu.between(estimate.alone)}, 12.5 | -, 0.20 |"
        in lines[9]
    )
    assert f"| 3, 1: broke off | -, 9.00 | -, 6.0 | {gpu.between(estimate.requests)}, 0.50 |" in lines[10]
    assert lines[12] == (
        "bf16: the longest pause of an answer is 10 ms, and 2500 ms while another request brings four pictures."
    )
    assert gpu.table(*gpu.loaded(gpu.dumped(rows, here, "vLLM 0.32.0, torch 2.13.0"))) == lines


def test_the_page_shows_the_figures_that_were_measured():
    table = "\n".join(gpu.table(*gpu.loaded((ROOT / "docs/measured/h200.json").read_text())))
    assert f"<!-- h200 -->\n{table}\n<!-- /h200 -->" in (ROOT / "docs/measured.md").read_text()


def test_without_a_gpu_it_says_so(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "There is no NVIDIA GPU on this machine. Without one: make prove\n"


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_on_the_cpu_engine():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if re.match(r"\| (bf16|fp8) ", line)]
    assert [row.split(" ")[1] for row in rows] == ["bf16", "fp8", "bf16", "bf16", "fp8", "fp8"]
    for row in rows[2:]:
        assert re.match(
            r"\| \w+ \| (1, 1|4, 2) \| 2, 0 \| -, [\d.]+ \| -, [\d.]+ \| -, [\d.]+ \| [\d,]+ \|$", row
        ), row
    assert (
        len(re.findall(r"^(bf16|fp8): the longest pause of an answer is \d+ ms", result.stdout, re.MULTILINE))
        == 2
    )
    for row in rows[:2]:
        assert re.search(r"\| \d+ s \| -, - \| -, [\d,]{5,} \| 32,768 \| 16 tokens in [\d.]+ s \|", row), row
    assert Path(ROOT / "Makefile").read_text().count("-m benchmarks.gpu") == 1
