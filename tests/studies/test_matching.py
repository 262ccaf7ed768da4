"""The range that gives a wanted clip fraction is found in a few pilots, whatever the curve and wherever it starts."""

import numpy as np
import pytest

from sspo_jax.studies.matching import LARGEST, MOST_PILOTS, next_factor
from sspo_jax.studies.study import Target, Variant


def target(wanted: float, *, by: str = "match_clip") -> Target:
    found = Variant(name="a", changes={}, **{by: wanted}).target
    assert found is not None
    return found


TWO_PERCENT = target(0.02)


def pilots(clip, wanted: Target) -> list[tuple[float, float]]:
    done: list[tuple[float, float]] = []
    while (factor := next_factor(done, wanted)) is not None:
        done.append((factor, float(clip(factor))))
        assert len(done) <= MOST_PILOTS
    return done


@pytest.mark.parametrize("width", [0.02, 0.2, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("power", [0.7, 1.5, 3.0])
def test_a_smooth_curve(width: float, power: float):
    done = pilots(lambda factor: 0.3 / (1 + (factor / width) ** power), TWO_PERCENT)
    assert min(abs(clip - 0.02) for _, clip in done) <= 0.1 * 0.02
    assert len({factor for factor, _ in done}) == len(done)


def test_a_steep_and_noisy_curve_ends():
    rng = np.random.default_rng(0)
    done = pilots(lambda factor: max(0.0, 0.4 - 0.3 * factor + rng.normal(0, 0.02)), TWO_PERCENT)
    assert 1 <= len(done) <= MOST_PILOTS


def test_what_never_clips_so_much_ends():
    done = pilots(lambda factor: 0.0, TWO_PERCENT)
    assert done[-1][0] < 1e-3
    done = pilots(lambda factor: 0.5, TWO_PERCENT)
    assert 1e3 < done[-1][0] <= LARGEST * 4


def test_the_next_one_follows_from_those_that_are_done():
    assert next_factor([], TWO_PERCENT) == 1.0
    assert next_factor([(1.0, 0.08)], TWO_PERCENT) == 4.0
    assert next_factor([(1.0, 0.001)], TWO_PERCENT) == 0.25
    # log-log line between (1, 0.08) and (4, 0.005): 0.02 is half way, at 2
    assert next_factor([(1.0, 0.08), (4.0, 0.005)], TWO_PERCENT) == pytest.approx(2.0)
    assert next_factor([(1.0, 0.08), (4.0, 0.021)], TWO_PERCENT) is None


def test_the_strength_of_a_clip_is_matched_more_closely():
    """A mass removed of 0.6 that falls slowly with the bounds, as it does in runs."""
    strength = target(0.6, by="match_mass")
    assert strength.outcome.name == "mass removed"
    done = pilots(lambda factor: 0.95 / (1 + (factor / 3) ** 0.8), strength)
    assert min(abs(mass - 0.6) for _, mass in done) <= 0.03
    assert strength.is_near(0.629)
    assert not strength.is_near(0.64)
