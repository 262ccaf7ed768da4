"""95 % intervals of scores and of differences, by the bootstrap over problems, then samples.

A score varies for two reasons: other problems of the same kind would have been easier or harder, and other samples of
the same problem would have come out otherwise. The bootstrap draws problems with replacement, then for each drawn
problem its samples with replacement, and takes the 2.5 % and 97.5 % quantiles of the means. With one (greedy) sample
per problem only the first part is left.

Where every problem of a set has the same score (none solved, say), redrawing would claim certainty. The draws are then
those of a share of which that many problems have been seen, under a flat prior: Beta(c + 1, n - c + 1).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

RESAMPLES = 4_000
LEVEL = 0.95
_QUANTILES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of the resampled indices, 8 bytes each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its interval, both between 0 and 1 (or in the unit of what was averaged)."""

    value: float
    """The score itself."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """Score of the first minus score of the second, on the same problems."""

    p_value: float
    """Two-sided: how often the resampled difference has the other sign, doubled."""


def estimate(scores: Shaped[np.ndarray, "problems samples"], *, seed: int = 0, is_share: bool = True) -> Estimate:
    """Mean of scores with its interval.

    Args:
      scores: one score (or bool) per problem and sample; a per-problem metric such as maj@k has one column.
      seed: of the resampling; the same scores and seed give the same interval.
      is_share: scores lie between 0 and 1.

    Raises:
      ValueError: no problems or no samples.
    """
    values = _checked(scores)
    return _estimate(values.mean(), _resampled_means(values, np.random.default_rng(seed), is_share))


def estimate_average(
    sets: Mapping[str, Shaped[np.ndarray, "problems_of_set samples_of_set"]], *, seed: int = 0
) -> Estimate:
    """Unweighted mean over sets of their mean scores (the paper's five-set average), each set resampled on its own."""
    if not sets:
        raise ValueError("no sets to average over, expected at least one")
    rng = np.random.default_rng(seed)
    values = [_checked(scores) for scores in sets.values()]
    means = np.mean([_resampled_means(scores, rng, True) for scores in values], axis=0)
    return _estimate(np.mean([scores.mean() for scores in values]), means)


def paired_difference(
    first: Shaped[np.ndarray, "problems_of_first samples_of_first"],
    second: Shaped[np.ndarray, "problems_of_second samples_of_second"],
    *,
    seed: int = 0,
) -> Difference:
    """Mean of `first` minus mean of `second` on the same problems, by the paired bootstrap.

    Both are resampled with the same problems, so what makes a problem easy for both cancels; samples are drawn apart.

    Args:
      first, second: rows are the same problems in the same order; the numbers of samples may differ.

    Raises:
      ValueError: numbers of problems differ, or there are none.
    """
    return paired_average_difference({"": (first, second)}, seed=seed)


def paired_average_difference(
    sets: Mapping[str, tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]], *, seed: int = 0
) -> Difference:
    """The same for the unweighted mean over several sets, each resampled on its own."""
    rng = np.random.default_rng(seed)
    values, resampled = [], []
    for name, pair in sets.items():
        first, second = (_checked(scores) for scores in pair)
        if len(first) != len(second):
            raise ValueError(f"{name or 'scores'}: {len(first)} and {len(second)} problems, expected the same ones")
        values.append(first.mean() - second.mean())
        resampled.append(_resampled_differences(first, second, rng))
    differences = np.mean(resampled, axis=0)
    low, high = np.quantile(differences, _QUANTILES)
    # One is added to both counts: a finite number of resamples cannot show a p-value of 0.
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2.0 * (int(tail) + 1) / (len(differences) + 1))
    return Difference(value=float(np.mean(values)), low=float(low), high=float(high), p_value=p_value)


def _checked(scores: np.ndarray) -> Float[np.ndarray, "problems samples"]:
    values = np.asarray(scores, np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"scores have shape {values.shape}, expected [problems, samples] with at least one of each")
    return values


def _estimate(value: np.floating, resampled: Float[np.ndarray, " resamples"]) -> Estimate:
    low, high = np.quantile(resampled, _QUANTILES)
    return Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def _resampled_means(scores: np.ndarray, rng: np.random.Generator, is_share: bool) -> Float[np.ndarray, " resamples"]:
    """Means of RESAMPLES resamplings."""
    if is_share and scores.min() == scores.max():
        count = len(scores) * float(scores[0, 0])
        return rng.beta(count + 1, len(scores) - count + 1, RESAMPLES)
    parts = []
    for count in _portions(scores.size):
        rows = rng.integers(len(scores), size=(count, len(scores)))
        parts.append(_draw_samples(scores, rows, rng).mean(axis=1))
    return np.concatenate(parts)


def _resampled_differences(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, " resamples"]:
    parts = []
    for count in _portions(max(first.size, second.size)):
        rows = rng.integers(len(first), size=(count, len(first)))
        parts.append(_draw_samples(first, rows, rng).mean(axis=1) - _draw_samples(second, rows, rng).mean(axis=1))
    return np.concatenate(parts)


def _draw_samples(
    scores: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "resamples problems"]:
    """Mean over resampled samples of each drawn problem."""
    samples = scores.shape[1]
    if samples == 1:
        return scores[rows, 0]
    if np.isin(scores, (0.0, 1.0)).all():  # the count of correct ones among the drawn is binomial: no indices needed
        return rng.binomial(samples, scores.mean(axis=1)[rows]) / samples
    drawn = rng.integers(samples, size=(*rows.shape, samples))
    return scores[rows[..., None], drawn].mean(axis=2)


def _portions(size: int) -> Sequence[int]:
    at_once = max(1, min(RESAMPLES, _DRAWS_AT_ONCE // size))
    full, rest = divmod(RESAMPLES, at_once)
    return [at_once] * full + ([rest] if rest else [])
