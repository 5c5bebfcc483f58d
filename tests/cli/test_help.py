"""The help: short summaries, whole, grouped, wrapped to the terminal; -q on both sides; `help COMMAND`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main

from pixtral_sky.cli import app, commands
from tests.support.command_line import Run

ROOT = typer.main.get_command(app._app(""))


def all_commands() -> Iterator[tuple[str, ...]]:
    for name, command in ROOT.commands.items():  # type: ignore[attr-defined]
        yield (name,)
        for below in getattr(command, "commands", {}):
            yield (name, below)


ALL = list(all_commands())


def command_of(words: tuple[str, ...]) -> object:
    found = ROOT
    for word in words:
        found = found.commands[word]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_a_summary_is_short_and_shown_whole(words: tuple[str, ...], run: Run) -> None:
    summary = commands.summary(command_of(words))
    assert 0 < len(summary) <= 60
    assert f" {words[-1]} " in (listed := run(*words[:-1], "--help").out)
    assert summary in listed


def test_the_commands_are_grouped(run: Run) -> None:
    titles = [line for line in run("--help").out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Options:", "Plan:", "Deploy:", "Use:", "Operate:"]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_help_is_as_wide_as_the_terminal(
    words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run(*words, "--help").out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "40")
    for line in run(*words, "--help").out.splitlines():
        # Examples are to be copied, and an option is not split.
        if "pixtral-sky " not in line and not line.startswith("  -"):
            assert len(line) <= 40, line


def test_lines_are_not_longer_than_can_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert 90 < max(map(len, run("plan", "--help").out.splitlines())) <= commands.MAX_WIDTH


@pytest.mark.parametrize(
    ("words", "default"),
    [
        ("launch", "pixtral"),
        ("batch", "Describe this image in detail please."),
        ("ask", "PIXTRAL_ENDPOINT, else pixtral"),
        ("ask", "with pictures alone: Describe this image in detail please."),
        ("launch", "IDLE_MINUTES of the file"),
        ("rehearse", "8081, else a free one"),
        ("down", "pixtral"),
        ("doctor", "PIXTRAL_ENDPOINT, else pixtral"),
    ],
)
def test_a_default_is_shown(words: str, default: str, run: Run) -> None:
    text = " ".join(run(words, "--help").out.split())
    assert f"default: {default}" in text or f"default: ({default})" in text


@pytest.mark.parametrize("words", [("help", "launch"), ("help", "serve", "up"), ("help",)], ids=" ".join)
def test_help_is_a_command_too(words: tuple[str, ...], run: Run) -> None:
    assert run(*words) == run(*words[1:], "--help")


@pytest.mark.parametrize(
    "words", [("-q", "status"), ("status", "-q"), ("serve", "status", "--quiet"), ("-q", "serve", "status")]
)
def test_quiet_on_both_sides(words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixtral_sky import output
    from pixtral_sky.deploy import backend, services

    monkeypatch.setattr(backend, "rows", lambda _: output.say("something") or ([], None))
    monkeypatch.setattr(services, "documents", lambda _: output.say("something") or ([], None))
    assert run(*words).err == ""


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("-q", "help", "ask"), ("-q", "ask", "--help")),
        (("serve", "help", "up"), ("serve", "up", "--help")),
        (("serve", "help"), ("serve", "--help")),
        (("help", "help"), ("--help",)),
    ],
)
def test_help_anywhere(words: tuple[str, ...], same: tuple[str, ...], run: Run) -> None:
    assert run(*words) == run(*same)


@pytest.mark.parametrize("command", ["down", "status", "logs", "tunnel"])
def test_a_name_that_is_an_argument(command: str, run: Run) -> None:
    assert "No such option: -n: the name is an argument here." in run(command, "-n", "x").error


@pytest.mark.parametrize("command", ["tokens", "plan", "completion"])
def test_a_command_without_a_name(command: str, run: Run) -> None:
    assert "the name is" not in run(command, "-n", "x").error
