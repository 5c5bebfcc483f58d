"""A request as a curl command."""

from __future__ import annotations

import shlex

from pixtral_sky.client.endpoint import Endpoint


def curl(endpoint: Endpoint, data: str) -> str:
    """A curl command for bash that sends ``data``, as its -d takes it.

    The key is not in its arguments, which other users can see.
    """
    lines = []
    if not endpoint.is_given and (endpoint.key or endpoint.tunnel):
        # This puts the key into the environment, and opens the tunnel.
        lines.append(f'eval "$(pixtral-sky endpoint --env --name {endpoint.origin})"')
    header = ""
    if endpoint.key:
        scheme = endpoint.authorization.partition(" ")[0]
        header = f' -H @<(echo "Authorization: {scheme} $PIXTRAL_API_KEY")'
    lines.append(f"curl -sS --no-buffer {shlex.quote(endpoint.chat_url)} \\")
    lines.append(f'  -H "Content-Type: application/json"{header} \\')
    lines.append(f"  -d {data}")
    return "\n".join(lines)
