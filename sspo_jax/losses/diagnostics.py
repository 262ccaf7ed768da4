"""What each ratio level would do on the same batch: cheap, detached, always on.

The counterfactual clip fractions measure the claim SSPO rests on (GRPO clips outliers token by token, GSPO next to
nothing); the histograms, the effective sample size and the entropy by subsentence show why.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sspo_jax.losses.aggregation import masked_mean
from sspo_jax.losses.grpo import Grpo
from sspo_jax.losses.gspo import Gspo
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.ratios import Units, float_type, level_units, token_log_ratio, unit_mean
from sspo_jax.losses.sspo import Sspo, bound_scales
from sspo_jax.losses.surrogate import TOKEN_LOG_RATIO_LIMIT, clipped_surrogate
from sspo_jax.types import Max, Mean, SampleSize, TrainBatch

# Upper edges, in nats, of the histogram of log-ratios; the last bin is open. The published clip ranges lie among them.
LOG_RATIO_EDGES = (-0.5, -0.2, -0.05, -0.02, -0.005, -3e-4, 3e-4, 0.005, 0.02, 0.05, 0.2, 0.5)

_GRPO, _GSPO, _SSPO = Grpo(), Gspo(), Sspo()
PUBLISHED: Mapping[str, Objective] = {"grpo": _GRPO, "gspo": _GSPO, "sspo": _SSPO}


def diagnostics(
    logprobs: Float[Array, "batch time"],
    batch: TrainBatch,
    *,
    grpo: Grpo = _GRPO,
    gspo: Gspo = _GSPO,
    sspo: Sspo = _SSPO,
) -> dict[str, Mean | Max]:
    """Metrics of `batch` at all three ratio levels; those of its parts add up to those of the whole.

    What depends on the mean entropy adds up where `batch.mean_entropy` (and for the rule "tanh" `batch.entropy_std`)
    is the whole batch's: with None each part measures by its own.

    | key | meaning |
    |---|---|
    | `counterfactual/{grpo,gspo,sspo}_clip_fraction[_low,_high]` | share of valid tokens whose gradient goes |
    | `ratio_histogram/{level}_below_{edge}`, `..._above` | share of valid tokens whose unit's log-ratio is in the bin |
    | `ratio/{level}_log_square` | mean square of the log-ratio of each valid token's unit |
    | `ratio/{level}_effective_sample_size` | (sum w)^2 / (N sum w^2) over valid tokens, in (0, 1] |
    | `subsentence/count_mean`, `length_mean` | subsentences per response; valid tokens per subsentence |
    | `subsentence/entropy_mean`, `entropy_variance` | over subsentences, nats; variance around the batch mean |

    Args:
      logprobs: [batch, time], nats, the current policy; no gradient flows.
      batch: the rest.
      grpo, gspo, sspo: whose clip ranges to judge by; their other fields are not read.
    """
    logprobs = jax.lax.stop_gradient(logprobs)
    mask = batch.mask
    log_ratio = token_log_ratio(logprobs, batch.old_logprobs, mask)
    units = {
        "token": level_units("token", mask),
        "subsentence": level_units("subsentence", mask, batch.subsentence_ids, batch.segment_ids),
        "response": level_units("response", mask, segment_ids=batch.segment_ids),
    }
    levels = {
        "token": log_ratio,
        "subsentence": unit_mean(log_ratio, mask, units["subsentence"]),
        "response": unit_mean(log_ratio, mask, units["response"]),
    }
    low, high = bound_scales(
        batch.entropies if sspo.adapt_entropy else None,
        mask,
        units["subsentence"],
        length_reference=sspo.length_reference,
        exponent=sspo.entropy_exponent,
        floor=sspo.entropy_floor,
        ceiling=sspo.entropy_ceiling,
        mean_entropy=batch.mean_entropy,
        entropy_std=batch.entropy_std,
        rule=sspo.entropy_rule,
        bounds=sspo.entropy_bounds,
        level=sspo.entropy_level,
        vocab_size=sspo.vocab_size,
        dtype=log_ratio.dtype,
    )
    metrics: dict[str, Mean | Max] = {}
    for name, level, clip_low, clip_high in (
        ("grpo", "token", grpo.clip_low, grpo.clip_high),
        ("gspo", "response", gspo.clip_low, gspo.clip_high),
        ("sspo", "subsentence", sspo.clip_low * low, sspo.clip_high * high),
    ):
        ratio = jnp.exp(jnp.clip(levels[level], -TOKEN_LOG_RATIO_LIMIT, TOKEN_LOG_RATIO_LIMIT))
        _, clipped = clipped_surrogate(ratio, batch.advantages, mask, clip_low, clip_high)
        metrics[f"counterfactual/{name}_clip_fraction"] = masked_mean(clipped.low | clipped.high, mask)
        metrics[f"counterfactual/{name}_clip_fraction_low"] = masked_mean(clipped.low, mask)
        metrics[f"counterfactual/{name}_clip_fraction_high"] = masked_mean(clipped.high, mask)
    for level, values in levels.items():
        metrics |= _histogram(level, values, mask)
        metrics[f"ratio/{level}_log_square"] = masked_mean(values**2, mask)
        metrics[f"ratio/{level}_effective_sample_size"] = _effective_sample_size(values, mask)
    return jax.lax.stop_gradient(metrics | _subsentence_metrics(batch, units))


def _histogram(level: str, values: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> dict[str, Mean]:
    """The share of valid tokens in each bin: the difference of two counts of `values < edge`."""
    below = [masked_mean(values < edge, mask) for edge in LOG_RATIO_EDGES]
    count = below[0].count
    totals = [0.0, *(mean.total for mean in below), count]
    names = [f"below_{edge:g}" for edge in LOG_RATIO_EDGES] + ["above"]
    return {
        f"ratio_histogram/{level}_{name}": Mean(upper - lower, count)
        for name, lower, upper in zip(names, totals[:-1], totals[1:], strict=True)
    }


def _effective_sample_size(log_ratio: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> SampleSize:
    """(sum w)^2 / (N sum w^2) of the ratios: 1 when all are equal."""
    ratio = jnp.where(mask, jnp.exp(jnp.clip(log_ratio, -TOKEN_LOG_RATIO_LIMIT, TOKEN_LOG_RATIO_LIMIT)), 0)
    return SampleSize(jnp.sum(ratio), jnp.sum(mask, dtype=ratio.dtype), jnp.sum(ratio**2))


def _subsentence_metrics(batch: TrainBatch, units: dict[str, Units]) -> dict[str, Mean | Max]:
    """Counts and lengths; a sum over units is a sum over tokens of 1 / (tokens of the unit)."""
    mask, lengths = batch.mask, units["subsentence"].lengths
    dtype = float_type(batch.entropies)
    share = jnp.where(mask, 1 / lengths.astype(dtype), 0)
    tokens = jnp.sum(mask, dtype=dtype)
    # Sums of 1 / L round off; the counts they stand for are whole.
    count = jnp.round(jnp.sum(share))
    responses = jnp.round(jnp.sum(jnp.where(mask, 1 / units["response"].lengths.astype(dtype), 0)))
    entropies = jnp.where(mask, batch.entropies, 0).astype(dtype)
    of_unit = unit_mean(entropies, mask, units["subsentence"])
    mean = masked_mean(entropies, mask).value if batch.mean_entropy is None else batch.mean_entropy
    return {
        "subsentence/count_mean": Mean(count, responses),
        "subsentence/length_mean": Mean(tokens, count),
        "subsentence/entropy_mean": Mean(jnp.sum(of_unit * share), count),
        "subsentence/entropy_variance": Mean(jnp.sum((of_unit - mean) ** 2 * share), count),
    }
