"""pixtral-sky launch."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options
from pixtral_sky.deploy.store import DEFAULT_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixtral_sky.deploy.clusters import Plan, Record
    from pixtral_sky.deploy.skypilot import NoMachine
    from pixtral_sky.deploy.store import Cluster
    from pixtral_sky.deploy.task import Task

TRIED = 20  # places of a launch that failed, each in a line


def launch(
    name: options.Wanted = DEFAULT_NAME,
    infra: Annotated[
        str | None,
        typer.Option(help="Where: aws, gcp/us-central1, k8s, slurm/NAME. Without it, where it is cheapest."),
    ] = None,
    gpus: options.Gpus = None,
    spot: Annotated[
        bool, typer.Option("--spot", help="On spare capacity: cheaper, and taken away at any moment.")
    ] = False,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    retry_until_up: Annotated[
        bool,
        typer.Option(
            "--retry-until-up", help="While nobody gives the machine, ask again, each minute, for an hour."
        ),
    ] = False,
    retry_minutes: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="The same, for so many minutes.")
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Open no port: reached through ssh only. Slurm has no other way."),
    ] = False,
    idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="MINUTES", help="End it after so long without a request; 0: never."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME=VALUE", help="An env of the file, as for sky launch; again for more."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The task file; without it the shipped pixtral.yaml.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and launch nothing.")] = False,
    yes: options.Yes = False,
) -> None:
    """Launch Pixtral on a machine of yours, and wait until it answers.

    It makes a key, or takes PIXTRAL_API_KEY (not the one of a PIXTRAL_ENDPOINT), and takes HF_TOKEN or the
    login of Hugging Face. A second launch of the same name updates the one that runs.

    \b
    Examples:
      pixtral-sky launch
      pixtral-sky launch --infra aws --gpus L4:4 --private
      pixtral-sky launch --gpus L4:1 --precision fp8 --max-price 0.90 --retry-until-up
      pixtral-sky launch --infra slurm/lab --gpus A100:1 --idle 60
    """
    from pixtral_sky.deploy import clusters, task
    from pixtral_sky.errors import PixtralSkyError

    started = time.monotonic()
    the_task = task.load(file)
    envs = common.envs(env or [], precision)
    if idle is not None:
        envs["IDLE_MINUTES"] = f"{idle:f}".rstrip("0").rstrip(".")  # the script takes no exponent
    plan = _plan(name, the_task, envs, infra, gpus, spot, private, max_price)
    _show(plan, candidates=dry_run or not yes)  # else the launch shows them
    if dry_run:
        output.say("Nothing was launched. Without --dry-run, it is.")
        return
    common.confirm(f"Launch {name}?", yes)
    cluster = _launched(plan, 60 if retry_until_up and retry_minutes is None else retry_minutes or 0)
    record = None
    with contextlib.suppress(PixtralSkyError):  # for its price alone
        record = next(iter(clusters.records([name])), None)
    output.say(f"\n{name} answers, {common.minutes(time.monotonic() - started)} after you asked for it:")
    output.data(cluster.url)
    output.say(f"It costs {_cost(record)}, and {_end({**the_task.envs, **envs})}.")
    if os.environ.get("PIXTRAL_ENDPOINT"):
        output.warn("PIXTRAL_ENDPOINT is set here, and `ask` goes there: unset it, or give -n.")
    this, it = ("", "") if name == DEFAULT_NAME else (f" -n {name}", f" {name}")
    commands = (f"ask{this} picture.jpg", f"endpoint{this} --env", f"down{it}")
    output.say("Next:  " + "   |   ".join(f"pixtral-sky {command}" for command in commands))


def _plan(
    name: str,
    the_task: Task,
    envs: dict[str, str],
    infra: str | None,
    gpus: str | None,
    spot: bool,
    private: bool,
    max_price: float | None,
) -> Plan:
    """All that can be checked: first here, then at SkyPilot, then at the Hub."""
    from pixtral_sky.deploy import candidates, clusters, huggingface, services, skypilot, store, task
    from pixtral_sky.errors import SkyError, UsageError

    store.check_name(name)
    common.check_price(max_price)
    key, token = common.key(name), huggingface.token()
    the_task.check(envs)
    final = {**the_task.envs, **envs}
    _end(final)
    skypilot.check_installed()
    candidates.check_infra(infra)
    warnings = candidates.check_gpus(gpus, task.read(the_task.path), final, infra)
    with output.phase("SkyPilot's view"):
        with contextlib.suppress(SkyError):  # a controller that does not answer is no reason not to launch
            if any(each.ours for each in services.records([name])):
                raise UsageError(
                    f"{name!r} is a service.", f"Take another --name, or: pixtral-sky down {name}"
                )
        plan = clusters.prepare(
            name,
            file=the_task.path,
            envs=envs,
            key=key,
            token=token,
            infra=infra,
            gpus=gpus,
            spot=spot or None,
            private=private,
            max_price=max_price,
        )
    for warning in filter(None, [*warnings, common.check_licence(final, token)]):
        output.warn(warning)
    return plan


def _show(plan: Plan, candidates: bool) -> None:
    from pixtral_sky.deploy import clusters

    common.say_choice(plan)
    if running := plan.running:
        price = f", ${running.hourly:.2f} an hour" if running.hourly else ""
        where = " ".join(filter(None, (" on" if running.infra else "", running.infra, running.gpus)))
        output.say(f"{running.name} is {running.status}{where}{price}: it is updated.")
    elif candidates:
        clusters.show_candidates(plan.task)
    output.say(
        "It opens no port: the way to it is ssh."
        if plan.cluster.private
        else f"It opens port {plan.cluster.port}, in plain HTTP, behind a key. (--private: none.)"
    )


def _launched(plan: Plan, minutes: float) -> Cluster:
    """The cluster, when it answers. ``minutes`` are spent, while nobody gives a machine, on asking again."""
    from pixtral_sky.deploy import clusters
    from pixtral_sky.deploy.skypilot import NoMachine
    from pixtral_sky.errors import PixtralSkyError

    name, then = plan.cluster.name, time.monotonic()
    told: list[tuple[str, ...]] = []

    def tell(error: NoMachine) -> None:
        if error.tried not in told and len(error.tried) > 1:
            told.append(error.tried)
            for place in error.tried[:TRIED]:
                output.say(f"  {place}")
            if len(error.tried) > TRIED:
                output.say(f"  and {len(error.tried) - TRIED} more")

    def wait(error: NoMachine, left: float) -> None:
        tell(error)
        output.say(
            f"{error.what} It is tried again in a minute, for {common.minutes(left)} at most; nothing runs"
            " meanwhile, and Ctrl-C ends the wait."
        )

    try:
        cluster, job = clusters.launch_patiently(plan, minutes * 60, wait)
        output.done("machine", time.monotonic() - then)
        output.phases(clusters.follow(cluster, job))
    except clusters.StoppedWaiting:
        output.warn(f"No machine was to be had. {_left(plan)}")
        raise
    except KeyboardInterrupt:
        output.warn(
            f"{name} goes on without this command, and may cost money. "
            f"Look: pixtral-sky status {name}   Stop it: pixtral-sky down {name}"
        )
        raise
    except NoMachine as error:
        tell(error)
        again = "; until one is given: --retry-until-up" if error.later and not minutes else ""
        raise NoMachine(f"{error.what} {_left(plan)}", f"{error.hint}{again}") from error
    except PixtralSkyError as error:
        raise type(error)(f"{error.what} {_left(plan)}", error.hint) from error
    return clusters.located(cluster)


def _cost(record: Record | None) -> str:
    """What a machine costs, and its disk where a price of that is known."""
    from pixtral_sky.deploy import prices

    if not record or not record.hourly:
        return "nothing that SkyPilot knows of"
    cost = f"${record.hourly:.2f} an hour"
    if price := record.disk_hourly:
        cost += f", and about ${price:.2f} for its disk of {record.disk_gb} GB"
        cost += f" (list price, {prices.DISK_PRICES_OF})"
    return cost


def _end(envs: Mapping[str, str]) -> str:
    """When it stops costing money. Raises UsageError when IDLE_MINUTES does not say."""
    from pixtral_sky.errors import UsageError

    minutes = envs.get("IDLE_MINUTES", "0")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", minutes):
        raise UsageError(f"IDLE_MINUTES={minutes} is no number of minutes (0: never).")
    return (
        f"ends after {minutes} minutes without a request" if float(minutes) else "runs until you take it down"
    )


def _left(plan: Plan) -> str:
    """What a launch that failed has left behind."""
    from pixtral_sky.deploy import clusters, store
    from pixtral_sky.errors import PixtralSkyError

    name = plan.cluster.name
    try:
        left = clusters.records([name])
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky status {name}."
    if left:
        return f"Its machine may cost money until: pixtral-sky down {name}."
    if not plan.running:
        store.forget(name)
    return "Nothing is left that costs money."
