"""pixtral-sky logs."""

from __future__ import annotations

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.deploy.store import DEFAULT_NAME


def logs(
    name: options.Deployment = DEFAULT_NAME, follow: options.Follow = False, lines: options.Lines = 0
) -> None:
    """Show what a deployment's script and its server say. While a launch goes on, show its log."""
    from pixtral_sky.deploy import backend, resolve

    backend.logs(name, follow=follow, lines=lines)
    if aside := resolve.out_of_reach():
        output.say(aside)
