"""GPUs that hold the model, and those that nobody knows, on SkyPilot's own catalog functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pixtral_sky.deploy import gpus, task
from pixtral_sky.errors import UsageError
from tests.support import fake_catalog

ENVS = task.load().envs


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fake_catalog.skypilot(monkeypatch) as sky:
        yield sky


def checked(wanted, config, infra=None, envs=ENVS):
    gpus.check_fit(wanted, config, envs)
    return gpus.check_names(wanted, config, infra)


@pytest.mark.parametrize(
    ("wanted", "infra", "says"),
    [
        (
            "H10:1",
            None,
            "There is no GPU 'H10' in SkyPilot's catalogs. Did you mean H100? All there are: sky gpus list",
        ),
        ("l40:1", "aws", "There is no GPU 'l40' in SkyPilot's catalogs. Did you mean L40S? "),
        (
            "nonsense:2",
            None,
            "There is no GPU 'nonsense' in SkyPilot's catalogs. All there are: sky gpus list",
        ),
        ("T4:3", None, "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
        ("H100:3", "k8s", "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
        (
            "l4:1",
            None,
            "L4:1 has 20.2 GiB for vLLM, and the bf16 weights alone are 23.6 GiB. With --precision",
        ),
    ],
)
def test_gpus_that_are_refused(sky, wanted, infra, says):
    with pytest.raises(UsageError) as caught:
        checked(wanted, {}, infra)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("wanted", "infra", "warned"),
    [
        ("L4:2", None, []),
        ("l4:2", None, []),  # SkyPilot takes it too
        ("T4:2", None, ["T4 is not known here: whether it holds the model shows when it starts."]),
        (
            "nvidia-h100",
            "kubernetes/lab",
            ["nvidia-h100 is not known here: whether it holds the model shows when it starts."],
        ),
    ],
)
def test_gpus_that_are_not(sky, wanted, infra, warned):
    assert checked(wanted, {}, infra) == warned


def test_gpus_of_a_file(sky):
    with pytest.raises(UsageError, match="Did you mean A100-80GB"):
        checked(None, {"resources": {"accelerators": {"L4:2": None, "A100-80G:1": None}}})
    own = {"resources": {"accelerators": "gpu", "infra": "slurm/lab"}}
    assert checked(None, own) == ["gpu is not known here: whether it holds the model shows when it starts."]


def test_without_catalogs_no_gpu_is_refused(monkeypatch, tmp_path):
    fake_catalog.install(monkeypatch, tmp_path)
    (said,) = checked("H10:1", {})
    assert said.endswith(" Did you mean H100?")


def test_one_l4_in_fp8():
    with pytest.raises(UsageError, match=r"^L4:1 .*What holds it: pixtral-sky plan"):
        checked("L4:1", {}, envs={**ENVS, "PRECISION": "bf16"})
    assert checked("L4:1", {}, envs={**ENVS, "PRECISION": "fp8", "MAX_MODEL_LEN": ""}) == []
