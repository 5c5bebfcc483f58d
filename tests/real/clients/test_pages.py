"""Web pages that ask, in a real Chromium: one of an origin that ALLOWED_ORIGINS names, and one of another."""

from __future__ import annotations

import html
import json
import re
import subprocess
import urllib.request

import pytest

from tests.real.clients.conftest import FILES
from tests.real.clients.test_clients import SECTIONS, blocks

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]

PAGE = """<!doctype html><pre id="said"></pre><script type="module">
const [endpoint, key] = %s
console.log = (...words) => { said.textContent = words.join(' ') }
try {
%s
} catch (error) { console.log(error.name, error.message) }
</script>"""


@pytest.fixture
def seen(running, sites, tmp_path):
    """What a page of an origin says, with the lines of the guide."""
    (section,) = (each for each in SECTIONS if each.startswith("Web pages\n"))
    page = PAGE % (json.dumps([running.url, running.key]), *blocks("js", section))
    FILES["/page.html"] = page.encode()
    # As root Chromium runs without its sandbox only. It waits for what the page has asked, a minute at most.
    flags = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=60000", "--dump-dom"]

    def seen(origin: str) -> str:
        shown = subprocess.run(
            ["chromium", *flags, f"{origin}/page.html"],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        (text,) = re.findall(r'<pre id="said">(.*?)</pre>', shown.stdout, re.DOTALL)
        return html.unescape(text)

    return seen


def answered(running) -> float:
    """Requests that vLLM has finished, however they ended."""
    headers = {"Authorization": f"Bearer {running.key}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{running.url}/metrics", headers=headers)
    ) as response:
        counts = re.findall(
            r"^vllm:request_success_total\{.*\} (.*)$", response.read().decode(), re.MULTILINE
        )
    assert counts
    return sum(map(float, counts))


def test_a_page_of_an_allowed_origin_reads_the_answer(running, sites, seen):
    before = answered(running)
    assert re.fullmatch(r"text .*\S.*", seen(sites[0]), re.DOTALL)
    assert answered(running) == before + 1


def test_a_page_of_another_origin_gets_nothing_and_the_server_runs_nothing(running, sites, seen):
    before = answered(running)
    assert seen(sites[1]) == "TypeError Failed to fetch"
    assert answered(running) == before
