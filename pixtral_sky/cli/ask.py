"""pixtral-sky ask."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.errors import PictureError


def ask(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Words, and pictures: files, globs, URLs, or '-' for standard input.", show_default=False
        ),
    ] = None,
    system: options.System = "",
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema; the answer is JSON that fits it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is whole.")
    ] = False,
    usage: Annotated[bool, typer.Option("--usage", help="Say the tokens and seconds that it took.")] = False,
    remote_urls: Annotated[
        bool,
        typer.Option(
            "--remote-urls", help="Let the endpoint download http(s) pictures (see its ALLOWED_MEDIA_HOSTS)."
        ),
    ] = False,
    no_check: Annotated[
        bool,
        typer.Option("--no-check", help="Send it even if it is more than the endpoint is known to take."),
    ] = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Ask about pictures. Words and pictures go up in the order given, and the answer is printed as it comes.

    \b
    Examples:
      pixtral-sky ask "What is in this picture?" photo.jpg
      pixtral-sky ask "Compare this" a.png "with this" b.png
      pixtral-sky ask "Read this receipt" receipt.jpg --schema receipt.json
      pdftoppm -png -r 100 -singlefile paper.pdf | pixtral-sky ask "Sum it up" -
      PIXTRAL_API_KEY=... pixtral-sky ask --endpoint http://10.0.0.7:8081 "Hello"
    """
    from pixtral_sky.client import messages as asking
    from pixtral_sky.deploy.resolve import find
    from pixtral_sky.pictures import picture
    from pixtral_sky.pictures.source import Words, parse

    arguments = parse(parts or [])
    wanted = asking.Schema(schema) if schema else None
    endpoint = find(url, api_key, name)
    if not no_check:  # before any picture is downloaded or shrunk
        asking.check_pictures(endpoint, sum(not isinstance(part, Words) for part in arguments))
    content: list[str | picture.Picture | asking.RemoteUrl] = []
    for part in arguments:
        if isinstance(part, Words):
            content.append(part.text)
        elif remote_urls and picture.is_url(part.source):
            content.append(asking.RemoteUrl(part.source))
        else:
            content.append(picture.read(part.source, stdin=_stdin))

    from pixtral_sky.client.client import Client

    with Client(endpoint, notify=output.say) as client:
        if endpoint.max_model_len is None:
            endpoint = client.learn()
        if not no_check:
            asking.check_tokens(endpoint, content, max_tokens)
        messages = asking.messages(content, system)
        fields: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if wanted:
            fields["response_format"] = wanted.response_format

        if as_json or no_stream:
            asked = time.monotonic()
            response = client.complete(messages, **fields)
            seconds, first = time.monotonic() - asked, 0.0
            counts, choice = response.get("usage") or {}, response["choices"][0]
            text, finish_reason = choice["message"].get("content") or "", choice.get("finish_reason")
            if as_json:
                output.data(json.dumps(response))
        else:
            answer = client.ask(messages, **fields)
            if wanted:
                for _ in answer:
                    pass
            else:
                _show(answer)
            seconds, first, counts = answer.seconds, answer.seconds_to_first, answer.usage
            text, finish_reason = answer.text, answer.finish_reason

    if wanted:
        wanted.check(text, finish_reason, max_tokens)
    if not as_json and (wanted or no_stream):
        _show([text])
    if finish_reason == "length" and not as_json:
        output.warn(f"The answer was cut off at --max-tokens {max_tokens}.")
    if usage:
        _say_usage(counts, seconds, first)


def _stdin() -> bytes:
    if sys.stdin is None:  # closed by whoever started us
        raise PictureError("Standard input is closed, and '-' is the picture on it.")
    return sys.stdin.buffer.read()


def _show(pieces: Iterable[str]) -> None:
    """Print the pieces as they come, and a newline after them where none is."""
    from pixtral_sky.client.messages import printable

    # A model may be led to say what a terminal would take for a command.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # any character can come, whatever the locale has
    last = "\n"
    try:
        for piece in pieces:
            output.data(printable(piece) if terminal else piece, end="")
            last = piece
    finally:
        if not last.endswith("\n"):
            output.data("")


def _say_usage(counts: dict[str, Any], seconds: float, first: float) -> None:
    """``first`` is the seconds to the first token, or 0 when nobody knows."""
    prompt, answer = counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0
    begin = f"the first after {first:.2f} s, " if first else ""
    # The first token waits for the pictures: the rate is that of the others.
    rate = (answer - 1) / (seconds - first) if first and seconds > first else answer / seconds
    tokens = f"{prompt} tokens in the prompt, {answer} in the answer"
    output.say(f"{tokens}: {begin}all after {seconds:.2f} s, {rate:.1f} tokens/s")
