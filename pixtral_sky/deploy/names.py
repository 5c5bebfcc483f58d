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
    for word in origins.split(" ") if origins else ():
        if not (meant := _origin(word)) or word != meant:
            what = f"ALLOWED_ORIGINS: {word!r} is no origin as a browser sends it."
            raise UsageError(what, f"Say {meant}" if meant else "It looks like https://app.example.com")


def check_old(hosts: str | None) -> None:
    """Raise UsageError if ``hosts``, the value of OLD, is given."""
    if hosts is not None:
        now = " ".join(hosts.split()) or "none"
        raise UsageError(f"{OLD} is IMAGE_URLS now: the gateway fetches pictures.", f'Set IMAGE_URLS="{now}"')


def _check_hosts(value: str) -> None:
    words = value.split(" ")
    if "none" in words and len(words) > 1:
        raise UsageError("IMAGE_URLS: none stands alone.", "Leave it out, or all others.")
    for word in words:
        if not _is_host(word):
            meant = _host_in(word if "://" in word else f"//{word}")
            raise UsageError(
                f"IMAGE_URLS: {word!r} is no host.",
                f"Say {meant}"
                if meant
                else "It is public, none, or hosts with a space between: a.example [fd00::7]",
            )


def _is_host(word: str) -> bool:
    """Whether it is a name or an address, and nothing else; one of IPv6 is in brackets."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", word):
        return True
    try:  # in the one spelling in which it is looked for
        return word == f"[{ipaddress.IPv6Address(word[1:-1])}]" and "%" not in word
    except ValueError:
        return False


def _host_in(url: str) -> str:
    """The host in a URL, as it is written alone; empty if there is none."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    host = f"[{host}]" if ":" in host else host
    return host if _is_host(host) else ""


def _origin(url: str) -> str:
    """The origin of a URL, as a browser sends it (RFC 6454, 6.2); empty if there is none."""
    try:
        scheme, port = urlsplit(url).scheme, urlsplit(url).port
    except ValueError:
        return ""
    host = _host_in(url)
    if not scheme or not host:
        return ""
    return f"{scheme}://{host}" + (f":{port}" if port not in (None, DEFAULT_PORTS.get(scheme)) else "")
