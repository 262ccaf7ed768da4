"""Where a subsentence ends, on text: the reference, in plain Python.

A subsentence is a run of tokens that ends at a boundary (arXiv:2511.04256v2, our interpretation; docs/algorithm.md):

1. A newline and the full- and half-width marks of Chinese and Japanese always end one. Arabic, Urdu, Hindi and other
   marks that no number holds end one outside brackets and formulas.
2. `, ; : . ! ?` end one outside brackets and formulas if white space or the end follows, if the character before or
   after is Chinese, Japanese or Korean, or if they stand between words without a space: `Therefore,the`, `5.Then`. A
   mark right after a backslash is none.
3. A mark before something that closes (brackets, quotes, `$`, `\\)`, `\\]`, `\\end{...}`) works where that has
   closed: `\\[x = 5.\\] Then` is cut before `Then`. (Not `!`, which is a factorial there; quotes aside.)
4. An em dash ends one, and an en dash, `--` or `---` between spaces. So does LaTeX's end of a row, `\\\\`, also
   inside formulas, but not in a matrix.
5. Math-aware: inside are the `(...)`, `[...]`, `{...}` of a line, counted without regard to their kind, so that
   `[0, 1)` balances and `\\(...\\)` comes for free; one that never closes, or was never opened, is none. So are
   `$...$` and `$$...$$` that close on their line; a dollar sign before an amount opens a formula only if the next
   dollar sign can close it (`_formulas`).
6. A token that holds the last byte of a boundary closes its subsentence, and the tokens of only white space and
   closers after it stay with it. A quote after white space, a colon or an opening bracket opens.
7. A piece of fewer than `min_tokens` tokens is joined with the next one, a short tail with the one before.
8. What is then longer than `max_tokens` is cut into parts of equal length, as few as will do.

A token of the tokenizer's own, such as the end of text, counts as white space; bytes that are no UTF-8 as nothing.
"""

import dataclasses
import re
from collections.abc import Sequence

FULL_WIDTH_MARKS = "。，；：？！、｡､"
# Arabic and Urdu; Devanagari; Armenian; Ethiopic; Khmer; Burmese. None of them occurs inside a number.
SENTENCE_MARKS = "؟۔।॥։።፧፨។။"
OTHER_MARKS = SENTENCE_MARKS + "،؛፣፤፥፦၊"
CLAUSE_MARKS = ",;:.!?"
COLONS = ":："
OPENERS = "([{"
CLOSING_BRACKETS = ")]}"
# Closing quotes, unless something that opens or white space is before them.
QUOTES = "\"'’”»›"
WIDE_OPENERS = "“‘„«‹「『【《〈（［｛〔"
WIDE_CLOSERS = "」』】》〉）］｝〕"
EM_DASHES = "—―"
EN_DASH = "–"
# Every character for which str.isspace() holds.
WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"

# What a quote after it opens something; what ends an address; what stays with what is before it.
_BEFORE_OPENING = frozenset(WHITE_SPACE + OPENERS + WIDE_OPENERS + EM_DASHES)
_AFTER_ADDRESS = frozenset(WHITE_SPACE + OPENERS + CLOSING_BRACKETS + QUOTES + WIDE_OPENERS + WIDE_CLOSERS + "\\$")
_AFTER_ADDRESS |= frozenset(FULL_WIDTH_MARKS + OTHER_MARKS + EM_DASHES + EN_DASH)
_STAYS = frozenset(WHITE_SPACE + CLOSING_BRACKETS + WIDE_CLOSERS)

# Longer subsentences are cut: one in thirty of MATH's (docs/algorithm.md).
MAX_TOKENS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryRule:
    """Which characters end a subsentence."""

    always: str
    """Characters that always end one."""
    clause: str = ""
    """Characters that end one outside brackets and formulas, if what is beside them says so (conditions 2 and 3)."""
    spaceless: str = ""
    """Characters that end one outside brackets and formulas, whatever follows."""
    dashes: bool = False
    """Whether dashes end one (condition 4)."""
    rows: bool = False
    """Whether LaTeX's ends of rows do (condition 4)."""
    math_aware: bool = True
    """Whether condition 5 holds; if not, nothing is inside."""


_BOUNDARY_RULES = {
    "punctuation": BoundaryRule(
        always="\n" + FULL_WIDTH_MARKS, clause=CLAUSE_MARKS, spaceless=OTHER_MARKS, dashes=True, rows=True
    ),
    "sentence": BoundaryRule(always="\n。？！｡", clause=".!?", spaceless=SENTENCE_MARKS),
    "newline": BoundaryRule(always="\n"),
}


def parse_rule(rule: str, *, math_aware: bool = True) -> BoundaryRule | int | str:
    """What a rule's name stands for: boundaries, the number of tokens of `fixed(n)`, "entropy" or "response".

    >>> parse_rule("fixed(8)"), parse_rule("token"), parse_rule("newline").always
    (8, 1, '\\n')
    """
    if rule in _BOUNDARY_RULES:
        return dataclasses.replace(_BOUNDARY_RULES[rule], math_aware=math_aware)
    if rule == "token":
        return 1
    if rule in ("entropy", "response"):
        return rule
    match = re.fullmatch(r"fixed\(([1-9][0-9]{0,8})\)", rule)
    if match:
        return int(match[1])
    raise ValueError(f"rule is {rule!r}, expected punctuation, sentence, newline, fixed(n), entropy, token or response")


def check_lengths(min_tokens: int, max_tokens: int | None) -> None:
    """Refuses bounds that cannot hold.

    Raises:
      ValueError: `min_tokens` is below 1, or `max_tokens` below `min_tokens`.
    """
    if min_tokens < 1:
        raise ValueError(f"min_tokens is {min_tokens}, expected 1 or more")
    if max_tokens is not None and max_tokens < min_tokens:
        raise ValueError(
            f"max_tokens is {max_tokens}, expected at least min_tokens, {min_tokens}, or None for no bound"
        )


def characters(data: bytes) -> list[tuple[str, int, int]]:
    """(character, first byte, past its last byte); bytes that are no UTF-8 are left out."""
    result, position = [], 0
    for character in data.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            position += 1
            continue
        width = len(character.encode("utf-8"))
        result.append((character, position, position + width))
        position += width
    return result


def is_letter(character: str) -> bool:
    """Whether it is a letter of a script written with spaces and capitals: Latin, Greek, Cyrillic."""
    return character < "\u0530" and character.isalpha()


def is_cjk(character: str) -> bool:
    """Whether it is a character of Chinese, Japanese or Korean text; not its punctuation."""
    return (
        "\u3040" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or "\uac00" <= character <= "\ud7a3"
        or "\uf900" <= character <= "\ufaff"
        or "\uff66" <= character <= "\uff9d"
    )


def is_digit(character: str) -> bool:
    """Whether it is one of the ten ASCII digits."""
    return "0" <= character <= "9"


_END_ENVIRONMENT = re.compile(r"\\end\{[A-Za-z*]*\}")


def _is_dollar(line: str, j: int, count: int = 1) -> bool:
    """Whether `count` dollar signs are at j; one right after a backslash is no delimiter."""
    return line[j : j + count] == "$" * count and line[j - 1 : j] != "\\"


def _starts_amount(line: str, j: int) -> bool:
    """Whether what is at j can be money, or a calculation of GSM8K (`$<<5*4=20>>20`)."""
    return j < len(line) and (is_digit(line[j]) or line.startswith("<<", j))


def _can_close(line: str, j: int, *, is_amount: bool) -> bool:
    """Whether the dollar sign at j can close a formula."""
    after = line[j + 1 : j + 2]
    if _starts_amount(line, j + 1):
        return False
    opens = after != "" and (is_letter(after) or after in "\\([{")
    return not (line[j - 1] in WHITE_SPACE and (is_amount or opens))


def _formulas(line: str) -> tuple[list[bool], list[bool]]:
    """For each character, whether a formula is open after it, and whether it is the last of one that it closes.

    `$$` opens one if another `$$` follows on the line. A single `$` does if the next one can close it: no amount is
    after it, and if white space is before it, neither is a letter, a backslash or an opening bracket. Where an amount
    follows the first one, no white space may be before the next. A `$` that ends an amount ("5$ and") opens nothing.
    """
    is_open, closes = [False] * len(line), [False] * len(line)
    j = 0
    while j < len(line):
        if not _is_dollar(line, j):
            j += 1
            continue
        count = 2 if _is_dollar(line, j, 2) else 1
        close = next((k for k in range(j + count, len(line)) if _is_dollar(line, k, count)), None)
        after = line[j + 1 : j + 2]
        if count == 1 and close is not None:
            is_amount = _starts_amount(line, j + 1) or after == "."
            ends_amount = j > 0 and is_digit(line[j - 1]) and after in WHITE_SPACE + CLAUSE_MARKS
            if ends_amount or not _can_close(line, close, is_amount=is_amount):
                close = None
        first = j + count - 1
        if close is None:
            j = first + 1
            continue
        last = close + count - 1
        is_open[first:last] = [True] * (last - first)
        closes[last] = True
        j = last + 1
    return is_open, closes


def _closing_quotes(line: str, in_address: list[bool]) -> list[bool]:
    """For each character, whether it is a quote that closes: nothing that opens, and no white space, is before it."""
    result, before_opens = [], True
    for j, character in enumerate(line):
        is_quote = character in QUOTES
        result.append(is_quote and not before_opens)
        before_opens = (
            (is_quote and before_opens) or character in _BEFORE_OPENING or (character in COLONS and not in_address[j])
        )
    return result


def _addresses(line: str, rule: BoundaryRule) -> list[bool]:
    """For each character, whether it follows inside an address such as `https://a.org/b`."""
    result, inside = [], False
    for j, character in enumerate(line):
        result.append(inside)
        if inside:
            after = line[j + 1 : j + 2]
            if character in rule.clause:
                inside = after != "" and after not in WHITE_SPACE
            else:
                inside = character not in _AFTER_ADDRESS and not is_cjk(character)
        else:
            inside = line[max(j - 2, 0) : j + 1] in ("://", "：//")
    return result


def _is_mark_between(line: str, j: int, *, in_address: bool, closed_before: bool) -> bool:
    """Whether a clause mark ends something by what is beside it (condition 2)."""
    before, after = line[j - 1 : j], line[j + 1 : j + 2]
    if not after or after in WHITE_SPACE:
        return True
    if in_address:
        return False
    if (before and is_cjk(before)) or is_cjk(after):
        return True
    end = j + 1
    while end < len(line) and is_letter(line[end]):
        end += 1
    letters = end - (j + 1)
    stops = line[end : end + 1] == "" or line[end] in WHITE_SPACE + ",;:!?"
    is_word_before = j >= 2 and is_letter(line[j - 1]) and is_letter(line[j - 2])
    if line[j] == ".":
        if letters < 2 or not after.isupper() or not stops:
            return False
    elif letters == 1:
        return is_word_before and stops
    elif letters == 0:
        return False
    return is_word_before or closed_before or (before != "" and is_digit(before))


class _Line:
    """A text without newlines, and what of it the conditions speak of."""

    def __init__(self, text: str, rule: BoundaryRule) -> None:
        n = len(text)
        self.text, self.rule = text, rule
        self.is_open, self.closes = _formulas(text) if rule.math_aware else ([False] * n, [False] * n)
        self.in_address = _addresses(text, rule)
        self.closing_quote = _closing_quotes(text, self.in_address)
        # How many brackets are open after each character, and how many are closed later that were opened up to it.
        self.opened, self.closed = [0] * n, [0] * n
        for j in range(n):
            self.opened[j] = max(sum(self.opened[max(j - 1, 0) : j]) + _bracket(text[j]), 0)
        for j in range(n - 2, -1, -1):
            self.closed[j] = max(self.closed[j + 1] - _bracket(text[j + 1]), 0)

    def is_outside(self, j: int) -> bool:
        """Whether no bracket or formula is open after the character at j (condition 5)."""
        return not self.rule.math_aware or not (self.is_open[j] or (self.opened[j] and self.closed[j]))

    def is_white(self, j: int) -> bool:
        """Whether white space, or the end, is at j."""
        return j >= len(self.text) or self.text[j] in WHITE_SPACE

    def is_mark(self, j: int) -> bool:
        """Whether a clause mark is at j."""
        is_inner = self.in_address[j] and not self.is_white(j + 1)
        return self.text[j] in self.rule.clause and self.text[j - 1 : j] != "\\" and not is_inner

    def closings(self, j: int) -> list[int]:
        """The last characters of what closes after the mark at j (condition 3)."""
        line, found, k = self.text, [], j + 1
        while k < len(line):
            environment = _END_ENVIRONMENT.match(line, k)
            if self.closing_quote[k] or line[k] in WIDE_CLOSERS:
                found.append(k)
                k += 1
            elif line[j] == "!":
                break
            elif line[k] in CLOSING_BRACKETS or self.closes[k]:
                found.append(k)
                k += 1
            elif line[k] in WHITE_SPACE or (self.is_open[k] and line[k : k + 2] == "$$" and self.closes[k + 1]):
                k += 1
            elif line[k] == "\\" and line[k + 1 : k + 2] in (")", "]", "}"):
                found.append(k + 1)
                k += 2
            elif environment:
                found.append(environment.end() - 1)
                k = environment.end()
            else:
                break
        return found

    def ends_by_neighbours(self, j: int) -> bool:
        """Whether the clause mark at j ends something by what is beside it (condition 2)."""
        line = self.text
        before, after = line[j - 1 : j], line[j + 1 : j + 2]
        if not after or after in WHITE_SPACE or is_cjk(after) or (before and is_cjk(before)):
            return True
        end = j + 1
        while end < len(line) and is_letter(line[end]):
            end += 1
        letters, is_good = end - (j + 1), self.is_white(end) or line[end] in ",;:!?"
        is_word_before = j >= 2 and is_letter(line[j - 1]) and is_letter(line[j - 2])
        if line[j] == "." and (letters < 2 or not after.isupper() or not is_good):
            return False
        if letters < 2:
            return letters == 1 and is_good and is_word_before
        is_closed = before != "" and (before in CLOSING_BRACKETS + WIDE_CLOSERS or self.closing_quote[j - 1])
        return is_word_before or (before != "" and (is_digit(before) or is_closed or self.closes[j - 1]))

    def is_row_end(self, j: int, *, is_row: bool, is_matrix: bool) -> bool:
        """Whether the character at j, the second backslash of two if `is_row`, ends a row that ends something."""
        line, after = self.text, self.text[j + 1 : j + 2]
        if not is_row or is_matrix or not self.rule.rows:
            return False
        if after == "[" and line[j + 2 : j + 3] != "" and is_digit(line[j + 2]):
            return True
        return not (after and (is_letter(after) or after in OPENERS + CLOSING_BRACKETS))

    def is_dash(self, j: int) -> bool:
        """Whether the last character of a dash between clauses is at j (condition 4)."""
        line, after = self.text, self.text[j + 1 : j + 2]
        if not self.rule.dashes or j == 0 or not self.is_outside(j):
            return False
        if line[j] in EM_DASHES:
            is_range = is_digit(line[j - 1]) and not self.in_address[j] and after != "" and is_digit(after)
            return not is_range and not (after and after in EM_DASHES)
        start = j
        while line[j] == "-" and start and line[start - 1] == "-":
            start -= 1
        is_long = line[j] == EN_DASH or (line[j] == "-" and 2 <= j + 1 - start <= 3)
        return is_long and self.is_white(j + 1) and start > 0 and line[start - 1] in WHITE_SPACE

    def boundaries(self) -> list[bool]:
        """For each character, whether a subsentence ends right after it."""
        result = [False] * len(self.text)
        is_row = is_matrix = False
        for j, character in enumerate(self.text):
            before = self.text[j - 1 : j]
            is_row = character == before == "\\" and not is_row
            if self.text[max(j - 6, 0) : j + 1] == "matrix}" and not self.in_address[j]:
                is_matrix = not is_matrix
            is_clause_mark, is_spaceless = self.is_mark(j), character in self.rule.spaceless and before != "\\"
            is_row_end = self.is_row_end(j, is_row=is_row, is_matrix=is_matrix)
            if character in self.rule.always or is_row_end or self.is_dash(j):
                result[j] = True
            elif is_clause_mark or is_spaceless:
                result[j] |= self.is_outside(j) and (is_spaceless or self.ends_by_neighbours(j))
                for k in self.closings(j):
                    result[k] |= self.is_white(k + 1) and self.is_outside(k)
        return result


def _bracket(character: str) -> int:
    """1 for a bracket that opens, -1 for one that closes, 0 for anything else."""
    return (character in OPENERS) - (character in CLOSING_BRACKETS)


def is_boundary(text: Sequence[str], rule: BoundaryRule) -> list[bool]:
    """For each character, whether a subsentence ends right after it."""
    result = []
    for number, line in enumerate("".join(text).split("\n")):
        if number:
            result.append("\n" in rule.always)
        result += _Line(line, rule).boundaries()
    return result


def _stays_left(text: str, rule: BoundaryRule) -> list[bool]:
    """For each character, whether it belongs to what is before it: white space and what closes."""
    result = []
    for number, line in enumerate(text.split("\n")):
        if number:
            result.append(True)
        closing_quote = _closing_quotes(line, _addresses(line, rule))
        for j, character in enumerate(line):
            result.append(closing_quote[j] or character in _STAYS)
    return result


def starts_of_tokens(pieces: Sequence[bytes], rule: BoundaryRule) -> list[bool]:
    """For each token, whether a subsentence may start at it (conditions 1 to 6)."""
    token_of_byte = [token for token, piece in enumerate(pieces) for _ in piece]
    chars = characters(b"".join(pieces))
    text = "".join(character for character, _, _ in chars)
    has_boundary, stays_left = [False] * len(pieces), [True] * len(pieces)
    covered = [0] * len(pieces)
    for (_, start, end), ends, stays in zip(chars, is_boundary(text, rule), _stays_left(text, rule), strict=True):
        has_boundary[token_of_byte[end - 1]] |= ends
        stays_left[token_of_byte[end - 1]] &= stays
        for byte in range(start, end):
            covered[token_of_byte[byte]] += token_of_byte[byte] == token_of_byte[end - 1]
    # Bytes of no character, and those of one that a later token completes, are not what closes.
    stays_left = [
        stays and count == len(piece) for stays, count, piece in zip(stays_left, covered, pieces, strict=True)
    ]
    starts, is_closed = [], False
    for token in range(len(pieces)):
        starts.append(is_closed and not stays_left[token])
        is_closed = has_boundary[token] or (stays_left[token] and is_closed)
    return starts


def merge(starts: Sequence[bool], *, min_tokens: int, min_tail: int) -> list[int]:
    """Subsentence ids from where they may start: greedy from the left (condition 7)."""
    ids, length = [], 0
    for token, may_start in enumerate(starts):
        if token == 0:
            ids.append(0)
        elif may_start and length >= min_tokens and len(starts) - token >= min_tail:
            ids.append(ids[-1] + 1)
            length = 0
        else:
            ids.append(ids[-1])
        length += 1
    return ids


def cut_long(ids: Sequence[int], max_tokens: int) -> list[int]:
    """Subsentence ids with those longer than `max_tokens` cut into equal parts, as few as will do (condition 8).

    >>> cut_long([0, 0, 0, 0, 0, 1], 3)
    [0, 0, 0, 1, 1, 2]
    """
    result, first, index = [], 0, -1
    while first < len(ids):
        length = next((n for n in range(len(ids) - first) if ids[first + n] != ids[first]), len(ids) - first)
        parts = -(-length // max_tokens)
        for position in range(length):
            index += position == 0 or position * parts // length != (position - 1) * parts // length
            result.append(index)
        first += length
    return result


def segment_tokens(
    pieces: Sequence[bytes],
    rule: BoundaryRule | int | str,
    *,
    min_tokens: int,
    max_tokens: int | None = MAX_TOKENS,
) -> list[int]:
    """The subsentence id of each token of one uninterrupted run, given the bytes each token stands for.

    `max_tokens` is read by the rules that cut at characters; None is no bound.
    """
    if rule == "response":
        return [0] * len(pieces)
    if isinstance(rule, int):
        return merge([True] * len(pieces), min_tokens=rule, min_tail=min(rule, min_tokens))
    if isinstance(rule, str):
        raise ValueError("rule 'entropy' needs the entropies of a model: it cannot split a text")
    ids = merge(starts_of_tokens(pieces, rule), min_tokens=min_tokens, min_tail=min_tokens)
    return ids if max_tokens is None else cut_long(ids, max_tokens)
