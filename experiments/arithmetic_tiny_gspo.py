"""As arithmetic_tiny, with GSPO: one ratio per response."""

import dataclasses

from experiments import arithmetic_tiny
from sspo_jax.config import TrainConfig
from sspo_jax.losses import Gspo


def config() -> TrainConfig:
    """The default experiment with another objective; the warm start is shared."""
    return dataclasses.replace(arithmetic_tiny.config(), loss=Gspo())
