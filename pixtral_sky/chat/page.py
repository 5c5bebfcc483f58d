"""The page: Gradio's chat, on 127.0.0.1, for one endpoint. Needs gradio, the extra ``chat``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pixtral_sky import output
from pixtral_sky.chat import conversation
from pixtral_sky.chat.guard import Guard
from pixtral_sky.client.answer import Answer
from pixtral_sky.client.client import Client
from pixtral_sky.client.curl import curl
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.client.messages import MAX_TOKENS, TEMPERATURE
from pixtral_sky.errors import PixtralSkyError, UsageError
from pixtral_sky.extras import install
from pixtral_sky.pictures.picture import EXTENSIONS
from pixtral_sky.pictures.source import MAX_FILE

SHOW_SECONDS = 0.05  # between two states of an answer: Gradio compares each with the last
TO_CLIPBOARD = "text => { navigator.clipboard.writeText(text) }"


@dataclass(frozen=True)
class Served:
    """A page: its ``url``, the ``folder`` of its files, what serves it until SIGINT or SIGTERM."""

    url: str
    folder: Path
    run: Callable[[], None]

    def open(self) -> None:
        """Open it in the browser of a desktop, if there is one."""
        # By a file that only this user can read: an argument, with the secret in it, would be seen by all.
        file = self.folder / "open.html"
        file.write_text(f'<meta http-equiv="refresh" content="0; url={self.url}">')
        with contextlib.suppress(webbrowser.Error):
            browser = webbrowser.get()
            if type(browser) is not webbrowser.GenericBrowser:  # those of a terminal are
                browser.open(file.as_uri())


@contextlib.contextmanager
def served(endpoint: Endpoint, port: int, check: bool) -> Iterator[Served]:
    """The page, at ``port`` of 127.0.0.1 (0: any). What is dropped on it is gone at the end.

    ``check``: as for ``conversation.read``. Raises UsageError when Gradio is not installed, or the port is
    taken.
    """
    with tempfile.TemporaryDirectory(prefix="pixtral-sky-") as folder, _listening(port) as listener:
        # Read when it is imported.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        try:
            import fastapi
            import gradio
            import uvicorn
        except ImportError as error:
            raise UsageError("The page needs Gradio.", install("chat")) from error
        secret = secrets.token_urlsafe(32)
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            _page(gradio, Chat(endpoint, check)),
            f"/{secret}",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            max_file_size=MAX_FILE,
            css='[aria-label="Share"] { display: none }',  # of a picture, with Hugging Face
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
        config = uvicorn.Config(Guard(app, secret), log_level="critical", timeout_graceful_shutdown=1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/{secret}/"
        yield Served(url, Path(folder), lambda: uvicorn.Server(config).run([listener]))


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UsageError(
            f"Port {port} cannot be used: {os.strerror(error.errno or 0)}.",
            "Leave --port out to get a free one.",
        ) from error


def _page(gradio: Any, chat: Chat) -> Any:
    named = chat.endpoint.origin not in ("", "PIXTRAL_ENDPOINT")
    title = f"Pixtral: {chat.endpoint.origin if named else chat.endpoint.url}"
    with gradio.Blocks(title=title, analytics_enabled=False, fill_height=True) as page:
        system = gradio.Textbox(label="System prompt", render=False)
        temperature = gradio.Slider(0, 2, TEMPERATURE, step=0.1, label="Temperature", render=False)
        most = chat.endpoint.max_model_len or 2**17
        max_tokens = gradio.Slider(
            1, most, MAX_TOKENS, step=1, label="Tokens of the answer, at most", render=False
        )
        said = gradio.Markdown(render=False)
        settings = [system, temperature, max_tokens]
        shown = gradio.ChatInterface(
            chat.reply,
            multimodal=True,
            chatbot=gradio.Chatbot(
                label=title, scale=1, buttons=["copy"], feedback_options=None, allow_file_downloads=False
            ),
            textbox=gradio.MultimodalTextbox(
                placeholder="Words, and pictures: drop, paste or choose them.",
                file_count="multiple",
                file_types=[*sorted(EXTENSIONS), ".pdf"],
                stop_btn=True,
                autofocus=True,
            ),
            additional_inputs=settings,
            additional_inputs_accordion=gradio.Accordion("Settings", open=False, render=False),
            additional_outputs=[said],
            concurrency_limit=None,
            api_visibility="private",
        )
        said.render()
        command = gradio.Textbox(visible=False)
        button = gradio.Button("Copy as curl", size="sm")
        asked = button.click(
            chat.command,
            [shown.chatbot, *settings],
            command,
            api_visibility="private",
            show_progress="hidden",
        )
        asked.success(None, command, None, js=TO_CLIPBOARD)
    page.has_launched = True  # else Gradio takes the path of any file for that of one that was dropped
    return page


class Chat:
    """What the page does with ``endpoint``."""

    def __init__(self, endpoint: Endpoint, check: bool) -> None:
        self.endpoint = endpoint
        self._check = check

    async def reply(
        self, message: Any, history: list[Any], system: str, temperature: float, max_tokens: int
    ) -> AsyncIterator[tuple[Any, str]]:
        """The answer so far and a line about it, again and again."""
        files = [{"type": "file", "file": {"path": path}} for path in message["files"]]
        words = [{"type": "text", "text": message["text"]}] if message["text"].strip() else []
        said = [*history, {"role": "user", "content": [*files, *words]}]
        # Whatever ends this, the end of its client ends the request, also at the endpoint.
        with contextlib.closing(Client(self.endpoint, notify=output.say)) as client:
            try:
                turns = await asyncio.to_thread(self._read, said, max_tokens)
                pictures = conversation.tokens(turns[-1][1])
                yield "", pictures
                messages = conversation.request(turns, system)
                ask = partial(client.ask, messages, temperature=temperature, max_tokens=max_tokens)
                answer = await asyncio.to_thread(ask)
                texts, shown = iter(answer), 0.0
                while await asyncio.to_thread(next, texts, None) is not None:
                    if time.monotonic() - shown > SHOW_SECONDS:
                        yield answer.text, pictures
                        shown = time.monotonic()
                yield answer.text, self._took(answer, pictures)
            except PixtralSkyError as error:
                yield conversation.error(error), ""

    def command(self, history: list[Any], system: str, temperature: float, max_tokens: int) -> str:
        """The last request as a curl command."""
        while history and history[-1]["role"] != "user":
            history = history[:-1]
        try:
            if not history:
                raise UsageError("Nothing has been asked yet.")
            messages = conversation.request(self._read(history, max_tokens), system)
        except PixtralSkyError as error:
            import gradio

            raise gradio.Error(str(error), print_exception=False) from None
        body = {"model": self.endpoint.model, "messages": messages, "stream": True}
        body |= {"temperature": temperature, "max_tokens": max_tokens}
        return curl(self.endpoint, f"@- <<'END'\n{json.dumps(body)}\nEND")

    def _read(self, said: list[Any], max_tokens: int) -> list[tuple[str, conversation.Parts]]:
        return conversation.read(said, self.endpoint, max_tokens, self._check)

    def _took(self, answer: Answer, pictures: str) -> str:
        prompt, tokens = (answer.usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        room = f" of {self.endpoint.max_model_len:,}" if self.endpoint.max_model_len else ""
        asked = f"{prompt:,} asked ({pictures})" if pictures else f"{prompt:,} asked"
        cut = ", where it was cut off" if answer.finish_reason == "length" else ""
        line = f"{prompt + tokens:,}{room} tokens: {asked}, {tokens:,} answered{cut}"
        return f"{line}. The first after {answer.seconds_to_first:.1f} s, all after {answer.seconds:.1f} s."
