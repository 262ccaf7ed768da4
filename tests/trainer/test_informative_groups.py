"""Which groups have something to learn from."""

import numpy as np

from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.types import Rollout


def test_rewards_equal_up_to_rounding_are_not_different():
    """Groups 3: 0.3 and 0.1 + 0.2; 5: really different; 8: different only where the checker gave no verdict."""
    n = 6
    rollout = Rollout(
        prompts=(np.zeros(1, np.int32),) * n,
        responses=(np.zeros(1, np.int32),) * n,
        logprobs=(np.zeros(1, np.float32),) * n,
        finish_reasons=np.zeros(n, np.int32),
        group_ids=np.array([3, 3, 5, 5, 8, 8], np.int32),
        sample_ids=np.array([0, 1] * 3, np.int32),
    )
    rewards = np.array([0.3, 0.1 + 0.2, 1.0, 0.999, 1.0, 0.0])
    is_judged = np.array([True] * 5 + [False])
    groups = GradedRollout(
        rollout=rollout, problems=(), texts=(), verdicts=(), rewards=rewards, is_judged=is_judged, terms={}
    )
    np.testing.assert_array_equal(groups.informative(), [2, 3])
