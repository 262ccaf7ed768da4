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
from sspo_jax.subsentences.rules import BoundaryRule, parse_rule, segment_tokens
from sspo_jax.subsentences.vocabulary import backend, token_bytes
from sspo_jax.types import Number, Scalar


class _Host:
    """What only the text side needs; compared by identity, so that it may travel through jit as a static field."""

    def __init__(self, tokenizer: Any, pieces: list[bytes]) -> None:
        self.tokenizer = tokenizer
        self.pieces = pieces


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["class_of", "words"],
    meta_fields=["rule", "min_tokens", "math_aware", "entropy_quantile", "host"],
)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmenter:
    """Cuts responses into subsentences (`sspo_jax.subsentences.rules` has the rule).

    A pytree: pass it to a jitted function as an argument, or close over it.
    """

    class_of: Int[Array, " vocab"] | None
    """The boundary table's row of each token; None for rules that do not read the text."""
    words: Int[Array, "words rows"] | None
    """The rows of the boundary table, packed."""
    rule: str = "punctuation"
    """punctuation, sentence, newline, fixed(n), entropy, token or response."""
    min_tokens: int = 5
    """A shorter piece is joined with its neighbour."""
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
        math_aware: bool = True,
        entropy_quantile: Number = 0.8,
        cache_dir: pathlib.Path | str | None = None,
    ) -> "Segmenter":
        """Builds the boundary table of a vocabulary, or reads it from the cache.

        Args:
          tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`.
          rule: punctuation, sentence, newline, fixed(n), entropy, token or response.
          min_tokens: a shorter piece is joined with its neighbour.
          math_aware: whether a mark inside brackets or dollar signs ends nothing.
          entropy_quantile: read by the rule "entropy".
          cache_dir: where tables are kept; None means $SSPO_CACHE_DIR, or ~/.cache/sspo_jax.
        """
        if min_tokens < 1:
            raise ValueError(f"min_tokens is {min_tokens}, want 1 or more")
        if not 0 <= entropy_quantile <= 1:
            raise ValueError(f"entropy_quantile is {entropy_quantile}, want a number from 0 to 1")
        parsed = parse_rule(rule, math_aware=math_aware)
        pieces = token_bytes(tokenizer)
        class_of = words = None
        if isinstance(parsed, BoundaryRule):
            table = t.cached(pieces, parsed, pathlib.Path(cache_dir) if cache_dir is not None else None)
            class_of, words = jnp.asarray(table.class_of), jnp.asarray(table.words)
        return cls(
            class_of=class_of,
            words=words,
            rule=rule,
            min_tokens=min_tokens,
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
                raise ValueError(f"{name} has shape {array.shape}, want {tokens.shape}, the shape of tokens")
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
        return _merge(may_start, mask, starts_run, ends_run, minimum=minimum, tail=tail).T

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
        """Whether a subsentence may start at each token: conditions 1 to 4 of `rules`, from the table."""
        assert self.class_of is not None
        assert self.words is not None
        classes = self.class_of[jnp.clip(tokens, 0, self.class_of.shape[0] - 1)] * len(t.CONTEXTS)
        leaves = t.field(self.words, t.CONTEXT)

        def before(contexts: Array) -> Array:
            """The context before each token, given the contexts that tokens leave."""
            return jnp.where(starts_run, t.NO_CONTEXT, jnp.pad(contexts[:-1], ((1, 0), (0, 0))))

        # A context is at most two bytes, so it depends on no more than two tokens: two rounds are exact.
        rows = classes + before(leaves[classes + before(leaves[classes])])
        words = tuple(word[rows] for word in self.words)
        field = functools.partial(t.field, words)

        def look(carry: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            """From the right: does white space follow, and what becomes of a character that a token leaves open?"""
            white_next, head_next = carry
            flags, ends = x
            white_next, head_next = white_next | ends, jnp.where(ends, t.ORDINARY, head_next)
            is_partial, head, first = (t.field([flags], name) for name in (t.IS_PARTIAL, t.HEAD, t.FIRST))
            white_next = white_next & ~((is_partial == 1) & (head_next == t.ORDINARY))
            stays_left = (is_partial == 0) | (head_next == t.CLOSER) | (head_next == t.SPACE)
            white = (first == t.WHITE) | ((first == t.ONLY_CLOSERS) & white_next)
            found = white_next.astype(jnp.int32) + 2 * stays_left.astype(jnp.int32)
            return (white, jnp.where(head == t.CONTINUES, head_next, head)), found

        batch = tokens.shape[1]
        zeros = jnp.zeros(batch, jnp.int32)
        _, found = jax.lax.scan(look, (jnp.ones(batch, bool), zeros), (words[0], ends_run), reverse=True)
        white_next, stays_left = found & 1 == 1, (found & 2 == 2) & (field(t.STAYS_LEFT) == 1)
        # One more than the largest depth at which a mark of the token ends a subsentence, with `$` closed, or open.
        outside = jnp.maximum(field(t.SURE_OUTSIDE), jnp.where(white_next, field(t.IF_WHITE_OUTSIDE), 0))
        inside = jnp.maximum(field(t.SURE_INSIDE), jnp.where(white_next, field(t.IF_WHITE_INSIDE), 0))

        def step(carry: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            """From the left: depth, dollar signs, and whether the last token closed its subsentence."""
            depth, in_dollars, is_closed = carry
            starts, stays_left, outside, inside, flags, depths = x
            delta, floor = t.field([flags, depths], t.DELTA), t.field([flags, depths], t.FLOOR)
            depth, in_dollars, is_closed = jnp.where(starts, 0, depth), in_dollars & ~starts, is_closed & ~starts
            has_boundary = (t.field([flags], t.ENDS) == 1) | (depth < jnp.where(in_dollars, inside, outside))
            may_start = is_closed & ~stays_left
            is_closed = has_boundary | (stays_left & is_closed)
            in_dollars = (in_dollars & (delta > t.RESET // 2)) ^ (t.field([flags], t.DOLLARS) == 1)
            return (jnp.maximum(depth + delta, floor), in_dollars, is_closed), may_start

        none = jnp.zeros(batch, bool)
        xs = (starts_run, stays_left, outside, inside, words[0], words[1])
        _, may_start = jax.lax.scan(step, (zeros, none, none), xs)
        return may_start

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
        ids = segment_tokens(pieces, rule, min_tokens=self.min_tokens)
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


def _merge(
    may_start: Bool[Array, "time batch"],
    mask: Bool[Array, "time batch"],
    starts_run: Bool[Array, "time batch"],
    ends_run: Bool[Array, "time batch"],
    *,
    minimum: int,
    tail: int,
) -> Int[Array, "time batch"]:
    """Subsentence ids from where they may start: greedy from the left (condition 5 of `rules`)."""
    zeros = jnp.zeros(mask.shape[1], jnp.int32)

    def count(remaining: Array, ends: Array) -> tuple[Array, Array]:
        remaining = jnp.where(ends, 1, remaining + 1)
        return remaining, remaining >= tail

    _, is_enough = jax.lax.scan(count, zeros, ends_run, reverse=True)

    def step(carry: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        index, length = carry
        starts, allowed = x
        cut = starts | (allowed & (length >= minimum))
        index, length = index + cut, jnp.where(cut, 1, length + 1)
        return (index, length), index

    _, ids = jax.lax.scan(step, (zeros - 1, zeros), (starts_run, may_start & is_enough & mask))
    return jnp.where(mask, ids, -1)


def _responses(mask: Bool[Array, "batch time"], segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """One id for each packed response."""
    position = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    last_valid = jax.lax.cummax(jnp.where(mask, position, -1), axis=1)
    previous = jnp.pad(last_valid[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before = jnp.take_along_axis(segments, jnp.maximum(previous, 0), axis=1)
    is_new = mask & ((previous < 0) | (before != segments))
    return jnp.where(mask, jnp.cumsum(is_new, axis=1, dtype=jnp.int32) - 1, -1)
