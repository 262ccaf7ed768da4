"""A coefficient of the entropy bonus that follows the entropy (adaptive entropy control of Skywork-OR1)."""

from sspo_jax.types import Number


def adapted_coefficient(
    coefficient: Number, entropy: float, *, target: Number, step: Number, most: Number
) -> tuple[float, float]:
    """The coefficient of this step, and the state that the next one starts from (arXiv:2505.22312).

        alpha_k = c_k where e_k <= target, else 0
        c_k+1   = c_k + step where e_k < target, c_k - step where e_k > target; within 0 and `most`

    The upper limit is TRL's, whose defaults the steps are too.

    Args:
      coefficient: c_k.
      entropy: e_k, nats, mean over the tokens of the rollout under the policy at its start.
      target, step, most: see `Objective`.

    >>> adapted_coefficient(0.5, 0.1, target=0.2, step=0.25, most=1.0)
    (0.5, 0.75)
    >>> adapted_coefficient(0.5, 0.3, target=0.2, step=0.25, most=1.0)
    (0.0, 0.25)
    """
    change = step if entropy < target else -step if entropy > target else 0.0
    following = min(max(coefficient + change, 0.0), float(most))
    return (float(coefficient) if entropy <= target else 0.0), following
