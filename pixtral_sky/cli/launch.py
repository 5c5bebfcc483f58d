"""pixtral-sky launch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options
from pixtral_sky.deploy.store import DEFAULT_NAME

if TYPE_CHECKING:
    from pixtral_sky.deploy.launch import Plan
    from pixtral_sky.deploy.skypilot import NoMachine
    from pixtral_sky.deploy.store import Cluster

TRIED = 20  # lines at most for the places that a failed launch has tried

Spot = Annotated[
    bool, typer.Option("--spot", help="On spare capacity: cheaper, and taken away at any moment.")
]
Retry = Annotated[
    bool,
    typer.Option(
        "--retry-until-up", help="While nobody gives the machine, ask again, each minute, for an hour."
    ),
]
RetryMinutes = Annotated[
    float | None, typer.Option(min=0, metavar="N", help="The same, for so many minutes.")
]
Private = Annotated[
    bool, typer.Option("--private", help="Open no port: reached through ssh only. Slurm has no other way.")
]
Idle = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="MINUTES",
        help="End it after so long without a request; 0: never.",
        show_default="IDLE_MINUTES of the file",
    ),
]


def launch(
    name: options.Wanted = DEFAULT_NAME,
    infra: options.Infra = None,
    gpus: options.Gpus = None,
    spot: Spot = False,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    retry_until_up: Retry = False,
    retry_minutes: RetryMinutes = None,
    private: Private = False,
    idle: Idle = None,
    env: options.Env = None,
    file: options.TaskFile = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
) -> None:
    """Launch Pixtral on a machine, and wait until it answers.

    It makes a key, or takes PIXTRAL_API_KEY (not the one of a PIXTRAL_ENDPOINT), and takes HF_TOKEN or the
    login of Hugging Face. A second launch of the same name updates the one that runs.

    \b
    Examples:
      pixtral-sky launch
      pixtral-sky launch --infra aws --gpus L4:4 --max-price 4 --private
      pixtral-sky launch --gpus L4:1 --precision fp8 --retry-until-up
      pixtral-sky launch --infra slurm/lab --gpus A100:1 --idle 60
    """
    from pixtral_sky.deploy import launch as launching
    from pixtral_sky.deploy import task
    from pixtral_sky.deploy.bring_up import Wanted, check_minutes

    started = time.monotonic()
    wanted = Wanted(name, infra, gpus, spot, private, max_price)
    check_minutes("--idle", idle)
    check_minutes("--retry-minutes", retry_minutes)
    the_task = common.load(file, env, precision, idle)
    end = task.end(the_task.envs)
    plan = launching.plan(the_task, wanted)
    _show(plan, candidates=dry_run or not yes)  # else the launch shows them
    if dry_run:
        output.say("Nothing was launched. Without --dry-run, it is.")
        return
    common.confirm(f"Launch {name}?", yes)
    cluster = _launched(plan, 60 if retry_until_up and retry_minutes is None else retry_minutes or 0)
    output.say(f"\n{name} answers, {common.minutes(time.monotonic() - started)} after you asked for it:")
    output.data(cluster.url)
    output.say(f"It costs {launching.cost(name)}, and {end}.")
    common.say_next(name)


def _show(plan: Plan, candidates: bool) -> None:
    from pixtral_sky.deploy import launch as launching

    common.say_choice(plan)
    if running := plan.running:
        price = f", ${running.hourly:.2f} an hour" if running.hourly else ""
        where = " ".join(filter(None, (" on" if running.infra else "", running.infra, running.gpus)))
        output.say(f"{running.name} is {running.status}{where}{price}: it is updated.")
    elif candidates:
        launching.show_candidates(plan.task)
    output.say(
        "It opens no port: the way to it is ssh."
        if plan.cluster.private
        else f"It opens port {plan.cluster.port}, in plain HTTP, behind a key. (--private: none.)"
    )
    if plan.cluster.private and plan.task.envs.get("IMAGE_URLS") == "none":
        output.say("It fetches no pictures by URL. (--env IMAGE_URLS=public: from public hosts.)")


def _launched(plan: Plan, minutes: float) -> Cluster:
    """Launch, and return the cluster when it answers. ``minutes``: to retry while no machine is free."""
    from pixtral_sky.deploy import clusters
    from pixtral_sky.deploy import launch as launching
    from pixtral_sky.deploy.skypilot import NoMachine

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

    with common.accounted(name, "", lambda: launching.left(plan)):
        try:
            cluster, job = launching.launch_patiently(plan, minutes * 60, wait)
        except NoMachine as error:
            tell(error)
            if error.later and not minutes:
                error.hint += "; until one is given: --retry-until-up"
            raise
        output.done("machine", time.monotonic() - then)
        output.phases(launching.follow(cluster, job))
    return clusters.located(cluster)
