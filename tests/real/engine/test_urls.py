"""Pictures by URL on the real vLLM: the requests of the public guides as they stand there, but for host and key."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from pixtral_sky.deploy.store import Rehearsal
from pixtral_sky.pixtral import image_tokens
from pixtral_sky.rehearsal import process as rehearsal
from tests.real.engine.asked import drawn, request
from tests.support.site import site

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SKYPILOT = """
curl http://$ENDPOINT/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer token' \\
    --data '{
        "model": "mistralai/Pixtral-12B-2409",
        "messages": [
        {
            "role": "user",
            "content": [
                {"type" : "text", "text": "Describe this image in detail please."},
                {"type": "image_url", "image_url": {"url": "https://s3.amazonaws.com/cms.ipressroom.com/338/files/201808/5b894ee1a138352221103195_A680%7Ejogging-edit/A680%7Ejogging-edit_hero.jpg"}},
                {"type" : "text", "text": "and this one as well."},
                {"type": "image_url", "image_url": {"url": "https://www.wolframcloud.com/obj/resourcesystem/images/a0e/a0ee3983-46c6-4c92-b85d-059044639928/6af8cfb971db031b.png"}}
            ]
        }],
        "max_tokens": 1024
    }'
"""
SKYSERVE = """
curl http://$ENDPOINT/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer token' \\
    --data '{
        "model": "mistralai/Pixtral-12B-2409",
        "messages": [
        {
            "role": "user",
            "content": [
                {"type" : "text", "text": "Turn this logo into ASCII art."},
                {"type": "image_url", "image_url": {"url": "https://pbs.twimg.com/profile_images/1584596138635632640/HWexMoH5_400x400.jpg"}}
            ]
        }],
        "max_tokens": 1024
    }'
"""
BASETEN = """
curl -X POST "http://$ENDPOINT/v1/chat/completions" \\
     -H "Content-Type: application/json" \\
     -H 'Authorization: Bearer token' \\
     -d '{
           "model": "pixtral",
           "messages": [
            {
                "role": "user",
                "content": [
                {
                    "type": "text",
                    "text": "What type of animal is this? Answer in French only"
                },
                {
                    "type": "image_url",
                    "image_url": {
                    "url": "https://vetmed.illinois.edu/wp-content/uploads/2021/04/pc-keller-hedgehog.jpg"
                    }
                }
                ]
            }
            ],
           "stream": true,
           "max_tokens": 64,
           "temperature": 0.2
         }' --no-buffer
"""
JOGGERS, FAMILY, LOGO, HEDGEHOG = re.findall(r"https://[^/]+(/[^\"]+)", SKYPILOT + SKYSERVE + BASETEN)
SIZES = {JOGGERS: (1200, 800), FAMILY: (640, 480), LOGO: (400, 400), HEDGEHOG: (900, 600)}


ASKED: list[str] = []


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A site with the pictures of the guides, drawn in their formats."""
    files = {
        path: drawn(*size, kind="PNG" if path.endswith("png") else "JPEG") for path, size in SIZES.items()
    }
    with site(files, ASKED) as url:
        yield url


@pytest.fixture(scope="module")
def allowed(start) -> Rehearsal:
    deployment = start("urls", IMAGE_URLS="127.0.0.1")
    rehearsal.wait_until_ready(deployment)
    return deployment


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()


def run(guide: str, deployment: Rehearsal, host: str) -> str:
    """What the guide's request prints: only the hosts and the key are others."""
    script = re.sub(r"https://[a-z0-9.]+(?=/)", host, guide).replace(
        "Bearer token", f"Bearer {deployment.key}"
    )
    environ = {"ENDPOINT": deployment.url.removeprefix("http://"), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    return result.stdout


@pytest.mark.parametrize(
    ("guide", "paths", "prompt"), [(SKYPILOT, [JOGGERS, FAMILY], None), (SKYSERVE, [LOGO], 660)]
)
def test_the_guide_of_skypilot(
    allowed: Rehearsal, host: str, guide: str, paths: list[str], prompt: int | None
) -> None:
    answer = json.loads(run(guide, allowed, host))
    pictures = sum(image_tokens(*SIZES[path]) for path in paths)
    assert pictures < answer["usage"]["prompt_tokens"] < pictures + 40
    assert prompt in (None, answer["usage"]["prompt_tokens"])  # what the guide prints for this one
    assert answer["choices"][0]["message"]["content"]
    assert sorted(ASKED) == sorted(paths)  # once each, and in one spelling


def test_the_guide_of_baseten_streams(allowed: Rehearsal, host: str) -> None:
    events = re.findall(r"^data: (.*)$", run(BASETEN, allowed, host), re.MULTILINE)
    assert events[-1] == "[DONE]"
    assert len([json.loads(event)["choices"][0]["delta"] for event in events[:-1]]) > 10
    assert ASKED == [HEDGEHOG]


@pytest.mark.parametrize("guide", [SKYPILOT, SKYSERVE, BASETEN])
def test_an_address_of_the_machine_is_refused_as_no_public_one(
    running: Rehearsal, host: str, guide: str
) -> None:
    for place in (host, "http://127.0.0.1", "http://localhost"):
        error = json.loads(run(guide, running, place))["error"]
        assert error["code"] == "invalid_image_url"
        assert "'data:image/jpeg;base64,...'" in error["message"]
    assert ASKED == []


def test_a_missing_picture_is_the_request_s_fault(allowed: Rehearsal, host: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"{host}/none.png"}}
    body = {"model": "pixtral", "max_tokens": 1, "messages": [{"role": "user", "content": [part]}]}
    status, answer = request(allowed, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert "'127.0.0.1' answered 404." in json.loads(answer)["error"]["message"]


CASES = {
    "/v1/chat/completions": lambda url: {
        "max_tokens": 1,
        "messages": said({"type": "image_url", "image_url": {"url": url}}),
    },
    "/tokenize": lambda url: {"messages": said({"type": "image_url", "image_url": {"url": url}})},
    "/v1/messages": lambda url: {
        "max_tokens": 1,
        "messages": said({"type": "image", "source": {"type": "url", "url": url}}),
    },
    "/v1/messages/count_tokens": lambda url: {
        "messages": said({"type": "image", "source": {"type": "url", "url": url}})
    },
    "/v1/responses": lambda url: {
        "max_output_tokens": 16,
        "input": said({"type": "input_image", "image_url": url, "detail": "auto"}),
    },
}


def said(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("path", CASES)
def test_no_route_fetches_what_is_not_public(running: Rehearsal, host: str, path: str, tmp_path) -> None:
    (tmp_path / "secret.png").write_bytes(drawn(8, 8))
    port = host.rpartition(":")[2]
    for url in (
        f"{host}/x.png",
        f"http://none.invalid@127.0.0.1:{port}/x.png",
        f"file://{tmp_path}/secret.png",
    ):
        status, answer = request(running, "POST", path, {"model": "pixtral", **CASES[path](url)})
        assert status == 400, answer
        assert json.loads(answer)["error"]["code"] == "invalid_image_url"
    assert ASKED == []


@pytest.mark.parametrize("path", CASES)
def test_every_route_takes_a_url(allowed: Rehearsal, host: str, path: str) -> None:
    status, answer = request(allowed, "POST", path, {"model": "pixtral", **CASES[path](f"{host}{LOGO}")})
    assert status == 200, answer
    assert ASKED == [LOGO]
