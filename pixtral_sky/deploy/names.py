"""The envs that are lists of names: hosts of pictures, and origins of web pages."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pixtral_sky.errors import UsageError

OLD = "ALLOWED_MEDIA_HOSTS"  # of IMAGE_URLS
DEFAULT_PORTS = {"http": 80, "https": 443}


def check(envs: Mapping[str, str]) -> None:
    """Raise UsageError for an IMAGE_URLS or ALLOWED_ORIGINS with a word that names none."""
    hosts, origins = envs.get("IMAGE_URLS"), envs.get("ALLOWED_ORIGINS")
    if hosts is not None:
        _check_hosts(hosts)
    for word in re.split(" +", origins) if origins else ():
        if not (meant := _origin(word)) or word != meant:
            what = f"ALLOWED_ORIGINS: {word!r} is no origin as a browser sends it."
            raise UsageError(what, f"Say {meant}" if meant else "It looks like https://app.example.com")


def check_old(hosts: str | None) -> None:
    """Raise UsageError if ``hosts``, the value of OLD, is given."""
    if hosts is not None:
        now = " ".join(hosts.split()) or "none"
        raise UsageError(f"{OLD} is IMAGE_URLS now: the gateway fetches pictures.", f'Set IMAGE_URLS="{now}"')


def _check_hosts(value: str) -> None:
    words = re.split(" +", value)
    if "none" in words and len(words) > 1:
        raise UsageError("IMAGE_URLS: none stands alone.", "Leave it out, or all others.")
    for word in words:
        if not _is_host(word):
            meant = _host(word)
            raise UsageError(
                f"IMAGE_URLS: {word!r} is no host.",
                f"Say {meant}" if meant else "It is public, none, or names of hosts, separated by spaces.",
            )


def _is_host(word: str) -> bool:
    """Whether it is a name or an address, alone."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", word):
        return True
    try:
        return bool(ipaddress.IPv6Address(re.sub(r"^\[(.*)\]$", r"\1", word))) and "%" not in word
    except ValueError:
        return False


def _host(word: str) -> str:
    """The host that was meant by a URL, or by a host with a port; empty if there is none."""
    try:
        host = urlsplit(word if "://" in word else f"//{word}").hostname or ""
    except ValueError:
        return ""
    return host if _is_host(host) else ""


def _origin(word: str) -> str:
    """The origin of a URL, as a browser sends it (RFC 6454, 6.2); empty if there is none."""
    try:
        parts = urlsplit(word)
        port = parts.port
    except ValueError:
        return ""
    host = parts.hostname or ""
    if not parts.scheme or not _is_host(host):
        return ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (
        f":{port}" if port not in (None, DEFAULT_PORTS.get(parts.scheme)) else ""
    )
