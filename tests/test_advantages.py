"""Advantages against plain loops, and exactly where the numbers are exact."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.advantages import (
    Estimator,
    clip_b,
    estimate,
    gdpo,
    group_relative,
    leave_one_out,
    max_rl,
    pass_at_k,
    reinforce_plus_plus,
)
from sspo_jax.config import AdvantageConfig


@st.composite
def groups(draw):
    n = draw(st.sampled_from([1, 2, 9]))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0, 0.1, -0.5, 2.5]), min_size=n, max_size=n))
    ids = draw(st.lists(st.sampled_from([-7, 0, 3, 100]), min_size=n, max_size=n))
    valid = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return np.array(rewards), np.array(ids), np.array(valid)


ADVANTAGES = jax.jit(group_relative, static_argnames=("scale", "epsilon"))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(groups(), st.sampled_from(["group", "batch", "none"]))
def test_against_oracle(case, scale):
    rewards, ids, valid = case
    with jax.enable_x64(True):
        r, g, v = jnp.asarray(np.where(valid, rewards, np.nan)), jnp.asarray(ids), jnp.asarray(valid)
        np.testing.assert_allclose(
            ADVANTAGES(r, g, scale=scale, epsilon=1e-3, valid=v),
            oracle.group_relative(rewards, ids, valid, scale=scale, epsilon=1e-3),
            rtol=1e-9,
            atol=1e-12,
        )
        np.testing.assert_allclose(
            leave_one_out(r, g, scale=scale, epsilon=1e-3, valid=v),
            oracle.leave_one_out(rewards, ids, valid, scale=scale, epsilon=1e-3),
            rtol=1e-9,
            atol=1e-12,
        )
        lengths = 1 + np.arange(len(rewards)) % 4
        for some, tokens in ((None, None), (ids, None), (None, lengths), (ids, lengths)):
            np.testing.assert_allclose(
                reinforce_plus_plus(
                    r,
                    None if some is None else g,
                    lengths=None if tokens is None else jnp.asarray(tokens),
                    epsilon=1e-3,
                    valid=v,
                ),
                oracle.reinforce_plus_plus(rewards, some, valid, epsilon=1e-3, lengths=tokens),
                rtol=1e-9,
                atol=1e-12,
            )
        np.testing.assert_allclose(max_rl(r, g, valid=v), oracle.max_rl(rewards, ids, valid), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            pass_at_k(r, g, scale=scale, epsilon=1e-3, valid=v),
            oracle.pass_at_k(rewards, ids, valid, scale=scale, epsilon=1e-3),
            rtol=1e-9,
            atol=1e-12,
        )


def test_reinforce_plus_plus_is_whitening_over_tokens():
    """As verl does it: the return of each token, less the mean, by the standard deviation, over all valid tokens."""
    rewards, lengths = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.array([7, 7, 7, 7, 7])
    tokens = np.repeat(rewards, lengths)
    want = (rewards - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    got = reinforce_plus_plus(jnp.asarray(rewards), lengths=jnp.asarray(lengths))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("width", [0.5, 2.5])
def test_clip_b(width):
    """Against a loop; the same from JAX in float32 and from NumPy; nothing is cleared where all signals are equal."""
    random = np.random.default_rng(0)
    logprobs, entropies = np.log(random.uniform(0.02, 1.0, (6, 9))), random.exponential(0.5, (6, 9))
    advantages, mask = random.normal(size=(6, 9)), random.random((6, 9)) < 0.8
    signal = {p: np.exp(logprobs[p]) * (entropies[p] + logprobs[p]) for p in zip(*np.nonzero(mask), strict=True)}
    mean = sum(signal.values()) / len(signal)
    std = np.sqrt(sum((x - mean) ** 2 for x in signal.values()) / len(signal))
    want = advantages.copy()
    for p, x in signal.items():
        if advantages[p] < 0 and x < mean - width * std:
            want[p] = 0
    logprobs = np.where(mask, logprobs, np.nan)
    np.testing.assert_array_equal(clip_b(advantages, logprobs, entropies, mask, width=width), want)
    arrays = (jnp.asarray(x) for x in (advantages, logprobs, entropies, mask))
    np.testing.assert_allclose(jax.jit(clip_b, static_argnames="width")(*arrays, width=width), want, rtol=1e-6)
    assert width > 2 or np.any(want == 0)
    same = np.full((2, 3), -0.5)
    np.testing.assert_array_equal(clip_b(same, same, -same, same < 0, width=width), same)


@pytest.mark.parametrize("seed", range(5))
def test_gdpo(seed):
    """Against a loop in float64; a term is heard whatever its scale, and responses without a verdict count nowhere."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 4, 12)
    terms = np.stack([random.integers(0, 2, 12) * scale for scale in (1.0, 100.0, 0.01)])
    weights, valid = np.array([1.0, 0.5, -2.0]), random.random(12) < 0.8
    want = oracle.gdpo(terms, weights, ids, valid, epsilon=1e-3)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x) for x in (terms, weights, ids))
        got = gdpo(*arrays, epsilon=1e-3, valid=jnp.asarray(valid))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    arrays = (jnp.asarray(x) for x in (terms * 1000, weights, ids))
    small = gdpo(*arrays, epsilon=1e-9, valid=jnp.asarray(valid))
    np.testing.assert_allclose(small, oracle.gdpo(terms, weights, ids, valid, epsilon=1e-9), rtol=1e-3, atol=1e-3)


def test_gdpo_tells_terms_apart_that_cancel_in_the_sum():
    terms, ids = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), jnp.zeros(3, jnp.int32)
    summed = np.asarray(group_relative(terms.sum(0)[:2], ids[:2]))
    np.testing.assert_array_equal(summed, 0)
    weighted = np.asarray(gdpo(terms, jnp.array([2.0, 1.0]), ids))
    assert weighted[2] > weighted[0] > weighted[1]


def test_by_hand():
    # Group 5: rewards 1, 0, 0: mean 1/3, variance (4/9 + 1/9 + 1/9) / 2 = 1/3. Group 9 has one response.
    got = group_relative(jnp.array([1.0, 2.0, 0.0, 0.0]), jnp.array([5, 9, 5, 5]), epsilon=0.0)
    np.testing.assert_allclose(got[jnp.array([0, 2, 3])], np.array([2, -1, -1]) / 3 * np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    got = group_relative(jnp.full(7, 0.1), jnp.zeros(7, jnp.int32), scale=scale)
    np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_rewards_equal_up_to_rounding_give_exactly_zero(estimator):
    """0.1 + 0.2 and 0.3, in float64, and a neighbouring float32; a real difference beside them stays."""
    with jax.enable_x64(True):
        rewards = jnp.asarray([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2])
        np.testing.assert_array_equal(estimate(rewards, jnp.zeros(4, jnp.int32), estimator=estimator), 0)
    close = jnp.asarray([0.7, np.nextafter(np.float32(0.7), np.float32(1)), 0.7])
    np.testing.assert_array_equal(estimate(close, jnp.zeros(3, jnp.int32), estimator=estimator), 0)
    apart = np.asarray(estimate(jnp.asarray([0.7, 0.7001, 0.7]), jnp.zeros(3, jnp.int32), estimator=estimator))
    assert np.all(apart[1:2] != 0 if estimator == "pass_at_k" else apart != 0)


def test_runs_agree_to_the_bit_and_devices_to_rounding():
    rewards = jax.random.normal(jax.random.key(0), (64,))
    ids = jax.random.randint(jax.random.key(1), (64,), 0, 9)
    function = jax.jit(lambda r, g: group_relative(r, g))
    first = np.asarray(function(rewards, ids))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    np.testing.assert_array_equal(first, function(rewards, ids))
    np.testing.assert_allclose(function(*jax.device_put((rewards, ids), sharding)), first, atol=1e-6)


def test_messages():
    with pytest.raises(ValueError, match="scale is 'std', expected one of group, batch, none"):
        group_relative(jnp.ones(2), jnp.zeros(2, jnp.int32), scale="std")
    with pytest.raises(ValueError, match="scale is group with --advantage"):
        AdvantageConfig(estimator="reinforce_plus_plus", scale="group")


def test_estimators_of_a_run():
    """Each name of `AdvantageConfig.estimator`, with the scale it was published with."""
    rewards, ids = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), jnp.array([4, 4, 4, 7, 7, 7])
    want = {
        "group": group_relative(rewards, ids),
        "leave_one_out": leave_one_out(rewards, ids),
        "reinforce_plus_plus": reinforce_plus_plus(rewards),
        "reinforce_plus_plus_baseline": reinforce_plus_plus(rewards, ids),
        "max_rl": max_rl(rewards, ids),
        "pass_at_k": pass_at_k(rewards, ids),
        "gdpo": gdpo(rewards[None], jnp.ones(1), ids),
    }
    assert set(get_args(Estimator)) == set(want)
    for name, values in want.items():
        np.testing.assert_array_equal(estimate(rewards, ids, estimator=name), values, err_msg=name)
    scaled = [estimate(rewards, ids, estimator="leave_one_out", scale=scale) for scale in ("none", "group", "batch")]
    assert len({tuple(values.tolist()) for values in scaled}) == 3
