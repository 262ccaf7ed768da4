"""avg@k, pass@k and maj@k against worked examples and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.evaluation.pass_at_k import average_at_k, group_answers, majority_at_k, pass_at_k


def test_average_by_hand():
    np.testing.assert_array_equal(average_at_k(np.array([[True, False], [True, True]])), [0.5, 1.0])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_correct_one(verdicts, data):
    k = data.draw(st.integers(1, len(verdicts)))
    draws = list(itertools.combinations(verdicts, k))
    np.testing.assert_allclose(pass_at_k(np.array([verdicts]), k), [sum(map(any, draws)) / len(draws)], atol=1e-12)


def test_pass_at_1_is_the_average_and_pass_at_n_is_whether_any_is_right():
    correct = np.random.default_rng(0).random((40, 64)) < 0.1
    np.testing.assert_allclose(pass_at_k(correct, 1), average_at_k(correct), atol=1e-12)
    np.testing.assert_array_equal(pass_at_k(correct, 64), correct.any(axis=1))


@pytest.mark.parametrize("k", [0, 3])
def test_pass_at_more_than_there_are_samples_is_an_error(k):
    with pytest.raises(ValueError, match="expected 1 to the 2 samples"):
        pass_at_k(np.ones((1, 2), bool), k)


@pytest.mark.parametrize(
    ("verdicts", "answers", "score"),
    [
        ([True, True, False], ["2", "2", "3"], 1.0),
        ([True, False, False], ["2", "3", "3"], 0.0),
        ([True, False, False], ["2", "3", "4"], 1 / 3),  # a draw of three: one of them right
        ([True, False, False], ["2", None, None], 1.0),  # no answer, no vote
        ([False, False, False], [None, None, None], 0.0),
        ([False, False], ["3", "3"], 0.0),
        ([True, True, False, False, False], ["2", "2.0", "3", "3", "4"], 0.5),  # right ones vote together
        ([True, True, False, False, False], ["2", "2", "1/2", "0.5", "0.5"], 0.0),  # and so do equal wrong ones
    ],
)
def test_majority_by_hand(verdicts, answers, score):
    def equivalent(first, second):
        return {first, second} == {"1/2", "0.5"}

    np.testing.assert_allclose(majority_at_k(np.array([verdicts]), [answers], equivalent), [score])


@pytest.mark.parametrize("verdicts", [[True, True, True, False, False], [False] * 5])
def test_the_majority_asks_nothing_when_the_answers_cannot_change_it(verdicts):
    def equivalent(first, second):
        raise AssertionError("asked")

    answers = [["2", "2", "2", "3", "4"]]
    assert majority_at_k(np.array([verdicts]), answers, equivalent)[0] == float(verdicts[0])


def test_the_checker_is_asked_once_for_a_new_text_and_never_for_a_known_one():
    asked = []

    def equivalent(first, second):
        asked.append((first, second))
        return False

    assert group_answers(["a", "b", "a", None, "b", "c"], equivalent) == [[0, 2], [1, 4], [5]]
    assert asked == [("a", "b"), ("a", "c"), ("b", "c")]
