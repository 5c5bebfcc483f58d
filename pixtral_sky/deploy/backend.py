"""What can be done with a deployment, whatever its kind.

Each kind of deployment has a module with the functions of `Backend`, named once in KINDS. A fourth kind is a
class in ``store``, such a module, and its name in KINDS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pixtral_sky import output
from pixtral_sky.deploy import clusters, rehearsals, services, skypilot, store
from pixtral_sky.deploy.status import Row
from pixtral_sky.deploy.store import Deployment
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError


class Backend(Protocol):
    """The functions of a kind of deployment."""

    @property
    def kind(self) -> type[Deployment]: ...

    @property
    def at_skypilot(self) -> bool:
        """Whether they are SkyPilot's, with whatever that needs for them."""

    def records(self, names: list[str] | None) -> Sequence[Any]:
        """Those of these names that SkyPilot has, or all: each with ``name`` and ``ours``."""

    def row(self, name: str, one: Any, record: Any, asked: bool) -> Row:
        """What is said of it: ``one`` as it is remembered, ``record`` as SkyPilot has it, if it was asked."""

    def locate(self, name: str, key: str) -> bool:
        """Remember where SkyPilot has it now; whether it has it. ``key``: for one whose key is not known."""

    def logs(self, name: str, *, follow: bool, lines: int) -> None:
        """Write the last ``lines`` of its log (0: all) to stdout. Raises NoEndpoint: there is none."""

    def down(self, name: str) -> str:
        """Take it down, and return when nothing of it is left, with what a person is told.

        Empty: there is none. Raises UsageError when what has the name is nobody's of this project.
        """


KINDS: tuple[Backend, ...] = (rehearsals, clusters, services)


def of(deployment: Deployment) -> Backend:
    return next(each for each in KINDS if isinstance(deployment, each.kind))


def kinds_of(name: str) -> tuple[Backend, ...]:
    """The one whose deployment is remembered under that name; any, when none is."""
    store.check_name(name)
    known = store.recall(name)
    return (of(known),) if known else KINDS


def rows(name: str | None = None) -> tuple[list[Row], list[str]]:
    """What runs, or only what has that name; and what could not be found out.

    Raises NoEndpoint when nothing has that name, and SkyError when that could not be found out.
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
    records, asked, trouble = _records(name, kinds)
    for each in sorted({*kinds, *records}):
        backend, record = records[each] if each in records else (kinds[each], None)
        found.append(backend.row(each, remembered.get(each), record, backend in asked))
    if name and not found:
        if trouble:
            raise SkyError(trouble[0])
        raise _nothing(name)
    return found, trouble


def _records(
    name: str | None, remembered: Mapping[str, Backend]
) -> tuple[dict[str, tuple[Backend, Any]], list[Backend], list[str]]:
    """What SkyPilot has; the kinds that it was asked for, and what went wrong then.

    It is not asked where it cannot have anything, nor for what is known to be of another kind.
    """
    records: dict[str, tuple[Backend, Any]] = {}
    asked: list[Backend] = []
    known = remembered.get(name or "")
    for backend in KINDS:
        try:
            if known in (None, backend) and (backend in remembered.values() or skypilot.was_used()):
                for each, record in _found(backend, name).items():
                    records.setdefault(each, (backend, record))
                    known = backend if name else None
            asked.append(backend)
        except SkyError as error:
            return records, asked, [str(error)]
    return records, asked, []


def _found(backend: Backend, name: str | None = None) -> dict[str, Any]:
    """What SkyPilot has of a kind and of this project, by name."""
    records = backend.records([name] if name else None)
    return {each.name: each for each in records if store.is_ours(each, backend.kind)}


def names() -> tuple[list[str], SkyError | None]:
    """All that is known here or to SkyPilot, sorted; and why SkyPilot does not say it."""
    found, trouble = {*store.known()}, None
    try:
        if skypilot.was_used():
            found |= {name for each in KINDS for name in _found(each)}
    except SkyError as error:
        trouble = error
    return sorted(found), trouble


def locate(name: str, key: str) -> bool:
    """Whether SkyPilot has a deployment of that name; it is then remembered here, with its address."""
    if not may_be_at_skypilot(name) or not skypilot.was_used():
        return False
    with output.phase("asking SkyPilot"):
        return any(each.locate(name, key) for each in kinds_of(name))


def logs(name: str, *, follow: bool, lines: int) -> None:
    """Write its log to stdout. Raises NoEndpoint when nothing has that name."""
    kinds = kinds_of(name)
    if len(kinds) == 1:
        kinds[0].logs(name, follow=follow, lines=lines)
        return
    for each in kinds if skypilot.was_used() else ():
        with contextlib.suppress(NoEndpoint):
            each.logs(name, follow=follow, lines=lines)
            return
    raise _nothing(name)


def down(name: str) -> str:
    """Take it down, and return when nothing of it is left that costs money, with what a person is told.

    Raises NoEndpoint when nothing has that name.
    """
    if said := next(filter(None, (each.down(name) for each in kinds_of(name))), ""):
        return said
    raise _nothing(name)


def may_be_at_skypilot(name: str) -> bool:
    with contextlib.suppress(PixtralSkyError):
        return any(each.at_skypilot for each in kinds_of(name))
    return True


def leftovers() -> Iterator[str]:
    """What of SkyPilot's own still costs money, each in a sentence. Raises SkyError."""
    machines = clusters.controllers() if skypilot.was_used() else []
    for each in sorted(machines, key=lambda machine: machine.name.startswith(services.CONTROLLER)):
        of_services = each.name.startswith(services.CONTROLLER)
        yield services.leftover(each) if of_services else clusters.leftover(each)


def _nothing(name: str) -> NoEndpoint:
    others = ", ".join(store.known())
    return NoEndpoint(
        f"There is no deployment named {name!r} here{' or at SkyPilot' * skypilot.was_used()}.",
        f"There are: {others}." if others else "What there is: pixtral-sky status",
    )
