"""pixtral-sky doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options


def doctor(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The deployment to look at.",
            show_default="PIXTRAL_ENDPOINT, else pixtral",
            autocompletion=options.deployments,
        ),
    ] = None,
    infra: Annotated[
        str | None,
        typer.Option(help="What a launch there needs: aws, gcp/us-central1, k8s, slurm/NAME."),
    ] = None,
    file: options.TaskFile = None,
    answers: Annotated[
        bool,
        typer.Option("--answers", help="Check what it answers instead: ten questions about drawn pictures."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check what a launch needs, and what runs.

    What runs has to answer, and only to those with the key. With --infra, SkyPilot checks its access to that
    place anew, and its quota and machines are looked up.

    Exit code 0 when nothing failed. With --answers: when seven or more of the ten are right.

    \b
    ok    it is well
    FAIL  it is not; what mends it is said
    ?     it could not be checked
    -     it is not there yet

    \b
    Examples:
      pixtral-sky doctor
      pixtral-sky doctor --infra aws/us-east-1
    """
    from dataclasses import asdict

    from pixtral_sky.deploy import store
    from pixtral_sky.doctor import checks
    from pixtral_sky.errors import UsageError

    if answers:
        if file or infra:
            raise UsageError(f"--answers asks what is running: leave out {'--file' if file else '--infra'}.")
        _check_answers(name, as_json)
        return
    if name is not None:
        store.check_name(name)
    found = []
    for check in checks.examine(name, file, infra):
        found.append(check)
        if not as_json:
            output.data(str(check))
    if as_json:
        output.document([asdict(check) for check in found])
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)


def _check_answers(name: str | None, as_json: bool) -> None:
    from pixtral_sky import __version__
    from pixtral_sky.client.client import Client
    from pixtral_sky.deploy import status, store
    from pixtral_sky.deploy.resolve import find
    from pixtral_sky.doctor import answers

    answered = []
    endpoint = find(name=name)
    if not endpoint.is_baseten:  # Baseten may have to start the model, which takes long
        status.reach(endpoint)  # fails at once where nothing answers; the client would retry
    with Client(endpoint, notify=output.say) as client:
        model = client.learn().model
        for each in answers.ask(client):
            answered.append(each)
            if not as_json:
                output.data(str(each))
    right = sum(each.right for each in answered)
    passes = right >= answers.ENOUGH
    if as_json:  # without times, so that two runs can be compared
        document = {"pixtral_sky": __version__, "model": model, "right": right, "passes": passes}
        output.document({**document, "answers": [each.document() for each in answered]})
    else:
        few = f"Fewer than {answers.ENOUGH}: it does not see, or its weights are damaged or random."
        if isinstance(store.recall(endpoint.origin), store.Rehearsal):
            few = "This is a rehearsal: its weights are random."
        output.data(f"{right} of {len(answered)} are right." + ("" if passes else f" {few}"))
    if not passes:
        raise typer.Exit(1)
