"""pixtral-sky ask."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.errors import SchemaError
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION

if TYPE_CHECKING:
    from pixtral_sky.client.answer import Answer
    from pixtral_sky.client.schema import Schema

Parts = Annotated[
    list[str] | None,
    typer.Argument(
        help="Words, and pictures: files, PDFs, globs, URLs, or '-' for standard input: a picture, or words.",
        show_default=f"with pictures alone: {DEFAULT_QUESTION}",
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="FILE",
        help="A picture, never words; repeat it for more. These come before all else.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")]
NoStream = Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")]
Usage = Annotated[bool, typer.Option("--usage", help="Say the tokens and seconds that it took.")]
RemoteUrls = Annotated[
    bool,
    typer.Option(
        "--remote-urls", help="Let the endpoint download http(s) pictures, from where its IMAGE_URLS says."
    ),
]


def ask(
    parts: Parts = None,
    images: Images = None,
    system: options.System = "",
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    schema: options.Schema = None,
    as_json: AsJson = False,
    no_stream: NoStream = False,
    usage: Usage = False,
    remote_urls: RemoteUrls = False,
    no_check: options.NoCheck = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Ask about pictures. Words and pictures are sent in the order given; the answer is printed as it comes.

    \b
    Examples:
      pixtral-sky ask "What is in this picture?" photo.jpg
      pixtral-sky ask "Compare this" a.png "with this" b.png
      pixtral-sky ask "Read this receipt" receipt.jpg --schema receipt.json
      pixtral-sky ask "Sum it up" paper.pdf#page=1 paper.pdf#page=2
      pixtral-sky ask -i photo.jpg - < question.txt
      PIXTRAL_API_KEY=... pixtral-sky ask --endpoint http://10.0.0.7:8081 "Hello"
    """
    from pixtral_sky.client import question
    from pixtral_sky.client.client import Client
    from pixtral_sky.client.schema import Schema
    from pixtral_sky.deploy.resolve import find
    from pixtral_sky.pictures.arguments import parse

    content = parse(parts or [], images or [], notify=output.say)
    wanted = Schema(schema) if schema else None
    with Client(find(url, api_key, name), notify=output.say) as client:
        answer = question.send(
            client,
            content,
            system=system,
            remote_urls=remote_urls,
            check=not no_check,
            max_tokens=max_tokens,
            notify=output.say,
            temperature=temperature,
            response_format=wanted and wanted.response_format,
        )
        _print(answer, wanted, max_tokens, as_json, no_stream)
    if usage:
        _say_usage(answer, streamed=not (as_json or no_stream))


def _print(answer: Answer, schema: Schema | None, max_tokens: int, as_json: bool, no_stream: bool) -> None:
    """Print the answer: as it comes, or whole where an option or a schema needs that."""
    if as_json:
        output.document(answer.whole(), indent=None)
    elif no_stream or schema:
        answer.whole()
    else:
        _show(answer)
    if schema:
        try:
            schema.check(answer.text, answer.finish_reason, max_tokens)
        except SchemaError as error:
            if not as_json:
                error.hint = error.hint or "The whole answer: the same with --json"
            raise
    if as_json:
        return
    if no_stream or schema:
        _show([answer.text])
    if answer.finish_reason == "length":
        output.warn(f"The answer was cut off at --max-tokens {max_tokens}.")


def _show(texts: Iterable[str]) -> None:
    """Print the texts as they come, and a newline after them unless they end in one."""
    from pixtral_sky.text import printable

    # A picture may make a model answer with control characters, which a terminal obeys.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    last = "\n"
    try:
        for text in texts:
            output.data(printable(text) if terminal else text, end="")
            last = text
    finally:
        if not last.endswith("\n"):
            output.data("")


def _say_usage(answer: Answer, streamed: bool) -> None:
    prompt, tokens = (answer.usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
    seconds, first = answer.seconds, answer.seconds_to_first if streamed else 0.0
    begin = f"the first after {first:.2f} s, " if first else ""
    # The first token waits for the pictures, so the rate is that of the others.
    rate = (tokens - 1) / (seconds - first) if first and seconds > first else tokens / seconds
    output.say(
        f"{prompt} tokens in the prompt, {tokens} in the answer: "
        f"{begin}all after {seconds:.2f} s, {rate:.1f} tokens/s"
    )
