"""The statistics of a study against formulas written out anew and values from tables."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from sspo_jax.studies.statistics import (
    holm,
    mean_interval,
    paired_difference,
    rank_correlation,
    rising,
    seeds_needed,
    sign_flip_p,
    stability_boundary,
)


def test_the_interval_of_normal_values_is_that_of_the_t_test():
    values = np.random.default_rng(1).normal(0.3, 0.2, 14)
    found = mean_interval(values.tolist())
    half = 2.1604 * values.std(ddof=1) / math.sqrt(14)
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_covers_as_often_as_it_says():
    """Over 400 studies of eight seeds the true mean is inside in 95 %; a plain percentile interval has it in 90 %."""
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(1.0, 1.0, 8).tolist()) for _ in range(400)]
    covered = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert 0.925 <= covered <= 0.975


def test_a_single_seed_has_no_interval():
    found = mean_interval([0.5])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("count", [3, 6, 9])
def test_sign_flips_are_all_tried(count: int):
    differences = np.random.default_rng(count).normal(0.2, 0.3, count)
    means = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=count)]
    expected = np.mean([mean >= abs(differences.sum()) - 1e-12 for mean in means])
    assert sign_flip_p(differences) == pytest.approx(expected, rel=1e-12)


def test_sampled_flips_are_near_the_exact_ones_and_never_zero():
    differences = np.full(20, 0.1)
    assert 0 < sign_flip_p(differences) < 1e-3
    assert sign_flip_p(np.zeros(20)) == 1.0
    even = np.resize([0.1, -0.1], 20)
    assert sign_flip_p(even) == 1.0


def test_pairs_cancel_what_a_seed_does():
    rng = np.random.default_rng(2)
    shared, noise = rng.normal(0, 1.0, 14), rng.normal(0, 0.01, 14)
    found = paired_difference((shared + 0.05 + noise).tolist(), shared.tolist())
    assert found.low > 0
    assert found.p_value == pytest.approx(2 / 2**14)
    assert found.deviation == pytest.approx(noise.std(ddof=1), rel=1e-9)
    with pytest.raises(ValueError, match="expected those of the same seeds"):
        paired_difference([1.0], [1.0, 2.0])


def test_holm_by_hand():
    # Sorted 0.005, 0.02, 0.03, 0.5 times 4, 3, 2, 1, made to rise, at most 1.
    assert holm([0.03, 0.005, 0.5, 0.02]) == pytest.approx([0.06, 0.02, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 34), (1.0, 10), (0.2, 199)])
def test_seeds_needed_are_those_of_power_tables(ratio: float, expected: int):
    """Paired t-test, two-sided at 5 %, power 0.8: 34, 10 and 199 pairs (G*Power) for effects of 0.5, 1 and 0.2."""
    assert seeds_needed(1.0, ratio) == expected
    assert seeds_needed(0.11, 0.11 * ratio) == expected
    assert seeds_needed(math.nan, 0.1) is None


def test_rising_is_the_nearest_rising_sequence():
    values = np.array([0.1, 0.4, 0.2, 0.3, 0.9, 0.7])
    found = rising(values)
    assert (np.diff(found) >= 0).all()
    grid = np.linspace(0, 1, 11)
    best = min(
        sum((np.array(each) - values) ** 2) for each in itertools.combinations_with_replacement(grid, len(values))
    )
    assert sum((found - values) ** 2) <= best


def test_the_boundary_is_where_half_of_the_seeds_fail():
    rates = [1e-4, 2e-4, 4e-4]
    failed = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]], float)
    found = stability_boundary(failed, rates)
    # Shares 0, 1/4, 1: a third of the way from 2e-4 to 4e-4, in logarithms.
    assert found.value == pytest.approx(2e-4 * 2 ** (1 / 3), rel=1e-12)
    assert 1e-4 <= found.low <= found.value <= found.high <= 4e-4
    assert not found.is_below
    assert not found.is_above
    assert stability_boundary(0 * failed, rates).is_above
    assert stability_boundary(0 * failed + 1, rates).is_below
    with pytest.raises(ValueError, match="rising"):
        stability_boundary(failed, [1e-4, 4e-4, 2e-4])


def test_seeds_that_were_not_run_everywhere_count_where_they_were():
    failed = np.array([[0, math.nan, 1], [0, 0, 1], [0, 1, 1]], float)
    assert stability_boundary(failed, [1.0, 2.0, 4.0]).value == pytest.approx(2.0)


def test_the_rank_correlation_is_of_the_means_and_its_interval_over_seeds():
    random = np.random.default_rng(0)
    strength = np.linspace(0, 1, 7)[:, None] + 0.2 * random.normal(size=(7, 14))
    score = 0.3 * strength + 0.1 * random.normal(size=(7, 14))
    found = rank_correlation(strength, score)
    wanted = scipy.stats.spearmanr(strength.mean(axis=1), score.mean(axis=1)).statistic
    assert found.value == pytest.approx(wanted)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.seeds == 14
    opposite = rank_correlation(strength, -score)
    assert (opposite.value, opposite.low, opposite.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert math.isnan(rank_correlation(strength[:, :1], score[:, :1]).low)
    assert math.isnan(rank_correlation(np.ones((3, 4)), score[:3, :4]).value)
    with pytest.raises(ValueError, match="variants >= 3"):
        rank_correlation(strength[:2], score[:2])
