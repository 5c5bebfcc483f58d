"""pixtral-sky completion."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pixtral_sky import output

PROGRAM = "pixtral-sky"
VARIABLE = "_PIXTRAL_SKY_COMPLETE"  # set by the script when it asks for completions


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.", metavar="bash|zsh|fish")
    ],
) -> None:
    """Print what makes a shell complete commands and names.

    It stands in the shell's own file, or is run for this shell only.

    \b
    Examples:
      eval "$(pixtral-sky completion bash)"       # ~/.bashrc
      eval "$(pixtral-sky completion zsh)"        # ~/.zshrc, below compinit
      pixtral-sky completion fish | source        # ~/.config/fish/config.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    output.data(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))
