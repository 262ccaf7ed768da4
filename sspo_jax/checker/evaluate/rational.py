"""The exact value of an expression tree as a fraction, where it is rational; bounded by `Limits`."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from ..expression import Kind, Node, Undecided
from ..limits import IN_WORKER, Limits, NeedsWorker, NotRational, TooLarge

Environment = Mapping[str, Fraction]


def exact(node: Node, env: Environment, limits: Limits) -> Fraction:
    """The rational value of an expression, its symbols taken from `env`.

    Raises:
        NotRational: a root, function or constant that is not rational.
        Undecided: division by zero, or beyond the limits (`NeedsWorker`, `TooLarge`).
    """
    kind, args = node.kind, node.args
    if kind == Kind.NUMBER:
        return node.value
    if kind == Kind.SYMBOL:
        value = env.get(node.value)
        if value is None:
            raise NotRational
        return value
    if kind == Kind.NEG:
        return -exact(args[0], env, limits)
    if kind == Kind.ADD:
        return sum((exact(arg, env, limits) for arg in args), Fraction(0))
    if kind == Kind.MUL:
        product = Fraction(1)
        for arg in args:
            product = _bounded(product * exact(arg, env, limits), limits)
        return product
    if kind in (Kind.DIV, Kind.FRAC):
        bottom = exact(args[1], env, limits)
        if bottom == 0:
            raise Undecided("division by zero")
        return _bounded(exact(args[0], env, limits) / bottom, limits)
    if kind == Kind.POW:
        return _exact_power(exact(args[0], env, limits), exact(args[1], env, limits), limits)
    if kind == Kind.ROOT:
        degree = exact(args[1], env, limits)
        if degree == 0:
            raise Undecided("a zeroth root")
        return _exact_power(exact(args[0], env, limits), 1 / degree, limits)
    if kind == Kind.PERCENT:
        return exact(args[0], env, limits) / 100
    if kind == Kind.BASED:
        return exact(args[0], env, limits)
    if kind == Kind.FACTORIAL:
        return Fraction(math.factorial(_small_natural(exact(args[0], env, limits), limits.factorial)))
    if kind == Kind.CALL:
        return _exact_call(node, env, limits)
    if kind == Kind.BIG:
        return series(node, env, limits, exact, Fraction(0), Fraction(1))
    raise NotRational


def _bounded(value: Fraction, limits: Limits) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > limits.bits:
        raise _beyond(max(value.numerator.bit_length(), value.denominator.bit_length()))
    return value


def _beyond(bits: Fraction | float | int) -> Undecided:
    return TooLarge("a number too large to evaluate") if bits > IN_WORKER.bits else NeedsWorker("a large number")


def _small_natural(value: Fraction, most: int) -> int:
    if value.denominator != 1 or value < 0:
        raise NotRational
    if value > most:
        if value > IN_WORKER.factorial:
            raise TooLarge(f"a factorial of more than {IN_WORKER.factorial:,}")
        raise NeedsWorker("a large factorial")
    return int(value)


def _exact_power(base: Fraction, exponent: Fraction, limits: Limits) -> Fraction:
    if exponent.denominator == 1:
        if base == 0:
            if exponent < 0:
                raise Undecided("division by zero")
            return Fraction(int(exponent == 0))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) == 1:
            return base ** (int(exponent) % 2)
        if (bits - 1 or 0.5) * abs(exponent) > limits.bits:
            raise _beyond((bits - 1 or 0.5) * abs(exponent))
        return base ** int(exponent)
    if exponent.denominator > 64:
        raise NotRational
    root = _exact_root(abs(base), exponent.denominator)
    if root is None or (base < 0 and exponent.denominator % 2 == 0):
        raise NotRational
    return _exact_power(root if base >= 0 else -root, Fraction(exponent.numerator), limits)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    parts = []
    for part in (value.numerator, value.denominator):
        if degree == 2:
            root = math.isqrt(part)
        elif part.bit_length() > 900:
            return None
        else:
            root = round(part ** (1 / degree)) if part.bit_length() < 50 else _integer_root(part, degree)
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "sgn": lambda value: (value > 0) - (value < 0),
    "max": lambda *values: max(values), "min": lambda *values: min(values),
}  # fmt: skip
_OF_INTEGERS: dict[str, Callable[..., int]] = {"gcd": math.gcd, "lcm": math.lcm}


def _exact_call(node: Node, env: Environment, limits: Limits) -> Fraction:
    name = node.value
    if name == "det":
        return determinant([exact(arg, env, limits) for arg in node.args[0].args], node.args[0].value)
    if name in _FUNCTIONS:
        return Fraction(_FUNCTIONS[name](*(exact(arg, env, limits) for arg in node.args)))
    if name in _OF_INTEGERS:
        values = [exact(arg, env, limits) for arg in node.args]
        if any(value.denominator != 1 for value in values):
            raise NotRational
        return Fraction(_OF_INTEGERS[name](*map(int, values)))
    if name == "binom":
        top, bottom = (exact(arg, env, limits) for arg in node.args)
        chosen = _small_natural(bottom, limits.factorial)
        if top.denominator != 1 or not 0 <= top <= limits.factorial * 10:
            raise NotRational
        return Fraction(math.comb(int(top), chosen))
    if name == "log" and len(node.args) == 2:
        return _exact_logarithm(exact(node.args[0], env, limits), exact(node.args[1], env, limits))
    if name in ("ln", "log") and exact(node.args[0], env, limits) == 1:
        return Fraction(0)
    raise NotRational


def _exact_logarithm(value: Fraction, base: Fraction) -> Fraction:
    """An integer power of the base, else NotRational; the numeric evaluation reads the rest."""
    if value <= 0 or base <= 0 or base == 1:
        raise Undecided("a logarithm outside of its domain")
    estimate = round(_log2(value) / _log2(base)) if abs(_log2(base)) > 1e-9 else 0
    if abs(estimate) <= 10_000 and base**estimate == value:
        return Fraction(estimate)
    raise NotRational


def _log2(value: Fraction) -> float:
    shift_top, shift_bottom = max(0, value.numerator.bit_length() - 60), max(0, value.denominator.bit_length() - 60)
    top, bottom = value.numerator >> shift_top, value.denominator >> shift_bottom
    return math.log2(top) + shift_top - math.log2(bottom) - shift_bottom


def determinant(entries: list[Any], shape: Any) -> Any:
    rows, columns = shape
    if rows != columns or rows > 6:
        raise Undecided("a determinant that is not square, or larger than 6 x 6")
    if rows == 1:
        return entries[0]
    total: Any = 0
    for column in range(columns):
        minor = [entries[row * columns + c] for row in range(1, rows) for c in range(columns) if c != column]
        total = total + (-1) ** column * entries[column] * determinant(minor, (rows - 1, columns - 1))
    return total


def series(node: Node, env: Environment, limits: Limits, value: Callable, zero: Any, one: Any) -> Any:
    """A written-out sum or product `\\sum_{k=a}^{b} body`, term by term."""
    name, has_lower, has_upper = node.value
    lower = node.args[1] if has_lower else None
    bound_by_relation = lower is not None and lower.kind == "relation" and lower.args[0].kind == "symbol"
    if name not in ("sum", "prod") or not has_upper or not bound_by_relation:
        raise NeedsWorker(f"\\{name}")
    assert lower is not None
    start, stop = exact(lower.args[1], env, limits), node.args[2]
    if stop.kind == Kind.CONSTANT:
        raise NeedsWorker("an infinite sum")
    end = exact(stop, env, limits)
    if start.denominator != 1 or end.denominator != 1:
        raise NeedsWorker("a sum between bounds that are no integers")
    if end - start > limits.terms:
        raise NeedsWorker("a long sum")
    total = zero if name == "sum" else one
    for index in range(int(start), int(end) + 1):
        term = value(node.args[0], {**env, lower.args[0].value: Fraction(index)}, limits)
        total = total + term if name == "sum" else total * term
        if isinstance(total, Fraction):
            _bounded(total, limits)
    return total
