"""What the objectives share: PPO's clipped surrogate, its clip counts, and the last step from tokens to a loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sspo_jax.losses.aggregation import Reduction, aggregate, masked_max, masked_mean
from sspo_jax.losses.ratios import token_log_ratio
from sspo_jax.types import Max, Mean, Number

# Nats. verl clamps the token log-ratio at 20 on both sides, and the response log-ratio of GSPO at 10 from above.
TOKEN_LOG_RATIO_LIMIT = 20.0
RESPONSE_LOG_RATIO_LIMIT = 10.0


class Clipped(NamedTuple):
    """Where the clip removes the gradient, by bound; all false where the mask is."""

    low: Bool[Array, "batch time"]  # A < 0 and ratio below 1 - clip_low
    high: Bool[Array, "batch time"]  # A > 0 and ratio above 1 + clip_high
    dual: Bool[Array, "batch time"]  # A < 0 and ratio above dual_clip

    @staticmethod
    def nowhere(mask: Bool[Array, "batch time"]) -> "Clipped":
        """For an objective without a clip."""
        return Clipped(*(jnp.zeros_like(mask) for _ in range(3)))


def clipped_surrogate(
    ratio: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    clip_low: Float[Array, "batch time"] | Number,
    clip_high: Float[Array, "batch time"] | Number,
    dual_clip: Number | None = None,
) -> tuple[Float[Array, "batch time"], Clipped]:
    """J_t = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t), per token (arXiv:1707.06347 eq. 7).

    With `dual_clip` c > 1 also J_t >= c A_t where A_t < 0 (arXiv:1912.09729 eq. 5).

    Written by cases rather than with min and clip: the branch that is taken and the branch that is counted are then
    one, and no gradient is split between two equal arguments of min.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected a number above 1, or None for none")
    advantages = jnp.where(mask, advantages, 0).astype(ratio.dtype)
    low, high = 1 - clip_low, 1 + clip_high
    clipped_high = (advantages > 0) & (ratio > high)
    clipped_low = (advantages < 0) & (ratio < low)
    clipped_dual = jnp.zeros_like(mask) if dual_clip is None else (advantages < 0) & (ratio > dual_clip)
    bounded = jnp.where(clipped_high, high, low).astype(ratio.dtype)
    objective = jnp.where(clipped_high | clipped_low, bounded, ratio) * advantages
    if dual_clip is not None:
        objective = jnp.where(clipped_dual, dual_clip * advantages, objective)
    return objective, Clipped(clipped_low, clipped_high, clipped_dual)


def ratio_metrics(
    ratio: Float[Array, "batch time"],
    log_ratio: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    clipped: Clipped,
) -> dict[str, Mean | Max]:
    """The metrics every objective reports.

    `policy/kl_old` is mean(exp(d) - 1 - d) over valid tokens, the k3 estimate of KL(old || new) in nats: the tokens
    were drawn from the old policy. It is never negative; verl's `ppo_kl` is the noisier mean(-d).
    """
    ratio, log_ratio = jax.lax.stop_gradient((ratio, log_ratio))
    bounded = jnp.clip(log_ratio, -TOKEN_LOG_RATIO_LIMIT, TOKEN_LOG_RATIO_LIMIT)
    metrics = {
        "ratio/mean": masked_mean(ratio, mask),
        "ratio/max": masked_max(ratio, mask),
        "ratio/clip_fraction": masked_mean(clipped.low | clipped.high | clipped.dual, mask),
        "ratio/clip_fraction_low": masked_mean(clipped.low, mask),
        "ratio/clip_fraction_high": masked_mean(clipped.high, mask),
        "policy/kl_old": masked_mean(jnp.expm1(bounded) - log_ratio, mask),
    }
    return metrics | {"ratio/clip_fraction_dual": masked_mean(clipped.dual, mask)}


def finish(
    objective: Float[Array, "batch time"],
    ratio: Float[Array, "batch time"],
    clipped: Clipped,
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    weights: Float[Array, "batch time"] | None,
    reduction: Reduction,
) -> tuple[Float[Array, ""], dict[str, Mean | Max]]:
    """loss = -aggregate(weights * objective), with the common metrics.

    Args:
      objective: [batch, time], J_t, which is to be maximised.
      ratio, clipped: for the metrics.
      logprobs, old_logprobs, mask: as the loss got them.
      weights: [batch, time], detached factors of J_t; None means none.
      reduction: from tokens to a scalar.
    """
    if weights is not None:
        objective = objective * jax.lax.stop_gradient(jnp.where(mask, weights, 0)).astype(objective.dtype)
    loss, mean = aggregate(-objective, mask, **reduction._asdict())
    log_ratio = token_log_ratio(logprobs, old_logprobs, mask)
    metrics = ratio_metrics(ratio, log_ratio, mask, clipped)
    return loss, metrics | {"loss/policy": jax.lax.stop_gradient(mean)}


class Decisions(NamedTuple):
    """What an objective decides about each token, for people and files: the loss itself is computed without it."""

    ratio: Float[Array, "batch time"]  # of the token's unit; 1 where the mask is false
    low: Float[Array, "batch time"]  # bounds of that ratio; 0 and inf where there is none
    high: Float[Array, "batch time"]
    clipped: Clipped
    entropy_scale: Float[Array, "batch time"]  # g_k and l_k, by which SSPO scales its bounds; 1 elsewhere
    length_scale: Float[Array, "batch time"]

    @staticmethod
    def between(
        ratio: Float[Array, "batch time"],
        low: Float[Array, "batch time"] | Number,
        high: Float[Array, "batch time"] | Number,
        clipped: Clipped,
    ) -> "Decisions":
        """Bounds that are the same for all tokens, or an array; nothing scales them."""
        one = jnp.ones_like(ratio)
        return Decisions(ratio, low * one, high * one, clipped, one, one)
