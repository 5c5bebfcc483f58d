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
from pixtral_sky.state import DEFAULT_NAME

if TYPE_CHECKING:
    from pixtral_sky.deployment import Plan


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
      pixtral-sky launch --infra slurm/lab --gpus A100:1 --idle 60
    """
    from pixtral_sky import deployment, hub, serving, state, task
    from pixtral_sky.errors import PixtralSkyError, SkyError, UsageError

    started = time.monotonic()
    state.check_name(name)
    the_task = task.load(file)
    envs = common.envs(env or [])
    if idle is not None:
        envs["IDLE_MINUTES"] = f"{idle:f}".rstrip("0").rstrip(".")  # the script takes no exponent
    key, token = common.key(name), hub.token()
    final = {**the_task.envs, **envs}
    # The script would say so too, on a machine that costs money by then.
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", minutes := final.get("IDLE_MINUTES", "0")):
        raise UsageError(f"IDLE_MINUTES={minutes} is no number of minutes (0: never).")
    common.check_gpus(gpus, task.read(file), final)
    with output.phase("licence of the weights"):
        unchecked = hub.check(final.get("MODEL", ""), token)
    if unchecked:
        output.warn(unchecked)
    with output.phase("SkyPilot's view"):
        with contextlib.suppress(SkyError):  # a controller that does not answer is no reason not to launch
            if any(each.ours for each in serving.records([name])):
                raise UsageError(
                    f"{name!r} is a service.", f"Take another --name, or: pixtral-sky down {name}"
                )
        plan = deployment.prepare(
            name,
            file=file,
            envs=envs,
            key=key,
            token=token,
            infra=infra,
            gpus=gpus,
            spot=spot or None,
            private=private,
        )
    if running := plan.running:
        price = f", ${running.hourly:.2f} an hour" if running.hourly else ""
        where = " ".join(filter(None, (" on" if running.infra else "", running.infra, running.gpus)))
        output.say(f"{name} is {running.status}{where}{price}: it is updated.")
    elif dry_run or not yes:  # else the launch shows them
        deployment.show_candidates(plan.task)
    output.say(
        "It opens no port: the way to it is ssh."
        if plan.cluster.private
        else f"It opens port {plan.cluster.port}, in plain HTTP, behind a key. (--private: none.)"
    )
    if dry_run:
        output.say("Nothing was launched. Without --dry-run, it is.")
        return
    common.confirm(f"Launch {name}?", yes)

    then = time.monotonic()
    try:
        cluster, job = deployment.launch(plan)
        output.done("machine", time.monotonic() - then)
        output.phases(deployment.follow(cluster, job))
    except KeyboardInterrupt:
        output.warn(
            f"{name} goes on without this command, and may cost money. "
            f"Look: pixtral-sky status {name}   Stop it: pixtral-sky down {name}"
        )
        raise
    except PixtralSkyError as error:
        raise type(error)(f"{error.what} {_left(name, plan)}", error.hint) from error
    cluster = deployment.located(cluster)
    record = None
    with contextlib.suppress(PixtralSkyError):  # for its price alone
        record = next(iter(deployment.records([name])), None)
    output.say(f"\n{name} answers, {common.minutes(time.monotonic() - started)} after you asked for it:")
    output.data(cluster.url)
    cost = f"${record.hourly:.2f} an hour" if record and record.hourly else "nothing that SkyPilot knows of"
    ends = (
        f"ends after {minutes} minutes without a request" if float(minutes) else "runs until you take it down"
    )
    output.say(f"It costs {cost}, and {ends}.")
    if os.environ.get("PIXTRAL_ENDPOINT"):
        output.warn("PIXTRAL_ENDPOINT is set here, and `ask` goes there: unset it, or give -n.")
    this, it = ("", "") if name == DEFAULT_NAME else (f" -n {name}", f" {name}")
    commands = (f"ask{this} picture.jpg", f"endpoint{this} --env", f"down{it}")
    output.say("Next:  " + "   |   ".join(f"pixtral-sky {command}" for command in commands))


def _left(name: str, plan: Plan) -> str:
    """What a launch that failed has left behind."""
    from pixtral_sky import deployment, state
    from pixtral_sky.errors import PixtralSkyError

    try:
        left = deployment.records([name])
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky status {name}."
    if left:
        return f"Its machine may cost money until: pixtral-sky down {name}."
    if not plan.running:
        state.forget(name)
    return "Nothing is left that costs money."
