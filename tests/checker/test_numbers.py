"""Plain numbers: the fast path against Python's own fractions, and against the parser."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.checker import is_correct, verify
from sspo_jax.checker.evaluate.values import exact_value
from sspo_jax.checker.limits import IN_PROCESS
from sspo_jax.checker.parse.fastpath import digits_to_int, equal_numbers, plain_number
from sspo_jax.checker.parse.reading import read

INTEGERS = st.integers(-(10**30), 10**30)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=6)


@st.composite
def written_numbers(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number as text, in one of the forms the fast path reads, with its value."""
    form = draw(st.sampled_from(["integer", "decimal", "frac", "slash", "grouped", "money"]))
    if form == "decimal":
        value = draw(DECIMALS)
        return f"{value:f}", Fraction(value)
    top = draw(INTEGERS)
    if form == "frac":
        bottom = draw(st.integers(1, 10**12))
        return rf"\frac{{{top}}}{{{bottom}}}", Fraction(top, bottom)
    if form == "slash":
        bottom = draw(st.integers(1, 10**12))
        return f"{top}/{bottom}", Fraction(top, bottom)
    if form == "grouped":
        return f"{top:,}".replace(",", r",\!"), Fraction(top)
    return (f"{top}" if form == "integer" else rf"{'-' if top < 0 else ''}\${abs(top)}"), Fraction(top)


@settings(deadline=None)  # on a busy machine a deadline measures the others
@given(written_numbers(), written_numbers())
def test_equality_is_that_of_fractions(first: tuple[str, Fraction], second: tuple[str, Fraction]):
    one, other = plain_number(first[0]), plain_number(second[0])
    assert one is not None
    assert other is not None
    assert equal_numbers(one, other) == (first[1] == second[1])
    assert equal_numbers(one, one)


@settings(deadline=None)  # on a busy machine a deadline measures the others
@given(written_numbers())
def test_the_parser_reads_the_same_value(written: tuple[str, Fraction]):
    node = read(written[0].replace(r"\$", ""))
    assert exact_value(node, IN_PROCESS) == written[1]


@settings(deadline=None)  # on a busy machine a deadline measures the others
@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**4))
def test_mixed_numbers(whole: int, bottom: int, top: int):
    value = whole + Fraction(top, bottom)
    assert is_correct(rf"\boxed{{{whole}\frac{{{top}}}{{{bottom}}}}}", f"{value.numerator}/{value.denominator}")


@settings(deadline=None)  # on a busy machine a deadline measures the others
@given(st.integers(0, 999), st.text("0123456789", min_size=1, max_size=6), st.text("0123456789", max_size=5))
def test_repeating_decimals(whole: int, block: str, fixed: str):
    scale = 10 ** len(fixed)
    value = whole + Fraction(int(fixed or 0), scale) + Fraction(int(block), scale * (10 ** len(block) - 1))
    gold = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert is_correct(rf"\boxed{{{whole}.{fixed}\overline{{{block}}}}}", gold)
    assert is_correct(rf"\boxed{{{whole}.{fixed}({block})}}", gold)


@pytest.mark.parametrize("digits", [4_300, 4_301, 100_000])
def test_integers_of_any_length(digits: int):
    number = "7" * digits
    assert verify(rf"\boxed{{{number}}}", number).status == "correct"
    assert verify(rf"\boxed{{{number}}}", number[:-1] + "8").status == "wrong"
    assert verify(rf"\boxed{{{number}.0}}", number).status == "correct"


def test_digits_to_int_agrees_with_int():
    text = "123456789" * 400
    assert digits_to_int(text) == int(text)
    long = "9" * 10_001
    assert digits_to_int(long) == 10**10_001 - 1


def test_tolerance_is_only_used_when_asked_for():
    assert verify(r"\boxed{0.333}", "1/3").status == "wrong"
    assert verify(r"\boxed{0.333}", "1/3", relative_tolerance=0.01).status == "correct"
    assert verify(r"\boxed{4.6e33}", "4.5e33", relative_tolerance=0.01).status == "wrong"
    assert verify(r"\boxed{4.51e33}", "4.5e33", relative_tolerance=0.01).status == "correct"
    assert verify(r"\boxed{3.14}", r"\pi", relative_tolerance=0.01).status == "correct"
    assert verify(r"\boxed{5.3}", "5", absolute_tolerance=0.5).status == "correct"
    assert verify(r"\boxed{5.6}", "5", absolute_tolerance=0.5).status == "wrong"
    assert verify(r"\boxed{1,010}", "1000", relative_tolerance=0.01).status == "correct"


@pytest.mark.parametrize(("answer", "gold"), [("1.41421356237309", r"\sqrt2"), ("1.41421356237310", r"\sqrt2")])
def test_a_long_decimal_may_be_cut_or_rounded(answer: str, gold: str):
    assert is_correct(rf"\boxed{{{answer}}}", gold)


@pytest.mark.parametrize("answer", ["1.4142135623", "1.41421356237308", "1.41421356237311", "1.414213562373195"])
def test_a_decimal_that_is_short_or_off_is_no_irrational(answer: str):
    assert not is_correct(rf"\boxed{{{answer}}}", r"\sqrt2")
