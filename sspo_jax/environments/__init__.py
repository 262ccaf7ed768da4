"""Environments that the policy talks to, turn by turn: the protocol, and two small ones. No JAX."""

from sspo_jax.environments.calculator import Calculator
from sspo_jax.environments.guessing import GuessingGame
from sspo_jax.environments.protocol import Environment, EnvironmentConfig, Reply, Task

__all__ = ["Calculator", "Environment", "EnvironmentConfig", "GuessingGame", "Reply", "Task"]
