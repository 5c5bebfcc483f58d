"""SkyPilot's SDK: `sky_sdk` alone imports `sky`.

https://docs.skypilot.co/en/latest/reference/api.html, skypilot 0.14.1. SkyPilot's output goes to stderr,
without secrets; its exceptions become SkyError.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pixtral_sky import extras, output
from pixtral_sky.deploy import task
from pixtral_sky.errors import PixtralSkyError, SkyError

Answer = TypeVar("Answer")
# In ~/.sky from `import sky` alone, and from a look at prices: `plan` and `capacity` use no more of it.
OF_AN_IMPORT = {"user_hash", "locks", "serve", "catalogs"}


class NoMachine(SkyError):
    """No cloud or region has the machine now. ``tried``: each place with its reason.

    ``later``: whether a place may have it later. If not, no place offers such a machine.
    """

    def __init__(self, what: str, hint: str, tried: tuple[str, ...] = (), later: bool = False) -> None:
        super().__init__(what, hint)
        self.tried = tried
        self.later = later


class SkyOutput(io.TextIOBase):
    """A stream for SkyPilot's output. It removes secrets, and colours if it is not a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream  # where data goes; None: what sys.stderr is at the time of writing
        self.silent = False

    def write(self, text: str) -> int:
        if not self.silent:
            safe = shown(text if self.isatty() else plain(text))
            if self.stream:
                output.data(safe, end="", stream=self.stream)
            else:
                output.tell(safe, end="")
        return len(text)

    def isatty(self) -> bool:
        return self.stream.isatty() if self.stream else output.at_terminal()


LOOK = "Its own view: sky status; sky api status"
SERVER_LOG = "~/.sky/api_server/server.log"  # sky/server/constants.py: API_SERVER_LOGS
# What helps with each kind of error: names of classes in sky/exceptions.py.
HINTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("CloudUserIdentityError", "InvalidCloudCredentials", "InvalidCloudConfigs"), "Run: sky check"),
    (("ClusterOwnerIdentityMismatchError",), "Log in as its owner, or take another --name. Run: sky check"),
    (("KubernetesValidationError",), "Run: sky check kubernetes"),
    (("AWSAzFetchingError",), "Run: sky check aws"),
    (("APIVersionMismatchError", "APINotSupportedError"), "Start it anew: sky api stop; sky api start"),
    (("InvalidSkyPilotConfigError",), "Look at ~/.sky/config.yaml"),
    (("NotSupportedError", "ProvisionUnsupportedError"), "Go elsewhere: --infra; other GPUs: --gpus"),
    (
        (
            "UserRequestRejectedByPolicy",
            "RestfulPolicyError",
            "PermissionDeniedError",
            "WorkspaceAmbiguousError",
        ),
        "Ask whoever runs SkyPilot's API server: sky api info",
    ),
    (
        ("ServerTemporarilyUnavailableError", "ConcurrentWorkerExhaustedError", "ExecutionRetryableError"),
        "Try again in a minute; what it does: sky api status",
    ),
    (
        ("ExecutionPoolFullError", "RequestInterruptedError", "RequestCancelled"),
        "Give the command again; what it does: sky api status",
    ),
    (
        ("NetworkError", "FetchClusterInfoError", "ClusterStatusFetchingError"),
        "Look again: pixtral-sky status",
    ),
    (("ClusterNotUpError", "ClusterDoesNotExist", "CachedClusterUnavailable"), "Look: pixtral-sky status"),
    (("ClusterSetUpError",), "All it said: pixtral-sky logs"),
)

sky_output = SkyOutput()  # stderr: stdout is for data
_secrets: set[str] = set()  # to be removed from SkyPilot's output, which may quote them


def installed() -> str:
    """The version of the installed SkyPilot; empty if there is none."""
    for name in ("skypilot", "skypilot-nightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def was_used() -> bool:
    """Whether this user has ever used SkyPilot. If not, SkyPilot runs nothing, and is not asked.

    Raises SkyError when SkyPilot was used, but is not installed in this environment.
    """
    folder = Path.home() / ".sky"
    left = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    # With SKY_RUNTIME_DIR, what it knows is in another folder.
    used = {"SKYPILOT_API_SERVER_ENDPOINT", "SKY_RUNTIME_DIR"} & {*os.environ} or left - OF_AN_IMPORT
    if used and not installed():
        raise SkyError(
            "SkyPilot was used here and is not installed in this environment: what it runs is not known.",
            f"Run: {extras.install_skypilot()}",
        )
    return bool(used)


def ask(question: Callable[[Any], Answer], otherwise: Answer) -> Answer:
    """What ``question`` says, which is given the module ``sky``; ``otherwise`` where SkyPilot was never used.

    To ask it starts SkyPilot's server, if none runs here. Raises SkyError.
    """
    if not was_used():
        return otherwise
    with sky_sdk(silent=True) as sky:
        return question(sky)


def check_installed() -> None:
    """Raise SkyError when SkyPilot is not installed."""
    if not installed():
        raise SkyError("SkyPilot is not installed here.", f"Run: {extras.install_skypilot()}")


@contextlib.contextmanager
def sky_sdk(silent: bool = False) -> Iterator[Any]:
    """The module ``sky``. Its exceptions become SkyError. ``silent`` drops its output."""
    check_installed()
    before, sky_output.silent = sky_output.silent, silent or output.quiet
    try:
        # SkyPilot's logger keeps the stdout of the moment when it is imported.
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
    """SkyPilot's exception as one line and a hint."""
    import requests
    from sky import exceptions

    lines = [line.strip() for line in shown(plain(str(error))).splitlines() if line.strip()]
    what = (lines[0] if lines else type(error).__name__)[:300].rstrip(".:")
    if isinstance(error, (exceptions.ApiServerConnectionError, requests.exceptions.ConnectionError)):
        return SkyError("SkyPilot's API server does not answer.", "Look at it: sky api info; sky api start")
    if isinstance(error, exceptions.ApiServerAuthenticationError):
        return SkyError("SkyPilot's API server asks who you are.", "Run: sky api login")
    if isinstance(error, exceptions.NoCloudAccessError):
        return SkyError(
            "SkyPilot has no cloud, Kubernetes or Slurm to launch on.",
            "What is missing: pixtral-sky doctor --infra aws, or where it shall be",
        )
    if isinstance(error, exceptions.ResourcesUnavailableError):
        return _no_machine(error, what)
    if isinstance(error, exceptions.ResourcesMismatchError):
        return SkyError(f"The running machine is another one: {what}.", "Take it down first, or use --name")
    what = f"SkyPilot: {what}" if what.endswith(("?", "!")) else f"SkyPilot: {what}."
    if "API server process exited" in what:
        return SkyError("SkyPilot's API server ended as it started.", f"Its log says why: tail {SERVER_LOG}")
    kinds = {each.__name__ for each in type(error).__mro__}
    hint = next((hint for names, hint in HINTS if kinds & {*names}), LOOK)
    if "SKYPILOT_DISABLE_LOCAL_API_SERVER" in what:
        return SkyError(
            "SkyPilot may start no API server here (SKYPILOT_DISABLE_LOCAL_API_SERVER).",
            "Name yours: sky api login -e URL",
        )
    return SkyError(what, hint)


def _no_machine(error: Any, what: str) -> NoMachine:
    """SkyPilot's ResourcesUnavailableError as NoMachine."""
    from sky import exceptions

    history = error.failover_history
    # As serve/replica_managers.py of SkyPilot decides it: without such an entry, no cloud was asked.
    later = any(isinstance(each, exceptions.ResourcesUnavailableError) for each in history)
    reasons = _tried(str(error)) or [_reason(str(each)) for each in history]
    tried = tuple(dict.fromkeys(filter(None, reasons)))
    why = f"{len(tried)} places were tried, the last: " * (len(tried) > 1) + (tried[-1] if tried else what)
    return NoMachine(
        f"Nobody gives this machine now: {why}.", "Other GPUs: --gpus; elsewhere: --infra", tried, later
    )


def _tried(text: str) -> list[str]:
    """The places in SkyPilot's summary of a failed launch, each with its reason.

    Source: `_format_provision_failure_blocks` in backends/cloud_vm_ray_backend.py.
    """
    blocks = re.findall(r"^✗ (.+) — (.+)\n((?:  .*\n|\n)*)", shown(plain(text)) + "\n", re.MULTILINE)
    return [
        f"{place}, {machine.strip('()').removesuffix(', ...')}: {_reason(reason)}"
        for place, machine, reason in blocks
    ]


def _reason(text: str) -> str:
    """The cloud's reason; else SkyPilot's text without its list of candidates."""
    words = " ".join(shown(plain(text)).rpartition("Reason: ")[2].split())
    return re.sub(r" for [{\[].*", "", words)[:300].rstrip(". ")


def plain(text: str) -> str:
    """``text`` without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def hide(*secrets: str) -> None:
    """Remove these secrets from SkyPilot's output from now on."""
    _secrets.update(each for each in secrets if len(each) >= 6)  # a shorter one may be part of any word


def shown(text: str) -> str:
    """``text`` without the secrets given to `hide`, and without passwords in URLs."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def server() -> str:
    """The API server's version and address, for people. Starts a local server if none runs."""
    with sky_sdk(silent=True) as sky:
        from sky.client import sdk

        sky.get(sdk.enabled_clouds())  # starts a local server; api_info() does not
        info = sky.api_info()
        where = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT", "on this machine")
        return shown(f"{info.version}, {where}")


def enabled() -> list[str]:
    """What SkyPilot can launch on, in the syntax of --infra: aws, kubernetes/CONTEXT, slurm/NAME."""
    with sky_sdk(silent=True) as sky:
        from sky.client import sdk

        found: list[str] = sky.get(sdk.enabled_clouds(expand=True))  # as of the last `sky check`
        if not found:
            sky.get(sdk.check(None, verbose=False))
            found = sky.get(sdk.enabled_clouds(expand=True))
    return sorted(name.lower() if "/" not in name else name for name in found)


def task_of(text: str | None) -> dict[str, Any]:
    """The task file that SkyPilot keeps with a cluster or service, as data; empty if it has none."""
    from sky.utils import yaml_utils  # many times as fast as yaml.safe_load

    made = yaml_utils.safe_load(text or "")
    return made if isinstance(made, dict) else {}


def infra(cloud: str | None, region: str | None) -> str:
    """A cloud and region of SkyPilot in the syntax of --infra: aws/us-east-1, slurm/NAME."""
    cloud, region = (cloud or "").lower(), region or ""
    # SkyPilot's name for the ssh machines POOL is ssh-POOL.
    return "/".join(filter(None, [cloud, region.removeprefix("ssh-") if cloud == "ssh" else region]))


def url_of(address: str | None) -> str:
    """SkyPilot's address of an endpoint as a URL; empty if SkyPilot has none, for which it may say None."""
    if not address or address in ("-", "None") or address.endswith("://None"):
        return ""
    return address if "://" in address else f"http://{address}"


def is_launching(request: str) -> bool:
    """Whether the launch with this request id is still in progress. False if SkyPilot does not say."""
    if not request:
        return False
    with contextlib.suppress(SkyError):
        return ask(lambda sky: _in_progress(sky, request), False)
    return False


def cancel(request: str) -> bool:
    """Cancel a launch in progress, which would make a machine after `down`. Returns whether it was one."""
    with sky_sdk(silent=True) as sky:
        if in_progress := _in_progress(sky, request):
            sky.get(sky.api_cancel([request], silent=True))
        return in_progress


def _in_progress(sky: Any, request: str) -> bool:
    # WAITING: for SkyPilot's own retry. An empty id would be a prefix of all ids.
    states = ("PENDING", "WAITING", "RUNNING")
    return bool(request) and any(each.status in states for each in sky.api_status([request]))


def opens_ports(cloud: Any, resources: Any) -> bool:
    """Whether ``cloud`` (sky.clouds.Cloud) opens ports for ``resources``. Slurm never does."""
    from sky import clouds, exceptions

    if isinstance(cloud, clouds.Kubernetes):  # clouds.SSH is a subclass
        return True  # whether it can depends on the set-up of the Kubernetes cluster, which would be asked
    try:
        cloud.check_features_are_supported(resources, {clouds.CloudImplementationFeatures.OPEN_PORTS})
    except exceptions.NotSupportedError:
        return False
    return True


def check_file(path: Path | None = None) -> None:
    """Raise UsageError or SkyError when the installed SkyPilot does not accept the file."""
    config = task.read(path)
    with sky_sdk(silent=True) as sky:
        sky.Task.from_yaml_config(config)
