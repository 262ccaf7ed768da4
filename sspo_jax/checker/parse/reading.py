"""An answer in LaTeX or plain ASCII parsed into an expression tree. Nothing of the text is ever evaluated as code.

`readings` is the entry: it recognises choice letters, times and dates and numbers with their base, leaves the rest to
the grammar, and falls back to text for answers in words. An answer has more than one reading where a comma may group
digits or separate numbers (`1,234`), and where letters may be a unit or a product of variables (`2kg`).
"""

import re

from ..expression import Kind, Node, ParseError, name_set, negated, number
from .normalise import fold, tidy
from .numerals import decimal
from .parser import END, Parser
from .tokens import COMMA_GROUPS, Token, join_thousands, tokenize
from .units import counted_noun, is_describing, known_unit
from .words import clock_or_date, words

MAX_DEPTH = 60  # nested groups; some eight Python frames each


def readings(answer: str, *, max_depth: int = MAX_DEPTH) -> tuple[Node, ...]:
    """The trees that an answer may mean, the likeliest first.

    Raises:
        ParseError: the text is neither mathematics this grammar knows nor words.
    """
    decimal_comma = _DECIMAL_COMMA.fullmatch(answer) if "{,}" in answer else None
    if decimal_comma is not None:
        value = number(decimal(decimal_comma[2] + "." + decimal_comma[3]))
        return (negated(value) if decimal_comma[1] else value,)
    trees = list(_trees(answer, True, max_depth))
    if has_two_readings(answer):
        trees += _trees(answer, False, max_depth)
    return tuple(dict.fromkeys(trees))


def read(answer: str, *, plain_commas: bool = True, max_depth: int = MAX_DEPTH) -> Node:
    """The likeliest tree of an answer. `plain_commas`: `1,000` outside of brackets is a number, not a list.

    Raises:
        ParseError: the text is neither mathematics this grammar knows nor words.
    """
    return _trees(answer, plain_commas, max_depth)[0]


def has_two_readings(answer: str) -> bool:
    """Whether commas in the answer may be thousands marks or separators (`1,234`)."""
    return "," in answer and any(",0" not in match.group() for match in COMMA_GROUPS.finditer(answer))


def _trees(answer: str, plain_commas: bool, max_depth: int) -> list[Node]:
    text = join_thousands(" ".join(tidy(fold(answer)).split()), plain_commas=plain_commas)
    if not text:
        raise ParseError("the answer is empty")
    text = _REMARKS.sub("", text) if _MAY_REMARK.search(text) else text
    text = _IN_BRACKETS.sub(_without_aside, text) if "ext" in text and "(" in text else text
    for pattern, replacement in _REWRITES:
        if pattern.match(text) is not None:  # each begins at the beginning
            text = pattern.sub(replacement, text)
            break
    special = _choice_with_text(text, max_depth) or clock_or_date(text)
    if special is not None:
        return [special]
    tokens = tokenize(text)
    if not tokens:
        raise ParseError("the answer holds nothing but spaces")
    is_ambiguous = "g(" in text or any(kind == "run" or (kind == "word" and len(piece) == 1) for kind, piece in tokens)
    trees, failure = [], None
    for units in (True, False) if is_ambiguous else (True,):
        try:
            trees.append(_parsed(tokens, text, max_depth, units))
        except ParseError as error:
            failure = failure or error
    if trees:
        return trees
    named = _named_value(text, max_depth)
    if named is not None:
        return [named]
    if _reads_as_text(tokens):
        return [words(text)]
    assert failure is not None
    raise failure


def _parsed(tokens: list[Token], text: str, max_depth: int, units: bool) -> Node:
    parser = Parser(tokens, max_depth, units=units)
    node = parser.answer()
    if parser.peek() != END:
        raise ParseError(f"unexpected {parser.peek()[1]!r}")
    node = _with_spoken_name(node)
    return words(text) if node.kind is Kind.TEXT or _is_prose(node) else node


_TOP_LEVEL = re.compile(r"\\[A-Za-z]+|\\.|[{}()\[\]=<>,;]", re.DOTALL)
_LONGEST_NAME = 120


def _named_value(text: str, max_depth: int) -> Node | None:
    """`name = value` where the name is in a notation of its own: `P(A | B) = 1/2`, `\\mathrm{rank}\\,A = 2`."""
    depth, equals = 0, -1
    for mark in _TOP_LEVEL.finditer(text):
        kind = mark.group()
        depth += (kind in "{([") - (kind in "})]") if len(kind) == 1 else 0
        if depth == 0 and (kind in ("<", ">", ",", ";") or kind in _OTHER_RELATIONS or (kind == "=" and equals >= 0)):
            return None
        if depth == 0 and kind == "=":
            equals = mark.start()
    name, value = text[:equals].strip(), text[equals + 1 :].strip()
    if equals < 0 or not value or len(name) > _LONGEST_NAME or not _NAME.match(name):
        return None
    try:
        words_in_name = set(words(name).value.split()) if words(name).kind is Kind.TEXT else set()
        tree = read(value, max_depth=max_depth)
    except ParseError:
        return None
    if words_in_name & _CONDITIONS or tree.kind is Kind.TEXT:
        return None
    return Node(Kind.RELATION, (Node(Kind.TEXT, (), "".join(name.split())), tree), ("=",))


_NAME = re.compile(r"[\[|(\s]*(?:\\[A-Za-z|]|[A-Za-z])")
_OTHER_RELATIONS = name_set(r"\le \leq \ge \geq \ne \neq \in \to \Rightarrow \equiv \approx \iff \land \lor")
_DECIMAL_COMMA = re.compile(r"\s*\$?(-?)(\d+)\{,\}(\d{1,2}|\d{4,})\$?\s*", re.ASCII)
_LONGEST_CHOICE = 400  # characters of what a choice letter stands for
_OPTION = re.compile(
    r"(?:\\text\w*\s*\{)?\s*(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:option|choice|answer)(?:\s+is)?:?\s*"
    r"(?:\}\s*)?(?-i:\(?([A-J])\)?)\s*\}?\.?",
    re.IGNORECASE,
)
_SMALL_OPTION = re.compile(r"(?:\\text\w*\s*\{)?\s*\(([a-dfgh])\)\s*\}?")
_ABOUT = r"(?:approximately|approx\.?|about|around|roughly|nearly|almost|(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?)"
_MAY_REMARK = re.compile(r"approx|about|around|roughly|nearly|almost|answer|\bfor\b", re.IGNORECASE)
_REMARKS = re.compile(
    rf"^\s*(?:\\text\s*\{{\s*{_ABOUT}\s*\}}|{_ABOUT}(?=\s+\S))\s*"
    r"|\s*(?:\\text\s*\{\s*)?\(\s*(?:approximately|approx\.?|about)\s*\)\s*\}?\s*$"
    r"|\s*,?\s*(?:\\text\s*\{\s*,?\s*)?\bfor\s+(?:all|any|every|each)\b[^=<>]{0,80}$",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"(?<=[\w}]) ?\\text ?\{ ?\(([a-z ]{4,60})\) ?\}")


def _without_aside(match: re.Match[str]) -> str:
    """Nothing for `\\text{ (double root)}`; what denies the value, or may be its unit, stays."""
    matters = any(known_unit(word) or counted_noun(word) or not is_describing(word) for word in match[1].split())
    return match.group() if matters else ""


_DIGITS_IN_BASE = r"(?:\\(?:text|mathrm)\s*\{)?\(?((?=[A-F]*[0-9])[0-9A-F]+)\)?\}?\s*"
_LABEL = "row|column|page|day|line|room|floor|seat|level|position|year|week"


def _counted_label(match: re.Match[str]) -> str:
    """`\\text{row } 12` as `12 \\text{ rows}`."""
    label, count = (match[1], match[2]) if match[1] else (match[3], match[4])
    return rf"{count}\text{{ {label.lower()}s}}"


_CURRENCIES = r"USD|EUR|GBP|INR|CNY|RMB|JPY|R[sp]\.?|US\s?\\?\$"


def _in_currency(match: re.Match[str]) -> str:
    """`\\text{Rs. } 500` as `500 Rs`."""
    return f"{match[2]} {'USD' if match[1][:2] == 'US' else match[1].rstrip('.')}"


_REWRITES = (
    (re.compile(rf"^{_DIGITS_IN_BASE}_\s*\{{?\s*\(?(\d+)\)?\s*\}}?$", re.ASCII), r"{\\digits{\1}{\2}}"),
    (
        re.compile(rf"^{_DIGITS_IN_BASE}\s*(?:\\text\s*\{{)?\s*\(?(?:in\s+)?base[ ~-]+(\d+)\)?\s*\}}?$", re.ASCII),
        r"{\\digits{\1}{\2}}",
    ),
    (
        re.compile(
            r"^(?:\\text\s*\{\s*)?(\d+)\s*\^?\s*\{?\s*(?:\\text\s*\{\s*)?(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th|(?<=[\s{])(?:st|nd|rd))\s*\}?\s*\}?$",
            re.ASCII,
        ),
        r"\1",
    ),
    (
        re.compile(r"^(?:\\text\s*\{\s*)?(\d+)\s*(?:\\text\s*\{\s*to\s*\}|(?<=\s)to(?=\s))\s*(\d+)\s*\}?$", re.ASCII),
        r"\1:\2",
    ),
    (re.compile(r"^(?:\\text\s*\{\s*)?(?:for\s+)?(?:all|any)\s*\}?\s*(?=[a-z]\s*(?:[<>]|\\[lg]e))"), ""),
    (
        re.compile(rf"^{_DIGITS_IN_BASE}_\{{?\\text\s*\{{\s*base[ ~-]*\}}?\s*(\d+)\s*\}}?\}}?$", re.ASCII),
        r"{\\digits{\1}{\2}}",
    ),
    (re.compile(r"^(\d+)\s*(?:\\text\s*\{)?\s*out of\s*\}?\s*(\d+)$", re.ASCII), r"\\frac{\1}{\2}"),
    (re.compile(r"^\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s+is:?\s+", re.IGNORECASE), r"\\text{"),
    (
        re.compile(
            r"^\\text\s*\{\s*(?![^}]*\b(?:not|if|than|or|least|most|when|nor)\b)[A-Z][A-Za-z ]{0,60}"
            r"\b(?:is|are|equals)\s*\}\s*(?=\S)"
        ),
        "",
    ),
    (re.compile(r"^\\text(?:bf)?\s*\{\s*(?![A-J]\s*:)[A-Za-z][A-Za-z ]{0,40}:\s*\}\s*(?=\S)"), ""),
    (
        re.compile(rf"^(?:\\(?:text|mathrm)\s*\{{\s*)?({_CURRENCIES})\s*\}}?\s*(-?[\d.,]+)\s*\}}?$", re.ASCII),
        _in_currency,
    ),
    (re.compile(r"^(\d+)\s*'\s*([\d.]+)\s*(?:\"|'')$", re.ASCII), r"\1 feet \2 inches"),
    (re.compile(r"^([\d./]+)\s*(?:\"|'')$", re.ASCII), r"\1 inches"),
    (re.compile(r"^(?:\{\s*\})?[_^]\{?(\d+)\}?\s*(?:C|\\(?:mathrm|text)\s*\{C\})_\{?(\d+)\}?$"), r"\\binom{\1}{\2}"),
    (re.compile(r"^(?:\{\s*\})?[_^]\{?(\d+)\}?\s*P_\{?(\d+)\}?$"), r"A_{\1}^{\2}"),
    (re.compile(r"^\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?$"), r"\\frac{\1}{\2}"),
    (
        re.compile(rf"^\\text\s*\{{\s*({_LABEL})\s*\}}?\s*(\d+)\s*\}}?$|^({_LABEL})\s+(\d+)$", re.IGNORECASE),
        _counted_label,
    ),
    (re.compile(r"^(?:\\(?:text|mathrm)\s*\{)?([A-F]{1,8})\}?_\{?(1[1-6])\}?$"), r"{\\digits{\1}{\2}}"),
    (
        re.compile(
            r"^(?:P|p|Pr|E|\\(?:mathbb|mathrm|operatorname|text)\s*\{(?:P|Pr|E|Var|Area)\}|\\Pr)\s*"
            r"(?:\\left)?\((?=[^)]*[A-Z<>|\\])[^=]{1,80}?\)\s*=(?=[^=]+$)",
            re.DOTALL,
        ),
        "",
    ),
)  # digits with their base, ordinals, spoken ratios, money and lengths in signs, binomials, what a probability is of
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|textit|bf)\s*\{\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:]|([A-J])(?=\s*\}))"
    r"\s*\}?(?P<rest>.*)",
    re.DOTALL,
)


_OTHER_CHOICE = re.compile(r"\([A-J]\)|\{\s*[A-J]\s*\}|^[\W_]*[A-J](?:\s*[,;]|$)")
_OPTION_WITH_TEXT = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:option|choice)\s+(?=\(?[A-J][).:])", re.IGNORECASE
)
_SAYS_ABOUT = re.compile(
    r"(?:is|are|was|isn't|not|cannot|can't|can|false|wrong|incorrect|never|neither|or|and)\b", re.IGNORECASE
)


def _choice_with_text(text: str, max_depth: int) -> Node | None:
    """`(B)`, `B.`, `\\text{(B) } 12`: a choice letter with what it stands for, if that can be read."""
    option = _OPTION.fullmatch(text)
    if option is not None:
        return Node(Kind.CHOICE, (), option[1])
    small = _SMALL_OPTION.fullmatch(text)
    if small is not None:
        return Node(Kind.CHOICE, (), small[1].upper())
    named = _OPTION_WITH_TEXT.match(text)
    match = _CHOICE.fullmatch(text, named.end() if named else 0)
    if match is None:
        return None
    letter = match[1] or match[2] or match[3]
    rest = match["rest"].strip(" ~:.,").removeprefix("\\").strip(" ~:.,;!") if match["rest"].strip(" ~\\:.,;}!") else ""
    if match["rest"][:1] in ("^", "_", "'", "=", "+", "-", "*", "/"):
        return None
    if not rest:
        return Node(Kind.CHOICE, (), letter)
    if len(rest) > _LONGEST_CHOICE or _OTHER_CHOICE.search(rest) or _SAYS_ABOUT.match(rest):
        return None
    if match[2] and ":" in text[:3] and len(rest) < 3 and rest[0].isupper():  # a ratio of segments, `A:B`
        return None
    if text.count("{") != text.count("}") or rest.count("{") != rest.count("}"):
        rest = rest.rstrip("}") if rest.count("}") > rest.count("{") else rest
    try:
        return Node(Kind.CHOICE, (read(rest, max_depth=max_depth),), letter)
    except ParseError:
        return Node(Kind.CHOICE, (words(rest),), letter)


def _with_spoken_name(node: Node) -> Node:
    """`\\text{Area of } ABC = 5`: what stands before `=` is one name, unless it makes a condition or a denial of it."""
    if node.kind != Kind.RELATION or node.value != ("=",) or not _is_prose(node.args[0]):
        return node
    spoken = [str(part.value) for part in node.args[0].walk() if part.kind == Kind.TEXT]
    if any(word in _CONDITIONS for part in spoken for word in part.split()):
        return node
    return Node(Kind.RELATION, (Node(Kind.TEXT, (), " ".join(spoken)), *node.args[1:]), node.value)


_CONDITIONS = name_set("not no if when where for unless except or and")


_ARITHMETIC = (Kind.MUL, Kind.ADD, Kind.DIV, Kind.FRAC, Kind.NEG, Kind.UNIT, Kind.POW)


def _is_prose(node: Node) -> bool:
    """Whether a tree came out of a sentence: text multiplied with something."""
    if node.kind in _ARITHMETIC:
        return any(part.kind == Kind.TEXT for part in node.walk())
    return node.kind in (Kind.LIST, Kind.RELATION) and any(_is_prose(part) for part in node.args)


def _reads_as_text(tokens: list[Token]) -> bool:
    """Whether tokens that do not parse are words: at least one, and no mathematics around them."""
    if not any(kind == "word" for kind, _ in tokens):
        return False
    return all(
        kind in ("word", "number", "letter", "join") or (kind == "mark" and text in ".,:;-'()/?!\"&")
        for kind, text in tokens
    )
