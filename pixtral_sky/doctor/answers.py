"""Checks that the model sees: ten questions about drawn pictures, whose answers are known.

This finds weights that were damaged when they were copied, read or quantised. It is no benchmark. Each
request has one question, at temperature 0. An answer is right when it has all of the expected words, and none
of the wrong ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from pixtral_sky.client.client import Client
from pixtral_sky.client.messages import messages
from pixtral_sky.doctor import drawings
from pixtral_sky.doctor.drawings import BARS, COLOURS, CORNERS, MENU, MISSING, ROW, VISITORS, YEARS, money
from pixtral_sky.errors import BrokenAnswer, Refused
from pixtral_sky.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixtral_sky.pictures.picture import Picture

# Right answers of ten that pass. Random weights give none, and a model that does not see guesses a colour or
# a shape at best. A model that is right nine times in ten fails once in 80 runs (1.3%); one that is right
# every second time passes one run in six (17%).
ENOUGH = 7

BRIEFLY = "Answer with as few words as possible."
ANSWER_TOKENS = 48
COLUMNS = 120  # of a line about an answer

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


@dataclass(frozen=True)
class Question:
    """A ``text`` about ``pictures``. A right answer has all of ``expected``, and nothing of ``wrong``."""

    name: str
    text: str
    expected: tuple[str, ...]
    pictures: tuple[Callable[[], Image], ...]
    wrong: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        return all(says(answer, each) for each in self.expected) and not any(
            says(answer, each) for each in self.wrong
        )

    def parts(self) -> list[str | Picture]:
        """The pictures and the text of a request."""
        from pixtral_sky.pictures.prepare import prepare

        pictures = [prepare(_png(draw()), self.name) for draw in self.pictures]
        return [*pictures, f"{self.text} {BRIEFLY}"]


@dataclass(frozen=True)
class Answered:
    question: Question
    said: str  # in one line
    right: bool

    def document(self) -> dict[str, object]:
        """The answer for JSON."""
        asked = self.question
        return {
            "name": asked.name,
            "question": asked.text,
            "expected": asked.expected,
            "said": self.said,
            "right": self.right,
        }

    def __str__(self) -> str:
        expected = " and ".join(self.question.expected)
        mark = "ok" if self.right else "FAIL"
        line = f"{mark:<4} {self.question.name:<9} expected {expected}, said: {self.said or 'nothing'}"
        return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 3]}..."


def _others(words: Iterable[str], right: str) -> tuple[str, ...]:
    return tuple(word for word in words if word != right)


TALLEST = max(BARS, key=BARS.__getitem__)
BEFORE, IN_THE_YEAR, AFTER = map(str, VISITORS["Lima"])
QUESTIONS = (
    Question("number", "Which number is on the sign?", (str(drawings.SIGN),), (drawings.sign,)),
    Question(
        "colour",
        "What colour is the triangle?",
        (COLOURS["triangle"],),
        (drawings.colours,),
        wrong=_others(COLOURS.values(), COLOURS["triangle"]),
    ),
    Question("count", "How many stars are there?", (str(len(drawings.STARS)),), (drawings.stars,)),
    Question(
        "text",
        "When does the ferry leave, and from which pier?",
        (drawings.DEPARTURE, str(drawings.PIER)),
        (drawings.notice,),
    ),
    Question(
        "chart",
        "Which bar is the tallest, and what is its value?",
        (TALLEST, str(BARS[TALLEST])),
        (drawings.chart,),
    ),
    Question(
        "receipt",
        "What is the total, and how much change was given?",
        (money(drawings.total()), money(drawings.CASH - drawings.total())),
        (drawings.receipt,),
        wrong=(money(drawings.subtotal()),),
    ),
    Question(
        "position",
        "Which shape is in the top right corner?",
        (CORNERS["top right"],),
        (drawings.corners,),
        wrong=_others(CORNERS.values(), CORNERS["top right"]),
    ),
    Question(
        "table",
        f"How many visitors did Lima have in {YEARS[1]}?",
        (IN_THE_YEAR,),
        (drawings.table,),
        wrong=(BEFORE, AFTER),
    ),
    Question(
        "compare",
        "Which shape of the first picture is missing in the second?",
        (MISSING,),
        (drawings.row, partial(drawings.row, MISSING)),
        wrong=_others(ROW, MISSING),
    ),
    Question(
        "sum",
        "What do two coffees and one cake cost together?",
        (money(2 * MENU["Coffee"] + MENU["Cake"]),),
        (drawings.menu,),
    ),
)


def ask(client: Client) -> Iterator[Answered]:
    """Ask all QUESTIONS, one after the other. A refusal counts as a wrong answer, and gives its reason.

    Raises EndpointError when nothing answers.
    """
    for question in QUESTIONS:
        try:
            document = client.complete(messages(question.parts()), max_tokens=ANSWER_TOKENS, temperature=0)
        except (Refused, BrokenAnswer) as error:
            yield Answered(question, _one_line(str(error)), right=False)
            continue
        text = document["choices"][0]["message"].get("content") or ""
        yield Answered(question, _one_line(text), question.is_right(text))


def says(text: str, wanted: str) -> bool:
    """Whether ``text`` has the words of ``wanted``, one after the other; a noun may be in its plural.

    Case and punctuation do not count, and all forms of a number are equal: 7 and seven, 1,204 and 1204, 10.90
    and 10.9.
    """
    words, sought = _words(text), _words(wanted)
    return any(
        all(word in (each, f"{each}s") for word, each in zip(words[start:], sought, strict=False))
        for start in range(len(words) - len(sought) + 1)
    )


def _words(text: str) -> list[str]:
    """The words and numbers of ``text``, each in one form."""
    found = re.findall(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    words: list[str] = []
    units, tens = _UNITS.split(), _TENS.split()
    for number, word in enumerate(found):
        if word in units:
            value = units.index(word)
            if 0 < value < 10 and number and found[number - 1] in tens:
                value += int(words.pop())
            words.append(str(value))
        elif word in tens:
            words.append(str(10 * tens.index(word) + 20))
        else:
            words.append(_number(word) if word[0].isdecimal() else word)
    return words


def _number(digits: str) -> str:
    """A number without thousands separators and trailing zeros."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits):
        digits = digits.replace(",", "")
    whole = digits.replace(",", ".")
    return f"{Decimal(whole).normalize():f}" if whole.count(".") <= 1 else digits


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _png(image: Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
