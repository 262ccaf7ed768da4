"""Each warning comes where its run is at odds with itself, and not elsewhere."""

import pytest

from sspo_jax.runs.health import remarks

FINE = {"ratio/clip_fraction": 0.02, "sampler/logprob_gap_mean": 1e-5, "reward/informative_fraction": 0.5}


def keys(rows: list[dict], updates: int = 4, **weights: float) -> list[str]:
    rows = [{"step": step, **FINE, **row} for step, row in enumerate(rows, 1)]
    return [remark.key for remark in remarks(rows, updates_per_rollout=updates, weights=weights)]


def test_a_fine_run_is_left_alone():
    assert keys([{}] * 20) == []
    assert keys([]) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"ratio/clip_fraction": 0.0}] * 5, ["clip_low"]),
        ([{"ratio/clip_fraction": 0.0}] * 4, []),  # too early to say
        ([{"ratio/clip_fraction": 0.3}] * 10, ["clip_high"]),
        ([{"sampler/logprob_gap_mean": 0.001 * step} for step in range(1, 11)], ["gap"]),
        ([{"sampler/logprob_gap_mean": 0.02}] * 10, []),  # large, but it does not grow
        ([{"reward/informative_fraction": 0.0}] * 3, ["uninformative"]),
        ([{"reward/informative_fraction": 0.0}] * 2 + [{}], []),
    ],
)
def test_one_thing_is_wrong(rows: list[dict], expected: list[str]):
    assert keys(rows) == expected


def test_one_update_per_rollout_says_so_and_not_that_nothing_is_clipped():
    assert keys([{"ratio/clip_fraction": 0.0}] * 10, updates=1) == ["one_update"]


def test_terms_that_cancel():
    rows = [{"reward/correctness_mean": 0.1 * step, "reward/length_mean": -0.2 * step} for step in range(10)]
    assert keys(rows, correctness=1.0, length=0.5) == ["cancelling"]
    assert keys(rows, correctness=1.0, length=0.1) == []
