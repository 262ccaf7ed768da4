"""Rewards to advantages: one number per response, plain arrays of shape [n].

A group is the responses to one prompt. Group labels are any integers, groups may differ in size, and a response that
is not `valid` (a checker that timed out) counts in no mean and gets advantage 0.

Sums over groups are masked [n, n] products rather than scatters, whose order of addition a GPU does not fix: the same
program on the same devices gives the same bits on every run. Another number of devices may round differently. n is the
responses of a rollout batch, a few thousand at most.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.types import Number

Scale = Literal["group", "batch", "none"]


def group_relative(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    scale: str = "group",
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """A_i = (R_i - mean of its group) / (std + epsilon)  (arXiv:2402.03300 section 4.1.2).

    The standard deviation has n - 1 below the root, as in verl and TRL; of the group (GRPO), of the whole batch (TRL's
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
    if scale not in get_args(Scale):
        raise ValueError(f"scale is {scale!r}, want one of {', '.join(get_args(Scale))}")
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    count = jnp.sum(same, axis=1, dtype=rewards.dtype)
    centred = _centred(rewards, same, valid)
    if scale == "none":
        return centred
    if scale == "batch":
        count = jnp.sum(valid, dtype=rewards.dtype)
        mean = jnp.sum(jnp.where(valid, rewards, 0)) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(valid, rewards - mean, 0) ** 2)
    else:
        squares = _group_sum(centred**2, same)
    return centred / (jnp.sqrt(squares / jnp.maximum(count - 1, 1)) + epsilon)


def leave_one_out(
    rewards: Float[Array, " n"], group_ids: Int[Array, " n"], *, valid: Bool[Array, " n"] | None = None
) -> Float[Array, " n"]:
    """A_i = R_i - mean of the *other* rewards of its group (RLOO, arXiv:2402.14740 eq. 8); 0 in a group of one.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in leave_one_out(jnp.array([1.0, 0.0, 0.0]), jnp.array([0, 0, 0]))]
    [1.0, -0.5, -0.5]
    """
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    count = jnp.sum(same, axis=1, dtype=rewards.dtype)
    # R_i - (S - R_i) / (n - 1) = (R_i - S / n) * n / (n - 1)
    return jnp.where(valid & (count > 1), _centred(rewards, same, valid) * count / jnp.maximum(count - 1, 1), 0)


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


def overlong_penalty(
    lengths: Int[Array, " n"] | Float[Array, " n"], *, max_length: int, buffer: int, penalty: Number = 1.0
) -> Float[Array, " n"]:
    """DAPO's soft overlong punishment (arXiv:2503.14476 eq. 13), a number to *add* to the reward.

        0                                              L <= max_length - buffer
        penalty * ((max_length - buffer) - L) / buffer between
        -penalty                                       L >= max_length

    Args:
      lengths: [n], tokens of each response (tokens, not characters).
      max_length: tokens at which the punishment is full: the generation budget, or the paper's L_max.
      buffer: tokens over which it grows.
      penalty: the full punishment, in units of the reward.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in overlong_penalty(jnp.array([10, 18, 30]), max_length=20, buffer=4)]
    [0.0, -0.5, -1.0]
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer} with max_length {max_length}, want 0 < buffer <= max_length")
    room = ((max_length - buffer) - jnp.asarray(lengths, jnp.float32)) / buffer
    return penalty * jnp.clip(room, -1.0, 0.0)


def _prepare(
    rewards: Float[Array, " n"], group_ids: Int[Array, " n"], valid: Bool[Array, " n"] | None
) -> tuple[Float[Array, " n"], Bool[Array, "n n"], Bool[Array, " n"]]:
    """Rewards with 0 where not valid, and which responses each one shares a group with (itself included)."""
    if group_ids.shape != rewards.shape:
        raise ValueError(f"group_ids has shape {group_ids.shape}, want {rewards.shape}, the shape of rewards")
    if valid is None:
        valid = jnp.ones(rewards.shape, bool)
    elif valid.shape != rewards.shape:
        raise ValueError(f"valid has shape {valid.shape}, want {rewards.shape}, the shape of rewards")
    rewards = jnp.where(valid, rewards, 0).astype(jnp.result_type(jnp.float32, rewards.dtype))
    same = (group_ids[:, None] == group_ids[None, :]) & valid[:, None] & valid[None, :]
    return rewards, same, valid


def _centred(rewards: Float[Array, " n"], same: Bool[Array, "n n"], valid: Bool[Array, " n"]) -> Float[Array, " n"]:
    """R_i less the mean of its group; exactly 0 in a group of equal rewards.

    The mean of 0.1, 0.1, 0.1 is not 0.1 in floating point, and dividing by std + epsilon would blow the rounding up to
    a sizeable advantage. Measured from the largest reward of the group, equal rewards are all 0.
    """
    largest = jnp.max(jnp.where(same, rewards[None, :], -jnp.inf), axis=1)
    shifted = jnp.where(valid, rewards - largest, 0)
    count = jnp.sum(same, axis=1, dtype=rewards.dtype)
    return jnp.where(valid, shifted - _group_sum(shifted, same) / jnp.maximum(count, 1), 0)


def _group_sum(values: Float[Array, " n"], same: Bool[Array, "n n"]) -> Float[Array, " n"]:
    return jnp.sum(jnp.where(same, values[None, :], 0), axis=1)
