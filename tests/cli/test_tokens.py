"""``pixtral-sky tokens``, and the arithmetic behind it against mistral-common's own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pixtral_sky.deploy import task
from pixtral_sky.pictures.prepare import prepare
from pixtral_sky.pixtral import MAX_IMAGE_TOKENS, image_tokens
from pixtral_sky.rehearsal import engine
from tests.conftest import ROOT
from tests.support import pdfs
from tests.support.command_line import Run, imports, run_main, seconds
from tests.support.pictures import plain, saved
from tests.support.site import site

KINDS = "Pictures are JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC files."


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``pixtral-sky tokens`` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, stdin=b"": run_main(monkeypatch, capsys, "tokens", *arguments, stdin=stdin)


def test_a_small_picture_is_sent_as_it_is(run):
    data = plain(400, 300)
    Path("small.png").write_bytes(data)
    result = run("small.png")
    assert (result.code, result.err) == (0, "")
    head, line = result.out.splitlines()
    assert head.split() == ["TOKENS", "FIT", "SENT", "PER", "PROMPT", "PICTURE"]
    size = f"{len(data) / 1000:.1f}"
    # (400/16 + 1) x ceil(300/16) = 26 x 19
    assert line.split() == ["494", "400x304", "400x300", size, "kB", "4", "small.png"]


def test_a_large_picture_is_shrunk_first(run):
    data = plain(4000, 3000, "JPEG")
    Path("large.jpg").write_bytes(data)
    (row,) = json.loads(run("large.jpg", "--json").out)
    sent = prepare(data, "large.jpg")
    assert row == {
        "picture": "large.jpg",
        "tokens": 65 * 48,
        "width": 1024,
        "height": 768,
        "bytes": len(sent.data),
        "media_type": sent.media_type,
        "fit": [1024, 768],
        "per_prompt": 4,
    }


def test_many_in_natural_order_with_their_sum(run):
    for number in (10, 2, 1):
        Path(f"p{number}.png").write_bytes(plain(16 * number, 16))
    result = run("p*.png")
    assert [line.split()[-1] for line in result.out.splitlines()[1:]] == ["p1.png", "p2.png", "p10.png"]
    assert result.err == "3 pictures, 16 tokens in all\n"
    assert [row["tokens"] for row in json.loads(run("p*.png", "--json").out)] == [2, 3, 11]


def test_standard_input_and_a_data_url(run):
    data = plain(32, 32)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    rows = json.loads(run("-", url, "--json", stdin=data).out)
    assert [row["tokens"] for row in rows] == [6, 6]
    assert [row["picture"] for row in rows] == ["standard input", "the data: URL"]
    assert [row["bytes"] for row in rows] == [len(data)] * 2


def test_pages_of_a_pdf(run):
    Path("a.pdf").write_bytes(pdfs.made(b"", b"", b""))
    rows = json.loads(run("a.pdf", "--json").out)
    assert [row["picture"] for row in rows] == ["a.pdf#page=1", "a.pdf#page=2", "a.pdf#page=3"]
    assert json.loads(run("a.pdf#page=2", "--json").out) == rows[1:2]
    assert run("a.pdf#page=4").error == "a.pdf#page=4: it has 3 pages."


def test_a_url(run):
    with site({"/x.png": plain(32, 32)}) as url:
        (row,) = json.loads(run(f"{url}/x.png?token=secret", "--json").out)
        assert (row["tokens"], row["picture"]) == (6, f"{url}/x.png")
        missing = run(f"{url}/y.png", "--json")
        shown = run(f"{url}/y.png")
    says = f"{url}/y.png answers 404 Not Found. Is the address right?"
    assert (shown.code, shown.error) == (1, says)
    assert json.loads(missing.out) == [{"picture": f"{url}/y.png", "error": says}], "a document, as of many"
    assert (missing.code, missing.err) == (1, f"Error: {says}\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["What is this"], b"", 1, "What is this: no such file."),
        (["-", "-"], b"", 2, "Standard input ('-') can be given once only."),
        (["gone"], b"", 1, "gone: no such file."),
        ([""], b"", 2, "An empty argument is neither words nor a picture."),
        (["gone.jpg"], b"", 1, "gone.jpg: no such file."),
        (["my scan.png"], b"", 1, "my scan.png: no such file."),
        (["h.org/a.png"], b"", 1, "h.org/a.png: no such file. If it is on the web: https://h.org/a.png"),
        (
            ["words.txt"],
            b"",
            1,
            "words.txt is a text. If its words are the question: pixtral-sky ask - < words.txt",
        ),
        (["."], b"", 1, ". is a directory. Give the pictures in it: './*.jpg'"),
    ],
)
def test_what_is_no_picture(run, arguments, stdin, code, says):
    Path("words.txt").write_text("words")
    result = run(*arguments, stdin=stdin)
    assert (result.code, result.error) == (code, says)


@pytest.mark.parametrize(("stdin", "says"), [
    (b"", "standard input is empty."),
    (b"%PDF-1.7", "standard input is a PDF. Give it as a file whose name ends in .pdf."),
    (plain(32, 32)[:60], "standard input is cut off. Copy or download it again."),
])  # fmt: skip
def test_what_is_no_whole_picture(run, stdin, says):
    result = run("-", stdin=stdin)
    assert result.code == 1
    assert result.error.startswith(says)


def test_one_bad_picture_costs_its_own_row(run):
    for name in ("a.png", "c.png"):
        Path(name).write_bytes(plain(32, 32))
    Path("cut.png").write_bytes(plain(32, 32)[:60])
    Path("broken.pdf").write_bytes(b"x")
    given = ("a.png", "cut.png", "gone.jpg", "broken.pdf", "s3://bucket/a.jpg", "c.png")
    result = run(*given)
    said = [line.split(maxsplit=4)[-1] for line in result.out.splitlines()[1:]]
    reasons = [
        "cut.png is cut off. Copy or download it again.",
        "gone.jpg: no such file.",
        "broken.pdf is not a PDF that can be read.",
        "s3://bucket/a.jpg is not read here. Copy it here: aws s3 cp s3://bucket/a.jpg .",
    ]
    assert said[1:-1] == reasons
    assert (said[0].split()[-1], said[-1].split()[-1]) == ("a.png", "c.png")
    assert result.code == 1
    assert result.err == "2 pictures, 12 tokens in all\nError: 4 of 6 pictures cannot be sent.\n"
    result = run(*given, "--json")
    good, *bad, also = json.loads(result.out)
    assert (good["tokens"], also["tokens"], result.code) == (6, 6, 1)
    assert bad == [{"picture": name, "error": why} for name, why in zip(given[1:-1], reasons, strict=True)]


def test_a_broken_pdf_among_the_matches_of_a_glob_costs_its_own_row(run):
    Path("a.png").write_bytes(plain(32, 32))
    Path("b.pdf").write_bytes(b"x")
    first, second = json.loads(run("*.p*", "--json").out)
    assert (first["tokens"], second["error"]) == (6, "b.pdf is not a PDF that can be read.")


def test_the_first_frame_is_said_to_be_one(run):
    Path("a.gif").write_bytes(
        saved(Image.new("L", (32, 32)), "GIF", save_all=True, append_images=[Image.new("L", (32, 32), 9)])
    )
    result = run("a.gif")
    assert (result.code, result.err) == (0, "a.gif: the first of 2 frames.\n")


def test_nothing_at_all(run):
    result = run()
    assert result.code == 2
    assert "Missing argument" in result.err


@pytest.mark.parametrize(
    ("most", "context", "size", "holds"),
    [
        ("4", "32768", 1024, 4),
        ("8", "", 1024, 8),  # the script then takes 8 x 4,160 + 4,096
        ("8", "32768", 1024, 7),  # 7 x 4,160 + 515 <= 32,768
        ("8", "4674", 1024, 0),
        ("8", "4675", 1024, 1),
        ("200", "32768", 400, 49),  # 49 x 650 + 515 <= 32,768
        ("8", "-1", 1024, 8),
        ("8", "100", 16, 0),  # not even the answer
    ],
)
def test_how_many_go_into_a_prompt(run, monkeypatch, most, context, size, holds):
    shipped = task.load()
    shipped.envs.update(MAX_IMAGES=most, MAX_MODEL_LEN=context)
    monkeypatch.setattr(task, "load", lambda: shipped)
    (row,) = json.loads(run("-", "--json", stdin=plain(size, size)).out)
    assert row["per_prompt"] == holds


def test_it_is_there_at_once():
    """Without anything for the network, and in 0.3 s where the machine has time for it."""
    command = ["tokens", ROOT / "examples" / "receipt.jpg"]
    _, modules = imports(*command)
    assert "PIL.Image" in modules
    assert not modules & {"httpx", "sky", "rich", "pydantic", "numpy", "jsonschema", "psutil", "ssl"}

    # Somewhat more than the 0.3 s that are wanted: other programs run on a machine that tests.
    assert any(seconds(*command) < 0.5 for _ in range(5))


# --- against mistral-common, in the engine's Python

ENCODER = """
import sys
from pathlib import Path
from types import SimpleNamespace

import mistral_common
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image

file = Path(mistral_common.__file__).parent / "data/tekken_240911.json"
encoder = MistralTokenizer.from_file(str(file)).instruct_tokenizer.mm_encoder
for line in sys.stdin:
    width, height = map(int, line.split())
    columns, rows = encoder._image_to_num_tokens(SimpleNamespace(size=(width, height)))
    tokens = (columns + 1) * rows
    if width * height <= 2**20:  # a larger picture is the same arithmetic, and takes long to make
        made = encoder(ImageChunk(image=Image.new("RGB", (width, height))))
        assert len(made.tokens) == tokens, (width, height)
        assert made.image.shape == (3, 16 * rows, 16 * columns), (width, height)
    print(tokens, flush=True)
"""


@pytest.fixture(scope="module")
def encoder() -> Iterator[Callable[[int, int], int]]:
    """Tokens of a picture of a size, said by mistral-common's own encoder."""
    python = engine.ensure(task.load().vllm_version) / "bin" / "python"
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        [python, "-c", ENCODER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdin
        assert process.stdout

        def tokens(width: int, height: int) -> int:
            process.stdin.write(f"{width} {height}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield tokens
        process.stdin.close()


SIDE = st.one_of(
    st.integers(1, 64), st.integers(1, 1100), st.integers(1, 20_000), st.integers(1, 100_000_000),
    st.sampled_from([16, 17, 1008, 1009, 1023, 1024, 1025, 2047, 2048, 2049, 65_535]),
)  # fmt: skip


@pytest.mark.engine
@pytest.mark.timeout(300)
@settings(max_examples=1000, deadline=None)
@given(width=SIDE, height=SIDE)
@example(1, 1).via("the smallest")
@example(1, 100_000_000).via("a line")
@example(100_000_000, 1).via("a line")
@example(13_377, 13_377).via("as large as a file may be")
def test_the_arithmetic_is_that_of_mistral_common(encoder, width, height):
    tokens = image_tokens(width, height)
    assert tokens == encoder(width, height)
    assert 2 <= tokens <= MAX_IMAGE_TOKENS
