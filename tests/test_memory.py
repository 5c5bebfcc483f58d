"""What fits on which GPUs: the arithmetic by hand, its limits, and every machine that the project names.

That it agrees with vLLM is shown in ``tests/real/engine/test_memory.py``.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import gpu
from pixtral_sky import memory
from pixtral_sky.deploy import gpus, task
from pixtral_sky.errors import UsageError
from pixtral_sky.memory import (
    BLOCK,
    GIB,
    GPUS,
    MODEL_CONTEXT,
    PRECISIONS,
    Fit,
    Settings,
    Workload,
    fits,
    settings,
)
from pixtral_sky.pixtral import KV_BYTES_PER_TOKEN, TENSOR_PARALLEL, WEIGHT_BYTES
from tests.conftest import ROOT
from tests.support.command_line import run_main
from tools import render


def why_not(*arguments: Any, precision: str = "bf16") -> str:
    return fits(*arguments, precision=precision).why_not


def named() -> list[tuple[str, str]]:
    """Each accelerator of each YAML file of the project that names some."""
    found = []
    for file in sorted(
        path for folder in (".", "templates", "examples") for path in ROOT.glob(f"{folder}/*.yaml")
    ):
        try:
            data = yaml.safe_load(file.read_text())
        except yaml.YAMLError:
            continue  # a template whose parts are not in it yet
        if isinstance(data, dict):
            given = data.get("accelerators") or (data.get("resources") or {}).get("accelerators") or ()
            found += [(file.name, name) for name in ([given] if isinstance(given, str) else given)]
    return found


def test_there_are_such_files():
    files = {file for file, _ in named()}
    assert files >= {"pixtral.yaml", "service.yaml", "accelerators.yaml"}
    assert len(named()) >= 3 * 7


@pytest.mark.parametrize("accelerator", sorted({name for _, name in named()}))
def test_every_accelerator_of_every_file_holds_the_whole_context(accelerator):
    """In both precisions; that vLLM agrees is in ``tests/real/engine/test_memory.py``."""
    gpu, _, count = accelerator.partition(":")
    images = task.load().number("MAX_IMAGES")
    assert [fits(gpu, int(count or 1), None, images, None, each).context for each in PRECISIONS] == [
        32_768
    ] * 2


def test_the_defaults_are_those_of_the_file():
    envs = task.load()
    assert (envs.number("MAX_IMAGES"), envs.envs["MAX_MODEL_LEN"]) == (memory.DEFAULT_IMAGES, "")
    assert envs.envs["PRECISION"] == "bf16"


ONE_L4 = (
    "L4:1 has 20.2 GiB for vLLM, and the bf16 weights alone are 23.6 GiB. With --precision fp8 it holds a context"
    " of about 26,592 tokens."
)


# What the script chooses

SMI = """#!/bin/sh
case "$*" in
*topo*) echo "GPU0 X {link}" ;;
*) for _ in $(seq {count}); do echo "{name}, {mib}, {capability}"; done ;;
esac
"""


def words(folder: Path, name: str, mib: int, count: int, nvlink: bool, **envs: str) -> list[str]:
    """What the script of pixtral.yaml gives to `vllm serve MODEL`, where nvidia-smi says this."""
    smi = folder / "nvidia-smi"
    link = "NV12" if nvlink else "SYS"
    smi.write_text(SMI.format(name=name, mib=mib, capability=CAPABILITY[name], count=count, link=link))
    smi.chmod(0o755)
    environ = {
        **task.load().envs,
        "SKYPILOT_NUM_GPUS_PER_NODE": str(count),
        "PATH": f"{folder}:/usr/bin:/bin",
        **envs,
    }
    ran = subprocess.run(["bash", "-c", render.serve_script()], env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def chosen(*arguments, **envs: str) -> dict[str, str]:
    """The same as values by their flags."""
    found = words(*arguments, **envs)
    return {
        word: "" if after.startswith("--") else after
        for word, after in zip(found, [*found[1:], "--"], strict=True)
    }


CAPABILITY = {  # NVIDIA's list of GPUs by compute capability
    "NVIDIA A100-SXM4-40GB": "8.0", "NVIDIA A100 80GB PCIe": "8.0", "NVIDIA A10G": "8.6", "NVIDIA L4": "8.9",
    "NVIDIA L40S": "8.9", "NVIDIA H100 80GB HBM3": "9.0", "NVIDIA GeForce RTX 5090": "12.0",
}  # fmt: skip
# As nvidia-smi says it: MiB that are more than a program gets.
SEEN = {
    "L4": ("NVIDIA L4", 23_034), "A10G": ("NVIDIA A10G", 23_028), "L40S": ("NVIDIA L40S", 46_068),
    "A100": ("NVIDIA A100-SXM4-40GB", 40_960), "A100-80GB": ("NVIDIA A100 80GB PCIe", 81_920),
    "H100": ("NVIDIA H100 80GB HBM3", 81_559), "RTX5090": ("NVIDIA GeForce RTX 5090", 32_607),
}  # fmt: skip


@pytest.mark.parametrize(("gpu", "count", "expected"), [
    ("L4", 1, Settings(4_352, 64, 0.92, True)), ("L4", 2, Settings(4_352, 64, 0.88, False)),
    ("L4", 4, Settings(4_352, 64, 0.88, False)), ("A10G", 4, Settings(4_352, 64, 0.88, False)),
    ("L40S", 1, Settings(4_352, 64, 0.92, True)), ("L40S", 2, Settings(4_352, 64, 0.92, False)),
    ("A100", 1, Settings(4_352, 64, 0.92, True)), ("A100-80GB", 1, Settings(4_352, 64, 0.92, True)),
    ("H100", 1, Settings(8_192, 64, 0.92, True)), ("H100", 2, Settings(8_192, 64, 0.92, True)),
    ("RTX5090", 2, Settings(4_352, 64, 0.92, False)),
])  # fmt: skip
def test_the_choice_is_that_of_the_script(tmp_path, gpu, count, expected):
    assert settings(gpu, count) == expected
    name, mib = SEEN[gpu]
    assert GPUS[gpu].memory < mib / 1024 < 1.06 * GPUS[gpu].memory
    flags = chosen(tmp_path, name, mib, count, GPUS[gpu].nvlink and count > 1)
    assert flags["--tensor-parallel-size"] == str(count)
    assert (int(flags["--max-num-batched-tokens"]), int(flags["--max-num-seqs"])) == (
        expected.batched_tokens,
        expected.sequences,
    )
    assert float(flags["--gpu-memory-utilization"]) == expected.memory_utilization
    assert ("--disable-custom-all-reduce" not in flags) == expected.custom_all_reduce
    assert "--quantization" not in flags
    assert "--kv-cache-dtype" not in flags


@pytest.mark.parametrize("images", [1, 4, 6, 7, 8, 30])
def test_the_context_is_that_of_the_script(tmp_path, images):
    flags = chosen(tmp_path, *SEEN["L4"], 1, False, MAX_IMAGES=str(images), PRECISION="fp8")
    assert flags["--max-model-len"] == "-1"
    assert f'"max_position_embeddings": {memory.default_context(images)}}}' in flags["--hf-overrides"]
    assert memory.default_context(images) == {7: 33_216, 8: 37_376, 30: 128_000}.get(images, 32_768)
    given = chosen(tmp_path, *SEEN["L4"], 1, False, MAX_MODEL_LEN="20480")
    assert (given["--max-model-len"], "--hf-overrides" in given) == ("20480", False)


@pytest.mark.parametrize("gpu", ["L4", "A10G", "L40S", "A100", "H100", "RTX5090"])
def test_the_quantization_is_that_of_the_script(tmp_path, gpu):
    flags = chosen(tmp_path, *SEEN[gpu], 1, False, PRECISION="fp8")
    # vLLM 0.32 refuses a scale for each output where it unpacks (Marlin; layers/quantization/online/fp8.py).
    assert flags["--quantization"] == ("fp8_per_channel" if GPUS[gpu].fp8 else "fp8_per_tensor")
    assert GPUS[gpu].fp8 == (gpu not in ("A10G", "A100"))
    assert "--kv-cache-dtype" not in flags


# What holds it


@pytest.mark.parametrize("command", [("launch",), ("serve", "up")])
@pytest.mark.parametrize(
    "resources",
    [
        {"accelerators": "L4:1"},
        {"accelerators": "L4"},
        {"accelerators": ["L40S:1", "L4:1"]},
        {"accelerators": {"L40S:1": None, "L4:1": None}},
        {"accelerators": {"L4": 1}},
        {"any_of": [{"accelerators": "L40S:1"}, {"accelerators": "L4:1"}]},
        {"accelerators": "L4:1", "ordered": [{"infra": "aws"}]},
    ],
)
def test_a_file_with_gpus_that_are_too_small_is_refused(monkeypatch, capsys, tmp_path, command, resources):
    """Before SkyPilot or the Hub is asked anything."""
    path = tmp_path / "small.yaml"
    config = task.read(task.shipped("pixtral.yaml" if command == ("launch",) else "service.yaml"))
    config["resources"] = resources
    path.write_text(yaml.safe_dump(config))
    result = run_main(monkeypatch, capsys, *command, "--file", str(path), "--yes")
    assert result.code == 2
    assert result.error.startswith(ONE_L4)


@pytest.mark.parametrize(
    ("resources", "envs"),
    [
        ({"accelerators": "L4:2"}, {}),
        ({"accelerators": "T4:1"}, {}),  # not known here: SkyPilot's and vLLM's to refuse
        ({"accelerators": "L4:1"}, {"MODEL": "/models/other"}),
        ({"accelerators": "L4:1"}, {"EXTRA_ARGS": "--quantization fp8"}),
        ({"accelerators": "L4:1"}, {"PRECISION": "fp8"}),
        ({"accelerators": "RTX5090:1"}, {"MAX_IMAGES": 1, "MAX_MODEL_LEN": 8192}),
        ({"accelerators": "L4:1", "any_of": [{"accelerators": "L40S:1"}]}, {}),
        ({"accelerators": 7, "any_of": None}, {}),
        (None, {}),
    ],
)
def test_files_that_are_left_to_others(resources, envs):
    gpus.check_fit(None, {"resources": resources}, {**task.load().envs, **envs})


def test_the_context_of_the_file_counts():
    envs = {**task.load().envs, "MAX_MODEL_LEN": "100000"}
    with pytest.raises(UsageError, match=r"a context of about [\d,]+ tokens, not 100,000\."):
        gpus.check_fit("L4:2", {}, envs)
    with pytest.raises(
        UsageError, match=r"^MAX_IMAGES=0, MAX_MODEL_LEN=100000: a prompt has 1 picture or more"
    ):
        gpus.check_fit("L4:2", {}, {**envs, "MAX_IMAGES": "0"})


@pytest.mark.parametrize(("gpu", "count", "says"), [
    ("L4", 1, ONE_L4),
    ("RTX4090", 1, "RTX4090:1 has 21.6 GiB for vLLM, and the bf16 weights alone are 23.6 GiB. With --precision fp8 it holds a context of about 32,768 tokens."),
    ("L4", 3, "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
    ("L4", 0, "Pixtral splits over 1, 2, 4 or 8 GPUs, not 0."),
    ("H100", 16, "Pixtral splits over 1, 2, 4 or 8 GPUs, not 16."),
])  # fmt: skip
def test_why_it_does_not_fit(gpu, count, says):
    assert why_not(gpu, count) == says
    nothing = fits(gpu, count)
    assert nothing == Fit(gpu, count, "bf16", says, kv_tokens=0, kv_tokens_most=0, context=0, requests=0)
    assert not nothing.fits


def test_too_little_context_is_said_with_what_there_is():
    said = why_not("RTX5090", 1, 32_768)
    found = re.fullmatch(
        r"RTX5090:1 has 28\.8 GiB for vLLM; beside 23\.6 GiB of bf16 weights that is a context of about ([\d,]+) "
        r"tokens, not 32,768\. With --precision fp8 it holds a context of about 32,768 tokens\.",
        said,
    )
    assert found, said
    there = int(found[1].replace(",", ""))
    assert why_not("RTX5090", 1, there) == ""
    assert "on each GPU; beside 11.8 GiB of bf16 weights" in why_not("L4", 2, 100_000)
    # FP8 does not have all of it either, and then it is no way out.
    assert why_not("L4", 1, 32_768, precision="fp8").endswith(
        "is a context of about 26,592 tokens, not 32,768."
    )
    assert "fp8" not in why_not("L4", 1, None, 8)


def test_the_context_that_results():
    one = fits("L4", 1, precision="fp8")
    assert (one.context, one.kv_tokens) == (26_592, 26_608)
    assert one.context > 20_480 > 4 * 4_160
    assert [fits("L4", 2, length).context for length in (None, 40_000, -1)] == [32_768, 40_000, 65_376]
    assert fits("L4", 2, None, 8).context == 8 * 4_160 + 4_096


def test_a_context_that_cannot_be():
    assert why_not("H200", 8, 128_000) == ""
    assert why_not("H200", 8, 128_001) == "Pixtral's context is 128,000 tokens, not 128,001."
    assert why_not("H200", 8, -1, 31) == "Pixtral's context is 128,000 tokens, not 128,961."
    assert why_not("H200", 8, 16_640) == "4 full pictures are 16,640 tokens, and the context is 16,640."
    assert why_not("H200", 8, 16_641) == ""


@pytest.mark.parametrize(("arguments", "says"), [
    (("T4", 1), "T4 is not known here; these are: L4, A10G, "), (("l4", 2), "l4 is not known here"),
    (("L4", 2, 0), "not 0"), (("L4", 2, -2), "not -2"), (("L4", 2, -1, 0), "not 0"),
    (("L4", 2, None, 4, None, "int4"), "a precision is bf16 or fp8, not int4"),
])  # fmt: skip
def test_what_is_no_question(arguments, says):
    with pytest.raises(ValueError, match=says):
        fits(*arguments)


def test_every_gpu_that_is_asked_for_is_known():
    assert list(GPUS) == [
        "L4", "A10G", "L40S", "A100", "A100-80GB", "H100", "H200", "B200", "RTX4090", "RTX5090", "RTX6000-Ada",
        "RTXPRO6000",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "nominal"), [  # GB, as the vendor says
    ("L4", 24), ("A10G", 24), ("L40S", 48), ("A100", 40), ("A100-80GB", 80), ("H100", 80), ("H200", 141), ("B200", 180),
    ("RTX4090", 24), ("RTX5090", 32), ("RTX6000-Ada", 48), ("RTXPRO6000", 96),
])  # fmt: skip
def test_cuda_reports_less_than_the_name_says(name, nominal):
    assert 0.91 * nominal < GPUS[name].memory < nominal


# By hand


def test_the_weights():
    assert memory.weight_bytes(1) == WEIGHT_BYTES == 25_365_479_424
    # The adapter is on each GPU (31,467,520), with 81 norms of the decoder (of 5,120), 49 of the encoder
    # (of 1,024), and its first convolution (16 x 16 x 3 x 1,024).
    assert memory.REPLICATED_BYTES == 2 * (31_467_520 + 414_720 + 50_176 + 786_432) == 65_437_696
    for count in (2, 4, 8):
        shared = (25_365_479_424 - 65_437_696) / count
        assert memory.weight_bytes(count) == 65_437_696 + shared
    assert memory.weight_bytes(2) == 12_715_458_560


def test_the_weights_in_fp8():
    # A byte less for each of the decoder's linear weights. In each of 40 layers 6,144 + 28,672 outputs, which are
    # shared out, and twice 5,120, which are not, have a scale of four bytes.
    linear, shared, whole = 10_905_190_400, 40 * 4 * (6_144 + 28_672), 40 * 4 * 2 * 5_120
    for count in TENSOR_PARALLEL:
        expected = memory.weight_bytes(count) - linear / count + shared / count + whole
        assert memory.weight_bytes(count, "fp8") == expected
    assert round(memory.weight_bytes(1, "fp8") / GIB, 2) == 13.47


def test_the_cache():
    assert memory.tokens_in(10 * GIB, 1) == 65_536
    assert memory.tokens_in(10 * GIB, 2) == 131_072
    block = BLOCK * KV_BYTES_PER_TOKEN
    assert [memory.tokens_in(block * 5 + more, 1) for more in (-1, 0, 1, block)] == [64, 80, 80, 96]
    assert memory.tokens_in(-1, 1) < 0
    # vllm-project/vllm#20420 shows 16.20 GiB on each of two GPUs, and 212,352 tokens, for a model with the
    # same 40 layers, 8 KV heads and head size.
    assert memory.tokens_in(int(16.20 * GIB), 2) == pytest.approx(212_352, rel=0.001)


def test_the_context():
    # A block is vLLM's own.
    assert memory.context_in(10 * GIB, 1) == 65_536 - 16
    assert memory.context_in(100 * GIB, 1) == MODEL_CONTEXT
    assert memory.context_in(BLOCK * KV_BYTES_PER_TOKEN, 1) == 0


def test_two_l4_by_hand():
    usable = 21.95 * 0.88  # 19.32 GiB on each
    weights = 12_715_458_560 / GIB  # 11.84
    # 4,352 tokens of 4 x 5,120 and 3 x 14,336 / 2 numbers, and 4,096 patches of 5,120; 2 bytes each: 0.38
    step = 2 * (4_352 * (4 * 5_120 + 3 * 14_336 / 2) + 4_096 * 5_120) / GIB
    # 4,352 embeddings; for each of 64 requests 131,072 x 33 bits; 128,000 x 128 positions: 0.10
    buffers = (4_352 * 5_120 * 2 + 64 * 131_072 * 33 / 8 + 128_000 * 128 * 2) / GIB
    free = usable - weights - step - buffers
    least, most = ((free - other) * GIB / (KV_BYTES_PER_TOKEN / 2) for other in (2.0, 0.3))
    result = fits("L4", 2)
    assert result.kv_tokens == pytest.approx(least, abs=16)
    assert result.kv_tokens_most == pytest.approx(most, abs=16)
    assert (round(least, -3), round(most, -3)) == (65_000, 88_000)
    # One request: 4,160 + 75 tokens, 300 of the answer; in blocks of 16, that is 4,544.
    assert Workload().tokens == 4_535
    assert result.requests == (result.kv_tokens - 16) // 4_544 == 14


def test_a_single_l4_of_another_model_as_vllm_reports_it():
    """What OTHER_GIB has to hold, by vLLM 0.29 on one L4: 9.01 GiB used of which 8.68 weights; 0.24 of graphs."""
    assert memory.OTHER_GIB[0] < 9.01 - 8.68 + 0.24 < memory.OTHER_GIB[1]
    assert memory.OTHER_GIB[0] < 0.07 + 0.78 < memory.OTHER_GIB[1]  # vLLM 0.26, on another


def test_what_was_measured_lies_within_the_estimates():
    rows, here, _ = gpu.loaded((ROOT / "docs" / "measured" / "h200.json").read_text())
    assert rows
    assert here
    for row in rows:
        found = memory.fits(here.known, here.count, precision=row.precision)
        assert found.kv_tokens <= int(row.said["tokens"].replace(",", "")) <= found.kv_tokens_most
        assert row.context == found.context
        weights = memory.weight_bytes(here.count, row.precision) / memory.GIB
        assert float(row.said["weights"]) == pytest.approx(weights, rel=0.001)


# What it depends on, and how


ALL = [(gpu, count, precision) for gpu in GPUS for count in TENSOR_PARALLEL for precision in PRECISIONS]


@pytest.mark.parametrize(("gpu", "count", "precision"), ALL)
def test_what_fits_adds_up(gpu, count, precision):
    result = fits(gpu, count, -1, precision=precision)
    if not result.fits:
        assert (count, precision) == (1, "bf16")
        assert "\n" not in result.why_not
        return
    assert result.context == min(result.kv_tokens - BLOCK, MODEL_CONTEXT)
    # The margin: 1.7 GiB a GPU.
    margin = (result.kv_tokens_most - result.kv_tokens) * KV_BYTES_PER_TOKEN / count / GIB
    assert margin == pytest.approx(1.7, abs=0.01)
    assert 1 <= result.requests <= 64
    # All that fits may be asked for.
    assert why_not(gpu, count, result.context, precision=precision) == ""
    if result.context < MODEL_CONTEXT:
        assert why_not(gpu, count, result.context + 1, precision=precision) != ""
    assert fits(gpu, count, precision=precision).context == min(result.context, 32_768)
    # FP8 never holds less.
    assert fits(gpu, count, -1, precision="fp8").kv_tokens >= result.kv_tokens


@pytest.mark.parametrize("gpu", GPUS)
def test_more_gpus_hold_more(gpu):
    results = [fits(gpu, count) for count in TENSOR_PARALLEL]
    assert [r.kv_tokens for r in results] == sorted({r.kv_tokens for r in results})
    assert [r.requests for r in results] == sorted(r.requests for r in results)


@pytest.mark.parametrize("more", [{"images": 2}, {"text": 750}, {"answer": 750}])
def test_larger_requests_are_fewer(more):
    small = Workload()
    assert fits("L4", 2, workload=replace(small, **more)).requests < fits("L4", 2, workload=small).requests


def test_a_request_that_is_larger_than_the_context():
    assert fits("H100", 1, workload=Workload(images=7)).requests > 0
    assert fits("H100", 1, workload=Workload(images=8)).requests == 0
    assert fits("H100", 1, None, 8, workload=Workload(images=8)).requests > 0


def test_a_workload():
    assert Workload(images=0, text=0).prompt == 0
    full_hd = Workload(images=2, width=1920, height=1080, text=15, answer=30)
    assert (full_hd.prompt, full_hd.tokens) == (2 * 2_340 + 15, 2 * 2_340 + 45)
    assert fits("B200", 8, workload=Workload(images=0)).requests == 64  # the script's own limit
