"""The size of a service: what the options become, what is refused, and that SkyPilot's own classes bear it out."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import yaml

from pixtral_sky.deploy import replica_policy
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT
from tests.support.services import shown

KEY = "sesame"
HYPHEN = {"L4": 1, "A100-80GB": 3}


def shipped(name: str = "service.yaml", **policy) -> dict:
    """A service file of ours, with another policy where one is given (None: without that key)."""
    config = shown(name)
    merged = {**config["service"]["replica_policy"], **policy}
    config["service"]["replica_policy"] = {key: value for key, value in merged.items() if value is not None}
    return config


class Replica(SimpleNamespace):
    """What an autoscaler looks at."""

    def __init__(self, number: int, status: str = "READY", spot: bool = False, gpu: str = "L4") -> None:
        from sky.serve.serve_state import ReplicaStatus

        self.status = ReplicaStatus[status]
        launched = SimpleNamespace(launched_resources=SimpleNamespace(accelerators={gpu: 1}))
        super().__init__(
            replica_id=number,
            version=1,
            cluster_name="",
            is_spot=spot,
            is_ready=status == "READY",
            is_terminal=self.status in ReplicaStatus.terminal_statuses(),
            status_property=SimpleNamespace(unrecoverable_failure=lambda: False),
            handle=lambda: launched,
        )


def autoscaler(sky, config: dict, requests: int = 0):
    """The class that SkyServe takes for this service, when it has seen so many requests in the last minute."""
    spec = sky.serve.SkyServiceSpec.from_yaml_config(config["service"])
    made = sky.serve.autoscalers.Autoscaler.from_spec("pixtral", spec)
    made.request_timestamps = [0.0] * requests
    return made


def decided(made, replicas=()) -> list[str]:
    """``up`` or ``down`` for each of its decisions."""
    return [
        each.operator.value.removeprefix("scale_")
        for each in made.generate_scaling_decisions(list(replicas), [1])
    ]


def task(sky, config: dict, key: str | None = KEY):
    secrets = [] if key is None else [("PIXTRAL_API_KEY", key)]
    made = sky.Task.from_yaml_config(copy.deepcopy(config), secrets_overrides=secrets)
    sky.serve.serve_utils.validate_service_task(made, pool=False)
    return made


# What the options become


@pytest.mark.parametrize(("text", "numbers"), [
    ("2..8", (2, 8)), ("3", (3, 3)), (" 0..1 ", (0, 1)), ("9..2", (9, 2)),
])  # fmt: skip
def test_a_range_of_replicas(text, numbers):
    assert replica_policy.replicas(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "..", "2..", "..8", "2-8", "-1", "2...8", "two", "2.5", "1..99999", "²"]
)
def test_what_is_no_range(text):
    with pytest.raises(UsageError, match="no number of replicas"):
        replica_policy.replicas(text)


def test_a_policy():
    assert replica_policy.policy(2, 8, 1.5) == {
        "min_replicas": 2, "max_replicas": 8, "target_qps_per_replica": 1.5,
    }  # fmt: skip
    assert replica_policy.policy(3, 3) == {"min_replicas": 3, "max_replicas": 3}
    fallback = {"base_ondemand_fallback_replicas": 1, "dynamic_ondemand_fallback": True}
    assert replica_policy.policy(2, 8, 2, spot=True) == {**replica_policy.policy(2, 8, 2), **fallback}
    assert replica_policy.policy(0, 8, 2, spot=True)["base_ondemand_fallback_replicas"] == 0


@pytest.mark.parametrize(("minimum", "maximum", "qps", "spot"), [
    (2, 8, 2, False), (3, 3, None, False), (0, 4, 0.5, False), (2, 8, 2, True), (0, 8, 2, True), (1, 1, None, True),
])  # fmt: skip
def test_skypilot_takes_a_scaled_file_and_launches_the_minimum(sky, minimum, maximum, qps, spot):
    before = shipped()
    made = replica_policy.scaled(before, replica_policy.policy(minimum, maximum, qps, spot))
    assert before == shipped()  # the file that was given stays as it is
    loaded = task(sky, made)
    assert (loaded.service.min_replicas, loaded.service.max_replicas) == (minimum, maximum)
    assert loaded.service.target_qps_per_replica == (2 if qps is None else qps)
    assert (loaded.service.upscale_delay_seconds, loaded.service.downscale_delay_seconds) == (120, 1200)
    assert {resources.use_spot for resources in loaded.resources} == {spot}
    replica_policy.check(made, KEY)
    # With fallback: what is missing of spot is launched twice.
    twice = max(0, minimum - 1) if spot else 0
    assert decided(autoscaler(sky, made)) == ["up"] * (minimum + twice)


def test_a_scaled_file_that_had_a_fixed_number_or_candidates():
    config = shipped()
    del config["service"]["replica_policy"]
    config["service"]["replicas"] = 2
    config["resources"]["any_of"] = [{"infra": "aws"}, {"infra": "gcp", "use_spot": False}]
    made = replica_policy.scaled(config, replica_policy.policy(1, 3, 2, spot=True))
    assert "replicas" not in made["service"]
    assert made["service"]["replica_policy"]["max_replicas"] == 3
    assert made["resources"]["use_spot"] is True
    assert made["resources"]["any_of"] == [{"infra": "aws"}, {"infra": "gcp", "use_spot": True}]


# What is shipped


def test_shipped_files_pass():
    for name in ("service.yaml", "examples/tls.yaml", "kubernetes", "regions"):
        assert replica_policy.check(shipped(name), KEY) == []
    (zero,) = replica_policy.check(shipped("examples/scale-to-zero.yaml"), KEY)
    assert "first callers get 503" in zero
    (spot,) = replica_policy.check(shipped("spot"), KEY)
    assert "up to 15 machines at once, not 8" in spot
    assert "15 machines at once" in (ROOT / "docs/guides/replicas.md").read_text()


def test_the_pixtral_file_is_no_service():
    with pytest.raises(UsageError, match="no 'service:' section"):
        replica_policy.check(yaml.safe_load((ROOT / "pixtral.yaml").read_text()), KEY)


# What is refused, and what SkyServe would do with it


def refused(config: dict, key: str = KEY) -> str:
    with pytest.raises(UsageError) as error:
        replica_policy.check(config, key)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("policy", "says"), [
    ({"min_replicas": 9}, "9, are more than the most, 8"),
    ({"min_replicas": -1}, "min_replicas is a whole number"),
    ({"min_replicas": True}, "min_replicas is a whole number"),
    ({"max_replicas": 2.5}, "max_replicas is a whole number"),
    ({"min_replicas": 0, "max_replicas": 0}, "never answers"),
    ({"target_qps_per_replica": None}, "--target-qps"),
    ({"target_qps_per_replica": -1}, "above 0, not -1"),
    ({"target_qps_per_replica": "2"}, "above 0, not 2"),
    ({"target_qps_per_replica": {"L4": 1, "H100": 0}}, "above 0, not 0"),
    ({"num_overprovision": "1"}, "num_overprovision is a whole number"),
])  # fmt: skip
def test_numbers_that_are_none(policy, says):
    assert says in refused(shipped(**policy))


def test_options_are_refused_as_files_are():
    for arguments in ((3, 2, 2), (0, 0, 2), (1, 2, None), (1, 2, 0), (1, 2, float("nan"))):
        with pytest.raises(UsageError):
            replica_policy.policy(*arguments)


def test_a_policy_that_is_none():
    config = shipped()
    config["service"]["replica_policy"] = [2, 8]
    assert "is a mapping" in refused(config)


def test_a_fixed_number():
    config = shipped()
    del config["service"]["replica_policy"]
    assert replica_policy.check(config, KEY) == []
    config["service"]["replicas"] = 3
    assert replica_policy.check(config, KEY) == []
    config["service"]["replicas"] = 0
    assert "never answers" in refused(config)


@pytest.mark.parametrize(("qps", "error"), [(0, ZeroDivisionError), (float("nan"), ValueError)])
def test_no_queries_per_second_launch_nothing(sky, qps, error):
    config = shipped(target_qps_per_replica=qps)
    assert "above 0" in refused(config)
    task(sky, config)  # SkyPilot takes it,
    with pytest.raises(error):
        decided(autoscaler(sky, config))  # and its controller only logs that


def test_endless_queries_per_second_never_ask_for_more(sky):
    config = shipped(target_qps_per_replica=float("inf"))
    assert "above 0, not inf" in refused(config)
    made = autoscaler(sky, config, requests=60_000)
    assert [decided(made, [Replica(1), Replica(2)]) for _ in range(100)] == [[]] * 100


def per_gpu(minimum: int, target: dict | None = None) -> dict:
    config = shipped(min_replicas=minimum, target_qps_per_replica=target or {"L4": 1, "H100": 4})
    config["service"]["load_balancing_policy"] = "instance_aware_least_load"
    return config


def test_a_target_per_gpu_never_leaves_zero(sky):
    config = per_gpu(0)
    assert "never gets one" in refused(config)
    task(sky, config)
    made = autoscaler(sky, config, requests=6_000)
    assert [decided(made) for _ in range(100)] == [[]] * 100
    # One number for all does, and so does a target per GPU that begins with a replica.
    assert decided(autoscaler(sky, shipped(min_replicas=0), requests=1)) == ["up"]
    assert replica_policy.check(per_gpu(1), KEY) == []
    assert decided(autoscaler(sky, per_gpu(1))) == ["up"]


def test_a_target_per_gpu_has_no_hyphen(sky):
    assert "A100-80GB" in refused(per_gpu(1, HYPHEN))
    with pytest.raises(ValueError, match="does not match any of the regexes"):
        task(sky, per_gpu(1, HYPHEN))


def test_overprovision_is_above_the_maximum(sky):
    config = shipped(min_replicas=1, max_replicas=3, num_overprovision=2)
    assert "up to 5 replicas would run, not 3" in refused(config)
    assert replica_policy.check(shipped(num_overprovision=0), KEY) == []
    task(sky, config)
    made = autoscaler(sky, config, requests=60_000)
    for _ in range(6):  # 120 seconds
        up = decided(made, [Replica(1), Replica(2), Replica(3)])
    assert up == ["up", "up"]
    # `sky serve update` to none at all changes nothing.
    spec = sky.serve.SkyServiceSpec.from_yaml_config(shipped(min_replicas=1, max_replicas=3)["service"])
    made.update_version(2, spec, sky.serve.serve_utils.DEFAULT_UPDATE_MODE)
    assert made.get_final_target_num_replicas() == 5


def test_more_on_demand_than_the_minimum_launches_nothing(sky):
    config = shipped("spot", base_ondemand_fallback_replicas=3)
    assert "launches nothing at all" in refused(config)
    task(sky, config)
    with pytest.raises(AssertionError, match="Not enough replicas to scale down"):
        decided(autoscaler(sky, config))


def test_spot_with_stand_ins_is_twice_as_many_while_it_starts(sky):
    config = shipped("spot")
    made = autoscaler(sky, config, requests=60_000)
    made.target_num_replicas = 8
    ups = decided(made)
    assert len(ups) == 15
    fleet = [Replica(1)] + [Replica(number, spot=True) for number in range(2, 9)]
    assert decided(made, fleet) == []  # all are there, and no stand-in


@pytest.mark.parametrize("given", [None, ""])
def test_a_service_without_a_key(sky, given):
    config = shipped()
    assert "needs a key" in refused(config, key="")
    config["secrets"]["PIXTRAL_API_KEY"] = given
    assert "export PIXTRAL_API_KEY=" in refused(config, key="")
    header = task(sky, config, key=None).service.readiness_headers["Authorization"]
    assert header == (
        "Bearer $PIXTRAL_API_KEY" if given is None else "Bearer "
    )  # and the gateway answers 401
    assert replica_policy.check(config, KEY) == []
    config["secrets"]["PIXTRAL_API_KEY"] = "written-down"
    assert replica_policy.check(config, key="") == []
    del config["secrets"]
    assert "needs a key" in refused(config, key="")


@pytest.mark.parametrize("minutes", [30, "30", 0.5, "0.5", "never"])
def test_an_idle_replica_that_ends_itself(sky, minutes):
    config = shipped()
    config["envs"]["IDLE_MINUTES"] = minutes
    assert "only replaced" in refused(config)
    # Ready once, and then gone: SkyServe counts it as failed, and launches another.
    from sky.serve.replica_managers import ReplicaStatusProperty
    from sky.utils.common_utils import ProcessStatus

    ended = ReplicaStatusProperty(ProcessStatus.SUCCEEDED, first_ready_time=1.0)
    ended.sky_down_status = ProcessStatus.SUCCEEDED
    assert ended.to_replica_status().value == "FAILED_PROBING"
    assert not ended.unrecoverable_failure()
    assert decided(autoscaler(sky, shipped()), [Replica(1), Replica(2, "FAILED_PROBING")]) == ["up"]


@pytest.mark.parametrize("minutes", [0, "0", 0.0, "0.0", "", None])
def test_a_replica_that_does_not(minutes):
    config = shipped()
    config["envs"]["IDLE_MINUTES"] = minutes
    assert replica_policy.check(config, KEY) == []


def test_autostop_is_for_replicas_too(sky):
    config = shipped()
    config["resources"]["autostop"] = {"idle_minutes": 5, "down": True}
    assert "'autostop'" in refused(config)
    # SkyPilot takes it, and a replica is launched from the file that it makes of that.
    replica = sky.Task.from_yaml_config(task(sky, config).to_yaml_config())
    assert all(resources.autostop_config.enabled for resources in replica.resources)
    candidates = shipped()
    candidates["resources"]["any_of"] = [{"infra": "aws"}, {"infra": "gcp", "autostop": 5}]
    assert "'autostop'" in refused(candidates)


# What is said


def test_zero_is_allowed_and_said():
    (said,) = replica_policy.check(shipped(min_replicas=0), KEY)
    assert "503" in said
    assert "10 minutes" in said


def test_a_replica_that_goes_before_it_is_ready(sky):
    """One request calls a replica; when the caller does not ask again, the wait for its end begins at once."""
    config = shipped(min_replicas=0, downscale_delay_seconds=600)
    _, said = replica_policy.check(config, KEY)
    assert "before it is ready" in said
    made = autoscaler(sky, config, requests=1)
    assert decided(made) == ["up"]
    made.request_timestamps = []  # a minute later
    looks = [decided(made, [Replica(1, "STARTING")]) for _ in range(600 // 20)]
    assert looks == [[]] * 29 + [["down"]]
