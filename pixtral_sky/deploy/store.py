"""The deployments that were launched from here: one JSON file each, readable by its owner only.

They are in the user's state directory, or in ``$PIXTRAL_SKY_HOME``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pixtral_sky import files
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, UsageError
from pixtral_sky.text import os_reason

if TYPE_CHECKING:
    import psutil

    from pixtral_sky.deploy.tunnel import Tunnel

DEFAULT_NAME = "pixtral"
PORT = 8081  # of an endpoint, here as on the machine; another one is taken where this is not free
Kind = TypeVar("Kind", bound="Deployment")


@dataclass(frozen=True)
class Deployment:
    """What every kind of deployment has."""

    kind: ClassVar[str]
    name: str
    url: str  # of its endpoint; empty while it is unknown
    key: str = field(repr=False)
    max_model_len: int  # tokens; -1: as many as fit, which only the server knows
    max_images: int
    created: float  # seconds since the epoch

    def check_running(self) -> None:
        """Raise NoEndpoint when it has ended, as far as this machine knows without SkyPilot."""

    def has_ended(self) -> bool:
        return False

    def tunnel(self) -> Tunnel | None:
        """The tunnel whose local end is ``url``; None if ``url`` needs none."""
        return None


@dataclass(frozen=True)
class Rehearsal(Deployment):
    """The script, running on this machine."""

    kind = "rehearsal"
    pid: int  # the leader of the session of all its processes
    pid_born: float  # seconds after the machine was started: the system may reuse a pid
    log: str

    def has_ended(self) -> bool:
        return not self.is_running()

    def check_running(self) -> None:
        if self.has_ended():
            raise NoEndpoint(
                f"The rehearsal {self.name!r} has ended (its log: {self.log}).",
                f"Start it again: pixtral-sky rehearse --keep --name {self.name}",
            )

    def is_running(self) -> bool:
        """Whether the process that was started is alive."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return self.is_leader(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def is_leader(self, process: psutil.Process) -> bool:
        """Whether ``process`` is the one that was started, rather than a later one with the same pid."""
        return process.pid == self.pid and abs(born(process) - self.pid_born) < 0.05


@dataclass(frozen=True)
class Cluster(Deployment):
    """A machine that SkyPilot has launched, under the same name."""

    kind = "cluster"
    port: int  # where the server listens, on that machine
    private: bool  # reached through ssh only: ``url`` is the local end of a tunnel
    request: str  # SkyPilot's id of the last launch; empty if it was not launched from here

    def tunnel(self) -> Tunnel | None:
        from pixtral_sky.deploy.tunnel import Tunnel

        if not self.private or not self.url:
            return None
        return Tunnel(self.name, urlsplit(self.url).port or 0, self.port)


@dataclass(frozen=True)
class Service(Deployment):
    """Replicas behind SkyServe's balancer, under the same name."""

    kind = "service"
    request: str  # SkyPilot's id of the last `up` or `update`; empty if it was not brought up from here


CLASSES: dict[str, type[Deployment]] = {kind.kind: kind for kind in Deployment.__subclasses__()}
# Of the fields, by annotation: a float that is whole may be written as an int.
TYPES = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def born(process: psutil.Process) -> float:
    """When it was started, in seconds after the machine was, which does not change with the clock."""
    import psutil

    return process.create_time() - psutil.boot_time()


def home() -> Path:
    """The directory of all that is remembered here. It is created on first use, for its owner only.

    Raises PixtralSkyError when it cannot be, and when others could put a deployment of theirs into it.
    """
    import platformdirs

    path = Path(os.environ.get("PIXTRAL_SKY_HOME") or platformdirs.user_state_dir("pixtral-sky")).absolute()
    return _made(path)


def _made(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PixtralSkyError(
            f"The directory {path} cannot be made: {os_reason(error)}.",
            "Set PIXTRAL_SKY_HOME to a directory of yours.",
        ) from error
    found = path.stat()
    if os.geteuid() not in (0, found.st_uid):
        raise PixtralSkyError(
            f"The directory {path} belongs to another user.", "Set PIXTRAL_SKY_HOME to a directory of yours."
        )
    if found.st_mode & 0o022:
        raise PixtralSkyError(
            f"Others can write into the directory {path}, and lead your requests elsewhere.",
            f"Look at what is in it, then: chmod go-w '{path}'",
        )
    return path


def check_name(name: str) -> None:
    """Raise UsageError for a name that SkyPilot does not take. Such a name is no path, either."""
    if not re.fullmatch(r"[a-zA-Z]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?", name):
        raise UsageError(
            f"{name[:70]!r} is no name for a deployment: it begins with a letter, ends with a letter or"
            " digit, and is up to 63 letters, digits, '-', '_' and '.'."
        )


def _file(name: str) -> Path:
    check_name(name)
    return _made(home() / "deployments") / f"{name}.json"


def remember(deployment: Deployment) -> None:
    """Write its file atomically, with mode 0600."""
    with files.whole(_file(deployment.name)) as file:
        json.dump({"kind": deployment.kind, **asdict(deployment)}, file, indent=1)


def recall(name: str = DEFAULT_NAME) -> Deployment | None:
    """The deployment of this name, or None. A file that others can read is set to mode 0600 first.

    Raises UsageError for a bad name, and PixtralSkyError for a file that is damaged or cannot be read.
    """
    path = _file(name)
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return _deployment(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except OSError as error:  # a directory, or another user's file
        raise PixtralSkyError(
            f"{path} is damaged: {os_reason(error)}.", f"Remove it: rm -r '{path}'"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise PixtralSkyError(f"{path} is damaged.", f"Remove it: rm '{path}'") from error


def recall_as(name: str, kind: type[Kind]) -> Kind | None:
    """The deployment of this name if it is of this kind, else None."""
    known = recall(name)
    return known if isinstance(known, kind) else None


def check_kind(name: str, kind: type[Kind]) -> Kind | None:
    """As `recall_as`. Raises UsageError when the name is of another kind that has not ended."""
    old = recall(name)
    if old and not isinstance(old, kind) and not old.has_ended():
        raise is_a(old.kind, name)
    return old if isinstance(old, kind) else None


def is_a(kind: str, name: str) -> UsageError:
    return UsageError(f"{name!r} is a {kind}.", f"Take another --name, or: pixtral-sky down {name}")


def is_ours(record: Any, kind: type[Deployment]) -> bool:
    """Whether SkyPilot's record is of this project, and no deployment of another kind has its name here."""
    try:
        known = recall(record.name)
    except PixtralSkyError:  # despite a damaged file, what costs money is shown
        return bool(record.ours)
    return isinstance(known, kind) or (known is None and bool(record.ours))


def _deployment(data: Any) -> Deployment:
    kind = CLASSES[data["kind"]]
    values = {each.name: data[each.name] for each in fields(kind)}
    if not all(type(values[each.name]) in TYPES[str(each.type)] for each in fields(kind)):
        raise TypeError("a field of another type")
    return kind(**values)


def forget(name: str) -> None:
    """Remove the file of a deployment, if there is one."""
    _file(name).unlink(missing_ok=True)


def known() -> list[str]:
    """The names of all remembered deployments, sorted."""
    return sorted(path.stem for path in (home() / "deployments").glob("[!.]*.json"))


def free_port(wanted: int | None = None) -> int:
    """A free port of 127.0.0.1: ``wanted`` (0: any), or without it PORT or else any.

    Raises UsageError when ``wanted`` is taken, even by a deployment that does not listen yet.
    """
    taken = set()
    for name in known():
        with contextlib.suppress(PixtralSkyError):  # a damaged file does not stop another deployment
            deployment = recall(name)
            here = deployment and deployment.url.startswith("http://127.0.0.1:")
            if deployment and here and not deployment.has_ended():
                taken.add(urlsplit(deployment.url).port)
    for port in (PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            # As the server does: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in taken:
                    return int(probe.getsockname()[1])
    raise UsageError(f"Port {wanted} is taken.", "Leave --port out to get a free one.")
