"""Which arguments are words, which are pictures, and which are mistakes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pixtral_sky.errors import PictureError, PixtralSkyError, UsageError
from pixtral_sky.pictures.arguments import DEFAULT_QUESTION, parse
from pixtral_sky.pictures.source import Source
from tests.support import pdfs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


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


def test_the_order_is_kept() -> None:
    make("a.jpg", "b.png")
    assert parse(["First:", "a.jpg", "then:", "b.png", "-", "What changed?"]) == [
        "First:",
        Source("a.jpg"),
        "then:",
        Source("b.png"),
        Source("-"),
        "What changed?",
    ]


def test_pictures_alone_get_the_question_first() -> None:
    make("a.jpg")
    assert parse(["a.jpg", "-"]) == [DEFAULT_QUESTION, Source("a.jpg"), Source("-")]
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
        ("d/*", ["d/a1.jpg", "d/a2.jpg", "d/A3.PNG", "d/a10.jpg", "d/notes.txt"]),
        ("d/a?.jpg", ["d/a1.jpg", "d/a2.jpg"]),
        ("**/*.jpg", ["d/a1.jpg", "d/a2.jpg", "d/a10.jpg", "d/deep er/z.jpg"]),
        ("d/deep er/*", ["d/deep er/z.jpg"]),
        ("d/[aA]3*.PNG", ["d/A3.PNG"]),
    ],
)
def test_globs(pattern: str, expected: Sequence[str]) -> None:
    make("d/a1.jpg", "d/a2.jpg", "d/A3.PNG", "d/a10.jpg", "d/notes.txt", "d/deep er/z.jpg")
    assert sources(pattern) == list(expected)


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
        ("What is in b.png", "no such file"),
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
    assert ("space" in error.hint) == (" " in argument or not argument.endswith((".jpg", ".webp")))
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


def test_standard_input_once() -> None:
    assert sources("-") == ["-"]
    assert "one picture only" in fails("-", "-", kind=UsageError).what


@pytest.mark.parametrize("argument", ["", " ", "\n"])
def test_an_empty_argument(argument: str) -> None:
    assert "empty" in fails("What?", argument, kind=UsageError).what


def test_nothing_at_all() -> None:
    assert "pixtral-sky ask" in fails(kind=UsageError).hint


def test_words_that_no_server_can_read() -> None:
    assert "UTF-8" in fails("caf\udce9", kind=UsageError).what
