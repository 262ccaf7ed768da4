"""Which sample is in which slot, when the cache changes its shape, what has finished: one `generate` call.

The device decodes blocks of steps (`decode.decode_block`); between blocks the host collects tokens, frees the slots of
finished samples and gives them to the next ones, whose prompts are prefilled once for the whole group. Everything
about the samples lives on the host as small NumPy arrays; only weights and cache stay on the device.
"""

import dataclasses
import functools
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sspo_jax.sampler.cache_attention import CHUNK, reads_held
from sspo_jax.sampler.decode import decode_block, prefill
from sspo_jax.sampler.kv_cache import (
    Cache,
    column_buckets,
    empty_cache,
    insert_prompts,
    insert_prompts_everywhere,
    resize_cache,
)
from sspo_jax.sampler.sampling import SlotSettings
from sspo_jax.sampler.stops import first_stop
from sspo_jax.sharding import batch_shards, platform
from sspo_jax.types import FinishReason

PREFILL_TOKENS = 8192
"""Prompt tokens (with padding) prefilled in one call, where a single prompt does not exceed it."""
PREFILL_CHUNK = 256
"""Tokens of a prompt that attend at a time: bounds the scores to chunk x prompt length."""
GROWTH = ((128, 1), (512, 2))
"""(columns, sizes): how many sizes a cache of at most so many columns has; longer ones have 4. One size is one decoding
program to compile, which costs more than the columns that a short ring reads in vain. Where attention reads what is
held alone (`cache_attention.reads_held`) there is one size."""
SHRINK_STEPS = 256
"""Slots are given up only while a sample may still run this long: a new shape costs a compilation."""


@dataclasses.dataclass(kw_only=True)
class RolloutStats:
    """What one `generate` call did."""

    tokens: int = 0
    """Generated."""
    prompt_tokens: int = 0
    """Prefilled, without padding."""
    kept_tokens: int = 0
    """Of the prompts, found in the cache of an earlier call (`kept_rows`)."""
    steps: int = 0
    """Decoding steps."""
    slot_steps: int = 0
    """Sum over steps of the slots computed, busy or not."""
    column_steps: int = 0
    """Sum over steps of slots x cache columns: what attention read."""
    blocks: int = 0
    """Looks of the host."""
    refills: int = 0
    """Samples put into a slot that another one had used."""
    seconds: float = 0.0
    """Whole call, compilation included."""
    compile_seconds: float = 0.0
    """Part of it spent tracing and compiling."""
    programs: int = 0
    """Compiled so far by this sampler."""

    @property
    def useful_fraction(self) -> float:
        """Generated tokens / slot-steps."""
        return self.tokens / max(1, self.slot_steps)

    @property
    def tokens_per_second(self) -> float:
        """Without the time spent compiling."""
        return self.tokens / max(1e-9, self.seconds - self.compile_seconds)


@dataclasses.dataclass(eq=False)
class Sample:
    """One row of the rollout while it is generated."""

    row: int
    prompt: list[int]
    prompt_index: int  # among the different prompts of this call, in the order in which they come
    prompt_id: int  # folded into the key
    sample_id: int
    budget: int
    place: int = 0  # tokens of the response that the prompt ends with: the first one sampled has this place in it
    generated: int = 0  # tokens so far
    newest: int | None = None  # the last of them
    finish: FinishReason = FinishReason.LENGTH


@dataclasses.dataclass(eq=False)
class _PrefilledPrompts:
    """Keys and values of some prompts, kept until every sample of each has its slot."""

    cache: Cache
    rows: dict[int, int]  # prompt index -> row
    waiting: int  # samples


class Run:
    """The state of one `generate` call."""

    def __init__(
        self,
        sampler: Any,  # engine.Sampler
        weights: Any,
        samples: list[Sample],
        keys: np.ndarray | Mapping[int, np.ndarray],
        *,
        on_finished: Callable[[int, list[int]], None] | None,
        progress: Callable[[int], None] | None,
    ):
        self.sampler, self.weights, self.stats = sampler, weights, sampler.stats
        self.config, self.sampling = sampler.config, sampler.sampling
        self.on_finished, self.progress = on_finished, progress
        self.keys = keys
        self.responses: dict[int, list[int]] = {sample.row: [] for sample in samples}
        """Tokens of each row."""
        self.values: dict[int, dict[str, list[np.ndarray]]] = {sample.row: {} for sample in samples}
        """Per-token arrays of each row by name, block by block; the last block may go beyond the response."""
        self.queue = deque(samples)
        self.group_sizes = Counter(sample.prompt_index for sample in samples)
        self.prompts = {sample.prompt_index: sample.prompt for sample in samples}
        self.prefilled: dict[int, _PrefilledPrompts] = {}  # by prompt index
        self.shards = 1 if sampler.mesh is None else batch_shards(sampler.mesh)
        slots = sampler.num_slots(len(samples))
        lengths = max(len(sample.prompt) for sample in samples), max(sample.budget for sample in samples)
        self.has_one_shape = sampler.cache_buckets is None and has_one_shape(
            self.config, slots, cache_columns(*lengths, count=1)[0], sampler.cache_dtype
        )
        """Whether the cache is as large as it will be from the start, and keeps all of its slots."""
        self.column_buckets = cache_columns(*lengths, count=1 if self.has_one_shape else sampler.cache_buckets)
        self.slot_buckets = self._slot_buckets(slots)
        self.occupants: list[Sample | None] = [None] * slots
        self.used = [False] * slots
        self.cache: Cache | None = None
        self.columns = 0
        self.clock = 0
        self.slot_settings: Callable[[], SlotSettings] | None = None
        """Settings of each slot in place of the sampler's own; the program is then one for all of them."""
        self.top = 0
        """With `slot_settings`, how many of the most probable tokens are reported at each step."""
        self.spare_idle = False
        """Whether slots without a sample keep what they hold; the program is then another one."""

    @property
    def slots(self) -> int:
        return len(self.occupants)

    def _slot_buckets(self, slots: int) -> list[int]:
        """Numbers of slots, falling: halved while the mesh's shards divide them."""
        buckets = [slots]
        while not self.has_one_shape and buckets[-1] % (2 * self.shards) == 0 and buckets[-1] > max(4, self.shards):
            buckets.append(buckets[-1] // 2)
        return buckets

    def run(self) -> None:
        """Decodes until every sample has ended."""
        while self.queue or self._running():
            admitted = self._admit()
            self._fit_cache()
            self._insert(admitted)
            self._decode()
            if self.progress is not None:
                self.progress(self.stats.tokens)

    def _running(self) -> list[tuple[int, Sample]]:
        return [(slot, sample) for slot, sample in enumerate(self.occupants) if sample is not None]

    def _admit(self) -> list[tuple[int, Sample]]:
        """Gives free slots to the next samples in the queue."""
        admitted = []
        for slot, occupant in enumerate(self.occupants):
            if occupant is None and self.queue:
                sample = self.queue.popleft()
                self.occupants[slot] = sample
                self.stats.refills += self.used[slot]
                self.used[slot] = True
                admitted.append((slot, sample))
        return admitted

    def _fit_cache(self) -> None:
        """Brings slots and columns to the smallest buckets that hold the samples until the next look."""
        running = self._running()
        slots = self.slots
        longest_rest = max(sample.budget - sample.generated for _, sample in running)
        if not self.queue and longest_rest >= SHRINK_STEPS:
            slots = min(bucket for bucket in self.slot_buckets if bucket == slots or self._hold(bucket))
        ends = [
            len(sample.prompt) - 1 + min(sample.budget, sample.generated + self.sampler.block_steps)
            for _, sample in running
        ]
        columns = min(bucket for bucket in self.column_buckets if bucket >= max(ends))
        if self.cache is None:
            self.columns, self.clock = columns, 0
            key = ("empty", self.slots, columns)
            self.cache = self.sampler.programs(
                key,
                functools.partial(
                    empty_cache,
                    self.config,
                    self.slots,
                    columns,
                    self.sampler.cache_dtype,
                    unrolled=self.sampler.unrolled,
                ),
            )
            return
        if columns < self.columns and columns * 2 > self.columns and slots == self.slots:
            columns = self.columns  # a copy of the cache is not worth a small gain
        if (slots, columns) == (self.slots, self.columns):
            return
        key = ("resize", self.slots, self.columns, slots, columns)
        self.cache = self.sampler.programs(
            key,
            functools.partial(resize_cache, columns=columns),
            self.cache,
            np.int32(self.clock),
            self._give_up_slots(slots) if slots < self.slots else None,
        )
        if columns < self.columns:
            self.clock = 0
        self.columns = columns

    def _by_shard(self) -> list[list[tuple[int, Sample]]]:
        """The samples in the slots of each batch shard of the mesh, with their slot counted from the shard's first."""
        size = self.slots // self.shards
        return [
            [(slot, sample) for slot, sample in enumerate(self.occupants[start : start + size]) if sample is not None]
            for start in range(0, self.slots, size)
        ]

    def _hold(self, slots: int) -> bool:
        """Whether this many slots would hold the running samples with each staying on its device."""
        return all(len(samples) <= slots // self.shards for samples in self._by_shard())

    def _give_up_slots(self, slots: int) -> np.ndarray:
        """Moves the samples into this many slots; where each comes from, as `resize_cache` wants it."""
        rows, occupants, size = [], [], slots // self.shards
        for samples in self._by_shard():
            padding = size - len(samples)
            rows += [slot for slot, _ in samples] + [0] * padding
            occupants += [sample for _, sample in samples] + [None] * padding
        self.occupants, self.used = occupants, [True] * slots
        return np.array(rows, np.int32)

    def _insert(self, admitted: list[tuple[int, Sample]]) -> None:
        """Prefills the prompts of new samples, where not done yet, and copies their keys and values to the slots."""
        by_chunk: dict[int, tuple[_PrefilledPrompts, list[tuple[int, int]]]] = {}
        for slot, sample in admitted:
            if len(sample.prompt) == 1:
                continue  # its only token is the first step's input
            if sample.prompt_index not in self.prefilled:
                self._prefill(sample.prompt_index)
            chunk = self.prefilled[sample.prompt_index]
            by_chunk.setdefault(id(chunk), (chunk, []))[1].append((slot, chunk.rows[sample.prompt_index]))
        for chunk, pairs in by_chunk.values():
            self._copy(chunk.cache, pairs)
            chunk.waiting -= len(pairs)
            if not chunk.waiting:
                for index in chunk.rows:
                    del self.prefilled[index]

    def _copy(self, prompts: Cache, pairs: list[tuple[int, int]]) -> None:
        shape = prompts[1][0].shape
        key = ("insert", self.slots, self.columns, shape[-4], shape[-2])
        slots, sources = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
        clock = np.int32(self.clock)
        if self.sampler.mesh is None:
            padding = (0, self.slots - len(pairs))
            args = (clock, np.pad(slots, padding), np.pad(sources, padding), np.int32(len(pairs)))
            function: Callable[..., Cache] = insert_prompts
        else:
            is_new, source_of = np.zeros(self.slots, bool), np.zeros(self.slots, np.int32)
            is_new[slots], source_of[slots] = True, sources
            args, function = (clock, is_new, source_of), insert_prompts_everywhere
        self.cache = self.sampler.programs(key, function, self.cache, prompts, *args, donate=(0,))

    def _prefill(self, first: int) -> None:
        """Prefills this prompt and those that come next in the queue, as many as one call takes."""
        count, width = prefill_shape(
            len(self.prompts[first]), len(self.prompts), self.slots, max(self.group_sizes.values()), self.shards
        )
        chosen = [first]
        for index, prompt in self.prompts.items():
            if len(chosen) == count:
                break
            length = len(prompt) - 1
            if index > first and index not in self.prefilled and length and length_bucket(length) == width:
                chosen.append(index)
        tokens, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
        for row, index in enumerate(chosen):
            cached = self.prompts[index][:-1]
            tokens[row, width - len(cached) :] = cached
            lengths[row] = len(cached)
        function = functools.partial(
            prefill,
            config=self.config,
            chunk=prefill_chunk(width),
            dtype=self.sampler.cache_dtype,
            unrolled=self.sampler.unrolled,
        )
        cache = self.sampler.programs(
            ("prefill", count, width),
            lambda weights, tokens, lengths: function(weights, tokens=tokens, lengths=lengths),
            self.weights,
            tokens,
            lengths,
        )
        waiting = sum(self.group_sizes[index] for index in chosen)
        group = _PrefilledPrompts(cache, {index: row for row, index in enumerate(chosen)}, waiting)
        self.prefilled.update(dict.fromkeys(chosen, group))
        self.stats.prompt_tokens += int(lengths.sum())

    def _decode(self) -> None:
        """One block of steps, then tokens to their samples and finished samples out of their slots."""
        running = self._running()
        arrays = {
            name: np.zeros(self.slots, dtype)
            for name, dtype in (
                ("tokens", np.int32),
                ("positions", np.int32),
                ("generated", np.int32),
                ("budgets", np.int32),
                ("active", bool),
            )
        }
        keys = np.zeros((self.slots, 2), np.uint32)
        for slot, sample in running:
            arrays["tokens"][slot] = sample.prompt[-1] if sample.newest is None else sample.newest
            arrays["positions"][slot] = len(sample.prompt) + sample.generated - 1
            arrays["generated"][slot] = sample.place + sample.generated
            arrays["budgets"][slot] = sample.place + sample.budget
            arrays["active"][slot] = True
            keys[slot] = self.keys[sample.row]
        max_steps = self.sampler.block_steps
        limit = max(1, len(running) // 8) if self.queue else self.slots
        key: tuple[Any, ...] = ("decode", self.slots, self.columns)
        settings = ()
        if self.slot_settings is not None:
            key, settings = (*key, "settings of each", self.top), (self.slot_settings(),)
        if self.spare_idle:
            key = (*key, "sparing idle slots")
        decode = functools.partial(
            decode_block,
            config=self.config,
            sampling=self.sampling,
            max_steps=max_steps,
            unrolled=self.sampler.unrolled,
            top=self.top,
            spare_idle=self.spare_idle,
        )
        counters = np.int32(self.clock), np.int32(max_steps), np.int32(limit)
        args = (self.weights, self.cache, *arrays.values(), keys, *counters, *settings)
        self.cache, out = self.sampler.programs.compiled(key, decode, args, donate=(1,))(*args)
        out = jax.device_get(out)
        steps = int(out.pop("steps"))
        counts, active = out.pop("counts"), out.pop("active")
        self.clock = (self.clock + steps) % self.columns
        self.stats.blocks += 1
        self.stats.steps += steps
        self.stats.slot_steps += steps * self.slots
        self.stats.column_steps += steps * self.slots * self.columns
        for slot, sample in running:
            self._collect(slot, sample, int(counts[slot]), bool(active[slot]), out)

    def _collect(self, slot: int, sample: Sample, count: int, is_active: bool, out: dict[str, np.ndarray]) -> None:
        response, values = self.responses[sample.row], self.values[sample.row]
        before = len(response)
        response.extend(out["tokens"][:count, slot].tolist())
        for name, value in out.items():
            if name != "tokens":
                values.setdefault(name, []).append(value[:count, slot])
        if response[-1] in self.sampling.stop_token_ids and not is_active:
            sample.finish = FinishReason.STOP
        if self.sampling.stop_strings:
            end = first_stop(
                response,
                before,
                self.sampling.stop_strings,
                self.sampler.decode,
                minimum=self.sampling.min_new_tokens,
            )
            if end is not None:  # what the block sampled beyond it is dropped
                del response[end:]
                sample.finish, is_active = FinishReason.STOP, False
        self.stats.tokens += len(response) - before
        sample.generated, sample.newest = len(response), response[-1]
        if not is_active:
            self.occupants[slot] = None
            if self.on_finished is not None:
                self.on_finished(sample.row, list(response))

    def arrays(self) -> dict[str, list[np.ndarray]]:
        """Per-token arrays of all rows by name, each as long as its response."""
        return {
            name: [np.concatenate(self.values[row][name])[: len(self.responses[row])] for row in self.responses]
            for name in self.values[0]
        }


def slots_for(samples: int, *, limit: int | None, mesh: Mesh | None) -> int:
    """Slots that a call with so many samples uses, a multiple of the shards of the batch.

    Args:
      limit: None: 64 on a CPU, 256 elsewhere.
    """
    if limit is None:
        on_cpu = (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"
        limit = 64 if on_cpu else 256
    quarter = 1 << max(0, samples.bit_length() - 3)  # few sizes to compile for: four in each octave
    slots = min(-(-samples // quarter) * quarter, limit)
    shards = 1 if mesh is None else batch_shards(mesh)
    return -(-slots // shards) * shards


def prefill_shape(prompt_tokens: int, prompts: int, slots: int, group_size: int, shards: int) -> tuple[int, int]:
    """(prompts, tokens) of one prefill call: what the slots can take, up to `PREFILL_TOKENS` tokens.

    >>> prefill_shape(prompt_tokens=100, prompts=128, slots=256, group_size=8, shards=1)
    (32, 128)
    """
    width = length_bucket(prompt_tokens - 1)
    wanted = max(1, min(prompts, -(-slots // group_size)))
    count = 1 << max(0, min(wanted, PREFILL_TOKENS // width) - 1).bit_length()
    if count * width > PREFILL_TOKENS and count > 1:
        count //= 2
    return -(-count // shards) * shards, width


def has_one_shape(model: Any, slots: int, columns: int, dtype: Any) -> bool:
    """Whether a cache of so many slots and columns gains nothing by being smaller while its samples are short.

    So it is where attention reads what is held alone; each further shape would be a program to compile.
    """
    query = jax.ShapeDtypeStruct((slots, model.num_heads, model.head_dim), jax.numpy.dtype(model.compute.dtype))
    keys = jax.ShapeDtypeStruct((slots, model.num_kv_heads, model.head_dim, columns), jax.numpy.dtype(dtype))
    return model.compute.attention != "xla" and reads_held(query, keys)


def cache_columns(
    prompt_tokens: int, new_tokens: int, *, count: int | None, on_cpu: bool | None = None
) -> tuple[int, ...]:
    """The numbers of columns the cache may have, rising, where the longest sample has this many tokens.

    >>> cache_columns(prompt_tokens=1024, new_tokens=3000, count=None, on_cpu=False)
    (1536, 2048, 2944, 4096)
    """
    longest = length_bucket(prompt_tokens - 1) + length_bucket(new_tokens)
    on_cpu = platform() == "cpu" if on_cpu is None else on_cpu
    multiple = 128 if not on_cpu else 8 if longest <= 512 else CHUNK
    usual = next((size for limit, size in GROWTH if longest <= limit), 4)
    return column_buckets(longest, count=count or usual, multiple=multiple)


def prefill_chunk(width: int) -> int:
    """Tokens of each prompt that are taken at a time."""
    return width // -(-width // PREFILL_CHUNK)


def length_bucket(length: int) -> int:
    """What lengths are rounded up to, so that there are few shapes: 16, 24, 32, 48, 64, 96, ...

    >>> [length_bucket(n) for n in (1, 17, 33, 63, 65, 300)]
    [16, 24, 48, 64, 96, 384]
    """
    power = 1 << max(4, math.ceil(math.log2(max(1, length))))
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power
