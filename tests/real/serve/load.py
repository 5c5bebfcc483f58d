"""Users who ask without a pause, and what each of them got: every request is counted.

    with Load(service, "kill -9", users=8, tokens=40, pace=0.05) as load:
        ...  # what happens meanwhile
    load.check()

They ask by our client, `ask` or `complete`, or in one `plain` HTTP request that is neither streamed nor tried
again, as curl does it. What an answer has to be is known to the letter, so that one that is lost, doubled, another's or cut is seen; and
the replicas note what they were asked, so that what was worked on more than once is seen too.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from pixtral_sky.client.client import RETRY_SECONDS, Client
from pixtral_sky.errors import BrokenAnswer, PixtralSkyError
from tests.real.serve.rig import Service
from tests.real.serve.stand_in import words

ROWS: list[list[str]] = []  # of the table at the end of a run
HEAD = [
    "case",
    "sent",
    "answered",
    "broken",
    "empty",
    "failed",
    "tried again",
    "made twice",
    "median s",
    "worst s",
]


@dataclass
class Asked:
    """One request and its outcome: answered, or the name of the error."""

    question: dict[str, Any]
    outcome: str = ""
    text: str = ""
    error: str = ""
    begun: float = 0.0  # time.time()
    ended: float = 0.0
    notices: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def expected(self) -> str:
        return "".join(words(self.question))


def picture(size: int) -> dict[str, Any]:
    """Some bytes as a picture that make a request that large."""
    data = base64.b64encode(random.randbytes(size * 3 // 4)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def content(question: dict[str, Any], *pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a question."""
    return [{"role": "user", "content": [{"type": "text", "text": json.dumps(question)}, *pictures]}]


def ask(client: Client, question: dict[str, Any], *pictures: dict[str, Any], how: str = "ask") -> Asked:
    """One request through our client, as a user has it."""
    asked = Asked(question, begun=time.time())
    client._notify = asked.notices.append
    messages = content(question, *pictures)
    pieces: list[str] = []
    try:
        if how == "ask":
            for piece in client.ask(messages):
                pieces.append(piece)
        else:
            pieces.append(client.complete(messages)["choices"][0]["message"]["content"])
        asked.outcome = "answered"
    except PixtralSkyError as error:
        asked.outcome, asked.error = type(error).__name__, str(error)
    asked.text, asked.ended = "".join(pieces), time.time()
    return asked


def ask_plainly(http: httpx.Client, question: dict[str, Any], *pictures: dict[str, Any]) -> Asked:
    """One request that is not streamed, nor tried again."""
    asked = Asked(question, begun=time.time())
    body = {"model": "pixtral", "messages": content(question, *pictures)}
    try:
        response = http.post("/v1/chat/completions", json=body)
        asked.outcome, asked.error = str(response.status_code), response.text[:300]
        if response.is_success:
            asked.outcome, asked.text = "answered", response.json()["choices"][0]["message"]["content"]
    except httpx.HTTPError as error:
        asked.outcome, asked.error = type(error).__name__, str(error)
    asked.ended = time.time()
    return asked


class Load:
    """See the module. ``how`` is `ask`, `complete` or `plain`, ``body`` the bytes of a request, ``timeout`` what a
    plain one waits for a byte, ``budget`` what our client has to try again, ``question`` its fields (stand_in.py).
    """

    _runs = itertools.count()

    def __init__(
        self,
        service: Service,
        name: str,
        *,
        users: int = 8,
        how: str = "ask",
        body: int = 0,
        timeout: float = 300,
        budget: float = RETRY_SECONDS,
        **question: Any,
    ) -> None:
        self.service, self.name = service, name
        self._run = f"{next(self._runs)}-{os.getpid()}"
        self._how, self._timeout, self._budget = how, timeout, budget
        self._pictures, self._question = [picture(body)] if body else [], {"tokens": 8, **question}
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._user, daemon=True) for _ in range(users)]
        self.asked: list[Asked] = []
        self.errors: list[BaseException] = []
        self._row: list[str] = []

    def _user(self) -> None:
        try:
            with self.service.client(budget=self._budget) as client, self.service.http(self._timeout) as http:
                while not self._stop.is_set():
                    question = {"id": f"{self._run}-{next(self._numbers)}", **self._question}
                    if self._how == "plain":
                        self.asked.append(ask_plainly(http, question, *self._pictures))
                    else:
                        self.asked.append(ask(client, question, *self._pictures, how=self._how))
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Load:
        ROWS.append(self._row)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(300)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a user waits without end"
            assert not self.errors, self.errors
            assert next(self._numbers) == len(self.asked)
            self.report()

    def answered_since(self, when: float) -> int:
        return sum(asked.outcome == "answered" and asked.begun > when for asked in list(self.asked))

    def of(self, outcome: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.outcome == outcome]

    @property
    def failed(self) -> list[Asked]:
        """Those whose user got an error, and nothing of an answer."""
        return [asked for asked in self.asked if asked.outcome not in ("answered", "BrokenAnswer")]

    def runs(self) -> dict[str, list[float]]:
        """When a replica began to work on each question."""
        begun: dict[str, list[float]] = {asked.question["id"]: [] for asked in self.asked}
        for machine in self.service.all_machines():
            for each in machine.requests():
                if each["what"] == "begins" and each["id"] in begun:
                    begun[each["id"]].append(each["at"])
        return begun

    def check(self) -> None:
        """What always holds: an answer is whole and once, and what is broken says how much has come."""
        runs = self.runs()
        for asked in self.asked:
            if asked.outcome == "answered":
                assert asked.text == asked.expected
                assert runs[asked.question["id"]]
            else:
                assert asked.expected.startswith(asked.text)
                # Nobody works on behind the back of a user who was told that it is over.
                assert all(at < asked.ended for at in runs[asked.question["id"]])
            if asked.outcome == BrokenAnswer.__name__ and self._how == "ask":
                none = "takes too long to answer" in asked.error and not asked.text
                assert none or f"after {len(asked.text):,} characters" in asked.error, asked.error

    def report(self) -> None:
        broken, answered = self.of("BrokenAnswer"), self.of("answered")
        failed: dict[str, int] = {}
        for asked in self.failed:
            failed[asked.outcome] = failed.get(asked.outcome, 0) + 1
        seconds = sorted(asked.seconds for asked in self.asked)
        cells = [
            self.name,
            len(self.asked),
            len(answered),
            len(broken),
            sum(not asked.text for asked in broken),
            ", ".join(f"{number} {name}" for name, number in failed.items()) or 0,
            sum(bool(asked.notices) for asked in self.asked),
            sum(len(begun) > 1 for begun in self.runs().values()),
            f"{seconds[len(seconds) // 2]:.2f}",
            f"{seconds[-1]:.1f}",
        ]
        self._row.extend(str(cell) for cell in cells)
