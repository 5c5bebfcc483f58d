"""The only use of SkyPilot's SDK: `sky` is imported inside `sky_sdk` alone.

https://docs.skypilot.co/en/latest/reference/api.html, skypilot 0.14.1. What SkyPilot says on the way is
passed on to stderr, without the secrets that it was given; what it raises becomes a SkyError.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pixtral_sky import extras, output
from pixtral_sky.deploy import task
from pixtral_sky.errors import PixtralSkyError, SkyError


class NoMachine(SkyError):
    """No cloud or region gives a machine now. ``tried``: each of them with its reason.

    ``later``: one may give it later. Otherwise nobody has such a machine.
    """

    def __init__(self, what: str, hint: str, tried: tuple[str, ...] = (), later: bool = False) -> None:
        super().__init__(what, hint)
        self.tried = tried
        self.later = later


class SkyOutput(io.TextIOBase):
    """A stream for SkyPilot's own output, without secrets, and without colours unless at a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream  # None: stderr, as it is then
        self.silent = False

    def write(self, text: str) -> int:
        if not self.silent:
            (self.stream or sys.stderr).write(shown(text if self.isatty() else plain(text)))
        return len(text)

    def flush(self) -> None:
        (self.stream or sys.stderr).flush()

    def isatty(self) -> bool:
        return (self.stream or sys.stderr).isatty()


sky_output = SkyOutput()  # to stderr, as stdout is for data
_secrets: set[str] = set()  # that SkyPilot was given: its own words may quote them


def installed() -> str:
    """The version of SkyPilot that is installed here, or an empty string."""
    for name in ("skypilot", "skypilot-nightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def was_used() -> bool:
    """Whether SkyPilot was ever used from here: only then can it have anything running.

    Raises SkyError when it was, and is not installed: then it cannot be asked.
    """
    used = "SKYPILOT_API_SERVER_ENDPOINT" in os.environ or (Path.home() / ".sky").is_dir()
    if used and not installed():
        raise SkyError(
            "SkyPilot was used here and is not installed in this environment: what it runs is not known.",
            f"Run: {extras.install_skypilot()}",
        )
    return used


def check_installed() -> None:
    """Raises SkyError when SkyPilot is not."""
    if not installed():
        raise SkyError("SkyPilot is not installed here.", f"Run: {extras.install_skypilot()}")


@contextlib.contextmanager
def sky_sdk(silent: bool = False) -> Iterator[Any]:
    """The module ``sky``. Raises SkyError for all that it raises."""
    check_installed()
    before, sky_output.silent = sky_output.silent, silent or output.quiet
    try:
        # Its logger keeps the stdout that it meets when it is imported.
        with contextlib.redirect_stdout(sky_output):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import sky
                import sky.serve
            try:
                yield sky
            except PixtralSkyError:
                raise
            except Exception as error:
                raise _explained(error) from error
    finally:
        sky_output.silent = before


def _explained(error: Exception) -> SkyError:
    """SkyPilot's error as one line, with what helps next."""
    import requests
    from sky import exceptions

    lines = [line.strip() for line in shown(plain(str(error))).splitlines() if line.strip()]
    what = (lines[0] if lines else type(error).__name__)[:300].rstrip(".:")
    if isinstance(error, (exceptions.ApiServerConnectionError, requests.exceptions.ConnectionError)):
        return SkyError("SkyPilot's API server does not answer.", "Look at it: sky api info; sky api start")
    if isinstance(error, exceptions.ApiServerAuthenticationError):
        return SkyError("SkyPilot's API server asks who you are.", "Run: sky api login")
    if isinstance(error, exceptions.NoCloudAccessError):
        return SkyError("SkyPilot has no cloud, Kubernetes or Slurm to launch on.", "Run: sky check")
    if isinstance(error, exceptions.ResourcesUnavailableError):
        return _no_machine(error, what)
    if isinstance(error, exceptions.ResourcesMismatchError):
        return SkyError(f"The running machine is another one: {what}.", "Take it down first, or use --name")
    what = f"SkyPilot: {what}" if what.endswith(("?", "!")) else f"SkyPilot: {what}."
    return SkyError(what, "Its own view: sky status; sky api status")


def _no_machine(error: Any, what: str) -> NoMachine:
    """What SkyPilot's ResourcesUnavailableError says. https://docs.skypilot.co/en/latest/reference/api.html"""
    from sky import exceptions

    history = error.failover_history
    # As SkyPilot's own controllers have it (serve/replica_managers.py): without such a one, nobody was asked.
    later = any(isinstance(each, exceptions.ResourcesUnavailableError) for each in history)
    tried = tuple(dict.fromkeys(_tried(str(error)) or map(_reason, map(str, history))))
    tried = tuple(filter(None, tried))
    why = f"{len(tried)} places were tried, the last: " * (len(tried) > 1) + (tried[-1] if tried else what)
    return NoMachine(
        f"Nobody gives this machine now: {why}.", "Other GPUs: --gpus; elsewhere: --infra", tried, later
    )


def _tried(text: str) -> list[str]:
    """The places in the summary of a launch that failed everywhere: backends/cloud_vm_ray_backend.py,
    `_format_provision_failure_blocks`."""
    blocks = re.findall(r"^✗ (.+) — (.+)\n((?:  .*\n|\n)*)", shown(plain(text)) + "\n", re.MULTILINE)
    return [
        f"{place}, {machine.strip('()').removesuffix(', ...')}: {_reason(reason)}"
        for place, machine, reason in blocks
    ]


def _reason(text: str) -> str:
    """The cloud's own reason, or else SkyPilot's text without its list of candidates."""
    words = " ".join(shown(plain(text)).rpartition("Reason: ")[2].split())
    return re.sub(r" for [{\[].*", "", words)[:300].rstrip(". ")


def plain(text: str) -> str:
    """``text`` without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def hide(*secrets: str) -> None:
    """Show none of these secrets from now on. A shorter one may be part of any word, and is shown."""
    _secrets.update(each for each in secrets if len(each) >= 6)


def shown(text: str) -> str:
    """``text`` without the secrets that SkyPilot was given, and without a password in a URL."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def server() -> str:
    """The API server's version and address, in words; a local one is started when there is none."""
    with sky_sdk(silent=True) as sky:
        from sky.client import sdk

        sky.get(sdk.enabled_clouds())  # starts a local server, as api_info() does not
        info = sky.api_info()
        where = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT", "on this machine")
        return shown(f"{info.version}, {where}")


def enabled() -> list[str]:
    """What SkyPilot can launch on, as for --infra: aws, kubernetes/CONTEXT, slurm/NAME."""
    with sky_sdk(silent=True) as sky:
        return enabled_by(sky)


def enabled_by(sky: Any) -> list[str]:
    from sky.client import sdk

    # What the last `sky check` has found; the first time it is made now.
    found: list[str] = sky.get(sdk.enabled_clouds(expand=True))
    if not found:
        sky.get(sdk.check(None, verbose=False))
        found = sky.get(sdk.enabled_clouds(expand=True))
    return sorted(name.lower() if "/" not in name else name for name in found)


def task_of(text: str | None) -> dict[str, Any]:
    """The task file that SkyPilot keeps of a cluster or a service, as data; empty without one."""
    from sky.utils import yaml_utils  # its loader is many times as fast as yaml's own

    made = yaml_utils.safe_load(text or "")
    return made if isinstance(made, dict) else {}


def infra(cloud: str | None, region: str | None) -> str:
    """A cloud and region of SkyPilot, as for --infra: aws/us-east-1, slurm/NAME."""
    cloud, region = (cloud or "").lower(), region or ""
    # A pool of ssh machines is the context ssh-POOL inside of SkyPilot.
    return "/".join(filter(None, [cloud, region.removeprefix("ssh-") if cloud == "ssh" else region]))


def opens_ports(cloud: Any, resources: Any) -> bool:
    """Whether a cloud, as an object of SkyPilot's, opens ports for ``resources`` of it. Slurm never does."""
    from sky import clouds, exceptions

    if isinstance(cloud, clouds.Kubernetes):  # ssh, too
        return True  # asking it means asking the cluster, and it depends on how that is set up
    try:
        cloud.check_features_are_supported(resources, {clouds.CloudImplementationFeatures.OPEN_PORTS})
    except exceptions.NotSupportedError:
        return False
    return True


def check_file(path: Path | None = None) -> None:
    """Raise UsageError or SkyError when the installed SkyPilot does not take the file."""
    config = task.read(path)
    with sky_sdk(silent=True) as sky:
        sky.Task.from_yaml_config(config)
