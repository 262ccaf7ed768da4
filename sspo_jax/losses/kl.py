"""Estimates of the KL divergence from the policy to a reference, per token."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sspo_jax.losses.ratios import check_shapes, clamp_log_ratio, token_log_ratio
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT

# Nats of ref_logprob above logprob up to which k3 is exact. One token's gradient is then at most e^10, about 22,000.
K3_LIMIT = 10.0

KlEstimator = Literal["k1", "k2", "k3", "k3_unbiased"]


def kl_penalty(
    logprobs: Float[Array, "batch time"],
    ref_logprobs: Float[Array, "batch time"],
    *,
    estimator: str = "k3",
    mask: Bool[Array, "batch time"] | None = None,
    old_logprobs: Float[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
    """An estimate of KL(policy || reference) from the sampled token alone, in nats per token.

        d  = logprob - ref_logprob
        k1 = d
        k2 = d ** 2 / 2
        k3 = exp(-d) - 1 + d

    As a *value*, averaged over tokens drawn from the policy, k1 and k3 are unbiased; k3 is never negative. As a term
    of the *loss* it is the gradient that counts, and there they differ (all on-policy, in expectation over tokens):

    - k1: gradient of logprob alone, whose expectation is **zero**: it adds noise and no pull. Put k1 in the reward.
    - k2: d * gradient of logprob, which **is** the gradient of KL(policy || reference).
    - k3: (1 - exp(-d)) * gradient of logprob, the gradient of KL(reference || policy).
    - k3_unbiased: r * k3 with r = exp(logprob - old_logprob), whose gradient is r * d * gradient of logprob: that of
      KL(policy || reference) whatever policy the tokens were drawn from (DeepSeek-V3.2, arXiv:2512.02556).

    The exact gradient of k3 is -5e8 at d = -20: one token would drown the batch. Where d < -10 k3 goes on along its
    tangent, so that the gradient keeps its sign, pulls back to the reference, and is never below 1 - e^10.

    See Schulman, "Approximating KL divergence" (2020). verl offers the first three and straight-through
    mixtures; TRL k3 and its unbiased form.

    Args:
      logprobs, ref_logprobs: [batch, time], nats.
      estimator: which of the four.
      mask: [batch, time]; where false the result is 0 whatever is stored there. None means all valid.
      old_logprobs: [batch, time], nats, of the policy the tokens were drawn from; read by k3_unbiased alone.

    >>> import jax.numpy as jnp
    >>> round(float(kl_penalty(jnp.log(jnp.array([[2.0]])), jnp.zeros((1, 1)))[0, 0]), 4)
    0.1931
    """
    check_shapes(logprobs, ref_logprobs=ref_logprobs, mask=mask, old_logprobs=old_logprobs)
    valid = jnp.ones_like(logprobs, bool) if mask is None else mask
    difference = token_log_ratio(logprobs, ref_logprobs, valid)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        return _k3(difference)
    if estimator == "k3_unbiased":
        if old_logprobs is None:
            raise ValueError("estimator k3_unbiased needs old_logprobs, those of the policy the tokens were drawn from")
        log_ratio = clamp_log_ratio(token_log_ratio(logprobs, old_logprobs, valid), TOKEN_LOG_RATIO_LIMIT)
        value, ratio, half = jax.lax.stop_gradient((_k3(difference), jnp.exp(log_ratio), difference**2 / 2))
        # The gradient is written down rather than left to k3, whose tangent would change its sign far out.
        return ratio * (value + (difference**2 / 2 - half))
    raise ValueError(f"estimator is {estimator!r}, expected one of {', '.join(get_args(KlEstimator))}")


def _k3(difference: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    within = jnp.where(difference < -K3_LIMIT, -K3_LIMIT, difference)  # no gradient beyond the limit
    slope = -jnp.expm1(jnp.asarray(K3_LIMIT, difference.dtype))
    return jnp.expm1(-within) + within + slope * jnp.where(difference < -K3_LIMIT, difference + K3_LIMIT, 0)
