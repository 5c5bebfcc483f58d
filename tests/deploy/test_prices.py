"""Prices: those of SkyPilot's own optimizer, and what a catalog that is broken comes to."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

from pixtral_sky.deploy import infra, prices, skypilot, task
from pixtral_sky.deploy.prices import Offer
from pixtral_sky.deploy.skypilot import sky_sdk
from pixtral_sky.errors import NoPrices, UsageError
from pixtral_sky.extras import install_skypilot
from pixtral_sky.memory import GPUS
from tests.support import fake_catalog
from tests.support.fake_catalog import CLOUDS

COUNTS = (1, 2, 4, 8)


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_catalog.install(monkeypatch)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy that can be spoilt."""
    root = tmp_path / "catalog"
    shutil.copytree(fake_catalog.ROOT, root)
    fake_catalog.install(monkeypatch, root)
    return root


def read(*clouds: str, cpus: float = 4, memory: float = 32, ports: bool = False) -> prices.Prices:
    return prices.read(list(GPUS), COUNTS, cpus, memory, clouds, ports)


def cheapest(accelerators: list[str], clouds: tuple[str, ...], spot: bool) -> Offer:
    offers = [
        offer
        for offer in read(*clouds).offers
        if f"{offer.gpu}:{offer.count}" in accelerators and (offer.spot or not spot)
    ]
    return min(offers, key=lambda offer: (offer.spot or 0) if spot else offer.hourly)


def optimized(monkeypatch, accelerators: list[str], clouds: tuple[str, ...], spot: bool):
    """What SkyPilot's optimizer chooses for pixtral.yaml on these, where all these clouds are enabled."""
    config = task.read() | {"setup": "", "run": "serve"}  # which takes it a while to read, and costs nothing
    config["resources"] |= {"accelerators": dict.fromkeys(accelerators), "use_spot": spot}
    with sky_sdk(silent=True) as sky, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sky import check, optimizer

        enabled = [sky.CLOUD_REGISTRY.from_str(cloud) for cloud in clouds]
        monkeypatch.setattr(check, "get_cached_enabled_clouds_or_refresh", lambda *_, **__: enabled)
        with sky.Dag() as dag:
            made = sky.Task.from_yaml_config(config)
        optimizer.Optimizer.optimize(dag, quiet=True)
    return made.best_resources


ALL = ["L4:2", "L4:4", "A10G:4", "L40S:1", "A100:1", "H100:1"]
PRICED = ("aws", "gcp", "lambda", "nebius")


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize(
    ("accelerators", "clouds"),
    [
        (ALL, PRICED),
        (ALL, ("aws", "lambda")),
        (["A100:1"], ("gcp",)),  # its host is cheapest in one region, the GPU itself in another
        (["L40S:1"], ("aws",)),  # on demand in another machine than on spot; the cheapest is too small
    ],
)
def test_it_is_what_skypilots_optimizer_chooses(monkeypatch, catalog, accelerators, clouds, spot):
    chosen = optimized(monkeypatch, accelerators, clouds, spot)
    ours = cheapest(accelerators, clouds, spot)
    ((gpu, count),) = chosen.accelerators.items()
    assert (ours.gpu, ours.count) == (gpu, count)
    assert ours.cloud == str(chosen.cloud).lower()
    assert (ours.region, ours.machine) == (chosen.region, chosen.instance_type)
    assert (ours.spot if spot else ours.hourly) == pytest.approx(chosen.get_cost(3600), abs=1e-9)


@pytest.mark.parametrize("spot", [False, True])
def test_the_order_is_the_optimizers(monkeypatch, catalog, spot):
    theirs = {name: optimized(monkeypatch, [name], PRICED, spot).get_cost(3600) for name in ALL}
    ours = {name: cheapest([name], PRICED, spot) for name in ALL}
    assert {name: offer.spot if spot else offer.hourly for name, offer in ours.items()} == pytest.approx(
        theirs
    )
    assert len(set(theirs.values())) == len(ALL)


def test_a_host_and_its_gpus(catalog):
    offers = [offer for offer in read("gcp").offers if offer.gpu == "A100"]
    assert {(offer.region, round(offer.hourly, 2), round(offer.spot or 0, 2)) for offer in offers} == {
        ("us-central1", 3.65, 1.57),
        ("europe-west4", 3.55, 1.70),
    }  # in asia-northeast1 there is no host for it
    (h100,) = (offer for offer in read("gcp").offers if offer.gpu == "H100")
    assert (h100.hourly, h100.spot) == (10.1, None)  # the host alone has a spot price


def test_small_machines_are_none(catalog):
    assert {offer.machine for offer in read("aws").offers if offer.gpu == "L40S"} == {
        "g6e.xlarge",
        "g6e.4xlarge",
    }
    every = read("aws", cpus=1, memory=1).offers
    assert {offer.machine for offer in every} >= {"g6e.small", "g6.xlarge"}
    assert "m6i.large" not in {offer.machine for offer in every}


def test_zero_is_no_spot_price(catalog):
    assert [(offer.hourly, offer.spot) for offer in read("vast").offers] == [(0.9, None)]
    assert {offer.spot for offer in read("lambda").offers} == {None}


@pytest.mark.parametrize("price", ["0.0", "", "-1"])
def test_without_a_price_it_is_left_out(broken, price):
    file = broken / "nebius" / "vms.csv"
    file.write_text(file.read_text().replace(",1.55,", f",{price},"))
    assert [offer.gpu for offer in read("nebius").offers] == ["H100"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no prices to be had (ConnectionError)"),
        ("", "prices that cannot be read (EmptyDataError: No columns to parse from file); {renew}"),
        ("<html>404</html>\n", "prices that cannot be read (KeyError: 'GpuInfo'); {renew}"),
        (
            "price",
            "prices that cannot be read (ValueError: could not convert string to float: 'cheap'); {renew}",
        ),
    ],
)
def test_a_broken_catalog_is_left_out(broken, text, why):
    file = broken / "lambda" / "vms.csv"
    if text is None:
        file.unlink()
    else:
        file.write_text(file.read_text().replace("1.99", "cheap") if text == "price" else text)
    found = read(*CLOUDS)
    assert found.left_out == {"lambda": why.format(renew=f"renew it: rm {file}")}
    assert {offer.cloud for offer in found.offers} == set(CLOUDS) - {"lambda"}


def test_without_a_network(broken, monkeypatch):
    """The first that cannot be downloaded tells; one that is there is read."""
    for file in broken.glob("*/*.csv"):
        if file.parent.name != "nebius":
            file.unlink()
    asked, rows = [], prices._rows
    monkeypatch.setattr(
        prices, "_rows", lambda sky, cloud, gpus: asked.append(cloud) or rows(sky, cloud, gpus)
    )
    found = read()
    assert asked == ["aws", "nebius"]
    assert {*found.left_out.values()} == {"no prices to be had (ConnectionError)"}
    assert {offer.cloud for offer in found.offers} == {"nebius"}
    (broken / "nebius" / "vms.csv").unlink()
    with pytest.raises(NoPrices) as error:
        read(ports=True)
    assert error.value.what == (
        "There are no prices: SkyPilot's catalogs cannot be downloaded (ConnectionError)."
    )


def test_when_all_are_damaged(broken):
    for cloud in ("aws", "lambda"):
        (broken / cloud / "vms.csv").write_text("")
    with pytest.raises(NoPrices) as error:
        read("aws", "azure", "lambda")
    files = f"{broken / 'aws/vms.csv'} {broken / 'lambda/vms.csv'}"
    assert str(error.value) == (
        "There are no prices: SkyPilot's catalog has prices that cannot be read (EmptyDataError: No columns to "
        f"parse from file). Renew it: rm {files}"
    )


def test_without_skypilot(monkeypatch):
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    with pytest.raises(NoPrices) as error:
        read("aws")
    assert str(error.value) == (
        f"There are no prices: SkyPilot is not installed here. Run: {install_skypilot()}"
    )


def test_a_skypilot_that_is_broken(monkeypatch):
    def fails(silent):
        raise ImportError("No module named 'pandas'")

    monkeypatch.setattr(prices, "sky_sdk", fails)
    with pytest.raises(
        NoPrices, match=r"SkyPilot cannot be imported \(No module named 'pandas'\)\. Run: .*pip"
    ):
        read("aws")


def test_the_day_of_a_catalog(tmp_path):
    """That of the download: SkyPilot touches a catalog when it fails to download it anew."""
    file, downloaded = tmp_path / "aws/vms.csv", tmp_path / ".meta/aws/vms.csv.md5"
    for each, seconds in ((file, 1_795_000_000), (downloaded, 1_794_000_000)):
        assert prices._day(file) == ("" if each is file else "2026-11-18")
        each.parent.mkdir(parents=True)
        each.write_text("")
        os.utime(each, (seconds, seconds))
    assert prices._day(file) == "2026-11-06"


def test_the_days_of_several():
    found = prices.Prices((), {}, {"aws": "2026-11-18", "gcp": "2026-11-06", "do": "2025-01-01"})
    said = [found.dated(each) for each in (["aws"], ["aws", "gcp", "vast"], ["vast"])]
    assert said == ["2026-11-18", "2026-11-06 to 2026-11-18", ""]


def test_all_clouds_are_skypilots(catalog):
    from sky.skylet import constants

    found = read()
    asked = {offer.cloud for offer in found.offers} | set(found.left_out)
    assert asked == set(prices.CLOUDS) == set(constants.ALL_CLOUDS) - set(infra.OWN)
    assert set(infra.OWN) < set(constants.ALL_CLOUDS)
    assert found.days == dict.fromkeys(CLOUDS, fake_catalog.DAY)
    assert set(CLOUDS) == {offer.cloud for offer in found.offers}


@pytest.mark.parametrize(
    ("cloud", "gb", "month"),
    [
        ("aws", 200, 200 * 0.08 + 500 * 0.005 + 93 * 0.04),
        ("gcp", 200, 20),
        ("azure", 200, 38.01),  # a disk of 256 GB
        ("azure", 256, 38.01),
        ("azure", 257, 73.22),
        ("azure", 2_000, None),
        ("runpod", 200, 20),
        ("lambda", 200, 0),
        ("nebius", 200, None),
        ("kubernetes", 200, None),
    ],
)
def test_what_a_disk_costs(cloud, gb, month):
    assert prices.disk_hourly(cloud, gb) == (month if month is None else pytest.approx(month / 730))


def test_a_disk_is_what_skypilot_orders_on_aws():
    with sky_sdk(silent=True) as sky:
        specs = sky.AWS._get_disk_specs(None)
    assert specs == {"disk_tier": "gp3", "disk_iops": 3_500, "disk_throughput": 218}


def test_an_offer_has_its_disk(catalog):
    found = prices.read(list(GPUS), COUNTS, 4, 32, ("aws", "nebius"), disk_gb=200)
    assert {(offer.cloud, offer.disk) for offer in found.offers} == {
        ("aws", prices.disk_hourly("aws", 200)),
        ("nebius", None),
    }


def test_named_clouds():
    assert (prices.named(None), prices.named("AWS, gcp")) == ([], ["aws", "gcp"])
    with pytest.raises(UsageError, match=r"SkyPilot has no prices of 'asw'\. Did you mean aws\?"):
        prices.named("aws,asw")
    for word in ("kubernetes", "", "aws,"):
        with pytest.raises(UsageError, match=r"no prices|is empty"):
            prices.named(word)


def test_replicas_need_a_port(catalog):
    found = read("aws", "verda", ports=True)
    assert found.left_out == {"verda": "no ports to open, and replicas need one"}
    assert {offer.cloud for offer in found.offers} == {"aws"}
