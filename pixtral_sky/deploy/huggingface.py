"""The user's Hugging Face token, and whether it opens a gated model on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from pixtral_sky import __version__
from pixtral_sky.errors import HubError
from pixtral_sky.text import os_reason

HUB = "https://huggingface.co"
WAIT_SECONDS = 10  # for the connection, and for the answer


def token(environ: Mapping[str, str] = os.environ) -> str:
    """The user's token, or an empty string. Raises HubError when its file cannot be read.

    The rules are huggingface_hub's: HF_TOKEN, its old name, then the file of `hf auth login`. An empty
    variable counts as unset.
    """

    def setting(name: str, otherwise: str = "") -> str:
        return environ.get(name) or otherwise

    found = setting("HF_TOKEN", setting("HUGGING_FACE_HUB_TOKEN"))
    if not found and not _is_true(setting("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        cache = setting("XDG_CACHE_HOME", "~/.cache")
        path = setting("HF_TOKEN_PATH", f"{setting('HF_HOME', f'{cache}/huggingface')}/token")
        path = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (an unknown ~user stays as it is)
        try:
            found = Path(path).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError) as error:  # ValueError: no text, or a NUL in the path
            why = os_reason(error, "it is no text")
            raise HubError(
                f"The Hugging Face token in {path} cannot be read: {why}.", "Or: export HF_TOKEN=..."
            ) from None
    return found.replace("\r", "").replace("\n", "").strip()


def _is_true(value: str) -> bool:
    return value.upper() in ("1", "ON", "YES", "TRUE")


def is_directory(model: str) -> bool:
    """Whether ``model`` is a path on the machine that serves it; else it is a model on the Hub."""
    return model.startswith(("/", ".", "~"))


def check(model: str, token: str, revision: str = "main") -> str:
    """Ask the Hub, as the setup of a machine will, whether ``token`` (may be empty) opens ``model``.

    ``revision`` is a branch, a tag or a commit. Returns an empty string when the token does, or a sentence
    on why the Hub could not be asked. Raises HubError when it does not.
    """
    if is_directory(model):
        return ""
    hub = _checked(model, token, revision)
    unknown = f"Whether {model} opens {'to this token' if token else 'without a token'} could not be checked"
    if _is_true(os.environ.get("HF_HUB_OFFLINE", "")):
        return f"{unknown}: HF_HUB_OFFLINE is set."
    status, why = _head(f"{hub}/{model}/resolve/{quote(revision, safe='')}/params.json", token)
    if not status:
        return f"{unknown}: {hub} cannot be reached ({why})."
    if refused := _refused(status, hub, model, token, revision):
        raise refused
    return "" if status == 200 else f"{unknown}: {hub} answers {status}."


def _checked(model: str, token: str, revision: str) -> str:
    """The hub's address. Raises HubError for what no hub could make right."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model, re.ASCII):
        raise HubError(f"{model[:100]!r} is neither a model on the Hub nor a directory.", "Check MODEL.")
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", revision, re.ASCII):
        raise HubError(
            f"{revision[:100]!r} is no revision of a model.",
            "Check MODEL_REVISION: a branch, a tag or a commit.",
        )
    # Checked here, because the errors of the HTTP libraries would quote it.
    if not re.fullmatch(r"[A-Za-z0-9_-]*", token):
        raise HubError("The Hugging Face token has characters that a token cannot have.", "Look at HF_TOKEN.")
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not _is_address(hub):
        raise HubError("HF_ENDPOINT is not the address of a hub.", f"It looks like {HUB}")
    return hub


def _refused(status: int, hub: str, model: str, token: str, revision: str) -> HubError | None:
    """What the Hub's ``status`` means, when it does not give the model."""
    page, settings = f"{hub}/{model}", f"{hub}/settings/tokens"
    if status == 401 and token:
        return HubError(
            f"{hub} does not take this Hugging Face token: it is wrong, or has expired.",
            f"Make one at {settings}, then: export HF_TOKEN=...",
        )
    if status == 401:
        return HubError(
            f"{model} opens only to a Hugging Face token, and there is none here.",
            f"Accept the licence at {page}, make a token at {settings}, then: export HF_TOKEN=...",
        )
    if status == 403:
        return HubError(
            f"This Hugging Face token does not open {model}.",
            f"Accept the licence at {page} with the account of the token; a fine-grained token also needs "
            f"read access to gated repositories ({settings}).",
        )
    if status == 404:
        at, check = ("", "") if revision == "main" else (f" at revision {revision}", " and MODEL_REVISION")
        return HubError(
            f"There is no {model} in Mistral's format (no params.json{at}) at {hub}.", f"Check MODEL{check}."
        )
    return None


def _is_address(url: str) -> bool:
    """Whether ``url`` can be a hub's address, without a user and a password: errors print it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    plain = re.fullmatch(r"[!-~]+", url) and not set("@?#") & set(url)
    return bool(plain and parts.scheme in ("http", "https") and parts.hostname)


def _head(url: str, token: str) -> tuple[int, str]:
    """The status after all redirects; or 0, and why there is none."""
    import httpx

    headers = {"User-Agent": f"pixtral-sky/{__version__}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        # httpx drops the token when a redirect leads to another host.
        with httpx.Client(timeout=WAIT_SECONDS, follow_redirects=True, max_redirects=5) as http:
            return http.head(url, headers=headers).status_code, ""
    except httpx.TimeoutException:
        return 0, f"no answer within {WAIT_SECONDS} s"
    except httpx.ConnectError as error:
        return 0, str(error) or "no connection"
    except httpx.HTTPError as error:  # its text may quote a URL with a password
        return 0, type(error).__name__
    # ImportError: a SOCKS proxy without its package.
    except (httpx.InvalidURL, ImportError, OSError, ValueError):
        return 0, "the proxy or certificate settings of this environment cannot be used"
