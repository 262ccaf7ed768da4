"""Rewards to advantages: one number per response, plain arrays of shape [n]; `clip_b` clears some tokens of them.

A group is the responses to one prompt. Group labels are any integers, groups may differ in size, and a response that
is not `valid` (a checker that timed out) counts in no mean and gets advantage 0.

Sums over groups are masked [n, n] products rather than scatters, whose order of addition a GPU does not fix: the same
program on the same devices gives the same bits on every run. Another number of devices may round differently. n is the
responses of a rollout batch, a few thousand at most.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.types import Number

AnyArray = Array | np.ndarray
Scale = Literal["group", "batch", "none"]
Estimator = Literal[
    "group", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "max_rl", "pass_at_k", "gdpo"
]


def estimate(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    estimator: Estimator = "group",
    scale: Scale | None = None,
    lengths: Int[Array, " n"] | None = None,
    valid: Bool[Array, " n"] | None = None,
    terms: Float[Array, "k n"] | None = None,
    weights: Float[Array, " k"] | None = None,
) -> Float[Array, " n"]:
    """The advantages of a run, by the name of their estimator.

    Args:
      rewards: [n].
      group_ids: [n], any integers.
      estimator: `group_relative`, `leave_one_out`, `reinforce_plus_plus` without or with the group's baseline,
        `max_rl`, `pass_at_k`, or `gdpo`.
      scale: what the first two and `pass_at_k` divide by; None means as published.
      lengths: [n], tokens of each response, by which `reinforce_plus_plus` weighs them; None means alike.
      valid: [n], which responses count; None means all.
      terms, weights: [k, n] and [k], what the rewards are the weighted sum of, for `gdpo`; None means one term.
    """
    if estimator == "gdpo":
        terms = rewards[None] if terms is None else terms
        return gdpo(terms, jnp.ones(len(terms)) if weights is None else weights, group_ids, valid=valid)
    if estimator == "group":
        return group_relative(rewards, group_ids, scale=scale or "group", valid=valid)
    if estimator == "leave_one_out":
        return leave_one_out(rewards, group_ids, scale=scale or "none", valid=valid)
    if estimator == "max_rl":
        return max_rl(rewards, group_ids, valid=valid)
    if estimator == "pass_at_k":
        return pass_at_k(rewards, group_ids, scale=scale or "group", valid=valid)
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator is {estimator!r}, expected one of {', '.join(get_args(Estimator))}")
    groups = group_ids if estimator == "reinforce_plus_plus_baseline" else None
    return reinforce_plus_plus(rewards, groups, lengths=lengths, valid=valid)


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
    lengths: Int[Array, " n"] | None = None,
    epsilon: Number = 1e-8,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """A_i = (X_i - mean of X) / sqrt(variance of X + epsilon), over the whole batch (REINFORCE++, arXiv:2501.03262).

    X is the reward, or with `group_ids` the reward less the mean of its group ("REINFORCE++-baseline" in verl). As a
    reward per response without token-level KL, with discount 1: the return of every token is then the reward.

    With `lengths` mean and variance are over tokens, as verl's are: a response counts as often as it has tokens, and
    the variance divides by the number of tokens less 1. Without, every response counts once.

    >>> import jax.numpy as jnp
    >>> rewards = jnp.array([1.0, 0.0, -1.0])
    >>> [round(float(x), 4) for x in reinforce_plus_plus(rewards)]
    [1.0, 0.0, -1.0]
    >>> [round(float(x), 4) for x in reinforce_plus_plus(rewards, lengths=jnp.array([100, 100, 100]))]
    [1.2227, 0.0, -1.2227]
    """
    one_group = jnp.zeros(rewards.shape, jnp.int32)
    rewards, same, valid = _prepare(rewards, one_group if group_ids is None else group_ids, valid)
    centred = _centred(rewards, same, valid)
    counts = valid.astype(rewards.dtype) * (1 if lengths is None else lengths.astype(rewards.dtype))
    total = jnp.sum(counts)
    # Equal rewards are exactly 0 by now, and the mean of zeros is.
    centred = jnp.where(valid, centred - jnp.sum(counts * centred) / jnp.maximum(total, 1), 0)
    return centred * jax.lax.rsqrt(jnp.sum(counts * centred**2) / jnp.maximum(total - 1, 1) + epsilon)


def max_rl(
    rewards: Float[Array, " n"], group_ids: Int[Array, " n"], *, valid: Bool[Array, " n"] | None = None
) -> Float[Array, " n"]:
    """A_i = (R_i - mean of its group) / mean of its group (MaxRL, arXiv:2602.02710); 0 where the mean is not above 0.

    For rewards of 0 and 1, and in expectation, the gradient of log(pass rate) up to the order of the group's size: hard
    problems weigh more than with `group_relative`.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in max_rl(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4, jnp.int32))]
    [3.0, -1.0, -1.0, -1.0]
    """
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    mean = _group_sum(rewards, same) / jnp.maximum(jnp.sum(same, axis=1, dtype=rewards.dtype), 1)
    return jnp.where(mean > 0, _centred(rewards, same, valid) / jnp.where(mean > 0, mean, 1), 0)


def pass_at_k(
    rewards: Float[Array, " n"],
    group_ids: Int[Array, " n"],
    *,
    scale: str = "group",
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """The best response of a group gets the lead over the second best, all others 0 (arXiv:2503.19595, as in verl).

    That lead is what the response adds to the maximum of the group. Where several are best nobody leads, and a group
    of one gets 0. With `scale` divided by the same (std + epsilon) as `group_relative`.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in pass_at_k(jnp.array([1.0, 0.25, 0.0]), jnp.zeros(3, jnp.int32), scale="none")]
    [0.75, 0.0, 0.0]
    """
    rewards, same, valid = _prepare(rewards, group_ids, valid)
    centred = _centred(rewards, same, valid)
    others = same & ~jnp.eye(len(rewards), dtype=bool)
    second = jnp.max(jnp.where(others, rewards[None, :], -jnp.inf), axis=1)
    leads = valid & (rewards > second) & ~is_rounding(second, rewards) & jnp.any(others, axis=1)
    lead = jnp.where(leads, rewards - jnp.where(leads, second, 0), 0)
    return lead / _divisor(rewards, centred, same, valid, scale, epsilon)


def gdpo(
    terms: Float[Array, "k n"],
    weights: Float[Array, " k"],
    group_ids: Int[Array, " n"],
    *,
    epsilon: Number = 1e-6,
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """Each term relative to its own group, then their sum relative to the batch (GDPO, arXiv:2601.05242).

        A_k,i = (r_k,i - mean of the group) / (std of the group + epsilon)
        S_i = sum over k of w_k A_k,i
        A_i = (S_i - mean of S) / (std of S + epsilon), over the whole batch

    A sum of terms that is taken first hides which of them differ: two responses of one group with terms (1, 0) and
    (0, 1) are equal to GRPO, and a term of large variance drowns the others. Standard deviations divide by n - 1.

    >>> import jax.numpy as jnp
    >>> terms = jnp.array([[1.0, 0.0, 1.0, 0.0], [0.0, 100.0, 0.0, 100.0]])
    >>> [round(float(x), 2) for x in gdpo(terms, jnp.array([2.0, 1.0]), jnp.array([0, 0, 1, 1]))]
    [0.87, -0.87, 0.87, -0.87]
    """
    if weights.shape != terms.shape[:1]:
        raise ValueError(f"weights has shape {weights.shape}, expected {terms.shape[:1]}, one of each term")
    relative = [group_relative(term, group_ids, epsilon=epsilon, valid=valid) for term in terms]
    summed = sum((weight * own for weight, own in zip(weights, relative, strict=True)), jnp.zeros(group_ids.shape))
    return group_relative(summed, jnp.zeros(group_ids.shape, jnp.int32), epsilon=epsilon, valid=valid)


def clip_b(
    advantages: Float[AnyArray, "*shape"],
    logprobs: Float[AnyArray, "*shape"],
    entropies: Float[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    width: Number = 2.5,
) -> Float[AnyArray, "*shape"]:
    """Clip_B, clipping by an entropy signal (arXiv:2602.03392): 0 for tokens whose update would lower the entropy most.

        S_t = p_t (H_t + log p_t),  p_t = exp(logprob_t)
        A_t -> 0 where A_t < 0 and S_t < mean(S) - width * std(S), over all valid tokens

    To push down a token that is rarer than its entropy says sharpens the policy; S is how strongly. A token that is
    cleared keeps its place in the denominator; in the authors' code it leaves the mask, as far as we could read it.

    Args:
      advantages, logprobs, entropies: of any shape, nats, under the policy that sampled; JAX or NumPy arrays.
      mask: valid tokens; the statistics are over all of them, so give a whole rollout.
      width: standard deviations below the mean.

    >>> import jax.numpy as jnp
    >>> logprobs = jnp.log(jnp.array([0.9, 0.9, 0.9, 0.3]))
    >>> clip_b(-jnp.ones(4), logprobs, jnp.full(4, 0.3), jnp.ones(4, bool), width=1.5).tolist()
    [-1.0, -1.0, -1.0, 0.0]
    """
    xp = logprobs.__array_namespace__()
    logprobs, entropies = xp.where(mask, logprobs, 0), xp.where(mask, entropies, 0)
    signal = xp.where(mask, xp.exp(logprobs) * (entropies + logprobs), 0)
    count = xp.maximum(xp.sum(mask), 1)
    mean = xp.sum(signal) / count
    std = xp.sqrt(xp.sum(xp.where(mask, (signal - mean) ** 2, 0)) / count)
    is_far = (signal < mean - width * std) & (std > 1e-12)
    return xp.where(mask & (advantages < 0) & is_far, 0, advantages)


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
