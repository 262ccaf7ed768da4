"""`Sampler`, for one model shape and one way of sampling, with its compiled programs; `LocalEngine`, made of them.

A sampler checks the arguments, hands the samples to `schedule.Run`, which decodes them, and makes a `Rollout` of what
that has collected.

The tokens of a sample depend on seed, step, prompt id and sample index alone, not on slots, order or neighbours. No
decision depends on the clock on the wall, so that the same calls give bit-identical results on one machine.
"""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sspo_jax.host_memory import release_freed_memory
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.cpu_kernels import fusable, fuse_kernels
from sspo_jax.models.int8 import is_int8
from sspo_jax.models.lora import has_lora
from sspo_jax.sampler.decode import ready_weights
from sspo_jax.sampler.engine import NO_WEIGHTS
from sspo_jax.sampler.hand_over import hand_over, lies_elsewhere, send
from sspo_jax.sampler.kept_rows import GoingOn, KeptRows
from sspo_jax.sampler.programs import CompiledPrograms, TracedProgram, TracedPrograms
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.sampler.schedule import RolloutStats, Run, Sample, cache_columns, slots_for
from sspo_jax.sharding import GPU, is_one_cpu, platform
from sspo_jax.types import Rollout, pad_rows, rows_of_groups

UNROLL_LAYERS, UNROLL_LAYERS_ON_CPU, UNROLL_LAYERS_ON_GPU = 8, 32, 64
"""Up to this many layers each gets arrays of its own; deeper models are scanned, which compiles in a fraction. On GPUs
arrays of their own were 1.5 times as fast for 28 layers, on a CPU 1.9 times for 30 (kernels in the order that it
multiplies fastest, too), which is worth compiling longer."""


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
        cache_buckets: int | None = None,
        unrolled: bool | None = None,
        decode: Callable[[list[int]], str] | None = None,
        int8: bool = False,
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
          cache_buckets: sizes the cache may have while it grows, hence decoding programs for each number of slots; by
            default 1, 2 where samples can exceed 128 tokens, and 4 where they can exceed 512; 1 on GPUs whose kernel
            reads what is held (`cache_attention.reads_held`), where the slots stay as many as they are too.
          unrolled: whether each layer gets arrays of its own; by default up to 8 layers, on a CPU up to 32, on GPUs up
            to 64.
          decode: token ids to text; wanted for stop strings.
          int8: decode from the matrices of the blocks in int8 (`models.int8`), which are half the bytes.

        Raises:
          ValueError: stop strings without `decode`, stop tokens outside the vocabulary, sizes below 1.
        """
        for name, value in (("slots", slots), ("block_steps", block_steps), ("cache_buckets", cache_buckets)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if sampling.stop_strings and decode is None:
            raise ValueError("sampling has stop_strings, which need decode=, a function from token ids to text")
        beyond = [token for token in sampling.stop_token_ids if token >= config.vocab_size]
        if beyond:
            raise ValueError(f"stop_token_ids {beyond} are outside the vocabulary of {config.vocab_size}")
        self.config, self.sampling, self.mesh, self.int8 = config, sampling, mesh, int8
        self.slots = slots
        self.block_steps = block_steps or min(32, max(8, sampling.max_new_tokens // 8))
        self.cache_dtype = jnp.dtype(cache_dtype or config.compute.dtype)
        self.cache_buckets = cache_buckets
        with self._on_mesh():
            on_host = UNROLL_LAYERS_ON_CPU if platform() == "cpu" else UNROLL_LAYERS
            most = UNROLL_LAYERS_ON_GPU if platform() in GPU else on_host
        self.unrolled = config.num_layers <= most if unrolled is None else unrolled
        if config.has_kinds:  # layers of two kinds
            self.unrolled = True
        self.programs = CompiledPrograms()
        """Compiled so far: `len(sampler.programs)`, `.seconds`, `.names`."""
        self.stats = RolloutStats()
        """Statistics of the latest call."""
        self.extras: dict[str, np.ndarray] = {}
        """Per-token arrays of the latest call that `sampling` asks for: `entropies`, `truncated_logprobs`."""
        self.decode = decode
        """Token ids to text, for stop strings."""
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
        keys: np.ndarray | None = None,
        places: Sequence[int] | None = None,
        kept: KeptRows | None = None,
        names: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """Samples `group_size` responses to each prompt; rows are ordered by prompt, then by sample.

        Args:
          params: as `init_qwen` or `load_qwen` give them, or what `ready` made of them.
          prompts: token ids, at least one each.
          seed, step: of the run and of the update; with prompt id, sample index and place in the response they make
            the key of a token.
          prompt_ids: what stands for each prompt in its keys; by default its place in `prompts`. A prompt sampled
            again later in the same step, or in another order, keeps its noise or gets fresh noise by it.
          budgets: length budget of each row, at most `max_new_tokens`; by default that.
          keys: [rows, 2] uint32 instead of those made from seed, step and ids: a server passes those of its clients.
          places: for each prompt, how many tokens of the response it ends with; by default 0. With the keys that the
            response began with, what is sampled after them has the noise that it would have had without a break.
          kept: of `keep`, which takes the place of the cache: a row whose prompt begins with what is kept of it goes on
            from there, and all rows of this call are kept for the next. The caller releases it before the parameters
            change.
          names: of the rows in `kept`; by default their places in this call.
          on_finished: called with row and tokens of a response as soon as it has ended, while others go on.
          progress: called between blocks with the number of tokens generated so far.

        Raises:
          ValueError: an empty prompt, a token outside the vocabulary, a prompt that with its budget exceeds the
            model's positions, more or longer rows than `kept` was made for, or lists of unequal length. All before
            anything is computed.
        """
        samples = self._samples(prompts, group_size, prompt_ids, budgets, places)
        names = range(len(samples)) if names is None else names
        if len({*names}) != len(samples):
            raise ValueError(f"names are {[*names]}, expected {len(samples)} different ones, one a row")
        if not 0 <= seed < 2**64 or not 0 <= step < 2**32:
            raise ValueError(f"seed is {seed}, step {step}: expected 0 <= seed < 2^64 and 0 <= step < 2^32")
        if kept is not None:
            kept.check(samples)
        start, compiled_before = time.perf_counter(), self.programs.seconds
        self.stats = RolloutStats()
        with self._on_mesh():
            self._check_signature(params)
            weights = self.ready(params)
            if keys is None:
                ids = np.array([[sample.prompt_id, sample.sample_id] for sample in samples], np.uint32)
                keys = row_keys(seed, step, *ids.T)
            call: dict[str, Any] = {"on_finished": on_finished, "progress": progress}
            if kept is None:
                run = Run(self, weights, samples, keys, **call)
            else:
                run = GoingOn(self, weights, samples, keys, kept, names, **call)
            run.run()
        self.stats.seconds = time.perf_counter() - start
        self.stats.compile_seconds = self.programs.seconds - compiled_before
        self.stats.programs = len(self.programs)
        arrays = run.arrays()
        self.extras = {name: pad_rows(rows, np.float32) for name, rows in arrays.items() if name != "logprobs"}
        return Rollout(
            **rows_of_groups(prompts, group_size),
            responses=tuple(np.array(response, np.int32) for response in run.responses.values()),
            logprobs=tuple(arrays["logprobs"]),
            finish_reasons=np.array([sample.finish for sample in samples], np.int32),
        )

    def keep(self, rows: int, *, prompt_tokens: int) -> KeptRows | None:
        """What `generate` needs to keep so many rows from one call to the next; None where it cannot.

        It can where each has a slot of its own (`slots`). The gated delta rule keeps one state, which cannot be taken
        back, so models with it are not kept where stop strings cut off what was sampled beyond them.

        Args:
          prompt_tokens: of the longest prompt of the first call. With the `max_new_tokens` of the sampling it makes the
            length of the ring: budgets of later calls are what their longer prompts leave of it.
        """
        slots = self.num_slots(rows)
        if rows > slots or (self.config.is_hybrid and self.sampling.stop_strings):
            return None
        with self._on_mesh():
            columns = cache_columns(prompt_tokens, self.sampling.max_new_tokens, count=self.cache_buckets)[-1]
        return KeptRows(slots=slots, columns=columns)

    def programs_for(
        self, params: Any, *, num_prompts: int, prompt_tokens: int, group_size: int
    ) -> dict[str, TracedProgram]:
        """What `generate` compiles where all prompts are so long and all responses as long as their budget, by name.

        The scheduler itself runs, over programs that are traced instead of executed: nothing is computed, and neither
        weights nor devices need to exist. Shorter prompts and responses can meet smaller programs besides.

        Args:
          params: as for `generate`, or `jax.ShapeDtypeStruct` of them, with shardings where there is a mesh.
          num_prompts, prompt_tokens, group_size: of one call.
        """
        dry = copy.copy(self)
        traced = dry.programs = TracedPrograms(self.mesh)
        dry._signature = None
        vocab = self.config.vocab_size
        prompts = [  # different ones: equal prompts are prefilled once
            [index // vocab**place % vocab if place < 8 else 0 for place in range(prompt_tokens)]
            for index in range(num_prompts)
        ]
        dry.generate(params, prompts, seed=0, group_size=group_size)
        return traced.by_name

    def ready(self, params: Any, *, release: bool = False) -> Any:
        """The parameters as the programs read them; `generate` takes the result in their place and need not make it.

        Unrolled layers each get arrays of their own, in the order that the platform multiplies fastest; all else is
        passed through where its dtype is that of the computation.

        Parameters that lie on another mesh are laid out on the sampler's, which has the same devices in the same order.

        Args:
          release: delete each parameter once it is converted, for a caller who only samples: the memory then holds
            one of them twice at most. Parameters with LoRA adapters are kept.
        """
        blocks = params["blocks"]
        if isinstance(blocks, tuple) or (self.int8 and not has_lora(params) and any(map(is_int8, blocks.values()))):
            return params
        if self.mesh is not None and lies_elsewhere(params, self.mesh):
            with self._on_mesh():
                how = {"unrolled": self.unrolled, "int8": self.int8}
                return hand_over(params, self.config, self.mesh, self.programs, **how)
        as_they_are = usable_weights(params, self.config, unrolled=self.unrolled, int8=self.int8)
        others = {name: leaf for name, leaf in params.items() if name not in as_they_are}
        if not others:
            return params
        convert = functools.partial(ready_weights, config=self.config, unrolled=self.unrolled, int8=self.int8)
        with self._on_mesh():
            if not release or has_lora(params):
                return {**as_they_are, **self.programs("weights", convert, others)}
            parts = [as_they_are]
            for path, leaf in jax.tree_util.tree_leaves_with_path(others):
                names = [key.key for key in path]
                part = functools.reduce(lambda node, name: {name: node}, reversed(names), leaf)
                parts.append(jax.block_until_ready(self.programs(("weights", *names), convert, part)))
                leaf.delete()
                release_freed_memory()
            weights = _merge(parts)
            if self.unrolled and is_one_cpu() and not self.int8:
                weights["blocks"] = tuple(map(self._fuse, weights["blocks"]))
        return weights

    def _fuse(self, block: Any) -> Any:
        """The block with kernels of the same input in one; their parts are deleted."""
        apart = fusable(block)
        if not apart:
            return block
        together = jax.block_until_ready(self.programs("fuse", fuse_kernels, apart))
        for leaf in jax.tree.leaves(apart):
            leaf.delete()
        release_freed_memory()
        return {name: leaf for name, leaf in block.items() if name not in apart} | together

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()

    def num_slots(self, num_samples: int) -> int:
        """Slots that a call with this many samples uses."""
        return slots_for(num_samples, limit=self.slots, mesh=self.mesh)

    def _samples(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        prompt_ids: Sequence[int] | None,
        budgets: Sequence[int] | None,
        places: Sequence[int] | None,
    ) -> list[Sample]:
        limit, vocab = self.config.max_positions, self.config.vocab_size
        longest = self.sampling.max_new_tokens
        if not prompts or group_size < 1:
            raise ValueError(
                f"there are {len(prompts)} prompts, group_size is {group_size}: expected at least 1 of each"
            )
        if prompt_ids is not None and len(prompt_ids) != len(prompts):
            raise ValueError(f"prompt_ids has {len(prompt_ids)} entries, expected {len(prompts)}, one a prompt")
        if budgets is not None and len(budgets) != len(prompts) * group_size:
            raise ValueError(f"budgets has {len(budgets)} entries, expected {len(prompts) * group_size}, one a row")
        if places is not None and len(places) != len(prompts):
            raise ValueError(f"places has {len(places)} entries, expected {len(prompts)}, one a prompt")
        samples: list[Sample] = []
        indices: dict[tuple[int, ...], int] = {}  # equal prompts are prefilled once
        for index, prompt in enumerate(prompts):
            prompt = [int(token) for token in prompt]
            if not prompt:
                raise ValueError(f"prompt {index} is empty, expected at least one token (a begin or padding token)")
            if min(prompt) < 0 or max(prompt) >= vocab:
                raise ValueError(
                    f"prompt {index} holds tokens {min(prompt)} to {max(prompt)}, expected 0 to {vocab - 1}"
                )
            prompt_id = index if prompt_ids is None else int(prompt_ids[index])
            if not 0 <= prompt_id < 2**32:
                raise ValueError(f"prompt id {prompt_id} of prompt {index}, expected 0 <= id < 2^32")
            prompt_index = indices.setdefault(tuple(prompt), len(indices))
            place = 0 if places is None else int(places[index])
            if not 0 <= place < len(prompt):
                raise ValueError(
                    f"place {place} of prompt {index}, expected 0 to {len(prompt) - 1}: a prompt of its own comes first"
                )
            for sample in range(group_size):
                row = len(samples)
                budget = longest if budgets is None else int(budgets[row])
                if not 1 <= budget <= longest:
                    raise ValueError(f"budget of row {row} is {budget}, expected 1 to max_new_tokens = {longest}")
                if len(prompt) + budget > limit:
                    raise ValueError(
                        f"prompt {index} has {len(prompt)} tokens, with a budget of {budget} more than the model's "
                        f"{limit} positions: shorten the prompt or max_new_tokens"
                    )
                samples.append(Sample(row, prompt, prompt_index, prompt_id, sample, budget, place))
        return samples

    def _check_signature(self, params: Any) -> None:
        """Programs are compiled for given shapes, types and placements of the parameters."""
        signature = [(x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in jax.tree.leaves(params)]
        if self._signature is not None and signature != self._signature:
            self.programs = CompiledPrograms()
        self._signature = signature


class KeptSamplers:
    """A `Sampler` for each combination of its arguments, made when first asked for.

    Args:
      most: kept at a time; the one not used for longest goes first.
    """

    def __init__(self, most: int = 8):
        self._most = most
        self._samplers: dict[Any, Sampler] = {}

    def __call__(self, config: QwenConfig, sampling: SamplingParams, **settings: Any) -> Sampler:
        """`Sampler(config, sampling, **settings)`, or the one that was made of equal arguments."""
        key = (config, sampling, tuple(sorted(settings.items())))
        found = self._samplers.pop(key, None) or Sampler(config, sampling, **settings)
        self._samplers[key] = found  # the latest is the last
        if len(self._samplers) > self._most:
            self._samplers.pop(next(iter(self._samplers)))
        return found


class LocalEngine:
    """A `Sampler` for each way of sampling, and a reference to the weights that all of them sample from.

    Args:
      config: shape of the model.
      slots, mesh, decode, int8: as for `Sampler`.
      is_apart: the mesh has other devices than the parameters lie on, which may change while it samples.
      most_samplers: kept with their compiled programs; see `KeptSamplers`.
    """

    def __init__(
        self,
        config: QwenConfig,
        *,
        slots: int | None = None,
        mesh: Mesh | None = None,
        decode: Callable[[list[int]], str] | None = None,
        int8: bool = False,
        is_apart: bool = False,
        most_samplers: int = 8,
    ):
        if is_apart and mesh is None:
            raise ValueError("is_apart is true without a mesh; expected that of the devices that sample")
        self._config, self._is_apart = config, is_apart
        self._settings = {"slots": slots, "mesh": mesh, "decode": decode, "int8": int8}
        self._samplers = KeptSamplers(most_samplers)
        self._params: Any = None
        self._version = NO_WEIGHTS
        self._kept: KeptRows | None = None
        self._lays_out: Sampler | None = None  # whose programs lay out the weights, for all samplers

    @property
    def version(self) -> int:
        return self._version

    def sync(self, params: Any, version: int, *, poll: Callable[[], None] | None = None) -> None:
        """Keeps a reference to the parameters; nothing is copied before the next `generate`.

        That copy goes when the call has ended, but where the weights are laid out on another mesh than the parameters:
        then all calls until the next `sync` or `release` sample from it. To other devices they are sent at once.
        """
        self._forget()
        mesh = self._settings["mesh"]
        self._params = send(params, self._config, mesh) if self._is_apart else params
        self._version = version

    def release(self) -> None:
        """Lets go of the parameters and of rows that are kept; `sync` comes next."""
        self._forget()
        self._params, self._version = None, NO_WEIGHTS

    def sampler(self, sampling: SamplingParams) -> Sampler:
        """The one that samples in this way, for its statistics and programs; made when first asked for."""
        return self._samplers(self._config, sampling, **self._settings)

    def keep(self, sampling: SamplingParams, rows: int, *, prompt_tokens: int) -> KeptRows | None:
        """See `Sampler.keep`. What was kept before is released; `sync` and `release` do so too."""
        self._forget()
        self._kept = self.sampler(sampling).keep(rows, prompt_tokens=prompt_tokens)
        return self._kept

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.release()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        keys: np.ndarray | None = None,
        places: Sequence[int] | None = None,
        kept: KeptRows | None = None,
        names: Sequence[int] | None = None,
        on_finished: Callable[[int, list[int]], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """See `Sampler.generate`. Raises ValueError where no weights are handed over, or rows not kept any more."""
        if self._params is None:
            raise ValueError("no weights yet: call sync(params, version) before generate")
        if kept is not None and kept is not self._kept:
            raise ValueError("kept is of an earlier call of keep; expected that of the latest one")
        sampler = self.sampler(sampling)
        if lies_elsewhere(self._params, self._settings["mesh"]):
            self._lays_out = self._lays_out or sampler
            self._params = self._lays_out.ready(self._params)
        return sampler.generate(
            self._params,
            prompts,
            group_size=group_size,
            seed=seed,
            step=step,
            prompt_ids=prompt_ids,
            budgets=budgets,
            keys=keys,
            places=places,
            kept=kept,
            names=names,
            on_finished=on_finished,
            progress=progress,
        )


def _merge(parts: list[Any]) -> Any:
    """One tree of several that have no leaf in common: dicts by key, tuples by place."""
    if isinstance(parts[0], dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _merge([part[name] for part in parts if name in part]) for name in names}
    if isinstance(parts[0], tuple):
        return tuple(_merge(list(each)) for each in zip(*parts, strict=True))
    return parts[0]


def usable_weights(params: Any, config: QwenConfig, *, unrolled: bool, int8: bool = False) -> Any:
    """The part of the parameters that the sampler uses as it is; of the others it makes a copy in another form."""
    dtype = jnp.dtype(config.compute.dtype)
    found = {name: leaf for name, leaf in params.items() if name != "blocks" and getattr(leaf, "dtype", None) == dtype}
    blocks = params["blocks"]
    if not (unrolled or int8) and not has_lora(params) and all(x.dtype == dtype for x in jax.tree.leaves(blocks)):
        found["blocks"] = blocks
    return found
