"""The machines behind a deployment, on the real SDK of SkyPilot with a fake API server behind it."""

from __future__ import annotations

import pytest

from pixtral_sky.deploy import store
from pixtral_sky.deploy.machines import Machines, behind
from tests.support import deployments
from tests.support.fake_sky import PRICES, FakeSky


def test_of_a_cluster(server: FakeSky) -> None:
    server.cluster(gpus={"A10G": 4}, envs={"PRECISION": "fp8"}, hourly=5.5)
    deployments.cluster()
    assert behind("pixtral") == Machines("cluster", "A10G:4", "fp8", 1, pytest.approx(5.5))


def test_of_a_service(server: FakeSky) -> None:
    server.serve.service(replicas={1: "READY", 2: "READY", 3: "PENDING"})
    deployments.service()
    found = behind("pixtral")
    assert (found.kind, found.gpus, found.precision, found.replicas) == ("service", "L4:2", "bf16", 2)
    assert found.hourly == 2 * PRICES["L4:2"], "of those that were launched"


@pytest.mark.parametrize("remember", [deployments.cluster, deployments.service])
def test_of_one_that_skypilot_has_no_longer(server: FakeSky, remember) -> None:
    kind = remember().kind
    assert behind("pixtral") == Machines(kind)


def test_of_a_rehearsal() -> None:
    store.remember(deployments.running())
    assert behind("pixtral") == Machines("rehearsal")


@pytest.mark.parametrize("name", ["", "PIXTRAL_ENDPOINT", "other"])
def test_of_what_was_not_launched_from_here(name: str) -> None:
    assert behind(name) == Machines()
