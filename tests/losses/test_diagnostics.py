"""The counterfactual metrics against the losses themselves and plain loops."""

import dataclasses
import functools

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loss_properties import assert_equal_metrics, entropy_statistics, train_batch

from sspo_jax import losses
from sspo_jax.losses.diagnostics import LOG_RATIO_EDGES
from sspo_jax.types import SampleSize


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("seed", range(6))
def test_diagnostics(seed):
    arrays = batches.make(seed, scale=0.3, is_packed=bool(seed % 2))
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    sspo = losses.Sspo.calibrated()
    metrics = losses.diagnostics(logprobs, batch, sspo=sspo)
    for name, objective in {"grpo": losses.Grpo(), "gspo": losses.Gspo(), "sspo": sspo}.items():
        for side in ("", "_low", "_high"):
            want = objective(logprobs, batch)[1][f"ratio/clip_fraction{side}"]
            got = metrics[f"counterfactual/{name}_clip_fraction{side}"]
            assert (got.total, got.count) == (want.total, want.count)
    mask, segments = arrays["mask"], arrays["segment_ids"]
    units = oracle.units(mask, arrays["subsentence_ids"], segments)
    np.testing.assert_allclose(
        [float(metrics["subsentence/count_mean"].total), float(metrics["subsentence/count_mean"].count)],
        [len(units), len(oracle.responses(mask, segments))],
    )
    np.testing.assert_allclose(float(metrics["subsentence/length_mean"].value), mask.sum() / len(units))
    means = np.array([np.mean([arrays["entropies"][p] for p in unit]) for unit in units])
    np.testing.assert_allclose(metrics["subsentence/entropy_mean"].value, means.mean(), rtol=1e-12)
    spread = np.mean((means - arrays["entropies"][mask].mean()) ** 2)
    np.testing.assert_allclose(metrics["subsentence/entropy_variance"].value, spread, rtol=1e-12)
    for level in ("token", "subsentence", "response"):
        labels = oracle.labels_of(level, mask, arrays["subsentence_ids"])
        values = oracle.unit_log_ratios(logprobs, batch.old_logprobs, mask, labels, segments)[mask]
        weights = np.exp(values)
        size = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        np.testing.assert_allclose(metrics[f"ratio/{level}_effective_sample_size"].value, size, rtol=1e-12)
        counts = np.histogram(values, [-np.inf, *LOG_RATIO_EDGES, np.inf])[0]
        bins = [f"below_{edge:g}" for edge in LOG_RATIO_EDGES] + ["above"]
        got = [float(metrics[f"ratio_histogram/{level}_{name}"].total) for name in bins]
        np.testing.assert_array_equal(got, counts)


@functools.partial(jax.jit, static_argnames="rule")
def diagnose(logprobs, batch, rule):
    return losses.diagnostics(logprobs, batch, sspo=losses.Sspo.calibrated(entropy_rule=rule, vocab_size=50))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    arrays=batches.batches,
    cut=st.lists(st.booleans(), min_size=batches.SHAPE[0], max_size=batches.SHAPE[0]),
    rule=st.sampled_from(["power", "tanh", "vocabulary"]),
)
def test_parts_of_a_batch_add_up(arrays, cut, rule):
    """Rows cut in two in any way, each part padded with empty rows to one shape: the sums of the whole."""
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    mean, std = entropy_statistics(arrays)
    batch = dataclasses.replace(batch, mean_entropy=mean, entropy_std=std)
    first, second = (
        diagnose(logprobs, dataclasses.replace(batch, mask=batch.mask & jnp.asarray(side)[:, None]), rule)
        for side in (np.array(cut), ~np.array(cut))
    )
    whole = diagnose(logprobs, batch, rule)
    assert_equal_metrics({key: first[key] + second[key] for key in whole}, whole)
    # Of the whole batch, within its bounds.
    assert 0 <= float(whole["ratio/token_effective_sample_size"].value) <= 1 + 1e-12


def test_sample_size_of_unequal_parts():
    parts = [SampleSize(2.0, 2.0, 2.0), SampleSize(6.0, 2.0, 18.0)]
    assert [float(part.value) for part in parts] == [1.0, 1.0]
    np.testing.assert_allclose((parts[0] + parts[1]).value, 8.0**2 / (4 * 20.0), rtol=1e-12)
    assert SampleSize(0.0, 0.0, 0.0).value == 0
