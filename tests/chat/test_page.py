"""What the page asks, without Gradio around it; tests/real/clients/test_chat.py has the page itself."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixtral_sky.chat.page import Chat
from pixtral_sky.client.messages import MAX_TOKENS
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION
from tests.support import fake_endpoint as fake
from tests.support import pdfs
from tests.support.command_line import KEY, Run
from tests.support.fake_endpoint import Exchange, FakeEndpoint, says

Message = dict[str, Any]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Pictures of 32 x 32 pixels, 6 tokens each, and a file that is none; each in a folder as Gradio has it."""
    paths = {name: tmp_path / f"{n}" / name for n, name in enumerate(("red.png", "blue.png", "no.png"))}
    for name, path in paths.items():
        path.parent.mkdir()
        if name == "no.png":
            path.write_text("no picture")
        else:
            Image.new("RGB", (32, 32), name[:-4]).save(path)
    return {name: str(path) for name, path in paths.items()}


def user(text: str = "", *paths: str) -> Message:
    """A message of the page's history."""
    content: list[Message] = [{"type": "file", "file": {"path": path}} for path in paths]
    return {"role": "user", "content": content + ([{"type": "text", "text": text}] if text else [])}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": {}, **more}


def reply(
    chat: Chat, text: str = "", *paths: str, history: Any = (), system: str = "", max_tokens: int = MAX_TOKENS
) -> list[Any]:
    """All that the page shows of an answer, one after the other."""

    async def every() -> list[Any]:
        message = {"text": text, "files": list(paths)}
        return [each async for each in chat.reply(message, list(history), system, 0.5, max_tokens)]

    return asyncio.run(every())


def sent(endpoint: FakeEndpoint) -> list[tuple[str, Any]]:
    """The messages of the last request: a role, and words and bytes of pictures."""

    def part(one: Any) -> Any:
        if one["type"] == "text":
            return one["text"]
        return base64.b64decode(one["image_url"]["url"].partition(";base64,")[2])

    def content(one: Any) -> Any:
        return one if isinstance(one, str) else [part(each) for each in one]

    return [(each["role"], content(each["content"])) for each in endpoint.asked[-1].json["messages"]]


def test_an_answer(files: dict[str, str]) -> None:
    with FakeEndpoint([says("A red", " square.")], key=KEY) as endpoint:
        first, *_, (answer, line) = reply(
            Chat(endpoint.endpoint(), True),
            "Compare",
            files["red.png"],
            files["blue.png"],
            system="Be brief.",
        )
    assert first == ("", "red.png: 6, blue.png: 6")
    assert answer == "A red square."
    assert line.startswith(
        "672 of 32,768 tokens: 660 asked (red.png: 6, blue.png: 6), 12 answered. The first"
    )
    pictures = [Path(files[name]).read_bytes() for name in ("red.png", "blue.png")]
    assert sent(endpoint) == [("system", "Be brief."), ("user", [*pictures, "Compare"])]
    assert endpoint.asked[-1].json["temperature"] == 0.5
    assert endpoint.asked[-1].json["max_tokens"] == MAX_TOKENS


def test_a_picture_alone(files: dict[str, str]) -> None:
    with FakeEndpoint() as endpoint:
        reply(Chat(endpoint.endpoint(), True), "  ", files["red.png"])
    assert sent(endpoint)[0][1][1:] == [DEFAULT_QUESTION]


def test_the_pages_of_a_pdf(tmp_path: Path) -> None:
    (tmp_path / "two.pdf").write_bytes(pdfs.made(b"", b""))
    with FakeEndpoint() as endpoint:
        (*_, (_, line)) = reply(Chat(endpoint.endpoint(), True), "Read", str(tmp_path / "two.pdf"))
    assert re.search(r"\(two.pdf#page=1: [\d,]+, two.pdf#page=2: [\d,]+\)", line)
    assert len(sent(endpoint)[0][1]) == 3


def test_further_turns(files: dict[str, str]) -> None:
    """All that was said goes with them, but for a question that had an error."""
    red = files["red.png"]
    with FakeEndpoint([fake.vllm_error(400, "so not"), says("Yes.", finish_reason="length")]) as endpoint:
        chat = Chat(endpoint.endpoint(), True)
        history = [user("What is it?", red), assistant("A square."), user("Which", files["no.png"])]
        ((failed, _),) = reply(chat, "Which", files["no.png"], history=history[:2])
        assert failed["content"].startswith("Error: no.png is not a picture")
        history += [assistant(failed["content"], metadata=failed["metadata"])]
        (*_, (refused, _)) = reply(chat, "Is it?", history=history)
        assert refused["content"] == "Error: so not."
        history += [user("Is it?"), assistant(refused["content"], metadata=refused["metadata"])]
        (*_, (answer, line)) = reply(chat, "Is it red?", history=history)
    assert answer == "Yes."
    assert "12 answered, where it was cut off." in line
    assert sent(endpoint) == [
        ("user", [Path(red).read_bytes(), "What is it?"]),
        ("assistant", ["A square."]),
        ("user", ["Is it red?"]),
    ]


@pytest.mark.parametrize(
    ("limits", "max_tokens", "says"),
    [
        ({"max_images": 1}, 5, "2 pictures, and this endpoint takes 1 in one prompt."),
        (
            {"max_model_len": 20},
            6,
            "The pictures (12 tokens) and the answer (6) need 21, and this endpoint has 20 tokens for all.",
        ),
    ],
)
def test_what_is_too_much(files: dict[str, str], limits: dict[str, int], max_tokens: int, says: str) -> None:
    """Pictures of all turns count; with --no-check the server decides."""
    history = [user("What is it?", files["red.png"]), assistant("A square.")]
    refusal = fake.vllm_error(400, "This model's maximum context length is 20 tokens.")
    with FakeEndpoint([refusal]) as endpoint:
        for check in (True, False):
            chat = Chat(endpoint.endpoint(**limits), check)
            *_, (answer, _) = reply(chat, "And?", files["blue.png"], history=history, max_tokens=max_tokens)
            said = says if check else "This model's maximum context length is 20 tokens."
            assert (
                answer["content"]
                == f"Error: {said} Lower the tokens of the answer, or begin a new chat: the bin above it."
            )
            assert len(endpoint.asked) == (not check)


def test_nothing_to_ask() -> None:
    with FakeEndpoint() as endpoint:
        ((answer, _),) = reply(Chat(endpoint.endpoint(), True))
    assert answer["content"] == "Error: There is nothing to ask."
    assert not endpoint.asked


def test_stop_ends_the_request_at_the_endpoint() -> None:
    """Gradio stops by cancelling its task; what hangs up here is what ends the work there."""
    ended = threading.Event()

    def endless(exchange: Exchange) -> None:
        exchange.begin()
        try:
            exchange.event(fake._chunk(exchange.request, {"content": "One"}))
            exchange._handler.rfile.read(1)  # returns when the client has hung up
        finally:
            ended.set()

    async def stopped(chat: Chat) -> str:
        shown = asyncio.Queue[str]()

        async def use() -> None:
            async for text, _ in chat.reply({"text": "Count", "files": []}, [], "", 0, 9):
                shown.put_nowait(text)

        task = asyncio.create_task(use())
        assert await shown.get() == ""
        text = await shown.get()
        assert not ended.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 5)
        return text

    with FakeEndpoint([endless]) as endpoint:
        assert asyncio.run(stopped(Chat(endpoint.endpoint(), True))) == "One"


def test_the_request_as_curl(files: dict[str, str]) -> None:
    """It works as it stands, the key is not in it, and the server gets the same as from the page."""
    with FakeEndpoint([says("Yes.")], key=KEY) as endpoint:
        chat = Chat(endpoint.endpoint(), True)
        reply(chat, "It's $HOME `x`?\nEND", files["red.png"], system="Brief", max_tokens=7)
        asked = [user("It's $HOME `x`?\nEND", files["red.png"]), assistant("Yes.")]
        command = chat.command(asked, "Brief", 0.5, 7)
        assert KEY not in command
        run = subprocess.run(
            ["bash", "-ec", command],
            env={"PIXTRAL_API_KEY": KEY, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert '"content": "Yes."' in run.stdout
    of_page, of_curl = (each.json for each in endpoint.asked)
    assert of_curl == {name: value for name, value in of_page.items() if name != "stream_options"}


def test_without_gradio(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # is put back
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    with FakeEndpoint() as endpoint:
        result = run("chat", "--endpoint", endpoint.url)
    assert result.code == 2
    assert re.fullmatch(r"The page needs Gradio\. .* install 'gradio.*'", result.error)


def test_what_cannot_be_served(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint(key=KEY) as endpoint:
        assert "asks for a key" in run("chat", "--endpoint", endpoint.url).error
        monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
        taken = run("chat", "--endpoint", endpoint.url, "--port", endpoint.port)
    assert (taken.code, taken.error) == (
        2,
        f"Port {endpoint.port} cannot be used: Address already in use. Leave --port out to get a free one.",
    )
