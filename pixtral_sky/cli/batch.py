"""pixtral-sky batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, pictures, globs, PDFs, or JSON lines (our own, or OpenAI's batch format).",
            metavar="INPUT...",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the answers go: a JSON line each.")
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="What to ask about each picture.", show_default=False)
    ] = "",
    system: options.System = "",
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema; the answers are JSON that fits it.")
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="At the end, write the answers to a CSV file beside: by --schema.")
    ] = False,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    per_request: Annotated[int, typer.Option(min=1, metavar="K", help="Pictures in one request.")] = 1,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Do the first N of what is left.", show_default=False),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Do the share I of N; together they are all.", show_default=False),
    ] = "1/1",
    concurrency: Annotated[
        str, typer.Option(metavar="N|auto", help="Requests at once. auto: as many as make it faster.")
    ] = "auto",
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where failures go, with reasons. [default: OUT.errors.jsonl]"),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask what failed again; the file of it is set aside.")
    ] = False,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Go on with FILE though the options are others, or begin anew, with FILE set aside.",
            show_default=False,
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Of the endpoint, to show the cost.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Ask about many pictures. Whatever ends it, the same command goes on with the rest.

    \b
    Examples:
      pixtral-sky batch photos/ -o out.jsonl -p "What is in this picture?"
      pixtral-sky batch 'scans/*.pdf' -o out.jsonl --schema receipt.json --csv
      pixtral-sky batch requests.jsonl -o out.jsonl
      pixtral-sky batch list.jsonl -o part2.jsonl --shard 2/8
    """
    from pixtral_sky.batch import csv_export, items, runner
    from pixtral_sky.batch.concurrency import MOST
    from pixtral_sky.batch.journal import Ledger, Paths
    from pixtral_sky.cli.progress import Progress
    from pixtral_sky.client import messages
    from pixtral_sky.client.client import Client
    from pixtral_sky.deploy.resolve import find
    from pixtral_sky.errors import PixtralSkyError, UsageError
    from pixtral_sky.pictures.source import DEFAULT_QUESTION

    stem = out.with_name(out.name.removesuffix(".jsonl"))
    paths = Paths(out, errors or Path(f"{stem}.errors.jsonl"))
    csv = Path(f"{stem}.csv") if as_csv else None
    if paths.errors.absolute() == out.absolute():
        raise UsageError("The answers and the failures cannot go to one file.", "Name another: --errors FILE")
    if concurrency != "auto" and not (concurrency.isdecimal() and 1 <= int(concurrency) <= MOST):
        raise UsageError(f"--concurrency takes auto, or a number from 1 to {MOST}.")
    share = runner.shard(shard)
    wanted = messages.Schema(schema) if schema else None
    if csv:
        if not wanted or items.is_openai(inputs):
            raise UsageError("--csv makes columns of the properties in --schema.", "Give both, or neither.")
        next(csv_export.csv_rows(out, wanted.schema))  # the header: what is wrong with the schema is said now
    defaults = items.Defaults(
        prompt or DEFAULT_QUESTION,
        system,
        max_tokens,
        temperature,
        wanted.response_format if wanted else None,
    )
    items.walk(inputs, per_request=per_request)  # an input that leads to nothing is said now

    with Client(find(url, api_key, name), notify=output.say) as client:
        endpoint = client.learn()
    job = runner.Job(
        lambda: items.walk(inputs, per_request=per_request),
        defaults,
        wanted,
        limit,
        share,
        None if concurrency == "auto" else int(concurrency),
        endpoint.max_model_len,
        is_read_once="-" in inputs,
    )
    made_by = {
        "--prompt": defaults.prompt,
        "--system": system,
        "--schema": wanted.schema if wanted else None,
        "--max-tokens": max_tokens,
        "--temperature": temperature,
        "--per-request": per_request,
        "the model": endpoint.model,
    }
    stopped: PixtralSkyError | None = None
    ways = {"resume": resume is True, "fresh": resume is False, "retry_errors": retry_errors}
    with Ledger(paths, made_by, **ways) as ledger:
        for notice in ledger.notices:
            output.say(notice)
        if ledger.done_before or ledger.failed_before:
            output.say(f"Before this: {ledger.done_before:,} done, {ledger.failed_before:,} failed.")
        run = runner.Batch(job, ledger)
        progress = Progress(run.tally, price_per_hour)
        try:
            with (
                Client(
                    endpoint, budget=runner.PATIENCE_SECONDS, connections=MOST, notify=run.trouble
                ) as client,
                progress.shown() as show,
            ):
                run.run(client, show)
        except PixtralSkyError as error:
            stopped = error

    tally = run.tally
    failed = ledger.failed_before + tally.failed
    complete = not (stopped or tally.stopped_by)
    if csv and wanted and complete:
        csv_export.write_csv(out, wanted.schema, csv)
    progress.say_the_end()
    if as_json:
        found = {"done_before": ledger.done_before, "failed_before": ledger.failed_before}
        files = {
            "out": str(out),
            "errors": str(paths.errors) if failed else None,
            "csv": str(csv) if csv else None,
        }
        output.data(json.dumps({"complete": complete, **progress.summary(), **found, **files}))
    going_on = f"The same command{' without --fresh' if resume is False else ''} goes on."
    if stopped:
        hint = stopped.hint if "same command" in stopped.hint else f"{stopped.hint} {going_on}".strip()
        raise PixtralSkyError(f"{stopped.what} {tally.done:,} are done in this run.", hint) from stopped
    if tally.stopped_by:
        output.say(f"Stopped: {tally.done:,} are done in this run. {going_on}")
        raise typer.Exit(128 + tally.stopped_by)
    if failed:
        raise PixtralSkyError(
            f"{failed:,} failed: {paths.errors} says why.", "To ask them again: --retry-errors"
        )
