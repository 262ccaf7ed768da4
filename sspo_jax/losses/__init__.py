"""Objectives as pure functions of arrays, one published objective a file, and beside each its dataclass.

loss, metrics = sspo_loss(logprobs, old_logprobs, advantages, mask, subsentence_ids, entropies)
loss, metrics = Sspo.calibrated()(logprobs, batch)
"""

from sspo_jax.losses.aggregation import Aggregation, aggregate, loss_denominator
from sspo_jax.losses.cispo import Cispo, cispo_loss
from sspo_jax.losses.correction import RolloutCorrection, correction_weights, off_policy_mask
from sspo_jax.losses.diagnostics import diagnostics
from sspo_jax.losses.distill import Distill, distill_loss, teacher_advantages
from sspo_jax.losses.dppo import Dppo, dppo_loss
from sspo_jax.losses.entropy_bonus import adapted_coefficient
from sspo_jax.losses.gmpo import Gmpo, gmpo_loss
from sspo_jax.losses.grpo import Grpo, dapo_loss, dr_grpo_loss, grpo_loss
from sspo_jax.losses.gspo import Gspo, gspo_loss
from sspo_jax.losses.kl import kl_penalty
from sspo_jax.losses.m2po import M2po, m2po_loss, second_moment_cutoff
from sspo_jax.losses.objective import Objective
from sspo_jax.losses.per_token import per_token
from sspo_jax.losses.ratios import subsentence_ratio
from sspo_jax.losses.removed import removed
from sspo_jax.losses.sapo import Sapo, sapo_loss
from sspo_jax.losses.sspo import Sspo, sspo_loss
from sspo_jax.losses.vespo import Vespo, vespo_loss

__all__ = [
    "Aggregation",
    "Cispo",
    "Distill",
    "Dppo",
    "Gmpo",
    "Grpo",
    "Gspo",
    "M2po",
    "Objective",
    "RolloutCorrection",
    "Sapo",
    "Sspo",
    "Vespo",
    "adapted_coefficient",
    "aggregate",
    "cispo_loss",
    "correction_weights",
    "dapo_loss",
    "diagnostics",
    "distill_loss",
    "dppo_loss",
    "dr_grpo_loss",
    "gmpo_loss",
    "grpo_loss",
    "gspo_loss",
    "kl_penalty",
    "loss_denominator",
    "m2po_loss",
    "off_policy_mask",
    "per_token",
    "removed",
    "sapo_loss",
    "second_moment_cutoff",
    "sspo_loss",
    "subsentence_ratio",
    "teacher_advantages",
    "vespo_loss",
]
