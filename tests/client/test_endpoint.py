"""What is remembered of a deployment, who may read it, and which endpoint is asked."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pixtral_sky.client.endpoint import Endpoint, base_url
from pixtral_sky.deploy import store
from pixtral_sky.deploy.resolve import endpoint_of, find
from pixtral_sky.deploy.store import Rehearsal, forget, known, recall, remember
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, UsageError

KEY = "sk-REMEMBERED"
ENV = {"PIXTRAL_ENDPOINT": "http://from-env:9000/v1", "PIXTRAL_API_KEY": "sk-ENV"}


def deployment(name: str = "pixtral", **fields: object) -> Rehearsal:
    """A deployment that runs: its process is this one."""
    me = psutil.Process()
    return dataclasses.replace(
        Rehearsal(
            name=name,
            url="http://127.0.0.1:8081",
            key=KEY,
            max_model_len=32768,
            max_images=4,
            created=1.0,
            pid=me.pid,
            pid_born=store.born(me),
            log="/the/log",
        ),
        **fields,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# The URL ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.7:8081", "http://10.0.0.7:8081"),
        ("localhost:8081", "http://localhost:8081"),
        ("host", "http://host"),
        ("  http://host:8081 \n", "http://host:8081"),
        ("http://host/", "http://host"),
        ("http://host//", "http://host"),
        ("http://host/v1", "http://host"),
        ("http://host/v1/", "http://host"),
        ("https://host/v1/chat/completions", "https://host"),
        ("host:8081/v1/models", "http://host:8081"),
        ("HTTP://host:8081/v1", "http://host:8081"),
        ("https://host/pixtral", "https://host/pixtral"),
        ("https://host/pixtral/", "https://host/pixtral"),
        ("https://host/pixtral/v1", "https://host/pixtral"),
        ("https://host/pixtral/v1/chat/completions", "https://host/pixtral"),
        ("https://host/v10", "https://host/v10"),
        ("https://host/v1beta", "https://host/v1beta"),
        ("[::1]:8081", "http://[::1]:8081"),
        ("http://[2001:db8::7]/v1", "http://[2001:db8::7]"),
        ("http://host:65535", "http://host:65535"),
    ],
)
def test_base_url(text: str, url: str) -> None:
    assert base_url(text) == url
    assert base_url(url) == url, "what it gives, it takes"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "http://",
        "http:///v1",
        "https://:8081",
        "ftp://host",
        "file:///etc/passwd",
        "http://host:0",
        "http://host:65536",
        "http://host:port",
        "http://host:80:80",
        "http://[::1",
        "http://a host",
        "http://host/a\tb",
        "http://host\nX-Header: 1",
    ],
)
def test_no_url(text: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of an endpoint") as caught:
        base_url(text)
    assert "http://10.0.0.7:8081" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["http://user:SECRET@host", "user:SECRET@host:8081", "https://SECRET@host/v1"]
)
def test_a_url_holds_no_password(text: str) -> None:
    with pytest.raises(UsageError, match="no user and no password") as caught:
        base_url(text)
    assert "SECRET" not in str(caught.value)
    assert "PIXTRAL_API_KEY" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["ftp://user:SECRET@host", "http://user:SECRET@host:99999", "http://user:SECRET@a host"]
)
def test_a_password_in_what_is_no_url_is_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        base_url(text)
    assert "SECRET" not in str(caught.value)


# Which one -------------------------------------------------------------------------------------------------


def test_the_argument_comes_first() -> None:
    remember(deployment())
    found = find("arg:1", "sk-ARG", environ=ENV)
    assert (found.url, found.key) == ("http://arg:1", "sk-ARG")
    assert found.max_model_len is None, "only the endpoint itself knows"


def test_an_argument_takes_the_key_of_the_environment() -> None:
    remember(deployment())
    assert find("arg:1", environ={"PIXTRAL_API_KEY": "sk-ENV"}).key == "sk-ENV"
    assert find("arg:1", environ={**ENV, "PIXTRAL_ENDPOINT": "http://arg:1/v1"}).key == "sk-ENV"
    assert find("arg:1", environ={**ENV, "PIXTRAL_ENDPOINT": "other:1"}).key == "", "it is another's"
    assert find("arg:1", environ={}).key == "", "and never the remembered one"


def test_an_argument_goes_before_a_name() -> None:
    remember(deployment("other"))
    assert find("arg:1", name="other", environ={}) == Endpoint("http://arg:1")


def test_then_the_environment() -> None:
    remember(deployment())
    found = find(environ=ENV)
    assert (found.url, found.key) == ("http://from-env:9000", "sk-ENV")
    assert find(environ={"PIXTRAL_ENDPOINT": "from-env:9000"}).key == "", "never the remembered one"
    assert find(key="sk-ARG", environ=ENV).key == "sk-ARG"


def test_then_what_is_remembered() -> None:
    remember(deployment(url="http://127.0.0.1:7777", max_model_len=4096, max_images=2))
    assert find(environ={}) == Endpoint(
        "http://127.0.0.1:7777", KEY, max_model_len=4096, max_images=2, origin="pixtral"
    )


def test_a_name_goes_before_the_environment() -> None:
    remember(deployment("other", key="sk-OTHER", url="http://127.0.0.1:7777"))
    found = find(name="other", environ=ENV)
    assert (found.url, found.key) == ("http://127.0.0.1:7777", "sk-OTHER")
    with pytest.raises(NoEndpoint):
        find(name="unknown", environ=ENV)


def test_the_default_name_can_be_named() -> None:
    remember(deployment())
    assert find(name="pixtral", environ=ENV).url == "http://127.0.0.1:8081"


def test_a_key_of_the_environment_is_not_for_a_remembered_deployment() -> None:
    remember(deployment())
    remember(deployment("open", key=""))
    environ = {"PIXTRAL_API_KEY": "sk-ENV"}
    assert find(environ=environ).key == KEY
    assert find(name="open", environ=environ).key == ""
    assert find(key="sk-ARG", environ=environ).key == "sk-ARG", "one that is given is for whatever is asked"


def test_an_empty_variable_is_none() -> None:
    remember(deployment())
    assert find(environ={"PIXTRAL_ENDPOINT": ""}).key == KEY


def test_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "real:1")
    assert find().url == "http://real:1"


def test_nothing_is_found() -> None:
    with pytest.raises(NoEndpoint) as caught:
        find(environ={})
    assert caught.value.exit_code == 2
    assert "pixtral-sky rehearse --keep" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_others_are_named() -> None:
    remember(deployment("b"))
    remember(deployment("a"))
    with pytest.raises(NoEndpoint, match="'pixtral'") as caught:
        find(environ={})
    assert "a, b" in caught.value.hint


def test_a_bad_url_of_the_environment() -> None:
    with pytest.raises(UsageError, match="'ftp://x' is not the URL"):
        find(environ={"PIXTRAL_ENDPOINT": "ftp://x"})


def test_an_ended_rehearsal_is_said() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    remember(deployment(pid=child.pid, log="/the/log"))
    with pytest.raises(NoEndpoint, match=r"'pixtral' has ended.*/the/log") as caught:
        find(environ={})
    assert "pixtral-sky rehearse --keep" in caught.value.hint
    assert find("arg:1", environ={}).url == "http://arg:1", "it is in nobody's way"


# Whether it runs -------------------------------------------------------------------------------------------


def test_running_is_the_very_process() -> None:
    assert deployment().is_running()
    assert not deployment(pid_born=deployment().pid_born - 60).is_running(), "another had its pid"


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ended, and is not collected
    born = store.born(psutil.Process(child.pid))
    assert not deployment(pid=child.pid, pid_born=born).is_running()
    child.wait()


def test_it_runs_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives the time of birth as boot time + ticks, and setting the clock moves the boot time."""
    running = deployment()
    if sys.platform != "linux":
        pytest.skip("as on Linux")
    boot_time = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 1)
    assert running.is_running()


# Remembering -----------------------------------------------------------------------------------------------


def test_remember_recall_forget() -> None:
    assert known() == []
    assert recall() is None
    first, second = deployment(), deployment("b.2-x_y", log="/tmp/\u00e9")
    remember(first)
    remember(second)
    assert known() == ["b.2-x_y", "pixtral"]
    assert recall() == recall("pixtral") == first
    assert recall("b.2-x_y") == second
    forget("pixtral")
    assert recall() is None
    assert known() == ["b.2-x_y"]
    forget("pixtral")  # nothing happens


def test_the_last_one_counts() -> None:
    remember(deployment(key="sk-OLD"))
    remember(deployment(key="sk-NEW"))
    found = recall()
    assert found is not None
    assert found.key == "sk-NEW"


def test_fields_of_a_later_version_are_ignored(home: Path) -> None:
    remember(deployment())
    path = home / "deployments" / "pixtral.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "a_new_field": 1}))
    assert recall() == deployment()


def test_the_directory_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIXTRAL_SKY_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    remember(deployment())
    assert store.home().name == "pixtral-sky"
    assert store.home().is_relative_to(tmp_path)
    assert mode(store.home()) == 0o700


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A rehearsal's script is started in another directory than this one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXTRAL_SKY_HOME", "here")
    assert store.home() == tmp_path / "here"


# Secrets ---------------------------------------------------------------------------------------------------


def test_only_the_owner_reads(home: Path, umask: Callable[[int], int]) -> None:
    umask(0)
    remember(deployment())
    assert mode(home) == mode(home / "deployments") == 0o700
    assert mode(home / "deployments" / "pixtral.json") == 0o600


def test_the_file_is_private_from_its_first_instant(
    home: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    umask(0)
    seen = []
    dump = json.dump

    def watched(*arguments: object, **options: object) -> None:
        dump(*arguments, **options)
        seen.extend(mode(path) for path in (home / "deployments").iterdir())

    monkeypatch.setattr(json, "dump", watched)
    remember(deployment())
    remember(deployment())  # the file that it replaces is there now
    assert set(seen) == {0o600}
    assert len(seen) == 3


def test_an_open_file_is_closed(home: Path) -> None:
    remember(deployment())
    path = home / "deployments" / "pixtral.json"
    path.chmod(0o644)
    assert recall() == deployment()
    assert mode(path) == 0o600


def test_no_repr_holds_a_key() -> None:
    for thing in (deployment(), endpoint_of(deployment()), Endpoint("http://x", KEY)):
        assert KEY not in repr(thing)
        assert KEY not in str(thing)


# Damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'"text"',
        json.dumps({"kind": "rehearsal", **dataclasses.asdict(deployment()), "key": None}).encode()[:-20],
    ],
)
def test_a_damaged_file(home: Path, content: bytes) -> None:
    remember(deployment())
    path = home / "deployments" / "pixtral.json"
    path.write_bytes(content)
    with pytest.raises(PixtralSkyError, match="is damaged") as caught:
        recall()
    assert str(path) in caught.value.what
    assert caught.value.hint.startswith("Remove it: rm ")
    assert "\n" not in str(caught.value)
    forget("pixtral")
    assert recall() is None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Rehearsal)])
def test_a_missing_field(home: Path, field: str) -> None:
    remember(deployment())
    path = home / "deployments" / "pixtral.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(PixtralSkyError, match="is damaged") as caught:
        recall()
    assert KEY not in str(caught.value)


def test_a_field_of_another_kind(home: Path) -> None:
    remember(deployment())
    path = home / "deployments" / "pixtral.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": "12"}))
    with pytest.raises(PixtralSkyError, match="is damaged"):
        find(environ={})


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Interrupted()])
def test_a_failing_write_leaves_the_old_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    remember(deployment(key="sk-OLD"))

    def fails(data: object, file: object, **_: object) -> None:
        file.write('{"name": ')
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", fails)
        with pytest.raises(type(error)):
            remember(deployment(key="sk-NEW"))
    found = recall()
    assert found is not None
    assert found.key == "sk-OLD"
    assert [path.name for path in (home / "deployments").iterdir()] == ["pixtral.json"]


def test_a_file_that_is_half_written_is_not_known(home: Path) -> None:
    remember(deployment())
    tempfile.mkstemp(dir=home / "deployments", prefix=".", suffix=".json")  # as after a power cut
    assert known() == ["pixtral"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        ".hidden",
        "-x",
        "a-",
        "a.",
        "1a",
        "a b",
        "a\n",
        "a\0",
        "a\u00e9",
        "~",
        "$HOME",
        "*",
    ],
)
def test_no_name_is_a_path(home: Path, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: recall(name),
        lambda: forget(name),
        lambda: remember(deployment(name)),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="is no name for a deployment") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not home.exists() or not any(path.is_file() for path in home.rglob("*"))


def test_a_name_too_long_for_a_file() -> None:
    with pytest.raises(UsageError):
        remember(deployment("a" * 300))


def test_the_hint_is_for_where_it_came_from() -> None:
    remember(deployment())
    assert find(environ={}).hint == "Is it running? pixtral-sky status pixtral"
    assert "unset both" in find(environ=ENV).hint
    assert "PIXTRAL_API_KEY right?" in find("arg:1", environ={}).hint
