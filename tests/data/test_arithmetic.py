"""Generated problems: what they say is true, the splits are apart, everything is a function of (seed, index)."""

import collections
import dataclasses
import re

import pytest

from sspo_jax.data.arithmetic import ArithmeticData, ArithmeticSource, evaluate_chain, split_of
from sspo_jax.data.problems import iterate

STEP = re.compile(r"(plus|minus|times) (\d)")
OPERATION = {"plus": "+", "minus": "-", "times": "*"}


def read_chain(problem: str):
    """Start and steps, read back from the words."""
    start = re.search(r"(?:start with|take|begin at) (\d)", problem)
    return int(start.group(1)), [(OPERATION[word], int(digit)) for word, digit in STEP.findall(problem)]


def test_a_chain_by_hand():
    # 7+5=12, 2-3=-1, 9*9=81
    assert evaluate_chain(7, [("+", 5), ("-", 3), ("*", 9)]) == [2, 9, 1]


def test_the_words_say_what_the_answer_answers():
    for problem in iterate(ArithmeticData(size=300, seed=5).open()):
        start, steps = read_chain(problem.problem)
        assert 4 <= len(steps) <= 6
        assert problem.answer == str(evaluate_chain(start, steps)[-1])


def test_every_clause_of_a_solution_is_true_and_the_chain_is_connected():
    symbol = {"plus": "+", "minus": "-", "times": "*"}
    for problem in iterate(ArithmeticData(size=300, seed=6).open()):
        start, steps = read_chain(problem.problem)
        clauses = re.findall(r"(\d) (plus|minus|times) (\d) is (\d)", problem.solution)
        assert [(symbol[word], int(operand)) for _, word, operand, _ in clauses] == steps
        value = start
        for left, word, operand, right in clauses:
            assert int(left) == value
            value = int(right)
            assert (value - {"plus": int(left) + int(operand), "minus": int(left) - int(operand),
                             "times": int(left) * int(operand)}[word]) % 10 == 0  # fmt: skip
        assert problem.solution.endswith(f"The answer is \\boxed{{{value}}}.")
        assert problem.answer == str(value)


def test_the_same_seed_and_index_give_the_same_problem_in_any_order():
    first, second = ArithmeticData(seed=3).open(), ArithmeticData(seed=3).open()
    indices = [5, 999_999, 0, 5]
    assert [first[index] for index in indices] == [second[index] for index in reversed(indices)][::-1]
    assert first.demonstration(7) == second.demonstration(7)
    assert ArithmeticData(seed=4).open()[5].problem != first[5].problem


def test_a_problem_of_one_split_is_never_one_of_the_other():
    """The split is a function of the chain as read from the words, so no two seeds or sizes can make them meet."""
    for split in ("train", "held_out"):
        for problem in iterate(ArithmeticData(split=split, size=300, seed=7).open()):
            assert split_of(*read_chain(problem.problem)) == split


def test_problems_hardly_repeat():
    problems = [problem.problem for problem in iterate(ArithmeticData(split="held_out", size=1000).open())]
    assert len(set(problems)) >= 980  # the shortest chains number in the tens of thousands: a few meet by chance


def test_a_guess_scores_one_in_ten():
    counts = collections.Counter(problem.answer for problem in iterate(ArithmeticData(size=5000).open()))
    assert set(counts) == set("0123456789")
    assert max(counts.values()) < 5000 * 0.13  # 7 standard deviations above a tenth


def test_demonstrations_reason_two_times_in_five():
    source = ArithmeticData(size=3000).open()
    reasoned = right = 0
    for index in range(len(source)):
        text, problem = source.demonstration(index), source[index]
        if text == problem.solution:
            reasoned += 1
        else:
            digit = re.fullmatch(r"The answer is \\boxed\{(\d)\}\.", text).group(1)
            right += digit == problem.answer
    assert 0.37 < reasoned / 3000 < 0.43
    assert 0.07 < right / (3000 - reasoned) < 0.13


def test_the_digest_tells_settings_apart():
    base = ArithmeticData()
    changes = [{"seed": 1}, {"split": "held_out"}, {"size": 5}, {"min_steps": 5}, {"reasoned_fraction": 0.5}]
    sources = [ArithmeticSource(dataclasses.replace(base, **change)) for change in [{}, *changes]]
    assert len({source.digest for source in sources}) == len(sources)
    assert base.open().digest == ArithmeticData().open().digest


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"min_steps": 7}, {"min_steps": 0}, {"reasoned_fraction": 1.5}, {"split": "test"}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    # beartype, on in the tests, refuses the ill-typed split before we can
    with pytest.raises(Exception, match=next(iter(wrong))):
        ArithmeticData(**wrong)
