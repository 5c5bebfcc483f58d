"""The files of a batch: what is written is whole, what is cut is noticed, and nobody else writes there."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.batch import journal as ledger
from pixtral_sky.batch.journal import GROUP, GROUP_SECONDS, Journal, Ledger, Paths
from pixtral_sky.errors import PixtralSkyError, UsageError
from tests.conftest import ROOT

OPTIONS: dict[str, Any] = {"--prompt": "What is it?", "--max-tokens": 512, "--schema": None}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl")


def ids(path: Path) -> list[str]:
    with Journal(path) as journal:
        return [each for some in journal.ids() for each in some]


def written(path: Path) -> list[str]:
    """The ids of the lines of a file, each of which has to be whole."""
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line)["id"] for line in text.splitlines()]


def fill(path: Path, *names: str) -> None:
    with Journal(path) as journal:
        for name in names:
            journal.append({"id": name, "answer": "A red square.\nWith two lines."})


# One file


def test_what_is_appended_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, "a", "b\n\u00e9")
    fill(path, "c")
    assert ids(path) == written(path) == ["a", "b\n\u00e9", "c"]
    assert "\u00e9".encode() in path.read_bytes()  # to be read by people too


def test_a_line_is_written_before_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.jsonl") as journal:
        for number in range(3):
            journal.append({"id": f"{number}"})
            assert written(journal.path) == [f"{n}" for n in range(number + 1)]


def test_threads_tear_no_line(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.jsonl") as journal:

        def work(name: int) -> None:
            for number in range(50):
                journal.append({"id": f"{name}-{number}", "answer": "x" * 5000})

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(written(journal.path)) == sorted(f"{name}-{n}" for name in range(8) for n in range(50))


def test_the_disk_is_told_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = [0.0], []
    with Journal(tmp_path / "out.jsonl", clock=lambda: now[0]) as journal:
        monkeypatch.setattr(ledger.os, "fsync", lambda _: synced.append(len(written(journal.path))))
        for number in range(GROUP):
            assert synced == []
            journal.append({"id": f"{number}"})
        assert synced == [GROUP]
        journal.tick()
        journal.append({"id": "one more"})
        journal.tick()
        assert synced == [GROUP]
        now[0] += GROUP_SECONDS
        journal.tick()
        assert synced == [GROUP, GROUP + 1]
        journal.append({"id": "the last"})
    assert synced == [GROUP, GROUP + 1, GROUP + 2]


def test_a_file_that_ends_anywhere(tmp_path: Path) -> None:
    """Whatever byte it ends with: whole lines are kept, the rest is aside, and the next line is a whole one."""
    path, torn = tmp_path / "out.jsonl", tmp_path / "out.jsonl.torn"
    fill(path, "a", "b", "c")
    whole = path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(whole) if byte == 10)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        torn.unlink(missing_ok=True)
        lines = sum(end <= size for end in ends[1:])
        assert ids(path) == ["a", "b", "c"][:lines]
        assert path.read_bytes() == whole[: ends[lines]]
        if size == ends[lines]:
            assert not torn.exists()
        else:
            assert torn.read_bytes() == whole[ends[lines] : size] + b"\n"
        fill(path, "d")
        assert written(path) == [*["a", "b", "c"][:lines], "d"]


@pytest.mark.parametrize(
    "damage", [b"\0" * 20 + b"\n", b"\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"id": 3}\n', b'{"id": ""}\n']
)
def test_damage_in_the_last_group_is_cut_off_and_elsewhere_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "out.jsonl"
    lines = [b'{"id": "%d"}\n' % number for number in range(1000)]
    path.write_bytes(b"".join([*lines, damage, *lines[: GROUP - 1]]))
    assert ids(path) == [f"{number}" for number in range(1000)]
    assert (tmp_path / "out.jsonl.torn").read_bytes() == b"".join([damage, *lines[: GROUP - 1], b"\n"])

    before = b"".join([*lines, damage, *lines])
    path.write_bytes(before)
    with pytest.raises(UsageError, match=r"out\.jsonl, line 1,001, is not a line of a batch\. .* --fresh"):
        ids(path)
    assert path.read_bytes() == before


def test_half_characters(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, "a", "b\udcff", "c")
    with Journal(path) as journal:
        journal.append({"id": "d", "answer": "\ud83d"})
    assert ids(path) == ["a", "b\udcff", "c", "d"]


def test_the_id_is_openais_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"id": "batch_req_1", "custom_id": "a"}\n{"id": "b"}\n')
    assert ids(tmp_path / "out.jsonl") == ["a", "b"]


@pytest.mark.serve
@pytest.mark.timeout(120)
def test_a_million_lines_are_gone_on_with_in_seconds(paths: Paths) -> None:
    """Against the standard library, and within 200 MiB."""
    line = {
        "images": ["a.jpg"],
        "answer": "A receipt of a hardware store, with a total. " * 8,
        "seconds": 3.2,
    }
    with paths.out.open("w") as file:
        for number in range(10**6):
            file.write(json.dumps({"id": f"photos/IMG_{number:07}.jpg", **line}) + "\n")
    code = (
        "import re, sys, time; from pathlib import Path; from pixtral_sky.batch.journal import Ledger, Paths\n"
        "begun = time.process_time()\n"
        "with Ledger(Paths(Path(sys.argv[1]), Path(sys.argv[2])), {}, resume=True) as ledger:\n"
        "    assert ledger.done_before == 10**6 and 'photos/IMG_0123456.jpg' in ledger\n"
        "print(time.process_time() - begun, re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, paths.out, paths.errors],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, kib = map(float, result.stdout.split())
    begun = time.process_time()
    with paths.out.open("rb") as file:
        for text in file:
            json.loads(text)
    plain = time.process_time() - begun
    print(f"{seconds:.1f} s, {plain:.1f} s by the standard library, {kib / 1024:.0f} MiB")
    assert kib < 200 * 1024
    assert seconds < plain / 2.5  # a quarter to a third: benchmarks/batch.py


# Disks that are full, and worse


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, room = tmp_path / "out.jsonl", [250]
    write = os.write

    def full(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(file, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(ledger.os, "write", full)
    with Journal(path) as journal:
        with pytest.raises(PixtralSkyError) as caught:  # noqa: PT012
            for number in range(100):
                journal.append({"id": f"{number}", "answer": "A red square."})
        assert str(caught.value) == (
            f"{path} cannot be written: No space left on device. "
            "Nothing in it is torn. When that is mended, the same command goes on."
        )
        before = written(path)
        assert 1 < len(before) < 100
        room[0] = 10**6  # somebody has made room
        journal.append({"id": "next"})
    assert written(path) == [*before, "next"]


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(ledger.os, "write", lambda file, data: write(file, data[:7]))
    fill(tmp_path / "out.jsonl", "a", "b")
    assert written(tmp_path / "out.jsonl") == ["a", "b"]


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """What a full disk does, by the kernel itself: the write that reaches the limit is cut in the middle."""
    code = (
        "import sys; from pathlib import Path; from pixtral_sky.batch.journal import Journal\n"
        "with Journal(Path(sys.argv[1])) as journal:\n"
        "    for number in range(1000): journal.append({'id': str(number), 'answer': 'x' * 100})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out.jsonl"],
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )  # fmt: skip
    assert "out.jsonl cannot be written: File too large." in result.stderr
    assert len(written(tmp_path / "out.jsonl")) == 10_000 // 125 + 1 or written(tmp_path / "out.jsonl")


def test_a_disk_that_does_not_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path / "out.jsonl")
    for number in range(GROUP - 1):
        journal.append({"id": f"{number}"})
    monkeypatch.setattr(ledger.os, "fsync", fails)
    with pytest.raises(PixtralSkyError, match="cannot be written: Input/output error"):
        journal.append({"id": "the last of its group"})
    with pytest.raises(PixtralSkyError, match="cannot be written: Input/output error"):
        journal.close()
    with pytest.raises(PixtralSkyError, match="is closed"):
        journal.append({"id": "b"})
    journal.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "cannot be opened: Is a directory"),
        ("none/out.jsonl", "cannot be opened: No such file"),
        ("pipe", "is not a regular file"),
    ],
)
def test_what_is_no_file(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PixtralSkyError, match=f"{name} {reason}"):
        Journal(tmp_path / name)


# Two runs


def test_a_second_run_is_refused(paths: Paths) -> None:
    with Ledger(paths, OPTIONS):
        for again in ({}, {"resume": True}, {"fresh": True}):
            with pytest.raises(PixtralSkyError, match=r"Another run writes .*out\.jsonl\. Wait for its end"):
                Ledger(paths, OPTIONS, **again)
    with Ledger(paths, OPTIONS):
        pass
    # The file of the failures is no other's either.
    other = Paths(paths.out.with_name("other.jsonl"), paths.errors)
    with Ledger(paths, OPTIONS), pytest.raises(PixtralSkyError, match=r"Another run writes .*out\.errors"):
        Ledger(other, OPTIONS)


def test_the_lock_ends_with_its_process(paths: Paths) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pixtral_sky.batch.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, paths.out], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(PixtralSkyError, match="Another run writes"):
            Ledger(paths, OPTIONS)
        process.send_signal(signal.SIGKILL)
        process.wait()
    Ledger(paths, OPTIONS).close()


def test_a_file_that_is_set_aside_while_it_is_opened(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is that of the old file: the one that is there now is opened."""
    lock = ledger.fcntl.flock
    moves = [lambda: paths.out.rename(paths.out.with_name("old.jsonl")), lambda: None]

    def late(file: int, how: int) -> None:
        moves.pop(0)()
        lock(file, how)

    monkeypatch.setattr(ledger.fcntl, "flock", late)
    fill(paths.out, "a")
    assert written(paths.out) == ["a"]
    assert (paths.out.with_name("old.jsonl")).read_bytes() == b""


# Going on


def test_what_is_done_and_what_failed_is_known(paths: Paths) -> None:
    with Ledger(paths, OPTIONS) as first:
        assert "a" not in first
        first.out.append({"id": "a"})
        first.errors.append({"id": "b", "error": {"type": "Refused", "message": "No."}})
    with Ledger(paths, OPTIONS) as second:
        assert "a" in second
        assert "b" in second
        assert "c" not in second
        assert (second.done_before, second.failed_before, second.notices) == (1, 1, [])


def test_without_failures_there_is_no_file_of_them(paths: Paths) -> None:
    with Ledger(paths, OPTIONS) as first:
        first.out.append({"id": "a"})
    assert not paths.errors.exists()


def test_failures_are_asked_again_when_that_is_wanted(paths: Paths) -> None:
    with Ledger(paths, OPTIONS) as first:
        first.errors.append({"id": "b"})
    with Ledger(paths, OPTIONS, retry_errors=True) as second:
        assert "b" not in second
        assert second.failed_before == 0
        assert second.notices == [f"{paths.errors} of before is {paths.errors}.1 now."]
        second.errors.append({"id": "b"})
    with Ledger(paths, OPTIONS, retry_errors=True):
        pass
    assert written(Path(f"{paths.errors}.1")) == written(Path(f"{paths.errors}.2")) == ["b"]


def test_a_torn_tail_is_said(paths: Paths) -> None:
    with Ledger(paths, OPTIONS) as first:
        first.out.append({"id": "a"})
        first.out.append({"id": "b"})
    with paths.out.open("r+b") as file:
        file.truncate(paths.out.stat().st_size - 3)
    with Ledger(paths, OPTIONS) as second:
        assert "a" in second
        assert "b" not in second
        assert second.notices == [f"{paths.out} ended in a torn line: 9 bytes are in {paths.out}.torn."]


def test_the_record_is_for_its_owner_alone(paths: Paths) -> None:
    Ledger(paths, OPTIONS).close()
    assert stat.S_IMODE(paths.record.stat().st_mode) == 0o600
    assert json.loads(paths.record.read_text()) == {"options": OPTIONS, "inputs": []}
    assert sorted(path.name for path in paths.out.parent.glob("*out*")) == ["out.jsonl", "out.jsonl.run.json"]


def test_other_options_are_noticed(paths: Paths) -> None:
    with Ledger(paths, OPTIONS) as first:
        first.out.append({"id": "a"})
    before = paths.record.read_bytes()
    other = {**OPTIONS, "--prompt": "What\nis this? " * 9, "--max-tokens": 9}
    with pytest.raises(UsageError) as caught:
        Ledger(paths, other)
    assert str(caught.value) == (
        f"{paths.out} was made in another way: --prompt was 'What is it?' and is "
        "'What is this? What is this? What is this...', --max-tokens was 512 and is 9. "
        "Go on all the same: --resume. Begin anew, with the old file kept aside: --fresh"
    )
    assert paths.record.read_bytes() == before
    assert not paths.errors.exists()
    paths.errors.write_text('{"id": "b"}\n')
    with pytest.raises(UsageError, match="was made in another way"):
        Ledger(paths, other, retry_errors=True)
    assert written(paths.errors) == ["b"]
    with Ledger(paths, other, resume=True) as second:
        assert "a" in second
    Ledger(paths, other).close()  # it is how it is made now


def test_of_a_schema_only_the_change_is_said(paths: Paths) -> None:
    schema = {"type": "object"}
    with Ledger(paths, {"--schema": schema}) as first:
        first.out.append({"id": "a"})
    for other, says in (
        ({"type": "array"}, "way: --schema has another content."),
        (None, "was given and is none."),
    ):
        with pytest.raises(UsageError, match=says):
            Ledger(paths, {"--schema": other})


def test_other_inputs_are_noticed(paths: Paths) -> None:
    with Ledger(paths, OPTIONS, inputs=["/b", "/a/1.jpg", "/c"]) as first:
        first.out.append({"id": "1.jpg"})
    Ledger(paths, OPTIONS, inputs=["/c", "/c", "/a/1.jpg", "/b"]).close()  # they are a set
    with pytest.raises(UsageError) as caught:
        Ledger(paths, OPTIONS, inputs=["/b", "/x", "/y", "/z"])
    assert str(caught.value) == (
        f"{paths.out} was made in another way: the inputs were /a/1.jpg, /c and 1 more and are /x, /y and "
        "2 more. Go on, where an id that is there counts as done: --resume. Begin anew, with the old file kept "
        "aside: --fresh. Keep both: another -o FILE"
    )
    with Ledger(paths, OPTIONS, inputs=["/x"], resume=True) as second:
        assert "1.jpg" in second
    Ledger(paths, OPTIONS, inputs=["/x"]).close()  # it is how it is made now
    paths.record.write_text(json.dumps({"options": OPTIONS}))  # of a version that kept no inputs
    Ledger(paths, OPTIONS, inputs=["/any"]).close()


def test_fresh_begins_anew_and_deletes_nothing(paths: Paths) -> None:
    for number in range(3):
        with Ledger(paths, {"--prompt": number}, fresh=bool(number)) as each:
            assert "a" not in each
            each.out.append({"id": "a", "run": number})
            each.errors.append({"id": "b", "run": number})
    assert [json.loads(Path(f"{paths.out}{end}").read_text())["run"] for end in ("", ".1", ".2")] == [2, 0, 1]
    assert [json.loads(Path(f"{paths.errors}{end}").read_text())["run"] for end in ("", ".1", ".2")] == [
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"options": 5}'])
def test_a_file_that_nobody_knows_is_not_touched(paths: Paths, record: str | None) -> None:
    paths.out.write_text('{"id": "to')
    if record is not None:
        paths.record.write_text(record)
    with pytest.raises(UsageError, match=r"the record of how it was made, .*run\.json, is not\. .*--fresh"):
        Ledger(paths, OPTIONS)
    assert paths.out.read_text() == '{"id": "to'
    # What somebody insists on cuts it, and keeps it.
    Ledger(paths, OPTIONS, resume=True).close()
    assert Path(f"{paths.out}.torn").read_text() == '{"id": "to\n'


def test_a_record_that_cannot_be_written(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Journal(paths.out).close()
    Journal(paths.errors).close()
    synced = ledger._sync_folder
    monkeypatch.setattr(ledger, "_sync_folder", lambda path: path.suffix == ".jsonl" and synced(path))
    monkeypatch.setattr(ledger.os, "fsync", full)
    monkeypatch.setattr(ledger, "_sync_folder", lambda _: None)
    with pytest.raises(PixtralSkyError, match=r"out\.jsonl\.run\.json cannot be written: No space left"):
        Ledger(paths, OPTIONS)
    assert not list(paths.out.parent.glob(".*.json"))
    monkeypatch.undo()
    Ledger(paths, OPTIONS).close()  # nothing is locked
