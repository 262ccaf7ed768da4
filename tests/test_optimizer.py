"""The schedule of the learning rate, by hand."""

import dataclasses

import numpy as np
import pytest

from sspo_jax.config import OptimizerConfig
from sspo_jax.optimizer import learning_rate_schedule


@pytest.mark.parametrize(
    ("warmup", "rates"), [(0, [1, 1, 1]), (1, [1, 1, 1]), (2, [1 / 2, 1, 1]), (4, [1 / 4, 1 / 2, 3 / 4, 1, 1, 1])]
)
def test_update_k_of_the_warm_up_has_k_nths_of_the_rate(warmup, rates):
    schedule = learning_rate_schedule(dataclasses.replace(OptimizerConfig(), learning_rate=2e-3, warmup_updates=warmup))
    np.testing.assert_allclose([schedule(done) for done in range(len(rates))], 2e-3 * np.array(rates), rtol=1e-6)
