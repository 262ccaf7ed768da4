"""Hbar and the spread that the trainer takes over a whole rollout, for the level that the objective uses."""

import dataclasses

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_loss_properties import train_batch

from sspo_jax import losses
from sspo_jax.trainer.batch import entropy_labels, entropy_statistics


@pytest.mark.parametrize("ratio_level", ["token", "subsentence", "response"])
@pytest.mark.parametrize("entropy_level", ["token", "unit"])
def test_against_loops_and_the_loss_itself(ratio_level, entropy_level):
    """Plain loops give the same, and so does the loss of all rows at once, which takes its own spread where none is
    given."""
    arrays = batches.make(7, is_packed=True)
    mask, segments = arrays["mask"], arrays["segment_ids"]
    starts = np.random.default_rng(0).random(mask.shape) < 0.4
    starts[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    ids = np.cumsum(starts, axis=1)  # as the segmenter numbers them: along the row, none in two responses
    objective = losses.Sspo(entropy_rule="tanh", ratio_level=ratio_level, entropy_level=entropy_level)
    labels = entropy_labels(objective.entropy_unit, segments, ids)
    got = entropy_statistics([(arrays["entropies"], labels)], [mask])
    of_level = oracle.labels_of(ratio_level, mask, ids)
    want = oracle.entropy_statistics(arrays["entropies"], mask, of_level, segments, level=entropy_level)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    cut = entropy_statistics(
        [(arrays["entropies"][:1], labels[:1]), (arrays["entropies"][1:], labels[1:])], [mask[:1], mask[1:]]
    )
    np.testing.assert_allclose(cut, want, rtol=1e-12)
    with jax.enable_x64(True):
        batch = train_batch(arrays | {"subsentence_ids": ids})
        filled = dataclasses.replace(batch, mean_entropy=jnp.asarray(got[0]), entropy_std=jnp.asarray(got[1]))
        values = [objective(jnp.asarray(arrays["logprobs"]), each)[0] for each in (batch, filled)]
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_the_levels_differ():
    """By hand: entropies 0, 2 | 4, 6 in one response have spread sqrt(5), 2 or 0 as tokens, pairs or response."""
    entropies, mask = np.array([[0.0, 2.0, 4.0, 6.0]]), np.ones((1, 4), bool)
    ids, segments = np.array([[0, 0, 1, 1]]), np.ones((1, 4), int)
    spreads = [
        entropy_statistics([(entropies, entropy_labels(unit, segments, ids))], [mask])[1]
        for unit in ("token", "subsentence", "response")
    ]
    np.testing.assert_allclose(spreads, [np.sqrt(5), 2, 0])
