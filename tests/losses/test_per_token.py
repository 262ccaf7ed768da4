"""Decisions token by token agree with the metrics that the losses report, for every objective."""

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_loss_properties import OBJECTIVES, train_batch

from sspo_jax import losses
from sspo_jax.commands.experiments import objectives

ALL = {**{name: make() for name, make in objectives().items()}, **OBJECTIVES}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("seed", [0, 1])
def test_their_counts_are_those_of_the_loss(name: str, seed: int):
    objective = ALL[name].with_budget(20, 50)
    arrays = batches.make(seed, scale=0.3, is_packed=bool(seed % 2))
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    _, metrics = objective(logprobs, batch, batch.entropies)
    found = {
        key: np.asarray(values)[arrays["mask"]] for key, values in losses.per_token(objective, logprobs, batch).items()
    }
    for side, code in (("low", -1), ("high", 1), ("dual", 2)):
        assert (found["clipped"] == code).sum() == float(metrics[f"ratio/clip_fraction_{side}"].total)
    if not isinstance(objective, losses.Gmpo):  # whose ratio is that of a response after the clip
        np.testing.assert_allclose(found["ratio"].mean(), metrics["ratio/mean"].value, rtol=1e-12)
    if "clip/scale_mean" in metrics and objective.entropy_bounds == "both":
        scale = (found["entropy_scale"] * found["length_scale"]).mean()
        np.testing.assert_allclose(scale, metrics["clip/scale_mean"].value, rtol=1e-12)
        np.testing.assert_allclose(
            found["high"] - 1, objective.clip_high * found["entropy_scale"] * found["length_scale"]
        )
    of_divergence = isinstance(objective, losses.Dppo) and objective.divergence == "kl"
    if not isinstance(objective, losses.Sapo) and not of_divergence:  # which have no bounds of the ratio
        outside = (found["ratio"] < found["low"]) | (found["ratio"] > found["high"])
        assert outside[np.isin(found["clipped"], (-1, 1))].all()


def test_the_published_ones_are_the_counterfactual_metrics():
    arrays = batches.make(3, scale=0.3, is_packed=True)
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    found, metrics = losses.per_token(losses.Grpo(), logprobs, batch), losses.diagnostics(logprobs, batch)
    for name in ("grpo", "gspo", "sspo"):
        codes = np.asarray(found[f"clipped_{name}"])[arrays["mask"]]
        assert (codes != 0).sum() == float(metrics[f"counterfactual/{name}_clip_fraction"].total)
        assert (codes == 1).sum() == float(metrics[f"counterfactual/{name}_clip_fraction_high"].total)


def test_the_ratio_of_a_subsentence_is_the_oracles():
    arrays = batches.make(5, scale=0.3, is_packed=True)
    batch, logprobs = train_batch(arrays), jnp.asarray(arrays["logprobs"])
    found = losses.per_token(losses.Sspo.calibrated(), logprobs, batch)
    labels = oracle.labels_of("subsentence", arrays["mask"], arrays["subsentence_ids"])
    segments = arrays["segment_ids"]
    expected = oracle.unit_log_ratios(logprobs, batch.old_logprobs, arrays["mask"], labels, segments)
    np.testing.assert_allclose(np.log(np.asarray(found["ratio"]))[arrays["mask"]], expected[arrays["mask"]], atol=1e-12)
