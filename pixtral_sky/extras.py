"""The commands that install what is optional.

By the packages' own names: they are right for a clone, a wheel and a release, and this package is on no index
from which "pixtral-sky[heic]" could come.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def install(extra: str) -> str:
    """The command that installs what an ``extra`` of pyproject.toml needs."""
    wanted = " ".join(map(shlex.quote, _required(extra)))
    return f"pip install {wanted}" if wanted else f'pip install -e ".[{extra}]"'


def install_skypilot() -> str:
    """The command that installs SkyPilot with the SDK of a cloud."""
    version = f"=={skypilot()}" if skypilot() else ""
    wanted = '-e ".[aws]"' if _in_checkout() else f"'skypilot[aws]{version}'"
    return f"pip install {wanted} (or [gcp], [azure], [kubernetes], [slurm]: your cloud)"


def _in_checkout() -> bool:
    """Whether this package runs from where it is made: there its own extras are at hand."""
    return (Path(__file__).parent.parent / "pyproject.toml").is_file()


def skypilot() -> str:
    """The version of SkyPilot that this package asks for; empty when it was not installed as one."""
    return next((each.removeprefix("skypilot==") for each in _required("sky")), "")


def _required(extra: str) -> list[str]:
    import importlib.metadata  # it takes long, and is for errors

    try:
        lines = importlib.metadata.requires("pixtral-sky") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (re.fullmatch(rf"(.+?)\s*;\s*extra == ['\"]{extra}['\"]", line) for line in lines)
    return [match[1] for match in found if match]
