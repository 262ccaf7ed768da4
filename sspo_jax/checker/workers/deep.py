"""What a worker does with a check that the caller's process passes on: large limits, then sympy. Imports sympy.

sympy objects are built from our own tree, node by node; no text ever reaches sympy's parser, which evaluates code.
"""

from typing import Any

import sympy

from ..decide import Decision, decide_deeply
from ..evaluate.values import free_symbols
from ..expression import Kind, Node, ParseError, Undecided, names
from ..parse.reading import read
from ..verdict import Options


def decide_with_sympy(answer: str, gold: str, options: Options) -> Decision:
    """The status and reason, first by the bounded arithmetic with large limits, then by sympy."""
    status, reason = decide_deeply(answer, gold, options)
    if status in ("correct", "wrong"):
        return status, reason
    try:
        tree, gold_tree = read(answer), read(gold)
    except (ParseError, RecursionError):
        return status, reason
    if not any(part.kind == Kind.BIG or _is_condition(part) for part in tree.walk() + gold_tree.walk()):
        return status, reason  # out of reach of the bounded arithmetic is out of reach of sympy as well
    try:
        if tree.kind in _SETS or gold_tree.kind in _SETS:
            equal = _solution_set(tree) == _solution_set(gold_tree)
        else:
            equal = _equal_expressions(to_sympy(tree), to_sympy(gold_tree))
    except (Undecided, NotImplementedError, TypeError, ValueError, ZeroDivisionError, RecursionError, AttributeError):
        return status, reason
    return ("correct", "equal by sympy") if equal else ("wrong", "different by sympy")


def warm_up() -> None:
    """Decide a few checks, so that what sympy loads and caches at first use is there before a worker is forked.

    The first limit costs a fresh worker some 90 ms otherwise, a second on a busy machine, and that of its time limit.
    """
    for answer, gold in _FIRST:
        decide_with_sympy(answer, gold, Options())


def _equal_expressions(first: sympy.Expr, second: sympy.Expr) -> bool:
    difference = (first - second).doit()
    if difference.is_zero:
        return True
    if not difference.free_symbols:
        value = sympy.N(difference, 40)
        if value.is_number and abs(value) > 1e-25:
            return False
    return bool(sympy.simplify(difference) == 0)


def _is_condition(node: Node) -> bool:
    return node.kind in (Kind.RELATION, Kind.BUILDER)


_FIRST = (
    (r"\lim_{x \to 0} \frac{\sin x}{x}", "1"),
    (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\sum_{k=1}^{\infty} \frac{1}{k^2}", r"\frac{\pi^2}{6}"),
)
"""A limit, an integral, a sum: what loads most of sympy."""
_SETS = (Kind.RELATION, Kind.LIST, Kind.UNION, Kind.GROUP, Kind.BUILDER, Kind.REALS, Kind.INTERSECTION,
         Kind.DIFFERENCE, Kind.SET)  # fmt: skip
_RELATIONS = {"<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge, "=": sympy.Eq, "!=": sympy.Ne}


def _solution_set(node: Node) -> sympy.Set:
    """The set of reals that an answer describes, conditions solved."""
    kind, args = node.kind, node.args
    if kind == Kind.GROUP and len(args) == 2:
        low, high = (to_sympy(arg) for arg in args)
        return sympy.Interval(low, high, node.value[0] == "(", node.value[1] == ")")
    if kind == Kind.SET:
        return sympy.FiniteSet(*(to_sympy(arg) for arg in args))
    if kind == Kind.REALS:
        return sympy.S.Reals
    if kind == Kind.EMPTYSET:
        return sympy.S.EmptySet
    if kind == Kind.BUILDER:
        return _solution_set(args[1])
    if kind in (Kind.UNION, Kind.LIST):
        parts = [_solution_set(arg) for arg in args]
        return sympy.Intersection(*parts) if node.value == "and" else sympy.Union(*parts)
    if kind == Kind.INTERSECTION:
        return sympy.Intersection(*(_solution_set(arg) for arg in args))
    if kind == Kind.DIFFERENCE:
        return _solution_set(args[0]) - _solution_set(args[1])
    if kind == Kind.RELATION:
        if len(free_symbols(node)) != 1:
            raise Undecided("a condition on more than one variable")
        variable = sympy.Symbol(free_symbols(node).pop(), real=True)
        triples = zip(args, node.value, args[1:], strict=False)
        return sympy.Intersection(*(_solutions(*triple, variable) for triple in triples))
    raise Undecided(f"a {kind} is no set")


def _solutions(left: Node, operator: str, right: Node, variable: sympy.Symbol) -> sympy.Set:
    """The real solutions of one relation."""
    if operator == "in":
        return _solution_set(right)
    relation = _RELATIONS[operator](to_sympy(left, real=True), to_sympy(right, real=True))
    if relation in (sympy.true, sympy.false):
        return sympy.S.Reals if relation == sympy.true else sympy.S.EmptySet
    if operator in ("=", "!="):
        points = sympy.solveset(sympy.Eq(relation.lhs, relation.rhs), variable, sympy.S.Reals)
        return points if operator == "=" else sympy.S.Reals - points
    return sympy.solve_univariate_inequality(relation, variable, relational=False)


_ARITHMETIC: dict[Kind, Any] = {
    Kind.ADD: sympy.Add, Kind.MUL: sympy.Mul, Kind.POW: sympy.Pow, Kind.FACTORIAL: sympy.factorial,
    Kind.NEG: lambda value: -value, Kind.DIV: lambda top, bottom: top / bottom,
    Kind.FRAC: lambda top, bottom: top / bottom, Kind.PERCENT: lambda value: value / 100,
    Kind.DEGREE: lambda value: value * sympy.pi / 180, Kind.BASED: lambda value: value,
    Kind.ROOT: lambda value, degree: (sympy.real_root if degree.is_odd else sympy.root)(value, degree),
}  # fmt: skip
_FUNCTIONS: dict[str, Any] = {
    "ln": sympy.log, "exp": sympy.exp, "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "max": sympy.Max,
    "min": sympy.Min, "gcd": sympy.gcd, "lcm": sympy.lcm, "binom": sympy.binomial, "arcsin": sympy.asin,
    "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot, "arcsec": sympy.asec, "arccsc": sympy.acsc,
    "arcsinh": sympy.asinh, "arccosh": sympy.acosh, "arctanh": sympy.atanh, "Re": sympy.re, "Im": sympy.im,
    **{name: getattr(sympy, name) for name in names(
        "sin cos tan cot sec csc sinh cosh tanh coth sech csch arg log"
    )},
}  # fmt: skip


def to_sympy(node: Node, *, real: bool = False) -> Any:
    """The sympy expression of a tree of arithmetic.

    Raises:
        Undecided: a node that is no arithmetic.
    """
    kind = node.kind
    if kind == Kind.NUMBER:
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if kind == Kind.SYMBOL:
        return sympy.Symbol(node.value, real=True if real else None)
    if kind == Kind.CONSTANT:
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}[node.value]
    if kind == Kind.BIG:
        return _big(node, real)
    function = _FUNCTIONS.get(node.value) if kind is Kind.CALL else _ARITHMETIC.get(kind)
    if function is not None:
        return function(*(to_sympy(arg, real=real) for arg in node.args))
    raise Undecided(f"a {kind} is not read into sympy")


def _big(node: Node, real: bool) -> Any:
    """Sums, products, limits; integrals whose last factor is a differential."""
    name, has_lower, has_upper = node.value
    if name in ("sum", "prod") and has_lower and has_upper and node.args[1].kind == Kind.RELATION:
        body, bounds, upper = node.args
        variable = to_sympy(bounds.args[0], real=real)
        limits = (variable, to_sympy(bounds.args[1], real=real), to_sympy(upper, real=real))
        operation = sympy.Sum if name == "sum" else sympy.Product
        return operation(to_sympy(body, real=real), limits).doit()
    if name == "lim" and has_lower and node.args[1].kind == Kind.RELATION and node.args[1].value == ("to",):
        variable, target = (to_sympy(arg, real=real) for arg in node.args[1].args)
        return sympy.limit(to_sympy(node.args[0], real=real), variable, target)
    if name == "int" and node.args[0].kind == Kind.MUL and len(node.args[0].args) >= 3:
        *factors, d, variable = node.args[0].args
        if d == Node(Kind.SYMBOL, (), "d") and variable.kind == Kind.SYMBOL and has_lower and has_upper:
            body = sympy.Mul(*(to_sympy(factor, real=real) for factor in factors))
            symbol = to_sympy(variable, real=real)
            return sympy.integrate(body, (symbol, *(to_sympy(arg, real=real) for arg in node.args[1:])))
    raise Undecided(f"\\{name} of this form is not evaluated")
