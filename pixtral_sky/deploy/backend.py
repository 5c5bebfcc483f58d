"""What can be done with a deployment, whatever its kind.

Each kind of deployment has a module with the functions of `Backend`. A fourth kind is a class in ``store``,
such a module, and its entry in BACKENDS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pixtral_sky import output
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import clusters, rehearsals, resolve, services, skypilot, status, store
from pixtral_sky.deploy.resolve import PIXTRAL_ENDPOINT
from pixtral_sky.deploy.status import Row
from pixtral_sky.deploy.store import Deployment
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError


class Backend(Protocol):
    """The functions of one kind of deployment."""

    @property
    def kind(self) -> type[Deployment]: ...

    @property
    def at_skypilot(self) -> bool:
        """Whether SkyPilot runs this kind."""

    def records(self, names: list[str] | None) -> Sequence[Any]:
        """What SkyPilot has of this kind, or of these names; each with ``name`` and ``ours``."""

    def row(self, one: Any, record: Any, otherwise: str) -> Row:
        """The deployment's line in `status`.

        ``one``: as it is remembered here, or None. ``record``: as SkyPilot has it, or None; ``otherwise`` is
        the state then: ended, launching or unknown.
        """

    def locate(self, name: str) -> Deployment | None:
        """The deployment, remembered with SkyPilot's current address of it; None if SkyPilot has none."""

    def logs(self, name: str, *, follow: bool, lines: int) -> None:
        """Write the last ``lines`` of its log (0: all) to stdout. Raises NoEndpoint if there is none."""

    def down(self, name: str, one: Any) -> bool:
        """Take it down; return when nothing of it is left. False if there was nothing.

        ``one``: as it is remembered here, or None.
        """


BACKENDS: tuple[Backend, ...] = (rehearsals, clusters, services)


def of(deployment: Deployment) -> Backend:
    return next(each for each in BACKENDS if isinstance(deployment, each.kind))


def backends_of(name: str) -> tuple[Backend, ...]:
    """The kind of the deployment that is remembered under this name; all kinds, if none is."""
    known = store.recall(name)
    return (of(known),) if known else BACKENDS


# status ----------------------------------------------------------------------------------------------------


def rows(name: str | None = None) -> tuple[list[Row], SkyError | None]:
    """A row for each deployment, or for ``name`` alone; and SkyPilot's error, if it could not be asked.

    The endpoint of PIXTRAL_ENDPOINT has a row of that name, unless it is that of another row.

    Raises NoEndpoint when there is no deployment ``name``, and SkyError when SkyPilot could not be asked.
    """
    found: list[Row] = []
    remembered: dict[str, Deployment] = {}
    for each in store.known() if name is None else [name]:
        try:
            if one := store.recall(each):
                remembered[each] = one
        except UsageError:
            raise
        except PixtralSkyError as damaged:
            found.append(Row(each, "?", "damaged", problem=str(damaged)))
    kinds = {each: of(one) for each, one in remembered.items()}
    records, certain, trouble = _records(name, kinds)
    for each in sorted({*kinds, *records}):
        backend, record = records.get(each) or (kinds[each], None)
        one = remembered.get(each)
        otherwise = "unknown"
        if not record and backend in certain:
            otherwise = "launching" if skypilot.is_launching(getattr(one, "request", "")) else "ended"
        found.append(backend.row(one, record, otherwise))
    if name in (None, PIXTRAL_ENDPOINT):
        found += status.of_environment({each.endpoint for each in found if each.state != "ended"})
    if name and not found:
        raise trouble or _nothing(name)
    return found, trouble


def _records(
    name: str | None, remembered: Mapping[str, Backend]
) -> tuple[dict[str, tuple[Backend, Any]], list[Backend], SkyError | None]:
    """SkyPilot's records of this project, by name; the kinds of which these are all; and SkyPilot's error.

    SkyPilot is not asked for a name that is remembered as another kind.
    """
    records: dict[str, tuple[Backend, Any]] = {}
    certain: list[Backend] = []
    known = remembered.get(name or "")
    try:
        for backend in BACKENDS:
            if known in (None, backend):
                for record in backend.records([name] if name else None):
                    if store.is_ours(record, backend.kind):
                        records.setdefault(record.name, (backend, record))
                        known = backend if name else None
            certain.append(backend)
    except SkyError as error:
        return records, certain, error
    return records, certain, None


# endpoint, logs, down --------------------------------------------------------------------------------------


def find(name: str | None) -> Endpoint:
    """As `resolve.find`; a deployment that is not remembered here is looked up at SkyPilot."""
    try:
        return resolve.find(name=name)
    except NoEndpoint as nothing:
        name = store.DEFAULT_NAME if name is None else name
        try:
            if not may_be_at_skypilot(name):
                raise
            with output.phase("asking SkyPilot"):
                located = any(each.locate(name) for each in backends_of(name))
                there = located or any(_at_skypilot(each, name) for each in backends_of(name))
            if not there:
                raise
            if not located:
                raise NoEndpoint(
                    f"{name!r} is at SkyPilot, and has no address: it is starting, or has ended.",
                    f"What it does: pixtral-sky status {name}",
                ) from None
        except SkyError as trouble:
            raise NoEndpoint(
                nothing.what, f"{nothing.hint.rstrip('.')}. SkyPilot could not be asked: {trouble}"
            ) from None
    return resolve.find(name=name)


def logs(name: str, *, follow: bool, lines: int) -> None:
    """Write the log of a deployment to stdout. Raises NoEndpoint when there is no such deployment."""
    kinds = backends_of(name)
    if len(kinds) == 1:
        kinds[0].logs(name, follow=follow, lines=lines)
        return
    for each in kinds if may_be_at_skypilot(name) else ():
        with contextlib.suppress(NoEndpoint):
            each.logs(name, follow=follow, lines=lines)
            return
    raise _nothing(name)


def names() -> tuple[list[str], SkyError | None]:
    """The names of all deployments, sorted; and SkyPilot's error, if it could not be asked."""
    records, _, trouble = _records(None, {})
    return sorted({*store.known(), *records}), trouble


def down(name: str) -> str:
    """Take a deployment down; return, when nothing that costs money is left, what to tell the user.

    Raises NoEndpoint when there is no such deployment.
    """
    if said := take_down(name, backends_of(name)):
        return said
    raise _nothing(name)


def take_down(name: str, kinds: Sequence[Backend]) -> str:
    """As `down`, among these kinds. Empty if there is none.

    Raises UsageError when SkyPilot has something of another project under this name.
    """
    known = store.recall(name)
    for each in kinds:
        one = known if isinstance(known, each.kind) else None
        if one or _at_skypilot(each, name):
            was_there = each.down(name, one)
            if one:  # else the name may be that of another kind here
                store.forget(name)
            if was_there:
                return f"{name} is down: there is nothing of it left."
            return f"{name} was gone already; it is forgotten."
    return ""


def _at_skypilot(backend: Backend, name: str) -> bool:
    record = next(iter(backend.records([name])), None)
    if record and not record.ours:
        command = "sky serve down" if backend is services else "sky down"
        raise UsageError(f"{name!r} is a {backend.kind.kind} with something else on it.", f"{command} {name}")
    return record is not None


def may_be_at_skypilot(name: str) -> bool:
    """Whether SkyPilot may run it: not if it is remembered as a rehearsal, or SkyPilot was never used."""
    with contextlib.suppress(PixtralSkyError):
        return any(each.at_skypilot for each in backends_of(name)) and skypilot.was_used()
    return True


def leftovers() -> Iterator[str]:
    """A sentence for each of SkyPilot's own machines, which still cost money. Raises SkyError."""
    yield from map(services.leftover, sorted(clusters.controllers(), key=lambda each: each.name))


def _nothing(name: str) -> NoEndpoint:
    others = ", ".join(store.known())
    what = f"There is no deployment named {name!r} here{' or at SkyPilot' * may_be_at_skypilot(name)}."
    return NoEndpoint(
        f"{what} {resolve.out_of_reach()}".rstrip(),
        f"There are: {others}." if others else "What there is: pixtral-sky status",
    )
