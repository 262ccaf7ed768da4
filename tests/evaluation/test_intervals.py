"""Intervals: coverage, known variances, pairing, and no certainty from the bootstrap's blind spot."""

import numpy as np
import pytest

from sspo_jax.evaluation import intervals
from sspo_jax.evaluation.intervals import estimate, estimate_average, paired_average_difference, paired_difference


def draw(rng, problems, samples):
    """Verdicts of problems whose own chances are spread over 0 to 1; the expected score is a half."""
    return rng.random((problems, samples)) < rng.random((problems, 1))


@pytest.mark.parametrize("samples", [1, 8])
def test_ninety_five_percent_of_intervals_hold_the_truth(samples, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    rng = np.random.default_rng(1)
    found = [estimate(draw(rng, 100, samples), seed=trial) for trial in range(200)]
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    # 95 % +- 3 standard deviations of 200 trials; with samples inside problems the second draw adds width
    assert 0.90 <= covered <= 1.0
    assert all(one.low <= one.value <= one.high for one in found)


def test_the_width_is_that_of_the_two_variances():
    correct = draw(np.random.default_rng(2), 400, 8)
    chances = correct.mean(axis=1)
    # of the resampled mean: between problems, plus the mean binomial variance inside a problem
    deviation = np.sqrt((chances.var() + np.mean(chances * (1 - chances)) / 8) / 400)
    found = estimate(correct)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * deviation, rtol=0.08)


def test_graded_scores_are_resampled_like_verdicts():
    correct = draw(np.random.default_rng(3), 200, 4)
    shifted = estimate(correct * 100.0 + 7.0, is_share=False)
    plain = estimate(correct)
    np.testing.assert_allclose(shifted.value, plain.value * 100 + 7)
    np.testing.assert_allclose((shifted.high - shifted.low) / 100, plain.high - plain.low, rtol=0.1)


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(4).random((50, 4))
    assert estimate(scores, seed=3) == estimate(scores, seed=3)
    assert estimate(scores, seed=3) != estimate(scores, seed=4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certain(share):
    found = estimate(np.full((30, 4), share))
    # 30 of 30 under a flat prior, Beta(31, 1): its 2.5 % point is 0.025 ** (1 / 31) = 0.888
    low, high = (0.888, 1.0) if share else (0.0, 0.112)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=5e-3)
    assert found.low <= share <= found.high
    mean = estimate_average({"unsolved": np.full((30, 4), share), "other": np.tile([[0.0], [1.0]], (5_000, 1))})
    np.testing.assert_allclose(mean.high - mean.low, 0.112 / 2, rtol=0.15)  # the other set is known to a percent


def test_the_average_over_sets_weighs_sets_equally():
    rng = np.random.default_rng(5)
    sets = {"small": draw(rng, 30, 32), "large": draw(rng, 500, 8)}
    found = estimate_average(sets)
    np.testing.assert_allclose(found.value, (sets["small"].mean() + sets["large"].mean()) / 2)
    small = estimate(sets["small"])
    # the small set rules the width: half of its own
    np.testing.assert_allclose(found.high - found.low, (small.high - small.low) / 2, rtol=0.1)


def test_pairing_cancels_what_makes_problems_hard():
    rng = np.random.default_rng(6)
    chances = (rng.random((300, 1)) < 0.5).astype(float)  # half of the problems impossible, half certain
    better = rng.random((300, 1)) < np.clip(chances, 0.05, 1)  # five percent of the impossible ones solved
    worse = chances > 0.5
    found = paired_difference(better, worse)
    unpaired = estimate(better).high - estimate(better).low
    assert found.value == better.mean() - worse.mean() > 0
    assert found.high - found.low < unpaired / 2
    assert found.low > 0
    assert found.p_value < 0.05


def test_no_difference_has_no_small_p_value():
    correct = draw(np.random.default_rng(7), 100, 1)
    same = paired_difference(correct, correct)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_of_equal_models_are_spread_evenly(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    rng = np.random.default_rng(8)
    p_values = [paired_difference(draw(rng, 80, 1), draw(rng, 80, 1), seed=trial).p_value for trial in range(200)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.10
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.12)


def test_the_two_may_have_different_numbers_of_samples_and_swap_signs():
    rng = np.random.default_rng(9)
    first, second = draw(rng, 60, 8), draw(rng, 60, 2)
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert forth.value == -back.value
    np.testing.assert_allclose([forth.low, forth.high], [-back.high, -back.low], atol=0.02)


def test_several_sets_are_paired_set_by_set():
    rng = np.random.default_rng(10)
    sets = {"a": (draw(rng, 30, 4), draw(rng, 30, 4)), "b": (draw(rng, 200, 1), draw(rng, 200, 1))}
    found = paired_average_difference(sets)
    np.testing.assert_allclose(found.value, np.mean([one.mean() - two.mean() for one, two in sets.values()]))


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        estimate(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="2 and 3 problems"):
        paired_difference(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="no sets"):
        estimate_average({})
