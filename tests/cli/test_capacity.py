"""``pixtral-sky capacity``: what it says, and that what it names is what `serve up` would make."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pixtral_sky import output
from pixtral_sky.deploy import replica_policy, skypilot, task
from pixtral_sky.extras import install
from pixtral_sky.planning import capacity, loads, policies
from tests.conftest import ROOT
from tests.support.command_line import Run, run_main

HALF_PAST = 1800


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``pixtral-sky capacity`` in a directory with a few files, where a day has three hours, and of
    policies there are fewer than in life."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policies, "MINIMUMS", 2)
    monkeypatch.setattr(policies, "LOWER_TARGETS", (1, 0.5))
    monkeypatch.setattr(loads, "DAY", 10_800.0)
    monkeypatch.setattr(output, "quiet", False)
    even("even.csv", 1, 10_800)
    return lambda *arguments: run_main(monkeypatch, capsys, *arguments)


def even(name: str, qps: float, seconds: int) -> None:
    """A trace whose requests come at equal distances, the last at its end."""
    times = [1_700_000_000 + number / qps for number in range(int(seconds * qps) + 1)]
    Path(name).write_text("time\n" + "\n".join(f"{each:.2f}" for each in times))


def service_file(name: str, **policy) -> str:
    made = task.read(ROOT / "service.yaml")
    made["service"]["replica_policy"].update(policy)
    Path(name).write_text(yaml.safe_dump(made, sort_keys=False))
    return name


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n\n")[0].splitlines()]


def test_a_quiet_day_by_hand(run):
    """A query per second, and replicas that carry two: of the two in the file, one is enough."""
    result = run("capacity", "even.csv", "--price", "2.50")
    assert result.code == 0
    head, *table = rows(result.out)
    assert head == ["$/DAY", "HOURS/DAY", "TOO", "FEW", "NONE", "AT", "ONCE", "REPLICAS", "TARGET", "UP/DOWN"]
    # The day has three hours here: 6 replica-hours, $15.
    own = "15.00 6.0 0.00% 0.00% 2 2..8 2 120/1200 as in service.yaml"
    one = "7.50 3.0 0.00% 0.00% 1 1 - - cheapest within 1%"
    assert own.split() in table
    assert table[0] == one.split()
    assert result.out.endswith("\n\n  pixtral-sky serve up --replicas 1\n")
    assert "even.csv: 10,801 requests in 3.0 hours. A replica starts in 10 minutes and carries" in result.err


def test_a_share_by_hand(run):
    """Two queries per second for a replica that carries one: each second is too few, and two would do."""
    even("two.csv", 2, 5400)
    section = yaml.safe_load((ROOT / "service.yaml").read_text())
    del section["service"]["replica_policy"]
    section["service"]["replicas"] = 1
    Path("one.yaml").write_text(yaml.safe_dump(section))
    result = run("capacity", "two.csv", "--file", "one.yaml", "--carries", "1", "--goal", "2")
    head, *table = rows(result.out)
    assert head[:3] == ["HOURS/DAY", "TOO", "FEW"]  # no price, no $
    # 3 replica-hours in the day of three hours, though the trace has half of it.
    assert ["3.0", "50.00%", "0.00%", "1", "1", "as", "in", "one.yaml"] in table
    assert ["6.0", "0.00%", "0.00%", "2", "2", "cheapest", "within", "2%"] in table
    assert result.out.endswith("\n  pixtral-sky serve up --file one.yaml --replicas 2\n")


def test_as_in_the_file_is_the_cheapest(run):
    even("much.csv", 3, 3600)
    result = run("capacity", "much.csv", "--file", service_file("mine.yaml", min_replicas=2, max_replicas=2))
    assert "as in mine.yaml, cheapest within 1%" in result.out
    assert result.out.endswith("\n\n  pixtral-sky serve up --file mine.yaml\n")


@pytest.mark.parametrize(("pattern", "qps", "seed"), [
    ("steady", "0.5", 1), ("day-night", "0..0.9", 2), ("burst", "0..0.9", 3)
])  # fmt: skip
def test_the_figures_of_a_pattern(run, pattern, qps, seed):
    """The same command says the same, and each policy is what SkyPilot's class makes of that load."""
    file = service_file("mine.yaml", target_qps_per_replica=0.2)
    arguments = ("capacity", "--pattern", pattern, "--qps", qps, "--file", file, "--goal", "5%", "--json")
    if seed != 1:  # as it is without
        arguments += ("--seed", str(seed))
    first = run(*arguments)
    document = json.loads(first.out)
    assert document["load"] == f"{pattern}, {qps} queries/s"
    assert document["terms"] == {"startup": 600, "carries": 0.2, "goal": 0.05, "price": None}
    rate = {
        "steady": loads.steady(0.5),
        "day-night": loads.day_night(0, 0.9, 10_800),
        "burst": loads.burst(0, 0.9, HALF_PAST, 10_800),
    }[pattern]
    times = loads.arrivals(rate, 10_800, seed)
    (own,) = [each for each in document["policies"] if each["own"]]
    assert own["requests"] == len(times)
    outcome = capacity.simulate(
        capacity.spec(task.read(Path(file))["service"]),
        loads.warmed(times, 2400),
        10_800,
        startup=600,
        carries=0.2,
        warmup=2400,
    )
    assert (own["too_few"], own["unanswered"]) == (outcome.too_few, outcome.unanswered)
    assert own["hours"] == pytest.approx(outcome.replica_hours)
    assert own["dollars"] is None
    if pattern == "steady":
        assert run(*arguments).out == first.out


def test_what_it_names_is_what_serve_up_makes(run):
    """The options and the lines, applied as `serve up` does it, are the policy that was simulated."""
    file = service_file("mine.yaml", target_qps_per_replica=0.2)
    arguments = ("capacity", "--pattern", "burst", "--qps", "0.1..0.9", "--file", file, "--goal", "8%")
    document = json.loads(run(*arguments, "--price", "2.5", "--json").out)
    (best,) = [each for each in document["policies"] if each["cheapest"]]
    holding = [each for each in document["policies"] if each["too_few"] <= 0.08 * each["requests"]]
    assert best["dollars"] == min(each["dollars"] for each in holding)
    assert all(each["dollars"] == 2.5 * each["hours"] for each in document["policies"])
    said = run(*arguments).out
    config = task.read(Path(file))
    lines = re.findall(r"^    (\w+_delay_seconds): (\d+)$", said, re.MULTILINE)
    config["service"]["replica_policy"] |= {name: int(value) for name, value in lines}
    command = shlex.split(said.splitlines()[-1])
    assert command[:5] == ["pixtral-sky", "serve", "up", "--file", file]
    given = dict(zip(command[5::2], command[6::2], strict=True))
    assert given or lines
    low, high = replica_policy.replicas(given.get("--replicas", "2..8"))
    policy = replica_policy.policy(low, high, float(given.get("--target-qps", 0.2)))
    assert policies.own(replica_policy.scaled(config, policy)) == policies.Policy(
        *(best["policy"][name] for name in ("minimum", "maximum", "target", "up", "down"))
    )


def test_lines_and_a_warning_are_said(run):
    """Where nobody asks for long, and delays are what differs."""
    chance = random.Random(1)
    times = [chance.uniform(0, 900) for _ in range(30)] + [chance.uniform(9000, 9900) for _ in range(30)]
    Path("rare.csv").write_text("\n".join(f"{each:.1f}" for each in times))  # in no order
    result = run("capacity", "rare.csv", "--goal", "100%", "--start-minutes", "5")
    assert "cheapest within 100%" in result.out
    command = shlex.split(result.out.splitlines()[-1])
    assert command[:3] == ["pixtral-sky", "serve", "up"]
    assert "\nIn replica_policy: of a copy of service.yaml:\n    downscale_delay" in result.out
    assert command[3:] == ["--file", "service.yaml", "--replicas", "0..8"]
    assert "Warning: With no replica left, the first callers get 503" in result.err


EXAMPLE = "For example: pixtral-sky capacity --pattern day-night --qps 1..9"


@pytest.mark.parametrize(("arguments", "says"), [
    ("", f"The load is a CSV of times, or a pattern. {EXAMPLE}"),
    ("even.csv --pattern steady --qps 5", "The load is a CSV of times, or a pattern: not both. Leave one of them out"),
    ("--pattern noon --qps 5", "There is no pattern 'noon'. There are steady, day-night, burst."),
    ("--pattern steady", "steady takes queries per second as one number. For example: --pattern steady --qps 5"),
    ("--pattern day-night", "day-night takes queries per second as LOW..HIGH. For example: --pattern day-night --qps 1..9"),
    ("--pattern steady --qps 1..9", "steady takes queries per second as one number, not '1..9'. For example: --pattern steady --qps 5"),
    ("--pattern burst --qps 5", "burst takes queries per second as LOW..HIGH, not '5'. For example: --pattern burst --qps 1..9"),
    ("--pattern steady --qps -5", "steady takes queries per second as one number, not '-5'. For example: --pattern steady --qps 5"),
    ("--pattern burst --qps 9..1", "--qps is LOW..HIGH, and 9 is more than 1. For example: --pattern burst --qps 1..9"),
    ("--pattern burst --qps 0..0", "HIGH of --qps is more than 0, and 100 at most, not 0..0. For example: --pattern burst --qps 1..9"),
    ("--pattern steady --qps 1e9", "steady takes queries per second as one number, not '1e9'. For example: --pattern steady --qps 5"),
    ("--pattern steady --qps 0", "--qps is more than 0, and 100 at most, not 0. For example: --pattern steady --qps 5"),
    ("--pattern steady --qps 101", "--qps is more than 0, and 100 at most, not 101. For example: --pattern steady --qps 5"),
    ("--pattern steady --qps 0.0000001", "At this rate no request comes in a day. Give a higher --qps."),
    ("none.csv", "none.csv cannot be read: No such file or directory."),
    ("empty.csv", "empty.csv has no times. Its first column: seconds since the epoch, or ISO 8601."),
    ("garbled.csv", "garbled.csv, line 2: 'tomorrow' is no time."),
    ("short.csv", "short.csv is over after 60 s, before a replica could have started. Give the requests of a day or more."),
    ("long.csv", "long.csv spans 8,000 days, and 31 are simulated at most. Times are seconds since the epoch, or ISO 8601."),
    ("even.csv --goal 101%", "--goal is a percentage from 0 to 100, not '101%'. For example: --goal 1%"),
    ("even.csv --goal -1%", "--goal is a percentage from 0 to 100, not '-1%'. For example: --goal 1%"),
    ("even.csv --goal few", "--goal is a percentage from 0 to 100, not 'few'. For example: --goal 1%"),
    ("even.csv --carries 0", "--carries is a number from 0.0001 to 10,000, not 0. For example: --carries 2"),
    ("even.csv --carries nan", "--carries is a number from 0.0001 to 10,000, not nan. For example: --carries 2"),
    ("even.csv --carries 0.001", "This load takes 990 replicas that carry 0.001 queries/s; 100 are compared at most."),
    ("even.csv --start-minutes 0", "--start-minutes is a number from 0.0001 to 10,000, not 0. For example: --start-minutes 2"),
    ("even.csv --price -1", "--price is a number from 0.0001 to 10,000, not -1. For example: --price 2"),
    ("even.csv --qps 5", f"--qps is of a pattern; a trace has its own. {EXAMPLE}"),
    ("even.csv --carries 1e-300", "--carries is a number from 0.0001 to 10,000, not 1e-300. For example: --carries 2"),
    ("even.csv --file none.yaml", "none.yaml cannot be read: No such file or directory."),
    ("even.csv --file gpus.yaml",
     "A target_qps_per_replica per GPU cannot be simulated: nobody knows which GPUs will be found."
     " Give one number for all GPUs."),
    ("even.csv --file fixed.yaml",
     "What a replica carries is not known: the file has no target_qps_per_replica. For example: --carries 2"),
    ("even.csv --file pixtral.yaml",
     "pixtral.yaml is no service: it has no 'service:' section. The shipped one: service.yaml"),
    ("even.csv --plot day.jpg", "day.jpg is no name of a picture that can be drawn. For example: --plot day.png"),
    ("even.csv --plot nowhere/day.png", "There is no directory nowhere. Run: mkdir -p nowhere"),
])  # fmt: skip
def test_what_is_refused_in_one_line(run, arguments, says):
    Path("empty.csv").write_text("")
    Path("garbled.csv").write_text("1\ntomorrow\n")
    Path("short.csv").write_text("1\n61\n")
    Path("long.csv").write_text(f"1\n{1 + 8000 * 10_800}\n")
    Path("pixtral.yaml").write_text((ROOT / "pixtral.yaml").read_text())
    if "gpus" in arguments:
        gpus = {"target_qps_per_replica": {"L4": 1, "H100": 4}}
        config = task.read(Path(service_file("gpus.yaml", **gpus)))
        config["service"]["load_balancing_policy"] = "instance_aware_least_load"
        Path("gpus.yaml").write_text(yaml.safe_dump(config))
    if "fixed" in arguments:
        config = task.read(ROOT / "service.yaml")
        config["service"]["replica_policy"] = {"min_replicas": 2}
        Path("fixed.yaml").write_text(yaml.safe_dump(config))
    result = run("capacity", *arguments.split())
    assert (result.code, result.error) == (2, says)


def test_spot_is_simulated_as_if_it_stayed(run):
    config = task.read(ROOT / "service.yaml")
    config["service"]["replica_policy"] |= {"dynamic_ondemand_fallback": True}
    config["resources"]["use_spot"] = True
    Path("spot.yaml").write_text(yaml.safe_dump(config))
    result = run("capacity", "even.csv", "--file", "spot.yaml", "--price", "2")
    assert (
        "Warning: The simulation never takes spot replicas away, and all replicas have one price.\n"
        in result.err
    )


def test_quiet_is_the_answer_alone(run):
    result = run("--quiet", "capacity", "even.csv")
    assert result.err == ""
    assert result.out.startswith("HOURS/DAY")
    assert "serve up" in result.out


def test_a_picture(run):
    even("busy.csv", 5, 3600)
    result = run("capacity", "busy.csv", "--plot", "day.png", "--price", "2", "--json")
    assert result.code == 0
    json.loads(result.out)
    assert "matplotlib" not in result.err
    data = Path("day.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.width) == ("PNG", 1100)
        assert 200 < picture.height < 900
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 100
    assert 10_000 < len(data) < 500_000


def test_without_matplotlib(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    result = run("capacity", "even.csv", "--plot", "day.png")
    assert (result.code, result.error) == (
        2,
        f"A picture needs matplotlib. Run: {install('plot')}",
    )


@pytest.mark.parametrize(("arguments", "about"), [
    ("''", "The name of TRACE.csv is empty. Give it the name of a file."),
    ("gone.csv --file ''", "--file is empty"),
    ("gone.csv --goal 101", "--goal"),
    ("gone.csv --price inf", "--price"),
    ("gone.csv --carries 1e300", "--carries"),
    ("gone.csv --start-minutes nan", "--start-minutes"),
    ("gone.csv --pattern steady", "pattern"),
    ("gone.csv --qps 5", "--qps"),
    ("--pattern noon --file gone.yaml", "noon"),
    ("gone.csv --plot folder.png", "folder.png is a directory"),
    ("gone.csv --plot gone/day.png", "There is no directory gone"),
    ("gone.csv --plot /proc/day.png", "/proc/day.png cannot be written: "),
    ("folder.png --file gone.yaml", "folder.png cannot be read: Is a directory"),
    ("short.csv --file gone.yaml", "short.csv is over after 60 s"),
    ("even.csv --file folder.png", "folder.png cannot be read: Is a directory"),
])  # fmt: skip
def test_a_mistake_is_said_at_once(run, monkeypatch, arguments, about):
    """What the arguments alone have, before a file is read; what a file has, before SkyPilot is imported."""
    Path("folder.png").mkdir()
    Path("short.csv").write_text("1\n61\n")
    monkeypatch.setattr(skypilot, "check_installed", lambda: pytest.fail("SkyPilot is imported"))
    result = run("capacity", *shlex.split(arguments))
    assert (result.code, about in result.error) == (2, True)
