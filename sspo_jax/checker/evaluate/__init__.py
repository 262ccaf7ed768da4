"""Bounded arithmetic on trees: exact fractions, many digits, equality of functions."""
