"""The questions of a bench: of the size that is asked for, and each one new."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pixtral_sky.bench.questions import BASE, DIGITS, DRAWN, WORDS, Questions
from pixtral_sky.memory import Workload
from pixtral_sky.pictures.prepare import prepare
from pixtral_sky.pixtral import image_tokens

SMALL = Workload(images=2, width=64, height=48, text=12)


def pictures(question):
    (message,) = question
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]


def words(question):
    return [part["text"] for part in question[0]["content"] if part["type"] == "text"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def test_words_and_pictures():
    question = Questions(SMALL, seed=1)[0]
    (text,) = words(question)
    assert len(text.split(" ")) == 12
    assert set(text.split(" ")) <= set(WORDS)
    assert [pixels(data).shape for data in pictures(question)] == [(48, 64, 3)] * 2


def test_no_question_comes_twice():
    questions = Questions(SMALL, seed=1)
    numbers = [0, 1, 2, DRAWN, 2 * DRAWN, 7 * DRAWN, 8 * DRAWN, BASE**DIGITS * DRAWN // 2 - 1]
    seen = [pixels(data) for number in numbers for data in pictures(questions[number])]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            # Not one corner of them: a cache of blocks would have the rest.
            assert (one != other).any(axis=2).mean() > 0.2
    assert len({words(questions[number])[0] for number in range(50)}) == 50


def test_a_seed_makes_the_same_ones():
    assert Questions(SMALL, 1)[5] == Questions(SMALL, 1)[5]
    assert pictures(Questions(SMALL, 2)[5])[0] != pictures(Questions(SMALL, 1)[5])[0]


@pytest.mark.parametrize(("width", "height"), [(2000, 1000), (1024, 1025), (1, 1), (3, 5000)])
def test_a_picture_has_the_tokens_of_its_size(width, height):
    (data,) = pictures(Questions(Workload(1, width, height), 1)[0])
    rows, columns, _ = pixels(data).shape
    assert image_tokens(columns, rows) == image_tokens(width, height)
    assert prepare(data, "noise.jpg").data == data, "it goes up as it is"


def test_without_pictures_or_words():
    assert pictures(Questions(Workload(images=0, text=3), 1)[0]) == []
    assert words(Questions(Workload(1, 16, 16, text=0), 1)[0]) == []


def test_a_full_picture_is_as_large_as_a_photo():
    (data,) = pictures(Questions(Workload(), 1)[0])
    assert 150_000 < len(data) < 400_000
