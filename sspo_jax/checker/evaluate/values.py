"""Whether two expressions have the same value: exactly for rational ones, else by evaluation to many digits.

Closed expressions that are not both rational agree when they agree to 40 digits beyond the range of magnitudes inside
them. Expressions in variables agree when they agree at random points: in exact arithmetic where both are rational
functions, so a false agreement has a chance below 1e-15; as real functions on the points where both are defined.
"""

import functools
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ..expression import Kind, Node, Undecided
from ..limits import Limits, NeedsWorker, NotRational, OutsideDomain, TooLarge
from ..verdict import Options
from .numeric import Numeric
from .rational import exact

_POINTS = 6
_FEWEST_POINTS = 2  # where both sides are defined; below that nothing is concluded
_LONG_DECIMAL = 13  # a decimal of so many digits may stand for an irrational number
_BASE_DIGITS = 50


def free_symbols(node: Node) -> set[str]:
    """The names of the variables in an expression (the index of a sum is not one)."""
    bound = {
        n.args[1].args[0].value
        for n in node.walk()
        if n.kind == Kind.BIG and n.value[1] and n.args[1].kind == Kind.RELATION
    }
    return {n.value for n in node.walk() if n.kind == Kind.SYMBOL} - bound


def equal_values(answer: Node, gold: Node, options: Options, limits: Limits) -> bool:
    """Whether two expressions are equal; `gold` is the one that a relative tolerance refers to.

    Raises:
        Undecided: one of them has no value within the limits.
    """
    if answer == gold:
        return True
    for node in (answer, gold):
        if len(node.walk()) > limits.nodes:
            raise NeedsWorker("a large expression")
    infinite = [_infinity(node) for node in (answer, gold)]
    if any(infinite):
        return infinite[0] == infinite[1]
    names = tuple(sorted(free_symbols(answer) | free_symbols(gold)))
    if names:
        return _equal_functions(answer, gold, names, limits)
    return _equal_constants(answer, gold, options, limits)


def _infinity(node: Node) -> int:
    if node.kind == Kind.CONSTANT and node.value == "inf":
        return 1
    return -_infinity(node.args[0]) if node.kind == Kind.NEG else 0


def exact_value(node: Node, limits: Limits) -> Fraction | None:
    """The rational value of a closed expression, None where it has none that this arithmetic can show."""
    try:
        return exact(node, {}, limits)
    except NotRational:
        return None


def _equal_constants(answer: Node, gold: Node, options: Options, limits: Limits) -> bool:
    left, right = exact_value(answer, limits), exact_value(gold, limits)
    relative, absolute = options.relative_tolerance, options.absolute_tolerance
    if left is not None and right is not None:
        if left == right:
            return True
        allowed = max(Fraction(relative or 0) * abs(right), Fraction(absolute or 0))
        return bool(allowed) and abs(left - right) <= allowed
    if relative or absolute:
        numeric = Numeric(30, limits, real=False)
        first, second = numeric.value(answer, {}), numeric.value(gold, {})
        return bool(abs(first - second) <= max((relative or 0) * abs(second), absolute or 0))
    for node, other in ((answer, right), (gold, left)):
        if node.kind == Kind.NUMBER and (node.digits or 0) >= _LONG_DECIMAL and other is None:
            return _rounds_to(node, gold if node is answer else answer, limits)
    bases = _log_bases(_both(answer, gold))
    return any(_equal_numerically(answer, gold, {}, limits, False, base) for base in bases)


def _both(first: Node, second: Node) -> list[Node]:
    return first.walk() + second.walk()


def _rounds_to(decimal: Node, other: Node, limits: Limits) -> bool:
    """Whether a long decimal is the other value, rounded or cut to the decimal's digits."""
    value: Fraction = decimal.value
    if (decimal.digits or 0) > limits.digits:
        raise NeedsWorker("a long decimal") if limits.digits < 10_000 else TooLarge("a decimal of too many digits")
    numeric = Numeric(_BASE_DIGITS + (decimal.digits or 0), limits, real=False)
    difference = abs(numeric.value(other, {}) - numeric.value(decimal, {}))
    magnitude = abs(value) or Fraction(1)
    step = Fraction(1)
    while step * 10 <= magnitude:
        step *= 10
    while step > magnitude:
        step /= 10
    last_place = step / Fraction(10) ** ((decimal.digits or 1) - 1)
    return bool(difference <= numeric.mp.mpf(last_place.numerator) / last_place.denominator)


def _equal_numerically(
    answer: Node, gold: Node, env: dict[str, Fraction], limits: Limits, real: bool, log_base: str
) -> bool:
    digits = _BASE_DIGITS
    for attempt in range(3):
        numeric = Numeric(digits, limits, real=real, log_base=log_base)
        first, second = numeric.value(answer, env), numeric.value(gold, env)
        span = int((numeric.largest - numeric.smallest) * 0.30103) + 1
        wanted = _BASE_DIGITS + span
        is_enough = wanted <= digits + 5
        if not is_enough and wanted > limits.digits:
            raise TooLarge("magnitudes too far apart") if wanted > 20_000 else NeedsWorker("magnitudes far apart")
        if is_enough or attempt == 2:
            return bool(abs(first - second) <= numeric.mp.ldexp(numeric.mp.mpf(10) ** -40, numeric.smallest))
        digits = wanted
    raise AssertionError("the last attempt returns")


@functools.lru_cache(maxsize=256)
def _whole_points(names: tuple[str, ...]) -> list[dict[str, Fraction]]:
    """Integer points, for functions of whole numbers."""
    generator = random.Random(1009)
    return [{name: Fraction(generator.randint(1, 60 + 40 * index)) for name in names} for index in range(2 * _POINTS)]


@functools.lru_cache(maxsize=256)
def _points(names: tuple[str, ...]) -> list[dict[str, Fraction]]:
    """The same pseudo-random rational points for the same names, of both signs and around one."""
    generator = random.Random(20511)
    points = []
    for index in range(3 * _POINTS):
        point = {}
        for name in names:
            sign = (1, -1, generator.choice((1, -1)))[index % 3]
            point[name] = sign * Fraction(generator.randint(101, 3989), generator.choice((997, 1009, 1013, 1019, 1021)))
        points.append(point)
    return points


@functools.lru_cache(maxsize=256)
def _wide_points(names: tuple[str, ...]) -> list[dict[str, Fraction]]:
    """Points further out, integers among them, where functions in pieces such as |x - 5| show their other pieces."""
    generator = random.Random(4256)
    points = []
    for index in range(9):
        most, bottom = (9, 70, 2000)[index % 3], 1 if index >= 6 else 7
        sign = 1 if index % 2 else -1
        points.append({name: Fraction(sign * generator.randint(2 * bottom, most * bottom), bottom) for name in names})
    return points


def _is_in_pieces(node: Node) -> bool:
    return any(
        (part.kind == Kind.CALL and part.value in _PIECEWISE)
        or part.kind == Kind.ROOT
        or (part.kind == Kind.POW and part.args[1].kind != Kind.NUMBER)
        or (part.kind == Kind.POW and part.args[1].value.denominator != 1)
        for part in node.walk()
    )


_PIECEWISE = frozenset(["abs", "floor", "ceil", "max", "min", "sgn", "gcd", "lcm", "arcsin", "arccos", "arctan"])


Point = dict[str, Fraction]
_WHOLE = frozenset("ijklmnpqKLMN")


def _is_of_whole_numbers(node: Node) -> bool:
    """Whether a function is one of whole numbers where its variables may be: roundings, powers of a negative number."""
    return any(
        (part.kind is Kind.CALL and part.value in ("floor", "ceil"))
        or (part.kind is Kind.POW and _is_negative(part.args[0]) and part.args[1].kind is not Kind.NUMBER)
        for part in node.walk()
    )


def _is_negative(node: Node) -> bool:
    return node.kind is Kind.NEG and node.args[0].kind is Kind.NUMBER


def _is_formula_of_quantities(names: Sequence[str], nodes: list[Node]) -> bool:
    """Whether variables are physical quantities, thus positive: a root, three names, one of them a capital."""
    return len(names) > 2 and any(name[0].isupper() for name in names) and any(n.kind is Kind.ROOT for n in nodes)


def _equal_functions(answer: Node, gold: Node, names: tuple[str, ...], limits: Limits) -> bool:
    nodes = _both(answer, gold)
    points, wide = _points(names), _wide_points(names) if _is_in_pieces(answer) or _is_in_pieces(gold) else []
    if set(names) <= _WHOLE and (_is_of_whole_numbers(answer) or _is_of_whole_numbers(gold)):
        points, wide = _whole_points(names), []
    try:
        is_equal = _equal_rational_functions(answer, gold, points, limits)
        return is_equal and _agree(answer, gold, wide, limits, True, "e", fewest=0)
    except NotRational:
        pass
    real = not any(n.kind is Kind.CONSTANT and n.value == "i" for n in nodes)
    log_bases = _log_bases(nodes)
    if any(
        _agree(answer, gold, points, limits, real, base, fewest=_FEWEST_POINTS)
        and _agree(answer, gold, wide, limits, real, base, fewest=0)
        for base in log_bases
    ):
        return True
    if not real or not _is_formula_of_quantities(names, nodes):
        return False
    positive = [{name: abs(value) for name, value in point.items()} for point in points]
    return any(_agree(answer, gold, positive, limits, real, base, fewest=_FEWEST_POINTS) for base in log_bases)


def _log_bases(nodes: list[Node]) -> tuple[str, ...]:
    """What `\\log` without a base may mean in these expressions."""
    return ("e", "10") if any(n.kind is Kind.CALL and n.value == "log" and len(n.args) == 1 for n in nodes) else ("e",)


def _agree(
    answer: Node, gold: Node, points: Sequence[Point], limits: Limits, real: bool, log_base: str, *, fewest: int
) -> bool:
    """Whether they agree at the first points where both can be evaluated; Undecided where these are too few."""
    defined, problem = 0, None
    for point in points:
        try:
            if not _equal_numerically(answer, gold, point, limits, real, log_base):
                return False
        except OutsideDomain:
            continue
        except Undecided as error:
            if fewest and isinstance(error, NeedsWorker | TooLarge):
                raise
            problem = error
            continue
        defined += 1
        if fewest and defined >= _POINTS:
            break
    if defined >= fewest:
        return True
    if real and problem is None:
        return _agree(answer, gold, points, limits, False, log_base, fewest=fewest)
    raise Undecided(str(problem or "the expressions are defined together nowhere"))


def _equal_rational_functions(answer: Node, gold: Node, points: Sequence[Point], limits: Limits) -> bool:
    defined = 0
    for point in points:
        try:
            if exact(answer, point, limits) != exact(gold, point, limits):
                return False
        except (NeedsWorker, TooLarge):
            raise
        except Undecided:  # a pole
            continue
        defined += 1
        if defined >= 4:
            return True
    raise Undecided("the expressions are defined together nowhere")


def constant_ratio(first: Node, second: Node, limits: Limits) -> int:
    """The sign of the constant c with first = c * second as functions; 0 where there is none.

    Raises:
        Undecided: as `equal_values`.
    """
    names = tuple(sorted(free_symbols(first) | free_symbols(second)))
    ratios: list[Any] = []
    in_pieces = _is_in_pieces(first) or _is_in_pieces(second)
    points = [*_points(names)[:_POINTS], *(_wide_points(names) if in_pieces else ())]
    for point in points if names else [{}]:
        numeric = Numeric(_BASE_DIGITS, limits, real=False)
        try:
            bottom = numeric.value(second, point)
            top = numeric.value(first, point)
        except (NeedsWorker, TooLarge):
            raise
        except Undecided:
            continue
        if abs(bottom) < 1e-30 or abs(top) < 1e-30:
            return int(abs(bottom) < 1e-30 and abs(top) < 1e-30)
        ratios.append(top / bottom)
    if not ratios:
        raise Undecided("the relations are defined nowhere")
    if any(abs(ratio - ratios[0]) > abs(ratios[0]) * 1e-35 for ratio in ratios):
        return 0
    real = ratios[0].real
    return 0 if abs(ratios[0].imag) > 1e-35 * abs(real) else 1 if real > 0 else -1


def compare_reals(first: Node, second: Node, limits: Limits) -> int:
    """-1, 0 or 1 as the closed real expression `first` is below, equal to or above `second`; infinities included."""
    left, right = _infinity(first), _infinity(second)
    if left or right:
        return (left > right) - (left < right)
    exact_left, exact_right = exact_value(first, limits), exact_value(second, limits)
    if exact_left is not None and exact_right is not None:
        return (exact_left > exact_right) - (exact_left < exact_right)
    if _equal_numerically(first, second, {}, limits, False, "e"):
        return 0
    numeric = Numeric(_BASE_DIGITS, limits, real=True)
    difference = numeric.value(first, {}) - numeric.value(second, {})
    if getattr(difference, "imag", 0) != 0:
        raise Undecided("a complex number has no place on the real line")
    return 1 if difference > 0 else -1
