"""pixtral-sky down."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import serve
from pixtral_sky.deploy.store import DEFAULT_NAME, Cluster, Rehearsal, Service


def down(
    name: Annotated[
        str | None, typer.Argument(help=f"The deployment; without it {DEFAULT_NAME}.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is known here or to SkyPilot.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
) -> None:
    """Take a deployment down, and wait until nothing of it is left that costs money."""
    from pixtral_sky.deploy import clusters, services, skypilot, store
    from pixtral_sky.errors import NoEndpoint, PixtralSkyError, SkyError, UsageError

    if everything and name:
        raise UsageError("--all takes down everything: give it no name.")
    names = [name or DEFAULT_NAME]
    failed: PixtralSkyError | None = None
    if everything:
        names = store.known()
        try:
            if skypilot.was_used():
                names += [each.name for each in clusters.records() if each.ours]
                names += [each.name for each in services.records() if services.is_ours(each)]
        except SkyError as error:  # what runs here is stopped all the same
            output.error(str(error))
            failed = error
        names = sorted(set(names))
        if not names and not failed:
            output.say("There is nothing to take down.")
        elif names and not yes:
            if not sys.stdin.isatty():
                raise UsageError("Nobody is here to be asked.", f"--all --yes takes down: {', '.join(names)}")
            with contextlib.redirect_stdout(sys.stderr):  # where the question's last character goes
                typer.confirm(f"Take down {', '.join(names)}?", abort=True, err=True)
    asked_skypilot = False
    for each in names:
        try:
            one = store.recall(each)
            if isinstance(one, Rehearsal):
                _rehearsal(one)
                continue
            asked_skypilot = skypilot.was_used()
            if isinstance(one, Service):
                serve.take_down(each)
                continue
            was_there = _cluster(each, one if isinstance(one, Cluster) else None)
            if not was_there and not one and not serve.take_down(each):
                raise NoEndpoint(
                    f"There is no deployment named {each!r} here{' or at SkyPilot' * asked_skypilot}.",
                    f"There are: {', '.join(others)}." if (others := store.known()) else "",
                )
        except PixtralSkyError as error:
            if len(names) == 1:
                raise
            output.error(str(error))  # the others are taken down all the same
            failed = error
    if asked_skypilot and not isinstance(failed, SkyError):
        with contextlib.suppress(SkyError):  # what was asked for is done
            for record in clusters.controllers():
                if not record.name.startswith(services.CONTROLLER):
                    price = f", ${record.hourly:.2f} an hour" if record.hourly else ""
                    what = f"SkyPilot's {record.name} is still {record.status}{price}."
                    output.warn(f"{what} End it: sky down {record.name}")
            serve.name_controller()
    if failed:
        raise typer.Exit(1)


def _rehearsal(one: Rehearsal) -> None:
    from pixtral_sky.rehearsal import process

    ran = one.is_running()
    with output.phase(f"stopping {one.name}"):
        process.stop(one)
    if ran:
        output.say(f"{one.name} is stopped: no process of it is left.")
    else:
        output.say(f"{one.name} had ended by itself; it is forgotten.")


def _cluster(name: str, one: Cluster | None) -> bool:
    """Whether there was one."""
    from pixtral_sky.deploy import clusters, skypilot, store
    from pixtral_sky.deploy.resolve import tunnel_of
    from pixtral_sky.errors import UsageError

    store.check_name(name)
    if not one:
        if not skypilot.was_used():
            return False
        found = clusters.records([name])
        if found and not found[0].ours:
            raise UsageError(f"{name!r} is a cluster with something else on it.", f"sky down {name}")
    if tunnel := tunnel_of(one):
        tunnel.close()
    was_there = clusters.down(name, one.request if one else "")
    store.forget(name)
    if was_there:
        output.say(f"{name} is down: SkyPilot and its cloud have nothing of it left.")
    elif one:
        output.say(f"{name} had ended by itself; it is forgotten.")
    return was_there
