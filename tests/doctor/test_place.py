"""The doctor for a place: what is missing there, in the order in which a person meets it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.deploy import huggingface, places, skypilot
from pixtral_sky.doctor import checks, place
from pixtral_sky.doctor.check import Check
from pixtral_sky.extras import install_skypilot
from tests.support import fake_catalog
from tests.support.command_line import KEY, Run
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_sky import FakeSky

# What `sky check` of SkyPilot 0.14.1 says, seen.
AWS = """\
  AWS: disabled
    Reason [compute, storage]: AWS credentials are not set. Run the following commands:
      $ aws configure
      $ aws configure list  # Ensure that this shows identity is set.
    For more info: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-quickstart.html

🎉 Enabled infra 🎉
  No infra to check/enabled.
"""
NEBIUS = """\
  Nebius: disabled
    Reason [compute]: Credentials can be set up by running:
      $ nebius iam get-access-token > ~/.nebius/NEBIUS_IAM_TOKEN.txt
     or generate  ~/.nebius/credentials.json
    Reason [storage]: [nebius] profile is not set in ~/.aws/credentials. Run the following commands:
      $ pip install boto3
"""
SLURM = """\
  \x1b[2mSlurm: disabled\x1b[0m
    Reason [compute]:
        Allowed clusters:
        ├── other: disabled. Credential check failed: no such host
        └── lab: disabled. Credential check failed: sky.exceptions.CommandError: Command sinfo failed with return code 255.
    Failed to get Slurm cluster information.


    ssh: connect to host 127.0.0.1 port 9: Connection refused
"""
LAMBDA = """\
  Lambda: disabled
    Reason [compute]: Failed to access Lambda Cloud with credentials. To configure credentials, go to:
      https://cloud.lambdalabs.com/api-keys
    to generate API key
"""
THERE = [
    "SkyPilot",
    "packages",
    "SkyPilot server",
    "credentials",
    "quota",
    "SkyPilot task",
    "GPUs",
    "machines",
    "Hugging Face",
    "ssh",
]


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, server: FakeSky) -> None:
    """A user whose token opens the weights, with the packages for every cloud."""
    monkeypatch.setattr(huggingface, "check", lambda *_: "")
    monkeypatch.setattr(places, "missing_packages", lambda _: [])
    fake_catalog.install(monkeypatch)


def examine(where: str, file: Path | None = None) -> dict[str, Check]:
    return {each.subject: each for each in checks.examine(None, file, where)}


def test_all_is_well(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "has_quota", lambda offer: offer.machine != "g6.12xlarge")
    found = examine("aws/us-east-1")
    assert [subject for subject in found if subject in THERE] == THERE
    assert {each.state for each in found.values()} == {"ok", "absent"}
    assert found["credentials"].text == "SkyPilot may launch on aws/us-east-1"
    assert server.asked("check") == [("aws",)], "anew, and that cloud only"
    machines, quota = found["machines"].text, found["quota"].text
    assert machines.startswith(
        "an hour: L40S:1 at $1.90, spot $0.80 (g6e.xlarge in us-east-1), L4:4 at $4.60, "
    )
    assert "L4:4 at $4.60, spot $1.70 (g6.12xlarge in us-east-1)" in machines
    assert quota.startswith("not zero for g6e.")


@pytest.mark.parametrize(
    ("where", "says", "text", "hint"),
    [
        ("aws", AWS, "AWS credentials are not set.", "Run: aws configure; aws configure list; sky check aws. SkyPilot's page: "),
        ("nebius", NEBIUS, "Credentials can be set up", "Run: nebius iam get-access-token > ~/.nebius/NEBIUS_IAM_TOKEN.txt; sky check nebius."),
        ("slurm/lab", SLURM, "Credential check failed: sky.exceptions.CommandError: Command sinfo failed with return code 255. "
         "Failed to get Slurm cluster information.", "Run: sky check slurm. SkyPilot's page: "),
        ("lambda", LAMBDA, "Failed to access Lambda Cloud with credentials. To configure credentials, go to: https://cloud.lambdalabs.com/api-keys "
         "to generate API key", "Run: sky check lambda."),
        ("oci", "", "SkyPilot may not launch on oci.", "Run: sky check oci."),
    ],
)  # fmt: skip
def test_no_credentials(server: FakeSky, where: str, says: str, text: str, hint: str) -> None:
    server.clouds, server.check_says = ["GCP"], says
    found = examine(where)
    check = found["credentials"]
    assert (check.state, check.text) == ("failed", text)
    assert check.hint.startswith(hint)
    assert check.hint.endswith(place.page(where.partition("/")[0]))
    assert found["quota"].state == "unchecked"
    assert found["GPUs"].state == "ok", "it needs no cloud"
    assert found["Hugging Face"].state == "ok"
    assert found["key"].state == "absent"
    if where == "slurm/lab":
        assert found["machines"].state == "unchecked"


def test_another_slurm(server: FakeSky) -> None:
    server.clouds = ["slurm/lab", "slurm/other", "AWS"]
    check = examine("slurm/third")["credentials"]
    assert check.text == "SkyPilot knows no slurm/third, but slurm/lab, slurm/other."
    assert examine("slurm/lab")["credentials"].state == "ok"
    assert examine("slurm")["credentials"].state == "ok"


def test_no_skypilot(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    found = examine("gcp")
    assert found["SkyPilot"].hint == f"Run: {install_skypilot('gcp')}"
    assert "skypilot[gcp]" in found["SkyPilot"].hint
    assert found["credentials"].text == "not checked: 'packages' comes first."
    assert (found["Hugging Face"].state, found["GPUs"].state) == ("ok", "ok")


def test_packages_of_the_cloud(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "missing_packages", lambda cloud: ["boto3"] if cloud == "aws" else [])
    found = examine("aws")
    check = found["packages"]
    assert (check.state, check.text) == ("failed", "SkyPilot needs for aws: boto3.")
    assert check.hint == f"Run: {install_skypilot('aws')}"
    assert found["credentials"].text == "not checked: 'packages' comes first."
    assert (found["SkyPilot task"].state, found["machines"].state) == ("ok", "ok")
    assert examine("gcp")["packages"].state == "ok"
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://sky.example")
    assert examine("aws")["packages"].text == "they are beside SkyPilot's server"


def test_skypilot_needs_pip(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    assert examine("aws")["packages"].text == "SkyPilot needs for aws: pip."


def test_what_a_cloud_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SkyPilot's own metadata."""
    monkeypatch.undo()
    import importlib.metadata

    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda _: [
            "pip>=1; extra == 'aws'",
            "no-such-one>=2; python_version >= '3' and extra == 'aws'",
            "neither; extra == 'gcp'",
            "nor-this",
        ],
    )
    assert places.missing_packages("aws") == ["no-such-one"]


# Quota and machines ----------------------------------------------------------------------------------------


def test_no_quota(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(places, "has_quota", lambda offer: asked.append(offer) or False)
    check = examine("aws/us-east-1")["quota"]
    assert check.state == "failed"
    assert check.text.startswith("It is zero: g6e.")
    assert check.hint == f"Ask for more: {place.QUOTA_PAGE}"
    assert 1 < len(asked) <= places.MOST_ASKED


def test_skypilot_is_asked_for_the_quota(server: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    from sky import clouds

    def available(resources: Any) -> bool:
        assert resources.instance_type
        assert resources.region == "us-east-1"
        return False

    monkeypatch.setattr(clouds.AWS, "check_quota_available", staticmethod(available))
    assert examine("aws/us-east-1")["quota"].state == "failed"


@pytest.mark.parametrize(("where", "state"), [("nebius", "absent"), ("slurm", None), ("gcp", "unchecked")])
def test_quota_that_nobody_tells(
    server: FakeSky, monkeypatch: pytest.MonkeyPatch, where: str, state: str | None
) -> None:
    server.clouds = ["Nebius", "slurm/lab", "GCP"]
    monkeypatch.setenv("PATH", "")  # no gcloud
    found = examine(where)
    assert getattr(found.get("quota"), "state", None) == state


def test_none_of_the_gpus(server: FakeSky, tmp_path: Path) -> None:
    check = examine("vast")["machines"]
    assert check.state == "failed" or check.text.startswith("an hour: ")
    server.clouds = ["AWS"]
    (tmp_path / "mine.yaml").write_text(
        "setup: vllm==0.1\nrun: vllm serve\nenvs: {MODEL: /m}\nresources: {accelerators: 'B200:8'}\n"
    )
    check = examine("lambda", tmp_path / "mine.yaml")["machines"]
    assert check.text == "lambda has none of the file's GPUs."
    assert check.hint == "What it has: sky gpus list --infra lambda"


def test_a_region_that_is_none(server: FakeSky) -> None:
    check = examine("aws/us-east-9")["machines"]
    assert check.text == "SkyPilot has no region 'us-east-9' of aws."
    assert check.hint == "Did you mean one of these: us-east-1, us-east-2?"


def test_without_catalogs(server: FakeSky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_catalog.install(monkeypatch, tmp_path)
    assert examine("aws")["machines"].state == "unchecked"


@pytest.mark.parametrize("where", ["slurm/lab", "k8s/lab", "ssh/lab"])
def test_ones_own_gpus(server: FakeSky, where: str) -> None:
    cloud = where.partition("/")[0].replace("k8s", "kubernetes")
    server.clouds = [f"{cloud}/lab"]
    server.own_gpus = [("a100", [1, 2, 4], 8, 3), ("T4", [1], 2, 2)]
    assert examine(where)["machines"].text == "A100: 3 of 8 free"
    server.own_gpus = [("T4", [1, 2], 2, 2)]
    check = examine(where)["machines"]
    assert check.text == f"{cloud}/lab has none of the file's GPUs, but T4:2."
    assert check.hint == f"Run: pixtral-sky launch --infra {cloud}/lab --gpus T4:2"
    server.own_gpus = []
    assert examine(where)["machines"].text.endswith("but no GPU at all.")


@pytest.mark.parametrize(("where", "state"), [("slurm/lab", "failed"), ("aws", "absent")])
def test_ssh_where_it_is_needed(
    server: FakeSky, monkeypatch: pytest.MonkeyPatch, where: str, state: str
) -> None:
    monkeypatch.setenv("PATH", "")
    assert examine(where)["ssh"].state == state


def test_azure(server: FakeSky) -> None:
    server.clouds = ["Azure"]
    assert examine("azure")["Azure"].state == "failed"


def test_no_place(run: Run, server: FakeSky) -> None:
    for where in ("nonsense", "aws/x/y/z", ""):
        result = run("doctor", "--infra", where)
        assert result.code == 2
        assert "--infra" in result.error or "There is no cloud" in result.error
    assert server.calls == []
    assert run("doctor", "--answers", "--infra", "aws").code == 2


def test_any_place(server: FakeSky) -> None:
    assert "SkyPilot infra" in examine("*")


# Who only asks ---------------------------------------------------------------------------------------------


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Who has an address and a key, and neither SkyPilot nor a token."""

    def refused(*_: object) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(skypilot, "installed", lambda: "")
    monkeypatch.setattr(huggingface, "check", refused)
    with FakeEndpoint(key=KEY) as fake:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", fake.url)
        monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
        yield lambda *words: list(checks.examine(*words))


def test_an_endpoint_needs_no_skypilot(asks: Callable[..., list[Check]]) -> None:
    found = {each.subject: each for each in asks()}
    assert found["SkyPilot"].state == "absent"
    assert found["SkyPilot"].text == "It is not installed, and asking PIXTRAL_ENDPOINT does not need it."
    assert "skypilot[aws]" in found["SkyPilot"].hint
    assert "Hugging Face" not in found
    assert found["key"].state == "ok"
    assert "models" in found


def test_whoever_names_a_file_means_to_launch(
    asks: Callable[..., list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "check", lambda *_: "")
    found = {each.subject: each for each in asks("other")}
    assert found["SkyPilot"].state == "failed"


def test_ask_needs_no_skypilot(
    asks: Callable[..., list[Check]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    result = run("ask", "hello", "--endpoint", os.environ.pop("PIXTRAL_ENDPOINT"))
    assert result.code == 0, result
