"""The host side of the rollout engine: which sample is in which slot, when the cache grows, what has finished.

The device decodes blocks of steps (`decode.decode_block`); between blocks the host collects tokens, frees the slots of
finished samples and gives them to the next ones, whose prompts are prefilled once for the whole group. Everything
about the samples lives on the host as small NumPy arrays; only weights and cache stay on the device.

No decision depends on the clock on the wall, so that the same calls give bit-identical results on one machine. The
tokens of a sample depend on seed, step, prompt index and sample index alone, not on slots, order or neighbours.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.decode import decode_block, prefill, ready_weights
from sspo_jax.sampler.kv_cache import (
    Cache,
    column_buckets,
    empty_cache,
    insert_prompts,
    insert_prompts_everywhere,
    resize_cache,
)
from sspo_jax.sampler.programs import Programs
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.sharding import batch_shards
from sspo_jax.types import FinishReason, Rollout

UNROLL_LAYERS = 8
"""Up to this many layers each gets arrays of its own; deeper models are scanned, which compiles in a fraction."""
PREFILL_TOKENS = 8192
"""Prompt tokens (with padding) prefilled in one call, where a single prompt does not exceed it."""
PREFILL_CHUNK = 256
"""Tokens of a prompt that attend at a time: bounds the scores to chunk x prompt length."""
SHRINK_STEPS = 256
"""Slots are given up only while a sample may still run this long: a new shape costs a compilation."""


@dataclasses.dataclass(kw_only=True)
class RolloutStats:
    """What one `generate` call did."""

    tokens: int = 0
    """Generated."""
    prompt_tokens: int = 0
    """Prefilled, without padding."""
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
    resizes: int = 0
    """Times the cache was copied into another shape."""
    seconds: float = 0.0
    """Whole call, compilation included."""
    compile_seconds: float = 0.0
    """Of that, tracing and compiling."""
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
class _Sample:
    """One row of the rollout while it is generated."""

    row: int
    prompt: list[int]
    prompt_index: int  # in this call: the group
    prompt_id: int  # folded into the key
    sample_id: int
    budget: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    values: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)  # per-token arrays, block by block
    finish: FinishReason = FinishReason.LENGTH


@dataclasses.dataclass(eq=False)
class _PrefilledPrompts:
    """Keys and values of some prompts, kept until every sample of each has its slot."""

    cache: Cache
    rows: dict[int, int]  # prompt index -> row
    waiting: int  # samples


class Sampler:
    """Generates with one model shape and one way of sampling; keeps compiled programs between calls.

    >>> # sampler = Sampler(config, SamplingParams(max_new_tokens=96, stop_token_ids=(2,)))
    >>> # rollout = sampler.generate(params, prompts, group_size=8, seed=0, step=12)
    """

    def __init__(
        self,
        config: QwenConfig,
        sampling: SamplingParams,
        *,
        slots: int | None = None,
        mesh: Mesh | None = None,
        block_steps: int | None = None,
        cache_dtype: Any = None,
        cache_buckets: int = 3,
        unrolled: bool | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ):
        """
        Args:
          config: shape of the model.
          sampling: how tokens are drawn.
          slots: samples decoded at once; rounded up to a multiple of the mesh's batch shards. By default 64 on CPU,
            256 elsewhere, and never more than there are samples.
          mesh: devices; slots are sharded like a batch, heads along the tensor axis.
          block_steps: decoding steps between looks of the host; by default an eighth of the budget, 8 to 32.
          cache_dtype: of keys and values; by default that of the computation.
          cache_buckets: sizes the cache may have while it grows, hence decoding programs for each number of slots.
          unrolled: whether each layer gets arrays of its own; by default up to 8 layers.
          decode: token ids to text; wanted for stop strings.

        Raises:
          ValueError: stop strings without `decode`, stop tokens outside the vocabulary, sizes below 1.
        """
        for name, value in (("slots", slots), ("block_steps", block_steps), ("cache_buckets", cache_buckets)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, want at least 1")
        if sampling.stop_strings and decode is None:
            raise ValueError("sampling has stop_strings, which need decode=, a function from token ids to text")
        beyond = [token for token in sampling.stop_token_ids if token >= config.vocab_size]
        if beyond:
            raise ValueError(f"stop_token_ids {beyond} are outside the vocabulary of {config.vocab_size}")
        self.config, self.sampling, self.mesh = config, sampling, mesh
        self.slots = slots
        self.block_steps = block_steps or min(32, max(8, sampling.max_new_tokens // 8))
        self.cache_dtype = jnp.dtype(cache_dtype or config.dtype)
        self.cache_buckets = cache_buckets
        self.unrolled = config.num_layers <= UNROLL_LAYERS if unrolled is None else unrolled
        self.programs = Programs()
        """Compiled so far: `len(sampler.programs)`, `.seconds`, `.names`."""
        self.stats = RolloutStats()
        """Of the latest call."""
        self._decode = decode
        self._signature: Any = None

    def generate(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int = 0,
        group_size: int = 1,
        prompt_ids: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """Samples `group_size` responses to each prompt; rows are ordered by prompt, then by sample.

        Args:
          params: as `init_qwen` or `load_qwen` give them.
          prompts: token ids, at least one each.
          seed, step: of the run and of the update; with prompt id, sample index and place in the response they make
            the key of a token.
          prompt_ids: what stands for each prompt in its keys; by default its place in `prompts`. A prompt sampled
            again later in the same step, or in another order, keeps its noise or gets fresh noise by it.
          budgets: length budget of each row, at most `max_new_tokens`; by default that.
          on_finished: called with row and tokens of a response as soon as it has ended, while others go on.
          progress: called between blocks with the number of tokens generated so far.

        Raises:
          ValueError: an empty prompt, a token outside the vocabulary, a prompt that with its budget exceeds the
            model's positions, or lists of unequal length. All before anything is computed.
        """
        samples = self._samples(prompts, group_size, prompt_ids, budgets)
        if not 0 <= seed < 2**64 or not 0 <= step < 2**32:
            raise ValueError(f"seed is {seed}, step {step}: want 0 <= seed < 2^64 and 0 <= step < 2^32")
        start, compiled_before = time.perf_counter(), self.programs.seconds
        self.stats = RolloutStats()
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            self._check_signature(params)
            weights = self.programs(
                "weights", functools.partial(ready_weights, config=self.config, unrolled=self.unrolled), params
            )
            _Run(self, weights, samples, seed=seed, step=step, on_finished=on_finished, progress=progress).run()
        self.stats.seconds = time.perf_counter() - start
        self.stats.compile_seconds = self.programs.seconds - compiled_before
        self.stats.programs = len(self.programs)
        return self._rollout(samples)

    def num_slots(self, num_samples: int) -> int:
        """Slots that a call with so many samples uses."""
        slots = min(num_samples, self.slots or (64 if jax.default_backend() == "cpu" else 256))
        shards = 1 if self.mesh is None else batch_shards(self.mesh)
        return -(-slots // shards) * shards

    def _samples(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        prompt_ids: Sequence[int] | None,
        budgets: Sequence[int] | None,
    ) -> list[_Sample]:
        limit, vocab = self.config.max_positions, self.config.vocab_size
        longest = self.sampling.max_new_tokens
        if not prompts or group_size < 1:
            raise ValueError(f"there are {len(prompts)} prompts, group_size is {group_size}: want at least 1 of each")
        if prompt_ids is not None and len(prompt_ids) != len(prompts):
            raise ValueError(f"prompt_ids has {len(prompt_ids)} entries, want {len(prompts)}, one a prompt")
        if budgets is not None and len(budgets) != len(prompts) * group_size:
            raise ValueError(f"budgets has {len(budgets)} entries, want {len(prompts) * group_size}, one a row")
        samples = []
        for index, prompt in enumerate(prompts):
            prompt = [int(token) for token in prompt]
            if not prompt:
                raise ValueError(f"prompt {index} is empty, want at least one token (a begin or padding token)")
            if min(prompt) < 0 or max(prompt) >= vocab:
                raise ValueError(f"prompt {index} holds tokens {min(prompt)} to {max(prompt)}, want 0 to {vocab - 1}")
            prompt_id = index if prompt_ids is None else int(prompt_ids[index])
            if not 0 <= prompt_id < 2**32:
                raise ValueError(f"prompt id {prompt_id} of prompt {index}, want 0 <= id < 2^32")
            for sample in range(group_size):
                row = len(samples)
                budget = longest if budgets is None else int(budgets[row])
                if not 1 <= budget <= longest:
                    raise ValueError(f"budget of row {row} is {budget}, want 1 to max_new_tokens = {longest}")
                if len(prompt) + budget > limit:
                    raise ValueError(
                        f"prompt {index} has {len(prompt)} tokens, with a budget of {budget} more than the model's "
                        f"{limit} positions: shorten the prompt or max_new_tokens"
                    )
                samples.append(_Sample(row, prompt, index, prompt_id, sample, budget))
        return samples

    def _check_signature(self, params: Any) -> None:
        """Programs are compiled for given shapes, types and placements of the parameters."""
        signature = [(x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in jax.tree.leaves(params)]
        if self._signature is not None and signature != self._signature:
            self.programs = Programs()
        self._signature = signature

    def _rollout(self, samples: list[_Sample]) -> Rollout:
        prompt_width = max(len(sample.prompt) for sample in samples)
        width = max(len(sample.tokens) for sample in samples)
        shape, prompt_shape = (len(samples), width), (len(samples), prompt_width)
        prompt_tokens, prompt_mask = np.zeros(prompt_shape, np.int32), np.zeros(prompt_shape, bool)
        tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        values = {name: np.zeros(shape, np.float32) for name in samples[0].values}
        for sample in samples:
            prompt_tokens[sample.row, : len(sample.prompt)] = sample.prompt
            prompt_mask[sample.row, : len(sample.prompt)] = True
            length = len(sample.tokens)
            tokens[sample.row, :length] = sample.tokens
            mask[sample.row, :length] = True
            for name, parts in sample.values.items():
                values[name][sample.row, :length] = np.concatenate(parts)[:length]
        values["sampler_logprobs"] = values.pop("logprobs")
        return Rollout(
            prompt_tokens=prompt_tokens,
            prompt_mask=prompt_mask,
            response_tokens=tokens,
            response_mask=mask,
            finish_reasons=np.array([sample.finish for sample in samples], np.int32),
            group_ids=np.array([sample.prompt_index for sample in samples], np.int32),
            sample_ids=np.array([sample.sample_id for sample in samples], np.int32),
            **values,
        )


class _Run:
    """The state of one `generate` call."""

    def __init__(
        self,
        sampler: Sampler,
        weights: Any,
        samples: list[_Sample],
        *,
        seed: int,
        step: int,
        on_finished: Callable[[int, list[int]], None] | None,
        progress: Callable[[int], None] | None,
    ):
        self.sampler, self.weights, self.stats = sampler, weights, sampler.stats
        self.config, self.sampling = sampler.config, sampler.sampling
        self.on_finished, self.progress = on_finished, progress
        ids = [[sample.prompt_id, sample.sample_id] for sample in samples]
        self.keys = row_keys(seed, step, *np.array(ids, np.uint32).T)
        self.queue = deque(samples)
        self.group_sizes = np.bincount([sample.prompt_index for sample in samples])
        self.prompts = {sample.prompt_index: sample.prompt for sample in samples}
        self.prefilled: dict[int, _PrefilledPrompts] = {}  # by prompt index
        slots = sampler.num_slots(len(samples))
        self.slot_buckets = self._slot_buckets(slots)
        longest = max(len(sample.prompt) + sample.budget for sample in samples) - 1
        multiple = 8 if jax.default_backend() == "cpu" else 128
        self.column_buckets = column_buckets(longest, count=sampler.cache_buckets, multiple=multiple)
        self.occupants: list[_Sample | None] = [None] * slots
        self.used = [False] * slots
        self.cache: Cache | None = None
        self.columns = 0
        self.clock = 0

    @property
    def slots(self) -> int:
        return len(self.occupants)

    def _slot_buckets(self, slots: int) -> list[int]:
        """Numbers of slots, falling: halved while the mesh's shards divide them."""
        shards = 1 if self.sampler.mesh is None else batch_shards(self.sampler.mesh)
        buckets = [slots]
        while buckets[-1] % (2 * shards) == 0 and buckets[-1] > max(4, shards):
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

    def _running(self) -> Iterator[tuple[int, _Sample]] | list[tuple[int, _Sample]]:
        return [(slot, sample) for slot, sample in enumerate(self.occupants) if sample is not None]

    def _admit(self) -> list[tuple[int, _Sample]]:
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
        longest_rest = max(sample.budget - len(sample.tokens) for _, sample in running)
        if not self.queue and longest_rest >= SHRINK_STEPS:
            slots = min(bucket for bucket in self.slot_buckets if bucket >= len(running) or bucket == slots)
        ends = [
            len(sample.prompt) - 1 + min(sample.budget, len(sample.tokens) + self.sampler.block_steps)
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
        rows = [slot for slot, _ in running] if slots < self.slots else list(range(self.slots))
        rows += [0] * (slots - len(rows))
        key = ("resize", self.slots, self.columns, slots, columns)
        self.cache = self.sampler.programs(
            key,
            functools.partial(resize_cache, columns=columns),
            self.cache,
            np.int32(self.clock),
            np.array(rows, np.int32),
        )
        self.clock = min(self.columns, columns)
        if slots < self.slots:
            self.occupants = [sample for _, sample in running] + [None] * (slots - len(running))
            self.used = [True] * slots
        self.columns = columns
        self.stats.resizes += 1

    def _insert(self, admitted: list[tuple[int, _Sample]]) -> None:
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
        width = _prompt_bucket(len(self.prompts[first]) - 1)
        wanted = max(1, min(len(self.prompts), -(-self.slots // int(self.group_sizes.max()))))
        count = 1 << max(0, min(wanted, PREFILL_TOKENS // width) - 1).bit_length()
        if count * width > PREFILL_TOKENS and count > 1:
            count //= 2
        shards = 1 if self.sampler.mesh is None else batch_shards(self.sampler.mesh)
        count = -(-count // shards) * shards
        chosen = [first]
        for index in range(first + 1, len(self.prompts)):
            if len(chosen) == count:
                break
            length = len(self.prompts[index]) - 1
            if index not in self.prefilled and length and _prompt_bucket(length) == width:
                chosen.append(index)
        tokens, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
        for row, index in enumerate(chosen):
            cached = self.prompts[index][:-1]
            tokens[row, width - len(cached) :] = cached
            lengths[row] = len(cached)
        function = functools.partial(
            prefill,
            config=self.config,
            chunk=width // -(-width // PREFILL_CHUNK),
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
        waiting = int(sum(self.group_sizes[index] for index in chosen))
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
            arrays["tokens"][slot] = sample.tokens[-1] if sample.tokens else sample.prompt[-1]
            arrays["positions"][slot] = len(sample.prompt) + len(sample.tokens) - 1
            arrays["generated"][slot] = len(sample.tokens)
            arrays["budgets"][slot] = sample.budget
            arrays["active"][slot] = True
            keys[slot] = self.keys[sample.row]
        max_steps = self.sampler.block_steps
        limit = max(1, len(running) // 8) if self.queue else self.slots
        self.cache, out = self.sampler.programs(
            ("decode", self.slots, self.columns),
            functools.partial(
                decode_block,
                config=self.config,
                sampling=self.sampling,
                max_steps=max_steps,
                unrolled=self.sampler.unrolled,
            ),
            self.weights,
            self.cache,
            *arrays.values(),
            keys,
            np.int32(self.clock),
            np.int32(max_steps),
            np.int32(limit),
            donate=(1,),
        )
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

    def _collect(self, slot: int, sample: _Sample, count: int, is_active: bool, out: dict[str, np.ndarray]) -> None:
        before = len(sample.tokens)
        sample.tokens.extend(out["tokens"][:count, slot].tolist())
        for name, value in out.items():
            if name != "tokens":
                sample.values.setdefault(name, []).append(value[:count, slot])
        if sample.tokens[-1] in self.sampling.stop_token_ids and not is_active:
            sample.finish = FinishReason.STOP
        self.stats.tokens += len(sample.tokens) - before
        if not is_active:
            self.occupants[slot] = None
            if self.on_finished is not None:
                self.on_finished(sample.row, list(sample.tokens))


def _prompt_bucket(length: int) -> int:
    """The width a prompt is padded to: 16, 24, 32, 48, 64, 96, ... (times 1.5 and 4/3 in turn).

    >>> [_prompt_bucket(n) for n in (1, 17, 33, 63, 65, 300)]
    [16, 24, 48, 64, 96, 384]
    """
    power = 1 << max(4, math.ceil(math.log2(max(1, length))))
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power
