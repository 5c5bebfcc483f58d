"""What commands share."""

from __future__ import annotations

import contextlib
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from pixtral_sky import output

SECRETS = ("PIXTRAL_API_KEY", "HF_TOKEN")


def envs(words: list[str], precision: str | None) -> dict[str, str]:
    """The values of ``--env NAME=VALUE`` and of ``--precision``. Raises UsageError, for a secret too."""
    from pixtral_sky import memory
    from pixtral_sky.errors import UsageError

    given = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name in SECRETS:
            raise UsageError(f"{name} is a secret, and others can see arguments.", f"Run: export {name}=...")
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError("--env takes NAME=VALUE.", "For example: --env MAX_IMAGES=8")
        given[name] = value
    if precision is not None:
        precision = precision.lower()
        if precision not in memory.PRECISIONS:
            raise UsageError(f"--precision is {' or '.join(memory.PRECISIONS)}, not {precision!r}.")
        if given.setdefault("PRECISION", precision) != precision:
            raise UsageError(
                f"--precision {precision} and --env PRECISION={given['PRECISION']} are not the same."
            )
    return given


def key(name: str) -> str:
    """The key of the environment, else that of before, else a new one."""
    from pixtral_sky.deploy import store
    from pixtral_sky.deploy.resolve import key_of_environment
    from pixtral_sky.errors import UsageError

    old = store.recall(name)
    before = old.key if isinstance(old, (store.Cluster, store.Service)) else ""
    found = key_of_environment() or before or secrets.token_urlsafe(32)
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", found):
        raise UsageError(
            "PIXTRAL_API_KEY has characters that a key cannot have.",
            "Unset it to have one made: unset PIXTRAL_API_KEY",
        )
    return found


def check_price(max_price: float | None) -> None:
    """Raises UsageError when it is none."""
    from pixtral_sky.errors import UsageError

    if max_price is not None and not max_price > 0:
        raise UsageError(f"--max-price {max_price:g} is no price.", "For example: --max-price 2.50")


def check_licence(envs: Mapping[str, Any], token: str) -> str:
    """A sentence when it could not be found out whether the token opens the weights. Raises HubError."""
    from pixtral_sky.deploy import huggingface

    model, revision = (str(envs.get(name) or "") for name in ("MODEL", "MODEL_REVISION"))
    with output.phase("licence of the weights"):
        return huggingface.check(model, token, revision or "main")


def say_choice(plan: Any) -> None:
    """What a plan says of the candidates that it has."""
    for warning in plan.warned:
        output.warn(warning)
    for line in plan.said:
        output.say(line)


def confirm(question: str, yes: bool) -> None:
    """Ask before it costs money; ``yes`` is the answer that was given already. Ends the command at a no."""
    from pixtral_sky.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This costs money, and nobody is here to be asked.", "Add --yes")
    with contextlib.redirect_stdout(sys.stderr):  # where the question's last character goes
        typer.confirm(question, default=True, abort=True, err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print it in columns. One that says nothing ("-") in every row is left out."""
    columns = [column for column in zip(head, *rows, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        output.data(f"{indent}{cells}".rstrip())


def age(seconds: float | None) -> str:
    """Days, hours or minutes, in words."""
    if seconds is None:
        return "-"
    minutes = max(int(seconds // 60), 0)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def minutes(seconds: float) -> str:
    """How long something took, in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
