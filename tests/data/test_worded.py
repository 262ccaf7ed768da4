"""Worded chains: the problems of the plain ones, solutions that are right in every wording."""

import dataclasses
import json
import re

import pytest

from sspo_jax.checker import is_correct
from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.problems import iterate
from sspo_jax.data.sources import data_from_record
from sspo_jax.data.worded import WordedData

CHAIN = r"\d (?:plus|minus|times) \d"


def test_problems_are_the_plain_ones_and_solutions_are_right():
    worded = WordedData(wordings=6, size=200, seed=4).open()
    plain = ArithmeticData(size=200, seed=4, min_steps=3, max_steps=5).open()
    for one, two in zip(iterate(worded), iterate(plain), strict=True):
        assert (one.problem, one.answer) == (two.problem, two.answer)
        assert one.solution is not None
        assert two.solution is not None
        assert is_correct(one.solution, one.answer)
        assert re.findall(CHAIN, one.solution) == re.findall(CHAIN, two.solution)
        digits = [re.findall(r"\d", text) for text in (one.solution, two.solution)]
        assert digits[0] == digits[1]


def test_wordings_are_many_and_stay_with_the_index():
    source = WordedData(wordings=6, size=500).open()
    assert source[7] == WordedData(wordings=6, size=500).open()[7]
    text = "\n".join(str(source[index].solution) for index in range(200))
    for part in (" then", ", and", " we take", " the number", " ends at", " is the result", " = "):
        assert part in text, part
    plain = str(WordedData(wordings=1).open()[3].solution)
    assert re.fullmatch(r"(\d \w+ \d is \d(, )?)+\.\nThe answer is \\boxed\{\d\}\.", plain)


def test_demonstrations_guess_as_often_as_the_plain_ones():
    source = WordedData(wordings=6, reasoned_fraction=0.3).open()
    reasoned = sum(len(source.demonstration(index)) > 30 for index in range(1000))
    assert 240 < reasoned < 360


def test_its_record_is_read_as_it_was():
    for data in (WordedData(wordings=6, split="held_out", size=9), ArithmeticData(size=9)):
        assert data_from_record(json.loads(json.dumps(dataclasses.asdict(data)))) == data


def test_what_it_cannot_be():
    with pytest.raises(ValueError, match="min_steps is 5 and max_steps 3"):
        WordedData(wordings=2, min_steps=5, max_steps=3)
