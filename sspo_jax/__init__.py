"""Subsentence-level policy optimization (SSPO) in JAX."""

__version__ = "0.1.0"
