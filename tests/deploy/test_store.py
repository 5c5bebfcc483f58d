"""What is remembered of a deployment, who may read it, and whether it runs."""

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

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import store
from pixtral_sky.deploy.resolve import endpoint_of, find
from pixtral_sky.deploy.store import Rehearsal, forget, known, recall, remember
from pixtral_sky.errors import PixtralSkyError, UsageError
from tests.support.command_line import KEY
from tests.support.deployments import running


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Whether it runs -------------------------------------------------------------------------------------------


def test_running_is_the_very_process() -> None:
    assert running().is_running()
    assert not running(pid_born=running().pid_born - 60).is_running(), "another had its pid"


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ended, and is not collected
    born = store.born(psutil.Process(child.pid))
    assert not running(pid=child.pid, pid_born=born).is_running()
    child.wait()


def test_it_runs_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives the time of birth as boot time + ticks, and setting the clock moves the boot time."""
    one = running()
    if sys.platform != "linux":
        pytest.skip("as on Linux")
    boot_time = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 1)
    assert one.is_running()


# Remembering -----------------------------------------------------------------------------------------------


def test_remember_recall_forget() -> None:
    assert known() == []
    assert recall() is None
    first, second = running(), running("b.2-x_y", log="/tmp/\u00e9")
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
    remember(running(key="sk-OLD"))
    remember(running(key="sk-NEW"))
    found = recall()
    assert found is not None
    assert found.key == "sk-NEW"


def test_fields_of_a_later_version_are_ignored(home: Path) -> None:
    remember(running())
    path = home / "deployments" / "pixtral.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "a_new_field": 1}))
    assert recall() == running()


def test_the_directory_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIXTRAL_SKY_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    remember(running())
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
    remember(running())
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
    remember(running())
    remember(running())  # the file that it replaces is there now
    assert set(seen) == {0o600}
    assert len(seen) == 3


def test_an_open_file_is_closed(home: Path) -> None:
    remember(running())
    path = home / "deployments" / "pixtral.json"
    path.chmod(0o644)
    assert recall() == running()
    assert mode(path) == 0o600


def test_no_repr_holds_a_key() -> None:
    for thing in (running(), endpoint_of(running()), Endpoint("http://x", KEY)):
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
        json.dumps({"kind": "rehearsal", **dataclasses.asdict(running()), "key": None}).encode()[:-20],
    ],
)
def test_a_damaged_file(home: Path, content: bytes) -> None:
    remember(running())
    path = home / "deployments" / "pixtral.json"
    path.write_bytes(content)
    with pytest.raises(PixtralSkyError, match="is damaged") as caught:
        recall()
    assert str(path) in caught.value.what
    assert caught.value.hint.startswith("Remove it: rm ")
    assert "\n" not in str(caught.value)
    forget("pixtral")
    assert recall() is None


@pytest.mark.parametrize("inner", ["", "deployments"])
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o1777])
def test_a_home_that_others_can_write_into_is_not_used(home: Path, inner: str, bits: int) -> None:
    store.remember(running())
    (home / inner).chmod(bits)
    for use in (lambda: store.remember(running()), store.recall):
        with pytest.raises(PixtralSkyError, match="Others can write into the directory") as caught:
            use()
        assert caught.value.hint.endswith(f"chmod go-w '{home / inner}'")
    (home / inner).chmod(0o755)
    assert store.recall()


def test_a_home_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.remember(running())
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(PixtralSkyError, match=r"belongs to another user\. Set PIXTRAL_SKY_HOME to"):
        store.recall()


@pytest.mark.parametrize("inner", ["", "home"])
def test_a_home_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / inner
    monkeypatch.setenv("PIXTRAL_SKY_HOME", str(path))
    with pytest.raises(PixtralSkyError, match="cannot be made") as caught:
        recall()
    assert str(path) in caught.value.what
    assert "PIXTRAL_SKY_HOME" in caught.value.hint


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Rehearsal)])
def test_a_missing_field(home: Path, field: str) -> None:
    remember(running())
    path = home / "deployments" / "pixtral.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(PixtralSkyError, match="is damaged") as caught:
        recall()
    assert KEY not in str(caught.value)


def test_a_field_of_another_kind(home: Path) -> None:
    remember(running())
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
    remember(running(key="sk-OLD"))

    def fails(data: object, file: object, **_: object) -> None:
        file.write('{"name": ')
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", fails)
        with pytest.raises(type(error)):
            remember(running(key="sk-NEW"))
    found = recall()
    assert found is not None
    assert found.key == "sk-OLD"
    assert [path.name for path in (home / "deployments").iterdir()] == ["pixtral.json"]


def test_a_file_that_is_half_written_is_not_known(home: Path) -> None:
    remember(running())
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
        lambda: remember(running(name)),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="is no name for a deployment") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not home.exists() or not any(path.is_file() for path in home.rglob("*"))


def test_a_name_too_long_for_a_file() -> None:
    with pytest.raises(UsageError):
        remember(running("a" * 300))
