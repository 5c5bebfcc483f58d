"""IMAGE_URLS and ALLOWED_ORIGINS: lists of hosts and of origins."""

from __future__ import annotations

import re

import pytest

from pixtral_sky.deploy import task
from pixtral_sky.errors import UsageError
from tests.conftest import ROOT


def refused(**envs: str) -> str:
    """Why, in one line; empty if it is not."""
    why = ""
    try:
        task.load(ROOT / "pixtral.yaml").check(envs)
    except UsageError as error:
        why = str(error)
    assert "\n" not in why
    return why


@pytest.mark.parametrize(
    "value",
    [
        "public",
        "none",
        "a.example",
        "A.Example  b-2.example",
        "public intranet",
        "10.0.0.7",
        "::1 [fd00::7] under_score",
        "xn--bcher-kva.example",
    ],
)
def test_hosts(value: str) -> None:
    assert not refused(IMAGE_URLS=value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("https://a.example", "'https://a.example' is no host. Say a.example"),
        ("b.example https://a.example:8443/x/", "'https://a.example:8443/x/' is no host. Say a.example"),
        ("a.example:8080", "'a.example:8080' is no host. Say a.example"),
        ("a.example/x.png", "'a.example/x.png' is no host. Say a.example"),
        ("[::1]:80", "'[::1]:80' is no host. Say ::1"),
        ("a.example,b.example", "'a.example,b.example' is no host. It is public, none, or names"),
        ("*.example", "'*.example' is no host. It is public"),
        ("bücher.example", "is no host. It is public"),
        ("fe80::1%eth0", "is no host."),
        ("none a.example", "none stands alone."),
        ("public none", "none stands alone."),
    ],
)
def test_what_is_no_host(value: str, says: str) -> None:
    assert refused(IMAGE_URLS=value).startswith("IMAGE_URLS: ")
    assert says in refused(IMAGE_URLS=value)


@pytest.mark.parametrize("value", ["", " ", " a", "a ", "a\n", "a\tb", "a\n\nb", "http://", "http://["])
def test_what_is_no_list_of_hosts(value: str) -> None:
    assert "IMAGE_URLS" in refused(IMAGE_URLS=value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "https://app.example",
        "http://localhost:3000  https://app.example:8443",
        "http://[::1]:8000",
        "chrome-extension://abcdefghijklmnop",
    ],
)
def test_origins(value: str) -> None:
    assert not refused(ALLOWED_ORIGINS=value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("https://app.example/", "Say https://app.example"),
        ("https://app.example/chat?x#y", "Say https://app.example"),
        (
            "http://localhost:3000 https://App.Example",
            "'https://App.Example' is no origin as a browser sends it",
        ),
        ("https://app.example:443", "Say https://app.example"),
        ("http://a:80", "Say http://a"),
        ("https://user:secret@app.example", "Say https://app.example"),
        ("app.example", "It looks like https://app.example.com"),
        ("*", "It looks like"),
        ("https://*.example", "It looks like"),
        ("null", "It looks like"),
        ("https://a,https://b", "It looks like"),
        ("https://a:99999", "It looks like"),
        (" ", "It looks like"),
        ("https://a\n", "Say https://a"),
    ],
)
def test_what_is_no_origin(value: str, says: str) -> None:
    assert refused(ALLOWED_ORIGINS=value).startswith("ALLOWED_ORIGINS")
    assert says in refused(ALLOWED_ORIGINS=value)


def test_a_check_of_the_script_may_have_spaces() -> None:
    """As that of a list has: it is found, and made here as there."""
    line = """[[ $NAMES =~ ^[][a-z]+( +[][a-z]+)*$ ]] || fail "NAMES=$NAMES are no names." """
    the_task = task.Task(ROOT / "pixtral.yaml", line, "", {"NAMES": "a"})
    the_task.check({"NAMES": "a  b"})
    with pytest.raises(UsageError, match=re.escape("NAMES=a1 are no names.")):
        the_task.check({"NAMES": "a1"})
