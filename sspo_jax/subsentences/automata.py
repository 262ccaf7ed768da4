"""The rule as two automata that read classes of characters: what `table` composes into the effect of a token.

`rules.py` looks at a whole text. Here one automaton walks it from the right and keeps what a character needs to know of
the text after it (`Ahead`); the other walks it from the left and keeps what it needs of the text before (`Behind`), and
says at which characters a subsentence ends. Only how many brackets are open is left to counters.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from sspo_jax.subsentences import rules
from sspo_jax.subsentences.rules import BoundaryRule

# Classes of characters: the letters that \end{ and matrix} are made of stand for themselves.
_MATRIX = "matrix"
CLASSES = (
    "newline",
    "white",
    "digit",
    "lower",
    "upper",
    "lower_other",
    "upper_other",
    "m",
    "a",
    "t",
    "r",
    "i",
    "x",
    "e",
    "n",
    "d",
    "star",
    "open",
    "bracket",
    "brace",
    "close",
    "rbrace",
    "quote",
    "wide_open",
    "wide_close",
    "backslash",
    "dollar",
    "less",
    "comma",
    "question",
    "bang",
    "colon",
    "dot",
    "hyphen",
    "slash",
    "em_dash",
    "en_dash",
    "full_stop",
    "full_comma",
    "full_colon",
    "sentence_mark",
    "other_mark",
    "cjk",
    "other",
)
INDEX = {name: index for index, name in enumerate(CLASSES)}
_LOWER = frozenset(["lower", "m", "a", "t", "r", "i", "x", "e", "n", "d"])
_ASCII_LETTERS = _LOWER | {"upper"}
_UPPER = frozenset(["upper", "upper_other"])
LETTERS = _ASCII_LETTERS | {"lower_other", "upper_other"}
_OPEN = frozenset(["open", "bracket", "brace"])
_CLOSE = frozenset(["close", "rbrace"])
_CLAUSE = {"comma": ",", "question": "?", "bang": "!", "colon": ":", "dot": "."}
_FULL = {"full_stop": "。", "full_comma": "，", "full_colon": "："}
_SPACELESS = {"sentence_mark": "।", "other_mark": "،"}

_NAMES: dict[str, str] = {
    **dict.fromkeys(rules.WHITE_SPACE, "white"),
    **dict.fromkeys("([{", "open"),
    **dict.fromkeys(")]", "close"),
    **dict.fromkeys(rules.QUOTES, "quote"),
    **dict.fromkeys(rules.WIDE_OPENERS, "wide_open"),
    **dict.fromkeys(rules.WIDE_CLOSERS, "wide_close"),
    **dict.fromkeys(rules.EM_DASHES, "em_dash"),
    **dict.fromkeys(rules.FULL_WIDTH_MARKS, "full_stop"),
    **dict.fromkeys("，；、､", "full_comma"),
    **dict.fromkeys(rules.OTHER_MARKS, "other_mark"),
    **dict.fromkeys(rules.SENTENCE_MARKS, "sentence_mark"),
    **dict.fromkeys("0123456789", "digit"),
    **{c: c for c in _MATRIX + "end"},
    "\n": "newline",
    "*": "star",
    "[": "bracket",
    "{": "brace",
    "}": "rbrace",
    "\\": "backslash",
    "$": "dollar",
    "<": "less",
    ",": "comma",
    ";": "comma",
    "?": "question",
    "!": "bang",
    ":": "colon",
    "：": "full_colon",
    ".": "dot",
    "-": "hyphen",
    "/": "slash",
    rules.EN_DASH: "en_dash",
}


_KNOWN: dict[str, int] = {}


def classes_of(text: str) -> list[int]:
    """The classes of characters, indices of `CLASSES`."""
    for character in text:
        if character not in _KNOWN:
            _KNOWN[character] = INDEX[_name(character)]
    return [_KNOWN[character] for character in text]


def _name(character: str) -> str:
    name = _NAMES.get(character)
    if name is None and rules.is_letter(character):
        name = ("upper" if character.isupper() else "lower") + ("" if character.isascii() else "_other")
    return name or ("cjk" if rules.is_cjk(character) else "other")


class Ahead(NamedTuple):
    """What the text from some character on begins with, as far as the characters before it need to know."""

    first: str = "white"
    """The class of the first character; "white" also at the end; with "dot", "mark", "less2" (<<), "option" ([ and a
    digit), "word" and "letter" (Latin, Greek or Cyrillic, two or more letters, or one)."""
    is_upper: bool = False
    """Whether the first letter of a word is upper case."""
    is_good: bool = False
    """Whether after a word white space, a mark other than a full stop, or the end follows."""
    dollars: int = 0
    """How many `$` it starts with: 0, 1, or 2 for two and more."""
    after_dollar: str = "fine"
    """What is after that single `$`: "amount", "opens" (a letter, a backslash, a bracket) or "fine"."""
    closer: str = "none"
    """The next `$` of the line (after those it starts with): "none", "bad" (it can close no formula), "loose" (white
    space is before it), "close"."""
    has_pair: bool = False
    """Whether a `$$` follows on the line, other than one it starts with."""


def _dollars_seen_from(name: str, ahead: Ahead) -> tuple[str, bool]:
    """(`closer`, `has_pair`) once the character before is known: after a backslash a `$` is no delimiter."""
    closer, has_pair = ahead.closer, ahead.has_pair
    if ahead.dollars and name != "backslash":
        if ahead.after_dollar == "amount" or (name == "white" and ahead.after_dollar == "opens"):
            closer = "bad"
        else:
            closer = "loose" if name == "white" else "close"
        has_pair = has_pair or ahead.dollars == 2
    return closer, has_pair


def before(name: str, ahead: Ahead, rule: BoundaryRule) -> Ahead:
    """The automaton from the right: the text with one more character at its front."""
    if name == "newline":
        return Ahead()
    closer, has_pair = _dollars_seen_from(name, ahead)
    if name == "dollar":
        if not rule.math_aware:
            return Ahead(first="other")
        after = "fine"
        if ahead.first in ("digit", "less2"):
            after = "amount"
        elif ahead.first in ("word", "letter", "backslash", "open", "option"):
            after = "opens"
        dollars = min(ahead.dollars + 1, 2)
        after = after if dollars == 1 else "fine"
        return Ahead(first="other", dollars=dollars, after_dollar=after, closer=closer, has_pair=has_pair)
    first, is_upper, is_good = "other", False, False
    if name in LETTERS:
        is_longer = ahead.first in ("word", "letter")
        first, is_upper = "word" if is_longer else "letter", name in _UPPER
        is_good = ahead.is_good if is_longer else ahead.first in ("white", "mark")
    elif name in ("comma", "question", "bang", "colon"):
        first = "mark"
    elif name == "less":
        first = "less2" if ahead.first in ("less", "less2") else "less"
    elif name in _OPEN:
        first = "option" if name == "bracket" and ahead.first == "digit" else "open"
    elif name in _CLOSE:
        first = "close"
    elif name in ("white", "digit", "dot", "backslash", "em_dash", "cjk"):
        first = name
    return Ahead(first, is_upper, is_good, closer=closer, has_pair=has_pair)


# What a character takes from `Ahead`: few values, None for most characters.
Need = tuple[bool, ...] | None


def need(name: str, ahead: Ahead, rule: BoundaryRule) -> Need:
    """What `after` has to know of the text behind this character."""
    first = ahead.first
    is_white = first == "white"
    if name in _CLAUSE:
        is_word = first == "word"
        is_clause = is_word or (first == "letter" and ahead.is_good)
        if name == "dot":
            is_word = is_clause = is_word and ahead.is_upper and ahead.is_good
        return is_white, first == "cjk", is_word, is_clause
    if name == "dollar" and rule.math_aware:
        closer, has_pair = _dollars_seen_from(name, ahead)
        is_amount = first in ("digit", "less2", "dot")
        can_open = closer == "close" or (closer == "loose" and not is_amount)
        ends = first in ("white", "mark", "dot")
        return is_white, ahead.dollars > 0, can_open, ends, has_pair
    if name in _CLOSE or name in ("quote", "wide_close", "en_dash", "hyphen"):
        return (is_white,)
    if name == "em_dash":
        return first == "em_dash", first == "digit"
    if name == "backslash":
        return (first not in ("word", "letter", "open", "close"),)
    return None


class Behind(NamedTuple):
    """What the text up to some character ends with, as far as the characters after it need to know."""

    mode: str = "text"
    """ "text", or the formula that is open: "inline" ($) or "display" ($$)."""
    kind: str = "start"
    """The last character: "start" (none on this line), "white", "backslash", "backslash2" (an end of a row), "digit",
    "letter", "word" (two letters or more), "cjk", "colon", "hyphen1" to 3 (after white space), "closer", "opener",
    "dash", "dollar" (half of a `$$`), "none"; "slash" (of ://), "address" and "address_digit"."""
    progress: int = 0
    """Of a letter: how much of "matrix" has just been read."""
    mark: str = ""
    """Whether only what closes has come since a mark: "" no, "any", "quotes" (after !), or in the middle of a closing:
    "backslash", "e", "en", "end", "environment"."""
    is_matrix: bool = False
    """Whether a matrix is open, where ends of rows end nothing."""


NEVER, OUTSIDE, ALWAYS = 0, 1, 2


def _mark_after(name: str, behind: Behind, is_closing_quote: bool, closes_formula: bool) -> str:
    """`Behind.mark` after a character that is no mark itself."""
    mark = behind.mark
    if mark == "any":
        if name == "backslash":
            return "backslash"
        is_closing = is_closing_quote or closes_formula or name in _CLOSE or name in ("white", "wide_close")
        return "any" if is_closing else ""
    if mark == "quotes":
        return "quotes" if is_closing_quote or name == "wide_close" else ""
    if mark == "backslash":
        return "any" if name in _CLOSE else "e" if name == "e" else ""
    if mark == "e":
        return "en" if name == "n" else ""
    if mark == "en":
        return "end" if name == "d" else ""
    if mark == "end":
        return "environment" if name == "brace" else ""
    if mark == "environment":
        return "any" if name == "rbrace" else mark if name in _ASCII_LETTERS or name == "star" else ""
    return ""


_IN_ADDRESS = LETTERS | {"digit", "star", "less", "hyphen", "slash", "other", *_CLAUSE}


def _to(
    behind: Behind, kind: str, ends: int = NEVER, *, mark: str = "", mode: str | None = None, progress: int = 0
) -> tuple[Behind, int]:
    """The next state, and whether a subsentence ends: nowhere inside a formula, unless always."""
    mode = behind.mode if mode is None else mode
    if mode != "text":
        # Fewer states: what only matters to the text outside.
        kind = {"digit": "none", "cjk": "none", "hyphen1": "none", "letter": "word"}.get(kind, kind)
        ends = ends if ends == ALWAYS else NEVER
    return Behind(mode, kind, progress, mark, behind.is_matrix), ends


def _after_dollar(behind: Behind, known: Need) -> tuple[Behind, int]:
    """`after` at a dollar sign, which opens or closes a formula, is half of a pair that does, or stands for money."""
    name, kind, mode = "dollar", behind.kind, behind.mode
    is_white, is_pair, can_open, ends_amount, has_pair = known or (False,) * 5
    if kind == "dollar":  # the second of two
        if mode == "text":
            return _to(behind, "none", mode="display" if has_pair else "text")
        name_mark = _mark_after(name, behind, False, True)
        return _to(behind, "closer", OUTSIDE if name_mark and is_white else NEVER, mark=name_mark, mode="text")
    if kind in ("backslash", "backslash2") or (mode == "display" and not is_pair):
        return _to(behind, "none")
    if is_pair and mode == "text":
        return _to(behind, "dollar")
    name_mark = _mark_after(name, behind, False, True)
    if is_pair and mode == "display":
        return _to(behind, "dollar", mark=name_mark)
    if mode == "inline":
        return _to(behind, "closer", OUTSIDE if name_mark and is_white else NEVER, mark=name_mark, mode="text")
    opens = can_open and not (ends_amount and kind in ("digit", "address_digit"))
    return _to(behind, "none", mode="inline" if opens else "text")


def after(name: str, behind: Behind, known: Need, rule: BoundaryRule) -> tuple[Behind, int]:
    """The automaton from the left: the text with one more character, and whether a subsentence ends at it.

    Returns:
      (the state, NEVER, OUTSIDE (where no bracket is open) or ALWAYS)
    """
    kind, mode = behind.kind, behind.mode
    is_escaped = kind in ("backslash", "backslash2")
    if name == "newline":
        return Behind(), ALWAYS if "\n" in rule.always else NEVER
    in_address = kind in ("address", "address_digit")
    flags = known or (False,) * 5
    if in_address and name in _IN_ADDRESS:
        is_mark = _CLAUSE.get(name, "\n") in rule.clause
        if not (is_mark and flags[0]):
            stays = "address_digit" if name == "digit" else "address"
            return Behind(mode, stays, is_matrix=behind.is_matrix), NEVER

    if name in _CLAUSE:
        kind_after = "colon" if name == "colon" else "none"
        if _CLAUSE[name] not in rule.clause or is_escaped:
            return _to(behind, kind_after, mark=_mark_after(name, behind, False, False))
        is_white, is_cjk, is_word, is_clause = known or (False,) * 4
        is_end = is_white or is_cjk or kind == "cjk"
        is_end = is_end or (is_clause and kind == "word") or (is_word and kind in ("digit", "closer"))
        return _to(behind, kind_after, OUTSIDE if is_end else NEVER, mark="quotes" if name == "bang" else "any")
    if name in _FULL:
        kind_after = "colon" if name == "full_colon" else "none"
        return _to(behind, kind_after, ALWAYS if _FULL[name] in rule.always else NEVER)
    if name in _SPACELESS:
        is_mark = _SPACELESS[name] in rule.spaceless and not is_escaped
        return _to(behind, "none", OUTSIDE if is_mark else NEVER, mark="any" if is_mark else "")
    if name == "dollar" and rule.math_aware:
        return _after_dollar(behind, known)
    is_closing_quote = name == "quote" and kind not in ("start", "white", "opener", "colon", "dash")
    mark = _mark_after(name, behind, is_closing_quote, False)
    if name in _CLOSE or name in ("wide_close", "quote"):
        result, ends = _to(
            behind,
            "closer" if is_closing_quote or name != "quote" else "opener",
            OUTSIDE if mark in ("any", "quotes") and flags[0] else NEVER,
            mark=mark,
        )
        if name == "rbrace" and behind.progress == len(_MATRIX):
            result = result._replace(is_matrix=not behind.is_matrix)
        return result, ends
    if name == "backslash":
        if kind != "backslash":
            return _to(behind, "backslash", mark=mark)
        return _to(
            behind, "backslash2", ALWAYS if rule.rows and flags[0] and not behind.is_matrix else NEVER, mark=mark
        )
    if name in LETTERS:
        progress = behind.progress if kind in ("letter", "word") else 0
        progress = progress + 1 if progress < len(_MATRIX) and name == _MATRIX[progress] else int(name == "m")
        return _to(behind, "word" if kind in ("letter", "word") else "letter", mark=mark, progress=progress)
    if name == "em_dash":
        is_dash, is_digit = (known or (False, False))[:2]
        ends = rule.dashes and kind != "start" and not is_dash and not (kind == "digit" and is_digit)
        return _to(behind, "dash", OUTSIDE if ends else NEVER)
    if name == "en_dash":
        return _to(behind, "none", OUTSIDE if rule.dashes and kind == "white" and flags[0] else NEVER)
    if name == "hyphen":
        count = {"white": 1, "hyphen1": 2, "hyphen2": 3}.get(kind)
        if count is None:
            return _to(behind, "none")
        return _to(behind, f"hyphen{count}", OUTSIDE if rule.dashes and count > 1 and flags[0] else NEVER)
    if name == "slash" and kind in ("colon", "slash"):
        return _to(behind, "slash" if kind == "colon" else "address")
    if name in _OPEN or name == "wide_open":
        return _to(behind, "opener", mark=mark)
    return _to(behind, name if name in ("white", "digit", "cjk") else "none", mark=mark)


def stays(name: str, behind: Behind) -> bool:
    """Whether a character belongs to what is before it: white space, and what closes."""
    if name == "quote":
        return behind.kind not in ("start", "white", "opener", "colon", "dash")
    return name in _CLOSE or name in ("newline", "white", "wide_close")


@dataclasses.dataclass(frozen=True)
class Automata:
    """Both automata as arrays. States are numbered; the first one is that of an empty text."""

    ahead: np.ndarray  # [classes, ahead] the state from the right
    need_of: np.ndarray  # [classes, ahead] what of it a character needs, an index into the lists below
    behind: tuple[np.ndarray, ...]  # for each class: [needs, behind] the state from the left
    ends: tuple[np.ndarray, ...]  # for each class: [needs, behind] NEVER, OUTSIDE or ALWAYS
    stays: np.ndarray  # [classes, behind]


@functools.cache
def automata(rule: BoundaryRule) -> Automata:
    """The automata of a rule, the left one with as few states as will do."""
    aheads, rows = [Ahead()], []
    index = {aheads[0]: 0}
    for state in aheads:  # grows as we go
        following = [before(name, state, rule) for name in CLASSES]
        for new in following:
            if new not in index:
                index[new] = len(aheads)
                aheads.append(new)
        rows.append([index[new] for new in following])
    needs: list[dict[Need, int]] = [{} for _ in CLASSES]
    need_of = np.array(
        [[known.setdefault(need(name, state, rule), len(known)) for state in aheads]
         for name, known in zip(CLASSES, needs, strict=True)],
        np.int32,
    )  # fmt: skip
    behinds = [Behind()]
    number = {behinds[0]: 0}
    transitions: list[list[list[tuple[int, int]]]] = []  # of each state, for each class and need
    for state in behinds:
        transitions.append([])
        for name, known in zip(CLASSES, needs, strict=True):
            transitions[-1].append([])
            for value in known:
                new, end = after(name, state, value, rule)
                if new not in number:
                    number[new] = len(behinds)
                    behinds.append(new)
                transitions[-1][-1].append((number[new], end))
    staying = np.array([[stays(name, state) for state in behinds] for name in CLASSES])
    following = np.array([[pair[0] for some in row for pair in some] for row in transitions])
    ending = np.array([[pair[1] for some in row for pair in some] for row in transitions])
    # States that no text can tell apart are one (Moore): refine by what they say, then by where they lead.
    label, first = _same(np.concatenate([ending, staying.T], axis=1))
    while True:
        refined, first = _same(np.concatenate([label[:, None], label[following]], axis=1))
        if refined.max() == label.max():
            break
        label = refined
    splits = np.cumsum([len(known) for known in needs])[:-1]
    return Automata(
        ahead=np.array(rows, np.int32).T.copy(),
        need_of=need_of,
        behind=tuple(part.T.copy() for part in np.split(refined[following[first]], splits, axis=1)),
        ends=tuple(part.T.copy() for part in np.split(ending[first], splits, axis=1)),
        stays=staying[:, first],
    )


def _same(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each row, equal for equal rows and 0 for the first one; and the first row of each number."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(-1)].astype(np.int32), first[order]
