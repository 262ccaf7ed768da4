"""Rewards to advantages: one number per response, plain arrays of shape [n].

A group is the responses to one prompt. Group labels are any integers, groups may differ in size, and a response that
is not `valid` (a checker that timed out) counts in no mean and gets advantage 0.

Sums over groups are masked [n, n] products rather than scatters, whose order of addition a GPU does not fix: the same
program on the same devices gives the same bits on every run. Another number of devices may round differently. n is the
responses of a rollout batch, a few thousand at most.
"""

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.types import Number

Scale = Literal["group", "batch", "none"]
Estimator = Literal["group", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


def estimate(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    estimator: Estimator = "group",
    scale: Scale | None = None,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """The advantages of a run, by the name of their estimator.

    Args:
      rewards: [n].
      group_ids: [n], any integers.
      estimator: `group_relative`, `leave_one_out`, or `reinforce_plus_plus` without or with the group's baseline.
      scale: what the first two divide by; None means as published.
      valid: [n], which responses count; None means all.
    """
    if estimator == "group":
        return group_relative(rewards, group_ids, scale=scale or "group", valid=valid)
    if estimator == "leave_one_out":
        return leave_one_out(rewards, group_ids, scale=scale or "none", valid=valid)
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator is {estimator!r}, expected one of {', '.join(get_args(Estimator))}")
    groups = group_ids if estimator == "reinforce_plus_plus_baseline" else None
    return reinforce_plus_plus(rewards, groups, valid=valid)


def group_relative(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    scale: str = "group",
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """A_i = (R_i - mean of its group) / (std + epsilon)  (arXiv:2402.03300 section 4.1.2).

    The standard deviation divides by n - 1, as in verl and TRL; of the group (GRPO), of the whole batch (TRL's
    `scale_rewards="batch"`, arXiv:2508.08221), or 1, for Dr. GRPO (arXiv:2503.20783). A group of one gets 0, and so
    does a group of equal rewards.

    Args:
      rewards: [n].
      group_ids: [n], any integers.
      scale: what to divide by.
      epsilon: added to the standard deviation, in units of the reward.
      valid: [n], which responses count; None means all.

    >>> import jax.numpy as jnp
    >>> a = group_relative(jnp.array([1.0, 0.0, 0.0, 1.0]), jnp.array([7, 7, 2, 2]), scale="none")
    >>> [float(x) for x in a]
    [0.5, -0.5, -0.5, 0.5]
    """
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    centred = _centred(rewards, same, valid)
    return centred / _divisor(rewards, centred, same, valid, scale, epsilon)


def leave_one_out(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    scale: str = "none",
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """A_i = R_i - mean of the *other* rewards of its group (RLOO, arXiv:2402.14740 eq. 8); 0 in a group of one.

    With `scale` "group" or "batch" divided by the same (std + epsilon) as `group_relative`; the paper does not.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in leave_one_out(jnp.array([1.0, 0.0, 0.0]), jnp.array([0, 0, 0]))]
    [1.0, -0.5, -0.5]
    """
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    count = jnp.sum(same, axis=1, dtype=rewards.dtype)
    # R_i - (S - R_i) / (n - 1) = (R_i - S / n) * n / (n - 1)
    centred = _centred(rewards, same, valid)
    advantages = jnp.where(valid & (count > 1), centred * count / jnp.maximum(count - 1, 1), 0)
    return advantages / _divisor(rewards, centred, same, valid, scale, epsilon)


def reinforce_plus_plus(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"] | None = None,
    *,
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """A_i = (X_i - mean of X) / (std of X + epsilon), over the whole batch (REINFORCE++, arXiv:2501.03262).

    X is the reward, or with `group_ids` the reward less the mean of its group ("REINFORCE++-baseline" in verl). As a
    reward per response without token-level KL, with discount 1: the return of every token is then the reward. The
    statistics weigh responses equally; verl's weigh tokens, and so favour long ones.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in reinforce_plus_plus(jnp.array([1.0, 0.0, -1.0]))]
    [1.0, 0.0, -1.0]
    """
    one_group = jnp.zeros(rewards.shape, jnp.int32)
    rewards, same, valid = _prepare(rewards, one_group if group_ids is None else group_ids, valid)
    # The group-centred rewards have mean 0 over the batch, so centring them again would change nothing.
    centred = _centred(rewards, same, valid)
    count = jnp.sum(valid, dtype=rewards.dtype)
    return centred / (jnp.sqrt(jnp.sum(centred**2) / jnp.maximum(count - 1, 1)) + epsilon)


def is_rounding(smallest: Any, largest: Any) -> Any:
    """Whether the rewards of a group differ by no more than rounding, such as 0.1 + 0.2 and 0.3.

    Sums of a few terms in float32 are off by some 1e-7 of their size; differences below 1e-6 of it mean nothing.

    >>> is_rounding(0.3, 0.1 + 0.2), is_rounding(0.0, 0.0), is_rounding(0.999, 1.0)
    (True, True, False)
    """
    return largest - smallest <= 5e-7 * (abs(smallest) + abs(largest))


def _prepare(
    rewards: Float[Array, " n"], group_ids: Int[Array, " n"], valid: Bool[Array, " n"] | None
) -> tuple[Float[Array, " n"], Bool[Array, "n n"], Bool[Array, " n"]]:
    """Rewards with 0 where not valid, and which responses each one shares a group with (itself included)."""
    if group_ids.shape != rewards.shape:
        raise ValueError(f"group_ids has shape {group_ids.shape}, expected {rewards.shape}, the shape of rewards")
    if valid is None:
        valid = jnp.ones(rewards.shape, bool)
    elif valid.shape != rewards.shape:
        raise ValueError(f"valid has shape {valid.shape}, expected {rewards.shape}, the shape of rewards")
    rewards = jnp.where(valid, rewards, 0).astype(jnp.result_type(jnp.float32, rewards.dtype))
    same = (group_ids[:, None] == group_ids[None, :]) & valid[:, None] & valid[None, :]
    return rewards, same, valid


def _divisor(
    rewards: Float[Array, " n"],
    centred: Float[Array, " n"],
    same: Bool[Array, "n n"],
    valid: Bool[Array, " n"],
    scale: str,
    epsilon: Number,
) -> Float[Array, " n"] | Float[Array, ""] | float:
    """The standard deviation of each one's group, or of the batch, plus epsilon; 1 without a scale."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale is {scale!r}, expected one of {', '.join(get_args(Scale))}")
    if scale == "none":
        return 1.0
    if scale == "batch":
        count = jnp.sum(valid, dtype=rewards.dtype)
        mean = jnp.sum(jnp.where(valid, rewards, 0)) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(valid, rewards - mean, 0) ** 2)
    else:
        count = jnp.sum(same, axis=1, dtype=rewards.dtype)
        squares = _group_sum(centred**2, same)
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1)) + epsilon


def _centred(rewards: Float[Array, " n"], same: Bool[Array, "n n"], valid: Bool[Array, " n"]) -> Float[Array, " n"]:
    """R_i less the mean of its group; exactly 0 in a group of rewards that are equal up to rounding.

    The mean of 0.1, 0.1, 0.1 is not 0.1 in floating point, and dividing by std + epsilon would blow the rounding up to
    a sizeable advantage. Measured from the largest reward of the group, equal rewards are all 0.
    """
    largest = jnp.max(jnp.where(same, rewards[None, :], -jnp.inf), axis=1)
    smallest = jnp.min(jnp.where(same, rewards[None, :], jnp.inf), axis=1)
    shifted = jnp.where(valid & ~is_rounding(smallest, largest), rewards - largest, 0)
    count = jnp.sum(same, axis=1, dtype=rewards.dtype)
    return jnp.where(valid, shifted - _group_sum(shifted, same) / jnp.maximum(count, 1), 0)


def _group_sum(values: Float[Array, " n"], same: Bool[Array, "n n"]) -> Float[Array, " n"]:
    return jnp.sum(jnp.where(same, values[None, :], 0), axis=1)
