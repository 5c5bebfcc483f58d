"""The real Prometheus reads a rehearsal, by the very lines of docs/guides/monitoring.md, and evaluates each query of
the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from pixtral_sky import Client
from pixtral_sky.deploy import store
from pixtral_sky.rehearsal import engine
from tests.conftest import ROOT
from tests.real.clients.test_clients import blocks

pytestmark = [pytest.mark.clients, pytest.mark.timeout(180)]

GUIDE = (ROOT / "docs/guides/monitoring.md").read_text()
START, REPLICAS = blocks("bash", GUIDE)
ALERTS = re.findall(r"^\| `([^`]*) ([<>=]+ \d+)`", GUIDE, re.MULTILINE)
DASHBOARD = json.loads((ROOT / "examples/monitoring/dashboard.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']}, {target['legendFormat']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
PROGRAMS = engine.cache() / "clients" / "prometheus" / "usr" / "bin"


@pytest.fixture(scope="module")
def prometheus(running, sites, folder, tmp_path_factory):
    """What it answers to a query, after some requests; and the folder of its files."""
    assert (PROGRAMS / "prometheus").exists(), "It is made by: make clients"
    clone, port = tmp_path_factory.mktemp("clone"), store.free_port(0)
    (clone / "examples").symlink_to(ROOT / "examples")
    lines, fast = START.replace(":9090", f":{port}"), "sed -i 's/15s/1s/' prometheus.yml\nexec prometheus"
    path = f"{PROGRAMS}:{Path(sys.executable).parent}:/usr/bin:/bin"
    with (clone / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-ec", re.sub(r"^prometheus", fast, lines, flags=re.MULTILINE)],
            cwd=clone,
            env={"PATH": path, "HOME": str(clone), "PIXTRAL_SKY_HOME": str(folder)},
            stderr=log,
        )

    def get(path: str, **query: str):
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def until(true) -> None:
        for _ in range(200):
            assert process.poll() is None, (clone / "log").read_text()
            try:
                if true():
                    return
            except urllib.error.URLError:
                pass
            time.sleep(0.1)
        raise AssertionError((clone / "log").read_text())

    try:
        until(lambda: value(get, 'up{job="pixtral"} == 1'))
        ask(running, sites)
        until(lambda: value(get, "count_over_time(pixtral_gateway_pictures_fetched_total[1m]) > 2"))
        until(lambda: value(get, "count_over_time(vllm:generation_tokens_total[1m]) > 2"))
        yield get, clone / "monitoring"
    finally:
        process.terminate()
        process.wait(timeout=30)


def value(get, expression: str) -> list[float]:
    return [float(each["value"][1]) for each in get("query", query=expression)["result"]]


def ask(running, sites) -> None:
    """Something of everything that is counted: an answer, a picture by URL, a refusal."""
    part = {"type": "image_url", "image_url": {"url": f"{sites[0]}/logo.png"}}
    with Client(running.url, key=running.key) as client:
        client.complete([{"role": "user", "content": [part]}], max_tokens=8)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{running.url}/v1/models")


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_of_the_dashboard_has_an_answer(prometheus, query):
    get, _ = prometheus
    expression = query.replace("$instance", ".*").replace("$__rate_interval", "1m")
    assert "$" not in expression
    assert value(get, expression)


@pytest.mark.parametrize(("expression", "limit"), ALERTS)
def test_each_alert_is_about_a_metric_that_is_there(prometheus, expression, limit):
    get, _ = prometheus
    assert value(
        get, re.sub(r'\{(code|status)="\w+"\}', "", expression)
    )  # those with an error may not be there
    get("query", query=f"{expression} {limit}")


def test_what_is_counted_is_what_was_asked(prometheus, running):
    get, _ = prometheus
    assert value(get, 'pixtral_gateway_refusals_total{code="missing_api_key"}')[0] >= 1
    (fetched,) = value(get, "pixtral_gateway_pictures_fetched_total")
    assert 1 <= fetched <= value(get, "pixtral_gateway_pictures_total")[0]
    (chats,) = value(get, 'pixtral_gateway_requests_total{route="/v1/chat/completions", status="2xx"}')
    assert value(get, "sum(vllm:request_success_total)")[0] >= chats >= 1


def test_the_key_is_in_its_file_alone(prometheus, running):
    get, files = prometheus
    assert (files / "pixtral.key").read_text() == running.key
    assert (files / "pixtral.key").stat().st_mode & 0o777 == 0o600
    assert running.key not in get("status/config")["yaml"]
    assert running.key not in (files / "prometheus.yml").read_text()
    checked = subprocess.run(
        [PROGRAMS / "promtool", "check", "config", files / "prometheus.yml"], capture_output=True
    )
    assert checked.returncode == 0, checked.stdout


def test_the_replicas_of_a_service(tmp_path):
    status = (ROOT / "tests/golden/serve-status-json.txt").read_text()
    status = status.replace('"url": ""', '"url": "http://10.0.0.7:8081"')
    (tmp_path / "status.json").write_text(status)
    subprocess.run(
        [
            "bash",
            "-ec",
            f"pixtral-sky() {{ [ \"$*\" = 'serve status --json' ] && cat status.json; }}\n{REPLICAS}",
        ],
        cwd=tmp_path,
        check=True,
    )
    assert json.loads((tmp_path / "targets.json").read_text()) == [{"targets": ["10.0.0.7:8081"]}]
