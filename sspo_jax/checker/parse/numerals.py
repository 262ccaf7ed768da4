"""Digits as exact numbers: decimals, repeating decimals, digits in a base."""

from fractions import Fraction

from ..expression import Kind, Node, ParseError, number
from .fastpath import digits_to_int

_LONGEST_TAIL = 80  # of the digits before an ellipsis that are searched for what repeats
_MOST_DIGITS_IN_BASE = 4000


def decimal(text: str) -> Fraction:
    """The value of digits with at most one point."""
    whole, _, decimals = text.partition(".")
    integer = digits_to_int((whole + decimals) or "0")
    return Fraction(integer, 10 ** len(decimals)) if decimals else Fraction(integer)


def written(text: str) -> Node:
    """The number of a numeral such as `12`, `0.50`, `1.5e-3`, with the digits that it was written with."""
    mantissa = text.replace("E", "e").partition("e")[0]
    exponent = text[len(mantissa) + 1 :]
    if len(exponent) > 6:
        raise ParseError(f"the exponent {exponent} is out of reach")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in text or exponent else None
    value = decimal(mantissa)
    return number(value * Fraction(10) ** int(exponent) if exponent else value, digits)


def repeating(mantissa: str, block: str | None) -> Node:
    """`0.1\\overline{6}` as ("0.1", "6"); with None for the block, what the end of the mantissa repeats: `0.333...`."""
    whole, _, fixed = mantissa.partition(".")
    if block is None:
        start, size = _repeated_tail(fixed[-_LONGEST_TAIL:])
        if not size:
            raise ParseError(f"{mantissa}... does not show what repeats")
        start += max(0, len(fixed) - _LONGEST_TAIL)
        fixed, block = fixed[:start], fixed[start : start + size]
    if not block.isdigit():
        raise ParseError(f"expected a repeating block of digits, found {block!r}")
    scale = 10 ** len(fixed)
    return number(decimal(f"{whole or 0}.{fixed}0") + Fraction(int(block), scale * (10 ** len(block) - 1)))


def _repeated_tail(digits: str) -> tuple[int, int]:
    """Where the longest repetition at the end of some digits begins, and the length of its block; 0 for none."""
    best = (len(digits), 0)
    for size in range(1, len(digits) // 2 + 1):
        block, start = digits[-size:], len(digits)
        while start >= size and digits[start - size : start] == block:
            start -= size
        if len(digits) - start >= 2 * size and start < best[0]:
            best = (start, size)
    return best


def based(digits: str, base: int) -> Node:
    """The number that digits are in a base; ParseError where the base does not have these digits."""
    if not 2 <= base <= 36:
        raise ParseError(f"the base is {base}, expected 2 to 36")
    values = [int(digit, 36) for digit in digits if digit != "."]
    if digits.count(".") > 1 or any(value >= base for value in values) or len(digits) > _MOST_DIGITS_IN_BASE:
        raise ParseError(f"{digits[:20]} has digits that base {base} does not have")
    total = 0
    for value in values:
        total = total * base + value
    return Node(Kind.BASED, (number(Fraction(total, base ** len(digits.partition(".")[2]))),), base)
