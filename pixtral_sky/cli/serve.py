"""pixtral-sky serve: replicas behind one balancer."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options
from pixtral_sky.deploy.store import DEFAULT_NAME

if TYPE_CHECKING:
    from pixtral_sky.deploy.services import Plan, Replica, ServiceRecord
    from pixtral_sky.deploy.store import Service

app = typer.Typer(
    help="Replicas of Pixtral behind one endpoint, with SkyServe.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="The service.")]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="N..M", help="From so many to so many; 3: always three. Without it, as in the file."
    ),
]
TargetQps = Annotated[
    float | None,
    typer.Option(metavar="X", help="Queries per second that one replica gets before there are more."),
]
Spot = Annotated[
    bool, typer.Option("--spot", help="On spare machines, and on ordinary ones as long as those are missing.")
]
Infra = Annotated[
    str | None, typer.Option(help="Where: aws, gcp/us-central1, k8s. Without it, as in the file.")
]
Env = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="An env of the file; again for more.")
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", help="The service file; without it the shipped service.yaml.")
]


@app.command()
def up(
    name: options.Wanted = DEFAULT_NAME,
    replicas: Replicas = None,
    target_qps: TargetQps = None,
    spot: Spot = False,
    infra: Infra = None,
    gpus: options.Gpus = None,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    env: Env = None,
    file: File = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and bring nothing up.")
    ] = False,
    yes: options.Yes = False,
) -> None:
    """Bring a service up, and wait until it answers. It makes a key, or takes PIXTRAL_API_KEY.

    \b
    Examples:
      pixtral-sky serve up
      pixtral-sky serve up --replicas 2..8 --target-qps 2 --spot
      pixtral-sky serve up --file examples/scale-to-zero.yaml
    """
    from pixtral_sky.deploy import clusters, services, store
    from pixtral_sky.errors import PixtralSkyError, UsageError

    started = time.monotonic()
    plan = _plan(name, replicas, target_qps, spot, infra, gpus, precision, max_price, env, file)
    this = "" if name == DEFAULT_NAME else f" {name}"
    if plan.running:
        ended = plan.running.status in services.ENDED
        raise UsageError(
            f"The service {name!r} is there already ({plan.running.status}).",
            f"Take it down first: pixtral-sky serve down{this}"
            if ended
            else f"To change it: pixtral-sky serve update{this and f' --name {name}'}",
        )
    if plan.before and clusters.is_launching(plan.before.request):
        raise UsageError(
            f"The service {name!r} is being brought up already.", f"Stop that: pixtral-sky serve down{this}"
        )
    _say_choice(plan)
    clusters.show_candidates(plan.task)
    policy = plan.task.service
    low, high = policy.min_replicas, policy.max_replicas or policy.min_replicas
    output.say(
        f"{low if low == high else f'{low} to {high}'} such replicas, and a controller without a GPU. "
        f"They cost money until: pixtral-sky serve down{this}"
    )
    if dry_run:
        output.say("Nothing was brought up. Without --dry-run, it is.")
        return
    common.confirm(f"Bring up {name}?", yes)
    then = time.monotonic()
    try:
        service = services.up(plan)
        output.done("controller and balancer", time.monotonic() - then)
        output.phases(services.follow(service))
        services.keep_to_price(plan)
    except KeyboardInterrupt:
        output.warn(_goes_on(name))
        raise
    except PixtralSkyError as error:
        raise type(error)(f"{error.what} {_left(plan)}", error.hint) from error
    if low:
        output.say(f"\n{name} answers, {common.minutes(time.monotonic() - started)} after you asked for it:")
    else:
        output.say(f"\n{name} has no replica while nobody asks; the first request calls one, and gets 503:")
    known = store.recall(name)
    output.data(known.url if known else service.url)
    with contextlib.suppress(PixtralSkyError):  # it answers, and that is what was asked for
        output.say(_cost(name))
    if os.environ.get("PIXTRAL_ENDPOINT"):
        output.warn("PIXTRAL_ENDPOINT is set here, and `ask` goes there: unset it, or give -n.")
    commands = (f"serve status{this}", f"ask{this and f' -n {name}'} picture.jpg", f"serve down{this}")
    output.say("Next:  " + "   |   ".join(f"pixtral-sky {command}" for command in commands))


@app.command()
def update(
    name: options.Wanted = DEFAULT_NAME,
    replicas: Replicas = None,
    target_qps: TargetQps = None,
    spot: Spot = False,
    infra: Infra = None,
    gpus: options.Gpus = None,
    precision: options.Precision = None,
    max_price: options.MaxPrice = None,
    env: Env = None,
    file: File = None,
    blue_green: Annotated[
        bool,
        typer.Option(
            "--blue-green", help="Switch over when all new replicas are ready: for a while, twice the cost."
        ),
    ] = False,
    yes: options.Yes = False,
) -> None:
    """Have a service be as the file and the options say, and wait until all that serves is so.

    It keeps the key, unless PIXTRAL_API_KEY is another one. Where machines change, each is replaced: one
    after the other, and requests go to old and new ones meanwhile. Answers that an old one still streams when
    it is retired break off.
    """
    from pixtral_sky.deploy import services
    from pixtral_sky.deploy.resolve import key_of_environment
    from pixtral_sky.errors import SkyError, UsageError

    plan = _plan(name, replicas, target_qps, spot, infra, gpus, precision, max_price, env, file)
    this = "" if name == DEFAULT_NAME else f" --name {name}"
    if not plan.running:
        raise UsageError(f"There is no service {name!r}.", f"Bring it up: pixtral-sky serve up{this}")
    if plan.running.status in services.ENDED:
        raise SkyError(
            f"The service {name!r} is {plan.running.status}, and takes no update.",
            f"Take it down first: pixtral-sky serve down {name}",
        )
    old_key = plan.before.key if plan.before else ""
    if not old_key and not key_of_environment():
        raise UsageError(
            f"The key of {name!r} is not known here.", "Its own, or another: export PIXTRAL_API_KEY=..."
        )
    _say_choice(plan)
    _say_changes(plan, blue_green, old_key)
    common.confirm(f"Update {name}?", yes)
    then = time.monotonic()
    try:
        service, version = services.update(plan, blue_green)
        output.done("the new version is known", time.monotonic() - then)
        output.phases(services.follow(service, version))
        services.check_price(plan)
    except KeyboardInterrupt:
        output.warn(_goes_on(name))
        raise
    except services.GivenUp as error:
        services.keep(plan)
        raise services.GivenUp(f"{error.what} What ran before goes on, with its key.", error.hint) from error
    output.say(f"{name} serves version {version} only, after {common.minutes(time.monotonic() - then)}.")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Only this one.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show services, their replicas, and their controller. Exit code 0 only when all of them answer.

    To SkyServe's autoscaler, the look is a query like others, where a replica is ready to answer it.
    """
    from pixtral_sky.deploy import clusters, services, skypilot, store
    from pixtral_sky.errors import NoEndpoint, SkyError

    known = None
    if name:
        store.check_name(name)
        known = store.recall(name)
    found = services.records([name] if name else None) if skypilot.was_used() else []
    if name and not found:
        if isinstance(known, store.Service):
            if clusters.is_launching(known.request):
                raise SkyError(f"{name!r} is being brought up.", f"Stop that: pixtral-sky serve down {name}")
            raise SkyError(f"SkyServe has {name!r} no longer.", f"Forget it: pixtral-sky serve down {name}")
        raise NoEndpoint(f"There is no service named {name!r}.", "What there is: pixtral-sky serve status")
    found = services.priced([each for each in found if services.is_ours(each)])
    if name and not found:
        raise NoEndpoint(
            f"The service {name!r} at SkyServe is none of this project.", f"sky serve status {name}"
        )
    documents = [_document(each) for each in found]
    controller = services.controller() if found else None
    if as_json:
        document = {"services": documents, "controller": vars(controller) if controller else None}
        output.data(json.dumps(document, indent=1))
    elif not found:
        output.say("No service runs. Bring one up: pixtral-sky serve up")
    else:
        for each in documents:
            _show(each)
        if controller:
            price = "no price is known" if controller.hourly is None else f"${controller.hourly:.2f} an hour"
            output.data(f"controller {controller.name}: {controller.status}, {controller.infra}, {price}")
    if not all(document["answers"] for document in documents) or not documents:
        raise typer.Exit(1)


@app.command()
def down(name: Name = DEFAULT_NAME) -> None:
    """Take a service down: replicas, balancer, and the controller when no other service needs it."""
    from pixtral_sky.errors import NoEndpoint, SkyError

    if not take_down(name):
        raise NoEndpoint(f"There is no service named {name!r}.", "What there is: pixtral-sky serve status")
    with contextlib.suppress(SkyError):  # what was asked for is done
        name_controller()


def take_down(name: str) -> bool:
    """Whether there was one."""
    from pixtral_sky.deploy import services, skypilot, store
    from pixtral_sky.errors import UsageError

    store.check_name(name)
    one = store.recall(name)
    service = one if isinstance(one, store.Service) else None
    if not service:
        found = services.records([name]) if skypilot.was_used() else []
        if not found:
            return False
        if not found[0].ours:
            raise UsageError(f"{name!r} is a service with something else on it.", f"sky serve down {name}")
    with output.phase(f"taking {name} down"):
        was_there = services.down(name, service.request if service else "")
    if service:
        store.forget(name)
    if was_there:
        output.say(f"{name} is down: SkyPilot has no replica of it left.")
    else:
        output.say(f"{name} was gone already; it is forgotten.")
    return True


def name_controller() -> None:
    """Say what SkyServe's controller costs, where one is left, and for what it is."""
    from pixtral_sky.deploy import services, skypilot
    from pixtral_sky.errors import SkyError

    if not skypilot.was_used() or not (controller := services.controller()):
        return
    price = f", ${controller.hourly:.2f} an hour" if controller.hourly else ""
    others = ""
    with contextlib.suppress(SkyError):  # it costs money also where it cannot be asked
        others = ", ".join(each.name for each in services.records())
    if others:
        output.warn(f"SkyPilot's {controller.name} stays {controller.status}{price}, for: {others}.")
    else:
        output.warn(
            f"SkyPilot's {controller.name} is still {controller.status}{price}. "
            f"End it: sky down {controller.name}"
        )


@app.command()
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
    from pixtral_sky.deploy import services, skypilot, store
    from pixtral_sky.errors import NoEndpoint

    store.check_name(name)
    if not skypilot.was_used():
        raise NoEndpoint(f"There is no service named {name!r}.", "Bring one up: pixtral-sky serve up")
    services.logs(name, replica=replica, balancer=balancer, follow=follow, lines=lines)


def _plan(
    name: str,
    replicas: str | None,
    target_qps: float | None,
    spot: bool,
    infra: str | None,
    gpus: str | None,
    precision: str | None,
    max_price: float | None,
    env: list[str] | None,
    file: Path | None,
) -> Plan:
    from pixtral_sky.deploy import candidates, huggingface, services, skypilot, store, task
    from pixtral_sky.deploy import replica_policy as service

    store.check_name(name)
    common.check_price(max_price)
    file = file or task.shipped("service.yaml")
    config, envs = task.read(file), common.envs(env or [], precision)
    task.load(file).check(envs)
    config["envs"] = {**(config.get("envs") or {}), **envs}
    key, token = common.key(name), huggingface.token()
    section = config.get("service")
    if isinstance(section, dict) and (replicas or target_qps is not None or spot):
        given: Any = section.get("replica_policy") or {"min_replicas": section.get("replicas", 1)}
        if isinstance(given, dict):
            low: Any = given.get("min_replicas", 1)
            high: Any = given.get("max_replicas", low)
            if replicas:
                low, high = service.replicas(replicas)
            target = given.get("target_qps_per_replica") if target_qps is None else target_qps
            config = service.scaled(config, service.policy(low, high, target, spot))
    warnings = service.check(config, key)
    skypilot.check_installed()
    candidates.check_infra(infra)
    warnings += candidates.check_gpus(gpus, config, config["envs"], infra)
    with output.phase("SkyPilot's view"):
        plan = services.prepare(
            name,
            config,
            key=key,
            token=token,
            infra=infra,
            gpus=gpus,
            spot=spot or None,
            max_price=max_price,
        )
    for warning in filter(None, [*warnings, common.check_licence(config["envs"], token)]):
        output.warn(warning)
    return plan


def _say_choice(plan: Plan) -> None:
    common.say_choice(plan)
    if plan.max_price is not None:
        output.say("That is for each replica; the controller is not in it.")


def _say_changes(plan: Plan, blue_green: bool, old_key: str) -> None:
    assert plan.running
    before, after = plan.running.policy, plan.task.service.autoscaling_policy_str()
    if before != after:
        output.say(f"{before} becomes: {after}.")
    number = sum(each.live for each in plan.running.replicas)
    if not plan.replaces:
        output.say("The machines stay as they are: none is replaced.")
    elif blue_green:
        output.say(f"All are replaced ({number} now), at once, when enough new ones are ready.")
    else:
        output.say(f"All are replaced ({number} now), one after the other.")
    if old_key and old_key != plan.service.key:
        output.warn(
            "It gets another key"
            + (
                ", the moment the new replicas take over."
                if blue_green
                else ". Until all are replaced, each replica takes one of both keys only, and a request may"
                " reach any: --blue-green changes it in one moment."
            )
        )


def _document(record: ServiceRecord) -> dict[str, Any]:
    from concurrent.futures import ThreadPoolExecutor

    from pixtral_sky.deploy import services
    from pixtral_sky.deploy.resolve import key_of_environment
    from pixtral_sky.errors import PixtralSkyError

    service: Service | None = None
    try:
        service = services.remembered(record, key_of_environment())
        problem = services.problem(service, record)
    except PixtralSkyError as error:  # the others are shown all the same
        problem = str(error)

    def why(replica: Replica) -> str:
        if replica.failed:
            return f"pixtral-sky serve logs {record.name} --replica {replica.number}"
        return services.problem_of(replica, service.key if service else "")

    # Each may take 10 s to say nothing.
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(why, record.replicas))
    return {
        "name": record.name,
        "status": record.status,
        "state": record.state,
        "endpoint": service.url if service else record.url,
        "answers": not problem,
        "problem": problem,
        "ready": record.ready,
        "target": record.target,
        "policy": record.policy,
        "qps": services.qps(record.name),
        "version": record.version,
        "versions": list(record.versions),
        "uptime": record.uptime,
        "hourly": record.hourly,
        "replicas": [
            {**vars(each), "problem": problem}
            for each, problem in zip(record.replicas, problems, strict=True)
        ],
    }


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
            str(each["number"]),
            each["status"],
            each["infra"] or "-",
            " ".join(filter(None, (each["gpus"], each["machine"]))) or "-",
            "yes" if each["spot"] else "no",
            common.age(now - each["launched"] if each["launched"] else None),
            str(each["version"]),
            "-" if each["hourly"] is None else f"{each['hourly']:.2f}",
            each["problem"] or "-",
        )
        for each in document["replicas"]
    ]
    if rows:
        head = ("REPLICA", "STATE", "INFRA", "RESOURCES", "SPOT", "AGE", "VERSION", "$/H", "WHY")
        common.table(head, rows, indent="  ")


def _cost(name: str) -> str:
    """What a service that is up costs."""
    from pixtral_sky.deploy import services

    (record,) = services.priced(services.records([name]))
    controller = services.controller()
    known = [record.hourly, controller.hourly if controller else None]
    cost = "what SkyPilot does not know" if None in known else f"${sum(filter(None, known)):.2f} an hour"
    machines = sum(each.launched is not None for each in record.replicas)
    return f"Its controller and {machines} replica{'s' * (machines != 1)} cost {cost} now."


def _goes_on(name: str) -> str:
    return (
        f"{name} goes on without this command, and may cost money. "
        f"Look: pixtral-sky serve status {name}   Stop it: pixtral-sky serve down {name}"
    )


def _left(plan: Plan) -> str:
    """What a bringing up that failed has left behind."""
    from pixtral_sky.deploy import clusters, services, store
    from pixtral_sky.errors import PixtralSkyError

    name = plan.service.name
    known = store.recall(name)
    try:
        there = bool(services.records([name]))
        controller = services.controller()
    except PixtralSkyError:
        return f"What is left of it: pixtral-sky serve status {name}."
    if there or (isinstance(known, store.Service) and clusters.is_launching(known.request)):
        return f"It may cost money until: pixtral-sky serve down {name}."
    services.keep(plan)
    if controller and not services.records():
        return f"Its controller may cost money until: sky down {controller.name}."
    return "Nothing of it is left that costs money."
