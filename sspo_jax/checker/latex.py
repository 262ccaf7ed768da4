"""The parser's entry points, under the name that other parts of the package import them by."""

from .parse.reading import has_two_readings, read

__all__ = ["has_two_readings", "read"]
