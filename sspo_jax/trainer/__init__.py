"""Training: the loop of the algorithm, its compiled programs, and what a run is made of."""

from sspo_jax.config import TrainConfig
from sspo_jax.trainer.loop import train

__all__ = ["TrainConfig", "train"]
