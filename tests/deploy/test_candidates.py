"""What a launch may run on, on SkyPilot's own catalog functions and its own optimizer."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pixtral_sky.deploy import candidates, task
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT
from tests.support import fake_catalog

CLOUDS = ("aws", "gcp", "lambda", "nebius")
ENVS = task.load().envs


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fake_catalog.skypilot(monkeypatch) as sky:
        yield sky


def made(
    sky: Any, gpus: Sequence[str] = ("L4:2", "L4:4", "L40S:1", "A100:1", "H100:1"), **resources: Any
) -> Any:
    """SkyPilot's task of pixtral.yaml on these."""
    config = task.read()
    config["resources"] |= {"accelerators": dict.fromkeys(gpus), **resources}
    config["resources"].pop("disk_tier", None)
    return sky.Task.from_yaml_config(config | {"setup": "", "run": "serve"})


def chosen(
    sky: Any, the_task: Any, max_price: float | None, enabled: Sequence[str] = CLOUDS, **options: Any
) -> Any:
    return candidates.choose(sky, the_task.resources, enabled, max_price, **options)


def places(found: candidates.Chosen) -> set[tuple[str, str | None, str | None, str]]:
    return {
        (
            str(each.cloud).lower(),
            each.region,
            each.zone,
            "+".join(f"{g}:{n}" for g, n in each.accelerators.items()),
        )
        for each in found.resources
    }


# A price ---------------------------------------------------------------------------------------------------


def failover(
    sky: Any, monkeypatch: pytest.MonkeyPatch, the_task: Any, clouds: Sequence[str] = CLOUDS
) -> list[Any]:
    """What SkyPilot launches on, one after the other, while no place has a machine."""
    from sky import check, exceptions, optimizer

    enabled = [sky.CLOUD_REGISTRY.from_str(cloud) for cloud in clouds]
    monkeypatch.setattr(check, "get_cached_enabled_clouds_or_refresh", lambda *_, **__: enabled)
    with sky.Dag() as dag:
        dag.add(the_task)
    tried: list[Any] = []
    with contextlib.suppress(exceptions.ResourcesUnavailableError):
        while True:
            the_task.best_resources = None
            optimizer.Optimizer.optimize(dag, blocked_resources=tried, quiet=True)
            tried.append(the_task.best_resources)
    return tried


@pytest.mark.parametrize(
    ("spot", "price", "costs"),
    [
        (False, 1.5, []),
        (False, 2.02, [2.0, 2.0]),
        (False, 4.8, [2.0, 2.0, 2.05, 2.05, 4.6]),
        (True, 0.72, [0.7, 0.7]),
        (True, 1.75, [0.7, 0.7, 0.75, 0.75, 1.5, 1.7]),
        (True, 9, [0.7, 0.7, 0.75, 0.75, 1.5, 1.7, 1.9]),
    ],
)
def test_failover_never_goes_over_the_price(sky, monkeypatch, spot, price, costs):
    """And nothing under it is lost."""
    the_task = made(sky, ["L4:2", "L4:4"], use_spot=spot)
    with contextlib.suppress(UsageError):
        the_task.set_resources(set(chosen(sky, the_task, price, ["aws", "gcp"]).resources))
        tried = failover(sky, monkeypatch, the_task, ["aws", "gcp"])
        assert [each.get_cost(3600) for each in tried] == pytest.approx(costs)
        return
    assert costs == []


def test_skypilots_own_limit_does_go_over(sky, monkeypatch):
    """Else there would be no need of all this."""
    the_task = made(sky, ["L4:4"], max_hourly_cost=4.8)
    assert [each.get_cost(3600) for each in failover(sky, monkeypatch, the_task, ["aws"])] == [4.6, 5.2]
    the_task.set_resources(set(chosen(sky, the_task, 4.8, ["aws"]).resources))
    assert [each.get_cost(3600) for each in failover(sky, monkeypatch, the_task, ["aws"])] == [4.6]


def test_a_candidate_is_as_wide_as_the_price_allows(sky):
    """Each more of them takes time at every failover."""
    four = made(sky, ["L4:4"])
    assert places(chosen(sky, four, 6, ["aws"])) == {("aws", None, None, "L4:4")}
    assert places(chosen(sky, four, 4.6, ["aws"])) == {("aws", "us-east-1", None, "L4:4")}
    spot = made(sky, ["L4:4"], use_spot=True)
    assert places(chosen(sky, spot, 1.75, ["aws"])) == {
        ("aws", "eu-west-1", None, "L4:4"),
        ("aws", "us-east-1", "us-east-1-az2", "L4:4"),
    }


def test_zones_that_have_another_name_elsewhere_are_not_named(sky, monkeypatch, tmp_path):
    root = tmp_path / "catalog"
    shutil.copytree(fake_catalog.ROOT, root)
    file = root / "aws" / "vms.csv"
    file.write_text(file.read_text().replace("us-east-1-az", "use1-az"))
    fake_catalog.install(monkeypatch, root)
    spot = made(sky, ["L4:4"], use_spot=True)
    assert places(chosen(sky, spot, 1.75, ["aws"])) == {("aws", "eu-west-1", None, "L4:4")}
    assert places(chosen(sky, spot, 1.9, ["aws"])) == {("aws", None, None, "L4:4")}


def test_on_gcp_the_price_is_that_of_host_and_gpus(sky):
    the_task = made(sky, ["L4:2"])
    assert places(chosen(sky, the_task, 2.02, ["gcp"])) == {("gcp", "us-central1", None, "L4:2")}


def test_a_place_that_is_given_stays(sky):
    the_task = made(sky, ["L4:4"], infra="aws/eu-west-1")
    assert places(chosen(sky, the_task, 6)) == {("aws", "eu-west-1", None, "L4:4")}
    with pytest.raises(
        UsageError, match=r"The cheapest is g6\.12xlarge \(L4:4\) in aws/eu-west-1 at \$5\.20"
    ):
        chosen(sky, the_task, 4.8)


def test_what_is_said(sky):
    found = chosen(sky, made(sky), 4.8, ["aws", "gcp", "kubernetes/ctx", "ssh/pool"])
    assert found.said == (
        "At most $4.80 an hour for a machine with its GPUs: 4 candidates. Its disk, by list price $0.03 an hour, and"
        " traffic are not in it.",
        "Without a price, and candidates all the same: kubernetes, ssh.",
    )
    assert found.warned == ()
    assert {cloud for cloud, *_ in places(found)} == {"aws", "gcp", "kubernetes", "ssh"}


@pytest.mark.parametrize(
    ("options", "price", "says"),
    [
        (
            {},
            0.5,
            "Nothing that holds it costs $0.50 an hour or less. The cheapest is gpu-l40s-a_1gpu-8vcpu-32gb (L40S:1)"
            " in nebius/eu-north1 at $1.55. Raise --max-price",
        ),
        (
            {"gpus": ["L4:4"]},
            1.7,
            "Nothing that holds it costs $1.70 an hour or less. The cheapest is g6.12xlarge (L4:4) in aws/us-east-1 at"
            " $4.60 (spot $1.70). Raise --max-price, or take --spot",
        ),
        (
            {"gpus": ["L4:4"], "use_spot": True},
            1,
            "Nothing that holds it costs $1.00 an hour or less. The cheapest is g6.12xlarge (L4:4) in aws/eu-west-1 at"
            " $1.50 (on demand $5.20). Raise --max-price",
        ),
    ],
)
def test_nothing_under_it(sky, options, price, says):
    with pytest.raises(UsageError) as caught:
        chosen(sky, made(sky, **options), price)
    assert str(caught.value) == says


def test_where_ordinary_machines_stand_in_for_spot_ones_their_price_counts(sky):
    spot = made(sky, ["L4:4"], use_spot=True)
    assert places(chosen(sky, spot, 2, ["aws"])) == {("aws", None, None, "L4:4")}
    with pytest.raises(UsageError, match=r"in aws/us-east-1 at \$4\.60"):
        chosen(sky, spot, 2, ["aws"], fallback=True)
    assert places(chosen(sky, spot, 5, ["aws"], fallback=True)) == {("aws", "us-east-1", None, "L4:4")}


def test_a_spot_price_of_zero_is_none(sky):
    with pytest.raises(UsageError, match="no price is known"):
        chosen(sky, made(sky, ["L40S:1"], use_spot=True), 5, ["vast"])


def test_the_limit_of_a_file_stays(sky):
    the_task = made(sky, ["L4:4"], max_hourly_cost=4.7)
    assert places(chosen(sky, the_task, 9, ["aws"])) == {("aws", "us-east-1", None, "L4:4")}


def test_the_order_of_a_file_stays(sky):
    config = task.read() | {"setup": "", "run": "serve"}
    config["resources"] = {"ordered": [{"accelerators": "L4:4"}, {"accelerators": "L40S:1"}]}
    found = chosen(sky, sky.Task.from_yaml_config(config), 9, ["aws"])
    assert [each.accelerators for each in found.resources] == [{"L4": 4}, {"L40S": 1}]
    assert [
        each.accelerators for each in chosen(sky, made(sky, ["L4:4", "L40S:1"]), 9, ["aws"]).resources
    ] == [
        {"L40S": 1},
        {"L4": 4},
    ]


def test_the_cheapest_where_there_are_many(sky, monkeypatch):
    monkeypatch.setattr(candidates, "MOST", 2)
    found = chosen(sky, made(sky), 4.8)
    assert found.said[0].startswith(
        "At most $4.80 an hour for a machine with its GPUs: the 2 cheapest of 8 candidates."
    )
    assert [each.cloud.canonical_name() for each in found.resources] == ["nebius", "aws"]


def test_a_broken_catalog_is_left_out(sky, monkeypatch, tmp_path):
    root = tmp_path / "catalog"
    shutil.copytree(fake_catalog.ROOT, root)
    (root / "lambda" / "vms.csv").unlink()
    fake_catalog.install(monkeypatch, root)
    found = chosen(sky, made(sky, ["A100:1"]), 4)
    assert found.warned == ("lambda is left out: no prices to be had (ConnectionError).",)
    assert {cloud for cloud, *_ in places(found)} == {"gcp"}
    with pytest.raises(UsageError, match=r"no price is known .* lambda is left out: no prices to be had"):
        chosen(sky, made(sky, ["A100:1"]), 4, ["lambda"])


def test_machines_of_ones_own_that_open_no_port(sky):
    with pytest.raises(UsageError, match="Nothing that holds it"):
        chosen(sky, made(sky, ["L4:4"]), 1, ["slurm/lab", "aws"])
    private = made(sky, ["L4:4"], ports=None)
    assert places(chosen(sky, private, 1, ["slurm/lab", "aws"])) == {("slurm", None, None, "L4:4")}


# Azure -----------------------------------------------------------------------------------------------------


def test_the_image_of_azure_is_not_the_one_of_the_others(sky):
    """When SkyPilot has one with CUDA 13 there, nothing is to be left out any more."""
    from sky.clouds import aws, azure, gcp

    assert "cuda13" in aws._DEFAULT_GPU_IMAGE_ID
    assert "cuda13" in gcp._DEFAULT_GPU_IMAGE_ID
    assert "cuda13" not in azure._DEFAULT_GPU_IMAGE_ID


def test_azure_is_left_out(sky):
    the_task = made(sky, ["L4:2", "A100-80GB:1"])
    found = chosen(sky, the_task, None, ["AWS", "Azure", "kubernetes/ctx"])
    assert places(found) == {
        (cloud, None, None, gpus) for cloud in ("aws", "kubernetes") for gpus in ("L4:2", "A100-80GB:1")
    }
    assert found.warned == (
        "Azure is left out: SkyPilot's own image for Azure is not known to have the NVIDIA driver 580 that this vLLM"
        " needs, as those for AWS and GCP have. To use it, name another: resources.image_id",
    )
    assert all(each.ports == ["8081"] for each in found.resources)
    assert all(each.no_missing_accel_warnings for each in found.resources), (
        "Kubernetes has no L4, AWS no A100"
    )


@pytest.mark.parametrize("resources", [{"infra": "azure/eastus"}, {}, {"image_id": "docker:me/vllm"}])
def test_on_azure_alone(sky, resources):
    with pytest.raises(UsageError, match=r"driver 580 .* \(resources\.image_id\), or go elsewhere: --infra"):
        chosen(sky, made(sky, **resources), None, ["azure"])


def test_an_image_of_ones_own_on_azure(sky):
    the_task = made(sky, ["A100-80GB:1"], infra="azure", image_id="me:gpu:2404:1.0")
    found = chosen(sky, the_task, None, ["azure"])
    assert (found.resources, found.warned) == (list(the_task.resources), ())


def test_where_azure_is_not_enabled_nothing_changes(sky):
    the_task = made(sky)
    found = chosen(sky, the_task, None, CLOUDS)
    assert {id(each) for each in found.resources} == {id(each) for each in the_task.resources}
    assert found.warned == ()


# What the files ask for ------------------------------------------------------------------------------------

# Where the README says that it runs; Slurm opens no ports.
NAMED = ("aws", "gcp", "azure", "kubernetes", "lambda", "runpod", "nebius", "vast", "slurm")


def unfit(sky: Any, file: str, **resources: Any) -> set[str]:
    """The clouds on which SkyPilot would launch none of a file's candidates, for what it asks for beside GPUs."""
    from sky import clouds, exceptions

    config = task.read(ROOT / file) | {"setup": "", "run": "serve"}
    config["resources"] |= resources
    the_task = sky.Task.from_yaml_config(config)
    left_out = set()
    for there in candidates.per_cloud(sky, the_task.resources, NAMED):
        name = str(there.cloud).lower()
        wanted = there.copy(ports=None) if name == "slurm" else there
        features = wanted.get_required_cloud_features()
        if any(each.autostop_config for each in the_task.resources):
            features.add(clouds.CloudImplementationFeatures.AUTODOWN)
        if name == "kubernetes":  # the rest of the check asks the cluster
            if features & set(clouds.Kubernetes._CLOUD_UNSUPPORTED_FEATURES):
                left_out.add(name)
            continue
        try:
            there.cloud.check_features_are_supported(wanted, features)
        except exceptions.NotSupportedError:
            left_out.add(name)
    return left_out


@pytest.mark.parametrize("file", ["pixtral.yaml", "service.yaml"])
def test_no_cloud_is_left_out_by_what_a_file_asks_for(sky, file):
    """SkyPilot says nothing of those that it leaves out."""
    assert unfit(sky, file) == set()
    assert unfit(sky, file, disk_tier="medium") == {"kubernetes", "lambda", "runpod", "vast"}
