"""`pixtral-sky chat` in a real Chromium, from an environment with nothing but its extra.

CHAT_PICTURES=1 draws the pictures of docs/guides/chat.md anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.rehearsal import engine
from tests.conftest import ROOT
from tests.real.clients.conftest import FILES
from tests.real.clients.test_clients import of_file
from tests.support import fake_endpoint as fake
from tests.support.command_line import KEY
from tests.support.fake_endpoint import Exchange, FakeEndpoint, says

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]

CHART, RECEIPT = (str(ROOT / "examples" / name) for name in ("chart.png", "receipt.jpg"))
INVALID = "gradio.exceptions.InvalidPathError"
# Every connection that Python tries to make, and every name that it looks up, one a line.
WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        where = arguments[1] if event == "socket.connect" else arguments[0]
        with open(os.environ["WATCHED"], "a") as file:
            print(where[0] if isinstance(where, tuple) else where, file=file)
sys.addaudithook(note)
"""


@dataclass
class Page:
    """One that is served: by its address, or through a relay that keeps all that a browser gets."""

    address: str
    files: Path  # of its temporary folder
    relay: str = ""
    attacks: int = 0  # each leaves an error of Gradio in the terminal
    got: bytearray = field(default_factory=bytearray)


@contextlib.contextmanager
def served(folder: Path, **environ: str) -> Iterator[Page]:
    """`pixtral-sky chat` until its Ctrl-C, after which nothing is left, and only loopback was asked."""
    for name in ("home", "tmp", "watch"):
        (folder / name).mkdir(parents=True)
    (folder / "watch/sitecustomize.py").write_text(WATCH)
    path = engine.cache() / "clients/chat"
    assert (path / "complete").exists(), "It is made by: make clients"
    environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PATH": "/usr/bin:/bin"}
    environ |= {"PYTHONPATH": f"{folder / 'watch'}:{ROOT}", "WATCHED": str(folder / "watched")}
    # What is started in the background may ignore SIGINT.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pixtral_sky.cli.app import main; main()"
    )
    process = subprocess.Popen(
        [str(path / "bin/python"), "-c", program, "chat", "--no-browser"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", address), process.communicate()
        page = Page(address, folder / "tmp")
        with relayed(page):
            yield page
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "")
    assert err.startswith("Until Ctrl-C. ")
    assert re.findall(r"^\S*(?:Error|Exception)", err, re.M) == [INVALID] * page.attacks, err
    assert list(page.files.iterdir()) == []
    assert set((folder / "watched").read_text().split()) == {"127.0.0.1"}


@contextlib.contextmanager
def relayed(page: Page) -> Iterator[None]:
    """A second port that leads to the page, as `ssh -L` has one."""
    port = int(re.findall(r":(\d+)/", page.address)[0])

    def pass_on(source: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if kept is not None:
                    kept.extend(data)
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", port))
                opened.extend([here, there])
                for ends in ((here, there, None), (there, here, page.got)):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        page.relay = page.address.replace(f":{port}/", f":{listener.getsockname()[1]}/")
        threading.Thread(target=take, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-dev-shm-usage"]
    flags += ["--host-resolver-rules=MAP foreign.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser) -> Iterator[Any]:
    """A tab of a browser, which may reach nothing but this machine."""
    # Gradio compresses what a browser takes compressed, and the key would not be seen in it.
    context = browser.new_context(
        viewport={"width": 1000, "height": 800},
        permissions=["clipboard-read", "clipboard-write"],
        extra_http_headers={"Accept-Encoding": "identity"},
    )
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    reached: list[str] = []
    refused: list[str] = []
    tab.on("response", lambda response: reached.append(response.url))
    tab.on("requestfailed", lambda request: refused.append(f"{request.failure} {request.url}"))
    tab.refused = refused
    yield tab
    context.close()
    assert all(re.match(r"(http://(127\.0\.0\.1|foreign\.example):\d+/|data:|blob:)", url) for url in reached)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(key=KEY) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def page(endpoint, tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("chat") / "served"
    with served(folder, PIXTRAL_ENDPOINT=endpoint.url, PIXTRAL_API_KEY=KEY) as page:
        yield page


def opened(tab: Any, address: str) -> Any:
    """The box for words."""
    tab.goto(address)
    box = tab.get_by_role("textbox").first
    box.wait_for()
    return box


def drop(tab: Any, *paths: str) -> None:
    """Give files, and wait until the page shows them."""
    tab.locator("input[type=file]").first.set_input_files(list(paths))
    tab.locator("img[src*='file=']").nth(len(paths) - 1).wait_for()


def ask(tab: Any, text: str) -> None:
    box = tab.get_by_role("textbox").first
    box.fill(text)
    box.press("Enter")


def counts(exchange: Exchange, ended: threading.Event) -> None:
    """An answer that ends when the client hangs up."""
    exchange.begin()
    try:
        for number in range(10_000):
            exchange.event(fake._chunk(exchange.request, {"content": f"{number} "}))
            time.sleep(0.02)
    finally:
        ended.set()


def test_pictures_answers_and_what_leaves_the_process(tab, page, endpoint):
    """Two pictures in a message, a further turn, and curl. The key is in nothing that the browser gets."""
    endpoint._steps = [says("A chart, ", "a receipt. ![](http://elsewhere.example/?receipt)"), says("Yes.")]
    opened(tab, page.relay)
    drop(tab, CHART, RECEIPT)
    ask(tab, "Compare them")
    tab.get_by_text("A chart, a receipt.").wait_for()
    chart, receipt = of_file("chart.png"), of_file("receipt.jpg")
    tab.get_by_text(f"(chart.png: {chart:,}, receipt.jpg: {receipt:,}), 12 answered.").wait_for()
    ask(tab, "Sure?")
    tab.get_by_text("Yes.").wait_for()
    first, second = (request.json["messages"] for request in endpoint.asked)
    assert [part["type"] for part in first[0]["content"]] == ["image_url", "image_url", "text"]
    assert second[:1] == first
    assert [message["role"] for message in second] == ["user", "assistant", "user"]

    tab.get_by_role("button", name="Copy as curl").click()
    deadline, command = time.monotonic() + 10, ""
    while "Sure?" not in command and time.monotonic() < deadline:
        tab.wait_for_timeout(50)
        command = tab.evaluate("navigator.clipboard.readText()")
    environ = {"PIXTRAL_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    said = subprocess.check_output(["bash", "-e"], input=command, env=environ, text=True)
    assert '"content": "Yes."' in said
    assert endpoint.asked[-1].json["messages"] == second

    assert b"a receipt." in page.got
    assert KEY.encode() not in page.got
    assert KEY not in command
    # What a picture makes the model say leads nowhere.
    assert "csp http://elsewhere.example/?receipt" in tab.refused
    assert next(iter(page.files.iterdir())).stat().st_mode & 0o777 == 0o700


def counting(tab, page, endpoint):
    """Begins an answer that goes on and on; the event is that its request has ended."""
    ended = threading.Event()
    endpoint._steps = [lambda exchange: counts(exchange, ended)]
    opened(tab, page.address)
    ask(tab, "Count")
    tab.get_by_text("0 1 2 3").wait_for()
    return ended


def test_stop_ends_the_request(tab, page, endpoint):
    ended = counting(tab, page, endpoint)
    assert not ended.is_set()
    tab.get_by_role("button", name="Stop").click()
    assert ended.wait(5)
    tab.get_by_role("button", name="Submit").wait_for()
    endpoint._steps = [says("Further.")]
    ask(tab, "And now?")
    tab.get_by_text("Further.").wait_for()
    assert endpoint.asked[-1].json["messages"][1]["content"][0]["text"].startswith("0 1 2 3")


def test_a_closed_tab_ends_the_request(tab, page, endpoint):
    ended = counting(tab, page, endpoint)
    tab.close()
    assert ended.wait(20)


def test_an_error(tab, page, endpoint):
    endpoint._steps = [fake.vllm_error(400, "At most 4 image(s) may be provided in one prompt.")]
    opened(tab, page.address)
    ask(tab, "Hello")
    tab.get_by_text(
        "Error: At most 4 image(s) may be provided in one prompt. Lower the tokens of the answer, or begin a new"
    ).wait_for()
    endpoint._steps = [says("Good day.")]
    tab.get_by_role("button", name="Retry").click()
    tab.get_by_text("Good day.").wait_for()
    assert [message["role"] for message in endpoint.asked[-1].json["messages"]] == ["user"]


def test_another_page_another_host_and_the_files_of_the_disk(tab, page, endpoint, sites, tmp_path):
    asked = len(endpoint.asked)
    assert tab.goto(page.address.replace("127.0.0.1", "foreign.example")).status == 403
    assert tab.goto(page.address[:-10]).status == 403

    # A page of another origin that knows even the address
    FILES["/foreign.html"] = (
        f'<iframe src="{page.address}"></iframe><p id="said"></p><script>'
        f"fetch('{page.relay}gradio_api/upload', {{method: 'POST', mode: 'no-cors', body: new FormData()}})"
        ".then(() => said.textContent = 'sent')</script>"
    ).encode()
    before = len(page.got)
    tab.goto(f"{sites[0]}/foreign.html")
    tab.get_by_text("sent").wait_for()
    assert re.findall(rb"^HTTP/1.1 (...)", page.got[before:]) == [b"403"]
    assert not tab.frame_locator("iframe").get_by_role("textbox").count()

    # Its own page gives no other file, by its URL or as a picture that was never dropped
    private = tmp_path / "private.png"
    shutil.copy(CHART, private)
    (folder,) = page.files.iterdir()
    opened(tab, page.address)
    for path in (private, f"{folder}/../../{private}", f"{ROOT}/README.md", "/etc/hostname"):
        assert tab.request.get(f"{page.address}gradio_api/file={path}").status == 403
    drop(tab, CHART)

    def instead(route: Any) -> None:
        (path,) = re.findall(r'"path":"([^"]+/chart.png)"', route.request.post_data)
        route.continue_(post_data=route.request.post_data.replace(path, str(private)))

    tab.route("**/gradio_api/run/predict", instead, times=1)
    page.attacks += 1
    with tab.expect_response("**/gradio_api/run/predict") as answer:
        ask(tab, "What is it?")
    assert (answer.value.status, len(endpoint.asked)) == (500, asked)


def test_before_a_rehearsal(tab, running, tmp_path):
    """As a user has it, light and dark; the pictures of it are those of the guide."""
    environ = {"PIXTRAL_ENDPOINT": running.url, "PIXTRAL_API_KEY": running.key}
    with served(tmp_path / "served", **environ) as page:
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            opened(tab, page.address)
            tab.get_by_role("button", name="Settings").click()
            tab.get_by_label("number input for Tokens of the answer, at most").fill("32")
            tab.get_by_role("button", name="Settings").click()
            drop(tab, CHART, RECEIPT)
            ask(tab, "What does the receipt add up to?")
            told = tab.get_by_text(
                re.compile(r"of 32,768 tokens: .* asked .*, 32 answered, where it was cut off")
            )
            told.wait_for()
            prompt = int(re.findall(r"tokens: ([\d,]+) asked", told.inner_text())[0].replace(",", ""))
            assert 0 < prompt - of_file("chart.png") - of_file("receipt.jpg") < 40
            if os.environ.get("CHAT_PICTURES"):
                tab.screenshot(path=ROOT / f"docs/guides/chat-{scheme}.png")
        ask(tab, "Sure?")
        tab.get_by_text(re.compile(r"tokens: [\d,]+ asked, 32 answered")).wait_for()
