"""The value of an expression tree to as many decimal digits as are asked for, real or complex; mpmath does the work."""

import threading
import zlib
from fractions import Fraction
from typing import Any

from ..expression import Kind, Node, Undecided
from ..limits import Limits, NeedsWorker, NotRational, OutsideDomain, TooLarge
from .rational import Environment, determinant, exact, series

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
        """The mpf of a node, or its mpc where it is not real."""
        value = self._value(node, env)
        return value.real if hasattr(value, "_mpc_") and value.imag == 0 else value

    def _value(self, node: Node, env: Environment) -> Any:
        kind, args, mp = node.kind, node.args, self.mp
        if kind == Kind.NUMBER:
            return self._fraction(node.value)
        if kind == Kind.SYMBOL:
            if node.value not in env:
                raise Undecided(f"the symbol {node.value} has no value")
            return self._fraction(env[node.value])
        if kind == Kind.CONSTANT:
            if node.value == "inf":
                raise Undecided("infinity inside of an expression")
            return {"pi": mp.pi, "e": mp.e, "i": mp.j}[node.value] * 1
        if kind == Kind.NEG:
            return -self.value(args[0], env)
        if kind == Kind.ADD:
            total = self.value(args[0], env)
            for arg in args[1:]:
                total = total + self.value(arg, env)
            return total
        if kind == Kind.MUL:
            product = self.value(args[0], env)
            for arg in args[1:]:
                product = product * self.value(arg, env)
            return self._seen(product)
        if kind in (Kind.DIV, Kind.FRAC):
            bottom = self.value(args[1], env)
            if bottom == 0:
                raise Undecided("division by zero")
            return self._seen(self.value(args[0], env) / bottom)
        if kind == Kind.POW:
            return self._power(args, env)
        if kind == Kind.ROOT:
            return self._root(self.value(args[0], env), exact(args[1], env, self.limits))
        if kind == Kind.PERCENT:
            return self.value(args[0], env) / 100
        if kind == Kind.DEGREE:
            return self.value(args[0], env) * mp.pi / 180
        if kind in (Kind.BASED, Kind.UNIT):
            return self.value(args[0], env)
        if kind == Kind.FACTORIAL:
            argument = self.value(args[0], env)
            if abs(argument) > 1000:
                raise TooLarge("a factorial of a large number that is no integer")
            if _is_real(argument) and argument < 0 and argument == mp.floor(argument):
                raise Undecided("a factorial of a negative integer")
            return self._seen(mp.gamma(argument + 1))
        if kind == Kind.CALL:
            return self._call(node, env)
        if kind == Kind.BIG:
            return series(node, env, self.limits, lambda n, e, _: self.value(n, e), mp.mpf(0), mp.mpf(1))
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
            return determinant([self.value(arg, env) for arg in node.args[0].args], node.args[0].value)
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
        if name == "cis":
            return mp.cos(first) + mp.j * mp.sin(first)
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
            if name in _SATURATING and abs(first) > 1:  # how far from its limit it is sets the precision
                self._seen(mp.exp(-2 * abs(first)) if name in ("tanh", "coth") else 1 / first)
            value = getattr(mp, function)(first)
        except (ZeroDivisionError, ValueError) as error:
            raise Undecided(f"{name} outside of its domain") from error
        return self._seen(self._periodic(name, value, first) if name in _PERIODIC else value)

    def _periodic(self, name: str, value: Any, argument: Any) -> Any:
        """Zero at a zero, undecided at a pole; both are met up to the rounding of the argument: cos(pi / 2) is 0."""
        rounding = self.mp.mpf(10) ** (8 - self.digits) * abs(argument)
        if abs(value) <= rounding:
            return self.mp.mpf(0)
        if abs(value) * rounding >= 1:
            raise Undecided(f"{name} at a pole")
        return value


_PERIODIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_SATURATING = ("tanh", "coth", "arctan", "arccot")
_E = Node(Kind.CONSTANT, (), "e")
_MP_FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "sgn": "sign",
}  # fmt: skip


def _is_real(value: Any) -> bool:
    return not hasattr(value, "_mpc_")


_STEPS = 200  # of an integral that is only estimated


def estimated_integral(node: Node, limits: Limits) -> Node | None:
    """The value of `\\int_a^b f\\,dx` to some three digits, to see whether a stated value can be right."""
    if node.kind is not Kind.BIG or node.value != ("int", True, True) or node.args[0].kind is not Kind.MUL:
        return None
    *factors, d, variable = node.args[0].args
    if d != Node(Kind.SYMBOL, (), "d") or variable.kind is not Kind.SYMBOL:
        return None
    body = Node(Kind.MUL, tuple(factors)) if factors else Node(Kind.NUMBER, (), Fraction(1))
    numeric = Numeric(15, limits, real=True)
    try:
        low, high = (Fraction(float(numeric.value(bound, {}))) for bound in node.args[1:])
        step = (high - low) / _STEPS
        points = [low + step * (2 * index + 1) / 2 for index in range(_STEPS)]
        total = sum(float(numeric.value(body, {variable.value: point})) for point in points)
    except (Undecided, NotRational, OutsideDomain, TypeError, OverflowError, ValueError):
        return None
    return Node(Kind.NUMBER, (), Fraction(total) * step)
