"""pixtral-sky rehearse."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import common, options
from pixtral_sky.deploy.store import DEFAULT_NAME, PORT

if TYPE_CHECKING:
    from pixtral_sky.client.endpoint import Endpoint
    from pixtral_sky.deploy.task import Task

QUESTION = ("Describe this chart in detail please.", "And what does this receipt add up to?")
ANSWER_TOKENS = 48


def rehearse(
    file: options.TaskFile = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running, for ask, endpoint and status.")
    ] = False,
    name: options.Wanted = DEFAULT_NAME,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="Of the endpoint.", show_default=f"{PORT}, else a free one"
        ),
    ] = None,
) -> None:
    """Run the script of pixtral.yaml here: no GPU, no cost.

    The real vLLM of the same version serves a tiny Pixtral with random weights. The first time, the
    engine is made (about 2.5 GB).

    \b
    Examples:
      pixtral-sky rehearse
      pixtral-sky rehearse --keep && pixtral-sky ask "What is this?" photo.jpg
    """
    from pixtral_sky.deploy import store, task
    from pixtral_sky.rehearsal import process

    # kill and a closing terminal count as a Ctrl-C, so that the server is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)

    # Everything is checked before the engine is made, which takes minutes.
    store.check_name(name)
    the_task = task.load(file)
    the_task.check({})
    end = task.end(the_task.envs)
    with process.starting(name):
        task.limits(the_task.envs)
        store.free_port(port)
    output.say(f"Rehearsing {the_task.path} with vLLM {the_task.vllm_version}")
    venv, model = _engine(the_task.vllm_version)
    _run(the_task, venv, model, name, port, keep)
    if keep:
        output.say(f"It is left running: it {end}.")
        common.say_next(name)


def _engine(version: str) -> tuple[Path, Path]:
    """The virtual environment of the engine, and the checkpoint that it serves."""
    from pixtral_sky.rehearsal import checkpoint, engine

    started = time.monotonic()
    venv = engine.ensure(version)
    output.done("engine", time.monotonic() - started)
    with output.phase("checkpoint: tiny, random, real tokenizer"):
        return venv, checkpoint.tiny(venv)


def _run(the_task: Task, venv: Path, model: Path, name: str, port: int | None, keep: bool) -> None:
    """Start the server, ask it, and stop it unless it is kept."""
    from pixtral_sky.deploy import rehearsals, store
    from pixtral_sky.deploy.resolve import endpoint_of
    from pixtral_sky.rehearsal import process

    started = time.monotonic()
    with process.starting(name):  # again: making the engine may have taken minutes
        deployment = process.start(the_task, venv, model, name, store.free_port(port))
    keeping = False
    try:
        with output.phase("starting its script"):
            process.wait_until_ready(deployment)
        output.say(f"Ready in {time.monotonic() - started:.0f} s at {deployment.url}, behind the gateway.\n")
        _ask_about_two_pictures(endpoint_of(deployment))
        keeping = keep
    finally:
        if not keeping:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stop
            with output.phase("stopping"):
                rehearsals.stop(deployment)


def _ask_about_two_pictures(target: Endpoint) -> None:
    from pixtral_sky.client.client import Client
    from pixtral_sky.deploy import task
    from pixtral_sky.pictures.prepare import prepare
    from pixtral_sky.text import printable

    chart, receipt = (
        prepare(task.shipped(f"examples/{name}").read_bytes(), name) for name in ("chart.png", "receipt.jpg")
    )
    output.say(
        "The weights are random, so the words are noise. Real are: the script, vLLM and its flags, the\n"
        "gateway and its key, the tokenizer, the pictures' way into the prompt, the token counts,\n"
        "the streaming.\n"
    )
    for question, picture in zip(QUESTION, (chart, receipt), strict=True):
        output.say(f"  {question} [{picture.name}, {picture.tokens:,} tokens]")
    output.say()
    with Client(target) as client:
        answer = client.ask([QUESTION[0], chart, QUESTION[1], receipt], max_tokens=ANSWER_TOKENS)
        chunks = 0
        for delta in answer:
            output.data(printable(delta) if sys.stdout.isatty() else delta, end="")
            chunks += 1
        output.data("")
    prompt, words = answer.usage.get("prompt_tokens", 0), answer.usage.get("completion_tokens", 0)
    output.say(f"\n  {prompt:,} tokens in the prompt, {words} in the answer, in {chunks} chunks")
