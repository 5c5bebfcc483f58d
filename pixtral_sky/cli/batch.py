"""pixtral-sky batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.errors import PixtralSkyError, UsageError
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION

if TYPE_CHECKING:
    from pixtral_sky.batch.journal import Ledger, Paths
    from pixtral_sky.batch.runner import Job, Tally
    from pixtral_sky.client.endpoint import Endpoint

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, pictures, globs, PDFs, or JSON lines (our own, or OpenAI's batch format; '-': stdin).",
        metavar="INPUT...",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="Where the answers go: a JSON line each.")
]
Prompt = Annotated[
    str,
    typer.Option(
        "--prompt",
        "-p",
        help="What to ask about each picture.",
        show_default=DEFAULT_QUESTION,
    ),
]
AsCsv = Annotated[
    bool, typer.Option("--csv", help="At the end, write a CSV file beside, with the columns of --schema.")
]
PerRequest = Annotated[int, typer.Option(min=1, metavar="K", help="Pictures in one request.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Do the first N of what is left.", show_default=False)
]
Shard = Annotated[
    str, typer.Option(metavar="I/N", help="Do share I of N; the N shares are everything.", show_default=False)
]
Concurrency = Annotated[
    str, typer.Option(metavar="N|auto", help="Requests at once. auto: as many as make it faster.")
]
Errors = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where failures go, with reasons.", show_default="OUT.errors.jsonl"),
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Ask again what failed, and set its file aside.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with FILE although options or inputs have changed.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set FILE aside, and begin anew.")]
PricePerHour = Annotated[
    float | None,
    typer.Option(min=0, metavar="USD", help="Of the endpoint, to show the cost.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def batch(
    inputs: Inputs,
    out: Out,
    prompt: Prompt = "",
    system: options.System = "",
    schema: options.Schema = None,
    as_csv: AsCsv = False,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    per_request: PerRequest = 1,
    limit: Limit = None,
    shard: Shard = "1/1",
    concurrency: Concurrency = "auto",
    errors: Errors = None,
    retry_errors: RetryErrors = False,
    resume: Resume = False,
    fresh: Fresh = False,
    price_per_hour: PricePerHour = None,
    as_json: AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Ask about many pictures. Whatever ends a run, the same command goes on with the rest.

    \b
    Examples:
      pixtral-sky batch photos/ -o out.jsonl -p "What is in this picture?"
      pixtral-sky batch 'scans/*.pdf' -o out.jsonl --schema receipt.json --csv
      pixtral-sky batch requests.jsonl -o out.jsonl
      pixtral-sky batch list.jsonl -o part2.jsonl --shard 2/8
    """
    from pixtral_sky.batch import runner, setup
    from pixtral_sky.batch.inputs import Walked
    from pixtral_sky.batch.items import Defaults
    from pixtral_sky.batch.walk import walk
    from pixtral_sky.client.schema import Schema
    from pixtral_sky.deploy.resolve import find

    if resume and fresh:
        raise UsageError("--resume goes on with what is there, and --fresh begins anew.", "Give one of them.")
    paths = setup.paths(out, errors)
    at_once, share = setup.concurrency(concurrency), runner.shard(shard)
    wanted = Schema(schema) if schema else None
    response_format = wanted.response_format if wanted else None
    defaults = Defaults(prompt or DEFAULT_QUESTION, system, max_tokens, temperature, response_format)
    csv = setup.table(out, inputs, wanted) if as_csv else None
    items = partial(walk, inputs, per_request=per_request, walked=(walked := Walked(inputs)))
    setup.check_targets(paths, inputs)
    setup.check_inputs(items(), walked)
    job = runner.Job(items, defaults, wanted, limit, share, at_once, walked=walked)
    mode = {"resume": resume, "fresh": fresh, "retry_errors": retry_errors}
    _run(job, per_request, paths, csv, mode, find(url, api_key, name), price_per_hour, as_json)


def _run(
    job: Job,
    per_request: int,
    paths: Paths,
    csv: Path | None,
    mode: dict[str, bool],
    endpoint: Endpoint,
    price: float | None,
    as_json: bool,
) -> None:
    from pixtral_sky.batch.concurrency import MOST
    from pixtral_sky.batch.csv_export import write_csv
    from pixtral_sky.batch.inputs import origin
    from pixtral_sky.batch.journal import Ledger
    from pixtral_sky.batch.runner import PATIENCE_SECONDS, Batch
    from pixtral_sky.batch.setup import record
    from pixtral_sky.cli.progress import Progress
    from pixtral_sky.client.client import Client
    from pixtral_sky.text import counted

    with Client(endpoint, notify=output.say) as client:
        endpoint = client.learn()
    job = replace(job, max_model_len=endpoint.max_model_len)
    stopped = None
    inputs = map(origin, job.walked.arguments)
    with Ledger(paths, record(job, per_request, endpoint.model), inputs=inputs, **mode) as ledger:
        _say_what_was(ledger)
        run = Batch(job, ledger)
        progress = Progress(run.tally, price)
        client = Client(endpoint, budget=PATIENCE_SECONDS, again=0, connections=MOST, **run.hooks)
        try:
            with client, progress.shown() as show:
                run.run(client, show)
        except PixtralSkyError as error:
            stopped = error
    complete = not (stopped or run.tally.stopped_by)
    if csv and job.schema and complete:
        rows, empty = write_csv(paths.out, job.schema.schema, csv)
        if empty:
            output.warn(
                f"{csv}: {empty:,} of {counted(rows, 'row')} have an id only, "
                "as the answer is not of --schema."
            )
    progress.say_the_end()
    if skipped := job.walked.said_skipped():
        output.say(skipped)
    failed = ledger.failed_before + run.tally.failed
    if as_json:
        before = {"done_before": ledger.done_before, "failed_before": ledger.failed_before}
        counts = {"complete": complete, **progress.summary(), **before, "skipped": job.walked.skipped}
        files = {"out": paths.out, "errors": paths.errors if failed else None, "csv": csv}
        output.document({**counts, **{name: path and str(path) for name, path in files.items()}}, indent=None)
    resume = f"The same command{' without --fresh' if mode['fresh'] else ''} goes on."
    in_all = f", {ledger.done_before + run.tally.done:,} in all" if ledger.done_before else ""
    done = f"{run.tally.done:,} done in this run{in_all}."
    _end(run.tally, stopped, failed, paths.errors, done, resume)
    job.walked.check()


def _say_what_was(ledger: Ledger) -> None:
    for notice in ledger.notices:
        output.say(notice)
    if ledger.done_before or ledger.failed_before:
        output.say(f"Before this: {ledger.done_before:,} done, {ledger.failed_before:,} failed.")


def _end(
    tally: Tally, stopped: PixtralSkyError | None, failed: int, errors: Path, counts: str, resume: str
) -> None:
    """Raise what stopped the run, the exit code of a signal, or an error for failures."""
    if stopped:
        hint = stopped.hint if "same command" in stopped.hint else f"{stopped.hint} {resume}".strip()
        raise PixtralSkyError(f"{stopped.what} {counts}", hint) from stopped
    if tally.stopped_by:
        output.say(f"Stopped: {counts} {resume}")
        raise typer.Exit(128 + tally.stopped_by)
    if failed == tally.failed == 1:
        raise PixtralSkyError(
            f"1 failed: {tally.failure}",
            f"When that is mended: --retry-errors. The reason is in {errors}, too.",
        )
    if failed:
        raise PixtralSkyError(
            f"{failed:,} failed: {errors} says why.",
            f"To ask {'it' if failed == 1 else 'them'} again: --retry-errors",
        )
