"""Rows that go on in the slots that hold their keys and values: what a call of the sampler keeps for the next one.

The rows of a call begin at the same moment, each in a slot of its own, and all slots write the same columns of the
ring. A row that ends early must find its columns again, so here slots that are not active are not written. In the next
call a row's prompt is what its slot holds and something more, such as the last token that was drawn and the answer of
an environment. One program (`decode.go_on`) turns the ring of each slot so that its tokens end where the new ones
begin, and prefills these; then decoding goes on as in any call.

The ring has its full length from the start, that of the longest prompt with the whole budget, so whether rows are kept
depends on sizes that are known before anything is sampled.
"""

import dataclasses
import functools
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from sspo_jax.sampler.decode import go_on
from sspo_jax.sampler.kv_cache import SLOTS, Cache, resize_cache
from sspo_jax.sampler.schedule import PREFILL_TOKENS, Run, Sample, length_bucket, prefill_chunk

_SCORES = PREFILL_TOKENS * 1024
"""New tokens x columns that a head attends to at a time on each device, where a single token of each slot has fewer."""


@dataclasses.dataclass(frozen=True)
class KeptRow:
    """One row between two calls."""

    slot: int
    tokens: list[int]
    """Whose keys and values the slot holds: all but the last one that was drawn."""
    start: int
    """The column in which the first of them lies, where the next clock is 0."""


@dataclasses.dataclass(eq=False, kw_only=True)
class KeptRows:
    """The cache of the latest call and whose it is; `Sampler.keep` makes one, `Sampler.generate` fills it.

    As a context manager it is released at the end.
    """

    slots: int
    """Of the first call, one for each row at least."""
    columns: int
    """Of the ring; no row has more tokens."""
    cache: Cache | None = None
    rows: dict[int, KeptRow] = dataclasses.field(default_factory=dict)
    """By the names that the caller gives them."""

    def release(self) -> None:
        """Lets go of the cache: rows that come next are prefilled again, from whatever weights there are then."""
        self.cache, self.rows = None, {}

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises ValueError where these are too many, or too long."""
        longest = max(len(sample.prompt) + sample.budget - 1 for sample in samples)
        if len(samples) > self.slots or longest > self.columns:
            raise ValueError(
                f"there are {len(samples)} rows of at most {longest} tokens, expected at most {self.slots} of "
                f"{self.columns}, as kept was made for: call keep with the most rows and the longest prompt"
            )

    def __enter__(self) -> "KeptRows":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class GoingOn(Run):
    """A call whose rows go on where `kept` holds them, and are kept for the next one.

    Rows that it does not hold, or with other tokens than their prompts begin with, are prefilled. Those that it holds
    and that are not sampled now give up their slots.

    Args:
      names: of the rows, in `kept`.
    """

    def __init__(
        self,
        sampler: Any,
        weights: Any,
        samples: list[Sample],
        keys: Any,
        kept: KeptRows,
        names: Sequence[int],
        **call: Any,
    ):
        super().__init__(sampler, weights, samples, keys, **call)
        self.samples, self.names, self.kept, self.spare_idle = samples, names, kept, True
        self.cache, self.earlier = kept.cache, kept.rows
        kept.release()  # a call that fails leaves nothing behind
        slots = kept.slots if self.cache is None else self.cache.keys[0].shape[SLOTS]
        if len(samples) > slots:  # some were given up
            self.cache, slots = None, kept.slots
        self.slot_buckets = self._slot_buckets(slots)
        self.columns, self.column_buckets = kept.columns, (kept.columns,)
        self.occupants, self.used = list[Sample | None]([None] * slots), [False] * slots
        self.slot_of: dict[int, int] = {}
        """By row of this call."""

    def run(self) -> None:
        """Goes on with the rows that are there, and decodes until every one has ended."""
        if self.cache is not None:
            self._find()
            if not self.queue:
                self._give_up()
            if self._running():
                self._go_on()
        super().run()
        self.kept.cache, self.kept.rows = self.cache, dict(map(self._row, self.samples))

    def _find(self) -> None:
        """Puts the rows that the cache holds into their slots; the others stay in the queue."""
        for sample in self.samples:
            row = self.earlier.get(self.names[sample.row])
            if row is not None and _begins(sample.prompt, row.tokens):
                self.occupants[row.slot] = sample
        found = set(map(id, self.occupants))
        self.queue = deque(sample for sample in self.samples if id(sample) not in found)
        self.group_sizes = Counter(sample.prompt_index for sample in self.queue)
        self.prompts = {sample.prompt_index: sample.prompt for sample in self.queue}

    def _give_up(self) -> None:
        """Moves the rows into fewer slots where they have room there."""
        before = self.slots
        fewer = min(bucket for bucket in self.slot_buckets if bucket == before or self._hold(bucket))
        if fewer < before:
            rows = self._give_up_slots(fewer)
            self.cache = self.sampler.programs(
                ("resize", before, self.columns, fewer, self.columns),
                functools.partial(resize_cache, columns=self.columns),
                self.cache,
                np.int32(self.clock),
                rows,
            )

    def _go_on(self) -> None:
        """Prefills what has come to the rows since the latest call, but for the last token of each."""
        running = [(slot, sample, self.earlier[self.names[sample.row]]) for slot, sample in self._running()]
        added = {slot: sample.prompt[len(row.tokens) : -1] for slot, sample, row in running}
        width = min(length_bucket(max(map(len, added.values()))), self.columns)
        tokens = np.zeros((self.slots, width), np.int32)
        lengths, held, starts = (np.zeros(self.slots, np.int32) for _ in range(3))
        for slot, _, row in running:
            lengths[slot], held[slot], starts[slot] = len(added[slot]), len(row.tokens), row.start
            tokens[slot, width - len(added[slot]) :] = added[slot]
        function = functools.partial(
            go_on,
            config=self.config,
            chunk=_chunk(width, self.slots // self.shards, self.columns),
            unrolled=self.sampler.unrolled,
        )
        args = (self.weights, self.cache, tokens, lengths, held, starts)
        self.cache = self.sampler.programs(("go on", self.slots, self.columns, width), function, *args, donate=(1,))
        self.stats.prompt_tokens += int(lengths.sum())
        self.stats.kept_tokens += int(held.sum())

    def _fit_cache(self) -> None:
        """Nothing changes its size before all rows have ended."""
        if self.cache is None:
            super()._fit_cache()

    def _decode(self) -> None:
        self.slot_of |= {sample.row: slot for slot, sample in self._running()}
        super()._decode()

    def _row(self, sample: Sample) -> tuple[int, KeptRow]:
        """How it is kept, by its name. It began at clock 0 with the last token of its prompt."""
        tokens = [*sample.prompt, *self.responses[sample.row][:-1]]
        start = (1 - len(sample.prompt)) % self.columns
        return self.names[sample.row], KeptRow(self.slot_of[sample.row], tokens, start)


def _begins(prompt: list[int], tokens: list[int]) -> bool:
    """Whether the prompt is these tokens and at least one more."""
    return len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens


def _chunk(width: int, slots: int, columns: int) -> int:
    """New tokens of each slot that are taken at a time.

    >>> _chunk(96, slots=64, columns=512), _chunk(96, slots=64, columns=8192)
    (96, 12)
    """
    most = min(PREFILL_TOKENS // slots, _SCORES // (slots * columns))
    chunk = prefill_chunk(width)
    while chunk > max(1, most) and chunk % 2 == 0:
        chunk //= 2
    return chunk
