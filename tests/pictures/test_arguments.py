"""Which arguments are words, which are pictures, and which are mistakes."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from pixtral_sky.errors import PictureError, PixtralSkyError, UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION, parse
from pixtral_sky.pictures.source import Source
from tests.support import pdfs
from tests.support.pictures import plain


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


PICTURE = b"\x89PNG\r\n\x1a\n\0"


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def sources(*arguments: str) -> list[str]:
    return [part.location for part in parse(arguments) if isinstance(part, Source)]


def fails(*arguments: str, kind: type[PixtralSkyError] = PictureError) -> PixtralSkyError:
    with pytest.raises(kind) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "What is this?",
        "Why?",
        "and this one as well.",
        "Is it [a] or [b]?",
        "2*3",
        "What does ** mean / do?",
        "/**/ is what?",
        "Is this b.png?",
        "See https://example.com/ for more",
        "Data: is it right?",
        "data",
        "What\n./is\nthis.jpg",
        "nul\0nul",
        "~\0",
        "~ five of them",
        "word " * 50_000,
        "x" * 300,
        "Größe? 漢字",
        " padded ",
        "e.g.",
        "-v",
        "--",
    ],
)
def test_words(text: str) -> None:
    assert parse([text]) == [text]


def test_the_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    make("a.jpg", "b.png")
    pipe_in(monkeypatch, PICTURE)
    assert parse(["First:", "a.jpg", "then:", "b.png", "-", "What changed?"]) == [
        "First:",
        Source("a.jpg"),
        "then:",
        Source("b.png"),
        Source("-", data=PICTURE),
        "What changed?",
    ]


def test_pictures_alone_get_the_question_first() -> None:
    make("a.jpg", "b.jpg")
    assert parse(["a.jpg", "b.jpg"]) == [DEFAULT_QUESTION, Source("a.jpg"), Source("b.jpg")]
    assert DEFAULT_QUESTION == "Describe this image in detail please."


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,AAAA", "DATA:,x", "data:nonsense", "https://h/a?b=*", "HTTP://h"]
)
def test_urls(url: str) -> None:
    assert sources(url) == [url]


@pytest.mark.parametrize(
    "name", ["a", "Why?", "photo[1].jpg", "Äußerst schön.jpg", "d/e/f", ".hidden", "a\nb.jpg"]
)
def test_an_existing_file_is_a_picture(name: str) -> None:
    make(name)
    assert sources(name) == [name]


def test_links_and_special_files_are_left_to_the_reader(here: Path) -> None:
    make("a.jpg")
    Path("link").symlink_to("a.jpg")
    os.mkfifo("pipe")
    assert sources("link", "pipe") == ["link", "pipe"]


def test_home(here: Path) -> None:
    make("my pictures/a.jpg")
    assert sources("~/my pictures/a.jpg") == [f"{here}/my pictures/a.jpg"]
    assert sources("~/my pictures/*") == [f"{here}/my pictures/a.jpg"]
    assert fails("~/b.jpg").what == "~/b.jpg: no such file."
    assert "no such file" in fails("~nobody-has-this-name/b").what


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*.jpg", ["d/a1.jpg", "d/a2.jpg", "d/a10.jpg"]),
        ("d/*", ["d/a1.jpg", "d/a2.jpg", "d/A3.PNG", "d/a10.jpg"]),
        ("d/*.txt", ["d/notes.txt"]),
        ("d/a?.jpg", ["d/a1.jpg", "d/a2.jpg"]),
        ("**/*.jpg", ["d/a1.jpg", "d/a2.jpg", "d/a10.jpg", "d/deep er/z.jpg"]),
        ("d/deep er/*", ["d/deep er/z.jpg"]),
        ("d/[aA]3*.PNG", ["d/A3.PNG"]),
    ],
)
def test_globs(pattern: str, expected: Sequence[str]) -> None:
    make("d/a1.jpg", "d/a2.jpg", "d/A3.PNG", "d/a10.jpg", "d/notes.txt", "d/deep er/z.jpg")
    said: list[str] = []
    found = [part.location for part in parse([pattern], notify=said.append) if isinstance(part, Source)]
    assert found == list(expected)
    left_out = "Left out of d/*, being no pictures by name: 1 file"
    assert said == ([left_out] if pattern == "d/*" else [])


def test_pages_of_pdfs(here: Path) -> None:
    Path("scan").mkdir()
    for name in ("scan/a.pdf", "scan/B.PDF"):
        Path(name).write_bytes(pdfs.made(b"", b""))
    a, b = ([Source(name, 1), Source(name, 2)] for name in ("scan/a.pdf", "scan/B.PDF"))
    assert parse(["Sum it up", "scan/a.pdf"]) == ["Sum it up", *a]
    assert parse(["What?", "scan/*"]) == ["What?", *a, *b]
    assert parse(["What?", "~/scan/B.PDF#page=2"]) == ["What?", Source(f"{here}/scan/B.PDF", 2)]
    assert fails("b.pdf").what == "b.pdf: no such file."
    assert fails("b.pdf#page=1").what == "b.pdf#page=1: no such file."
    for wrong in ("page=1-2", "page=0", "page=x", "2", ""):
        for error in (fails(f"scan/a.pdf#{wrong}"), fails("What?", f" 'scan/a.pdf#{wrong}'")):
            assert error.what == f"scan/a.pdf#{wrong}: #{wrong} is no page."
            assert "one by one: scan/a.pdf#page=1 scan/a.pdf#page=2; all of them: scan/a.pdf" in error.hint
    make("scan/a.pdf#2")
    assert sources("scan/a.pdf#2") == ["scan/a.pdf#2"], "a file of that name"
    make("broken.pdf")
    assert "not a PDF" in fails("broken.pdf").what
    assert parse(["What is on page 3 of a.pdf?"]) == ["What is on page 3 of a.pdf?"]


def test_an_absolute_glob(here: Path) -> None:
    make("a.jpg")
    assert sources(f"{here}/*.jpg") == [f"{here}/a.jpg"]


def test_words_match_no_file_by_chance() -> None:
    make("Why1", "notes")
    assert parse(["Why?"]) == ["Why?"]
    assert parse(["*"]) == ["*"]
    make("IMG_1.jpg", "IMG_2.jpg")
    assert sources("*") == sources("IMG_*") == ["IMG_1.jpg", "IMG_2.jpg"]


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("a.jpg", "no such file"),
        ("my photo.JPEG", "no such file"),
        ("My Clip.MP4", "no such file"),
        ("clip.mp4", "no such file"),
        ("'b.png'", "no such file"),
        ("b.png\n", "no such file"),
        ("./my very best photo.jpg", "no such file"),
        ("~/my very best photo.jpg", "no such file"),
        ("./a", "no such file"),
        ("d/a", "no such file"),
        ("~/a", "no such file"),
        (".a", "no such file"),
        ("*.jpg", "nothing matches"),
        ("d/*", "nothing matches"),
        ("d/*.webp", "nothing matches"),
        ("here.txt/a.jpg", "Not a directory"),
        ("./" + "4" * 300, "File name too long"),
    ],
)
def test_a_mistyped_path_is_no_question(argument: str, what: str) -> None:
    make("here.txt")
    error = fails("What is this?", argument)
    assert error.what.endswith(f": {what}.")
    # One word that ends like a picture is no question.
    is_word = " " not in argument and argument.strip("'\n").endswith((".jpg", ".webp", ".mp4", ".png"))
    assert error.hint == ("" if is_word else "If these are words, add another one.")
    assert parse([argument + " ?"]) == [argument + " ?"]


def test_a_directory(here: Path) -> None:
    Path("d").mkdir()
    for argument in ("d", "d/", "."):
        error = fails(argument)
        assert error.what == f"{argument} is a directory."
        assert f"'{argument.rstrip('/')}/*.jpg'" in error.hint


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", deny)
    assert fails("d/a.jpg").what == "d/a.jpg: Permission denied."


@pytest.mark.parametrize(
    "text", ["What is in photo.jpg", "Compare this with b.png", "What about *.jpg", "Look at my clip.mp4 "]
)
def test_a_sentence_only_ends_as_a_file_does(text: str) -> None:
    assert parse([text]) == [text]
    make(text.strip())
    assert len(sources(text)) == 1, "but a file of that name is a picture"


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("Read photo.jpg and b.png please", "photo.jpg b.png"),
        ("Describe photo.jpg.", "photo.jpg"),
        ("Is it 'd/photo.jpg'? Or (./b.png)!", "d/photo.jpg ./b.png"),
        ("What is in \u201cphoto.jpg\u201d", "photo.jpg"),
        ("What is in photo.jpg", "photo.jpg"),
        ("Sum up a.pdf#page=1-2 for me", "a.pdf#page=1-2"),
        ("Is none.jpg like b.jpg? Is notes one?", ""),
    ],
)
def test_files_that_a_sentence_names_are_said(text: str, files: str) -> None:
    make("photo.jpg", "b.png", "d/photo.jpg", "a.pdf", "notes")
    said: list[str] = []
    assert parse([text], notify=said.append) == [text]
    names = files.split()
    own = f"Give each as an argument of its own: {shlex.join(names)}"
    assert said == ([f"Taken as words, not as pictures: {', '.join(names)}. {own}"] if names else [])


def test_a_file_that_is_given_as_well_is_not_said() -> None:
    make("photo.jpg")
    said: list[str] = []
    parse(["Is photo.jpg sharp?", "photo.jpg"], notify=said.append)
    assert said == []
    parse(["What is in none.jpg"], notify=said.append)
    assert said == ["Taken as words, as there is no such file: What is in none.jpg"]


def test_two_words_of_which_one_is_a_file() -> None:
    make("v.mp4")
    error = fails("see v.mp4")
    assert error.what == "see v.mp4: no such file."
    assert error.hint == "Give each as an argument of its own: v.mp4"


@pytest.mark.parametrize(
    "form", ["{} ", "{}\n", " '{}'", '"{}"\n', "file://{}", "FILE://localhost{}", "file:{}"]
)
@pytest.mark.parametrize("name", ["a.jpg", "my best photo.jpg", "50%.jpg", "paper.pdf#page=2"])
def test_a_name_as_it_is_pasted(form: str, name: str, here: Path) -> None:
    path, page = pdf.split(str(here / name))
    make(path)
    given = quote(f"{here}/{name}", safe="/#=") if "file:" in form.lower() else f"{here}/{name}"
    assert parse(["What?", form.format(given)]) == ["What?", Source(path, page)]


def test_a_name_with_a_space_at_its_end_or_quotes() -> None:
    make("a.jpg", "a.jpg ", "'a.jpg'")
    assert sources("a.jpg", "a.jpg ", "'a.jpg'") == ["a.jpg", "a.jpg ", "'a.jpg'"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file://nas/d/a%20b.jpg", "is a file of another machine. Copy it here: scp 'nas:/d/a b.jpg' ."),
        ("s3://bucket/d/a.jpg", "Copy it here: aws s3 cp s3://bucket/d/a.jpg ."),
        ("gs://bucket/a;b.jpg", "Copy it here: gcloud storage cp 'gs://bucket/a;b.jpg' ."),
        (
            "az://photos/d/a.jpg",
            "az storage blob download --account-name ACCOUNT -c photos -n d/a.jpg -f a.jpg",
        ),
        ("hf://datasets/me/cats/d/a.jpg", ": https://huggingface.co/datasets/me/cats/resolve/main/d/a.jpg"),
        ("hf://me/model/a.jpg", ": https://huggingface.co/me/model/resolve/main/a.jpg"),
        ("FTP://me:SENTINEL@h/a.jpg?SENTINEL", "Copy it here: curl -O ftp://h/a.jpg"),
        ("sftp://h/d/a.jpg", "Copy it here: scp h:/d/a.jpg ."),
        ("gopher://h/a", "gopher://h/a is not read here. Copy it here, and give the file. http(s)://"),
        ("ftp://me:SENT/INEL@h/a.jpg", "ftp://... is not read here."),
    ],
)
def test_other_urls_are_named_with_what_helps(url: str, says: str) -> None:
    error = fails("What?", url)
    assert says in str(error)
    assert "SENTINEL" not in str(error)
    assert parse([f"What is {url} for?"]) == [f"What is {url} for?"]


def test_images_are_never_words_and_come_first() -> None:
    make("notes", "a.jpg", "b1.jpg", "b2.jpg")
    assert parse(["What?", "a.jpg"], ["notes", "b*"]) == [
        *map(Source, ("notes", "b1.jpg", "b2.jpg")),
        "What?",
        Source("a.jpg"),
    ]
    assert parse([], ["a.jpg"]) == [DEFAULT_QUESTION, Source("a.jpg")]
    with pytest.raises(PictureError, match=r"^What is this: no such file\.$"):
        parse(["What?"], ["What is this"])


def test_all_that_is_mistyped_is_said_at_once() -> None:
    error = fails("What?", "a.jpg", "./b", "s3://c/d.jpg")
    assert error.what == (
        "3 pictures cannot be sent: a.jpg: no such file. ./b: no such file. s3://c/d.jpg is not read here."
    )
    assert error.hint == "What helps with each: pixtral-sky tokens FILE"
    assert fails("a.jpg", "b.jpg").hint == ""
    make("v.mp4", "good.png", "bad.pdf")
    Path("good.png").write_bytes(plain(16, 16))
    Path("empty.jpg").touch()
    error = fails("What?", "v.mp4", "good.png", "empty.jpg", "bad.pdf", "a.jpg", "https://h/never-asked.jpg")
    assert error.what == (
        "4 pictures cannot be sent: v.mp4 is a video. empty.jpg is empty. "
        "bad.pdf is not a PDF that can be read. a.jpg: no such file."
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"What is it?\n", "What is it?"),
        ("\ufeffWas ist das? Gr\u00f6\u00dfe?\r\n".encode(), "Was ist das? Gr\u00f6\u00dfe?"),
        (b"a.jpg", "a.jpg"),
        (b"The wide road, and BMW", "The wide road, and BMW"),
        (b"<html><svg></svg></html>", "<html><svg></svg></html>"),
    ],
)
def test_text_on_standard_input_is_words(data: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make("p.jpg")
    pipe_in(monkeypatch, data)
    assert parse(["p.jpg", "-"]) == [Source("p.jpg"), words]
    pipe_in(monkeypatch, data)
    assert parse(["-"], ["p.jpg"]) == [Source("p.jpg"), words]


@pytest.mark.parametrize("data", [PICTURE, b"GIF89a\xff", b"text\0", b"%PDF-1.7", b"<svg/>", b"Gr\xf6\xdfe"])
def test_anything_else_on_standard_input_is_a_picture(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, data)
    assert parse(["What?", "-"]) == ["What?", Source("-", data=data)]


def test_standard_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (["-", "-"], ["a", "-", "-"]):
        assert "once only" in fails(*given, kind=UsageError).what
    with pytest.raises(UsageError, match="once only"):
        parse(["-"], ["-"])
    for empty in (b"", b" \n"):
        pipe_in(monkeypatch, empty)
        assert fails("What?", "-").what == "Standard input is empty."
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=None)
    )  # a mistyped path ends it before it is read
    assert fails("a.jpg", "-").what == "a.jpg: no such file."


@pytest.mark.parametrize("argument", ["", " ", "\n"])
def test_an_empty_argument(argument: str) -> None:
    assert "empty" in fails("What?", argument, kind=UsageError).what


def test_nothing_at_all() -> None:
    assert "pixtral-sky ask" in fails(kind=UsageError).hint


def test_words_that_no_server_can_read() -> None:
    assert "UTF-8" in fails("caf\udce9", kind=UsageError).what
