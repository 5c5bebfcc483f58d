"""IMAGE_URLS and ALLOWED_ORIGINS: lists of hosts and of origins."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from pixtral_sky.deploy import task
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT

HOSTS = [
    "public",
    "none",
    "a.example",
    "A.Example b-2.example",
    "public intranet",
    "10.0.0.7",
    "[::1] [fd00::7] under_score",
    "xn--bcher-kva.example",
]
NO_HOSTS = {
    "https://a.example": "'https://a.example' is no host. Say a.example",
    "b.example https://a.example:8443/x/": "'https://a.example:8443/x/' is no host. Say a.example",
    "a.example:8080": "'a.example:8080' is no host. Say a.example",
    "a.example/x.png": "'a.example/x.png' is no host. Say a.example",
    "[::1]:80": "'[::1]:80' is no host. Say [::1]",
    "::1": "'::1' is no host. It is public, none, or hosts with a space between: a.example [fd00::7]",
    "[fe80::1%eth0]": "is no host.",
    "[fd00:0::7]": "is no host. It is public",
    "[a.example]": "'[a.example]' is no host.",
    "a.example,b.example": "'a.example,b.example' is no host. It is public",
    "*.example": "'*.example' is no host. It is public",
    "bücher.example": "is no host. It is public",
    "fe80::1%eth0": "is no host.",
    "none a.example": "none stands alone.",
    "public none": "none stands alone.",
    "http://": "'http://' is no host. It is public",
    "http://[": "'http://[' is no host. It is public",
} | dict.fromkeys(["", " ", " a", "a ", "a  b", "a\n", "a\tb", "a\n\nb"], "is no host. ")
ORIGINS = [
    "",
    "https://app.example",
    "http://localhost:3000 https://app.example:8443",
    "http://[::1]:8000",
    "chrome-extension://abcdefghijklmnop",
]
NO_ORIGINS = {
    "https://app.example/": "Say https://app.example",
    "https://app.example/chat?x#y": "Say https://app.example",
    "http://localhost:3000 https://App.Example": "'https://App.Example' is no origin as a browser sends it.",
    "https://app.example:443": "Say https://app.example",
    "http://a:80": "Say http://a",
    "https://user:secret@app.example": "Say https://app.example",
    "https://a\n": "Say https://a",
} | dict.fromkeys(
    [
        " ",
        "https://a ",
        "https://a  https://b",
        "app.example",
        "*",
        "https://*.example",
        "null",
        "https://a,https://b",
        "https://a:99999",
    ],
    "It looks like https://app.example.com",
)


def refused(name: str, value: str) -> str:
    """Why, in one line; empty if it is not."""
    why = ""
    try:
        task.load(ROOT / "pixtral.yaml").check({name: value})
    except UsageError as error:
        why = str(error)
    assert "\n" not in why
    assert not why or why.startswith(f"{name}: ")
    return why


@pytest.mark.parametrize("value", HOSTS)
def test_hosts(value: str) -> None:
    assert not refused("IMAGE_URLS", value)


@pytest.mark.parametrize(("value", "says"), NO_HOSTS.items())
def test_what_is_no_host(value: str, says: str) -> None:
    assert says in refused("IMAGE_URLS", value)


@pytest.mark.parametrize("value", ORIGINS)
def test_origins(value: str) -> None:
    assert not refused("ALLOWED_ORIGINS", value)


@pytest.mark.parametrize(("value", "says"), NO_ORIGINS.items())
def test_what_is_no_origin(value: str, says: str) -> None:
    assert says in refused("ALLOWED_ORIGINS", value)


def test_the_script_takes_what_is_taken_here() -> None:
    """So nothing is refused on a machine that costs money."""
    cases = [("IMAGE_URLS", each) for each in HOSTS] + [("ALLOWED_ORIGINS", each) for each in ORIGINS]
    check = (ROOT / "templates" / "check.sh").read_text()
    envs = "".join(f"{name}={shlex.quote(value)}\n" for name, value in task.load().envs.items())
    script = f'fail() {{ echo "$*" >&2; exit 1; }}\n{envs}{check}'
    for name, value in cases:
        line = f"{name}={shlex.quote(value)}"
        told = subprocess.run(
            ["bash", "-c", script.replace(f"{name}={shlex.quote(task.load().envs[name])}\n", f"{line}\n", 1)],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
        )
        assert (told.returncode, told.stderr) == (0, ""), line
