"""pixtral-sky chat."""

from __future__ import annotations

import contextlib
import signal
from typing import Annotated

import typer

from pixtral_sky import output
from pixtral_sky.cli import options


def chat(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the page; 0: any that is free.")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    no_check: options.NoCheck = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    name: options.Asked = None,
) -> None:
    """Chat about pictures on a page in your browser.

    It is on this machine alone, until Ctrl-C. The key stays in this process, and what you drop on the page
    goes with it. Whoever has the printed address can use the page.

    \b
    Examples:
      pixtral-sky chat
      pixtral-sky chat -n other --no-browser
      pixtral-sky chat --port 7860 --no-browser
    """
    from pixtral_sky.chat import page
    from pixtral_sky.client.client import Client
    from pixtral_sky.deploy.resolve import find

    # kill and a closing terminal count as a Ctrl-C, so that no picture is left on the disk.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))
    with Client(find(url, api_key, name), notify=output.say) as client:
        endpoint = client.learn()
    with contextlib.suppress(KeyboardInterrupt), page.served(endpoint, port, not no_check) as served:
        output.data(served.url)
        output.say("Until Ctrl-C. Keep the address to yourself: it is the password.")
        if not no_browser:
            served.open()
        served.run()
