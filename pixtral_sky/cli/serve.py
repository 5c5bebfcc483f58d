"""pixtral-sky serve: replicas behind one balancer."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import commands, common, options
from pixtral_sky.deploy.store import DEFAULT_NAME
from pixtral_sky.errors import PixtralSkyError, SkyError

if TYPE_CHECKING:
    from pixtral_sky.deploy.serve import Plan

app = commands.make(help="Run replicas behind one endpoint, with SkyServe.")

Name = Annotated[str, typer.Argument(help="The service.", autocompletion=options.deployments)]
Replicas = Annotated[
    str | None,
    typer.Option(metavar="N..M", help="How many: from N to M, or always N. Without it, as in the file."),
]
TargetQps = Annotated[
    float | None,
    typer.Option(metavar="X", help="Queries per second and replica, above which there are more replicas."),
]
Spot = Annotated[
    bool,
    typer.Option("--spot", help="On spare machines, and on on-demand ones as long as those are missing."),
]
BlueGreen = Annotated[
    bool,
    typer.Option(
        "--blue-green", help="Switch over when all new replicas are ready: for a while, twice the cost."
    ),
]


@app.command(cls=commands.Command)
def up(
    name: options.Wanted = DEFAULT_NAME,
    replicas: Replicas = None,
    target_qps: TargetQps = None,
    spot: Spot = False,
    infra: options.Infra = None,
    gpus: options.Gpus = None,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    env: options.Env = None,
    file: options.ServiceFile = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
) -> None:
    """Bring a service up, and wait until it answers. It makes a key, or takes PIXTRAL_API_KEY.

    \b
    Examples:
      pixtral-sky serve up
      pixtral-sky serve up --replicas 2..8 --target-qps 2 --spot
      pixtral-sky serve up --file examples/scale-to-zero.yaml
    """
    from pixtral_sky.deploy import serve, task
    from pixtral_sky.deploy.bring_up import Wanted

    started = time.monotonic()
    wanted = Wanted(name, infra, gpus, spot, False, max_price, replicas, target_qps)
    the_task = common.load(file or task.shipped("service.yaml"), env, precision)
    plan = serve.plan(the_task, wanted)
    serve.check_new(plan)
    _show_new(plan)
    if dry_run:
        output.say("Nothing was brought up. Without --dry-run, it is.")
        return
    common.confirm(f"Bring up {name}?", yes)
    url = _brought_up(plan)
    if plan.fewest:
        output.say(f"\n{name} answers, {common.minutes(time.monotonic() - started)} after you asked for it:")
    else:
        output.say(f"\n{name} has no replica while nobody asks; the first request calls one, and gets 503:")
    output.data(url)
    with contextlib.suppress(PixtralSkyError):  # it answers, and that is what was asked for
        output.say(serve.cost(name))
    common.say_next(name, service=True)


@app.command(cls=commands.Command)
def update(
    name: options.Wanted = DEFAULT_NAME,
    replicas: Replicas = None,
    target_qps: TargetQps = None,
    spot: Spot = False,
    infra: options.Infra = None,
    gpus: options.Gpus = None,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    env: options.Env = None,
    file: options.ServiceFile = None,
    blue_green: BlueGreen = False,
    yes: options.Yes = False,
) -> None:
    """Update a service, and wait until all of it is new.

    It keeps the key, unless PIXTRAL_API_KEY is another one. If the machines change, the replicas are replaced
    one after the other, and requests go to old and new ones meanwhile. Answers that an old one still streams
    when it is retired break off.
    """
    from pixtral_sky.deploy import serve, task
    from pixtral_sky.deploy.bring_up import Wanted

    wanted = Wanted(name, infra, gpus, spot, False, max_price, replicas, target_qps)
    the_task = common.load(file or task.shipped("service.yaml"), env, precision)
    plan = serve.plan(the_task, wanted)
    serve.check_update(plan)
    common.say_choice(plan)
    for line in serve.changes(plan, blue_green):
        output.say(line)
    if warning := serve.change_of_key(plan, blue_green):
        output.warn(warning)
    common.confirm(f"Update {name}?", yes)
    started = time.monotonic()
    with common.accounted(name, "serve ", lambda: ""):
        service, version = serve.update(plan, blue_green)
        output.done("the new version is known", time.monotonic() - started)
        output.phases(serve.follow_update(plan, service, version))
        serve.check_costs(plan)
    output.say(f"{name} serves version {version} only, after {common.minutes(time.monotonic() - started)}.")


@app.command(cls=commands.Command)
def status(name: options.Only = None, as_json: options.Json = False) -> None:
    """Show services, their replicas, and their controller. Exit code 0 only when all of them answer.

    Each service with a ready replica is sent one request, which SkyServe's autoscaler counts like any other.
    """
    from pixtral_sky.deploy import services

    documents, controller = services.documents(name)
    if as_json:
        output.document({"services": documents, "controller": controller})
    elif not documents:
        output.say("No service runs. Bring one up: pixtral-sky serve up")
    else:
        for each in documents:
            _show(each)
        if controller:
            hourly = controller.pop("hourly")
            price = "no price is known" if hourly is None else f"${hourly:.2f} an hour"
            output.data("controller {name}: {status}, {infra}, {price}".format(**controller, price=price))
    if not all(document["answers"] for document in documents) or not documents:
        raise typer.Exit(1)


@app.command(cls=commands.Command)
def down(name: Name = DEFAULT_NAME) -> None:
    """Take a service down: replicas, balancer and controller.

    The controller stays while another service needs it."""
    from pixtral_sky.deploy import backend, services

    if not (said := backend.take_down(name, [services])):
        raise services.nothing(name)
    output.say(said)
    with contextlib.suppress(SkyError):  # what was asked for is done
        if machine := services.controller():
            output.warn(services.leftover(machine))


@app.command(cls=commands.Command)
def logs(
    name: Name = DEFAULT_NAME,
    replica: Annotated[
        int | None, typer.Option("--replica", "-r", help="Of this replica; without it, of the controller.")
    ] = None,
    balancer: Annotated[bool, typer.Option("--balancer", help="Of the balancer.")] = False,
    follow: options.Follow = False,
    lines: options.Lines = 0,
) -> None:
    """Show what a replica, the controller or the balancer says."""
    from pixtral_sky.deploy import services

    services.logs(name, follow=follow, lines=lines, replica=replica, balancer=balancer)


def _show_new(plan: Plan) -> None:
    from pixtral_sky.deploy import launch

    common.say_choice(plan)
    launch.show_candidates(plan.task)
    low, high = plan.fewest, plan.most
    this = "" if plan.service.name == DEFAULT_NAME else f" {plan.service.name}"
    output.say(
        f"{low if low == high else f'{low} to {high}'} such replicas, and a controller without a GPU. "
        f"They cost money until: pixtral-sky serve down{this}"
    )


def _brought_up(plan: Plan) -> str:
    """Bring it up, and return its URL when it answers."""
    from pixtral_sky.deploy import serve, store

    name, then = plan.service.name, time.monotonic()
    with common.accounted(name, "serve ", lambda: serve.left(plan)):
        service = serve.up(plan)
        output.done("controller and balancer", time.monotonic() - then)
        output.phases(serve.follow(service))
        serve.keep_to_price(plan)
    known = store.recall(name)
    return known.url if known else service.url


def _show(document: dict[str, Any]) -> None:
    target = "" if document["target"] is None else f" of {document['target']}"
    words = [
        document["name"],
        document["state"],
        document["endpoint"] or "no endpoint yet",
        f"{document['ready']}{target} ready",
        "" if document["qps"] is None else f"{document['qps']:.1f} queries/s",
        "" if document["hourly"] is None else f"${document['hourly']:.2f} an hour",
        "answers" if document["answers"] else f"does not answer: {document['problem']}",
    ]
    output.data("  ".join(filter(None, words)))
    if document["policy"]:
        output.data(f"  {document['policy']}")
    now = time.time()
    rows = [
        (
            each["number"],
            each["status"],
            each["infra"] or "-",
            " ".join(filter(None, (each["gpus"], each["machine"]))) or "-",
            "yes" if each["spot"] else "no",
            common.age(now - each["launched"] if each["launched"] else None),
            each["version"],
            each["hourly"],
            each["problem"] or "-",
        )
        for each in document["replicas"]
    ]
    if rows:
        head = ("REPLICA", "STATE", "INFRA", "RESOURCES", "SPOT", "AGE", "VERSION", "$/H", "WHY")
        common.table(head, rows, indent="  ")
