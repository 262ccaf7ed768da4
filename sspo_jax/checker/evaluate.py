"""The value of an expression tree: exactly as a fraction where it is rational, else to as many digits as it needs.

All arithmetic is bounded beforehand: the size of a power, a factorial or a sum is estimated before it is computed, so
`9^{9^{9^9}}` costs nothing. `Limits` says how far to go: little in the caller's process, more in a worker.
"""

import dataclasses
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from .expression import Node, Undecided


class TooLarge(Undecided):
    """A value exceeds every bound; more effort would not help."""


class NeedsWorker(Undecided):
    """A value exceeds the bounds of the caller's process; a worker may reach it."""


class NotRational(Exception):
    """The exact evaluation met something that is no fraction."""


class OutsideDomain(Exception):
    """A real expression has no real value at this point."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far an evaluation may go."""

    bits: int
    """Of numerator or denominator of an exact fraction."""
    nodes: int
    """Of an expression tree."""
    factorial: int
    """The largest n of n! and of binomials."""
    terms: int
    """Of a written-out sum or product."""
    digits: int
    """Decimal digits of working precision."""


IN_PROCESS = Limits(bits=60_000, nodes=400, factorial=3_000, terms=500, digits=600)
IN_WORKER = Limits(bits=2_000_000, nodes=4_000, factorial=60_000, terms=100_000, digits=20_000)
_HOPELESS_BITS = 10**8  # numbers of this many bits are compared by nobody

Environment = Mapping[str, Fraction]


def exact(node: Node, env: Environment, limits: Limits) -> Fraction:
    """The rational value of an expression, its symbols taken from `env`.

    Raises:
        NotRational: a root, function or constant that is not rational.
        Undecided: division by zero, or beyond the limits (`NeedsWorker`, `TooLarge`).
    """
    kind, args = node.kind, node.args
    if kind == "number":
        return node.value  # type: ignore[return-value]
    if kind == "symbol":
        value = env.get(node.value)  # type: ignore[arg-type]
        if value is None:
            raise NotRational
        return value
    if kind == "neg":
        return -exact(args[0], env, limits)
    if kind == "add":
        return sum((exact(arg, env, limits) for arg in args), Fraction(0))
    if kind == "mul":
        product = Fraction(1)
        for arg in args:
            product = _bounded(product * exact(arg, env, limits), limits)
        return product
    if kind in ("div", "frac"):
        bottom = exact(args[1], env, limits)
        if bottom == 0:
            raise Undecided("division by zero")
        return _bounded(exact(args[0], env, limits) / bottom, limits)
    if kind == "pow":
        return _exact_power(exact(args[0], env, limits), exact(args[1], env, limits), limits)
    if kind == "root":
        degree = exact(args[1], env, limits)
        if degree == 0:
            raise Undecided("a zeroth root")
        return _exact_power(exact(args[0], env, limits), 1 / degree, limits)
    if kind == "percent":
        return exact(args[0], env, limits) / 100
    if kind == "based":
        return exact(args[0], env, limits)
    if kind == "factorial":
        return Fraction(math.factorial(_small_natural(exact(args[0], env, limits), limits.factorial)))
    if kind == "call":
        return _exact_call(node, env, limits)
    if kind == "big":
        return _series(node, env, limits, exact, Fraction(0), Fraction(1))
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


def _exact_call(node: Node, env: Environment, limits: Limits) -> Fraction:
    name = node.value
    if name in ("abs", "floor", "ceil", "max", "min", "gcd", "lcm", "binom", "sgn", "det"):
        if name == "det":
            return _determinant([exact(arg, env, limits) for arg in node.args[0].args], node.args[0].value)
        values = [exact(arg, env, limits) for arg in node.args]
        if name == "abs":
            return abs(values[0])
        if name == "floor":
            return Fraction(math.floor(values[0]))
        if name == "ceil":
            return Fraction(math.ceil(values[0]))
        if name == "sgn":
            return Fraction((values[0] > 0) - (values[0] < 0))
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        if name == "binom":
            bottom = _small_natural(values[1], limits.factorial)
            top = values[0]
            if top.denominator != 1 or not 0 <= top <= limits.factorial * 10:
                raise NotRational
            return Fraction(math.comb(int(top), bottom))
        if any(value.denominator != 1 for value in values):
            raise NotRational
        integers = [int(value) for value in values]
        return Fraction(math.gcd(*integers) if name == "gcd" else math.lcm(*integers))
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


def _determinant(entries: list[Any], shape: Any) -> Any:
    rows, columns = shape
    if rows != columns or rows > 6:
        raise Undecided("a determinant that is not square, or larger than 6 x 6")
    if rows == 1:
        return entries[0]
    total: Any = 0
    for column in range(columns):
        minor = [entries[row * columns + c] for row in range(1, rows) for c in range(columns) if c != column]
        total = total + (-1) ** column * entries[column] * _determinant(minor, (rows - 1, columns - 1))
    return total


def _series(node: Node, env: Environment, limits: Limits, value: Callable, zero: Any, one: Any) -> Any:
    """A written-out sum or product `\\sum_{k=a}^{b} body`, term by term."""
    name, has_lower, has_upper = node.value  # type: ignore[misc]
    lower = node.args[1] if has_lower else None
    bound_by_relation = lower is not None and lower.kind == "relation" and lower.args[0].kind == "symbol"
    if name not in ("sum", "prod") or not has_upper or not bound_by_relation:
        raise NeedsWorker(f"\\{name}")
    assert lower is not None
    start, stop = exact(lower.args[1], env, limits), node.args[2]
    if stop.kind == "constant":
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


_contexts = threading.local()


def _context(digits: int) -> Any:
    """This thread's own mpmath context (the global one is shared between threads), set to a precision."""
    context = getattr(_contexts, "context", None)
    if context is None:
        from mpmath import MPContext

        context = _contexts.context = MPContext()
    context.dps = digits
    return context


class Numeric:
    """Evaluates trees to `digits` decimal digits; keeps the extremes of magnitude that it met.

    `real`: a root or logarithm of a negative number raises `OutsideDomain` instead of giving a complex value.
    `log_base`: what `\\log` without a base means, "e" or 10.
    """

    def __init__(self, digits: int, limits: Limits, *, real: bool, log_base: str = "e") -> None:
        self.mp = _context(digits)
        self.digits = digits
        self.limits = limits
        self.real = real
        self.log_base = log_base
        self.largest = self.smallest = 0  # binary exponents of the values met

    def value(self, node: Node, env: Environment) -> Any:
        """The mpf or mpc of a node."""
        kind, args, mp = node.kind, node.args, self.mp
        if kind == "number":
            return self._fraction(node.value)  # type: ignore[arg-type]
        if kind == "symbol":
            if node.value not in env:
                raise Undecided(f"the symbol {node.value} has no value")
            return self._fraction(env[node.value])  # type: ignore[index]
        if kind == "constant":
            if node.value == "inf":
                raise Undecided("infinity inside of an expression")
            return {"pi": mp.pi, "e": mp.e, "i": mp.j}[node.value] * 1  # type: ignore[index]
        if kind == "neg":
            return -self.value(args[0], env)
        if kind == "add":
            total = self.value(args[0], env)
            for arg in args[1:]:
                total = total + self.value(arg, env)
            return total
        if kind == "mul":
            product = self.value(args[0], env)
            for arg in args[1:]:
                product = product * self.value(arg, env)
            return self._seen(product)
        if kind in ("div", "frac"):
            bottom = self.value(args[1], env)
            if bottom == 0:
                raise Undecided("division by zero")
            return self._seen(self.value(args[0], env) / bottom)
        if kind == "pow":
            return self._power(args, env)
        if kind == "root":
            return self._root(self.value(args[0], env), exact(args[1], env, self.limits))
        if kind == "percent":
            return self.value(args[0], env) / 100
        if kind == "degree":
            return self.value(args[0], env) * mp.pi / 180
        if kind in ("based", "unit"):
            return self.value(args[0], env)
        if kind == "factorial":
            argument = self.value(args[0], env)
            if abs(argument) > 1000:
                raise TooLarge("a factorial of a large number that is no integer")
            if _is_real(argument) and argument < 0 and argument == mp.floor(argument):
                raise Undecided("a factorial of a negative integer")
            return self._seen(mp.gamma(argument + 1))
        if kind == "call":
            return self._call(node, env)
        if kind == "big":
            return _series(node, env, self.limits, lambda n, e, _: self.value(n, e), mp.mpf(0), mp.mpf(1))
        raise Undecided(f"a {kind} has no value")

    def _fraction(self, value: Fraction) -> Any:
        if value.numerator.bit_length() > self.limits.bits:
            raise NeedsWorker("a large number")
        return self._seen(self.mp.mpf(value.numerator) / value.denominator)

    def _seen(self, value: Any) -> Any:
        """Keeps the binary exponent of a value, so that the precision can follow the magnitudes."""
        if value:
            exponent = self.mp.mag(value)
            if exponent > self.largest:
                self.largest = int(exponent)
            elif exponent < self.smallest:
                self.smallest = int(exponent)
        return value

    def _power(self, args: tuple[Node, ...], env: Environment) -> Any:
        mp = self.mp
        if args[0] == _E:
            return self._exponential(self.value(args[1], env))
        base = self.value(args[0], env)
        try:
            exponent: Fraction | None = exact(args[1], env, self.limits)
        except NotRational:
            exponent = None
        if exponent is not None:
            if base == 0:
                if exponent < 0:
                    raise Undecided("division by zero")
                return mp.mpf(int(exponent == 0))
            if abs(int(mp.mag(base)) * exponent) > 10**7 or exponent.numerator.bit_length() > 200:
                raise TooLarge("a power too large to evaluate")
            if exponent.denominator == 1:
                return self._seen(base ** int(exponent))
            return self._seen(self._root(base, Fraction(exponent.denominator)) ** exponent.numerator)
        power = self.value(args[1], env)
        if base == 0:
            raise Undecided("a power of zero")
        if self.real and _is_real(base) and base < 0:
            raise OutsideDomain
        return self._exponential(power * mp.log(base))

    def _root(self, value: Any, degree: Fraction) -> Any:
        mp = self.mp
        if degree == 0:
            raise Undecided("a zeroth root")
        if degree.denominator != 1 or degree < 0 or degree > 10**6:
            if self.real and _is_real(value) and value < 0:
                raise OutsideDomain
            return value ** (mp.mpf(degree.denominator) / degree.numerator)
        if _is_real(value) and value < 0:
            if degree % 2 == 1:
                return -mp.root(-value, int(degree))
            if self.real:
                raise OutsideDomain
        return mp.sqrt(value) if degree == 2 else mp.root(value, int(degree))

    def _exponential(self, argument: Any) -> Any:
        if abs(argument) > 10**7:
            raise TooLarge("an exponential too large to evaluate")
        return self._seen(self.mp.exp(argument))

    def _call(self, node: Node, env: Environment) -> Any:
        mp, name = self.mp, str(node.value)
        if name == "det":
            return _determinant([self.value(arg, env) for arg in node.args[0].args], node.args[0].value)
        values = [self.value(arg, env) for arg in node.args]
        if name.startswith("opaque "):
            total = mp.mpf(zlib.crc32(name.encode()) % 997) / 991
            for place, value in enumerate(values, 1):
                total = total + mp.cos(value * (mp.mpf(zlib.crc32(name.encode()) % 89) / 83 + place))
            return total
        if any(abs(value) > mp.mpf(10) ** 60 for value in values):
            raise TooLarge(f"{name} of a number too large")
        first = values[0]
        if name in ("ln", "log"):
            if first == 0:
                raise Undecided("a logarithm of zero")
            if self.real and _is_real(first) and first < 0:
                raise OutsideDomain
            base = values[1] if len(values) == 2 else mp.mpf(10) if name == "log" and self.log_base == "10" else None
            return mp.log(first) if base is None else mp.log(first) / mp.log(base)
        if name == "exp":
            return self._exponential(first)
        if name == "abs":
            return abs(first)
        if name in ("floor", "ceil"):
            return getattr(mp, name)(first)
        if name in ("max", "min") and all(_is_real(value) for value in values):
            return max(values) if name == "max" else min(values)
        if name == "binom" and all(abs(value) < 10**5 for value in values):
            return mp.binomial(*values)
        if name in ("Re", "Im"):
            return mp.re(first) if name == "Re" else mp.im(first)
        if name == "arg":
            return mp.arg(first)
        function = _MP_FUNCTIONS.get(name)
        if function is None or len(values) != 1:
            raise Undecided(f"the function {name} is not evaluated")
        if self.real and name in ("arcsin", "arccos") and _is_real(first) and abs(first) > 1:
            raise OutsideDomain
        try:
            return self._seen(getattr(mp, function)(first))
        except (ZeroDivisionError, ValueError) as error:
            raise Undecided(f"{name} outside of its domain") from error


_E = Node("constant", (), "e")
_MP_FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "sgn": "sign",
}  # fmt: skip


def _is_real(value: Any) -> bool:
    return not hasattr(value, "_mpc_") or value.imag == 0
