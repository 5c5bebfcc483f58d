"""A running Pixtral as seen from here: its URL and key, and where both are remembered.

A deployment is one JSON file, readable by its owner only, named after it in the user's state
directory (``$PIXTRAL_SKY_HOME`` moves it).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pixtral_sky.errors import NoEndpoint, PixtralSkyError, UsageError
from pixtral_sky.model import SERVED_NAME

if TYPE_CHECKING:
    import psutil

DEFAULT_NAME = "pixtral"
DEFAULT_MAX_IMAGES = 4  # what pixtral.yaml and service.yaml ship


@dataclass(frozen=True)
class Endpoint:
    """Where to send a request. ``url`` has no trailing slash and no ``/v1``; ``key`` may be empty."""

    url: str
    key: str = field(default="", repr=False)
    model: str = SERVED_NAME
    # Tokens of prompt and answer together; None when only the endpoint itself knows.
    max_model_len: int | None = None
    max_images: int = DEFAULT_MAX_IMAGES
    # The name of the remembered deployment that it is, or the variable that names it; empty: it was given.
    origin: str = ""

    @property
    def hint(self) -> str:
        """What to do when it does not do what was asked of it."""
        if self.origin == "PIXTRAL_ENDPOINT":
            return "PIXTRAL_ENDPOINT and PIXTRAL_API_KEY are set here: correct them, or unset both."
        if self.origin:
            return f"Is it running? pixtral-sky status {self.origin}"
        return "Are its address and PIXTRAL_API_KEY right?"


@dataclass(frozen=True)
class Deployment:
    """What was launched under a name, and how to reach it."""

    name: str
    kind: str  # "rehearsal"
    url: str
    key: str = field(repr=False)
    max_model_len: int
    max_images: int
    created: float  # seconds since the epoch
    pid: int  # the leader of its session, which all its processes belong to
    pid_born: float  # seconds after the machine was started: a pid alone may be reused
    log: str

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            self.url,
            self.key,
            max_model_len=self.max_model_len,
            max_images=self.max_images,
            origin=self.name,
        )

    def is_running(self) -> bool:
        """Whether the very process that was started is still there: its pid, and its time of birth."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return self.is_leader(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def is_leader(self, process: psutil.Process) -> bool:
        """Whether it is the process that was started, and not one that has got its pid since."""
        return process.pid == self.pid and abs(born(process) - self.pid_born) < 0.05


def born(process: psutil.Process) -> float:
    """When it was started, in seconds after the machine was: setting the clock does not change it."""
    import psutil

    return process.create_time() - psutil.boot_time()


def home() -> Path:
    """The directory of everything that is remembered; made, for its owner only, when it is first used."""
    import platformdirs

    path = Path(os.environ.get("PIXTRAL_SKY_HOME") or platformdirs.user_state_dir("pixtral-sky")).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def check_name(name: str) -> None:
    """Raises UsageError when it is no name. SkyPilot's rule; it also keeps a name from being a path."""
    if not re.fullmatch(r"[a-zA-Z]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?", name):
        raise UsageError(
            f"{name[:70]!r} is no name for a deployment: it is up to 63 letters, digits, '-', '_' and '.'."
        )


def _file(name: str) -> Path:
    check_name(name)
    directory = home() / "deployments"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / f"{name}.json"


def remember(deployment: Deployment) -> None:
    """Write it down, whole or not at all, in a file of mode 0600."""
    path = _file(deployment.name)
    # mkstemp makes the file 0600 from its first instant.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(deployment), file, indent=1)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def recall(name: str = DEFAULT_NAME) -> Deployment | None:
    """The deployment of that name, or None. A file that others can read is closed to them first."""
    path = _file(name)
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        data = json.loads(path.read_text())
        values = {f.name: data[f.name] for f in fields(Deployment)}
        kinds: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
        if not all(isinstance(values[f.name], kinds[str(f.type)]) for f in fields(Deployment)):
            raise TypeError("a field of another kind")
        return Deployment(**values)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PixtralSkyError(f"{path} is damaged.", f"Remove it: rm '{path}'") from error


def forget(name: str) -> None:
    """Remove what is remembered of a deployment; nothing happens when there is nothing."""
    _file(name).unlink(missing_ok=True)


def known() -> list[str]:
    """The names of all that is remembered, sorted."""
    return sorted(path.stem for path in (home() / "deployments").glob("[!.]*.json"))


def base_url(text: str) -> str:
    """The URL before ``/v1``, from whatever form of it a user has at hand.

    >>> base_url("10.0.0.7:8081")
    'http://10.0.0.7:8081'
    >>> base_url("https://host/v1/chat/completions")
    'https://host'
    """
    url = text.strip()
    if "@" in url:  # before anything of it is printed
        raise UsageError(
            "An endpoint's URL holds no user and no password.", "Give the key with PIXTRAL_API_KEY."
        )
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or port == 0 or re.search(r"\s", url):
        raise UsageError(f"{text!r} is not the URL of an endpoint.", "It looks like http://10.0.0.7:8081")
    path = re.sub(r"/(v1(/.*)?)?$", "", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path}".rstrip("/")


def find(
    url: str | None = None,
    key: str | None = None,
    name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The endpoint to use: as given, else from the environment, else the remembered deployment.

    ``name`` given without ``url`` asks for that deployment, whatever the environment says.
    A key is never sent to a place that it was not given for: one from the environment goes with the
    URL given or from the environment, one that is remembered only to its own deployment.

    Raises NoEndpoint when there is none.
    """
    if url:
        known_url = environ.get("PIXTRAL_ENDPOINT")
        # The key of the environment is for the endpoint of the environment, where it names one.
        theirs = not known_url or base_url(known_url) == base_url(url)
        return Endpoint(base_url(url), key or (environ.get("PIXTRAL_API_KEY", "") if theirs else ""))
    if name is None and environ.get("PIXTRAL_ENDPOINT"):
        return Endpoint(
            base_url(environ["PIXTRAL_ENDPOINT"]),
            key or environ.get("PIXTRAL_API_KEY", ""),
            origin="PIXTRAL_ENDPOINT",
        )
    deployment = recall(name or DEFAULT_NAME)
    if deployment is None:
        others = known()
        raise NoEndpoint(
            f"No deployment named {name or DEFAULT_NAME!r} is remembered here.",
            f"Name one of: {', '.join(others)} (--name)."
            if others
            else "Start one with: pixtral-sky rehearse --keep, or name yours: PIXTRAL_ENDPOINT=URL",
        )
    if not deployment.is_running():
        raise NoEndpoint(
            f"The rehearsal {deployment.name!r} has ended (its log: {deployment.log}).",
            f"Start it again: pixtral-sky rehearse --keep --name {deployment.name}",
        )
    return replace(deployment.endpoint, key=key) if key else deployment.endpoint
