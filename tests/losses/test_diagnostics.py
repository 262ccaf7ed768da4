"""The counterfactual metrics against the losses themselves and plain loops."""

import dataclasses

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_loss_properties import train_batch

from sspo_jax import losses
from sspo_jax.losses.diagnostics import LOG_RATIO_EDGES


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


def test_entropy_statistics():
    arrays = batches.make(2)
    mask = arrays["mask"]
    mean, std = losses.entropy_statistics(train_batch(arrays))
    of_unit = np.zeros(mask.shape)
    for unit in oracle.units(mask, arrays["subsentence_ids"]):
        for p in unit:
            of_unit[p] = np.mean([arrays["entropies"][q] for q in unit])
    np.testing.assert_allclose(mean, arrays["entropies"][mask].mean(), rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(np.mean((of_unit[mask] - mean) ** 2)), rtol=1e-12)
    # Filled in, they change nothing: they are what the rows themselves give.
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    objective = losses.Sspo(entropy_rule="tanh")
    filled = dataclasses.replace(batch, mean_entropy=mean, entropy_std=std)
    np.testing.assert_allclose(objective(logprobs, filled)[0], objective(logprobs, batch)[0], rtol=1e-12)
