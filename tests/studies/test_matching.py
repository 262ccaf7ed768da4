"""The range that gives a wanted clip fraction is found in a few pilots, whatever the curve and wherever it starts."""

import numpy as np
import pytest

from sspo_jax.studies.matching import LARGEST, MOST_PILOTS, TOLERANCE, next_factor


def pilots(clip, wanted: float) -> list[tuple[float, float]]:
    done: list[tuple[float, float]] = []
    while (factor := next_factor(done, wanted)) is not None:
        done.append((factor, float(clip(factor))))
        assert len(done) <= MOST_PILOTS
    return done


@pytest.mark.parametrize("width", [0.02, 0.2, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("power", [0.7, 1.5, 3.0])
def test_a_smooth_curve(width: float, power: float):
    done = pilots(lambda factor: 0.3 / (1 + (factor / width) ** power), 0.02)
    assert min(abs(clip - 0.02) for _, clip in done) <= TOLERANCE * 0.02
    assert len({factor for factor, _ in done}) == len(done)


def test_a_steep_and_noisy_curve_ends():
    rng = np.random.default_rng(0)
    done = pilots(lambda factor: max(0.0, 0.4 - 0.3 * factor + rng.normal(0, 0.02)), 0.02)
    assert 1 <= len(done) <= MOST_PILOTS


def test_what_never_clips_so_much_ends():
    done = pilots(lambda factor: 0.0, 0.02)
    assert done[-1][0] < 1e-3
    done = pilots(lambda factor: 0.5, 0.02)
    assert 1e3 < done[-1][0] <= LARGEST * 4


def test_the_next_one_follows_from_those_that_are_done():
    assert next_factor([], 0.02) == 1.0
    assert next_factor([(1.0, 0.08)], 0.02) == 4.0
    assert next_factor([(1.0, 0.001)], 0.02) == 0.25
    # log-log line between (1, 0.08) and (4, 0.005): 0.02 is half way, at 2
    assert next_factor([(1.0, 0.08), (4.0, 0.005)], 0.02) == pytest.approx(2.0)
    assert next_factor([(1.0, 0.08), (4.0, 0.021)], 0.02) is None
