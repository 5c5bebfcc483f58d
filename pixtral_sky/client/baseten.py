"""Baseten's addresses of a deployment: https://docs.baseten.co/inference/calling-your-model."""

from __future__ import annotations

import re
from urllib.parse import SplitResult

from pixtral_sky.errors import UsageError

# A request waits so long for a deployment that has scaled to zero, and ends then (504):
# https://docs.baseten.co/inference/errors
BASETEN_SECONDS = 1200.0
# A regional host names the environment at its end; its path then names none.
_HOST = re.compile(r"model-[a-z0-9]+(?P<regional>-[a-z0-9-]+)?\.api\.baseten\.co")
_DEPLOYMENT = r"/(?:environments/[^/]+|deployment/[^/]+|production|development)"
# The routes that lead to vLLM: `predict`, and `sync/` before a path.
_PATH = re.compile(rf"(?P<deployment>{_DEPLOYMENT})?(?P<route>/predict|/sync(?:/v1(?:/.*)?)?|/v1(?:/.*)?)?/*")
# A company's own Baseten may have any host.
_ELSEWHERE = re.compile(rf"(?P<deployment>.*{_DEPLOYMENT})(?P<route>/predict|/sync(?:/v1(?:/.*)?)?)/*")


def is_baseten(url: str) -> bool:
    """Whether a URL that ``read`` returned is of a deployment on Baseten."""
    host, slash, path = url.partition("://")[2].partition("/")
    return bool(_HOST.fullmatch(host) or _ELSEWHERE.fullmatch(slash + path))


def read(text: str, parts: SplitResult) -> tuple[str, bool] | None:
    """The URL before ``/v1``, and whether ``text`` leads to `predict`; None when it is not Baseten's.

    ``parts`` are those of ``text``. Raises UsageError for a URL of Baseten that leads to no deployment.
    """
    host, path = parts.hostname or "", _PATH.fullmatch(parts.path)
    if host != "app.baseten.co" and not host.endswith(".api.baseten.co"):
        elsewhere = _ELSEWHERE.fullmatch(parts.path)
        if not elsewhere:
            return None
        url = f"{parts.scheme}://{parts.netloc}{elsewhere['deployment']}/sync"
        return url, elsewhere["route"] == "/predict"
    known = _HOST.fullmatch(host)
    if not known or not path or (known["regional"] and path["deployment"]):
        raise UsageError(
            f"{text.strip()!r} leads to no deployment on Baseten.",
            "It looks like https://model-ID.api.baseten.co/environments/production/predict",
        )
    deployment = path["deployment"] or ("" if known["regional"] else "/environments/production")
    return f"https://{host}{deployment}/sync", path["route"] == "/predict"
