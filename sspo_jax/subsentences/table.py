"""The boundary table: what each token does to the rule's state, so that the rule runs on token ids alone.

The rule of `rules.py` reads characters; a token may hold several of them, half of one, or what decides about a mark
in an earlier token. Its effect depends on a few things only, and that dependence is what a row stores:

- the *context*, what the bytes before it left open: nothing, a backslash, a dollar sign, or the first bytes of a
  character that matters to the rule (a full-width mark may be cut into three tokens);
- the *depth* of brackets d and whether a `$` is open, m, at its start: a mark in it counts only if d is at most some
  number, which depends on m, and afterwards d' = max(d + delta, floor);
- what *follows*: whether the first character after it, past closers, is white space.

Equal effects are stored once: `class_of[token]` gives the row of a table of a few hundred.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from sspo_jax.subsentences.rules import (
    CLAUSE_MARKS,
    CLOSERS,
    CLOSING_BRACKETS,
    FULL_WIDTH_MARKS,
    OPENERS,
    WHITE_SPACE,
    BoundaryRule,
    characters,
)
from sspo_jax.subsentences.vocabulary import SPECIAL, digest

# Part of the cache's file name: raise it whenever a table would come out different.
VERSION = 2

_SPELLED = {character: character.encode("utf-8") for character in FULL_WIDTH_MARKS + CLOSERS + WHITE_SPACE}
_PARTIAL = sorted({spelled[:n] for spelled in _SPELLED.values() for n in range(1, len(spelled))})
CONTEXTS: tuple[bytes, ...] = (b"", b"\\", b"$", *_PARTIAL)
NO_CONTEXT = 0

# First character of the token's own that is no closer.
ONLY_CLOSERS, WHITE, OTHER = 0, 1, 2
# What becomes of the character that earlier tokens began.
ORDINARY, CLOSER, SPACE, MARK, CONTINUES = 0, 1, 2, 3, 4
# A depth never gets near this: added to it, the floor always wins.
RESET = -(2**15)

# Columns of a row.
CONTEXT, FIRST, HEAD, IS_PARTIAL, STAYS_LEFT, ENDS, DOLLARS, DELTA, FLOOR = range(9)
SURE_OUTSIDE, SURE_INSIDE, IF_WHITE_OUTSIDE, IF_WHITE_INSIDE = range(9, 13)
# Word, first bit, number of bits: a row is three integers, so that the device gathers three numbers a token.
_LAYOUT = {
    CONTEXT: (0, 0, 5),
    FIRST: (0, 5, 2),
    HEAD: (0, 7, 3),
    IS_PARTIAL: (0, 10, 1),
    STAYS_LEFT: (0, 11, 1),
    ENDS: (0, 12, 1),
    DOLLARS: (0, 13, 1),
    DELTA: (1, 0, 16),  # stored less RESET, so that it is not negative
    FLOOR: (1, 16, 15),
    SURE_OUTSIDE: (2, 0, 8),
    SURE_INSIDE: (2, 8, 8),
    IF_WHITE_OUTSIDE: (2, 16, 8),
    IF_WHITE_INSIDE: (2, 24, 8),
}
NUM_WORDS = 3


def pack(row: Sequence[int]) -> list[int]:
    """The words of a row of columns, as int32 values."""
    words = [0] * NUM_WORDS
    for column, (word, shift, bits) in _LAYOUT.items():
        value = row[column] - RESET if column == DELTA else row[column]
        if not 0 <= value < 2**bits:
            raise ValueError(f"column {column} of the boundary table is {value}, want 0 to {2**bits - 1}")
        words[word] |= value << shift
    return [word - 2**32 if word >= 2**31 else word for word in words]


def field(words: Any, column: int) -> Any:
    """A column, from the words of a row or of many rows; NumPy and JAX alike."""
    word, shift, bits = _LAYOUT[column]
    value = (words[word] >> shift) & (2**bits - 1)
    return value + RESET if column == DELTA else value


@dataclasses.dataclass(frozen=True)
class BoundaryTable:
    """`words[:, class_of[token] * len(CONTEXTS) + context]` is the effect of a token."""

    class_of: np.ndarray  # [vocab + 1] int32; the last one is for ids past the vocabulary
    words: np.ndarray  # [NUM_WORDS, classes * contexts] int32


def effect(piece: bytes, context: bytes, rule: BoundaryRule) -> tuple[int, ...]:
    """One row: the effect of a token in a context.

    Columns: context it leaves; FIRST; HEAD; whether it ends inside a character that may matter; whether it is only
    white space and closers; whether it surely ends a subsentence; how many times `$` toggles (mod 2); the depth's
    `delta` and `floor`; and four limits, one more than the largest depth at which a mark of it ends one: surely, or if
    what follows is white space; with `$` closed, or open, at its start. 0 is never.
    """
    prefix = context if context in _PARTIAL else b""
    data = prefix + piece
    tail = next((p for p in sorted(_PARTIAL, key=len, reverse=True) if data.endswith(p)), b"")
    row = [0] * len(_LAYOUT)
    row[CONTEXT] = CONTEXTS.index(tail) if tail else NO_CONTEXT
    row[IS_PARTIAL] = int(bool(tail))
    row[STAYS_LEFT] = 1
    if len(tail) > len(piece):
        row[HEAD] = CONTINUES
        return tuple(row)
    chars = [item for item in characters(data[: len(data) - len(tail)]) if item[2] > len(prefix)]
    text = [character for character, _, _ in chars]
    if prefix and chars and chars[0][1] < len(prefix):
        row[HEAD] = _head(text[0], rule)
    for character in text:
        if character not in CLOSERS:
            row[FIRST] = WHITE if character in WHITE_SPACE else OTHER
            break
    row[STAYS_LEFT] = int(all(character in CLOSERS or character in WHITE_SPACE for character in text))
    delta, floor, dollars, before = 0, 0, 0, context.decode("ascii") if context in (b"\\", b"$") else ""
    for j, character in enumerate(text):
        if character in rule.always:
            row[ENDS] = 1
        elif character in rule.clause and before != "\\":
            following = [c for c in text[j + 1 :] if c not in CLOSERS][:1]
            if not following or following[0] in WHITE_SPACE:
                column = SURE_OUTSIDE if following else IF_WHITE_OUTSIDE
                if not rule.math_aware:
                    row[column] = row[column + 1] = 1  # the depth stays 0
                elif floor == 0:
                    # d + delta <= 0, and `$` closed here: column 0 or 1 by how often it toggled since the start.
                    row[column + dollars] = max(row[column + dollars], 1 - delta)
        if character == "\n":
            delta, floor, dollars = RESET, 0, 0
        elif character in OPENERS:
            delta, floor = delta + 1, floor + 1
        elif character in CLOSING_BRACKETS:
            delta, floor = delta - 1, max(floor - 1, 0)
        elif character == "$" and before == "":
            dollars = 1 - dollars
        before = character if character == "\\" or (character == "$" and before != "\\") else ""
    if not tail and before:
        row[CONTEXT] = CONTEXTS.index(before.encode("ascii"))
    row[DELTA], row[FLOOR], row[DOLLARS] = (delta, floor, dollars) if rule.math_aware else (0, 0, 0)
    return tuple(row)


def _head(character: str, rule: BoundaryRule) -> int:
    if character in CLOSERS:
        return CLOSER
    if character in WHITE_SPACE:
        return SPACE
    return MARK if character in rule.always else ORDINARY


_SIGNIFICANT = "".join(sorted({*OPENERS, *CLOSERS, *WHITE_SPACE, *CLAUSE_MARKS, *FULL_WIDTH_MARKS, "$", "\\"}))
_ASCII = "".join(c for c in map(chr, range(128)) if c not in _SIGNIFICANT).encode("ascii")
_PLAIN = re.compile(b"[" + re.escape(_ASCII) + b"]+")
_MULTIBYTE = re.compile(rb"[\xC2-\xDF][\x80-\xBF]|[\xE0-\xEF][\x80-\xBF]{2}|[\xF0-\xF4][\x80-\xBF]{3}")
_SIGNIFICANT_BYTES = frozenset(_SPELLED.values())


def skeleton(piece: bytes) -> bytes:
    """The token with every run of characters that mean nothing to a rule written as one `a`: far fewer to look at."""
    if not piece.isascii():
        piece = _MULTIBYTE.sub(lambda m: m[0] if m[0] in _SIGNIFICANT_BYTES else b"a", piece)
    return _PLAIN.sub(b"a", piece)


def build(pieces: list[bytes], rule: BoundaryRule) -> BoundaryTable:
    """The table of a vocabulary, given the bytes of every token."""
    class_of_skeleton: dict[bytes, int] = {}
    class_of_rows: dict[tuple[tuple[int, ...], ...], int] = {}
    class_of = np.empty(len(pieces) + 1, np.int32)
    for token, piece in enumerate([*pieces, SPECIAL]):
        shape = skeleton(piece)
        if shape not in class_of_skeleton:
            rows = tuple(effect(shape, context, rule) for context in CONTEXTS)
            class_of_skeleton[shape] = class_of_rows.setdefault(rows, len(class_of_rows))
        class_of[token] = class_of_skeleton[shape]
    words = [pack(row) for rows in class_of_rows for row in rows]
    return BoundaryTable(class_of, np.array(words, np.int32).T.copy())


def cached(pieces: list[bytes], rule: BoundaryRule, directory: pathlib.Path | None = None) -> BoundaryTable:
    """`build`, kept on disk under the vocabulary's digest.

    `directory` None means $SSPO_CACHE_DIR, or ~/.cache/sspo_jax. A file that cannot be read is built anew, and a
    directory that cannot be written is done without.
    """
    if directory is None:
        directory = pathlib.Path(os.environ.get("SSPO_CACHE_DIR") or "~/.cache/sspo_jax").expanduser()
    name = digest([*pieces, repr((VERSION, CONTEXTS, rule)).encode()])[:32]
    path = directory / f"boundaries-{name}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(path) as stored:
        return BoundaryTable(stored["class_of"], stored["words"])
    table = build(pieces, rule)
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: processes that build the same table at once never see half a file.
        descriptor, temporary = tempfile.mkstemp(dir=directory, suffix=".npz")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, class_of=table.class_of, words=table.words)
        os.replace(temporary, path)
    return table
