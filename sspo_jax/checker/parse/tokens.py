"""Answers cut into tokens: numbers, letters, words, commands and marks; linear in the text.

A token is `(kind, text)`. Kinds: `number`, `letter`, `word` (text, or a bare word), `run` (bare letters that are a unit
symbol or a product of variables: the parser decides), `command` (a LaTeX command without its backslash, plain `sqrt`,
`pi` and the like included), `join` (`,` `;` `and` `or` `land` `lor`), `mark` (any other character).
"""

import re

from ..expression import ParseError, name_set
from .units import ABBREVIATIONS, LETTERS, is_unit_word
from .vocabulary import ALIASES, FUNCTIONS, IGNORED, MATH_WRAPPERS, PLAIN_COMMANDS, SHORT_WORDS, TEXT_WRAPPERS

Token = tuple[str, str]

_TOKEN = re.compile(
    r"(?P<space>[\s~]+|\\[,;:!> ]|&nbsp;)"
    r"|(?P<number>(?:\d+(?:\.(?!\.)\d*)?|\.\d+|\.(?=\\(?:overline|bar|dot)\b))(?:[eE][-+]?\d+(?![\w^.({]))?)"
    r"|\\(?P<command>[A-Za-z]+)|\\(?P<escaped>.)"
    r"|(?P<dots>\.\.\.+)"
    r"|(?P<letters>[A-Za-z]+(?:\.(?=[A-Za-z]\b)[A-Za-z]\.?)?|[^\x00-\x7f]+)"
    r"|(?P<mark>.)",
    re.DOTALL | re.ASCII,
)
_TIGHT_GROUPS = re.compile(r"(?<=\d)(?:, ?\\[!,] ?|\{,\}|\\,|\\!|\\ |\\;)(?=\d{3}(?!\d))")
_SPACED_GROUPS = re.compile(r"(?<![\d.,^_{])(\d{1,3}(?: \d{3})+)(?![\d])")
COMMA_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_CJK_NUMERAL = re.compile(r"^(百万|千万|[百千万亿](?!米|克|瓦))")
_APART = re.compile(r"(?<=[\d.,]) (?=[\d.,])|(?<=^-) (?=\d)")  # bold digits are set apart
_NOT_BARE = name_set("to star gt lt tg div mid land lor wedge vee in")
_VOWEL = re.compile("[aeiouyAEIOUY]")
_CAMEL = re.compile("[a-z][A-Z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_BRACE = re.compile(r"\\?[{}]")
_ANSWER_BEGINS = re.compile(r"\s*(?:[-+]?(?:\d|\\[dt]?frac\b|\\sqrt\b)|\\pm\b|[A-Za-z](?:_\{?\w\}?)?\s*=)")
_PREFIXED = re.compile(r"(sqrt|arcsin|arccos|arctan|sin|cos|tan|cot|log|ln|pi)([A-Za-z])")
_SPOKEN_MODULUS = re.compile(
    r"\\text\s*\{\s*\(?\s*mod\s*\}\s*(\d+)\s*\)|\(\s*(?:\\text\s*\{\s*)?mod\s*\}?\s*(\d+)\s*\)"
)
_ARGUMENT_FOLLOWS = re.compile(r"\s*(?:\\left\s*)?\(")
_NEVER_WORDS = name_set("cis gcd lcm sin cos tan cot csc ln arcsin arccos arctan")
_OPENING = re.compile(r"[(\[]|\\\{|\\langle")
_AMOUNT = re.compile(r"\s{0,4}[\d.]")
_VALUES = ("number", "word", "run")
_MAX_TOKENS = 60_000
_MAX_DEPTH = 12  # of \text, \mathbf and the like inside of one another


def join_thousands(text: str, *, plain_commas: bool) -> str:
    """The text without thousands marks in its numbers: `10,\\!080`, `1{,}000`, `1 000`, and, where asked, `1,000`.

    A plain comma inside brackets separates coordinates, so only those outside of any bracket are taken out.
    """
    text = _TIGHT_GROUPS.sub("", text).replace(r"\text{:}", ":").replace("{.}", ".").replace("{:}", ":")
    if "mod" in text:
        text = _SPOKEN_MODULUS.sub(lambda m: rf"\pmod{{{m[1] or m[2]}}}", text)
    text = _SPACED_GROUPS.sub(lambda m: m.group().replace(" ", ""), text)
    if plain_commas and COMMA_GROUPS.search(text) and not _OPENING.search(text):
        text = COMMA_GROUPS.sub(lambda m: m.group().replace(",", ""), text)
    return text


def tokenize(text: str, *, in_text: bool = False, depth: int = 0) -> list[Token]:
    """The tokens of an answer that `normalise.fold` has been through.

    Raises:
        ParseError: more than 60,000 tokens, or a `\\text{` that does not close.
    """
    if depth > _MAX_DEPTH:
        raise ParseError(f"\\text and \\mathbf nest deeper than {_MAX_DEPTH}")
    tokens: list[Token] = []
    position, end = 0, len(text)
    spaced, dollars = True, text.count("$")
    while position < end:
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        kind, position = match.lastgroup, match.end()
        piece = match[kind] if kind else ""
        if kind == "space":
            spaced = True
            continue
        if len(tokens) > _MAX_TOKENS:
            raise ParseError(f"more than {_MAX_TOKENS:,} tokens; the longest answer that is read has fewer")
        if kind == "number":
            tokens.append(("number", piece))
        elif kind == "command":
            position = _command(piece, text, position, tokens, in_text, depth)
        elif kind == "escaped":
            _escaped(piece, tokens)
        elif kind == "dots":
            tokens.append(("command", "dots"))
        elif kind == "letters":
            position = _letters(piece, text, position, tokens, in_text, spaced)
        elif piece in ",;":
            tokens.append(("join", ","))
        elif piece == "$":
            if dollars % 2 and _AMOUNT.match(text, position):
                tokens.append(("command", "$"))
        elif piece == "*" and text.startswith("*", position):
            tokens.append(("mark", "^"))
            position += 1
        elif piece == "!" and not spaced and tokens and (tokens[-1][0] == "number" or tokens[-1] == ("mark", ")")):
            tokens.append(("mark", piece))  # a factorial also where `=` follows
        elif piece in "<>!=" and text.startswith("=", position):
            tokens.append(("command", {"<": "le", ">": "ge", "!": "ne", "=": "="}[piece]))
            position += 1
        elif piece == "." and tokens and tokens[-1][0] == "word":
            pass  # an abbreviation, or the end of a sentence inside of \\text
        elif (
            piece == "-" and in_text and tokens and tokens[-1][0] == "word" and text[position : position + 1].isalpha()
        ):
            pass  # light-years
        else:
            tokens.append(("mark", piece))
        spaced = False
    return tokens


def _escaped(piece: str, tokens: list[Token]) -> None:
    if piece in "{}":
        tokens.append(("command", piece))
    elif piece in "%$|\\":
        tokens.append(("command", {"%": "%", "$": "$", "|": "|", "\\": "newline"}[piece]))
    elif piece in "_&#":
        tokens.append(("mark", piece))
    elif piece in "()[]":
        return  # display brackets inside an answer
    else:
        raise ParseError(f"\\{piece!r} is no command this grammar knows")


def _command(name: str, text: str, position: int, tokens: list[Token], in_text: bool, depth: int) -> int:
    if name in ("operatorname", "hspace", "tag") and text.startswith("*", position):
        position += 1
    if name in IGNORED:
        if name == "hspace" or name.endswith("phantom"):
            return _group(text, position)[1]
        if name in ("quad", "qquad") and _separates(tokens, text[position : position + 40]):
            tokens.append(("join", ","))
        if name in ("left", "right") and text.startswith(".", position):
            return position + 1
        return position
    if name in TEXT_WRAPPERS:
        content, position = _group(text, position)
        _text(content, name, tokens, depth, text[position : position + 8])
        return position
    if name in MATH_WRAPPERS:
        content, position = _group(text, position)
        if content.strip() in ("i", "j", "k"):
            tokens.append(("command", f"unit {content.strip()}"))
            return position
        content = _APART.sub("", content).rstrip(". ")
        content = join_thousands(content, plain_commas=True)
        tokens.append(("mark", "{"))
        tokens.extend(tokenize(content, in_text=in_text, depth=depth + 1))
        tokens.append(("mark", "}"))
        return position
    if name in ("color", "textcolor", "tag", "label"):
        return _group(text, position)[1]
    if name in ("begin", "end"):
        content, position = _group(text, position)
        tokens.append(("command", name + " " + content.strip().rstrip("*")))
        if content.strip() == "array" and name == "begin" and text[position:].lstrip().startswith("{"):
            position = _group(text, position)[1]
        return position
    name = ALIASES.get(name, name)
    if name == "forall":
        tokens.append(("word", "for"))
    elif name in ("land", "lor"):
        tokens.append(("join", name))
    elif len(name) == 1 and not name.isalpha():
        tokens.append(("command" if name in "{}$" else "mark", name))
    else:
        tokens.append(("command", name))
    return position


def _group(text: str, position: int) -> tuple[str, int]:
    """The content of the `{...}` at `position` (white space skipped) or the one character there, and its end."""
    while position < len(text) and text[position] in " \n\t~":
        position += 1
    if position >= len(text):
        raise ParseError("expected a {group}, found the end")
    if text[position] != "{":
        command = _COMMAND.match(text, position)
        return (command.group(), command.end()) if command else (text[position], position + 1)
    depth = 0
    for brace in _BRACE.finditer(text, position):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : brace.start()], brace.end()
    raise ParseError("a { does not close")


def _separates(tokens: list[Token], following: str) -> bool:
    """Whether a `\\quad` stands between two answers: `x = 2 \\quad x = 3`, but not in `5 \\quad \\text{cm}`."""
    after_value = bool(tokens) and (tokens[-1][0] in ("number", "letter") or tokens[-1][1] in ("}", ")", "]"))
    return after_value and _ANSWER_BEGINS.match(following) is not None


def _text(content: str, command: str, tokens: list[Token], depth: int, following: str) -> None:
    """The tokens of `\\text{...}` and its kin."""
    stripped = content.strip(" ~\n")
    if stripped in (".", "!"):
        return
    if stripped in _NEVER_WORDS or (stripped in FUNCTIONS and _ARGUMENT_FOLLOWS.match(following)):
        tokens.append(("command", stripped))
        return
    after_number = bool(tokens) and tokens[-1][0] == "number"
    if stripped in ("min", "max", "det", "arg") and after_number:
        tokens.append(("word", stripped))
        return
    is_upright = command in ("mathrm", "operatorname", "mathit", "mathnormal")
    if is_upright and (stripped in FUNCTIONS or stripped in PLAIN_COMMANDS or ALIASES.get(stripped) in FUNCTIONS):
        tokens.append(("command", ALIASES.get(stripped, stripped)))
        return
    tokens.extend(tokenize(stripped, in_text=True, depth=depth + 1))


def _letters(piece: str, text: str, position: int, tokens: list[Token], in_text: bool, spaced: bool) -> int:
    """Tokens of a run of letters: a joiner, a function or constant, a word, or single letters; where to go on."""
    lowered = piece.lower()
    after_value = bool(tokens) and (tokens[-1][0] in _VALUES or tokens[-1][1] in ("}", ")", "pi", "%"))
    following = text[position : position + 1]
    if lowered in ("and", "or"):
        tokens.append(("join", piece if piece == "OR" else lowered))  # OR: alternatives, either is the answer
    elif piece[0] > "\x7f":
        tokens.extend(("word", part) for part in _CJK_NUMERAL.split(piece, maxsplit=1) if part)
    elif "." in piece or (len(piece) > 1 and lowered in ("am", "pm") and after_value and not following.strip()):
        tokens.append(("word", piece.replace(".", "")))
    elif in_text:
        tokens.append(("word", piece))
    elif len(piece) == 1:
        is_unit = piece in LETTERS and after_value and tokens[-1][0] != "word" and (spaced or following == "/")
        tokens.append(("run" if is_unit else "letter", piece))
    elif piece in ("np", "math", "sp", "sympy", "numpy") and following == ".":
        return position + 1  # a Python module before a function
    elif piece in ABBREVIATIONS and (piece != "pm" or not text[position:].strip()):
        tokens.append(("run", piece))
    elif after_value and spaced and is_unit_word(piece):
        tokens.append(("word", piece))
    elif piece in PLAIN_COMMANDS or (piece in ALIASES and piece not in _NOT_BARE):
        tokens.append(("command", ALIASES.get(piece, piece)))
    elif after_value and len(piece) > 2 and is_unit_word(piece):
        tokens.append(("word", piece))
    elif (prefixed := _PREFIXED.fullmatch(piece)) is not None:
        tokens += [("command", prefixed[1]), ("letter", prefixed[2])]
    elif _is_word(piece):
        tokens.append(("word", piece))
    else:
        tokens.extend(("letter", letter) for letter in piece)
    return position


def _is_word(piece: str) -> bool:
    """Whether a bare run of letters is a word and not a product of variables such as `abc`, `xy`, `ABCD`."""
    if piece.lower() in SHORT_WORDS:
        return True
    if len(piece) < 4 or piece.isupper() or list(piece) == sorted(set(piece)):
        return False
    return _VOWEL.search(piece) is not None and _CAMEL.search(piece) is None
