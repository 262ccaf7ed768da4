"""As arithmetic_tiny, with GRPO: one ratio per token."""

import dataclasses

from sspo_jax.config import TrainConfig
from sspo_jax.losses import Grpo

from . import arithmetic_tiny


def config() -> TrainConfig:
    """The default experiment with another objective; the warm start is shared."""
    return dataclasses.replace(arithmetic_tiny.config(), loss=Grpo())
