"""What was launched, under which name, and where it is written down.

A deployment is one JSON file, readable by its owner only, named after it in the user's state
directory (``$PIXTRAL_SKY_HOME`` moves it).
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

if TYPE_CHECKING:
    import psutil

    from pixtral_sky.deploy.tunnel import Tunnel

DEFAULT_NAME = "pixtral"
Kind = TypeVar("Kind", bound="Deployment")


@dataclass(frozen=True)
class Deployment:
    """What is known of everything that was launched."""

    kind: ClassVar[str]
    name: str
    url: str  # as for endpoint.Endpoint; empty while nobody knows it yet
    key: str = field(repr=False)
    max_model_len: int  # tokens; -1: all that fit, which only the server knows
    max_images: int
    created: float  # seconds since the epoch

    def check_running(self) -> None:
        """Raise NoEndpoint when it has ended, as far as this machine knows by itself."""

    def has_ended(self) -> bool:
        try:
            self.check_running()
        except NoEndpoint:
            return True
        return False

    def tunnel(self) -> Tunnel | None:
        """The tunnel whose local end is ``url``, if there is one."""
        return None


@dataclass(frozen=True)
class Rehearsal(Deployment):
    """The script, running on this machine."""

    kind = "rehearsal"
    pid: int  # the leader of its session, which all its processes belong to
    pid_born: float  # seconds after the machine was started: a pid alone may be reused
    log: str

    def check_running(self) -> None:
        if not self.is_running():
            raise NoEndpoint(
                f"The rehearsal {self.name!r} has ended (its log: {self.log}).",
                f"Start it again: pixtral-sky rehearse --keep --name {self.name}",
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


@dataclass(frozen=True)
class Cluster(Deployment):
    """A machine that SkyPilot has launched, under the same name."""

    kind = "cluster"
    port: int  # where the server listens, on that machine
    private: bool  # reached through ssh only: ``url`` is the near end of a tunnel
    request: str  # SkyPilot's id of the last launch; empty when it was not launched from here

    def tunnel(self) -> Tunnel | None:
        from pixtral_sky.deploy.tunnel import Tunnel

        if not self.private or not self.url:
            return None
        return Tunnel(self.name, urlsplit(self.url).port or 0, self.port)


@dataclass(frozen=True)
class Service(Deployment):
    """Replicas behind SkyServe's balancer, under the same name."""

    kind = "service"
    request: str  # SkyPilot's id of what brought it up; empty when that was not done from here


KINDS: dict[str, type[Deployment]] = {kind.kind: kind for kind in Deployment.__subclasses__()}


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
    with files.whole(_file(deployment.name)) as file:
        json.dump({"kind": deployment.kind, **asdict(deployment)}, file, indent=1)


def recall(name: str = DEFAULT_NAME) -> Deployment | None:
    """The deployment of that name, or None. A file that others can read is closed to them first."""
    path = _file(name)
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return _deployment(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise PixtralSkyError(f"{path} is damaged.", f"Remove it: rm '{path}'") from error


def recall_as(name: str, kind: type[Kind]) -> Kind | None:
    """The deployment of that name, or None, also where that name is one of another kind."""
    known = recall(name)
    return known if isinstance(known, kind) else None


def check_kind(name: str, kind: type[Deployment]) -> None:
    """Raises UsageError when the name is that of a deployment of another kind, which has not ended."""
    old = recall(name)
    if old and not isinstance(old, kind) and not old.has_ended():
        raise is_a(old.kind, name)


def is_a(kind: str, name: str) -> UsageError:
    return UsageError(f"{name!r} is a {kind}.", f"Take another --name, or: pixtral-sky down {name}")


def is_ours(record: Any, kind: type[Deployment]) -> bool:
    """Whether a record of SkyPilot is of this project, and its name is not of another deployment here."""
    try:
        known = recall(record.name)
    except PixtralSkyError:  # a damaged file is no reason not to show what costs money
        return bool(record.ours)
    return isinstance(known, kind) or (known is None and bool(record.ours))


def _deployment(data: Any) -> Deployment:
    kind = KINDS[data["kind"]]
    values = {each.name: data[each.name] for each in fields(kind)}
    types: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
    }
    if not all(type(values[each.name]) in types[str(each.type)] for each in fields(kind)):
        raise TypeError("a field of another type")
    return kind(**values)


def forget(name: str) -> None:
    """Remove what is remembered of a deployment; nothing happens when there is nothing."""
    _file(name).unlink(missing_ok=True)


def known() -> list[str]:
    """The names of all that is remembered, sorted."""
    return sorted(path.stem for path in (home() / "deployments").glob("[!.]*.json"))


def free_port(wanted: int | None = None) -> int:
    """A port of 127.0.0.1 that is ``wanted`` (0: any); without it 8081, or any other that is free.

    Raises UsageError when ``wanted`` is taken, be it by a deployment that is still starting.
    """
    taken = set()
    for name in known():
        with contextlib.suppress(PixtralSkyError):  # a damaged file is no reason not to start another
            deployment = recall(name)
            near = deployment and deployment.url.startswith("http://127.0.0.1:")
            if deployment and near and not deployment.has_ended():
                taken.add(urlsplit(deployment.url).port)
    for port in (8081, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            # As the server will: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in taken:
                    return int(probe.getsockname()[1])
    raise UsageError(f"Port {wanted} is taken.", "Leave --port out to get a free one.")
