"""An answer in LaTeX or plain ASCII parsed into an expression tree. Nothing of the text is ever evaluated as code.

`read` is the entry: it recognises choice letters, times and dates and numbers with their base, leaves the rest to the
grammar, and falls back to text for answers in words.
"""

import re

from .cursor import END
from .expression import Node, ParseError
from .grammar import Parser
from .normalise import fold, tidy
from .tokens import COMMA_GROUPS, Token, join_thousands, tokenize
from .words import clock_or_date, words

MAX_DEPTH = 60  # nested groups; some eight Python frames each


def read(answer: str, *, plain_commas: bool = True, max_depth: int = MAX_DEPTH) -> Node:
    """The tree of an answer as written. `plain_commas`: `1,000` outside of brackets is a number, not a list.

    Raises:
        ParseError: the text is neither mathematics this grammar knows nor words.
    """
    text = join_thousands(tidy(fold(answer)), plain_commas=plain_commas)
    if not text:
        raise ParseError("the answer is empty")
    text = _REMARKS.sub("", text)
    for pattern, replacement in _REWRITES:
        text, count = pattern.subn(replacement, text)
        if count:
            break
    lone_unit = _NUMBER_AND_LETTER.fullmatch(text)
    if lone_unit is not None:
        text = rf"{lone_unit[1]}\text{{ {lone_unit[2]} }}{lone_unit[3] or ''}"
    special = _choice_with_text(text, max_depth) or clock_or_date(text)
    if special is not None:
        return special
    tokens = tokenize(text)
    if not tokens:
        raise ParseError("the answer holds nothing but spaces")
    try:
        parser = Parser(tokens, max_depth)
        node = parser.answer()
        if parser.peek() != END:
            raise ParseError(f"unexpected {parser.peek()[1]!r}")
        node = _with_spoken_name(node)
        if node.kind == "text" or _is_prose(node):
            return words(text)
        return node
    except ParseError:
        if _reads_as_text(tokens):
            return words(text)
        raise


def has_two_readings(answer: str) -> bool:
    """Whether commas in the answer may be thousands marks or separators (`1,234`)."""
    return "," in answer and any(",0" not in match.group() for match in COMMA_GROUPS.finditer(answer))


_LONGEST_CHOICE = 400  # characters of what a choice letter stands for
_OPTION = re.compile(r"(?:\\text\w*\s*\{)?\s*(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s*\(?([A-J])\)?\s*\}?\.?")
_SMALL_OPTION = re.compile(r"(?:\\text\w*\s*\{)?\s*\(([a-dfgh])\)\s*\}?")
_ABOUT = r"(?:approximately|approx\.?|about|around|roughly|nearly|almost|(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?)"
_REMARKS = re.compile(
    rf"^\s*(?:\\text\s*\{{\s*{_ABOUT}\s*\}}|{_ABOUT}(?=\s+\S))\s*"
    r"|\s*(?:\\text\s*\{\s*)?\(\s*(?:approximately|approx\.?|about)\s*\)\s*\}?\s*$"
    r"|\s*,?\s*(?:\\text\s*\{\s*,?\s*)?\bfor\s+(?:all|any|every|each)\b[^=<>]{0,80}$",
    re.IGNORECASE,
)
_DIGITS_IN_BASE = r"(?:\\(?:text|mathrm)\s*\{)?\(?((?=[A-F]*[0-9])[0-9A-F]+)\)?\}?\s*"
_REWRITES = (
    (re.compile(rf"^{_DIGITS_IN_BASE}_\s*\{{?\s*\(?(\d+)\)?\s*\}}?$", re.ASCII), r"{\\digits{\1}{\2}}"),
    (
        re.compile(rf"^{_DIGITS_IN_BASE}\s*(?:\\text\s*\{{)?\s*\(?(?:in\s+)?base[ ~-]+(\d+)\)?\s*\}}?$", re.ASCII),
        r"{\\digits{\1}{\2}}",
    ),
    (re.compile(r"^(\d+)\s*(?:\^?\s*\{?\s*(?:\\text\s*\{)?\s*)(?:st|nd|rd|th)\s*\}?\s*\}?$", re.ASCII), r"\1"),
    (re.compile(r"^(\d+)\s*(?:\\text\s*\{\s*to\s*\}|(?<=\s)to(?=\s))\s*(\d+)$", re.ASCII), r"\1:\2"),
    (
        re.compile(rf"^{_DIGITS_IN_BASE}_\{{?\\text\s*\{{\s*base[ ~-]*\}}?\s*(\d+)\s*\}}?\}}?$", re.ASCII),
        r"{\\digits{\1}{\2}}",
    ),
    (re.compile(r"^(\d+)\s*(?:\\text\s*\{)?\s*out of\s*\}?\s*(\d+)$", re.ASCII), r"\\frac{\1}{\2}"),
    (re.compile(r"^\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s+is:?\s+", re.IGNORECASE), r"\\text{"),
    (re.compile(r"^\\text(?:bf)?\s*\{\s*(?![A-J]\s*:)[A-Za-z][A-Za-z ]{0,40}:\s*\}\s*(?=\S)"), ""),
    (re.compile(r"^(?:USD|US\s?\\?\$)\s*(-?[\d.,]+)$", re.ASCII), r"\1 USD"),
    (re.compile(r"^(\d+)\s*'\s*([\d.]+)\s*(?:\"|'')$", re.ASCII), r"\1 feet \2 inches"),
    (re.compile(r"^([\d./]+)\s*(?:\"|'')$", re.ASCII), r"\1 inches"),
    (re.compile(r"^(?:\{\s*\})?[_^]\{?(\d+)\}?\s*(?:C|\\(?:mathrm|text)\s*\{C\})_\{?(\d+)\}?$"), r"\\binom{\1}{\2}"),
    (re.compile(r"^\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?$"), r"\\frac{\1}{\2}"),
    (
        re.compile(
            r"^(?:P|p|Pr|E|\\(?:mathbb|mathrm|operatorname|text)\s*\{(?:P|Pr|E|Var|Area)\}|\\Pr)\s*"
            r"(?:\\left)?\((?=[^)]*[A-Z<>|\\])[^=]{1,80}?\)\s*=(?=[^=]+$)",
            re.DOTALL,
        ),
        "",
    ),
)  # digits with their base, ordinals, spoken ratios, money and lengths in signs, binomials, what a probability is of
_NUMBER_AND_LETTER = re.compile(
    r"(-?[\d.]+(?:\s*\\times\s*10\^\{?-?\d+\}?)?)[ ~]+([msgLVWJNKhA])(\^\{?[23]\}?)?", re.ASCII
)
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|textit|bf)\s*\{\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:]|([A-J])(?=\s*\}))"
    r"\s*\}?(?P<rest>.*)",
    re.DOTALL,
)


def _choice_with_text(text: str, max_depth: int) -> Node | None:
    """`(B)`, `B.`, `\\text{(B) } 12`: a choice letter with what it stands for, if that can be read."""
    option = _OPTION.fullmatch(text)
    if option is not None:
        return Node("choice", (), option[1])
    small = _SMALL_OPTION.fullmatch(text)
    if small is not None:
        return Node("choice", (), small[1].upper())
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter = match[1] or match[2] or match[3]
    rest = match["rest"].strip(" ~:.,").removeprefix("\\").strip(" ~:.,;!") if match["rest"].strip(" ~\\:.,;}!") else ""
    if match["rest"][:1] in ("^", "_", "'", "=", "+", "-", "*", "/"):
        return None
    if not rest:
        return Node("choice", (), letter)
    if len(rest) > _LONGEST_CHOICE:
        return None
    if rest[0] in ",=+-*/^_<>" or rest.startswith(
        (r"\cup", r"\cap", r"\le", r"\ge", "and", "or", r"\text{ and", r"\text{,")
    ):
        return None
    if match[2] and ":" in text[:3] and len(rest) < 3 and rest[0].isupper():  # a ratio of segments, `A:B`
        return None
    if text.count("{") != text.count("}") or rest.count("{") != rest.count("}"):
        rest = rest.rstrip("}") if rest.count("}") > rest.count("{") else rest
    try:
        return Node("choice", (read(rest, max_depth=max_depth),), letter)
    except ParseError:
        return Node("choice", (words(rest),), letter)


def _with_spoken_name(node: Node) -> Node:
    """`\\text{Area of } ABC = 5`: what stands before `=` is one name, unless it makes a condition or a denial of it."""
    if node.kind != "relation" or node.value != ("=",) or not _is_prose(node.args[0]):
        return node
    spoken = [str(part.value) for part in node.args[0].walk() if part.kind == "text"]
    if any(word in _CONDITIONS for part in spoken for word in part.split()):
        return node
    return Node("relation", (Node("text", (), " ".join(spoken)), *node.args[1:]), node.value)


_CONDITIONS = frozenset(["not", "no", "if", "when", "where", "for", "unless", "except", "or", "and"])


def _is_prose(node: Node) -> bool:
    """Whether a tree came out of a sentence: text multiplied with something."""
    if node.kind in ("mul", "add", "div", "neg", "unit"):
        return any(part.kind == "text" for part in node.walk())
    return node.kind in ("list", "relation") and any(_is_prose(part) for part in node.args)


def _reads_as_text(tokens: list[Token]) -> bool:
    """Whether tokens that do not parse are words: at least one, and no mathematics around them."""
    if not any(kind == "word" for kind, _ in tokens):
        return False
    return all(
        kind in ("word", "number", "letter", "join") or (kind == "mark" and text in ".,:;-'()/?!\"&")
        for kind, text in tokens
    )
