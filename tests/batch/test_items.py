"""What a batch makes of folders, globs, pictures, PDFs and manifests."""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixtral_sky import pixtral
from pixtral_sky.batch import jsonl
from pixtral_sky.batch.inputs import origin
from pixtral_sky.batch.items import BadInput, Defaults, Item, failure, result
from pixtral_sky.batch.walk import is_openai, walk
from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.extras import install
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import decode, read_picture
from tests.support import pdfs
from tests.support.pictures import plain, saved
from tests.support.site import site

DEFAULTS = Defaults("What is this?")


PNG = plain()
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    path = tmp_path / "checkout"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def make(*names: str, data: bytes = PNG) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def ids(*inputs: str, per_request: int = 1) -> list[str]:
    """Of all items, and none of them bad."""
    found = list(walk(inputs, per_request=per_request))
    assert not [each for each in found if isinstance(each, BadInput)]
    return [each.id for each in found]


def item(*inputs: str, per_request: int = 1) -> Item:
    (found,) = walk(inputs, per_request=per_request)
    assert isinstance(found, Item)
    return found


def bad(*inputs: str) -> list[BadInput]:
    found = [each for each in walk(inputs) if isinstance(each, BadInput)]
    assert not [each for each in found if "\n" in each.reason or not each.reason.isprintable()]
    return found


def manifest(*lines: Any, name: str = "list.jsonl") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return name


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def document(answer: str | None = "A red one.") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 9},
    }


# --- folders


def test_a_folder():
    make("p/a10.jpg", "p/a2.JPG", "p/B.webp", "p/sub/z.png", "p/sub/deep/1.tif", "p/a.d/x.heic")
    make("p/.hidden.jpg", "p/.git/a.jpg", "p/notes.txt", "p/sub/Thumbs.db", "p/list.jsonl", "p/noextension")
    expected = ["p/a2.JPG", "p/a10.jpg", "p/B.webp", "p/a.d/x.heic", "p/sub/z.png", "p/sub/deep/1.tif"]
    assert ids("p") == ids("p/") == ids("./p") == expected


@pytest.mark.parametrize("argument", [".", "./", "p/.."])
def test_a_folder_without_its_name_is_not_in_ids(argument):
    make("p/a.jpg", "b.jpg")
    assert ids(argument) == ["b.jpg", "p/a.jpg"]


def test_the_same_ids_in_any_checkout(here, tmp_path, monkeypatch):
    make("data/p/a.jpg", "data/p/b/c.jpg")
    assert ids("data/p") == ids(f"{here}/data/p") == ["p/a.jpg", "p/b/c.jpg"]
    shutil.copytree(here, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    assert ids("data/p") == ["p/a.jpg", "p/b/c.jpg"]
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    assert ids("~/data/p") == ["p/a.jpg", "p/b/c.jpg"]


def test_names_that_are_the_same_are_told_apart():
    make("2023/p/1.jpg", "2024/p/1.jpg", "q/1.jpg")
    assert ids("2023/p", "2024/p") == ["2023/p/1.jpg", "2024/p/1.jpg"]
    assert ids("2023/p", "q") == ["p/1.jpg", "q/1.jpg"]
    assert ids("2023/p/1.jpg", "2024/p/1.jpg") == ["2023/p/1.jpg", "2024/p/1.jpg"]
    assert ids("2023/*/*.jpg", "q/*.jpg") == ["2023/p/1.jpg", "q/1.jpg"]


def test_a_file_given_twice():
    make("p/a.jpg", "p/b.jpg")
    found = list(walk(["p", "./p", "p/*.jpg"]))
    assert [each.id for each in found] == [
        "p/a.jpg", "p/b.jpg", "p/a.jpg#again=2", "p/b.jpg#again=2", "p/a.jpg#again=3", "p/b.jpg#again=3"
    ]  # fmt: skip
    assert found[2] == BadInput("p/a.jpg#again=2", "p/a.jpg is given twice.")


def test_loops_of_links_end(here):
    make("p/a/1.jpg", "p/b/2.jpg", "outside/3.jpg", "outside/inner/4.jpg")
    Path("p/a/loop").symlink_to(here / "p")
    Path("p/a/self").symlink_to("self")
    Path("p/a/self.jpg").symlink_to("self.jpg")
    Path("p/A-link-to-b").symlink_to("b")
    Path("p/out").symlink_to(here / "outside")
    Path("outside/back").symlink_to(here / "outside")
    Path("p/link.jpg").symlink_to("b/2.jpg")
    # b keeps its own name though a link to it comes before it.
    assert ids("p") == [
        "p/link.jpg",
        "p/a/1.jpg",
        "p/a/self.jpg",
        "p/b/2.jpg",
        "p/out/3.jpg",
        "p/out/inner/4.jpg",
    ]


def test_folders_as_deep_as_they_go(here):
    """Deeper than Python's recursion."""
    depth = 1200
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    make("a.jpg")
    try:
        assert ids(f"{here}/d") == [f"{'d/' * depth}a.jpg"]
    finally:  # shutil.rmtree, and so pytest, fails at it
        Path("a.jpg").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()


def test_a_folder_that_cannot_be_read(monkeypatch):
    make("p/a/1.jpg", "p/b/2.jpg", "p/c/3.jpg")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert [each.id for each in walk(["p"])] == ["p/a/1.jpg", "p/b", "p/c/3.jpg"]
    assert bad("p") == [BadInput("p/b", "p/b cannot be read: Permission denied.")]


def test_a_folder_that_vanishes_meanwhile():
    make("p/a/1.jpg", "p/b/2.jpg", "p/c/3.jpg")
    found = walk(["p"])
    assert next(found).id == "p/a/1.jpg"
    shutil.rmtree("p/b")
    assert next(found) == BadInput("p/b", "p/b cannot be read: No such file or directory.")


def test_odd_names_give_plain_ids():
    names = [
        "new\nline.jpg",
        "\N{PILE OF POO}.jpg",
        "100%.jpg",
        "-.jpg",
        "a#b.jpg",
        "caf\udce9.jpg",
        "caf%E9.jpg",
    ]
    make(*(f"p/{name}" for name in names))
    found = ids("p")
    assert sorted(found) == sorted(
        ["p/new\nline.jpg", "p/\N{PILE OF POO}.jpg", "p/100%.jpg", "p/-.jpg", "p/a#b.jpg", "file:p/caf%E9.jpg",
         "p/caf%E9.jpg"]
    )  # fmt: skip
    for each in walk(["p"]):
        assert isinstance(each, Item)
        line = json.dumps(result(each, document(), 1), ensure_ascii=False).encode()
        assert json.loads(line)["id"] == json.loads(line)["images"][0] == each.id
        assert each.body(DEFAULTS)["messages"][0]["content"][1]["image_url"]["url"] == DATA_URL


def test_files_that_are_called_as_urls_begin(monkeypatch):
    for name in ("data:,x.jpg", "http:", "-"):
        make(f"{name}/a.jpg" if name == "http:" else name)
    assert [each.body(DEFAULTS) and each.id for each in walk(["*"]) if isinstance(each, Item)] == [
        "data:,x.jpg", "http:/a.jpg"
    ]  # fmt: skip


@given(
    st.lists(
        st.lists(
            st.binary(min_size=1, max_size=8).filter(lambda name: not (set(name) & {0, 47} or name[:1] == b".")),
            min_size=1, max_size=3,
        ),
        max_size=8,
    ),
    st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_ids_are_unique_plain_and_the_same_each_time(paths, per_request):
    with tempfile.TemporaryDirectory() as top:
        for path in paths:
            make(
                "/".join(
                    [
                        top,
                        "p",
                        *(f"{os.fsdecode(part)}-" for part in path[:-1]),
                        f"{os.fsdecode(path[-1])}.png",
                    ]
                )
            )
        Path(top, "p").mkdir(exist_ok=True)
        inputs = [f"{top}/p", f"{top}/p"]
        found = [each.id for each in walk(inputs, per_request=per_request)]
        assert found == [each.id for each in walk(inputs, per_request=per_request)]
        assert len(set(found)) == len(found)
        for name in found:
            assert json.loads(json.dumps(name, ensure_ascii=False).encode()) == name
        good = [each for each in walk(inputs[:1]) if isinstance(each, Item)]
        assert len(good) == len({tuple(path) for path in paths})


def test_a_million_are_not_looked_for_before_the_first(monkeypatch):
    looked: list[str] = []
    scandir = os.scandir
    for folder in range(50):
        make(*(f"p/{folder}/{number}.jpg" for number in range(40)), data=b"")
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or scandir(path))
    found = walk(["p"])
    assert next(found).id == "p/0/0.jpg"
    assert len(looked) == 2
    assert sum(1 for _ in found) == 1999
    assert len(looked) == 51


def test_a_folder_of_100_000(monkeypatch):
    class Entry:
        def __init__(self, number: int) -> None:
            self.name = f"{number}.jpg"

        def is_dir(self) -> bool:
            return False

    class Entries:
        def __enter__(self) -> Iterator[Entry]:
            return (Entry(number) for number in range(99_999, -1, -1))

        def __exit__(self, *_: object) -> None:
            pass

    Path("p").mkdir()
    monkeypatch.setattr(os, "scandir", lambda _: Entries())
    begun = time.monotonic()
    found = walk(["p"])
    assert next(found).id == "p/0.jpg"
    print(f"the first after {time.monotonic() - begun:.2f} s")
    assert [each.id for each in found][-1] == "p/99999.jpg"
    print(f"all after {time.monotonic() - begun:.2f} s")


# --- files and globs


def test_files_and_globs():
    make("p/a1.jpg", "p/a2.jpg", "p/a10.jpg", "p/notes.txt", "p/sub/b.png", "p/sub/deep/c.png")
    assert ids("p/a1.jpg") == ["a1.jpg"]
    assert ids("p/a*.jpg") == ids("p/a1.jpg", "p/a2.jpg", "p/a10.jpg") == ["a1.jpg", "a2.jpg", "a10.jpg"]
    # As the shell would: folders are walked.
    assert ids("p/*") == ["a1.jpg", "a2.jpg", "a10.jpg", "sub/b.png", "sub/deep/c.png"]
    assert ids("p/**/*.png") == ids("p/**/[bc].png") == ["sub/b.png", "sub/deep/c.png"]
    assert ids("*/*/*.png") == ["p/sub/b.png"]
    assert ids(f"{Path.cwd()}/p/s*") == ["sub/b.png", "sub/deep/c.png"]


def test_a_name_with_the_letters_of_a_glob():
    make("a[1].jpg", "a1.jpg")
    assert ids("a[1].jpg") == ["a[1].jpg"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["gone"], "gone: no such file or folder."),
        (["p", "gone.jpg"], "gone.jpg: no such file or folder."),
        (["*.jpg"], "*.jpg: no picture, PDF or folder matches."),
        (["p/*"], "p/*: no picture, PDF or folder matches."),
        (["s3://b/photos/"], "s3://b/photos/ is not read here. Copy its pictures here, or mount it as examples/batch.yaml does."),
        (["file://nas/a.jpg"], "file://nas/a.jpg is a file of another machine. Copy it here: scp nas:/a.jpg ."),
        (["p/notes.txt/a"], "p/notes.txt/a: Not a directory."),
        (["nul\0"], "nul\N{REPLACEMENT CHARACTER}: not a path."),
        (["x" * 300], f"{'x' * 100}...{'x' * 57}: File name too long."),
        ([""], "An empty argument is no file or folder."),
        (["https://h/a.jpg"], 'https://h/a.jpg is no file or folder. Put it into a manifest: {"images": ["https://..."]}'),
        (["-", "-"], "Standard input ('-') can be one manifest only."),
        (["pipe.jsonl"], "pipe.jsonl is not a regular file. Pipe it in, and give '-'."),
    ],
)  # fmt: skip
def test_an_argument_that_leads_to_nothing_ends_it_at_once(inputs, says):
    make("p/notes.txt")
    os.mkfifo("pipe.jsonl")
    with pytest.raises((UsageError, PictureError)) as caught:
        walk(inputs)
    assert str(caught.value) == says
    # A missing file has the exit code that it has for `ask` and `tokens`.
    is_misused = inputs[0] in ("", "-", "pipe.jsonl", "https://h/a.jpg")
    assert caught.type is (UsageError if is_misused else PictureError)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "note.txt",
            b"Buy milk.",
            "note.txt is a text.",
        ),
        ("list.json", b'{"images": ["a.jpg"]}\n', "JSON lines in a file that ends in .jsonl. A folder, or"),
        ("empty", b"", "empty is not a picture."),
        ("v.mp4", b"", "v.mp4 is a video. Take pictures from it: ffmpeg -i v.mp4"),
        ("list.jsonl", PNG, "list.jsonl is no text, and a batch takes JSON lines there. Give it its own ext"),
    ],
)
def test_a_file_that_is_no_picture_ends_it_at_once(name, data, says):
    make(name, data=data)
    make("a.png")
    with pytest.raises((UsageError, PictureError), match=re.escape(says)):
        walk(["a.png", name])


def test_a_picture_of_an_odd_name():
    make("photo", "photo.mp4", "photo.bak")
    assert ids("photo", "photo.mp4", "photo.bak") == ["photo", "photo.mp4", "photo.bak"]


def test_the_origin_of_an_argument(here, monkeypatch):
    make("p/a.png", "p/q/b.png")
    same = {origin(each) for each in ("p", "p/", "./p", f"{here}/p", "p/q/..", f"file://{here}/p", " p ")}
    # Ids begin with the folder's name but for "p/q/..".
    assert same == {f"{here}/p", f"{here}/p/."}
    assert origin("p/q/..") == f"{here}/p/."
    assert origin("p/*/x[1]*.png") == origin("./p/q/../*/x[1]*.png") == f"{here}/p/*/x[1]*.png"
    assert origin("-") == "-"
    monkeypatch.chdir("p")
    assert origin("a.png") == origin("../p/a.png") == f"{here}/p/a.png"
    assert origin(".") == f"{here}/p/."
    assert origin("*.png") == f"{here}/p/*.png"
    with pytest.raises(PictureError, match="no such file or folder"):
        origin("gone.png")


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="Standard input is closed"):
        walk(["-"])


# --- bodies


def test_the_body_of_a_picture():
    make("p/a.png")
    one = item("p")
    assert (one.id, one.images) == ("p/a.png", 1)
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
    ]
    body = one.body(DEFAULTS)
    assert body == {"messages": [{"role": "user", "content": content}], "max_tokens": 512, "temperature": 0.7}
    assert one.tokens(body) == pixtral.image_tokens(32, 16) + 3
    wanted = {"type": "json_object"}
    body = one.body(Defaults("Read it.", "Be brief.", 9, 0, wanted))
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"][0]["text"] == "Read it."
    assert (body["max_tokens"], body["temperature"], body["response_format"]) == (9, 0, wanted)


def test_twenty_kinds_good_and_bad_in_one_folder():
    make("p/good.jpg", data=plain(kind="JPEG"))
    make("p/large.jpg", data=plain(3000, 2000, "JPEG"))
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        make(f"p/good.{kind.lower()}", data=plain(kind=kind))
    make("p/liar.png", data=plain(kind="JPEG"))
    make("p/good.pdf", data=pdfs.made(b"", b""))
    good = 11
    make("p/empty.jpg", data=b"")
    make("p/text.jpg", data=b"hello")
    make("p/page.png", data=b"<html>")
    make("p/half.jpg", data=plain(500, 500, "JPEG")[:900])
    make("p/half.png", data=PNG[:50])
    make("p/pdf.jpg", data=pdfs.made(b""))
    Path("p/nowhere.jpg").symlink_to("gone")
    os.mkfifo("p/pipe.jpg")
    make("p/broken.pdf", data=b"%PDF-1.7 and no more")
    make("p/locked.pdf", data=pdfs.encrypted())
    make("p/folder.jpg/inner.png")
    good += 1
    done, failed = [], {}
    for each in walk(["p"]):
        if isinstance(each, BadInput):
            failed[each.id] = each.reason
            continue
        try:
            done.append((each.id, each.tokens(each.body(DEFAULTS))))
        except PictureError as error:
            failed[each.id] = str(error)
    assert len(done) == good
    assert dict(done)["p/large.jpg"] == pixtral.image_tokens(3000, 2000) + 3
    assert dict(done)["p/good.pdf#page=2"] == pixtral.image_tokens(800, 1024) + 3
    assert sorted(failed) == [
        "p/broken.pdf", "p/empty.jpg", "p/half.jpg", "p/half.png", "p/locked.pdf", "p/nowhere.jpg",
        "p/page.png", "p/pdf.jpg", "p/pipe.jpg", "p/text.jpg",
    ]  # fmt: skip
    assert not [said for said in failed.values() if "\n" in said]
    assert failed["p/broken.pdf"] == "p/broken.pdf is not a PDF that can be read."


def test_files_that_change_or_vanish_meanwhile():
    make("p/a.png", "p/b.png", "p/c.png")
    make("p/d.pdf", data=pdfs.made(b"", b""))
    a, b, c, first, second = (each for each in walk(["p"]) if isinstance(each, Item))
    Path("p/a.png").unlink()
    make("p/b.png", data=b"now it is text")
    Path("p/c.png").unlink()
    Path("p/c.png").mkdir()
    make("p/d.pdf", data=pdfs.made(b""))
    for each, says in (
        (a, "p/a.png: no such file."),
        (b, "p/b.png is not a picture."),
        (c, "p/c.png is a directory."),
        (second, "p/d.pdf#page=2: it has 1 pages."),
    ):
        with pytest.raises(PictureError) as caught:
            each.body(DEFAULTS)
        assert caught.value.what == says
    assert first.body(DEFAULTS)
    shutil.rmtree("p")
    with pytest.raises(PictureError, match=r"p/d\.pdf: no such file"):
        first.body(DEFAULTS)


def pictures_kept() -> int:
    gc.collect()
    return sum(isinstance(each, Picture) for each in gc.get_objects())


def test_bodies_by_threads_keep_nothing():
    make("p/a.pdf", data=pdfs.made(*[b""] * 12))
    make(*(f"p/{number}.jpg" for number in range(12)), data=plain(1500, 1000, "JPEG"))
    items = [each for each in walk(["p"]) if isinstance(each, Item)]
    before = pictures_kept()
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda each: each.tokens(each.body(DEFAULTS)), items))
    expected = pixtral.image_tokens(1500, 1000) + 3, pixtral.image_tokens(800, 1024) + 3
    assert sorted(tokens) == sorted(expected * 12)
    assert pictures_kept() == before  # other tests may have some


# --- PDFs, and several pictures in a request


def test_pages_are_items():
    make("p/paper.pdf", data=pdfs.made(*[b""] * 300))
    found = ids("p")
    assert (found[0], found[2], found[299], len(found)) == (
        "p/paper.pdf#page=1", "p/paper.pdf#page=3", "p/paper.pdf#page=300", 300
    )  # fmt: skip
    assert ids("p/paper.pdf")[2] == ids("p/*.pdf")[2] == "paper.pdf#page=3"


def test_pdfs_without_what_reads_them(monkeypatch):
    make("p/a.pdf", data=pdfs.made(b""))
    make("p/b.png")
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    assert bad("p") == [BadInput("p/a.pdf", f"p/a.pdf is a PDF. {install('pdf')}")]


def test_several_pictures_in_a_request():
    make(*(f"p/{number}.png" for number in range(1, 6)), "p/sub/6.png")
    make("p/3.pdf", data=pdfs.made(b"", b"", b""))
    assert ids("p", per_request=2) == [
        "p/1.png#count=2", "p/3.pdf#page=1&count=2", "p/3.pdf#page=3&count=1", "p/3.png#count=2",
        "p/5.png#count=1", "p/sub/6.png#count=1",
    ]  # fmt: skip
    # What the shell makes of a glob is as the glob.
    files = [f"p/{number}.png" for number in range(1, 6)]
    assert ids("p/*.png", per_request=3) == ids(*files, per_request=3) == ["1.png#count=3", "4.png#count=2"]
    one = item("p/[12].png", per_request=4)
    assert one.images == 2
    content = one.body(DEFAULTS)["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
    assert result(one, document(), 1)["images"] == ["1.png", "2.png"]
    assert one.tokens(one.body(DEFAULTS)) == 2 * pixtral.image_tokens(32, 16) + 3


# --- manifests


def test_a_manifest(here):
    make("lists/a.png", "b.png")
    url = "https://user:secret@h/c.png?token=secret#x"
    name = manifest(
        {"id": "one", "images": ["a.png", "../b.png"], "prompt": "Compare.", "system": "", "max_tokens": 7},
        {"images": [f"{here}/b.png"]},
        "",
        {"images": ["a.png"]},
        {"images": [url]},
        {"images": [DATA_URL, "a.png"]},
        "   ",
        {"id": "\u00e4", "images": ["d.PDF#page=2"], "system": "Be brief."},
        name="lists/list.jsonl",
    )
    expected = ["one", f"{here}/b.png", "a.png", "https://h/c.png", "list.jsonl#line=6", "\u00e4"]
    assert ids(name) == expected
    Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes().replace(b"\n", b"\r\n"))
    assert ids(name) == ids(f"{here}/{name}") == ids("lists/*.jsonl") == expected
    one, absolute, _, remote, data, page = (each for each in walk([name]) if isinstance(each, Item))
    body = one.body(Defaults("What?", "Be kind."))
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["messages"][0]["content"][0]["text"] == "Compare."
    assert (body["max_tokens"], len(body["messages"][0]["content"])) == (7, 3)
    assert absolute.body(DEFAULTS)["messages"][0]["content"][1]["image_url"]["url"] == DATA_URL
    assert result(remote, document(), 1)["images"] == ["https://h/c.png"]
    assert result(data, document(), 1)["images"] == ["data:", "a.png"]
    assert data.body(DEFAULTS)["messages"][0]["content"][1]["image_url"]["url"] == DATA_URL
    with pytest.raises(PictureError, match=r"lists/d\.PDF: no such file"):
        page.body(DEFAULTS)
    make("lists/d.PDF", data=pdfs.made(b"", b""))
    assert page.body(DEFAULTS)["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "it is no JSON (Expecting value, column 1)"),
        ('{"images": ["a.png"]', "it is no JSON (Expecting ',' delimiter, column 21)"),
        ("[]", "it is no JSON object"),
        ('"a.png"', "it is no JSON object"),
        ('{"images": NaN}', "it is no JSON (it says NaN)"),
        ("[" * 100_000, "it is nested too deeply"),
        ({"images": ["a.png"], "imgaes": 1}, 'unknown field "imgaes" (there are id, images, prompt, system, max_tokens)'),
        ({"images": ["a.png"], "\n": 1}, 'unknown field "\N{REPLACEMENT CHARACTER}" (there are id, images, prompt, system, max_tokens)'),
        ({}, '"images" has to be a list with at least one path or URL'),
        ({"images": []}, '"images" has to be a list with at least one path or URL'),
        ({"images": "a.png"}, '"images" has to be a list with at least one path or URL'),
        ({"images": [1]}, '"images" has to be a list of paths and URLs'),
        ({"images": [""]}, '"images" has to be a list of paths and URLs'),
        ({"images": ["\ud800.png"]}, '"images" has to be a list of paths and URLs'),
        ({"images": ["a.pdf"]}, '"images" has a PDF; say which page of it: "a.pdf#page=1"'),
        ({"images": ["a.png"], "id": 1}, '"id" has to be a string, and not empty'),
        ({"images": ["a.png"], "id": ""}, '"id" has to be a string, and not empty'),
        ({"images": ["a.png"], "id": None}, '"id" has to be a string, and not empty'),
        ({"images": ["a.png"], "prompt": ""}, '"prompt" has to be a string, and not empty'),
        ({"images": ["a.png"], "prompt": ["x"]}, '"prompt" has to be a string, and not empty'),
        ({"images": ["a.png"], "system": 1}, '"system" has to be a string'),
        ({"images": ["a.png"], "max_tokens": 0}, '"max_tokens" has to be a whole number from 1'),
        ({"images": ["a.png"], "max_tokens": 1.5}, '"max_tokens" has to be a whole number from 1'),
        ({"images": ["a.png"], "max_tokens": True}, '"max_tokens" has to be a whole number from 1'),
        ({"images": ["a.png"], "max_tokens": "9"}, '"max_tokens" has to be a whole number from 1'),
        ({"images": ["a.png"], "id": "good"}, None),
    ],
)  # fmt: skip
def test_a_bad_line_says_its_number_and_field(line, says):
    name = manifest({"id": "good", "images": ["a.png"]}, line, {"id": "as good", "images": ["a.png"]})
    if says is None:
        said = 'list.jsonl#line=2: the id "good" is given twice.'
    else:
        said = f"list.jsonl, line 2: {says}."
    assert bad(name) == [BadInput("list.jsonl#line=2", said, line=bad(name)[0].line)]
    assert [each.id for each in walk([name])] == ["good", "list.jsonl#line=2", "as good"]


def test_lines_that_are_not_text_or_have_no_end(monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 100)
    long = json.dumps({"images": ["x" * 1000]}).encode()
    Path("list.jsonl").write_bytes(b'{"id": "\xff"}\n' + long + b'\n{"id": "a", "images": ["b"]}\n' + long)
    found = list(walk(["list.jsonl"]))
    assert [getattr(each, "reason", each.id) for each in found] == [
        "list.jsonl, line 1: it is not UTF-8.",
        "list.jsonl, line 2: it is longer than 0 MiB.",
        "a",
        "list.jsonl, line 4: it is longer than 0 MiB.",
    ]


def test_names_in_messages_are_those_of_the_manifest(here, monkeypatch):
    """And relative to where the user is: without a "./" that nobody gave."""
    monkeypatch.setenv("HOME", str(here))
    make("-", "a:b.png", "lists/-", "my a.png")
    home = f"{here}/my a.png"
    for name, text, read in (
        ("list.jsonl", "gone.png", "gone.png"),
        ("./list.jsonl", "gone.png", "./gone.png"),
        ("lists/list.jsonl", "gone.png", "lists/gone.png"),
        ("list.jsonl", "../gone.png", "../gone.png"),
        ("list.jsonl", "-", "./-"),
        ("list.jsonl", "a:b.png", "./a:b.png"),
        ("lists/list.jsonl", "-", "lists/-"),
        ("list.jsonl", "~/my a.png", home),
        ("list.jsonl", f"file://{quote(home)}", home),
    ):
        (one,) = (each for each in walk([manifest({"images": [text]}, name=name)]) if isinstance(each, Item))
        assert (one.sources[0].location, one.sources[0].name) == (read, text)
        if "gone" in text:
            with pytest.raises(PictureError, match=f"^{re.escape(read)}: no such file"):
                one.body(DEFAULTS)
        else:
            assert one.body(DEFAULTS)["messages"][0]["content"][1]["image_url"]["url"] == DATA_URL
    for url in ("s3://b/a.png", "file://nas/a.png"):
        (one,) = bad(manifest({"id": "x", "images": [url]}))
        assert (one.id, one.reason[:19]) == ("x", "list.jsonl, line 1:")
    make("broken.png", data=b"x")
    with pytest.raises(PictureError, match=r"^broken\.png is not a picture"):
        item("bro*.png").body(DEFAULTS)


def test_an_argument_as_it_is_pasted(here):
    make("p/a.png")
    for text in ("p ", "p\n", "'p'", f"file://{here}/p"):
        assert ids(text) == ["p/a.png"]


def test_a_bad_line_keeps_its_id():
    name = manifest({"id": "mine", "images": 1}, {"id": "mine", "images": ["a.png"]})
    first, second = walk([name])
    assert (first.id, second.id) == ("mine", "list.jsonl#line=2")
    assert isinstance(second, BadInput)


def test_ids_that_look_like_lines():
    name = manifest(
        {"id": "list.jsonl#line=2", "images": ["a"]}, "nonsense", {"id": "list.jsonl#line=2", "images": ["a"]}
    )
    assert [each.id for each in walk([name])] == [
        "list.jsonl#line=2",
        "list.jsonl#line=2#again=2",
        "list.jsonl#line=3",
    ]


def test_standard_input(monkeypatch):
    make("a.png")
    lines = b'\n{"images": ["a.png"]}\n{"images": ["b.png"], "x": 1}\n'
    stdin(monkeypatch, lines)
    assert not is_openai(["-"])
    walk(["-"])  # it may be asked what it leads to, and asked for again
    first, second = walk(["-"])
    assert isinstance(first, Item)
    assert first.id == "a.png"
    assert first.body(DEFAULTS)["messages"][0]["content"][1]["image_url"]["url"] == DATA_URL
    assert isinstance(second, BadInput)
    assert (second.id, second.reason[:24]) == ("-#line=3", "standard input, line 3: ")


def test_a_manifest_that_vanishes(monkeypatch):
    name = manifest(*({"id": str(number), "images": ["a"]} for number in range(3)))
    found = walk([name])
    Path(name).unlink()
    assert list(found) == [
        BadInput("list.jsonl", "list.jsonl cannot be read to its end: No such file or directory.")
    ]


def test_a_manifest_beside_folders():
    make("p/a.png")
    name = manifest({"images": ["p/a.png"]}, {"id": "b", "images": ["p/a.png"]})
    assert [each.id for each in walk(["p", name])] == ["p/a.png", "list.jsonl#line=1", "b"]


def test_memory_is_flat_over_200_000_lines():
    """In a process of its own: what Python takes from the system, as tracemalloc makes it ten times as slow."""
    with open("list.jsonl", "w") as file:
        for number in range(200_000):
            file.write(
                f'{{"id": "picture-{number}", "images": ["p/{number}.jpg"], "prompt": "What is it?"}}\n'
            )
    code = """
import resource
from pixtral_sky.batch.items import Item
from pixtral_sky.batch.walk import walk
held = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
next(walk(["list.jsonl"]))
before = held()
assert sum(isinstance(each, Item) for each in walk(["list.jsonl"])) == 200_000
print((held() - before) * 1024 / 200_000)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{float(run.stdout):.0f} bytes an item")
    assert float(run.stdout) < 150


def test_a_picture_of_a_url_is_downloaded_here():
    with site({"/a.png": PNG}) as url:
        part = {"type": "image_url", "image_url": {"url": f"{url}/a.png"}}
        for line in (
            {"images": [f"{url}/a.png"], "id": "x"},
            request("x", messages=[{"role": "user", "content": [part]}]),
        ):
            content = item(manifest(line)).body(DEFAULTS)["messages"][0]["content"]
            assert content[-1]["image_url"]["url"] == DATA_URL
        with pytest.raises(PictureError, match="404"):
            item(manifest({"images": [f"{url}/b.png"]})).body(DEFAULTS)


# --- OpenAI's format


def request(
    custom_id: Any = "request-1", method: Any = "POST", url: Any = "/v1/chat/completions", **body: Any
) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}  # fmt: skip


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def asked(url: str) -> str:
    """The URL that is sent for the picture at ``url``."""
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = item(manifest(request(messages=[{"role": "user", "content": content}]))).body(DEFAULTS)
    return body["messages"][0]["content"][0]["image_url"]["url"]


def test_openai_and_back():
    """The example of their documentation, and what it says of the output."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 2+2?"},
    ]
    name = manifest(request("request-2", model="gpt-4o-mini", messages=messages, stream=True, seed=3))
    assert is_openai([name])
    one = item(name)
    assert (one.id, one.images) == ("request-2", 0)
    body = one.body(DEFAULTS)
    assert body == {"messages": messages, "seed": 3}
    assert one.tokens(body) == 3
    line = result(one, document("4"), 1.5)
    assert line == {
        "id": line["id"],
        "custom_id": "request-2",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": document("4")},
        "error": None,
    }
    assert line["id"].startswith("batch_req_")
    assert result(one, document("5"), 2)["id"] == line["id"]
    assert failure(one, PictureError("a.png is empty.")) == {
        "id": line["id"],
        "custom_id": "request-2",
        "response": None,
        "error": {"code": "picture_error", "message": "a.png is empty."},
    }


def test_pictures_of_openai_requests():
    large = data_url(plain(2000, 500, "JPEG"), "jpeg")
    gif = data_url(plain(kind="GIF"), "gif")
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in (DATA_URL, gif, large)
    ]
    odd = [
        "text",
        {"type": "image_url", "image_url": None},
        {"type": "image_url"},
        {"type": "text", "text": "?"},
    ]
    name = manifest(
        request(messages=[{"role": "user", "content": [*parts, *odd]}, "odd", {"content": 7}], n=2)
    )
    one = item(name)
    assert one.images == 3
    before = json.dumps(one.request)  # type: ignore[attr-defined]
    body = one.body(DEFAULTS)
    first, second, third, *rest = body["messages"][0]["content"]
    assert [first, rest] == [parts[0], odd]
    assert second["image_url"] == {"url": read_picture(gif).data_url(), "detail": "low"}
    assert third["image_url"]["detail"] == "low"
    shrunk = read_picture(large)
    assert (shrunk.width, shrunk.height) == (1024, 256)
    assert third["image_url"]["url"] == shrunk.data_url()
    assert one.tokens(body) == 2 * pixtral.image_tokens(32, 16) + pixtral.image_tokens(2000, 500) + 3
    assert json.dumps(one.request) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_picture_is_turned_here(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.new("RGB", (96, 64), "red"), kind, exif=exif)
    sent = asked(data_url(turned, kind.lower()))
    with Image.open(io.BytesIO(decode(sent))) as image:
        assert (image.size, image.getexif().get(0x0112, 1)) == ((64, 96), 1)


def test_a_deep_picture_is_brought_to_8_bits_here():
    sent = asked(data_url(saved(Image.new("I;16", (64, 64), 30_000), "PNG"), "png"))
    with Image.open(io.BytesIO(decode(sent))) as image:
        assert (image.mode, image.getpixel((9, 9))) == ("L", 117)


@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_any_spelling_of_a_data_url(kind):
    data = plain(200, 100, kind)
    text = base64.b64encode(data).decode()
    wanted = read_picture(data).data_url()
    wrapped = base64.encodebytes(data).decode()
    for url in (
        f"data:image/x;base64,{wrapped}",
        f" data:image/x;base64,{text}\n",
        f"DATA:image/X;BASE64,{text}",
        f"data:;base64,{text.rstrip('=')}",
        f"data:image/x;charset=utf-8;base64,{quote(text)}",
    ):
        assert asked(url) == wanted


def test_mistrals_form_of_a_picture():
    content = [{"type": "image_url", "image_url": DATA_URL}, {"image_url": DATA_URL}]
    one = item(manifest(request(messages=[{"role": "user", "content": content}])))
    body = one.body(DEFAULTS)
    assert one.images == 2
    assert body["messages"][0]["content"] == [{"type": "image_url", "image_url": {"url": DATA_URL}}] * 2
    assert one.tokens(body) == 2 * pixtral.image_tokens(32, 16) + 3


def test_limits_of_tokens_of_any_type():
    def limits(**body: Any) -> dict[str, Any]:
        sent = item(manifest(request(messages=[1], **body))).body(DEFAULTS)
        return {name: value for name, value in sent.items() if name != "messages"}

    assert limits(max_tokens="4") == limits(max_tokens=4) == {"max_tokens": 4}
    assert limits(max_completion_tokens=" 12 ") == {"max_completion_tokens": 12}
    assert limits(max_tokens=None) == {"max_tokens": None}
    for wrong in ([4], {}, 0, -1, True, 1.5, "", "four", "9" * 5000):
        (bad,) = walk([manifest(request("a", messages=[1], max_tokens=wrong))])
        assert isinstance(bad, BadInput)
        assert bad.reason == 'list.jsonl, line 1: "body.max_tokens" has to be a whole number from 1.'


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,AAAA", "the data: URL is not a picture."),
        ("data:nonsense", "The data: URL is malformed: it has no comma."),
        (
            "data:image/png;base64," + base64.b64encode(plain(1100, 9)[:99]).decode(),
            "the data: URL is cut off.",
        ),
    ],
)
def test_pictures_that_cannot_be_read_are_not_sent(url, says):
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(PictureError) as caught:
        item(manifest(request(messages=[{"role": "user", "content": content}]))).body(DEFAULTS)
    assert caught.value.what.startswith(says)


def test_a_url_that_the_server_alone_can_make_sense_of():
    content = [{"type": "image_url", "image_url": {"url": "file:///a.png"}}]
    one = item(manifest(request(messages=[{"role": "user", "content": content}])))
    body = one.body(DEFAULTS)
    assert body["messages"][0]["content"] == content
    assert one.tokens(body) == 0


@pytest.mark.parametrize(
    ("line", "name", "says"),
    [
        (request(7, messages=[1]), None, '"custom_id" has to be a string'),
        (request("", messages=[1]), None, '"custom_id" has to be a string'),
        (request("\ud800", messages=[1]), None, '"custom_id" is not valid Unicode'),
        (request("a", "GET", messages=[1]), "a", '"method" has to be "POST"'),
        (request("a", url="/v1/embeddings", messages=[1]), "a", '"url" has to be "/v1/chat/completions"'),
        ({**request("a"), "body": None}, "a", '"body" has to be an object'),
        (request("a"), "a", '"body.messages" has to be a list of messages'),
        (request("a", messages=[]), "a", '"body.messages" has to be a list of messages'),
        ({"id": "native", "images": ["a.png"]}, None, '"custom_id" has to be a string'),
        ("nonsense", None, "it is no JSON (Expecting value, column 1)"),
    ],
)
def test_bad_lines_of_openai(line, name, says):
    good, wrong = walk([manifest(request("good", messages=[1]), line)])
    assert isinstance(good, Item)
    assert isinstance(wrong, BadInput)
    assert (wrong.id, wrong.reason) == (name or "list.jsonl#line=2", f"list.jsonl, line 2: {says}.")
    line = failure(wrong, wrong.reason)
    assert (line["custom_id"], line["error"]) == (wrong.id, {"code": "bad_input", "message": wrong.reason})


def test_a_custom_id_given_twice():
    name = manifest(request(messages=[1]), request(messages=[2]), request(messages=[]))
    _, second, third = walk([name])
    assert second == BadInput(
        "list.jsonl#line=2", 'list.jsonl#line=2: the id "request-1" is given twice.', True
    )
    assert third.id == "list.jsonl#line=3"


def test_the_first_object_says_the_format(monkeypatch):
    assert is_openai([manifest("", "nonsense", "[]", request(messages=[1]))])
    assert not is_openai([manifest({"images": ["a"]}, request(messages=[1]))])
    assert not is_openai([manifest("")])
    stdin(monkeypatch, json.dumps(request(messages=[1])).encode())
    assert is_openai(["-"])
    assert ids("-") == ["request-1"]


def test_openai_alone():
    make("p/a.png")
    name = manifest(request(messages=[1]))
    assert not is_openai(["p", name])
    assert not is_openai(["p"])
    with pytest.raises(UsageError) as caught:
        walk(["p", name])
    assert (
        str(caught.value)
        == "list.jsonl is in OpenAI's format, and other inputs are given beside it. Give it alone."
    )


# --- lines


def test_the_line_of_an_answer():
    make("p/a.png")
    one = item("p")
    line = result(one, document(), 1.23456)
    assert line == {
        "id": "p/a.png",
        "images": ["p/a.png"],
        "answer": "A red one.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 9},
        "seconds": 1.235,
    }
    wanted = Defaults("?", response_format={"type": "json_schema", "json_schema": {}})
    assert result(one, document('{"a": [1]}'), 1, wanted)["answer"] == {"a": [1]}
    assert result(one, document('{"a": [1'), 1, wanted)["answer"] == '{"a": [1'
    assert result(one, document('{"a": [1]}'), 1, DEFAULTS)["answer"] == '{"a": [1]}'
    assert result(one, document(None), 1)["answer"] == ""


def test_the_line_of_a_failure():
    make("p/a.png")
    error = PictureError("caf\udce9 is empty.", "Look at it.")
    assert failure(item("p"), error) == {
        "id": "p/a.png",
        "error": {"type": "PictureError", "message": "caf? is empty. Look at it."},
    }
    assert failure(BadInput("x", "It is bad."), "It is bad.") == {
        "id": "x",
        "error": {"type": "BadInput", "message": "It is bad."},
    }
