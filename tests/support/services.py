"""The services that the project shows: its files, and the snippets of a guide, put into service.yaml."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.conftest import ROOT

# Each snippet by its heading in docs/guides/replicas.md
SNIPPETS = {"spot": "Spot machines", "kubernetes": "Kubernetes only", "regions": "Several regions"}


def shown(name: str) -> dict[str, Any]:
    """A service file by its path, or service.yaml with the snippet of that name."""
    if name not in SNIPPETS:
        found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
        return found
    page = (ROOT / "docs/guides/replicas.md").read_text()
    section = page.partition(f"\n### {SNIPPETS[name]}\n")[2].partition("\n#")[0]
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return merged(shown("service.yaml"), yaml.safe_load(snippet))


def merged(config: dict[str, Any], lines: dict[str, Any]) -> dict[str, Any]:
    """A copy with these lines in their places; what they do not name stays."""
    return config | {
        key: merged(config[key], value)
        if isinstance(value, dict) and isinstance(config.get(key), dict)
        else value
        for key, value in lines.items()
    }
