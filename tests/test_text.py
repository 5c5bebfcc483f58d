"""Text that is printed, and the order of names."""

from __future__ import annotations

from pixtral_sky.text import is_unicode, natural, printable, shown


def test_what_a_terminal_acts_on_is_not_printable() -> None:
    assert (
        printable("a\x1b[31mb\x07\x00\x7f\x9b1m\r\n\tc \u00e9\U0001f98a") == "a[31mb1m\n\tc \u00e9\U0001f98a"
    )


def test_what_turns_the_direction_of_writing_is_not_printable() -> None:
    assert (
        printable("a\u202ecod.exe\u2066\u2069b \u05e9\u05dc\u05d5\u05dd")
        == "acod.exeb \u05e9\u05dc\u05d5\u05dd"
    )


def test_a_name_is_one_line() -> None:
    assert shown("a\n\x1b[2J\udcff.jpg") == "a\ufffd\ufffd[2J\ufffd.jpg"
    assert len(shown("x" * 9999)) == 160


def test_natural_order() -> None:
    names = ["a10", "A2", "a2", "B1", "a1", "10", "9", "a007", "a7"]
    assert sorted(names, key=natural) == ["9", "10", "a1", "A2", "a2", "a007", "a7", "a10", "B1"]


def test_unicode() -> None:
    assert is_unicode("Größe \U0001f98a")
    assert not is_unicode("\ud83d")
