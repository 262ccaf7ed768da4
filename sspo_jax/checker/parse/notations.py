"""Notations that are read as a whole from the tokens at hand: derivatives, numbers of choices, repeating decimals."""

from ..expression import Kind, Node, ParseError, number, symbol
from .cursor import Cursor
from .numerals import repeating
from .tokens import Token
from .vocabulary import GREEK_OR_NAMED

_SIGNS_OF_NUMBERS = {"*": "*", "+": "+", "-": "-", ">0": "+", "ge1": "+", "ge0": " from 0", "<0": "-"}
_LONGEST_DERIVATIVE = 12  # tokens of each side, braces included


def derivative(cursor: Cursor) -> Node | None:
    """`{d^2 y}{dx^2}` after `\\frac`: one symbol, `y''|x`; None where that is no derivative."""
    start, groups = cursor.position, []
    for _ in range(2):
        group = cursor.tokens_in_braces(most=_LONGEST_DERIVATIVE)
        groups.append([token for token in group or () if token[1] not in "{}"])
    end, cursor.position = cursor.position, start
    if not all(groups):
        return None
    (top, *name_tokens), (bottom, *variable_tokens) = groups
    if bottom[1] not in ("d", "partial") or top[1] != bottom[1]:
        return None
    order, name = _order(name_tokens, power_first=True)
    bottom_order, variable = _order(variable_tokens, power_first=False)
    if not variable:
        return None
    if not name or order != bottom_order:
        raise ParseError("a derivative of this form is not read")
    cursor.position = end
    return symbol(f"{name}{chr(39) * order}|{'' if bottom[1] == 'd' else bottom[1] + ' '}{variable}")


def _order(tokens: list[Token], *, power_first: bool) -> tuple[int, str]:
    """The order and the name of `^2 y` (power first) or `x^2`; no name where it is neither."""
    power = 1
    mark = 0 if power_first else len(tokens) - 2
    if len(tokens) > 2 and tokens[mark] == ("mark", "^"):
        if tokens[mark + 1][0] != "number" or tokens[mark + 1][1] not in "123456":
            return 0, ""
        power = int(tokens[mark + 1][1])
        tokens = tokens[:mark] + tokens[mark + 2 :]
    is_name = all(kind in ("letter", "number") or len(text) == 1 or text in GREEK_OR_NAMED for kind, text in tokens)
    if not tokens or not is_name or (len(tokens) > 1 and tokens[1] != ("mark", "_")):
        return power, ""
    return power, "".join(text for _, text in tokens)


def combinations(cursor: Cursor, name: str) -> Node | None:
    """`C_8^3` and `A_8^3`, ways of choosing; None for other subscripts."""
    start, found = cursor.position, []
    for mark in "_^":
        text = cursor.raw_group(or_token=True) if name in "CAP" and cursor.accept("mark", mark) else ""
        if not text.isdigit():
            break
        found.append(number(int(text)))
    if len(found) < 2 or found[1].value > found[0].value:
        cursor.position = start
        return None
    chosen = Node(Kind.CALL, tuple(found), "binom")
    return chosen if name == "C" else Node(Kind.MUL, (chosen, Node(Kind.FACTORIAL, (found[1],))))


def kind_of_numbers(cursor: Cursor) -> str:
    """The star or sign of `\\mathbb{N}^*`, `\\mathbb{Z}_{\\ge 1}`; nothing for another exponent."""
    start = cursor.position
    cursor.take()
    mark = _SIGNS_OF_NUMBERS.get(cursor.raw_group(or_token=True), "")
    if not mark:
        cursor.position = start
    return mark


def repeating_decimal(cursor: Cursor, mantissa: str) -> Node | None:
    """`0.1\\overline{6}`, `0.(3)`, `0.\\dot{3}`, `0.333...` as exact fractions."""
    start, block = cursor.position, ""
    if cursor.peek() == ("command", "dot"):
        block = _dotted(cursor)
    elif cursor.accept("command", "dots"):
        return repeating(mantissa, None)
    elif cursor.accept("command", "overline") or cursor.accept("command", "bar"):
        block = cursor.raw_group(or_token=True)
    elif cursor.accept("mark", "("):
        block = cursor.take()[1]
        block = block if cursor.accept("mark", ")") else ""
    if block.isdigit():
        return repeating(mantissa, block)
    cursor.position = start
    return None


def _dotted(cursor: Cursor) -> str:
    """`\\dot{1}42\\dot{7}`: the digits from the first dotted one to the last."""
    block = ""
    while cursor.peek() == ("command", "dot"):
        cursor.take()
        wrapped = cursor.accept("mark", "{")
        kind, text = cursor.take()
        if kind != "number":
            raise ParseError("a dot stands over something that is no digit")
        block += text
        if wrapped:
            cursor.expect("mark", "}")
        if cursor.peek()[0] == "number" and cursor.peek(1) == ("command", "dot"):
            block += cursor.take()[1]
    return block
