"""Options that more than one command has, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def deployments(incomplete: str) -> list[str]:
    """The names of the remembered deployments that begin so, for a shell's completion."""
    from pixtral_sky.deploy import store

    return [name for name in store.known() if name.startswith(incomplete)]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """The completion of an option that takes one of these words."""

    def beginning(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return beginning


Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]

# Of those that ask an endpoint
System = Annotated[str, typer.Option(help="A system prompt.", show_default=False)]
MaxTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest token.")]
Schema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A JSON Schema; each answer is JSON that fits it.")
]
Url = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="Ask there. PIXTRAL_ENDPOINT does the same.")
]
ApiKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="Better set PIXTRAL_API_KEY: others can see arguments.")
]
Asked = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        help="Ask the deployment of this name.",
        show_default="PIXTRAL_ENDPOINT, else pixtral",
        autocompletion=deployments,
    ),
]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Send it even if it is more than the endpoint is known to take.")
]

# Of those that look at one deployment
Deployment = Annotated[str, typer.Argument(help="The deployment.", autocompletion=deployments)]
Only = Annotated[
    str | None, typer.Argument(help="Only this one.", show_default=False, autocompletion=deployments)
]

# Of those that launch
Wanted = Annotated[str, typer.Option("--name", "-n", help="A name for it.", autocompletion=deployments)]
Infra = Annotated[
    str | None,
    typer.Option(
        help="Where: aws, gcp/us-central1, k8s, slurm/NAME. Without it, the cheapest that the file allows."
    ),
]
Gpus = Annotated[
    str | None, typer.Option(metavar="GPU[:COUNT]", help="Launch on these GPUs, not on those of the file.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="bf16|fp8",
        help="Of the weights: bf16 takes 23.6 GiB, fp8 13.5. Without it, the file's.",
        autocompletion=one_of("bf16", "fp8"),
    ),
]
MaxPrice = Annotated[
    float | None,
    typer.Option(
        metavar="USD",
        help="At most so much an hour for a machine with its GPUs, by list price; its disk and traffic are"
        " not in it.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="Set an env of the file; repeat it for more."),
]
TaskFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="The task file; without it the shipped pixtral.yaml.")
]
ServiceFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="The service file; without it the shipped service.yaml.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, and launch nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it costs money.")]

# Of those that show a log
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes, until Ctrl-C.")]
Lines = Annotated[int, typer.Option("--lines", "-l", min=0, help="Only the last ones; 0: all.")]
