"""The parser: precedence, units, conditions, and what it refuses."""

import pytest

from sspo_jax.checker.decide import describe
from sspo_jax.checker.evaluate.rational import exact
from sspo_jax.checker.expression import Kind, ParseError, symbol
from sspo_jax.checker.limits import IN_PROCESS
from sspo_jax.checker.parse.parser import END, Parser
from sspo_jax.checker.parse.reading import read, readings
from sspo_jax.checker.parse.tokens import tokenize
from sspo_jax.checker.parse.units import NO_UNIT, UNITS, counted_noun, is_describing, known_unit
from sspo_jax.checker.parse.words import spoken_number


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1+2*3", "add(number 1, mul(number 2, number 3))"),
        ("-2^2", "neg(pow(number 2, number 2))"),
        ("2^{3^2}", "pow(number 2, pow(number 3, number 2))"),
        ("a/b/c", "div(div(symbol a, symbol b), symbol c)"),
        ("a/bc", "mul(div(symbol a, symbol b), symbol c)"),
        ("ab^2", "mul(symbol a, pow(symbol b, number 2))"),
        (r"\sin 2x+1", "add(call sin(mul(number 2, symbol x)), number 1)"),
        (r"\sin^2 x", "pow(call sin(symbol x), number 2)"),
        (r"\sin^{-1} x", "call arcsin(symbol x)"),
        (r"\frac12 3", "mul(frac(number 1, number 2), number 3)"),
        (r"2\frac12", "add(number 2, frac(number 1, number 2))"),
        (r"\sqrt[3]{x}", "root(symbol x, number 3)"),
        ("5!", "factorial(number 5)"),
        ("2:3", "ratio(number 2, number 3)"),
        ("(1,2]", "group (](number 1, number 2)"),
        (r"A\cup B\cap C", "intersection(union(symbol A, symbol B), symbol C)"),
        ("x=1, y=2", "list ,(relation ('=',)(symbol x, number 1), relation ('=',)(symbol y, number 2))"),
        (r"1\le x<2", "relation ('<=', '<')(number 1, symbol x, number 2)"),
        (r"p\land q\lor r", "logic lor(logic land(symbol p, symbol q), symbol r)"),
        (r"\pm\sqrt2", "pm(root(number 2, number 2))"),
        ("f(x+1)", "call opaque f(add(symbol x, number 1))"),
        ("x(y+1)", "mul(symbol x, add(symbol y, number 1))"),
        ("P(X=2)", "call opaque P(relation ('=',)(symbol X, number 2))"),
        (r"\frac{dy}{dx}", "symbol y'|x"),
        (r"\frac{d^2y}{dx^2}", "symbol y''|x"),
        (r"\frac{\partial u}{\partial t}", "symbol u'|partial t"),
        ("dy/dx", "symbol y'|x"),
        ("y''", "symbol y''"),
        (r"\ddot{y}", "symbol y''"),
        ("C_5^2", "call binom(number 5, number 2)"),
        (r"\{x\mid x>2\}", "builder(symbol x, relation ('>',)(symbol x, number 2))"),
        ("|x|", "call abs(symbol x)"),
        (r"17\bmod5=2", "relation ('=',)(modulo(number 17, number 5), number 2)"),
        (r"\text{yes}", "text yes"),
        ("(B)", "choice B"),
        ("101_2", "based 2(number 5)"),
    ],
)
def test_tree(text: str, tree: str):
    assert describe(read(text)) == tree


@pytest.mark.parametrize(
    "text",
    [
        "1+", "(1", "1)", "{1", r"\frac{1}", "x^", "x_", "1 2", r"\unknown{2}", r"\begin{pmatrix}1", "=", "*3",
        r"\sqrt",
        r"\frac{d}{dx}x^2", r"\frac{d(x^2)}{dx}", "5!!", r"\begin{pmatrix}1&2\\3\end{pmatrix}", "|3", "9_8x",
    ],
)  # fmt: skip
def test_refused(text: str):
    with pytest.raises(ParseError):
        read(text)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (r"5\text{ cm}", "cm"), (r"5\,\mathrm{cm}", "cm"), ("5 cm", "cm"), (r"5\times10^{-7}\text{ J}", "J"),
        (r"\frac32\text{ V}", "V"), (r"5\pi\,\mathrm{m}", "m"), (r"3\sqrt2\mathrm{~s}", "s"),
        (r"5\,\mu\mathrm{m}", "um"),
        (r"5\text{ miles}", "mi"), (r"5\,\Omega", "ohm"), (r"5\,\mathrm{k\Omega}", "kohm"), ("5元", "yuan"),
        (r"5\text{ foot}", "feet"), (r"5 (\text{ cm })", "cm"), (r"5\text{ kg}", "kg"), (r"(1+2)\text{ kg}", "kg"),
    ],
)  # fmt: skip
def test_unit(text: str, unit: str):
    tree = read(text)
    assert tree.kind is Kind.UNIT
    assert tree.value == UNITS[unit]


@pytest.mark.parametrize(
    ("text", "dimensions"),
    [
        (r"5\text{ m/s}", {"metre": 1, "second": -1}),
        (r"5\text{ m s}^{-2}", {"metre": 1, "second": -2}),
        (r"5\,\mathrm{kg\,m^2/s^2}", {"gram": 1, "metre": 2, "second": -2}),
        (r"5\text{ J/(mol K)}", {"gram": 1, "metre": 2, "second": -2, "mole": -1, "kelvin": -1}),
        (r"5\text{ square feet}", {"metre": 2}),
        (r"5\text{ cm cubed}", {"metre": 3}),
        (r"5\text{ miles per hour}", {"metre": 1, "second": -1}),
        (r"5\times10^{13}/\mathrm{cm}^3", {"metre": -3}),
        (r"5\text{ dollars per pound}", {"dollar": 1, "gram": -1}),
        (r"5\text{ red apples}", {"apple": 1, "red": 1}),
        ("5平方米", {"metre": 2}),
    ],
)
def test_dimensions(text: str, dimensions: dict[str, int]):
    tree = read(text)
    assert tree.kind is Kind.UNIT
    assert dict(tree.value.dimensions) == dimensions


@pytest.mark.parametrize(
    "words",
    [
        "is wrong", "is not the answer", "squared", "factorial", "pi", "root two", "negative", "less than x",
        "at least",
        "maximum", "maybe eight", "or so", "minus one", "choose two", "times x", "modulo 9", "plus",
        "over two", "doubled",
    ],
)  # fmt: skip
def test_words_that_are_no_unit(words: str):
    assert read(rf"7\text{{ {words}}}").kind in (Kind.TEXT, Kind.LIST)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5万", 50_000), ("3亿", 300_000_000), ("5百", 500), (r"2\text{ dozen}", 24), (r"3\text{ million}", 3_000_000),
    ],
)  # fmt: skip
def test_multipliers(text: str, value: int):
    assert exact(read(text), {}, IN_PROCESS) == value


@pytest.mark.parametrize(
    "text", [r"\frac{mg}{k}", r"\sqrt{\frac{GM}{r}}", "mn(m+n)", r"\frac{Mm}{M+m}", "cm+d", "m^2n", "kg", "ft"]
)
def test_products_of_letters_are_no_units(text: str):
    assert all(part.kind not in (Kind.UNIT, Kind.TEXT) for tree in readings(text) for part in tree.walk())


@pytest.mark.parametrize(
    "text", [r"3+5\text{i}", r"3\text{x}+2", r"e^{2\text{i}}", r"\sqrt{4\text{i}}", r"2\mathrm{n}+1", r"\text{3x+2}"]
)
def test_letters_in_text_are_variables(text: str):
    plain = (
        text.replace(r"\text", "").replace(r"\mathrm", "").replace("{i}", "i").replace("{x}", "x").replace("{n}", "n")
    )
    assert describe(read(text)) == describe(read(plain.strip("{}") if plain.startswith("{") else plain))


def test_two_readings():
    kinds = [tree.kind for tree in readings("2kg")]
    assert kinds == [Kind.UNIT, Kind.MUL]
    assert len(readings("1,234")) == 2
    assert len(readings("12")) == 1


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        (r"k\pi, k\in\mathbb{Z}", 1), (r"k\pi\ (k\in\mathbb{Z})", 1), (r"n^2\text{ for }n\ge1", 1),
        ("x^2, x>0, x<5", 2),
        (r"(a,b)=(2,3), \text{ where }a<b", 1), (r"f(x)=ax, a\in\mathbb{R}", 1), (r"x=2k\pi, k=0,1", 0),
        ("x>0, x<1", 0),
        ("x=1, y=2", 0), ("1,2", 0),
    ],
)  # fmt: skip
def test_conditions(text: str, conditions: int):
    tree = read(text)
    assert (len(tree.args) - 1 if tree.kind is Kind.CONDITIONED else 0) == conditions


def test_pieces():
    tree = read(r"\begin{cases}x & \text{if } x>0\\ -x & \text{otherwise}\end{cases}")
    assert tree.kind is Kind.CASES
    assert [piece.args[0] for piece in tree.args] == [symbol("x"), read("-x")]
    assert read(r"\begin{cases}x=1\\y=2\end{cases}").kind is Kind.LIST


def test_a_parser_reads_its_tokens_once():
    parser = Parser(tokenize("x+1"), max_depth=10)
    parser.answer()
    assert parser.peek() == END
    with pytest.raises(ParseError, match="nest deeper than 3"):
        Parser(tokenize("((((1))))"), max_depth=3).answer()
    with pytest.raises(ParseError, match="expected a value, found 'the end'"):
        Parser(tokenize("1+"), max_depth=3).answer()


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("seven", 7), ("twenty-one", 21), ("one hundred", 100), ("one hundred and five", 105),
        ("two thousand ten", 2010),
        ("three million", 3_000_000), ("hundred", 100), ("two three", None), ("apples", None), ("", None),
        ("and", None),
        ("nineteen hundred", 1900),
    ],
)  # fmt: skip
def test_spoken_numbers(words: str, value: int | None):
    assert spoken_number(words) == value


def test_the_table_of_units():
    assert known_unit("cm") == UNITS["centimeter"]
    assert known_unit("Meters") == UNITS["m"]
    assert known_unit("M") != known_unit("m")
    assert known_unit("N") == UNITS["newton"]
    assert known_unit("n") is None
    assert known_unit("apples") is None
    assert counted_noun("apples") == counted_noun("apples")
    assert counted_noun("apple") is None
    assert counted_noun("boxes") != counted_noun("foxes")
    assert counted_noun("is") is None
    assert counted_noun("perhaps") is None
    assert is_describing("red")
    assert not is_describing("less")
    assert UNITS["m"].times(UNITS["m"], -1) == NO_UNIT
