"""A question is checked, its pictures are read, and it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pixtral_sky.client.client import Client
from pixtral_sky.client.question import send
from pixtral_sky.errors import LimitError, PictureError
from pixtral_sky.pictures.source import Source
from tests.support.fake_endpoint import FakeEndpoint


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: FakeEndpoint) -> Iterator[Client]:
    with Client(endpoint.url) as client:
        yield client


def test_pictures_are_read_and_urls_left_to_the_endpoint(
    endpoint: FakeEndpoint, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(file)
    parts = ["What?", Source(str(file)), Source("https://h/a.png")]
    assert send(client, parts, system="Be short.", remote_urls=True, top_p=0.5).whole()
    body = endpoint.asked[0].json
    system, question = body["messages"]
    assert system["content"] == "Be short."
    read, left = (part["image_url"]["url"] for part in question["content"][1:])
    assert read == Source(str(file)).read().data_url()
    assert left == "https://h/a.png"
    assert (body["max_tokens"], body["top_p"]) == (512, 0.5)


def test_too_much_is_not_sent(endpoint: FakeEndpoint, client: Client) -> None:
    with pytest.raises(LimitError, match="5 pictures"):  # before any of them is read
        send(client, [Source("/none.jpg")] * 5)
    with pytest.raises(LimitError, match="needs"):
        send(client, ["What?"], max_tokens=10**6)
    assert not endpoint.asked
    with pytest.raises(PictureError):
        send(client, [Source("/none.jpg")] * 5, check=False)
    assert send(client, ["What?"], max_tokens=10**6, check=False).whole()
    assert endpoint.asked[0].json["max_tokens"] == 10**6
