"""pixtral-sky tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral_sky import output

if TYPE_CHECKING:
    from pixtral_sky.pictures.picture import Picture


def tokens(
    pictures: Annotated[
        list[str],
        typer.Argument(help="Files, PDFs, globs, URLs, or '-' for standard input.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show what pictures cost in a prompt. It needs no endpoint.

    \b
    TOKENS      of the prompt, exactly
    FIT         the pixels that the model sees: at most 1024 a side, in whole patches of 16
    SENT        the pixels and the bytes of the file that would be sent
    PER PROMPT  how many such pictures go into one, with an answer of 512 tokens, by MAX_IMAGES and
                MAX_MODEL_LEN of pixtral.yaml

    \b
    Examples:
      pixtral-sky tokens photo.jpg
      pixtral-sky tokens 'scans/*.png' --json

    A picture that cannot be read has its reason in its row, and the exit code is 1.
    """
    from pixtral_sky import memory
    from pixtral_sky.deploy import task
    from pixtral_sky.errors import PictureError
    from pixtral_sky.pictures.arguments import sources
    from pixtral_sky.text import counted

    found = sources(pictures, notify=output.say)
    shipped = task.load()
    max_images = shipped.number("MAX_IMAGES")
    context = task.number(shipped.envs, "MAX_MODEL_LEN", memory.default_context(max_images))
    rows: list[dict[str, Any]] = []
    first: PictureError | None = None
    for name, source in found:
        try:
            if isinstance(source, PictureError):
                raise source
            picture = source.read()
        except PictureError as error:
            if len(found) == 1 and not as_json:
                raise
            first = first or error
            row = {"picture": name, "error": str(error)}
        else:
            row = _row(picture, max_images, context)
            if picture.part:
                output.say(f"{picture.name}: {picture.part}.")
        if not as_json:
            if not rows:
                output.data(_line("TOKENS", "FIT", "SENT", "", "PER PROMPT", "PICTURE"))
            output.data(_shown(row))
        rows.append(row)
    if as_json:
        output.document(rows)
    elif len(rows) > 1:
        good = [row["tokens"] for row in rows if "error" not in row]
        output.say(f"{counted(len(good), 'picture')}, {sum(good):,} tokens in all")
    if first and len(rows) == 1:
        raise first
    if bad := sum("error" in row for row in rows):
        raise PictureError(f"{bad} of {len(rows)} pictures cannot be sent.")


def _row(picture: Picture, max_images: int, context: int) -> dict[str, Any]:
    from pixtral_sky.client.messages import fitting
    from pixtral_sky.pixtral import fit

    return {
        "picture": picture.name,
        "tokens": picture.tokens,
        "width": picture.width,
        "height": picture.height,
        "bytes": len(picture.data),
        "media_type": picture.media_type,
        "fit": fit(picture.width, picture.height),
        "per_prompt": fitting(picture.tokens, max_images, context),
    }


def _shown(row: dict[str, Any]) -> str:
    if "error" in row:
        return _line("-", "-", "-", "", "-", row["error"])
    size, fit = f"{row['width']}x{row['height']}", "{}x{}".format(*row["fit"])
    file = f"{row['bytes'] / 1000:,.1f} kB"
    return _line(f"{row['tokens']:,}", fit, size, file, str(row["per_prompt"]), row["picture"])


def _line(*cells: str) -> str:
    # The name comes last: rows are printed before the widest name is known.
    tokens, fit, size, file, per_prompt, picture = cells
    return f"{tokens:>6}  {fit:>9}  {size:>9}  {file:>10}  {per_prompt:>10}  {picture}"
