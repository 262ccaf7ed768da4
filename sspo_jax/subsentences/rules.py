"""Where a subsentence ends, on text: the reference, in plain Python.

A subsentence is a run of tokens that ends at a boundary (arXiv:2511.04256v2, our reading; docs/algorithm.md):

1. A newline and full-width punctuation always end one.
2. `, ; : . ! ?` end one only if the character before is not a backslash and the next one, past closing brackets and
   quotes, is white space or the end of the text.
3. Math-aware: inside `(...)`, `[...]`, `{...}` or `$...$` such a mark does not end one. Brackets are counted without
   regard to their kind, so that `[0, 1)` balances, and `\\(...\\)` and `\\[...\\]` come for free. A run of dollar signs
   is one delimiter, so `$$...$$` works; an escaped one is none. A newline closes everything.
4. A token that holds the last byte of a boundary closes its subsentence, and the tokens of only white space and
   closers after it stay with it.
5. A piece of fewer than `min_tokens` tokens is joined with the next one, a short tail with the one before.

A token of the tokenizer's own, such as the end of text, counts as white space.
"""

import dataclasses
import re
from collections.abc import Sequence

FULL_WIDTH_MARKS = "。，；：？！、"
CLAUSE_MARKS = ",;:.!?"
OPENERS = "([{"
CLOSING_BRACKETS = ")]}"
CLOSERS = CLOSING_BRACKETS + "\"'’”»›」』】》〉）］｝〕"
# Every character for which str.isspace() holds.
WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryRule:
    """Which characters end a subsentence."""

    always: str
    """Characters that always end one."""
    clause: str = ""
    """Characters that end one under conditions 2 and 3."""
    math_aware: bool = True
    """Whether condition 3 holds."""


_BOUNDARY_RULES = {
    "punctuation": BoundaryRule(always="\n" + FULL_WIDTH_MARKS, clause=CLAUSE_MARKS),
    "sentence": BoundaryRule(always="\n。？！", clause=".!?"),
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
    match = re.fullmatch(r"fixed\(([1-9][0-9]*)\)", rule)
    if match:
        return int(match[1])
    raise ValueError(f"rule is {rule!r}, want punctuation, sentence, newline, fixed(n), entropy, token or response")


def characters(data: bytes) -> list[tuple[str, int, int]]:
    """(character, first byte, past its last byte); bytes that are no UTF-8 are characters of their own."""
    result, position = [], 0
    for character in data.decode("utf-8", errors="surrogateescape"):
        width = 1 if "\udc80" <= character <= "\udcff" else len(character.encode("utf-8"))
        result.append((character, position, position + width))
        position += width
    return result


def is_boundary(text: Sequence[str], rule: BoundaryRule) -> list[bool]:
    """For each character, whether a subsentence ends right after it."""
    # ends[j]: is the first character from j on that is no closer white space, or is there none?
    ends = [True] * (len(text) + 1)
    for j in range(len(text) - 1, -1, -1):
        ends[j] = ends[j + 1] if text[j] in CLOSERS else text[j] in WHITE_SPACE
    result = []
    depth, in_dollars, before = 0, False, ""
    for j, character in enumerate(text):
        if character in rule.always:
            result.append(True)
        elif character in rule.clause:
            is_open = rule.math_aware and (depth > 0 or in_dollars)
            result.append(before != "\\" and not is_open and ends[j + 1])
        else:
            result.append(False)
        if character == "\n":
            depth, in_dollars = 0, False
        elif character in OPENERS:
            depth += 1
        elif character in CLOSING_BRACKETS:
            depth = max(depth - 1, 0)
        elif character == "$" and before == "":
            in_dollars = not in_dollars
        # "\$" is an ordinary character: a dollar sign after it starts anew.
        before = character if character == "\\" or (character == "$" and before != "\\") else ""
    return result


def starts_of_tokens(pieces: Sequence[bytes], rule: BoundaryRule) -> list[bool]:
    """For each token, whether a subsentence may start at it (conditions 1 to 4)."""
    spans, position = [], 0
    for piece in pieces:
        spans.append((position, position + len(piece)))
        position += len(piece)
    chars = characters(b"".join(pieces))
    boundary = is_boundary([character for character, _, _ in chars], rule)
    has_boundary, stays_left = [False] * len(pieces), [True] * len(pieces)
    first = 0
    for (character, start, end), ends in zip(chars, boundary, strict=True):
        while spans[first][1] <= start:
            first += 1
        token = first
        while token < len(spans) and spans[token][0] < end:
            if character not in CLOSERS and character not in WHITE_SPACE:
                stays_left[token] = False
            if ends and spans[token][0] < end <= spans[token][1]:
                has_boundary[token] = True
            token += 1
    starts, is_closed = [], False
    for token in range(len(pieces)):
        starts.append(is_closed and not stays_left[token])
        is_closed = has_boundary[token] or (stays_left[token] and is_closed)
    return starts


def merge(starts: Sequence[bool], *, min_tokens: int, min_tail: int) -> list[int]:
    """Subsentence ids from where they may start: greedy from the left (condition 5)."""
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


def segment_tokens(pieces: Sequence[bytes], rule: BoundaryRule | int | str, *, min_tokens: int) -> list[int]:
    """The subsentence id of each token of one uninterrupted run, given the bytes each token stands for."""
    if rule == "response":
        return [0] * len(pieces)
    if isinstance(rule, int):
        return merge([True] * len(pieces), min_tokens=rule, min_tail=min(rule, min_tokens))
    if isinstance(rule, str):
        raise ValueError("rule 'entropy' needs the entropies of a model: it cannot split a text")
    return merge(starts_of_tokens(pieces, rule), min_tokens=min_tokens, min_tail=min_tokens)
