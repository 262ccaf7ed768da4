"""Integers, decimals and simple fractions decided exactly from their digits, without a parser or a worker.

A number is read as (sign, numerator digits, denominator digits, decimal places) and compared as integers; digit strings
that are equal never become integers at all, so 100,000 digits cost no more than reading them.
"""

import re

_NUMBER = re.compile(
    r"(?:\$\s*)?(?:(?P<sign>[-+])\s*)?(?:\\\$\s*)?(?=[\d.\\])"
    r"(?:(?P<whole>\d{1,3}(?:(?:,|\{,\}|,?\\[,!] ?)\d{3})+|\d+)?(?:\.(?P<decimals>\d*))?"
    r"|\\[dtc]?frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>-?\d+)\s*\}"
    r"|(?P<left>\d+)\s*/\s*(?P<right>\d+))\s*(?:\.\s*)?(?:\$\s*)?",
    re.ASCII,
)
_NOT_DIGITS = re.compile(r"\D+")

PlainNumber = tuple[bool, str, str, int]  # is negative, numerator digits, denominator digits, decimal places


def plain_number(text: str) -> PlainNumber | None:
    """The number that the whole text is, or None where it is anything else (or a fraction over zero).

    >>> plain_number("-0.50"), plain_number(r"\\frac{3}{-4}"), plain_number("2 or 3")
    ((True, '5', '1', 1), (True, '3', '4', 0), None)
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    negative = match["sign"] == "-"
    top, bottom = match["top"] or match["left"], match["bottom"] or match["right"]
    if top is not None:
        for part in (top, bottom):
            negative ^= part.startswith("-")
        denominator = bottom.lstrip("-0")
        return (negative, top.lstrip("-0") or "0", denominator, 0) if denominator else None
    whole, decimals = match["whole"] or "", (match["decimals"] or "").rstrip("0")
    if not whole and not match["decimals"]:
        return None
    if not whole.isdigit():
        whole = _NOT_DIGITS.sub("", whole)
    return negative, (whole + decimals).lstrip("0") or "0", "1", len(decimals)


def equal_numbers(first: PlainNumber, second: PlainNumber) -> bool:
    """Whether two plain numbers are the same rational number."""
    if first[1] == "0" or second[1] == "0":
        return first[1] == second[1]
    if first[0] != second[0]:
        return False
    if first[2] == second[2] == "1":
        return first[1] == second[1] and first[3] == second[3]
    left = digits_to_int(first[1]) * digits_to_int(second[2]) * 10 ** second[3]
    return left == digits_to_int(second[1]) * digits_to_int(first[2]) * 10 ** first[3]


def digits_to_int(digits: str) -> int:
    """The integer of a digit string of any length; `int` refuses more than 4,300 digits."""
    if len(digits) <= 4000:
        return int(digits)
    half = len(digits) // 2
    return digits_to_int(digits[:-half]) * 10**half + digits_to_int(digits[-half:])
