"""The fake of SkyPilot's API server takes and tells what the real one does: SkyPilot's own signatures and types."""

from __future__ import annotations

import inspect
import time

import yaml

from tests.support.fake_sky import FakeSky


def test_clusters_are_asked_for_as_the_real_one_is(server: FakeSky) -> None:
    for name, real in server.real.items():
        ours = inspect.signature(server.endpoints_of if name == "endpoints" else getattr(server, name))
        theirs = inspect.signature(inspect.unwrap(real)).parameters
        for parameter in ours.parameters.values():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                assert parameter.name in theirs, (name, parameter.name)


def test_services_are_asked_for_as_the_real_one_is(server: FakeSky) -> None:
    for name, real in server.serve.real.items():
        ours = inspect.signature(getattr(server.serve, name)).parameters
        theirs = inspect.signature(inspect.unwrap(real)).parameters
        assert list(ours) == list(theirs), name


def test_it_tells_of_services_what_the_real_one_tells(server: FakeSky) -> None:
    """No handle, and so no machine to ask for its price: SkyPilot's server keeps it back."""
    server.serve.service(replicas={1: "READY", 2: "PENDING"})
    (record,) = server.sky.get(server.sky.serve.status(None))
    assert record["status"] is server.sky.serve.ServiceStatus.READY
    one, two = record["replica_info"]
    assert (one["handle"], two["handle"]) == (None, None)
    assert one["status"] is server.sky.serve.ReplicaStatus.READY
    assert one["resources_str_full"].startswith("1x(gpus=L4:2, cpus=24, mem=96, g2-standard-24, ")
    assert (one["cloud"], one["region"], one["infra"]) == ("GCP", "us-central1", "GCP (us-central1)")
    assert "resources_str" not in two
    assert 0 <= time.time() - record["uptime"] < 60, "a moment, not a duration"
    assert yaml.safe_load(record["yaml_content"])["secrets"]["PIXTRAL_API_KEY"] == "unknown-here"
