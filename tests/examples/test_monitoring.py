"""The examples of monitoring name what the gateway counts; `make clients` has the real Prometheus read it."""

from __future__ import annotations

import re

from tests.conftest import ROOT

CODE = "".join(path.read_text() for path in (ROOT / "pixtral_sky/server").glob("*.py"))
COUNTED = {f"pixtral_gateway_{name}_total" for name in re.findall(r'\bcount\("(\w+)"', CODE)}


def test_the_guide_and_the_dashboard_have_each_metric_of_the_gateway_and_no_other():
    assert len(COUNTED) == 4
    for name in ("docs/guides/monitoring.md", "examples/monitoring/dashboard.json"):
        assert set(re.findall(r"pixtral_gateway_\w+", (ROOT / name).read_text())) == COUNTED


def test_the_key_is_not_in_the_configuration():
    text = (ROOT / "examples/monitoring/prometheus.yml").read_text()
    assert "credentials_file: pixtral.key" in text
    assert not re.search(r"^\s*(credentials|bearer_token|password):", text, re.MULTILINE)
