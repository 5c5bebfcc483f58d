"""The client against every way in which an endpoint can answer, or not."""

from __future__ import annotations

import collections
import contextlib
import email.utils
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from pixtral_sky import errors
from pixtral_sky.client.client import (
    AGAIN,
    FIRST_SECONDS,
    READ_SECONDS,
    RETRY_AFTER_SECONDS,
    RETRY_SECONDS,
    Client,
)
from pixtral_sky.client.endpoint import Endpoint
from tests.support import fake_endpoint as fake
from tests.support.fake_endpoint import FakeEndpoint, says

KEY = "sk-SENTINEL-4711"
WORDS = "the words of the SENTINEL question"
MESSAGES = [{"role": "user", "content": WORDS}]


class Talk:
    """A client of a fake endpoint whose pauses take no time, and what it said and slept meanwhile."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        self.notices: list[str] = []
        self.pauses: list[float] = []
        options = {"sleep": self.pauses.append, "notify": self.notices.append, "read_timeout": 5, **options}
        self.client = Client(endpoint, **options)

    def ask(self, **fields: Any) -> str:
        return "".join(self.client.ask(MESSAGES, **fields))

    def fails(self, kind: type[errors.PixtralSkyError], call: Callable[[], Any] | None = None) -> str:
        """The text of the error of exactly that kind; it holds no secret and fits into a line."""
        with pytest.raises(kind) as caught:
            (call or self.ask)()
        assert caught.type is kind
        texts = [str(caught.value), *self.notices]
        error: BaseException | None = caught.value
        while error := error.__cause__ or error.__context__ if error else None:
            texts.append(f"{error} {error!r}")
        for text in texts:
            assert "SENTINEL" not in text
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
        assert caught.value.what.endswith(".")
        return str(caught.value)


@contextmanager
def talk(*script: fake.Behaviour, key: str = KEY, **options: Any) -> Iterator[tuple[FakeEndpoint, Talk]]:
    with FakeEndpoint(script or (says("Hello"),), key=key) as endpoint:
        talking = Talk(endpoint.endpoint(), **options)
        with talking.client:
            yield endpoint, talking


@contextmanager
def talk_to(endpoint: Endpoint, **options: Any) -> Iterator[Talk]:
    talking = Talk(endpoint, **options)
    with talking.client:
        yield talking


# The answer


def test_a_streamed_answer() -> None:
    with talk(says("A ", "red", " square.")) as (endpoint, talking):
        answer = talking.client.ask(MESSAGES, max_tokens=7, temperature=0, response_format=None)
        assert list(answer) == ["A ", "red", " square."]
    assert answer.text == "A red square."
    assert answer.usage == fake.USAGE
    assert answer.finish_reason == "stop"
    assert 0 < answer.seconds_to_first <= answer.seconds < 5
    (request,) = endpoint.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert int(request.headers["content-length"]) == len(request.body)
    assert request.json == {
        "model": "pixtral",
        "messages": MESSAGES,
        "max_tokens": 7,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_whole_answer_is_streamed_underneath() -> None:
    with talk(says("A red", " square.")) as (endpoint, talking):
        document = talking.client.complete(MESSAGES, seed=1)
    assert document["choices"][0]["message"]["content"] == "A red square."
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["object"] == "chat.completion"
    assert document["usage"] == fake.USAGE
    assert document["id"].startswith("chatcmpl-")
    assert endpoint.requests[0].json["max_tokens"] == 512
    assert endpoint.requests[0].json["temperature"] == 0.7
    assert endpoint.requests[0].json["seed"] == 1
    assert endpoint.requests[0].json["stream"] is True, "a balancer repeats what is silent for long"


@pytest.mark.parametrize("usage", ["x", [1], {"prompt_tokens": "x", "completion_tokens": None}])
def test_a_usage_of_a_strange_server(usage: Any) -> None:
    chunk = {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    with talk(fake.streams(chunk, "[DONE]")) as (_, talking):
        assert talking.client.complete("What?")["usage"] == {}


def test_each_piece_is_there_before_the_next_is_made() -> None:
    with talk(fake.streams("first", wait=30)) as (_, talking):
        assert next(iter(talking.client.ask(MESSAGES))) == "first"


def test_characters_and_lines_cut_in_two_by_tcp() -> None:
    text = "Zażółć 🦊\u2028 \x85 漢字 👩\u200d🔬"
    with talk(fake.streams(*text, b"[DONE]", slice_at=1)) as (_, talking):
        assert talking.ask() == text


def test_no_key_no_header() -> None:
    with talk(key="") as (endpoint, talking):
        assert talking.ask() == "Hello"
    assert "authorization" not in endpoint.requests[0].headers


def test_a_path_before_v1_is_kept() -> None:
    with FakeEndpoint() as endpoint, talk_to(endpoint.endpoint(url=f"{endpoint.url}/pixtral/a")) as talking:
        talking.ask()
    assert endpoint.requests[0].path == "/pixtral/a/v1/chat/completions"


def test_the_connection_is_used_again() -> None:
    with talk() as (endpoint, talking):
        for _ in range(3):
            assert talking.ask() == "Hello"
    assert endpoint.connections == 1


def test_the_connection_is_used_again_after_an_error() -> None:
    failures = (fake.vllm_error(400, "no"), fake.page(404), fake.no_replica(), fake.status(401))
    with talk(*failures, says("Hello"), budget=0) as (endpoint, talking):
        for kind in (errors.Refused, errors.NotAnAPI, errors.Busy, errors.Unauthorized):
            talking.fails(kind)
        assert talking.ask() == "Hello"
    assert endpoint.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    """Nothing was begun: it is not even one of the attempts that ``budget`` allows."""

    def leaves(exchange: fake.Exchange) -> None:
        says("Hello")(exchange)
        exchange.hang_up()

    with talk(leaves, budget=0) as (endpoint, talking):
        for _ in range(3):
            assert talking.ask() == "Hello"
            time.sleep(0.05)
    assert (endpoint.connections, len(endpoint.requests)) == (3, 3)


# A request as it is given


def test_a_body_is_sent_as_it_is() -> None:
    body = {"model": "theirs", "messages": MESSAGES, "seed": 1, "stop": None, "stream": False}
    with talk(says("A red", " square.")) as (endpoint, talking):
        document = talking.client.send(body)
        assert talking.client.send({"messages": []})["object"] == "chat.completion"
    assert document["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A red square."},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (document["model"], document["usage"]) == ("theirs", fake.USAGE)
    first, second = endpoint.requests
    assert first.json == {**body, "stream": True, "stream_options": {"include_usage": True}}
    assert second.json["model"] == "pixtral"
    assert "stream_options" not in body


def test_a_body_that_no_encoder_likes() -> None:
    words = {"half": "\ud83d", "large": 2**70, "text": "\u017c\u00f3\u0142\u0107 \U0001f98a"}
    with talk() as (endpoint, talking):
        talking.client.send({"messages": [words]})
        talking.client.send({"messages": [words["text"]]})
    assert [request.json["messages"][0] for request in endpoint.requests] == [words, words["text"]]


def test_all_that_a_stream_says_is_in_the_whole() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        named = {"id": f"call-{index}", "type": "function"} if "name" in function else {}
        return {"index": index, **named, "function": function}

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": None, **more}
        return {
            "id": "a",
            "created": 1,
            "object": "chat.completion.chunk",
            "choices": [choice],
            "usage": None,
        }

    events = (
        chunk(2, {"role": "assistant", "content": "th"}),
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(0, {"content": "o", "reasoning": "be"}, logprobs={"content": [{"token": "o"}]}),
        chunk(0, {"content": "ne", "reasoning": "cause"}, logprobs={"content": [{"token": "ne"}]}),
        chunk(1, {"role": "assistant", "tool_calls": [call(0, name="f", arguments="{"), call(1, name="g")]}),
        chunk(1, {"tool_calls": [call(0, arguments='"a"'), call(1, arguments="[")]}),
        chunk(
            1, {"tool_calls": [call(0, arguments=": 1}"), call(1, arguments="]")]}, finish_reason="tool_calls"
        ),
        chunk(2, {"content": "ree"}, finish_reason="length"),
        chunk(0, {}, finish_reason="stop", stop_reason=7),
        {"choices": [], "usage": fake.USAGE},
    )
    with talk(fake.streams(*events, b"[DONE]")) as (_, talking):
        document = talking.client.send({"messages": [], "n": 3})
    one, two, three = document.pop("choices")
    assert document == {"id": "a", "created": 1, "object": "chat.completion", "usage": fake.USAGE}
    assert one["message"] == {"role": "assistant", "content": "one", "reasoning": "because"}
    assert one["logprobs"] == {"content": [{"token": "o"}, {"token": "ne"}]}
    assert (one["finish_reason"], one["stop_reason"]) == ("stop", 7)
    assert [call["function"] for call in two["message"]["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "[]"},
    ]
    assert two["message"]["tool_calls"][0] == {
        "id": "call-0",
        "type": "function",
        "function": two["message"]["tool_calls"][0]["function"],
    }
    assert (three["message"]["content"], three["finish_reason"]) == ("three", "length")


def test_a_stream_without_an_end_for_each_choice_is_broken() -> None:
    end = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    with talk(fake.streams("a", end)) as (_, talking):
        text = talking.fails(errors.BrokenAnswer, lambda: talking.client.send({"messages": [], "n": 2}))
    assert "broke off after 1 characters" in text


# From many threads


def test_each_of_many_threads_gets_its_own_answer() -> None:
    tries: collections.Counter[int] = collections.Counter()
    lock = threading.Lock()

    def behave(exchange: fake.Exchange) -> None:
        number = exchange.request.json["messages"][0]["content"]["number"]
        with lock:
            tries[number] += 1
            is_first = tries[number] == 1
        failures: list[fake.Behaviour] = [
            fake.no_replica(),
            fake.status(429, retry_after="1"),
            fake.drops(),
            fake.drops(reset=True),
        ]
        if number % 8 < 4 and is_first:
            failures[number % 8](exchange)
        elif number % 8 == 4:
            fake.vllm_error(400, f"no {number}")(exchange)
        elif number % 8 == 5:
            fake.streams(f"half {number}", end=False)(exchange)
        else:
            says("answer ", str(number))(exchange)

    with talk(behave, connections=64) as (_, talking):

        def ask(number: int) -> str:
            question = [{"role": "user", "content": {"number": number, "picture": "A" * 50_000}}]
            try:
                return str(talking.client.complete(question)["choices"][0]["message"]["content"])
            except errors.PixtralSkyError as error:
                return f"{type(error).__name__}: {error}"

        with ThreadPoolExecutor(64) as threads:
            answers = list(threads.map(ask, range(640)))
    for number, answer in enumerate(answers):
        if number % 8 == 4:
            assert answer == f"Refused: no {number}."
        elif number % 8 == 5:
            characters = len(f"half {number}")
            assert answer == f"BrokenAnswer: The answer broke off after {characters} characters. Ask again."
        else:
            assert answer == f"answer {number}"
        assert tries[number] == {4: 1, 5: 1 + AGAIN, 6: 1, 7: 1}.get(number % 8, 2)


def test_no_more_connections_are_kept_than_wanted() -> None:
    together = threading.Barrier(8)

    def behave(exchange: fake.Exchange) -> None:
        together.wait(10)
        says("Hello")(exchange)

    with talk(behave, connections=2) as (endpoint, talking), ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            assert list(threads.map(lambda _: talking.ask(), range(8))) == ["Hello"] * 8
    assert endpoint.connections == 8 + 6


def test_close_ends_what_other_threads_wait_for() -> None:
    """An answer that is on its way, one that has not begun, and a pause before the next attempt."""
    begun = threading.Barrier(13)
    hung_up = threading.Semaphore(0)

    def behave(exchange: fake.Exchange) -> None:
        kind = exchange.request.json["kind"]
        if kind == "busy":
            fake.status(503, retry_after="30")(exchange)
            return
        if kind == "streams":
            exchange.begin()
            exchange.event(fake._chunk(exchange.request, {"content": "first"}))
        elif kind == "silent":
            begun.wait(10)
        exchange._handler.connection.settimeout(10)
        if not exchange._handler.connection.recv(1):
            hung_up.release()
        exchange.hang_up()

    with FakeEndpoint([behave]) as endpoint:
        waits = threading.Semaphore(0)
        client = Client(endpoint.endpoint(), connections=12, notify=lambda _: waits.release())

        def ask(kind: str) -> str:
            try:
                for _ in (pieces := iter(client.ask(MESSAGES, kind=kind))):
                    begun.wait(10)
                    list(pieces)
            except errors.BrokenAnswer as error:
                return str(error)
            return "no error"

        with ThreadPoolExecutor(18) as threads:
            kinds = ["streams", "silent", "busy"] * 6
            results = list(map(threads.submit, [ask] * 18, kinds))
            begun.wait(10)
            for _ in range(6):
                assert waits.acquire(timeout=10)
            began = time.monotonic()
            client.close()
            said = [result.result(5) for result in results]
        assert time.monotonic() - began < 3
        for _ in range(12):
            assert hung_up.acquire(timeout=5), "the endpoint goes on with an answer"
        for kind, text in zip(kinds, said, strict=True):
            if kind == "streams":
                assert text == "The answer broke off after 5 characters. Ask again."
            else:
                assert text == "The client was closed before an answer began. Ask again."
        with pytest.raises(errors.BrokenAnswer, match="The client was closed"):
            client.ask(MESSAGES)
        assert len(endpoint.requests) == 18


def test_an_answer_may_be_collected_at_any_moment() -> None:
    """As garbage is: within whatever the same thread does with its connections."""
    with talk(fake.streams("a", wait=5)) as (_, talking):
        answer = iter(talking.client.ask(MESSAGES))
        next(answer)
        transport = talking.client._transport
        (stream,) = transport._streams
        with transport._lock, stream._lock:
            del answer
            gc.collect()
        assert not transport._streams


def test_nothing_is_left_open() -> None:
    def opened() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = opened()
    broken = (fake.streams("a", end=False), fake.streams(b"{"), fake.page(), fake.drops(), fake.raw(b"\0"))
    for behaviour in (*broken, says("Hello"), fake.streams("a", wait=5)):
        with talk(behaviour, budget=0, read_timeout=0.2) as (_, talking):
            for _ in range(3):
                try:
                    talking.client.ask(MESSAGES)  # and never looked at
                    next(iter(talking.client.ask(MESSAGES)))
                    talking.ask()
                except errors.EndpointError:
                    pass
    end = time.monotonic() + 5
    while opened() > before and time.monotonic() < end:
        time.sleep(0.05)  # the endpoint's own threads
    assert opened() <= before


# What is served


def test_learn_takes_pixtral_or_else_the_first() -> None:
    for served, model in ((["other", "pixtral"], "pixtral"), (["a", "b"], "a")):
        models = [{"id": name, "max_model_len": 1000 + len(name)} for name in served]
        with (
            FakeEndpoint(models=models) as endpoint,
            talk_to(endpoint.endpoint(max_model_len=None)) as talking,
        ):
            found = talking.client.learn()
            assert (found.model, found.max_model_len) == (model, 1000 + len(model))
            talking.ask()
        assert endpoint.asked[0].json["model"] == model


def test_learn_where_no_context_is_told_and_where_nothing_is_served() -> None:
    with FakeEndpoint(models=[{"id": "gpt"}]) as endpoint, talk_to(endpoint.endpoint()) as talking:
        assert talking.client.learn().max_model_len is None
    with FakeEndpoint(models=[]) as endpoint, talk_to(endpoint.endpoint()) as talking:
        assert "serves no model" in talking.fails(errors.NotAnAPI, lambda: talking.client.learn())


@pytest.mark.parametrize(
    "document", [[], {}, {"data": 1}, {"data": [1]}, {"data": [{}]}, None, {"data": None}]
)
def test_models_that_make_no_sense(document: Any) -> None:
    with FakeEndpoint() as endpoint, talk_to(endpoint.endpoint()) as talking:
        endpoint.models = document
        talking.fails(errors.NotAnAPI, talking.client.models)


# What is tried again


@pytest.mark.parametrize(
    ("failure", "notice"),
    [
        (fake.no_replica(), "no replica is ready; trying again in "),
        (fake.replicas_refuse(), "no replica is ready; trying again in "),
        (fake.status(429), "is busy (429); trying again in "),
        (fake.status(502), "is busy (502); trying again in "),
        (fake.page(503), "is busy (503); trying again in "),
        (fake.status(504), "is busy (504); trying again in "),
        (fake.drops(), "the connection was dropped before an answer began; trying again in "),
        (fake.drops(reset=True), "the connection was dropped before an answer began; trying again in "),
    ],
)
def test_it_is_tried_again(failure: fake.Behaviour, notice: str) -> None:
    with talk(failure, failure, says("Hello")) as (endpoint, talking):
        assert talking.ask() == "Hello"
    assert len(endpoint.requests) == 3
    assert len({request.body for request in endpoint.requests}) == 1
    first, second = talking.notices
    assert notice in first
    assert notice in second
    assert 1 <= talking.pauses[0] <= 2 <= talking.pauses[1] <= 3


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (
            fake.no_replica(),
            errors.Busy,
            "No replica is ready. Try again later.",
        ),
        (fake.replicas_refuse(), errors.Busy, "No replica is ready."),
        (fake.vllm_error(429, "slow down"), errors.Busy, "is busy (429): slow down. Try again later."),
        (fake.vllm_error(503, "asleep"), errors.Busy, "is busy (503): asleep. "),
        (
            fake.drops(),
            errors.Unreachable,
            "hangs up without an answer to a request of 0.0 MiB. Is its address",
        ),
    ],
)
def test_it_is_given_up_in_time(
    failure: fake.Behaviour, kind: type[errors.PixtralSkyError], text: str
) -> None:
    with talk(failure) as (endpoint, talking):
        assert text in talking.fails(kind)
    assert 4 <= len(endpoint.requests) <= 8
    assert RETRY_SECONDS - 10 < sum(talking.pauses) <= RETRY_SECONDS
    with talk(failure, budget=0) as (endpoint, talking):
        talking.fails(kind)
    assert len(endpoint.requests) == 1
    assert not talking.notices


def test_the_budget_is_of_the_clock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(exchange: fake.Exchange) -> None:
        time.sleep(0.15)
        fake.no_replica()(exchange)

    # The pause, of a second or more, does not fit in what the first attempt leaves.
    with talk(late, budget=1.1) as (endpoint, talking):
        monkeypatch.setattr("random.random", lambda: 0.0)
        talking.fails(errors.Busy)
    assert len(endpoint.requests) == 1


def test_retry_after_in_seconds() -> None:
    with talk(fake.status(429, retry_after="7"), fake.status(503, retry_after="0"), says("Hello")) as (
        _,
        talking,
    ):
        assert talking.ask() == "Hello"
    assert talking.pauses[0] == 7
    assert talking.notices[0].endswith("trying again in 7 s")
    assert talking.pauses[1] >= 2  # never sooner than without it


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    with talk(fake.status(503, retry_after=date), says("Hello")) as (_, talking):
        assert talking.ask() == "Hello"
    assert 17 < talking.pauses[0] <= 20


@pytest.mark.parametrize("value", ["soon", "-5", "1e9", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 400])
def test_retry_after_that_makes_no_sense(value: str) -> None:
    with talk(fake.status(503, retry_after=value), says("Hello")) as (_, talking):
        assert talking.ask() == "Hello"
    assert talking.pauses[0] <= 2


def test_retry_after_beyond_the_budget_is_not_waited_for() -> None:
    with talk(fake.status(429, retry_after="3600")) as (endpoint, talking):
        assert "It asks to wait 3600 s." in talking.fails(errors.Busy)
    assert len(endpoint.requests) == 1


def test_retry_after_is_waited_for_a_minute_at_most() -> None:
    with talk(fake.status(429, retry_after="3600"), says("Hello"), budget=300) as (_, talking):
        assert talking.ask() == "Hello"
    assert talking.pauses == [RETRY_AFTER_SECONDS]
    assert talking.notices[0].endswith("is busy (429) and asks to wait 3600 s; trying again in 60 s")


@pytest.mark.parametrize(("headers", "seconds"), [({"retry_after": "7"}, 7), ({}, 0)])
def test_a_busy_one_says_for_how_long(headers: dict[str, str], seconds: float) -> None:
    for code in (429, 503):
        with talk(fake.status(code, **headers), budget=0) as (_, talking):
            with pytest.raises(errors.Busy) as caught:
                talking.ask()
            assert caught.value.retry_after == seconds


def test_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with talk_to(Endpoint(url, KEY)) as talking:
        text = talking.fails(errors.Unreachable)
    assert text == f"Nothing answers at {url}. Is its address right?"
    assert talking.notices[0].startswith(f"nothing answers at {url}; trying again in ")
    assert 1 <= sum(talking.pauses) <= FIRST_SECONDS, "as a rule, the address is mistyped"


def test_a_server_that_was_there_is_waited_for() -> None:
    def answer(exchange: fake.Exchange) -> None:
        says("Hello")(exchange)
        exchange.hang_up()

    with FakeEndpoint([answer]) as endpoint:
        talking = Talk(endpoint.endpoint())
        assert talking.ask() == "Hello"
    with talking.client:
        talking.fails(errors.Unreachable)
    assert RETRY_SECONDS - 10 < sum(talking.pauses) <= RETRY_SECONDS


def test_a_budget_that_is_asked_for_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with talk_to(Endpoint(url, KEY), budget=90) as talking:
        talking.fails(errors.Unreachable)
    assert 80 < sum(talking.pauses) <= 90


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_host(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_host)
    with talk_to(Endpoint("http://pixtral.invalid:8081", KEY)) as talking:
        text = talking.fails(errors.Unreachable)
    assert "No host has the name in http://pixtral.invalid:8081." in text
    assert not talking.pauses


def test_a_resolver_that_is_out_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with talk_to(Endpoint("http://pixtral.invalid:8081", KEY)) as talking:
        talking.fails(errors.Unreachable)
    assert 1 <= sum(talking.pauses) <= FIRST_SECONDS


# What is final


def gateway_error(code: int, name: str, message: str) -> fake.Behaviour:
    """An error of our gateway."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": name}
    return fake.status(code, {"error": error}, content_type="application/json")


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            fake.vllm_error(400, "At most 4 image(s) may be provided in one prompt."),
            errors.Refused,
            "At most 4 im",
        ),
        (fake.vllm_error(404, "The model `pixtral` does not exist."), errors.Refused, "does not exist."),
        (
            gateway_error(
                404, "not_found", "There is no POST '/x' here. A client's base URL ends in /v1; ..."
            ),
            errors.Refused,
            "has no such route. Is its address",
        ),
        (
            gateway_error(
                400,
                "invalid_image_url",
                "'a.example' answered 404. Send the picture as data: 'data:image/jpeg;base64,...'.",
            ),
            errors.Refused,
            "'a.example' answered 404. Without --remote-urls it is downloaded here.",
        ),
        (fake.status(400, {"error": "no"}), errors.Refused, "no."),
        (fake.status(401), errors.Unauthorized, "does not take this key (401). Is PIXTRAL_API_KEY right?"),
        (fake.page(403), errors.Unauthorized, "does not take this key (403)."),
        (fake.vllm_error(413, "too large"), errors.Refused, "The request is 0.0 MiB, more than http://127."),
        (
            fake.status(400, {"object": "error", "message": "no", "code": 400}),
            errors.Refused,
            "no.",
        ),
        (fake.status(404, {"detail": "Not Found"}), errors.NotAnAPI, "answers (404), but not as an OpenAI-"),
        (fake.status(405, {"detail": "Method Not Allowed"}), errors.NotAnAPI, "answers (405), but not as"),
        (fake.page(404), errors.NotAnAPI, "answers (404), but not as"),
        (fake.page(400), errors.NotAnAPI, "answers (400), but not as"),
        (fake.page(200), errors.NotAnAPI, "answers (200), but not as"),
        (fake.status(200, {"hello": "world"}), errors.NotAnAPI, "answers (200), but not as"),
        (fake.status(204), errors.NotAnAPI, "answers (204), but not as"),
        (
            fake.raw(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n"),
            errors.NotAnAPI,
            "does not speak HTTP.",
        ),
        (fake.raw(b"SSH-2.0-OpenSSH_9.9\r\n"), errors.NotAnAPI, "does not speak HTTP."),
        (fake.raw(b"<html>hello</html>"), errors.NotAnAPI, "does not speak HTTP."),
        (fake.raw(b"\x15\x03\x03\x00\x02\x02\x46"), errors.NotAnAPI, "Try https:// in place of http://."),
    ],
)
def test_it_is_final(answer: fake.Behaviour, kind: type[errors.PixtralSkyError], text: str) -> None:
    with talk(answer) as (endpoint, talking):
        assert text in talking.fails(kind)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (fake.vllm_error(500, "EngineCore died."), "failed (500): EngineCore died. Its log"),
        (fake.status(500, b"Internal Server Error"), "failed (500). Its log"),
        (fake.status(500, {"detail": "odd", "error": {}}), "failed (500): odd. "),
        (fake.page(501), "failed (501)."),
        (fake.streams({"error": {"message": "EngineCore died", "code": 500}}), "EngineCore died. Its log"),
        (fake.streams({"object": "error", "message": "It died", "code": 500}), "It died. Its log"),
        (fake.streams({"error": {"code": 500}}), "no reason is given."),
        (fake.streams({"error": "died"}), "died. Its log"),
    ],
)
def test_a_failure_of_the_server_is_tried_again(answer: fake.Behaviour, text: str) -> None:
    """Another replica may answer; and not often, as the request may be what it cannot bear."""
    with talk(answer, answer, says("Hello")) as (endpoint, talking):
        assert talking.ask() == "Hello"
    assert len(talking.notices) == len(talking.pauses) == 2
    with talk(answer) as (endpoint, talking):
        assert text in talking.fails(errors.Failed)
    assert len(endpoint.requests) == 1 + AGAIN
    for options in ({"budget": 0}, {"again": 0}):
        with talk(answer, **options) as (endpoint, talking):
            talking.fails(errors.Failed)
        assert len(endpoint.requests) == 1


BROKEN: list[tuple[fake.Behaviour, str]] = [
    (fake.streams(end=False), "broke off after 0 characters."),
    (fake.streams(), "broke off after 0 characters."),
    (fake.streams(b"[]"), "stopped making sense after 0 characters."),
    (fake.streams({"choices": [1]}), "stopped making sense after 0"),
    (fake.streams({"choices": [{"index": 1, "delta": {"content": "b"}}]}), "stopped making sense after 0"),
    (fake.streams({"choices": [{"index": -1, "delta": {"content": "b"}}]}), "stopped making sense after 0"),
]


@pytest.mark.parametrize(("answer", "text"), BROKEN)
def test_an_answer_that_broke_off_before_its_first_word_is_asked_again(
    answer: fake.Behaviour, text: str
) -> None:
    with talk(answer, answer, says("Hello")) as (endpoint, talking):
        assert talking.ask() == "Hello"
    assert talking.notices[0].startswith("the answer ")
    assert "; asking again in " in talking.notices[0]
    assert all(1 <= pause <= 2 for pause in talking.pauses)
    with talk(answer) as (endpoint, talking):
        assert text in talking.fails(errors.BrokenAnswer)
    assert len(endpoint.requests) == 1 + AGAIN
    with talk(answer, budget=0) as (endpoint, talking):
        talking.fails(errors.BrokenAnswer)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "answer", [fake.streams("A sm", "all", end=False), fake.streams("A", {"error": "died"})]
)
def test_a_whole_answer_is_asked_again_wherever_it_broke_off(answer: fake.Behaviour) -> None:
    """Nobody has seen any of it; what is returned is of one answer."""
    with talk(answer, fake.status(500), says("Hel", "lo")) as (_, talking):
        document = talking.client.complete(MESSAGES)
    assert document["choices"][0]["message"]["content"] == "Hello"
    with talk(answer, says("Hello")) as (endpoint, talking):
        talking.fails(errors.BrokenAnswer)
    assert len(endpoint.requests) == 1


def test_what_is_null_is_as_what_is_missing() -> None:
    events = (
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": None, "usage": None},
        {"choices": [{"index": None, "delta": {"content": None}, "finish_reason": "stop"}]},
        {"choices": None, "usage": fake.USAGE},
    )
    with talk(fake.streams(*events, b"[DONE]")) as (_, talking):
        document = talking.client.complete(MESSAGES)
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "a"}
    assert document["usage"] == fake.USAGE


# What is read of an endpoint without an end


def endless(exchange: fake.Exchange, head: bytes, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        exchange._handler.wfile.write(head)
        for _ in range(2000):
            exchange._handler.wfile.write(data)
    exchange.hang_up()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize("data", [b"x", b"data: x\n", b"\n"])
def test_an_event_without_an_end(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixtral_sky.client.transport.MAX_EVENT", 2**20)
    sent = data * (2**16 // len(data))
    with talk(lambda exchange: endless(exchange, STREAM, sent), budget=0) as (_, talking):
        assert "The answer stopped making sense after 0 characters." in talking.fails(errors.BrokenAnswer)


def test_an_answer_of_more_than_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixtral_sky.client.client.MAX_ANSWER", 2**20)
    event = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"a" * 2**15)
    with talk(lambda exchange: endless(exchange, STREAM, event)) as (_, talking):
        text = talking.fails(errors.BrokenAnswer, lambda: talking.ask(max_tokens=64))
    characters = int(text.split(" after ")[1].split(" ")[0].replace(",", ""))
    assert 2**20 < characters < 2**21


def test_an_error_without_an_end() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with talk(lambda exchange: endless(exchange, head, b" " * 2**16)) as (_, talking):
        assert "answers (400), but not as" in talking.fails(errors.NotAnAPI)


def test_a_document_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixtral_sky.client.client.MAX_DOCUMENT", 2**20)
    with FakeEndpoint() as endpoint, talk_to(endpoint.endpoint()) as talking:
        endpoint.models = {"data": [{"id": "a" * 2**21}]}
        talking.fails(errors.NotAnAPI, talking.client.models)


def test_a_missing_key() -> None:
    with talk() as (endpoint, _), talk_to(endpoint.endpoint(key="")) as talking:
        assert "asks for a key, and none was given (401)." in talking.fails(errors.Unauthorized)


def test_a_large_request_says_its_size() -> None:
    with talk(fake.status(413)) as (_, talking):
        text = talking.fails(
            errors.Refused, lambda: talking.client.ask([{"role": "user", "content": "a" * 3_670_016}])
        )
    assert text.startswith("The request is 3.5 MiB, more than ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"choices": []}', b"[" * 100_000]
)
def test_a_whole_answer_that_makes_no_sense(body: bytes) -> None:
    with talk(fake.status(200, body, content_type="application/json")) as (endpoint, talking):
        talking.fails(errors.NotAnAPI, lambda: talking.client.complete(MESSAGES))
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "headers", [{"content_length": "1000"}, {"content_length": "1000", "retry_after": "1"}]
)
def test_a_whole_answer_that_breaks_off(headers: dict[str, str]) -> None:
    def behave(exchange: fake.Exchange) -> None:
        fake.status(200, b'{"choices": [', content_type="application/json", **headers)(exchange)
        exchange.hang_up()

    with talk(behave) as (endpoint, talking):
        talking.fails(errors.NotAnAPI, lambda: talking.client.complete(MESSAGES))
    assert len(endpoint.requests) == 1
    with talk(fake.streams("A sm", "all", end=False)) as (endpoint, talking):
        text = talking.fails(errors.BrokenAnswer, lambda: talking.client.complete(MESSAGES))
    assert "The answer broke off after 7 characters." in text
    assert len(endpoint.requests) == 1 + AGAIN


def test_slow_to_begin() -> None:
    assert READ_SECONDS == 600
    with talk(fake.stalls(), read_timeout=0.2) as (endpoint, talking):
        assert "takes too long to answer." in talking.fails(errors.BrokenAnswer)
    assert len(endpoint.requests) == 1


def test_slow_half_way() -> None:
    with talk(fake.streams("1234", wait=30), read_timeout=0.2) as (endpoint, talking):
        assert "The answer stalled after 4 characters." in talking.fails(errors.BrokenAnswer)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            fake.streams("abc", "def", end=False),
            errors.BrokenAnswer,
            "The answer broke off after 6 characters.",
        ),
        (fake.streams("abc", "def"), errors.BrokenAnswer, "The answer broke off after 6 characters."),
        (
            fake.streams("abc", {"error": {"message": "EngineCore died", "code": 500}}, b"[DONE]"),
            errors.BrokenAnswer,
            "The answer was given up after 3 characters: EngineCore died.",
        ),
        (
            fake.streams({"error": {"message": "It is too long.", "code": 400}}, b"[DONE]"),
            errors.Refused,
            "It is too long.",
        ),
        (
            fake.streams("abc", b"{"),
            errors.BrokenAnswer,
            "The answer stopped making sense after 3 characters.",
        ),
    ],
)
def test_a_stream_that_fails(answer: fake.Behaviour, kind: type[errors.PixtralSkyError], text: str) -> None:
    with talk(answer) as (endpoint, talking):
        assert text in talking.fails(kind)
    assert len(endpoint.requests) == 1
    assert not talking.notices


def test_what_happens_after_done_does_not_matter() -> None:
    with talk(fake.streams("abc", b"[DONE]", "def", end=False)) as (_, talking):
        assert talking.ask() == "abc"


def test_a_stream_with_a_finish_reason_and_no_done_is_whole() -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    with talk(fake.streams("abc", end)) as (_, talking):
        answer = talking.client.ask(MESSAGES)
        assert "".join(answer) == "abc"
    assert answer.finish_reason == "length"


# Nothing leaks


def test_a_redirect_is_not_followed() -> None:
    with FakeEndpoint() as other:
        for location in (f"{other.url}/v1/chat/completions", "/elsewhere"):
            with talk(fake.status(307, location=location)) as (endpoint, talking):
                text = talking.fails(errors.Refused)
            assert f"redirects to {location}, where no key is sent." in text
            assert len(endpoint.requests) == 1
    assert not other.requests


def test_a_proxy_sees_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint() as proxy, talk() as (endpoint, _):
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for host in ("127.0.0.1", "localhost"):
            with talk_to(endpoint.endpoint(url=f"http://{host}:{endpoint.port}")) as talking:
                assert talking.ask() == "Hello"
        assert not proxy.requests
        with talk_to(Endpoint("http://10.9.8.7:1", KEY)) as talking:  # which no test reaches but by the proxy
            talking.ask()
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("proxy", ["ftp://user:SENTINEL@h", "socks5://user:SENTINEL@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(errors.UsageError) as caught:
        Client(Endpoint("http://10.9.8.7:1", KEY))
    assert "ALL_PROXY" in str(caught.value)
    assert "SENTINEL" not in str(caught.value)


def test_what_the_endpoint_says_is_made_harmless() -> None:
    picture = "data:image/png;base64," + "SENTINEL" * 40
    said = f"\x1b]0;title\x07\x1b[2Jkey {KEY}\r\nbody {picture} {'SENTINEL' * 20} \x9b31m" + " much" * 200
    for answer in (fake.vllm_error(400, said), fake.streams({"error": {"message": said, "code": 400}})):
        with talk(answer) as (_, talking):
            text = talking.fails(errors.Refused)
        assert text.startswith("]0;title[2Jkey *** body ... ... 31m much")
        assert len(text) == 300


@pytest.mark.parametrize("key", ["SENTINEL key", "SENTINEL\n", "SENTINEL-\u00fc", "SENTINEL\x00"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        Client(Endpoint("http://127.0.0.1:1", key))
    assert "SENTINEL" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a..b", "http://" + "a" * 64, "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(errors.UsageError):
        Client(Endpoint(url, KEY))


def test_tls_to_a_plain_port() -> None:
    with (
        talk() as (endpoint, _),
        talk_to(endpoint.endpoint(url=f"https://127.0.0.1:{endpoint.port}")) as talking,
    ):
        text = talking.fails(errors.Unreachable)
    assert "speaks no TLS that can be used. Try http:// in place of https://." in text
    assert not talking.pauses
    assert not endpoint.requests


def test_an_abandoned_answer_hangs_up() -> None:
    seen: list[str] = []

    def behave(exchange: fake.Exchange) -> None:
        exchange.begin()
        try:
            for _ in range(500):
                exchange.event(fake._chunk(exchange.request, {"content": "more "}))
                exchange.wait(0.01)
        except ConnectionError:
            seen.append("the client hung up")
            raise

    with talk(behave) as (_, talking):
        next(iter(talking.client.ask(MESSAGES)))
        talking.client.close()
        end = time.monotonic() + 3
        while not seen and time.monotonic() < end:
            time.sleep(0.01)
    assert seen


def test_the_body_is_plain_json() -> None:
    with talk() as (endpoint, talking):
        talking.ask()
    body = endpoint.requests[0].body
    assert body == json.dumps(json.loads(body), separators=(",", ":")).encode()
