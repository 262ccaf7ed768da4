"""Processes for what takes long: a pool with time limits, sympy."""
