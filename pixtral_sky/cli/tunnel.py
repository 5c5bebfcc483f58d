"""pixtral-sky tunnel."""

from __future__ import annotations

import signal

from pixtral_sky import output
from pixtral_sky.cli import options
from pixtral_sky.deploy.store import DEFAULT_NAME


def tunnel(name: options.Deployment = DEFAULT_NAME) -> None:
    """Hold the tunnel to a private deployment open.

    It is for curl and other clients, and ends with Ctrl-C.

    pixtral-sky's own commands open it by themselves.

    \b
    Examples:
      pixtral-sky tunnel        # and meanwhile, elsewhere:
      eval "$(pixtral-sky endpoint --env)" && bash examples/curl.sh
    """
    from pixtral_sky.deploy import backend

    found = backend.find(name)
    if not found.tunnel:
        output.data(found.url)
        output.say(f"{name} needs no tunnel: use it as it is.")
        return
    # SIGTERM ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with output.phase(f"connecting to {name}"):
        found.tunnel.open()
    try:
        output.data(found.url)
        this = "" if name == DEFAULT_NAME else f" --name {name}"
        output.say(f'Open until Ctrl-C. For other clients: eval "$(pixtral-sky endpoint{this} --env)"')
        found.tunnel.hold(output.say)
    except KeyboardInterrupt:
        # It is not closed: another command may be using it.
        output.say("\nNo longer held open: it ends a minute after its last use.")
