"""Decoding that goes on as long as there is something to decode: samples join and leave between blocks of steps.

The rollout engine decodes a batch from its first sample to its last (`sampler.schedule.Run`). Here each sample brings
its own settings, one program serves all of them, and slots that become free are given to what has arrived meanwhile.
The numbers of slots and columns are powers of two, so that few shapes are compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sspo_jax.sampler.kv_cache import resize_cache
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.sampler.sampling import SamplingParams, SlotSettings
from sspo_jax.sampler.schedule import Run, Sample
from sspo_jax.types import FinishReason

_FEWEST_SLOTS = 4
_FEWEST_COLUMNS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """What one block of steps has added to a sample."""

    tokens: list[int]
    logprobs: np.ndarray
    """[tokens] float32, temperature-only softmax."""
    top_ids: np.ndarray | None
    """[tokens, top]: the most probable ones, falling; None where none are reported."""
    top_logprobs: np.ndarray | None
    finish: FinishReason | None
    """Why the sample has ended; None while it goes on."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Request:
    """One sample to be decoded."""

    prompt: list[int]
    budget: int
    """Most tokens, at least 1."""
    key: int
    """Key of its randomness, 64 bits."""
    sampling: SamplingParams
    top: int
    """How many of the most probable tokens are reported at each step, at least."""
    place: int = 0
    """Tokens of the response that the prompt ends with; the key goes on from there."""
    receive: Callable[[Block], bool]
    """Called after each block; whether the sample goes on."""
    is_over: Callable[[], bool]
    """Asked between blocks; whether nobody waits for it any more."""


class Stream(Run):
    """Decodes what `take` gives, until it gives nothing more and everything has ended.

    Args:
      sampler: of the model; its own settings are not used.
      weights: as `Sampler.ready` makes them.
      take: up to this many requests that are to be decoded next.
      stops: stop tokens that a request may have.
      top: how many of the most probable tokens are reported where any request asks for some.
    """

    def __init__(self, sampler: Sampler, weights: Any, take: Callable[[int], list[Request]], *, stops: int, top: int):
        self._requests: dict[int, Request] = {}  # by row
        self._keys: dict[int, np.ndarray] = {}  # by row
        self._take, self._stops, self._most_top = take, stops, top
        self._rows = self._prompt_indices = 0  # so far
        limit = sampler.num_slots(1 << 30)
        self._sizes = [limit]  # numbers of slots, falling
        while self._sizes[-1] > _FEWEST_SLOTS:
            self._sizes.append(max(_FEWEST_SLOTS, 1 << (self._sizes[-1] - 1).bit_length() - 1))
        nobody = Sample(0, [0], 0, 0, 0, 1)
        super().__init__(sampler, weights, [nobody], np.zeros((1, 2), np.uint32), on_finished=None, progress=None)
        self.keys = self._keys
        self.queue.clear()
        self.prompts.clear()
        self.group_sizes.clear()
        self.slot_buckets = self._sizes
        self.column_buckets = _powers_of_two(sampler.config.max_positions)
        self.occupants = list[Sample | None]([None] * self._sizes[-1])
        self.used = [False] * self._sizes[-1]
        self.slot_settings = self._settings

    def run(self) -> None:
        """Decodes until nothing is left."""
        while True:
            self._leave()
            self._join()
            if not self.queue and not self._running():
                return
            admitted = self._admit()
            self._fit_cache()
            self._insert(admitted)
            self.prompts.clear()  # all of them are in their slots
            self.group_sizes.clear()
            self._decode()

    def _leave(self) -> None:
        for slot, sample in self._running():
            if self._requests[sample.row].is_over():
                self._free(slot, sample)

    def _free(self, slot: int, sample: Sample) -> None:
        self.occupants[slot] = None
        del self._requests[sample.row], self._keys[sample.row]

    def _join(self) -> None:
        """Takes what there is room for; more slots are made where they are needed."""
        running = len(self._running())
        places: dict[tuple[int, ...], int] = {}  # equal prompts are prefilled once
        for request in self._take(self._sizes[0] - running):
            place = places.setdefault(tuple(request.prompt), self._prompt_indices)
            self._prompt_indices = max(self._prompt_indices, place + 1)
            sample = Sample(self._rows, request.prompt, place, 0, 0, request.budget, request.place)
            self._rows += 1
            self._requests[sample.row] = request
            self._keys[sample.row] = np.array([request.key >> 32, request.key & 0xFFFFFFFF], np.uint32)
            self.prompts[place] = request.prompt
            self.group_sizes[place] += 1
            self.queue.append(sample)
        top = max((request.top for request in self._requests.values()), default=0)
        self.top = min(self._most_top, self.config.num_tokens) if top else 0
        needed = running + len(self.queue)
        if needed > self.slots:
            self._grow(min(size for size in self._sizes if size >= needed))

    def _grow(self, slots: int) -> None:
        added = slots - self.slots
        if self.cache is not None:
            rows = np.array([*range(self.slots), *[0] * added], np.int32)
            key = ("more slots", self.slots, slots, self.columns)

            def grown(cache: Any, clock: Any, rows: Any, columns: int = self.columns) -> Any:
                return resize_cache(cache, clock, rows, columns=columns)

            self.cache = self.sampler.programs(key, grown, self.cache, np.int32(self.clock), rows)
        self.occupants = [*self.occupants, *[None] * added]
        self.used = [*self.used, *[False] * added]

    def _settings(self) -> SlotSettings:
        rows = [None if sample is None else self._requests[sample.row].sampling for sample in self.occupants]
        return SlotSettings.of(rows, stops=self._stops)

    def _collect(self, slot: int, sample: Sample, count: int, is_active: bool, out: dict[str, np.ndarray]) -> None:
        request = self._requests[sample.row]
        tokens = out["tokens"][:count, slot].tolist()
        sample.generated += count
        sample.newest = tokens[-1] if tokens else sample.newest
        self.stats.tokens += count
        finish = None
        if not is_active:
            is_stop = bool(tokens) and tokens[-1] in request.sampling.stop_token_ids
            finish = FinishReason.STOP if is_stop else FinishReason.LENGTH
        has_top = request.top > 0 and "top_ids" in out
        block = Block(
            tokens=tokens,
            logprobs=out["logprobs"][:count, slot],
            top_ids=out["top_ids"][:count, slot, : request.top] if has_top else None,
            top_logprobs=out["top_logprobs"][:count, slot, : request.top] if has_top else None,
            finish=finish,
        )
        if not request.receive(block) or finish is not None:
            self._free(slot, sample)


def _powers_of_two(longest: int) -> tuple[int, ...]:
    """Numbers of columns, rising, the last of which holds `longest`.

    >>> _powers_of_two(200)
    (64, 128, 256)
    """
    columns = [_FEWEST_COLUMNS]
    while columns[-1] < longest:
        columns.append(2 * columns[-1])
    return tuple(columns)
