"""The commands that install optional packages.

They name the packages themselves, as this package is on no index from which "pixtral-sky[heic]" could come.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def install(extra: str) -> str:
    """The command that installs the packages of an ``extra`` in pyproject.toml."""
    wanted = " ".join(map(shlex.quote, _required(extra)))
    return f"pip install {wanted}" if wanted else f'pip install -e ".[{extra}]"'


def install_skypilot() -> str:
    """The command that installs SkyPilot with the SDK of a cloud."""
    version = f"=={skypilot()}" if skypilot() else ""
    in_clone = (Path(__file__).parent.parent / "pyproject.toml").is_file()
    wanted = '-e ".[aws]"' if in_clone else f"'skypilot[aws]{version}'"
    return f"pip install {wanted} (or [gcp], [azure], [kubernetes], [slurm]: your cloud)"


def skypilot() -> str:
    """The version of SkyPilot that this package requires; empty where the package has no metadata."""
    return next((each.removeprefix("skypilot==") for each in _required("sky")), "")


def _required(extra: str) -> list[str]:
    import importlib.metadata  # slow to import, and needed for errors only

    try:
        lines = importlib.metadata.requires("pixtral-sky") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (re.fullmatch(rf"(.+?)\s*;\s*extra == ['\"]{extra}['\"]", line) for line in lines)
    return [match[1] for match in found if match]
