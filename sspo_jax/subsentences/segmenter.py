"""Token ids to subsentence ids, inside jit, and the same on text."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.subsentences import table as t
from sspo_jax.subsentences.rules import MAX_TOKENS, BoundaryRule, check_lengths, parse_rule, segment_tokens
from sspo_jax.subsentences.vocabulary import backend, token_bytes
from sspo_jax.types import Number, Scalar


class _Host:
    """What only the text side needs; compared by identity, so that it may travel through jit as a static field."""

    def __init__(self, tokenizer: Any, pieces: list[bytes]) -> None:
        self.tokenizer = tokenizer
        self.pieces = pieces


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["rule", "min_tokens", "max_tokens", "math_aware", "entropy_quantile", "host"],
)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmenter:
    """Cuts responses into subsentences (`sspo_jax.subsentences.rules` has the rule).

    A pytree: pass it to a jitted function as an argument, or close over it.
    """

    table: dict[str, Array] | None
    """The arrays of the boundary table (`sspo_jax.subsentences.table`); None for rules that do not read the text."""
    rule: str = "punctuation"
    """punctuation, sentence, newline, fixed(n), entropy, token or response."""
    min_tokens: int = 5
    """A shorter piece is joined with its neighbour."""
    max_tokens: int | None = MAX_TOKENS
    """A longer piece is cut into equal parts; None: never. Rules fixed(n), token and response do not read it."""
    math_aware: bool = True
    """Whether a mark inside brackets or dollar signs ends nothing."""
    entropy_quantile: Number = 0.8
    """Rule "entropy": a subsentence starts at a token whose entropy is above this quantile of the rollout."""
    host: Any = None
    """The tokenizer, for `split`."""

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        rule: str = "punctuation",
        min_tokens: int = 5,
        max_tokens: int | None = MAX_TOKENS,
        math_aware: bool = True,
        entropy_quantile: Number = 0.8,
        cache_dir: pathlib.Path | str | None = None,
    ) -> "Segmenter":
        """Builds the boundary table of a vocabulary, or reads it from the cache.

        Args:
          tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`.
          rule: punctuation, sentence, newline, fixed(n), entropy, token or response.
          min_tokens: a shorter piece is joined with its neighbour.
          max_tokens: a longer piece is cut into equal parts, as few as will do; None means never. The rules fixed(n),
            token and response do not read it.
          math_aware: whether a mark inside brackets or dollar signs ends nothing.
          entropy_quantile: read by the rule "entropy".
          cache_dir: where tables are kept; None means $SSPO_CACHE_DIR, or ~/.cache/sspo_jax.

        Raises:
          ValueError: an option is out of its range, the rule unknown, or the tokenizer's tokens have no exact bytes.
        """
        check_lengths(min_tokens, max_tokens)
        if not 0 <= entropy_quantile <= 1:
            raise ValueError(f"entropy_quantile is {entropy_quantile}, expected a number from 0 to 1")
        parsed = parse_rule(rule, math_aware=math_aware)
        pieces = token_bytes(tokenizer)
        table = None
        if isinstance(parsed, BoundaryRule):
            built = t.cached(pieces, parsed, pathlib.Path(cache_dir) if cache_dir is not None else None)
            table = {name: jnp.asarray(getattr(built, name)) for name in t.FIELDS}
        return cls(
            table=table,
            rule=rule,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            math_aware=math_aware,
            entropy_quantile=entropy_quantile,
            host=_Host(backend(tokenizer), pieces),
        )

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        segment_ids: Int[Array, "batch time"] | None = None,
        *,
        entropies: Float[Array, "batch time"] | None = None,
        entropy_threshold: Scalar | None = None,
    ) -> Int[Array, "batch time"]:
        """The subsentence of each token, numbered from 0 along its row; -1 where the mask is false.

        A gap in the mask ends a subsentence, and none crosses from one packed response into the next. (Under the rule
        "response" a gap does not: the unit is then GSPO's.)

        Args:
          tokens: [batch, time], token ids.
          mask: [batch, time], true where a token enters the loss.
          segment_ids: [batch, time], packed responses; without it a row is one response.
          entropies: [batch, time], nats; read by the rule "entropy" alone.
          entropy_threshold: nats, for the rule "entropy": `threshold` of the whole rollout, so that cutting it into
            parts changes nothing. None means the quantile of these rows' valid tokens.
        """
        for name, array in (("mask", mask), ("segment_ids", segment_ids), ("entropies", entropies)):
            if array is not None and array.shape != tokens.shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {tokens.shape}, the shape of tokens")
        if mask.dtype != bool:
            raise ValueError(f"mask has type {mask.dtype}, expected bool, true where a token counts: mask > 0")
        segments = jnp.zeros(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
        rule = parse_rule(self.rule, math_aware=self.math_aware)
        if rule == "response":
            return _responses(mask, segments)
        # From here on time comes first: the loops below walk along it, and a transposed copy costs more than a loop.
        tokens, mask, segments = tokens.T, mask.T, segments.T
        same = segments[1:] == segments[:-1]
        starts_run = mask & ~jnp.pad(mask[:-1] & same, ((1, 0), (0, 0)))
        ends_run = mask & ~jnp.pad(mask[1:] & same, ((0, 1), (0, 0)))
        minimum = tail = self.min_tokens
        maximum = None if isinstance(rule, int) else self.max_tokens
        if isinstance(rule, BoundaryRule):
            may_start = self._boundaries(tokens, starts_run, ends_run)
        elif isinstance(rule, int):
            may_start, minimum, tail = mask, rule, min(rule, self.min_tokens)
        elif entropies is None:
            raise ValueError("rule 'entropy' needs entropies: pass entropies=..., nats, [batch, time]")
        else:
            entropies = jnp.where(mask, entropies.T, jnp.nan)
            if entropy_threshold is None:
                entropy_threshold = jnp.nanquantile(entropies, self.entropy_quantile)
            may_start = entropies > entropy_threshold
        return _merge(may_start, mask, starts_run, ends_run, minimum=minimum, tail=tail, maximum=maximum).T

    def threshold(self, entropies: Iterable[np.ndarray], masks: Iterable[np.ndarray]) -> float | None:
        """The `entropy_threshold` of a rollout: the quantile over its valid tokens. None for the other rules.

        Args:
          entropies: nats, [rows, time], of each part of the rollout, on the host.
          masks: bools of the same shapes.
        """
        if self.rule != "entropy":
            return None
        valid = [np.asarray(part)[np.asarray(mask)] for part, mask in zip(entropies, masks, strict=True)]
        together = np.concatenate([np.zeros(0, np.float32), *valid])
        return float(np.quantile(together, self.entropy_quantile)) if together.size else 0.0

    def _boundaries(
        self,
        tokens: Int[Array, "time batch"],
        starts_run: Bool[Array, "time batch"],
        ends_run: Bool[Array, "time batch"],
    ) -> Bool[Array, "time batch"]:
        """Whether a subsentence may start at each token: conditions 1 to 6 of `rules`, from the table."""
        assert self.table is not None
        shape_of, shapes, brackets = (self.table[name] for name in ("shape_of", "shapes", "brackets"))
        num_contexts, num_ahead, num_behind = (self.table[name].shape[1] for name in ("shapes", "right", "left"))
        shapes, right, left = (self.table[name].reshape(-1) for name in ("shapes", "right", "left"))
        rows = _at(shape_of, jnp.clip(tokens, 0, shape_of.shape[0] - 1)) * num_contexts

        def before(words: Array) -> Array:
            """The context before each token, given the contexts that tokens leave."""
            contexts = words & (2**t.CONTEXT_BITS - 1)
            return jnp.where(starts_run, 0, jnp.pad(contexts[:-1], ((1, 0), (0, 0))))

        # A context is at most three bytes, so it depends on no more than three tokens: three rounds are exact.
        words = _at(shapes, rows)
        for _ in range(3):
            words = _at(shapes, rows + before(words))
        classes = words >> t.CONTEXT_BITS
        batch = tokens.shape[1]
        zeros = jnp.zeros(batch, jnp.int32)

        # A loop's step costs by the number of its results, so what it carries is packed into one integer.
        def count(depth: Array, words: Array) -> Array:
            """How many brackets are open (from the left) or are closed (from the right) past a token."""
            return jnp.maximum(depth + (words & 0xFFFF) + t.RESET, words >> 16)

        def look(carry: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
            """From the right: what each token's characters know of the text behind them, and brackets closed there."""
            classes, words, ends = x
            carry = jnp.where(ends, 0, carry)
            closed = carry >> t.AHEAD_BITS
            word = _at(right, classes * num_ahead + (carry & (2**t.AHEAD_BITS - 1)))
            found = (word >> t.AHEAD_BITS) << t.LIMIT_BITS | jnp.minimum(closed, t.EVER - 1)
            return count(closed, words) << t.AHEAD_BITS | (word & (2**t.AHEAD_BITS - 1)), found

        xs = (classes, _at(brackets[1], classes), ends_run)
        _, found = jax.lax.scan(look, zeros, xs, reverse=True)

        def step(carry: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
            """From the left: the state, whether a token may start one and whether it ends one, and brackets open."""
            found, words, starts = x
            carry = jnp.where(starts, 0, carry)
            opened, is_closed = carry >> (t.BEHIND_BITS + 2), (carry >> (t.BEHIND_BITS + 1)) & 1
            word = _at(left, (found >> t.LIMIT_BITS) * num_behind + (carry & (2**t.BEHIND_BITS - 1)))
            stays_left = (word >> t.BEHIND_BITS) & 1
            open_limit = (word >> (t.BEHIND_BITS + 1)) & t.EVER
            closed_limit = (word >> (t.BEHIND_BITS + 1 + t.LIMIT_BITS)) & t.EVER
            has_boundary = (jnp.minimum(opened, t.EVER - 1) < open_limit) | ((found & t.EVER) < closed_limit)
            may_start = is_closed & ~stays_left
            is_closed = has_boundary.astype(jnp.int32) | (stays_left & is_closed)
            carry = count(opened, words) << 2 | is_closed << 1 | may_start
            carry = carry << t.BEHIND_BITS | (word & (2**t.BEHIND_BITS - 1))
            return carry, carry

        _, states = jax.lax.scan(step, zeros, (found, _at(brackets[0], classes), starts_run))
        return (states >> t.BEHIND_BITS) & 1 == 1

    def split(self, text: str) -> list[str]:
        """The subsentences of a text, the reference: tokenizes it and applies the rule to its characters.

        `"".join` of the result is the text. A character that is cut into several tokens goes to the piece in which it
        starts. Rules that cut inside a character leave an empty piece for the rest of it.
        """
        if self.host is None:
            raise ValueError("this Segmenter has no tokenizer: make it with Segmenter.from_tokenizer")
        encoding = self.host.tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids:
            return [text] if text else []
        pieces = [self.host.pieces[token] for token in encoding.ids]
        rule = parse_rule(self.rule, math_aware=self.math_aware)
        ids = segment_tokens(pieces, rule, min_tokens=self.min_tokens, max_tokens=self.max_tokens)
        ends = self._ends(text, encoding.ids, encoding.offsets)
        cuts = [ends[i] for i in range(len(ids) - 1) if ids[i + 1] != ids[i]]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def _ends(self, text: str, tokens: list[int], offsets: list[tuple[int, int]]) -> list[int]:
        """Where each token ends in the text, in characters."""
        # The tokenizer's offsets are right also where it normalizes the text, but may leave white space out, and
        # they must not go back.
        ends, last = [], 0
        for _, end in offsets:
            last = max(last, end)
            ends.append(last)
        spelled = [self.host.pieces[token] for token in tokens]
        if b"".join(spelled) != text.encode("utf-8", errors="surrogatepass"):
            return ends
        # Bytes are exact where nothing was normalized: count the characters that have started.
        position, ends = 0, []
        starts = [byte & 0xC0 != 0x80 for byte in b"".join(spelled)]
        counts = [0]
        for is_start in starts:
            counts.append(counts[-1] + is_start)
        for piece in spelled:
            position += len(piece)
            ends.append(counts[position])
        return ends


def _at(values: Int[Array, " n"], where: Int[Array, "..."]) -> Int[Array, "..."]:
    """`values[where]` of indices known to be in bounds."""
    return values.at[where].get(mode="promise_in_bounds")


def _merge(
    may_start: Bool[Array, "time batch"],
    mask: Bool[Array, "time batch"],
    starts_run: Bool[Array, "time batch"],
    ends_run: Bool[Array, "time batch"],
    *,
    minimum: int,
    tail: int,
    maximum: int | None,
) -> Int[Array, "time batch"]:
    """Subsentence ids from where they may start: conditions 7 and 8 of `rules`."""
    zeros = jnp.zeros(mask.shape[1], jnp.int32)

    def count(remaining: Array, ends: Array) -> tuple[Array, Array]:
        remaining = jnp.where(ends, 1, remaining + 1)
        return remaining, remaining >= tail

    _, is_enough = jax.lax.scan(count, zeros, ends_run, reverse=True)

    def step(carry: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        index, length = carry
        starts, allowed = x
        cut = starts | (allowed & (length >= minimum))
        index, length = index + cut, jnp.where(cut, 1, length + 1)
        return (index, length), (index, length)

    _, (ids, lengths) = jax.lax.scan(step, (zeros - 1, zeros), (starts_run, may_start & is_enough & mask))
    if maximum is not None:

        def measure(carry: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            """From the right: the length of each token's piece, which is that of the piece up to its last token."""
            length, left = carry
            so_far, ends = x
            length = jnp.where(ends | (left == 0), so_far, length)
            return (length, so_far - 1), length

        _, whole = jax.lax.scan(measure, (zeros, zeros), (lengths, ends_run), reverse=True)

        def cut_long(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            """Token p starts another part where floor(p * parts / length) steps: `left_over` is the remainder."""
            index, left_over = carry
            so_far, length, counts = x
            left_over = jnp.where(so_far == 1, length, left_over + (length + maximum - 1) // maximum)
            cut = counts & (left_over >= length)
            index, left_over = index + cut, jnp.where(cut, left_over - length, left_over)
            return (index, left_over), index

        _, ids = jax.lax.scan(cut_long, (zeros - 1, zeros), (lengths, whole, mask))
    return jnp.where(mask, ids, -1)


def _responses(mask: Bool[Array, "batch time"], segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """One id for each packed response."""
    position = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    last_valid = jax.lax.cummax(jnp.where(mask, position, -1), axis=1)
    previous = jnp.pad(last_valid[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before = jnp.take_along_axis(segments, jnp.maximum(previous, 0), axis=1)
    is_new = mask & ((previous < 0) | (before != segments))
    return jnp.where(mask, jnp.cumsum(is_new, axis=1, dtype=jnp.int32) - 1, -1)
