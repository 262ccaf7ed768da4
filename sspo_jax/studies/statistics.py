"""Differences between variants of a study: paired by seed, with intervals, p-values and what it would take to see them.

Two cells of one seed share the warm start, the problems, their order and the noise of sampling, so their difference
varies less than either score. What is uncertain is which seeds were drawn: seeds are resampled, and signs flipped.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

import numpy as np
import scipy.stats  # comes with jax
from jaxtyping import Float

LEVEL = 0.95
RESAMPLES = 10_000
_MOST_EXACT = 16  # seeds up to which all sign flips are tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95 % interval over seeds; the ends are not-a-number where fewer than two seeds are there."""

    value: float
    low: float
    high: float
    seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference(Interval):
    """Mean over seeds of first minus second."""

    p_value: float
    """Two-sided, of the sign-flip test: each difference is as likely to have either sign if nothing differs."""
    deviation: float
    """Standard deviation of the differences over seeds."""
    differences: tuple[float, ...]
    """Of each seed."""


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean over seeds with its bootstrap interval.

    Percentiles of resampled means are too narrow for few seeds. They are taken further out, at
    Phi(-+ sqrt(n / (n - 1)) t), t being the quantile of Student's distribution with n - 1 degrees of freedom
    (Hesterberg, arXiv:1411.5279, section 5.2, the expanded percentile interval): for normal values this is the
    interval of the t-test.

    Args:
      values: one a seed.
      seed: of the resampling.
    """
    array = _checked(values)
    count = len(array)
    if count < 2:
        return Interval(value=float(array.mean()), low=math.nan, high=math.nan, seeds=count)
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(array[draws].mean(axis=1), _quantiles(count))
    return Interval(value=float(array.mean()), low=float(low), high=float(high), seeds=count)


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """First minus second, seed by seed.

    Args:
      first, second: values of the same seeds in the same order.

    Raises:
      ValueError: their numbers differ, or there are none.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; expected those of the same seeds")
    differences = _checked(first) - _checked(second)
    interval = mean_interval(differences.tolist(), seed=seed)
    return PairedDifference(
        **dataclasses.asdict(interval),
        p_value=sign_flip_p(differences, seed=seed),
        deviation=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
        differences=tuple(differences.tolist()),
    )


def rank_correlation(
    first: Float[np.ndarray, "variants seeds"], second: Float[np.ndarray, "variants seeds"], *, seed: int = 0
) -> Interval:
    """Spearman's rank correlation over variants between the means over seeds of two outcomes.

    Its interval resamples seeds, the same for all variants: it speaks of other seeds, not of other variants.

    Args:
      first, second: the outcomes; at least three variants.

    Raises:
      ValueError: other shapes, or fewer variants.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] < 3 or not first.shape[1]:
        raise ValueError(f"outcomes of shapes {first.shape} and {second.shape}; expected two of [variants >= 3, seeds]")
    count = first.shape[1]
    value = float(_spearman(first.mean(axis=1, keepdims=True), second.mean(axis=1, keepdims=True))[0])
    if count < 2:
        return Interval(value=value, low=math.nan, high=math.nan, seeds=count)
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    resampled = _spearman(first[:, draws].mean(axis=2), second[:, draws].mean(axis=2))
    low, high = np.nanquantile(resampled, _quantiles(count)) if not np.isnan(resampled).all() else (math.nan, math.nan)
    return Interval(value=value, low=float(low), high=float(high), seeds=count)


def _spearman(
    first: Float[np.ndarray, "variants draws"], second: Float[np.ndarray, "variants draws"]
) -> Float[np.ndarray, " draws"]:
    """Of each column; not-a-number where all variants are equal in one of the two."""
    ranks = [scipy.stats.rankdata(values, axis=0) for values in (first, second)]
    one, two = (own - own.mean(axis=0) for own in ranks)
    with np.errstate(invalid="ignore"):
        return (one * two).sum(axis=0) / np.sqrt((one**2).sum(axis=0) * (two**2).sum(axis=0))


def sign_flip_p(differences: Float[np.ndarray, " seeds"], *, seed: int = 0) -> float:
    """How often the mean is at least as far from 0 after the signs are drawn anew; exact for up to 16 seeds.

    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))  # 2 of 8: all as they are, and all turned
    0.25
    """
    count = len(differences)
    if count <= _MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        drawn = np.random.default_rng(seed).integers(2, size=(RESAMPLES, count))
        signs = np.concatenate([np.ones((1, count), int), 1 - 2 * drawn])  # as it was found is one of them
    means = np.abs(signs @ differences)
    return float(np.mean(means >= means[0] * (1 - 1e-12)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for all of several questions together (Holm 1979): the k-th smallest of n times n - k + 1, rising.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def seeds_needed(deviation: float, difference: float, *, power: float = 0.8) -> int | None:
    """Seeds with which a paired test at 5 % finds a difference of this size with this probability.

        n = (z_0.975 + z_power)^2 sd^2 / difference^2 + z_0.975^2 / 2

    the last term for Student's distribution. None where the deviation is not known.

    >>> seeds_needed(1.0, 0.5)
    34
    """
    if not math.isfinite(deviation) or difference == 0:
        return None
    normal = statistics.NormalDist()
    outer, inner = normal.inv_cdf(0.5 + LEVEL / 2), normal.inv_cdf(power)
    return max(2, math.ceil(((outer + inner) * deviation / difference) ** 2 + outer**2 / 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary(Interval):
    """A learning rate, geometric mean interpolated; at an end of the grid it is only known to lie beyond."""

    is_below: bool
    """Half of the seeds fail at the lowest rate already."""
    is_above: bool
    """Fewer than half fail at the highest."""


def stability_boundary(failed: Float[np.ndarray, "seeds rates"], rates: Sequence[float], *, seed: int = 0) -> Boundary:
    """The learning rate at which half of the seeds fail, with a bootstrap over seeds.

    The shares of seeds that fail are made to rise with the rate (pool adjacent violators), and 1/2 is found by
    linear interpolation in the logarithm of the rate; outside the grid the nearest rate stands for it.

    Args:
      failed: 1 where the seed failed at the rate, 0 where it did not, not-a-number where it was not run there.
      rates: rising.
    """
    if list(rates) != sorted(set(rates)) or failed.shape[1] != len(rates):
        raise ValueError(f"rates are {list(rates)} for {failed.shape[1]} columns; expected one each, rising")
    draws = np.random.default_rng(seed).integers(len(failed), size=(2000, len(failed)))
    whole = _half(np.nanmean(failed, axis=0), rates)
    found = []
    for draw in draws:
        counts = (~np.isnan(failed[draw])).sum(axis=0)
        if counts.all():
            found.append(_half(np.nanmean(failed[draw], axis=0), rates))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(failed) > 1 and found else (math.nan,) * 2
    shares = rising(np.nanmean(failed, axis=0))
    return Boundary(
        value=whole,
        low=float(low),
        high=float(high),
        seeds=len(failed),
        is_below=bool(shares[0] >= 0.5),
        is_above=bool(shares[-1] < 0.5),
    )


def rising(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The nearest rising sequence in the sense of least squares (pool adjacent violators).

    >>> rising(np.array([0.0, 0.6, 0.4, 1.0])).tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])


def _half(shares: Float[np.ndarray, " rates"], rates: Sequence[float]) -> float:
    shares = rising(shares)
    above = int(np.argmax(shares >= 0.5)) if (shares >= 0.5).any() else len(rates)
    if above == 0 or above == len(rates):
        return float(rates[min(above, len(rates) - 1)])
    part = (0.5 - shares[above - 1]) / (shares[above] - shares[above - 1])
    return float(math.exp((1 - part) * math.log(rates[above - 1]) + part * math.log(rates[above])))


def _checked(values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " seeds"]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values have shape {array.shape}; expected one a seed, at least one")
    return array


@functools.cache
def _quantiles(count: int) -> tuple[float, float]:
    """Which quantiles of the resampled means are the ends of the interval."""
    far = math.sqrt(count / (count - 1)) * float(scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1))
    below = statistics.NormalDist().cdf(-far)
    return below, 1 - below
