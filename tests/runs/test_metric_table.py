"""docs/metrics.md is the table of the code, and every number that a run writes is in it."""

import pathlib

import pytest

from sspo_jax.runs.metric_table import METRICS, describe, markdown, reading_order
from sspo_jax.runs.metrics_file import each_update
from sspo_jax.types import Max, Mean, SampleSize

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run `make metrics-page`"


def test_every_row_says_what_it_is():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.unit, metric.name
        assert metric.meaning.endswith("."), metric.name
        assert metric.healthy or not metric.otherwise, metric.name


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/my_module:fun_mean", "reward/<term>_mean"),
        ("eval/math500[:100]/accuracy", "eval/<set>/accuracy"),
        ("eval/a/avg_at_8", "eval/<set>/avg_at_<k>"),
        ("ratio_histogram/token_below_-0.0003", "ratio_histogram/<level>_below_<edge>"),
        ("counterfactual/gspo_clip_fraction_low", "counterfactual/<method>_clip_fraction_low"),
        ("counterfactual/response_clip_fraction", "counterfactual/<level>_clip_fraction"),
        ("clip/token_extreme_removed", "clip/<level>_extreme_removed"),
        ("clip/response_fraction", "clip/<unit>_fraction"),
        ("update/12/grad_norm", "update/<n>/grad_norm"),
        ("update/x/grad_norm", None),
        ("nothing/known", None),
    ],
)
def test_a_key_finds_its_row(key: str, row: str | None):
    found = describe(key)
    assert (found and found.name) == row


def test_the_reading_order_is_that_of_the_table_and_of_numbers():
    names = ["zzz", "update/10/kl_old", "policy/entropy", "update/2/kl_old", "reward/mean", "eval/a/accuracy"]
    assert reading_order(names) == [
        *("eval/a/accuracy", "reward/mean", "policy/entropy", "update/2/kl_old", "update/10/kl_old", "zzz")
    ]


def test_each_update_is_kept_apart():
    def part(clipped: float, size: SampleSize) -> dict[str, Mean | Max]:
        return {
            "ratio/clip_fraction": Mean(clipped, 10.0),
            "ratio/subsentence_effective_sample_size": size,
            "ratio/max": Max(9.0, 10.0),
        }

    parts = [
        [part(0.0, SampleSize(4.0, 4.0, 4.0))],
        [part(1.0, SampleSize(2.0, 2.0, 2.0)), part(2.0, SampleSize(6.0, 2.0, 18.0))],
    ]
    assert each_update(parts, [0.5, 0.7]) == {
        "update/1/clip_fraction": 0.0,
        "update/1/effective_sample_size": 1.0,
        "update/1/grad_norm": 0.5,
        "update/2/clip_fraction": pytest.approx(0.15),  # 3 of 20 tokens
        "update/2/effective_sample_size": pytest.approx(0.8),  # weights 1, 1, 3, 3
        "update/2/grad_norm": 0.7,
        "ratio/clip_fraction_after_first": pytest.approx(0.15),
    }
