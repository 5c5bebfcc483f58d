"""The syntax of --infra and --gpus: what SkyPilot reads, and what it would refuse late."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from pixtral_sky.deploy import gpus, infra
from pixtral_sky.deploy.gpus import Gpus
from pixtral_sky.deploy.infra import Infra
from pixtral_sky.errors import UsageError

PLACES = {
    "aws": Infra("aws"),
    " AWS/ ": Infra("aws"),
    "gcp/us-central1": Infra("gcp", "us-central1"),
    "aws/us-east-1/us-east-1a": Infra("aws", "us-east-1", "us-east-1a"),
    "aws/*/us-east-1a": Infra("aws", "", "us-east-1a"),
    "*": Infra(""),
    "*/us-east-1": Infra("", "us-east-1"),
    "k8s": Infra("kubernetes"),
    "k8s/arn:aws:eks:us-east-1:1:cluster/x": Infra("kubernetes", "arn:aws:eks:us-east-1:1:cluster/x"),
    "slurm/Lab/gpu": Infra("slurm", "Lab", "gpu"),
    "slurm/größe": Infra("slurm", "größe"),
    "ssh/my/pool": Infra("ssh", "my/pool"),
}


@pytest.mark.parametrize("text", PLACES)
def test_places_are_read_as_skypilot_reads_them(sky: Any, text: str) -> None:
    from sky.utils.infra_utils import InfraInfo

    found, theirs = infra.parse(text), InfraInfo.from_str(text)
    assert found == PLACES[text]
    region = (theirs.region or "").removeprefix("ssh-")
    assert (found.cloud, found.region, found.zone) == (theirs.cloud or "", region, theirs.zone or "")
    assert infra.parse(str(found) or "*") == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--infra is empty. Leave it out to take what the file allows."),
        (" / ", "--infra is empty."),
        ("nonsense", "There is no cloud 'nonsense'. There are: aws, azure, "),
        ("azur", "There is no cloud 'azur'. Did you mean azure?"),
        ("none", "There is no cloud 'none'."),
        ("ünï", "There is no cloud 'ünï'."),
        ("a" * 500, f"There is no cloud '{'a' * 57}...'."),
        ("aws/x/y/z", "--infra 'aws/x/y/z' has more than a cloud, a region and a zone."),
        ("aws//x", "--infra 'aws//x' has an empty part."),
        ("aws/ü", "'ü' is no name of a place in aws."),
        ("aws/a b", "'a b' is no name of a place in aws."),
        ("k8s/\x1b[31m", "'[31m' is no name of a place in kubernetes."),
        (f"slurm/{'a' * 300}", f"'{'a' * 57}...' is no name of a place in slurm."),
    ],
)
def test_no_places(text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        infra.parse(text)
    assert str(raised.value).startswith(says)
    assert raised.value.hint


def test_the_clouds_are_skypilots(sky: Any) -> None:
    from sky.skylet import constants

    assert tuple(sorted(constants.ALL_CLOUDS)) == infra.CLOUDS
    extras = importlib.metadata.metadata("pixtral-sky").get_all("Provides-Extra") or ()
    assert {*infra.CLOUDS} < {*extras}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("L4", Gpus("L4", 1)),
        (" L4:2 ", Gpus("L4", 2)),
        ("a100-80gb:08", Gpus("a100-80gb", 8)),
        ("RTX PRO 6000:1", Gpus("RTX PRO 6000", 1)),
        ("nvidia-h100:3", Gpus("nvidia-h100", 3)),
    ],
)
def test_gpus_are_read(text: str, found: Gpus) -> None:
    assert gpus.parse(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--gpus is empty. Leave it out"),
        ("L4:", "--gpus takes a whole number of GPUs from 1 on, not 'L4:'. For example: --gpus L4:2"),
        *(
            (f"L4:{count}", "--gpus takes a whole number of GPUs from 1 on, not ")
            for count in ("0", "-2", "2.5", "nan", "inf", "1e1", "²", " 2", "9" * 20)
        ),
        *(
            (text, "--gpus takes one GPU[:COUNT], not ")
            for text in (
                ":2",
                "ünï:2",
                "L4:2:3",
                "L4,H100",
                "L4:1,H100:1",
                "{L4:1}",
                "[L4]",
                "80GB+",
                "a" * 400,
            )
        ),
    ],
)
def test_no_gpus(text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        gpus.parse(text)
    assert str(raised.value).startswith(says)
    assert len(str(raised.value)) < 200
