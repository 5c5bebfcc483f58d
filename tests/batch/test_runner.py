"""A batch without a network: what each outcome of an item leads to, and what is never exceeded."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky import errors
from pixtral_sky.batch import runner
from pixtral_sky.batch.inputs import Walked
from pixtral_sky.batch.items import BadInput, Defaults, Item, Question, Seen
from pixtral_sky.batch.journal import Ledger, Paths
from pixtral_sky.batch.runner import (
    GONE,
    PREPARERS,
    READY,
    REFUSED,
    TRIES,
    Batch,
    Job,
    Tally,
    in_shard,
    shard,
)
from pixtral_sky.client.schema import Schema
from pixtral_sky.errors import PixtralSkyError, UsageError

DEFAULTS = Defaults("What is it?")
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def questions(count: int, begin: int = 0) -> list[Item | BadInput]:
    return [Question(f"i{number}", 0, (), prompt=f"i{number}") for number in range(begin, begin + count)]


def document(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": USAGE}


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"][0]["text"])


@dataclass
class Endpoint:
    """Answers with the question, unless ``behave`` does otherwise; counts what is asked, and how much at once."""

    behave: Callable[[str, int], dict[str, Any] | None] = lambda text, time: None
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    is_well: bool = True  # what it answers to a smallest question
    at_once: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        text = asked(body)
        with self._lock:
            self.counts[text] += 1
            times = self.counts[text]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.seconds)
            return self.behave(text, times) or document(f"about {text}")
        finally:
            with self._lock:
                self.at_once -= 1

    def answers(self, *, pictures: bool) -> bool:
        assert not pictures
        return self.is_well


class Folder:
    """Where a batch writes, and what is there."""

    def __init__(self, path: Path) -> None:
        self.paths = Paths(path / "out.jsonl", path / "out.errors.jsonl")

    def run(self, endpoint: Endpoint, items: list[Item | BadInput], **job: Any) -> Tally:
        with self.ledger() as ledger:
            job = {"defaults": DEFAULTS, **job}
            return Batch(Job(lambda: iter(items), **job), ledger).run(endpoint)

    def ledger(self, **how: Any) -> Ledger:
        return Ledger(self.paths, {}, **how)

    def out(self) -> dict[str, Any]:
        """The answers by id; none twice."""
        return self._read(self.paths.out)

    def errors(self) -> dict[str, Any]:
        return self._read(self.paths.errors)

    def _read(self, path: Path) -> dict[str, Any]:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = {line["id"]: line.get("answer", line.get("error")) for line in lines}
        assert len(found) == len(lines)
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(runner, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(runner, "FAILING_SECONDS", 0.01)
    monkeypatch.setattr("pixtral_sky.batch.concurrency.PER_SECOND", 5000)


def test_every_item_is_answered_once(folder: Folder) -> None:
    endpoint = Endpoint()
    tally = folder.run(endpoint, questions(300))
    assert folder.out() == {f"i{number}": f"about i{number}" for number in range(300)}
    assert set(endpoint.counts.values()) == {1}
    assert (tally.done, tally.failed, tally.to_do) == (300, 0, 300)
    assert (tally.prompt_tokens, tally.answer_tokens) == (30_000, 3_000)
    assert tally.in_flight == 0
    assert not folder.paths.errors.exists()


def test_nothing_to_do(folder: Folder) -> None:
    assert folder.run(Endpoint(), []).done == 0


def test_the_next_run_does_the_rest(folder: Folder) -> None:
    endpoint = Endpoint()
    folder.run(endpoint, questions(20))
    tally = folder.run(endpoint, questions(30))
    assert len(folder.out()) == 30
    assert set(endpoint.counts.values()) == {1}
    assert (tally.done, tally.to_do) == (10, 10)


def test_a_limit_takes_the_first_of_what_is_left(folder: Folder) -> None:
    for number in (1, 2, 3):
        assert folder.run(Endpoint(), questions(25), limit=10).to_do == (10 if number < 3 else 5)
        assert set(folder.out()) == {f"i{n}" for n in range(min(10 * number, 25))}


def test_shards_are_disjoint_and_together_all() -> None:
    names = [f"photos/IMG_{number:05}.jpg" for number in range(3000)] + ["\udcff", ""]
    for shards in (1, 2, 7):
        shares = [{n for n in names if in_shard(n, (index, shards))} for index in range(1, shards + 1)]
        assert sum(map(len, shares)) == len(names)
        assert set.union(*shares) == set(names)
        assert all(len(share) > 0.8 * len(names) / shards for share in shares)
    # For good: what one version has done, another one does not do in another share.
    assert [number for number in range(20) if in_shard(names[number], (1, 2))] == [
        1,
        6,
        9,
        11,
        12,
        13,
        14,
        16,
        18,
        19,
    ]


def test_a_share_is_done(folder: Folder) -> None:
    for index in (1, 2, 3):
        before = len(folder.out()) if index > 1 else 0
        tally = folder.run(Endpoint(), questions(100), shard=(index, 3))
        assert tally.done == len(folder.out()) - before < 60
    assert len(folder.out()) == 100


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "1/", "1/4/2", "-1/4", "1.0/4"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no share\. The second of eight: --shard 2/8"):
        shard(text)


# What fails


def test_what_is_bad_goes_to_the_errors(folder: Folder) -> None:
    tally = folder.run(Endpoint(), [*questions(3), BadInput("bad.jpg", "bad.jpg is empty.")])
    assert len(folder.out()) == 3
    assert folder.errors() == {"bad.jpg": {"type": "BadInput", "message": "bad.jpg is empty."}}
    assert (tally.done, tally.failed) == (3, 1)
    assert folder.run(Endpoint(), [BadInput("bad.jpg", "bad.jpg is empty.")]).failed == 0


@dataclass(frozen=True)
class Broken(Question):
    """An item that cannot be prepared."""

    error: Exception = field(kw_only=True)

    def body(self, defaults: Defaults, seen: Seen = lambda _: None) -> dict[str, Any]:
        raise self.error


@pytest.mark.parametrize("error", [errors.PictureError("It is empty."), errors.LimitError("It is empty."), OSError("It is empty.")])  # fmt: skip
def test_what_cannot_be_prepared_goes_to_the_errors(folder: Folder, error: Exception) -> None:
    folder.run(Endpoint(), [Broken("b", 1, (), error=error), *questions(3)])
    assert len(folder.out()) == 3
    assert folder.errors() == {"b": {"type": type(error).__name__, "message": "It is empty."}}


def test_what_does_not_fit_is_not_sent(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    monkeypatch.setattr(Question, "tokens", lambda self, body: 4000 if self.id == "i1" else 0)
    folder.run(endpoint, questions(3), max_model_len=4511)
    assert endpoint.counts["i1"] == 0
    assert folder.errors()["i1"]["message"].startswith(
        "Pictures and answer need 4,512 tokens, and this endpoint has 4,511 for all. Lower --max-tokens"
    )
    assert len(folder.out()) == 2


def raises(error: Exception, times: int = 10**9, only: str = "") -> Callable[[str, int], None]:
    def behave(text: str, time: int) -> None:
        if time <= times and text.startswith(only):
            raise error

    return behave


@pytest.mark.parametrize("error", [errors.BrokenAnswer("It broke off."), errors.Failed("It failed (500).")])
@pytest.mark.parametrize(("times", "fails"), [(1, False), (2, False), (3, True)])
def test_what_breaks_off_is_asked_again(
    folder: Folder, times: int, fails: bool, error: PixtralSkyError
) -> None:
    """Or fails: another replica may answer."""
    endpoint = Endpoint(raises(error, times, "i5"))
    tally = folder.run(endpoint, questions(20))
    assert set(folder.errors()) == ({"i5"} if fails else set())
    assert ("i5" in folder.out()) is not fails
    assert len(folder.out()) == 20 - fails
    assert endpoint.counts["i5"] == min(times + 1, TRIES[type(error)])
    assert tally.again == endpoint.counts["i5"] - 1


@pytest.mark.parametrize("error", [errors.BrokenAnswer("It broke off."), errors.Failed("It failed (500).")])
def test_a_server_that_fails_is_no_items_fault(
    folder: Folder, error: PixtralSkyError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the middle of the run, and answers nothing, not even the smallest question."""
    monkeypatch.setattr(runner, "PATIENCE_SECONDS", 0.5)
    endpoint = Endpoint(seconds=0.001)

    def dies(text: str, _: int) -> None:
        if len(folder.out()) >= 8:
            endpoint.is_well = False
            raise error

    endpoint.behave = dies
    with pytest.raises(type(error)):
        folder.run(endpoint, questions(50), concurrency=8)
    done = len(folder.out())
    assert 8 <= done <= 16
    assert folder.errors() == {}
    rest = Endpoint()
    assert folder.run(rest, questions(50)).done == sum(rest.counts.values()) == 50 - done


def test_a_server_that_comes_back_is_asked_one_at_a_time_until_then(folder: Folder) -> None:
    endpoint = Endpoint(seconds=0.005)
    failing = threading.Event()
    most: list[int] = []

    def behave(text: str, _: int) -> None:
        if len(folder.out()) >= 8 and not most:
            failing.set()
        if failing.is_set():
            endpoint.is_well = False
            most.append(endpoint.at_once)
            if len(most) < 30:
                raise errors.Failed("It failed (500).")
            failing.clear()
            endpoint.is_well = True

    endpoint.behave = behave
    tally = folder.run(endpoint, questions(50), concurrency=8)
    assert (tally.done, tally.failed) == (50, 0)
    assert tally.again >= 29
    assert set(most[8:]) == {1}, "while it fails"


def test_one_item_that_the_server_cannot_bear(folder: Folder) -> None:
    """Alone, too: that the server answers another question tells."""
    endpoint = Endpoint(raises(errors.Failed("It failed (500).")))
    assert folder.run(endpoint, questions(1)).failed == 1
    assert endpoint.counts["i0"] == TRIES[errors.Failed]


def test_what_waits_for_its_next_attempt_is_undone_at_the_end(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C meanwhile: it is over at once, and not complete."""
    monkeypatch.setattr(runner, "AGAIN_SECONDS", 30)
    endpoint = Endpoint(raises(errors.Failed("It failed (500).")))
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    begun = time.monotonic()
    tally = folder.run(endpoint, questions(4))
    assert time.monotonic() - begun < 5
    assert (tally.done, tally.failed, tally.stopped_by) == (0, 0, signal.SIGINT)
    assert folder.run(Endpoint(), questions(4)).done == 4


def test_what_is_refused_has_failed(folder: Folder) -> None:
    endpoint = Endpoint(raises(errors.Refused("At most 4 images."), only="i1"))
    tally = folder.run(endpoint, questions(30))
    refused = {f"i{number}" for number in (1, *range(10, 20))}
    assert set(folder.errors()) == refused
    assert folder.errors()["i1"] == {"type": "Refused", "message": "At most 4 images."}
    assert (tally.done, tally.failed) == (19, 11)
    assert set(endpoint.counts.values()) == {1}
    # They are not asked again, but when that is wanted.
    assert folder.run(Endpoint(), questions(30)).done == 0
    with folder.ledger(retry_errors=True) as ledger:
        Batch(Job(lambda: questions(30), DEFAULTS), ledger).run(Endpoint())
    assert len(folder.out()) == 30
    assert folder.errors() == {}


def test_an_endpoint_that_refuses_everything_ends_the_run(folder: Folder) -> None:
    endpoint = Endpoint(raises(errors.Refused("The model is gone.", "Its log tells more.")))
    with pytest.raises(PixtralSkyError) as caught:
        folder.run(endpoint, questions(1000), concurrency=4)
    assert str(caught.value) == (
        f"The last {REFUSED} were refused, one after the other: The model is gone. "
        "When that is mended: the same command with --retry-errors"
    )
    assert REFUSED <= len(folder.errors()) <= REFUSED + 4


@pytest.mark.parametrize("error", [errors.Unauthorized("No such key."), errors.Untrusted("No such name.")])
def test_a_key_that_is_refused_ends_the_run(folder: Folder, error: Exception) -> None:
    endpoint = Endpoint(raises(error))
    with pytest.raises(type(error)):
        folder.run(endpoint, questions(1000))
    assert sum(endpoint.counts.values()) <= runner.Limiter().limit
    assert (folder.out(), folder.errors()) == ({}, {})
    assert folder.run(Endpoint(), questions(10)).done == 10


@pytest.mark.parametrize(
    "error", [errors.Unreachable("Nothing answers."), errors.Busy("It is busy.", "", 0.01)]
)
def test_an_endpoint_that_is_gone_ends_the_run(folder: Folder, error: Exception) -> None:
    endpoint = Endpoint(lambda text, _: raises(error)(text, 1) if len(folder.out()) >= 20 else None)
    with pytest.raises(type(error)):
        folder.run(endpoint, questions(1000), concurrency=1)
    assert len(folder.out()) == 20
    assert folder.errors() == {}
    assert sum(endpoint.counts.values()) == 20 + GONE
    assert folder.run(Endpoint(), questions(30)).done == 10


def test_an_endpoint_that_comes_back_is_gone_on_with(folder: Folder) -> None:
    """One item after the other never begins, but others are answered between them."""
    endpoint = Endpoint(raises(errors.Unreachable("Nothing answers."), times=1))
    fine = endpoint.behave
    endpoint.behave = lambda text, time: fine(text, time) if int(text[1:]) % 5 == 0 else None
    folder.run(endpoint, questions(60), concurrency=1)
    assert len(folder.out()) == 60
    assert folder.errors() == {}


def test_a_fault_of_ours_is_not_hidden(folder: Folder) -> None:
    with pytest.raises(ZeroDivisionError):
        folder.run(Endpoint(raises(ZeroDivisionError())), questions(3))
    assert (folder.out(), folder.errors()) == ({}, {})


def test_a_disk_that_is_full_ends_the_run(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, [2000]

    def full(file: int, data: bytes) -> int:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr("pixtral_sky.batch.journal.os.write", full)
    with pytest.raises(PixtralSkyError, match="No space left on device"):
        folder.run(Endpoint(), questions(1000))
    monkeypatch.undo()
    before = len(folder.out())
    assert 0 < before < 40
    assert folder.run(Endpoint(), questions(60)).done == 60 - before


# By a schema


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    (tmp_path / "s.json").write_text('{"type": "object", "required": ["total"]}')
    return Schema(tmp_path / "s.json")


def test_answers_fit_the_schema(folder: Folder, schema: Schema) -> None:
    answers = {
        "i0": ['{"total": 1}'],
        "i1": ["{}", '{"total": 2}'],
        "i2": ["{}", "{}", '{"total": 3}'],
        "i3": ["[", "["],
    }
    endpoint = Endpoint(lambda text, time: document(answers[text][time - 1]))
    defaults = Defaults("What?", response_format=schema.response_format)
    folder.run(endpoint, questions(4), schema=schema, defaults=defaults)
    assert folder.out() == {"i0": {"total": 1}, "i1": {"total": 2}}
    assert folder.errors()["i2"]["message"].startswith("The answer does not fit the schema: $: 'total' is")
    assert folder.errors()["i3"]["type"] == "SchemaError"
    assert endpoint.counts["i2"] == TRIES[errors.SchemaError]


@dataclass(frozen=True)
class WithItsOwn(Question):
    def body(self, defaults: Defaults, seen: Seen = lambda _: None) -> dict[str, Any]:
        return {**super().body(defaults, seen), "response_format": {"type": "text"}}


def test_an_item_that_asks_for_another_format_is_not_held_to_it(folder: Folder, schema: Schema) -> None:
    defaults = Defaults("What?", response_format=schema.response_format)
    folder.run(Endpoint(), [WithItsOwn("i0", 0, (), prompt="i0")], schema=schema, defaults=defaults)
    assert folder.out() == {"i0": "about i0"}


def test_answers_that_were_cut_off_are_counted(folder: Folder) -> None:
    assert folder.run(Endpoint(lambda text, _: document(text, "length")), questions(3)).cut_off == 3


# What is never exceeded


@pytest.mark.parametrize("number", [1, 5])
def test_no_more_at_once_than_asked_for(folder: Folder, number: int) -> None:
    endpoint = Endpoint(seconds=0.002)
    folder.run(endpoint, questions(100), concurrency=number)
    assert endpoint.most_at_once == number


def test_few_are_prepared_ahead(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the endpoint takes its time, items are left where they are."""
    bodies, walked, lock = [0], [0], threading.Lock()
    at_once, most = [0], [0]
    body = Question.body

    def counted(self: Question, defaults: Defaults, seen: Seen) -> dict[str, Any]:
        with lock:
            bodies[0] += 1
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.001)
        with lock:
            at_once[0] -= 1
        return body(self, defaults, seen)

    def walk() -> Iterator[Item | BadInput]:
        for item in questions(200):
            walked[0] += 1
            yield item

    monkeypatch.setattr(Question, "body", counted)
    ahead: list[int] = []
    endpoint = Endpoint(seconds=0.005)
    endpoint.behave = lambda text, _: ahead.append(bodies[0] - sum(endpoint.counts.values()))  # type: ignore[func-returns-value]
    with folder.ledger() as ledger:
        Batch(Job(walk, DEFAULTS, concurrency=2, walked=Walked(["-"])), ledger).run(endpoint)
    assert len(folder.out()) == walked[0] == 200
    assert max(ahead) <= READY
    assert most[0] <= PREPARERS


def test_bodies_are_held_up_to_a_size(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "HELD_BYTES", 10_000)
    items = [Question(f"i{number}", 0, (), prompt=f"i{number}" + "x" * 3000) for number in range(60)]
    endpoint = Endpoint(seconds=0.005)
    folder.run(endpoint, items, concurrency=50)
    assert len(folder.out()) == 60
    # What is being prepared when the limit is reached comes on top of it.
    assert endpoint.most_at_once <= 10_000 // 3000 + 1 + PREPARERS


# Signals


def test_the_first_signal_lets_what_is_on_its_way_end(folder: Folder) -> None:
    before = signal.getsignal(signal.SIGINT)
    endpoint = Endpoint(seconds=0.3)
    stops(folder, endpoint, signals=1)
    tally = folder.run(endpoint, questions(1000), concurrency=4)
    assert tally.stopped_by == signal.SIGINT
    assert tally.in_flight == 0
    assert 4 <= tally.done == len(folder.out()) == sum(endpoint.counts.values()) <= 12
    assert signal.getsignal(signal.SIGINT) is before
    assert folder.run(Endpoint(), questions(20)).done == 20 - tally.done


def test_what_takes_too_long_then_is_left(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.2)
    endpoint = Endpoint(seconds=1.0)
    stops(folder, endpoint, signals=1)
    begun = time.monotonic()
    assert folder.run(endpoint, questions(1000), concurrency=4).stopped_by == signal.SIGINT
    assert time.monotonic() - begun < 0.9


def test_the_second_signal_ends_it_at_once(folder: Folder) -> None:
    """What the client then says of those that were on their way is none of their business."""
    closed = threading.Event()

    def hung_up(text: str, _: int) -> None:
        closed.wait(10)
        raise errors.BrokenAnswer("It was hung up on here.") if int(text[1:]) % 2 else errors.Refused("No.")

    endpoint = Endpoint(hung_up)
    stops(folder, endpoint, signals=2)
    with folder.ledger() as ledger:
        run = Batch(Job(lambda: questions(1000), DEFAULTS, concurrency=8), ledger)
        begun = time.monotonic()
        assert run.run(endpoint).stopped_by == signal.SIGINT
        assert time.monotonic() - begun < 3
        closed.set()
        while endpoint.at_once:
            time.sleep(0.01)
        time.sleep(0.05)
    assert (folder.out(), folder.errors()) == ({}, {})


def stops(folder: Folder, endpoint: Endpoint, signals: int) -> None:
    """Ctrl-C while items are on their way."""

    def press() -> None:
        while endpoint.at_once < 4:
            time.sleep(0.005)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    threading.Thread(target=press, daemon=True).start()


def test_trouble_is_shown_until_the_next_answer(folder: Folder) -> None:
    with folder.ledger() as ledger:
        run = Batch(Job(lambda: questions(3), DEFAULTS), ledger)
        for _ in range(2):
            run.trouble("no replica is ready; trying again in 2 s")
        assert run.tally.trouble == "no replica is ready; trying again in 2 s"
        assert run.run(Endpoint()).trouble == ""
