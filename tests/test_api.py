"""The public API: what is exported, how fast it is there, and the example."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pixtral_sky
from pixtral_sky import errors
from tests.conftest import ROOT
from tests.support.command_line import KEY
from tests.support.fake_endpoint import FakeEndpoint, says

PUBLIC = {
    "BrokenAnswer", "Busy", "Client", "EndpointError", "Failed", "NotAnAPI", "Picture", "PictureError",
    "PixtralSkyError", "Refused", "Unauthorized", "Unreachable", "Untrusted", "UsageError", "read_picture",
}  # fmt: skip


def test_what_is_exported() -> None:
    assert set(pixtral_sky.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(pixtral_sky, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Endpoint'"):
        pixtral_sky.Endpoint  # noqa: B018


def test_signatures() -> None:
    client = pixtral_sky.Client
    found = {
        name: list(inspect.signature(each).parameters)
        for name, each in {
            "Client": client,
            "ask": client.ask,
            "complete": client.complete,
            "read_picture": pixtral_sky.read_picture,
        }.items()
    }
    assert found["Client"][:2] == ["endpoint", "key"]
    assert found["ask"] == found["complete"] == ["self", "question", "system", "fields"]
    assert found["read_picture"] == ["source"]


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs/reference/python.md").read_text()
    assert {name for name in PUBLIC if not re.search(rf"`{name}[`(]", page)} == set()
    assert all(getattr(pixtral_sky, name).__doc__ for name in ("Client", "Picture", "read_picture"))


def test_what_is_raised_is_public() -> None:
    """All errors of an endpoint but that of a tunnel, which no URL has."""
    raised = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, errors.EndpointError)}  # fmt: skip
    assert raised - PUBLIC == {"NoTunnel"}


def test_the_import_loads_the_errors_alone() -> None:
    code = (
        "import sys, pixtral_sky; print(*(name for name in sys.modules if name.startswith('pixtral_sky.')))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == [
        "pixtral_sky.errors"
    ]


def test_a_question(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    picture = pixtral_sky.read_picture(tmp_path / "red.png")
    url = {"url": picture.data_url()}
    with FakeEndpoint([says("A red", " square.")], key=KEY) as endpoint, pixtral_sky.Client(endpoint.url, key=KEY) as client:  # fmt: skip
        answer = client.ask(["What is it?", picture], system="Be short.", max_tokens=9)
        assert list(answer) == ["A red", " square."]
        assert answer.text == "A red square."
        list(client.ask("Hello"))
        messages = [{"role": "user", "content": "Hello"}]
        assert client.complete(messages)["choices"][0]["message"]["content"] == "A red square."
        with pytest.raises(TypeError, match="words and pictures"):
            client.ask(["What?", {"role": "user"}])
    first, second, third = (request.json for request in endpoint.asked)
    assert first["max_tokens"] == 9
    assert first["messages"] == [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": url}],
        },
    ]
    assert second["messages"][0]["content"] == [{"type": "text", "text": "Hello"}]
    assert third["messages"] == messages


def test_errors() -> None:
    with pytest.raises(pixtral_sky.UsageError, match="not the URL of an endpoint"):
        pixtral_sky.Client("http://")
    with (
        FakeEndpoint(key="another") as endpoint,
        pixtral_sky.Client(endpoint.url, key=KEY) as client,
        pytest.raises(pixtral_sky.Unauthorized) as caught,
    ):
        client.ask(["Hello"])
    assert KEY not in str(caught.value)
    assert caught.value.hint


def test_the_example_runs() -> None:
    with FakeEndpoint([says("A chart", " and a receipt.")], key=KEY) as endpoint:
        environ = {
            **os.environ,
            "PIXTRAL_ENDPOINT": endpoint.url,
            "PIXTRAL_API_KEY": KEY,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "examples/python_client.py"]
        run = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("A chart and a receipt.\n[660 tokens in the prompt, 12 in the answer]")
    kinds = [part["type"] for part in endpoint.asked[0].json["messages"][0]["content"]]
    assert kinds == ["text", "image_url"] * 2
