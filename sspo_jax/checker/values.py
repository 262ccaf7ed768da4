"""Values of expressions, under the name that other parts of the package import them by."""

from .evaluate.values import exact_value, free_symbols

__all__ = ["exact_value", "free_symbols"]
