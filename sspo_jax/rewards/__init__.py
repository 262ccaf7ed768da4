"""Rewards of sampled responses: weighted terms, added up for each sample. Plain Python, no JAX.

A term is a frozen dataclass with a `weight`: `Correctness` (the checker's verdict), `Format` (boxed exactly once),
`Overlong` (DAPO's soft punishment of length), `Length` (a price on each token) and `UserReward` (a function of yours,
run in processes of its own, see docs/rewards.md). `score` adds them:

    reward[n] = sum over terms of weight * term[n]

>>> from sspo_jax.checker import Verifier
>>> with Verifier(workers=1) as verifier:
...     scored = score([Correctness(), Format(weight=0.5)], [r"It is \\boxed{2}."], ["2"], [7], verifier=verifier)
>>> scored.rewards
[1.5]
"""

from sspo_jax.rewards.calls import Outcome, RewardError
from sspo_jax.rewards.code_tests import CodeTests
from sspo_jax.rewards.config import Reward, RewardConfig, Scored, reward_metrics, score
from sspo_jax.rewards.judge import Judge
from sspo_jax.rewards.matching import Choice, JsonSchema, Regex
from sspo_jax.rewards.own import Runner, UserReward
from sspo_jax.rewards.terms import Correctness, Format, Length, Overlong

__all__ = [
    "Choice",
    "CodeTests",
    "Correctness",
    "Format",
    "JsonSchema",
    "Judge",
    "Length",
    "Outcome",
    "Overlong",
    "Regex",
    "Reward",
    "RewardConfig",
    "RewardError",
    "Runner",
    "Scored",
    "UserReward",
    "reward_metrics",
    "score",
]
