"""Every clamp over -100 to 100 nats: the sign of the exact gradient, or none, beyond its bound, and exact within it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax import losses
from sspo_jax.losses.kl import K3_LIMIT

# A grid, the bounds themselves, and what lies right beside them.
LIMITS = np.array([-20.0, -10.0, 10.0, 20.0])
NATS = np.concatenate(
    [np.linspace(-100, 100, 801), LIMITS, np.nextafter(LIMITS, np.inf), np.nextafter(LIMITS, -np.inf)]
)
CLAMPED = {
    "grpo": losses.grpo_loss,
    "sspo": losses.sspo_loss,
    "sspo_plain": losses.sspo_loss,
    "gspo": losses.gspo_loss,
    "gmpo": losses.gmpo_loss,
    "cispo": losses.cispo_loss,
    "sapo": losses.sapo_loss,
    "dppo": losses.dppo_loss,
    "vespo": losses.vespo_loss,
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def kl_gradient(nats, estimator):
    zeros = jnp.zeros((1, len(nats)))
    return jax.grad(lambda x: jnp.sum(losses.kl_penalty(x, zeros, estimator=estimator)))(jnp.asarray(nats)[None])[0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_pulls_towards_the_reference(estimator):
    exact = {"k1": np.ones_like(NATS), "k2": NATS, "k3": -np.expm1(-NATS)}[estimator]
    got = np.asarray(kl_gradient(NATS, estimator))
    np.testing.assert_array_equal(np.sign(got), np.sign(exact))
    assert np.abs(got).max() <= np.exp(K3_LIMIT)
    within = NATS >= -K3_LIMIT
    np.testing.assert_allclose(got[within], exact[within], rtol=1e-12)
    values = np.asarray(losses.kl_penalty(jnp.asarray(NATS)[None], jnp.zeros((1, len(NATS))), estimator=estimator))[0]
    assert np.all(np.isfinite(values))
    if estimator != "k1":
        assert values.min() == 0
        order = np.argsort(NATS)
        rising = np.diff(values[order]) * np.sign(NATS[order][1:])
        assert np.all(rising >= 0)  # the farther from the reference, the dearer


def test_k3_by_hand_beyond_its_limit():
    """At d = -12 the tangent at -10: (e^10 - 11) + 2 (e^10 - 1)."""
    got = losses.kl_penalty(jnp.array([[-12.0]]), jnp.zeros((1, 1)))
    np.testing.assert_allclose(got, [[3 * np.exp(10) - 13]], rtol=1e-14)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(-100, 100))
def test_a_policy_far_from_the_reference_comes_back(start):
    """Gradient descent on k3, step by step clipped as the optimizer's: never farther than it began."""
    x = start
    for _ in range(20):
        gradient = float(-np.expm1(-x)) if x >= -K3_LIMIT else float(kl_gradient(np.array([x]), "k3")[0])
        x -= 0.5 * gradient / max(1.0, abs(gradient))
    assert abs(x) <= abs(start) + 1e-9
    assert abs(start) < 11 or abs(x) < abs(start) - 9


def loss_gradient(name, nats, sign, **options):
    """Of each token, in a row of its own; times the rows, so that it is that of -J_t."""
    x, one = jnp.asarray(nats)[:, None], jnp.ones((len(nats), 1))
    arrays = [0 * one, sign * one, one > 0]
    if name.startswith("sspo"):
        arrays.append(jnp.zeros((len(nats), 1), jnp.int32))
        options["gradient"] = "plain" if name == "sspo_plain" else "token"
    gradient = jax.grad(lambda x: CLAMPED[name](x, *arrays, **options)[0])(x)
    return np.asarray(gradient)[:, 0] * len(nats)


@pytest.mark.parametrize("name", CLAMPED)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ratios(name, sign):
    """Against the same loss without the clamp."""
    limit = 10.0 if name == "gspo" else 20.0
    exact, got = (loss_gradient(name, NATS, sign, log_ratio_limit=bound) for bound in (None, limit))
    np.testing.assert_array_equal(got, loss_gradient(name, NATS, sign))
    assert np.all((got == 0) | (np.sign(got) == np.sign(exact)))
    assert np.abs(got).max() <= np.exp(limit) * (1 + 1e-12)
    within = np.abs(NATS) <= limit  # the limit itself included: the whole gradient, not half of it
    np.testing.assert_array_equal(got[within], exact[within])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_everything_at_once_is_finite_in_low_precision(dtype):
    nats = jnp.asarray(NATS, dtype)[:, None]
    for name, function in CLAMPED.items():
        arrays = [0 * nats, jnp.ones_like(nats), nats == nats]
        arrays += [jnp.zeros(nats.shape, jnp.int32)] if name.startswith("sspo") else []
        loss, gradient = jax.value_and_grad(lambda x, f=function, a=arrays: f(x, *a)[0])(nats)
        assert np.isfinite(loss)
        assert np.all(np.isfinite(np.asarray(gradient, np.float32)))


@pytest.mark.parametrize("mode", ["truncate", "reject", "truncate-reject"])
@pytest.mark.parametrize(("level", "reduction"), [("token", "sum"), ("response", "sum"), ("response", "mean")])
def test_correction(mode, level, reduction):
    """Weights from 0 to the bound, right far outside it too, and detached."""
    old, mask = jnp.asarray(NATS)[:, None], jnp.ones((len(NATS), 1), bool)

    def weights(old):
        options = {"mode": mode, "level": level, "reduction": reduction}
        return losses.correction_weights(old, jnp.zeros_like(old), mask, **options)

    ratio = np.exp(NATS)
    want = np.minimum(ratio, 2.0) if mode.startswith("truncate") else np.ones_like(ratio)
    if mode.endswith("reject"):
        want = np.where((ratio >= 0.5) & (ratio <= 2), want, 0)
    np.testing.assert_allclose(weights(old)[:, 0], want, rtol=1e-12, atol=np.exp(-20) * 1.001)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(weights(x)))(old), 0)


def test_the_norm_of_dr_grpo_is_the_budget_of_the_run():
    assert losses.Grpo.dr_grpo().with_budget(512).norm_length == 512
    assert losses.Grpo.dr_grpo(norm_length=20.0).with_budget(512).norm_length == 20
    assert losses.Grpo().with_budget(512) == losses.Grpo()
    assert dataclasses.replace(losses.Grpo.dr_grpo(), norm_length=3000.0).with_budget(8).norm_length == 3000
