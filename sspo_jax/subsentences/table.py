"""The boundary table: what each token does to the rule's state, so that the rule runs on token ids alone.

The rule of `rules.py` reads characters, and `automata.py` reads them one after another, from the right and from the
left. A token may hold several of them, or a part of one. Its effect is theirs one after another:

- the *context* before it, the first bytes of a character that it may complete, decides which characters it holds: its
  *effect class* (a character belongs to the token with its last byte);
- from the right, a class and the state of what follows give the state at its front, and an *action*: what the
  characters of the token know of the text behind them;
- from the left, an action and the state before it give the state after it, and whether a subsentence ends in it: if at
  its start fewer brackets than some number are open, or at its end fewer than another are closed.

Equal effects are stored once: a vocabulary of 151,665 has a few thousand classes and actions.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import tempfile

import numpy as np

from sspo_jax.subsentences.automata import ALWAYS, INDEX, LETTERS, OUTSIDE, Automata, automata, classes_of
from sspo_jax.subsentences.rules import BoundaryRule, characters
from sspo_jax.subsentences.vocabulary import SPECIAL, digest

# Part of the cache's file name: raise it whenever a table would come out different.
VERSION = 3

# A number of brackets never gets near this: added to it, the floor always wins.
RESET = -(2**15)
# More brackets than a token can close: fewer than this many are always open.
EVER = 2**10 - 1
# Bits of the packed tables: an action and a state from the right; a state from the left, two limits and a flag; a class
# and a context.
AHEAD_BITS, BEHIND_BITS, LIMIT_BITS, CONTEXT_BITS = 9, 10, 10, 8


@dataclasses.dataclass(frozen=True)
class BoundaryTable:
    """The tables of a vocabulary and a rule, int32."""

    shape_of: np.ndarray  # [vocab + 1] a row of `shapes`; the last one is for ids past the vocabulary
    shapes: np.ndarray  # [shapes, contexts] effect class << CONTEXT_BITS | the context that is left
    brackets: np.ndarray  # [2, classes] floor << 16 | delta - RESET, of the counters from the left and from the right
    right: np.ndarray  # [classes, states from the right] action << AHEAD_BITS | the state at the front
    left: np.ndarray  # [actions, states from the left] see `_left_word`


def _left_word(state: np.ndarray, stays: np.ndarray, open_limit: np.ndarray, closed_limit: np.ndarray) -> np.ndarray:
    """state | stays left | limit of the brackets open before | limit of those closed after, from the lowest bit."""
    word = state | (stays.astype(np.int64) << BEHIND_BITS) | (open_limit << (BEHIND_BITS + 1))
    return (word | (closed_limit << (BEHIND_BITS + 1 + LIMIT_BITS))).astype(np.uint32).view(np.int32)


@functools.cache
def _completions(prefix: bytes) -> tuple[int | None, ...] | None:
    """For each byte that may follow the first bytes of a character, the class it completes, or less a context.

    An entry is None where no character comes of it; all is None if `prefix` does not begin one.
    """
    lead = prefix[0] if prefix else 0
    width = 2 if 0xC2 <= lead <= 0xDF else 3 if 0xE0 <= lead <= 0xEF else 4 if 0xF0 <= lead <= 0xF4 else 0
    if not 0 < len(prefix) < width:
        return None
    low = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    high = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
    seconds = range(low, high + 1)
    following = seconds if len(prefix) == 1 else range(0x80, 0xC0 if prefix[1] in seconds else 0x80)
    result: list[int | None] = [None] * 64
    if len(prefix) == width - 1:
        text = b"".join(prefix + bytes([byte]) for byte in following).decode("utf-8")
        result[slice(following.start - 0x80, following.stop - 0x80)] = classes_of(text)
    else:
        for byte in following:
            # No character of four bytes has a class of its own, so only their number matters.
            begun = prefix + bytes([byte]) if width == 3 else b"\xf1\x80\x80"[: len(prefix) + 1]
            result[byte - 0x80] = -context_of(begun)
    return tuple(result) if len(following) else None


_CONTEXTS: dict[tuple[int | None, ...], int] = {}
_REPRESENTATIVES: list[bytes] = [b""]


def context_of(prefix: bytes) -> int:
    """The number of a context: equal where the same bytes complete the same classes. 0 is none."""
    completions = _completions(prefix)
    if completions is None:
        return 0
    if completions not in _CONTEXTS:
        _CONTEXTS[completions] = len(_REPRESENTATIVES)
        _REPRESENTATIVES.append(prefix)
    return _CONTEXTS[completions]


@functools.cache
def contexts() -> tuple[bytes, ...]:
    """First bytes of characters that stand for each context."""
    for lead in range(0xC2, 0xF5):
        context_of(bytes([lead]))
    return tuple(_REPRESENTATIVES)


def _tail(data: bytes) -> bytes:
    """The first bytes of a character at the end of the data, or nothing."""
    for n in (1, 2, 3):
        if len(data) >= n and data[-n] >= 0xC0:
            return data[-n:] if _completions(data[-n:]) is not None else b""
    return b""


def read(piece: bytes, context: bytes) -> tuple[bytes, bool, int]:
    """(the classes of the characters that end in a token, whether it holds nothing else, the context it leaves)."""
    data = context + piece
    tail = _tail(data)
    chars = characters(data[: len(data) - len(tail)])
    if len(tail) > len(piece):
        return b"", False, context_of(tail)
    covered = sum(end - max(start, len(context)) for _, start, end in chars)
    return bytes(classes_of("".join(character for character, _, _ in chars))), covered == len(piece), context_of(tail)


_QUIET = ("white", "digit", "star", "slash", "less", "other", "cjk", "wide_open", *sorted(LETTERS))
_QUIET_RUN = re.compile(b"[" + re.escape(bytes(INDEX[name] for name in _QUIET)) + b"]+")
_ASCII_CLASSES = bytes(classes_of("".join(chr(min(byte, 127)) for byte in range(256))))


class _Shortener:
    """Writes runs of characters that need nothing of what follows as the first run of the same effect.

    The effects of runs are numbered, and what one more character makes of them is looked up where it is known.
    """

    def __init__(self, machine: Automata) -> None:
        self.machine = machine
        num_behind, num_ahead = machine.stays.shape[1], machine.ahead.shape[1]
        nothing = (np.arange(num_behind), np.ones(num_behind, bool)), (np.arange(num_ahead),)
        self.effects: tuple[list[tuple[np.ndarray, ...]], ...] = ([nothing[0]], [nothing[1]])
        self.numbers: tuple[dict[bytes, int], ...] = ({}, {})
        self.longer: tuple[dict[tuple[int, int], int], ...] = ({}, {})
        self.run_of_effect: dict[tuple[int, int], bytes] = {}
        self.known: dict[bytes, bytes] = {}

    def extend(self, side: int, number: int, index: int) -> int:
        """The number of an effect, from the left (0) or the right (1), with one more character."""
        before = self.effects[side][number]
        if side == 0:
            state, staying = before
            new = self.machine.behind[index][0][state], staying & self.machine.stays[index][state]
        else:
            new = (self.machine.ahead[index][before[0]],)
        key = b"".join(array.tobytes() for array in new)
        if key not in self.numbers[side]:
            self.numbers[side][key] = len(self.effects[side])
            self.effects[side].append(new)
        return self.numbers[side][key]

    def shorten(self, match: re.Match[bytes]) -> bytes:
        """The run that stands for one of the same effect."""
        run = match[0]
        if run not in self.known:
            found = []
            for side, order in enumerate((run, run[::-1])):
                number, longer = 0, self.longer[side]
                for index in order:
                    key = (number, index)
                    if key not in longer:
                        longer[key] = self.extend(side, number, index)
                    number = longer[key]
                found.append(number)
            self.known[run] = self.run_of_effect.setdefault((found[0], found[1]), run)
        return self.known[run]

    def __call__(self, classes: bytes) -> bytes:
        return _QUIET_RUN.sub(self.shorten, classes)


def _brackets(classes: bytes) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of each character, for the counter from the left after it: delta, floor; for the one from the right: the same of
    what follows it. The last entries are the whole token's, the first ones of the latter with its first character."""
    opens = [INDEX[name] for name in ("open", "bracket", "brace")]
    closes = [INDEX["close"], INDEX["rbrace"]]
    left: tuple[list[int], list[int]] = ([0], [0])
    right: tuple[list[int], list[int]] = ([0], [0])
    for counters, order, ups, downs in ((left, classes, opens, closes), (right, classes[::-1], closes, opens)):
        delta = floor = 0
        for index in order:
            if index == INDEX["newline"]:
                delta, floor = RESET, 0
            elif index in ups:
                delta, floor = delta + 1, floor + 1
            elif index in downs:
                delta, floor = delta - 1, max(floor - 1, 0)
            counters[0].append(delta)
            counters[1].append(floor)
    return left[0][1:] + left[0][-1:], left[1][1:] + left[1][-1:], right[0][::-1], right[1][::-1]


def _limit(delta: int, floor: int) -> int:
    """One more than the most brackets at which none is left: n with max(n + delta, floor) = 0. 0 is never."""
    return 0 if floor else min(1 - delta, EVER)


def effect(
    classes: bytes, is_whole: bool, machine: Automata, rule: BoundaryRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a token of these characters does.

    Returns:
      (the state at its front for each state from the right; which of its actions, for the same; the actions, each a row
      of `BoundaryTable.left`)
    """
    ahead, seen = np.arange(machine.ahead.shape[1]), []
    for index in reversed(classes):
        seen.insert(0, machine.need_of[index][ahead])
        ahead = machine.ahead[index][ahead]
    first, which = np.zeros(1, int), np.zeros(len(ahead), int)
    for needs in seen:  # states from the right of which all characters need the same are one
        if needs.any():
            _, first, which = np.unique(which * (needs.max() + 1) + needs, return_index=True, return_inverse=True)
    delta, floor, delta_after, floor_after = _brackets(classes)
    num_states = machine.stays.shape[1]
    state = np.tile(np.arange(num_states), (len(first), 1))
    staying = np.full(state.shape, is_whole)
    open_limit, closed_limit = np.zeros_like(state), np.zeros_like(state)
    for j, index in enumerate(classes):
        needs = seen[j][first][:, None]
        staying &= machine.stays[index][state]
        ends = machine.ends[index][needs, state]
        always = (ends == ALWAYS) | ((ends == OUTSIDE) & (not rule.math_aware))
        open_limit[always] = EVER
        outside = (ends == OUTSIDE) & ~always
        if outside.any():
            open_limit[outside] = np.maximum(open_limit[outside], _limit(delta[j], floor[j]))
            closed_limit[outside] = np.maximum(closed_limit[outside], _limit(delta_after[j + 1], floor_after[j + 1]))
        state = machine.behind[index][needs, state]
    return ahead, which, _left_word(state, staying, open_limit, closed_limit)


def build(pieces: list[bytes], rule: BoundaryRule) -> BoundaryTable:
    """The table of a vocabulary, given the bytes of every token."""
    machine, before = automata(rule), contexts()
    shorten = _Shortener(machine)
    class_of_text: dict[tuple[bytes, bool], int] = {}
    shape_of_row: dict[tuple[int, ...], int] = {}

    def word(classes: bytes, is_whole: bool, left: int) -> int:
        key = (shorten(classes), is_whole)
        return class_of_text.setdefault(key, len(class_of_text)) << CONTEXT_BITS | left

    shape_of = np.empty(len(pieces) + 1, np.int32)
    shape_of_word: dict[int, int] = {}
    for token, piece in enumerate([*pieces, SPECIAL]):
        if piece.isascii():
            same = word(piece.translate(_ASCII_CLASSES), True, 0)
        elif piece[0] & 0xC0 != 0x80:
            same = word(*read(piece, b""))
        else:  # it completes a character, or would
            row = tuple(word(*read(piece, context)) for context in before)
            shape_of[token] = shape_of_row.setdefault(row, len(shape_of_row))
            continue
        if same not in shape_of_word:
            shape_of_word[same] = shape_of_row.setdefault((same,) * len(before), len(shape_of_row))
        shape_of[token] = shape_of_word[same]
    # Texts of equal effect are one class, equal actions one action.
    actions: dict[bytes, int] = {}
    class_of_effect: dict[bytes, int] = {}
    final, right, brackets = [], [], []
    for classes, is_whole in class_of_text:
        ahead, which, words = effect(classes, is_whole, machine, rule)
        numbers = np.array([actions.setdefault(row.tobytes(), len(actions)) for row in words])
        delta, floor, delta_after, floor_after = _brackets(classes) if rule.math_aware else ([0],) * 4
        counts = [floor[-1] << 16 | delta[-1] - RESET, floor_after[0] << 16 | delta_after[0] - RESET]
        row = (numbers[which] << AHEAD_BITS | ahead).astype(np.int32)
        key = row.tobytes() + np.array(counts).tobytes()
        if key not in class_of_effect:
            class_of_effect[key] = len(right)
            right.append(row)
            brackets.append(counts)
        final.append(class_of_effect[key])
    shapes = np.array(list(shape_of_row), np.int32)
    shapes = np.array(final, np.int32)[shapes >> CONTEXT_BITS] << CONTEXT_BITS | shapes & (2**CONTEXT_BITS - 1)
    return BoundaryTable(
        shape_of=shape_of,
        shapes=shapes.astype(np.int32),
        brackets=np.array(brackets, np.int32).T.copy(),
        right=np.stack(right),
        left=np.stack([np.frombuffer(row, np.int32) for row in actions]),
    )


FIELDS = tuple(field.name for field in dataclasses.fields(BoundaryTable))


def cached(pieces: list[bytes], rule: BoundaryRule, directory: pathlib.Path | None = None) -> BoundaryTable:
    """`build`, kept on disk under the vocabulary's digest.

    `directory` None means $SSPO_CACHE_DIR, or ~/.cache/sspo_jax. A file that cannot be read is built anew, and a
    directory that cannot be written is done without.
    """
    if directory is None:
        directory = pathlib.Path(os.environ.get("SSPO_CACHE_DIR") or "~/.cache/sspo_jax").expanduser()
    name = digest([*pieces, repr((VERSION, rule)).encode()])[:32]
    path = directory / f"boundaries-{name}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(path) as stored:
        return BoundaryTable(**{field: stored[field] for field in FIELDS})
    table = build(pieces, rule)
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: processes that build the same table at once never see half a file.
        descriptor, temporary = tempfile.mkstemp(dir=directory, suffix=".npz")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **{field: getattr(table, field) for field in FIELDS})
        os.replace(temporary, path)
    return table
