"""The URL of an endpoint, in any form that a user has at hand."""

from __future__ import annotations

import pytest

from pixtral_sky.client.endpoint import base_url
from pixtral_sky.errors import UsageError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.7:8081", "http://10.0.0.7:8081"),
        ("localhost:8081", "http://localhost:8081"),
        ("host", "http://host"),
        ("  http://host:8081 \n", "http://host:8081"),
        ("http://host/", "http://host"),
        ("http://host//", "http://host"),
        ("http://host/v1", "http://host"),
        ("http://host/v1/", "http://host"),
        ("https://host/v1/chat/completions", "https://host"),
        ("host:8081/v1/models", "http://host:8081"),
        ("HTTP://host:8081/v1", "http://host:8081"),
        ("https://host/pixtral", "https://host/pixtral"),
        ("https://host/pixtral/", "https://host/pixtral"),
        ("https://host/pixtral/v1", "https://host/pixtral"),
        ("https://host/pixtral/v1/chat/completions", "https://host/pixtral"),
        ("https://host/v10", "https://host/v10"),
        ("https://host/v1beta", "https://host/v1beta"),
        ("[::1]:8081", "http://[::1]:8081"),
        ("http://[2001:db8::7]/v1", "http://[2001:db8::7]"),
        ("http://host:65535", "http://host:65535"),
    ],
)
def test_base_url(text: str, url: str) -> None:
    assert base_url(text) == url
    assert base_url(url) == url, "what it gives, it takes"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "http://",
        "http:///v1",
        "https://:8081",
        "ftp://host",
        "file:///etc/passwd",
        "http://host:0",
        "http://host:65536",
        "http://host:port",
        "http://host:80:80",
        "http://[::1",
        "http://a host",
        "http://host/a\tb",
        "http://host\nX-Header: 1",
    ],
)
def test_no_url(text: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of an endpoint") as caught:
        base_url(text)
    assert "http://10.0.0.7:8081" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["http://user:SECRET@host", "user:SECRET@host:8081", "https://SECRET@host/v1"]
)
def test_a_url_holds_no_password(text: str) -> None:
    with pytest.raises(UsageError, match="no user and no password") as caught:
        base_url(text)
    assert "SECRET" not in str(caught.value)
    assert "PIXTRAL_API_KEY" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["ftp://user:SECRET@host", "http://user:SECRET@host:99999", "http://user:SECRET@a host"]
)
def test_a_password_in_what_is_no_url_is_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        base_url(text)
    assert "SECRET" not in str(caught.value)
