"""pixtral-sky.toml gives defaults, and nothing that is said otherwise is lost to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixtral_sky import config
from pixtral_sky.deploy import backend, services
from tests.cli.test_help import ALL, command_of
from tests.support import deployments
from tests.support.command_line import KEY, Run
from tests.support.fake_endpoint import FakeEndpoint, says


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the file of the working directory, or the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    def write(text: str, user: bool = False) -> Path:
        path = config.paths()[0 if user else 1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def remembered(*names: str) -> None:
    for name in names:
        deployments.cluster(name, url=f"http://{name}.example:8081")


def test_the_name(run: Run, write, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered("pixtral", "ocr", "other")
    write('name = "ocr"')
    assert run("endpoint").out == "http://ocr.example:8081\n"
    assert run("endpoint", "-n", "other").out == "http://other.example:8081\n"
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://10.0.0.7:8081")
    assert run("endpoint").out == "http://10.0.0.7:8081\n"


def test_an_address_on_the_command_line_wins_over_the_name(
    run: Run, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    remembered("ocr")
    write('name = "ocr"')
    with FakeEndpoint([says("So it is.")], key=KEY) as fake:
        assert run("ask", "Hello", "--endpoint", fake.url).out == "So it is.\n"


def test_the_nearer_file_wins_key_by_key(run: Run, write) -> None:
    write('name = "far"\ninfra = "gcp"', user=True)
    write('name = "near"')
    text = run("launch", "--help").out
    assert "[default: near]" in text
    assert "default: gcp]" in text


@pytest.mark.parametrize("command", ["down", "serve down"])
def test_what_the_file_names_is_taken_down_only_by_consent(
    run: Run, write, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(backend, "down", lambda name: taken.append(name) or "")
    monkeypatch.setattr(backend, "take_down", lambda name, _: taken.append(name) or "said")
    monkeypatch.setattr(services, "controller", lambda: None)
    monkeypatch.setattr(backend, "may_be_at_skypilot", lambda _: False)
    write('name = "ocr"')
    result = run("-q", *command.split())
    assert (result.code, result.error) == (
        2,
        "Take down ocr, which pixtral-sky.toml names? Nobody is here to be asked."
        f" Run: pixtral-sky {command} ocr",
    )
    assert run(*command.split(), typed="\n").code == 1
    assert taken == []
    assert run(*command.split(), typed="y\n").code == 0
    assert taken.pop() == "ocr"
    run(*command.split(), "other")
    assert taken.pop() == "other"


def test_down_without_questions(run: Run, write, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(backend, "down", lambda name: taken.append(name) or "")
    monkeypatch.setattr(backend, "names", lambda: (["a", "b"], None))
    monkeypatch.setattr(backend, "may_be_at_skypilot", lambda _: False)
    write('name = "ocr"')
    run("down", "--yes")
    run("down", "--all", "--yes")
    assert taken == ["ocr", "a", "b"]


def test_what_is_launched_is_said(run: Run, write, server) -> None:
    write('name = "ocr"\ngpus = "L4:2"\nidle = 20\nprompt = "What?"')
    said = run("launch", "--dry-run", "--idle", "5").err
    assert said.startswith("From pixtral-sky.toml: name ocr, gpus L4:2.\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "x = 1",
            "has the unknown key 'x'. It can have: name, infra, gpus, precision, idle, prompt, system.",
        ),
        ("[ask]\nsystem = 'x'", "has the unknown key 'ask'"),
        ('api_key = "sk-SENTINEL"', "has 'api_key': it may be copied and committed"),
        ('HF_TOKEN = "hf_SENTINEL"', "has 'HF_TOKEN': it may be copied and committed"),
        ("name = 3", "name is a text, not 3."),
        ('infra = ""', "infra is a text, not ''."),
        ('idle = "20"', "idle is a number of minutes, not '20'."),
        ("idle = true", "idle is a number of minutes, not True."),
        ("idle = nan", "idle is a number of minutes, not nan."),
        ("name =", "is not valid TOML"),
        ("name = 'a'\nname = 'b'", "is not valid TOML"),
    ],
)
def test_a_bad_file(text: str, reason: str, run: Run, write) -> None:
    write(text)
    result = run("status")
    assert result.code == 2
    assert result.error.startswith("pixtral-sky.toml")
    assert reason in result.error


def test_a_file_that_cannot_be_read(run: Run, write) -> None:
    config.paths()[1].mkdir()
    assert run("status").error == "pixtral-sky.toml cannot be read: Is a directory."


def test_every_key_is_an_option_of_its_commands() -> None:
    for key, listed in config.KEYS.items():
        for words in listed:
            assert key in {each.name for each in command_of(tuple(words.split())).params}, words


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_a_name_that_can_be_left_out_may_stand_in_the_file(words: tuple[str, ...]) -> None:
    """But for a status, which shows all."""
    if any(each.name == "name" for each in getattr(command_of(words), "params", ())):
        assert (" ".join(words) in config.KEYS["name"]) == (words[-1] != "status")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["help", "ask"], ["completion", "bash"]])
def test_a_bad_file_is_in_the_way_of_no_help(words: list[str], run: Run, write) -> None:
    write("name =")
    assert run(*words).code == 0
