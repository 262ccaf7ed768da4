"""What the clip of a run takes away, in numbers that compare between objectives: detached, always on.

A clip fraction in tokens does not compare between ratio levels: one outlier counts once where each token has its own
ratio, and as often as its response has tokens where they share one. These metrics ask instead which tokens go. A token
is *extreme* where its own ratio is outside [0.8, 1.2] on the side where PPO's clip removes the gradient: above 1.2 with
a positive advantage, below 0.8 with a negative one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sspo_jax.losses.aggregation import masked_max, masked_mean
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import Units, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT
from sspo_jax.types import Max, Mean, TrainBatch

EXTREME = 0.2
"""Distance from 1 beyond which a token's own ratio is extreme: the range published for the level of tokens."""


def removed(objective: Objective, logprobs: Float[Array, "batch time"], batch: TrainBatch) -> dict[str, Mean | Max]:
    """What `objective` removes from `batch`; the metrics of its parts add up to those of the whole.

    | key | meaning |
    |---|---|
    | `clip/extreme_fraction` | share of the tokens with an advantage that are extreme |
    | `clip/extreme_removed`, `clip/moderate_removed` | share of the extreme ones, of the others, that it removes |
    | `clip/{level}_extreme_removed`, `..._moderate_removed` | the same with this level's ratio in the run's bounds |
    | `clip/precision` | share of the removed tokens that are extreme |
    | `clip/subsentence_fraction`, `clip/response_fraction` | share of them with a removed token |
    | `clip/mass_removed` | sum of abs(A_t d_t) over removed tokens, by that over all; d_t is the token's log-ratio |
    | `counterfactual/{level}_clip_fraction` | share of valid tokens beyond the run's bounds by this level's ratio |
    | `ratio/{level}_max` | largest ratio of the level |

    Only tokens whose advantage is not 0 count as removed, extreme or moderate: the others have no gradient. Where the
    level is the run's own, the run's bounds remove what the run removes, but for a dual clip.

    Args:
      objective: of the run.
      logprobs: [batch, time], nats, the current policy; no gradient flows.
      batch: the rest.
    """
    logprobs, mask = jax.lax.stop_gradient(logprobs), batch.mask
    log_ratio = token_log_ratio(logprobs, batch.old_logprobs, mask)
    units = {
        "subsentence": level_units("subsentence", mask, batch.subsentence_ids, batch.segment_ids),
        "response": level_units("response", mask, segment_ids=batch.segment_ids),
    }
    levels = {"token": log_ratio} | {level: unit_mean(log_ratio, mask, own) for level, own in units.items()}
    ratios = {level: _ratio(values) for level, values in levels.items()}
    advantages = jnp.where(mask, objective.prepared(batch).advantages, 0).astype(log_ratio.dtype)
    own = objective.decisions(logprobs, batch)
    clipped = own.clipped.low | own.clipped.high | own.clipped.dual
    extreme = _beyond(ratios["token"], advantages, 1 - EXTREME, 1 + EXTREME)
    counted = advantages != 0
    mass = jnp.abs(advantages * log_ratio)
    metrics: dict[str, Mean | Max] = {
        "clip/extreme_fraction": masked_mean(extreme, counted),
        **_dilution("clip/", clipped, extreme, counted),
        "clip/precision": masked_mean(extreme, clipped & counted),
        "clip/mass_removed": Mean(jnp.sum(jnp.where(clipped, mass, 0)), jnp.sum(mass)),
    }
    for level, unit in units.items():
        metrics[f"clip/{level}_fraction"] = _touched(clipped & counted, mask, unit)
    for level, ratio in ratios.items():
        beyond = _beyond(ratio, advantages, own.low, own.high)
        metrics |= _dilution(f"clip/{level}_", beyond, extreme, counted)
        metrics[f"counterfactual/{level}_clip_fraction"] = masked_mean(beyond, mask)
        metrics[f"ratio/{level}_max"] = masked_max(ratio, mask)
    return jax.lax.stop_gradient(metrics)


def _ratio(log_ratio: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    return jnp.exp(jnp.clip(log_ratio, -TOKEN_LOG_RATIO_LIMIT, TOKEN_LOG_RATIO_LIMIT))


def _beyond(
    ratio: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"],
    low: Float[Array, "batch time"] | float,
    high: Float[Array, "batch time"] | float,
) -> Bool[Array, "batch time"]:
    """Where PPO's clip removes the gradient; advantages are 0 where the mask is false."""
    return ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


def _dilution(
    stem: str,
    clipped: Bool[Array, "batch time"],
    extreme: Bool[Array, "batch time"],
    counted: Bool[Array, "batch time"],
) -> dict[str, Mean | Max]:
    """The share of the extreme tokens that a clip removes, and of the others."""
    return {
        f"{stem}extreme_removed": masked_mean(clipped, extreme),
        f"{stem}moderate_removed": masked_mean(clipped, counted & ~extreme),
    }


def _touched(clipped: Bool[Array, "batch time"], mask: Bool[Array, "batch time"], units: Units) -> Mean:
    """The share of units with a removed token; a sum over units is a sum over tokens of 1 / (tokens of the unit)."""
    dtype = jnp.float32
    share = jnp.where(mask, 1 / units.lengths.astype(dtype), 0)
    touched = unit_mean(clipped.astype(dtype), mask, units) > 0
    # Sums of 1 / L round off; the counts they stand for are whole.
    return Mean(jnp.round(jnp.sum(jnp.where(touched, share, 0))), jnp.round(jnp.sum(share)))
