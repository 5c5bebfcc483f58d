"""Replicas die, hang, fail, go and come, and users ask meanwhile through our client: what do they get?

Always: an answer is whole and comes once; what broke off says how much has come, and is never repeated behind a
user's back; nobody waits without end. Every request is counted, in the table at the end of the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixtral_sky import errors
from pixtral_sky.client import client as client_module
from pixtral_sky.client.client import READ_SECONDS, RETRY_SECONDS, Client
from tests.conftest import ROOT
from tests.real.serve.load import Asked, Load, ask, ask_plainly, content
from tests.real.serve.rig import SPEED, STREAM_TIMEOUT, Machine, Service
from tests.support import fake_endpoint as fake
from tests.support.fake_endpoint import FakeEndpoint

pytestmark = [pytest.mark.serve, pytest.mark.timeout(240 if SPEED > 1 else 1800)]

CROWD_SECONDS = 60.0


def no_longer_asked(service: Service, *machines: Machine) -> None:
    """Until the balancer asks none of them any longer."""
    urls = {f"http://127.0.0.1:{machine.port}" for machine in machines}
    service.until(lambda: not urls & service.balanced(), "news for the balancer")


def mended(service: Service, load: Load) -> None:
    """Until all is as it was, and users have been answered since."""
    service.wait_for(ready=2)
    now = time.time()
    service.until(lambda: load.answered_since(now) >= 3, "answers")


# A replica dies


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kill -9, short answers", {"delay": 0.05}),
        ("kill -9, streamed answers", {"tokens": 40, "pace": 0.05}),
        ("kill -9, requests of 5 MB", {"delay": 0.05, "body": 5 * 10**6, "users": 4}),
        ("kill -9, complete()", {"delay": 0.05, "how": "complete"}),
        ("kill -9, plain requests", {"delay": 0.05, "how": "plain"}),
    ],
)
def test_a_replica_is_killed(service, name, options):
    victim = service.machines()[0]
    with Load(service, name, **options) as load:
        service.until(lambda: load.of("answered"), "answers")
        time.sleep(1)
        killed = time.time()
        victim.kill_job()
        no_longer_asked(service, victim)
        mended(service, load)
    load.check()
    if options.get("how") != "plain":
        assert not load.failed
    # Only what the dead one was working on.
    broken = load.of("BrokenAnswer")
    assert all(asked.begun < killed < asked.ended for asked in broken)
    assert len(broken) <= options.get("users", 8)


def test_a_server_that_is_killed_is_started_again_by_its_script(service):
    """No other machine is made for it."""
    before = {machine.name for machine in service.machines()}
    victim = service.machines()[0]
    server = (victim.folder / "server").read_text()
    with Load(service, "server killed, and started again", delay=0.05) as load:
        service.until(lambda: load.of("answered"), "answers")
        victim.kill_server()
        service.until(lambda: (victim.folder / "server").read_text() != server, "another server")
        mended(service, load)
    load.check()
    assert not load.failed
    assert "is started again: 1 of 3 times in an hour" in victim.log
    assert {machine.name for machine in service.machines()} == before


def test_a_machine_is_gone_without_a_word(service):
    """Nothing there refuses a connection: what is sent there is dropped."""
    victim = service.machines()[0]
    with Load(service, "machine gone without a word", delay=0.1) as load:
        service.until(lambda: load.of("answered"), "answers")
        victim.signal(signal.SIGKILL)
        with drops(victim):
            no_longer_asked(service, victim)
            victim.preempt()
            mended(service, load)
    load.check()
    assert not load.failed
    # A connection that was begun is waited for, even when the balancer knows better.
    assert max(asked.seconds for asked in load.asked) < 3 * STREAM_TIMEOUT + 10


@contextlib.contextmanager
def drops(machine: Machine) -> Iterator[None]:
    """In its place a socket whose queue is full: who connects gets no answer at all."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + 10
        while True:
            try:
                deaf.bind(("127.0.0.1", machine.port))
                break
            except OSError:  # its processes are still ending
                assert time.monotonic() < deadline
                time.sleep(0.02)
        deaf.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", machine.port))
        yield


# A replica is there, and does not do what it should


def test_a_replica_that_hangs(service):
    """It takes connections and says nothing, to probes neither: it is no longer asked, and others answer."""
    victim = service.machines()[0]
    with (
        Load(service, "replica hangs", delay=0.1) as load,
        Load(service, "... plain requests", delay=0.1, how="plain") as plain,
    ):
        service.until(lambda: load.of("answered") and plain.of("answered"), "answers")
        victim.signal(signal.SIGSTOP)
        no_longer_asked(service, victim)
        stopped = time.time()
        service.until(lambda: load.answered_since(stopped) > 20, "answers")
    victim.signal(signal.SIGCONT)
    for each in (load, plain):
        each.check()
        assert not each.failed
    assert len(load.of("BrokenAnswer")) <= 8


def test_an_engine_that_hangs_behind_a_server_that_answers(service):
    """The gateway sees it, and so do the probes: the replica is asked no longer, and another takes its place."""
    victim = service.machines()[0]
    with Load(service, "engine hangs", delay=0.1) as load:
        service.until(lambda: load.of("answered"), "answers")
        victim.mood("hang")
        no_longer_asked(service, victim)
        turned = time.time()
        service.until(lambda: load.answered_since(turned) > 20, "answers")
        service.until(
            lambda: victim.name not in [each.name for each in service.machines()], "another machine"
        )
        mended(service, load)
    load.check()
    assert not load.failed
    assert len(load.of("BrokenAnswer")) <= 8


def test_a_replica_that_fails(service):
    """500: it is tried again, twice. The gateway asks for a token itself, and SkyServe turns away from what fails that."""
    victim = service.machines()[0]
    with Load(service, "a replica answers 500", delay=0.1) as load:
        service.until(lambda: load.of("answered"), "answers")
        victim.mood("error")
        no_longer_asked(service, victim)
        turned = time.time()
        service.until(lambda: load.answered_since(turned) > 20, "answers")
        mended(service, load)
    load.check()
    assert {asked.outcome for asked in load.failed} <= {"Failed"}
    assert all("EngineCore encountered an issue." in asked.error for asked in load.failed)
    assert not [asked for asked in load.failed if asked.begun > turned + 1]
    assert any("failed (500); trying again" in notice for asked in load.asked for notice in asked.notices)


# None is there


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client waits for an answer that may be lost, at the rig's speed."""
    monkeypatch.setattr(client_module, "LOST_SECONDS", max(client_module.LOST_SECONDS / SPEED, 4))


def test_all_replicas_are_gone_and_come_back(service, impatient):
    controller = service.pid("controller")
    patience = max(RETRY_SECONDS, 400 / SPEED)
    with Load(service, "all gone and back", delay=0.1, budget=patience) as load:
        service.until(lambda: load.of("answered"), "answers")
        victims = service.machines()
        for victim in victims:
            victim.kill_job()
        no_longer_asked(service, *victims)
        os.kill(controller, signal.SIGSTOP)  # none comes back before that is said
        try:
            with service.client(budget=0) as client:
                alone = ask(client, {"id": "alone", "tokens": 1})
        finally:
            os.kill(controller, signal.SIGCONT)
        # Plain ones go on and on, as of somebody who waits for the service to come back.
        plain: list[Asked] = []
        threads = []
        while not service.balanced():
            threads.append(threading.Thread(target=plain_one, args=(service, plain, len(threads))))
            threads[-1].start()
            time.sleep(0.25)
        mended(service, load)
        for thread in threads:
            thread.join()
    load.check()
    assert not load.failed
    assert (alone.outcome, alone.error) == ("Busy", "No replica is ready. Try again later.")
    lost = [asked for asked in plain if asked.outcome == "ReadTimeout"]
    print(f"plain requests meanwhile: {len(plain)}, never answered: {len(lost)}")
    again = sum("no answer begins" in notice for asked in load.asked for notice in asked.notices)
    print(f"of ours: lost and sent again: {again}")


def plain_one(service: Service, asked: list[Asked], number: int) -> None:
    with service.http(timeout=15) as http:
        asked.append(ask_plainly(http, {"id": f"plain-{time.time()}-{number}", "tokens": 1}))


def test_a_request_that_the_balancer_lost_is_sent_again(monkeypatch):
    """It came while no replica was ready, and is held for ever; it is sent again, and only such a one."""
    monkeypatch.setattr(client_module, "LOST_SECONDS", 0.3)
    notices: list[str] = []
    with (
        FakeEndpoint([fake.no_replica(), fake.stalls(), fake.says("Hello")]) as endpoint,
        Client(endpoint.endpoint(), sleep=lambda _: None, notify=notices.append) as client,
    ):
        assert "".join(client.ask([{"role": "user", "content": "Hello?"}])) == "Hello"
    assert len(endpoint.requests) == 3
    assert [notice.partition(";")[0] for notice in notices] == ["no replica is ready", "no answer begins"]

    # Once it has begun, the queue is waited for.
    def late(exchange: fake.Exchange) -> None:
        exchange.begin()
        exchange.wait(1)
        exchange.event(fake._chunk(exchange.request, {"content": "Hello"}))
        exchange.event(b"[DONE]")
        exchange.end()

    with (
        FakeEndpoint([fake.no_replica(), late]) as endpoint,
        Client(endpoint.endpoint(), sleep=lambda _: None) as client,
    ):
        assert "".join(client.ask([{"role": "user", "content": "Hello?"}])) == "Hello"
    assert len(endpoint.requests) == 2


def test_what_the_balancer_gave_up_for_its_length_is_not_sent_again():
    """Three replicas have worked on it already, each for as long as the balancer waits."""
    detail = "Max retries 3 exceeded. Last error encountered: [httpx.ReadTimeout] . Please use ... for more information."
    with (
        FakeEndpoint([fake.status(500, {"detail": detail})]) as endpoint,
        Client(endpoint.endpoint(), sleep=lambda _: None) as client,
        pytest.raises(errors.BrokenAnswer) as caught,
    ):
        client.ask([{"role": "user", "content": "Hello?"}])
    assert "takes too long to answer." in str(caught.value)
    assert len(endpoint.requests) == 1


def test_the_client_tries_for_as_long_as_a_dead_replica_is_asked():
    """Until a probe of it has failed and the balancer has heard of it; and it waits for an answer as the balancer does."""
    origin = importlib.util.find_spec("sky").origin  # not imported: that takes seconds
    constants = runpy.run_path(str(Path(origin).parent / "serve/constants.py"))
    service = yaml.safe_load((ROOT / "service.yaml").read_text())["service"]
    interval = service["readiness_probe"].get(
        "endpoint_probe_interval_seconds", constants["DEFAULT_ENDPOINT_PROBE_INTERVAL_SECONDS"]
    )
    pause = 9  # the longest of the client's
    assert interval + constants["LB_CONTROLLER_SYNC_INTERVAL_SECONDS"] + pause <= RETRY_SECONDS
    # Were it longer, the balancer would have the answer made anew, by another replica, for nobody.
    assert service["load_balancer"]["stream_timeout_seconds"] == READ_SECONDS


# The control plane, and what it does


def test_the_controller_stops(service):
    """The balancer goes on with the replicas that it knows; one that dies meanwhile is asked until there is news."""
    controller, victim = service.pid("controller"), service.machines()[0]
    with Load(service, "controller stops, and a replica dies", delay=0.1) as load:
        service.until(lambda: load.of("answered"), "answers")
        os.kill(controller, signal.SIGSTOP)
        try:
            stopped = time.time()
            time.sleep(60 / SPEED)
            assert load.answered_since(stopped) > 10
            assert not load.failed
            assert not load.of("BrokenAnswer")
            victim.kill_job()
            time.sleep(max(10 / SPEED, 3))
        finally:
            os.kill(controller, signal.SIGCONT)
        no_longer_asked(service, victim)
        mended(service, load)
    load.check()
    assert not load.failed


def test_a_rolling_update(service):
    """New replicas first, then the old ones go; what an old one is still writing then is cut, after a while."""
    old = service.machines()
    names = {machine.name for machine in old}
    version = service.status()["replicas"][-1]["version"]

    def changed(config: dict[str, Any]) -> None:
        config["envs"]["MAX_MODEL_LEN"] = 32768 + version

    def retired() -> bool:
        return not names <= {machine.name for machine in service.machines()}

    with (
        Load(service, "rolling update, short answers", users=4, delay=0.1) as short,
        Load(service, "... streams of 1.5 s", users=4, tokens=30, pace=0.05) as streams,
        Load(service, "... streams of 8 s", users=2, tokens=32, pace=0.25) as long,
    ):
        service.until(lambda: short.of("answered") and streams.of("answered"), "answers")
        service.update(changed)
        # A look at the replicas may find the new ones ready and the old ones gone at once.
        service.until(retired, "end of the old ones")
        begun = time.time()
        assert len(service.machines()) >= 2
        no_longer_asked(service, *old)
        service.wait_for(ready=2, version=version + 1)
        now = time.time()
        service.until(lambda: short.answered_since(now) >= 3, "answers")
    for load in (short, streams, long):
        load.check()
        assert not load.failed
    cut = [asked.ended - begun for load in (short, streams, long) for asked in load.of("BrokenAnswer")]
    print("cut, seconds after the first replica was to go:", [round(seconds, 1) for seconds in cut])
    assert not any(machine.runs() for machine in old)


def test_every_spot_replica_is_preempted(tmp_path):
    """Two spot replicas, and an ordinary one that stays, as with `serve up --spot`."""

    def spot(config: dict[str, Any]) -> None:
        config["resources"]["use_spot"] = True
        config["service"]["replica_policy"] |= {
            "min_replicas": 3,
            "base_ondemand_fallback_replicas": 1,
            "dynamic_ondemand_fallback": True,
        }

    with Service(tmp_path, change=spot) as service:

        def ready(is_spot: bool) -> list[Machine]:
            replicas = service.status().get("replicas", [])
            names = {each["name"] for each in replicas if each["is_spot"] is is_spot}
            return [machine for machine in service.machines() if machine.name in names]

        def there() -> bool:
            return (
                len(ready(is_spot=True)) == 2
                and len(ready(is_spot=False)) >= 1
                and len(service.balanced()) >= 3
            )

        service.until(there, "spot replicas and an ordinary one")
        victims = ready(is_spot=True)
        with Load(service, "every spot replica is preempted", delay=0.1) as load:
            service.until(lambda: load.of("answered"), "answers")
            for victim in victims:
                victim.preempt()
            no_longer_asked(service, *victims)
            service.until(there, "spot replicas")
        load.check()
        assert not load.failed
        assert len(load.of("BrokenAnswer")) <= 8
        assert "is preempted: its spot instance is no longer up" in service.log("controller")


# What takes long, and many at once


def test_what_takes_long(service):
    """Longer than the balancer waits: as one answer it is made three times, and never arrives; as a stream, once."""
    seconds = 1.5 * STREAM_TIMEOUT
    slow = {"tokens": 20, "pace": seconds / 20}
    results: dict[str, Asked] = {}

    def user(name: str, how: Callable[[], Asked]) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.update({name: how()}))
        thread.start()
        return thread

    def ours(how: str) -> Asked:
        with service.client() as client:
            return ask(client, {"id": f"slow-{how}-{time.time()}", **slow}, how=how)

    def plain() -> Asked:
        with service.http(timeout=100 + 10 * STREAM_TIMEOUT) as http:
            return ask_plainly(http, {"id": f"slow-plain-{time.time()}", **slow})

    def reader() -> Asked:
        """Who reads 2 MB so slowly that the server has to wait."""
        asked = Asked({"id": f"reader-{time.time()}", "tokens": 10_000})
        with service.client() as client:
            for number, piece in enumerate(client.ask(content(asked.question))):
                asked.text += piece
                if number in (100, 5000):
                    time.sleep(1.5 * STREAM_TIMEOUT)
        asked.outcome = "answered"
        return asked

    threads = [
        user("ask", lambda: ours("ask")),
        user("complete", lambda: ours("complete")),
        user("plain", plain),
        user("reader", reader),
    ]
    with Load(service, "others, while some take long", users=2, delay=0.1) as load:
        for thread in threads:
            thread.join()
    load.check()
    assert not load.failed
    assert not load.of("BrokenAnswer")

    begun = {name: runs(service, asked) for name, asked in results.items()}
    print(
        {name: (asked.outcome, f"made {begun[name]} times", asked.error) for name, asked in results.items()}
    )
    for name in ("ask", "complete", "reader"):
        assert (results[name].outcome, begun[name]) == ("answered", 1)
        assert results[name].text == results[name].expected
    assert (results["plain"].outcome, begun["plain"]) == ("500", 3)
    assert "ReadTimeout" in results["plain"].error


def runs(service: Service, asked: Asked) -> int:
    """How often a replica has begun to work on it."""
    return sum(
        each["id"] == asked.question["id"] and each["what"] == "begins"
        for machine in service.all_machines()
        for each in machine.requests()
    )


def test_sixty_users_at_once(service):
    with Load(service, f"60 users, {CROWD_SECONDS:.0f} s", users=60, tokens=10, pace=0.05, delay=0.2) as load:
        time.sleep(CROWD_SECONDS)
    load.check()
    assert len(load.of("answered")) == len(load.asked) > 60
    assert not any(asked.notices for asked in load.asked)
    assert all(len(begun) == 1 for begun in load.runs().values())
