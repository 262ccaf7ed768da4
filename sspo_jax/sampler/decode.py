"""The device programs of the rollout engine: weights made ready, prompts prefilled, blocks of steps decoded.

All are pure functions; `engine.Sampler` compiles them for the shapes it meets.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from sspo_jax.models import qwen
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.cpu_kernels import OutputMajor, fuse_kernels
from sspo_jax.models.int8 import SUMMED_AXES, quantize
from sspo_jax.models.lora import fold_lora
from sspo_jax.sampler.cache_attention import attend, attend_ring
from sspo_jax.sampler.kv_cache import (
    KEY_COLUMNS,
    VALUE_COLUMNS,
    Cache,
    empty_deltas,
    shard_cache,
    turn_slots,
    write_column,
)
from sspo_jax.sampler.random_bits import token_bits
from sspo_jax.sampler.sampling import Drawn, SamplingParams, SlotSettings, draw, draw_each
from sspo_jax.sharding import constrain, is_one_cpu, platform

Weights = dict[str, Any]

_FEW_SLOTS = 32  # up to which the faster product is worth transposing the logits


def ready_weights(params: qwen.Params, config: QwenConfig, *, unrolled: bool, int8: bool = False) -> Weights:
    """The parameters, adapters folded in, in the dtype of the computation; unrolled, each layer in arrays of its own.

    A slice of a stacked array would be copied at every step; copied once here, a step reads each weight once. On a CPU
    kernels are stored by outputs, and on one device those of the same input together.

    Args:
      int8: quantize the matrices of the blocks (`models.int8`).
    """
    if "blocks" in params:
        params = fold_lora(params)
    cast = qwen.cast_params(params, config.compute.dtype)
    if "blocks" not in cast:
        return cast
    if unrolled:
        layers = [qwen.layer_of(cast["blocks"], config, i) for i in range(config.num_layers)]
        return cast | {"blocks": tuple(ready_block(layer, int8=int8) for layer in layers)}
    return cast | {"blocks": quantized_block(cast["blocks"], lead=1)} if int8 else cast


def quantized_block(block: qwen.Params, *, lead: int) -> qwen.Params:
    """One layer, or with `lead` 1 a stack of them, with its large matrices in int8."""
    return {name: quantize(name, x, lead=lead) for name, x in block.items()}


def ready_block(block: qwen.Params, *, int8: bool = False) -> qwen.Params:
    """One layer with its kernels in the order that the platform multiplies fastest, or in int8."""
    if int8:
        return quantized_block(block, lead=0)
    if platform() != "cpu":
        return block
    ordered = {name: OutputMajor.of(block[name], summed=SUMMED_AXES[name]) for name in SUMMED_AXES if name in block}
    return fuse_kernels(block | ordered) if is_one_cpu() else block | ordered


def prefill(
    weights: Weights,
    config: QwenConfig,
    tokens: Int[Array, "prompts time"],
    lengths: Int[Array, " prompts"],
    *,
    chunk: int,
    dtype: Any,
    unrolled: bool,
) -> Cache:
    """Keys and values of prompts aligned at the right, `chunk` tokens of each at a time (chunk divides time).

    Nothing is sampled: the engine leaves a prompt's last token to the first decoding step.
    """
    prompts, time = tokens.shape
    heads, dim = config.num_kv_heads, config.head_dim
    lead, count = ((), len(config.attention_layers)) if unrolled else ((config.num_layers,), 1)
    cache = Cache(
        tuple(jnp.zeros((*lead, prompts, heads, dim, time), dtype) for _ in range(count)),
        tuple(jnp.zeros((*lead, prompts, heads, time, dim), dtype) for _ in range(count)),
        empty_deltas(config, prompts, dtype),
    )
    return extend(weights, config, cache, tokens, lengths, None, chunk=chunk, unrolled=unrolled)


def go_on(
    weights: Weights,
    cache: Cache,
    tokens: Int[Array, "slots time"],
    lengths: Int[Array, " slots"],
    held: Int[Array, " slots"],
    starts: Int[Array, " slots"],
    *,
    config: QwenConfig,
    chunk: int,
    unrolled: bool,
) -> Cache:
    """The cache with further tokens of each slot in it, for a clock that begins anew at column 0.

    Args:
      tokens, lengths, held, chunk: as for `extend`.
      starts: the column in which the first of a slot's tokens lies.
    """
    first = cache.keys[0].shape[KEY_COLUMNS] - lengths - held
    cache = turn_slots(cache, starts - first)
    return shard_cache(extend(weights, config, cache, tokens, lengths, held, chunk=chunk, unrolled=unrolled))


def extend(
    weights: Weights,
    config: QwenConfig,
    cache: Cache,
    tokens: Int[Array, "rows time"],
    lengths: Int[Array, " rows"],
    held: Int[Array, " rows"] | None,
    *,
    chunk: int,
    unrolled: bool,
) -> Cache:
    """The cache with further tokens of each row in its last columns, `chunk` of them at a time (chunk divides time).

    Args:
      tokens: aligned at the right, `lengths` of them in a row; the others are padding, which leaves the cache as it is.
      held: how many tokens of each row are there already, in the columns just before those of the new ones. None: none
        are, and what padding leaves in its columns does not matter.
    """
    time, num_columns = tokens.shape[1], cache.keys[0].shape[KEY_COLUMNS]
    padding = time - lengths
    first = num_columns - lengths - (0 if held is None else held)
    columns = jnp.arange(num_columns)
    is_held = columns[None] >= first[:, None]
    is_new = jnp.arange(time)[None] >= padding[:, None]

    def written(x: Array, new: Array, here: Array, start: Array, axis: int) -> Array:
        """x with the columns of a chunk replaced, where something is held only those of new tokens."""
        at, new = [jnp.zeros_like(start)] * x.ndim, new.astype(x.dtype)
        at[axis] = num_columns - time + start
        if held is not None:
            shape = [1] * x.ndim
            shape[0], shape[axis] = here.shape
            new = jnp.where(here.reshape(shape), new, jax.lax.dynamic_slice(x, at, new.shape))
        return jax.lax.dynamic_update_slice(x, new, at)

    def layer(
        block: qwen.Params, x: Array, keys: Array, values: Array, start: Array, window: Array | int | None
    ) -> tuple[Array, Array, Array]:
        own = num_columns - time + start + jnp.arange(chunk)
        here = jax.lax.dynamic_slice_in_dim(is_new, start, chunk, axis=1)
        angles = qwen.rotary_angles(jnp.maximum(own[None] - first[:, None], 0), config)
        query, key, value, gate = qwen.attention_inputs(block, config, x, angles)
        keys = written(keys, key.transpose(0, 2, 3, 1), here, start, KEY_COLUMNS)
        values = written(values, value.transpose(0, 2, 1, 3), here, start, VALUE_COLUMNS)
        mask = is_held[:, None] & (columns[None, None] <= own[None, :, None])
        if window is not None:
            mask &= columns[None, None] > own[None, :, None] - window
        x = x + qwen.attention_output(block, attend(query, keys, values, mask), gate)
        return x + qwen.mlp(block, config, x), keys, values

    def chunk_step(start: Array, cache: Cache) -> Cache:
        x = qwen.embed(weights, config, jax.lax.dynamic_slice_in_dim(tokens, start, chunk, axis=1))
        x = constrain(x, "batch", "time", "activation_embed")
        if unrolled:
            here = jax.lax.dynamic_slice_in_dim(is_new, start, chunk, axis=1)
            before = jnp.clip(padding - start, 0, chunk)
            keys, values, deltas = list(cache.keys), list(cache.values), list(cache.deltas)
            for i, block in enumerate(weights["blocks"]):
                if i in config.delta_layers:
                    at = config.delta_layers.index(i)
                    mixed, deltas[at] = qwen.delta_rule(block, config, x, deltas[at], is_token=here, padding=before)
                    x = x + mixed
                    x = x + qwen.mlp(block, config, x)
                else:
                    at = config.attention_layers.index(i)
                    x, keys[at], values[at] = layer(block, x, keys[at], values[at], start, config.window_of(i))
            return Cache(tuple(keys), tuple(values), tuple(deltas))

        def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            x, *stacks = carry  # carried, not mapped over: a donated cache is changed in place
            i, block, window = inputs
            keys, values = (jax.lax.dynamic_index_in_dim(stack, i, keepdims=False) for stack in stacks)
            x, *new = layer(block, x, keys, values, start, window)
            pairs = zip(stacks, new, strict=True)
            return (x, *(jax.lax.dynamic_update_index_in_dim(stack, own, i, 0) for stack, own in pairs)), None

        layers = jnp.arange(config.num_layers), weights["blocks"], qwen.windows(config)
        carry = (x, cache.keys[0], cache.values[0])
        (_, keys, values), _ = jax.lax.scan(body, carry, layers)
        return Cache((keys,), (values,))

    if chunk == time:
        return chunk_step(jnp.zeros((), jnp.int32), cache)
    return jax.lax.fori_loop(0, time // chunk, lambda i, cache: chunk_step(i * chunk, cache), cache)


def decode_logits(
    weights: Weights,
    config: QwenConfig,
    cache: Cache,
    tokens: Int[Array, " slots"],
    positions: Int[Array, " slots"],
    angles: tuple[Array, Array],
    clock: Int[Array, ""],
    *,
    active: Bool[Array, " slots"] | None = None,
    spare_idle: bool = False,
    unrolled: bool,
) -> tuple[Array, Cache]:
    """Logits [slots, vocab], float32, after one token a slot, and the cache with that token written.

    The state of a layer with the gated delta rule begins anew at position 0, and stays as it is where a slot is not
    `active` (None: all are).

    Those of rows that pad the embedding are minus infinity.
    `angles` are the rotary angles of `positions`.
    With `spare_idle` the columns of slots that are not active stay as they are too.
    """
    only = active if spare_idle else None
    columns = cache.keys[0].shape[KEY_COLUMNS]
    column, with_kernels = clock % columns, config.compute.attention != "xla"

    def block_step(block: qwen.Params, x: Array, write: Any, window: Array | int | None) -> tuple[Array, Any]:
        query, key, value, gate = qwen.attention_inputs(block, config, x, angles)
        keys, values, layer, written = write(key, value)
        oldest = positions if window is None else jnp.minimum(positions, window - 1)  # age of a column that is seen
        attended = attend_ring(query, keys, values, oldest, clock, layer, kernels=with_kernels)
        x = x + qwen.attention_output(block, attended, gate)
        x = x + qwen.mlp(block, config, x)
        return constrain(x, "batch", "activation_embed"), written

    x = constrain(qwen.embed(weights, config, tokens), "batch", "activation_embed")
    if unrolled:
        keys, values, deltas = list(cache.keys), list(cache.values), list(cache.deltas)
        for layer, block in enumerate(weights["blocks"]):
            if layer in config.delta_layers:
                i = config.delta_layers.index(layer)
                x, deltas[i] = _delta_step(block, config, x, deltas[i], positions, active)
                continue
            i = config.attention_layers.index(layer)

            def write(key: Array, value: Array, i: int = i) -> tuple[Array, Array, None, None]:
                keys[i] = write_column(keys[i], key, column, axis=KEY_COLUMNS, only=only)
                values[i] = write_column(values[i], value, column, axis=VALUE_COLUMNS, only=only)
                return keys[i], values[i], None, None

            x, _ = block_step(block, x, write, config.window_of(layer))
        cache = Cache(tuple(keys), tuple(values), tuple(deltas))
    else:

        def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            x, all_keys, all_values = carry
            layer, block, window = inputs

            def write(key: Array, value: Array) -> tuple[Array, Array, Array, tuple[Array, Array]]:
                where: dict[str, Any] = {"layer": layer, "only": only}
                new_keys = write_column(all_keys, key, column, axis=KEY_COLUMNS, **where)
                new_values = write_column(all_values, value, column, axis=VALUE_COLUMNS, **where)
                return new_keys, new_values, layer, (new_keys, new_values)

            x, (all_keys, all_values) = block_step(block, x, write, window)
            return (x, all_keys, all_values), None

        layers = jnp.arange(config.num_layers), weights["blocks"], qwen.windows(config)
        (x, keys, values), _ = jax.lax.scan(body, (x, cache.keys[0], cache.values[0]), layers)
        cache = Cache((keys,), (values,))
    x = qwen.norm(x, weights["final_norm"], config)
    if platform() == "cpu" and "unembedding" not in weights and x.shape[0] <= _FEW_SLOTS:
        logits = OutputMajor(weights["embedding"], (config.vocab_size,)).product(x, dtype=jnp.float32)
    else:
        logits = jnp.einsum("bd,dv->bv", x, qwen.unembedding(weights), preferred_element_type=jnp.float32)
    return qwen.without_padding(logits, config), cache


def _delta_step(
    block: qwen.Params,
    config: QwenConfig,
    x: Array,
    kept: qwen.DeltaState,
    positions: Int[Array, " slots"],
    active: Bool[Array, " slots"] | None,
) -> tuple[Array, qwen.DeltaState]:
    """A layer with the gated delta rule, for one token a slot, and the states after it."""

    def by_slot(flags: Array) -> Array:
        return flags[:, None, None, None]

    before = jax.tree.map(lambda part: jnp.where(by_slot(positions > 0), part, 0), kept)
    mixed, after = qwen.delta_rule(block, config, x[:, None], before)
    if active is not None:
        after = jax.tree.map(lambda new, old: jnp.where(by_slot(active), new, old), after, kept)
    x = x + mixed[:, 0]
    x = x + qwen.mlp(block, config, x)
    return constrain(x, "batch", "activation_embed"), after


def _buffers(max_steps: int, slots: int, sampling: SamplingParams, top: int) -> dict[str, Array]:
    """What a block reports of each of its steps, empty."""
    buffers = {
        "tokens": jnp.zeros((max_steps, slots), jnp.int32),
        "logprobs": jnp.zeros((max_steps, slots), jnp.float32),
    }
    if sampling.truncated_logprobs:
        buffers["truncated_logprobs"] = jnp.zeros((max_steps, slots), jnp.float32)
    if sampling.entropies:
        buffers["entropies"] = jnp.zeros((max_steps, slots), jnp.float32)
    if top:
        buffers["top_ids"] = jnp.zeros((max_steps, slots, top), jnp.int32)
        buffers["top_logprobs"] = jnp.zeros((max_steps, slots, top), jnp.float32)
    return buffers


def _with_row(buffers: dict[str, Array], drawn: Drawn, active: Bool[Array, " slots"], row: Array) -> dict[str, Array]:
    """The buffers with a step written; 0 where a slot is not active."""
    zero = jnp.zeros_like(row)
    written = {}
    for name, buffer in buffers.items():
        value = getattr(drawn, name)
        value = jnp.where(jnp.expand_dims(active, tuple(range(1, value.ndim))), value, 0)
        written[name] = jax.lax.dynamic_update_slice(buffer, value[None], (row, *[zero] * value.ndim))
    return written


def decode_block(
    weights: Weights,
    cache: Cache,
    tokens: Int[Array, " slots"],
    positions: Int[Array, " slots"],
    generated: Int[Array, " slots"],
    budgets: Int[Array, " slots"],
    active: Bool[Array, " slots"],
    keys: UInt32[Array, "slots 2"],
    clock: Int[Array, ""],
    num_steps: Int[Array, ""],
    finish_limit: Int[Array, ""],
    settings: SlotSettings | None = None,
    *,
    config: QwenConfig,
    sampling: SamplingParams,
    max_steps: int,
    unrolled: bool,
    top: int = 0,
    spare_idle: bool = False,
) -> tuple[Cache, dict[str, Array]]:
    """Up to `num_steps` tokens for each active slot.

    Args:
      tokens: the next input token of each slot, whose position is `positions` and which is not cached yet.
      generated: tokens of the response so far; it ends at `budgets` of them or with a stop token.
      keys: of each row (`random_bits.row_keys`); folded with the place in the response.
      clock: the column the first step writes.
      num_steps: at most `max_steps`.
      finish_limit: the block ends early when this many of the slots that were active have finished.
      settings: of each slot, in place of `sampling`, of which then only the arrays that it asks for count.
      top: with `settings`, how many of the most probable tokens are reported.
      spare_idle: leave what slots hold that are not active, or have become so.

    Returns:
      The cache, and `tokens`, `logprobs`, `truncated_logprobs`, `entropies` [max_steps, slots], `top_ids`,
      `top_logprobs` [max_steps, slots, top], `counts` [slots] (how many of them a slot generated, from the first row
      on), `active` [slots] and `steps` taken.
    """
    slots = tokens.shape[0]
    before = jnp.sum(active)
    stop_ids = jnp.asarray(sampling.stop_token_ids or (-1,), jnp.int32)[None]
    if settings is not None:
        stop_ids = settings.stop_ids
    buffers = _buffers(max_steps, slots, sampling, top)

    # For all steps ahead of the loop: inside it, the compiler computes a cosine again for each layer and head.
    angles = qwen.rotary_angles(positions[None] + jnp.arange(max_steps)[:, None], config)

    def go_on(state: tuple) -> Array:
        i, _, _, _, active, _ = state
        running = jnp.sum(active)
        return (i < num_steps) & (running > 0) & (before - running < finish_limit)

    def one_step(state: tuple) -> tuple:
        i, cache, tokens, counts, active, buffers = state
        at = generated + i  # where a slot is active; what others compute is dropped
        here = jax.tree.map(lambda table: jax.lax.dynamic_index_in_dim(table, i, keepdims=False), angles)
        logits, cache = decode_logits(
            weights,
            config,
            cache,
            tokens,
            positions + i,
            here,
            clock + i,
            active=active,
            spare_idle=spare_idle,
            unrolled=unrolled,
        )
        logits = constrain(logits, "batch", "vocab")
        bits = token_bits(keys, at.astype(jnp.uint32))
        if settings is None:
            drawn = draw(logits, bits, sampling, forbid_stops=at < sampling.min_new_tokens)
        else:
            drawn = draw_each(logits, bits, settings, generated=at, top=top)
        tokens = jnp.where(active, drawn.tokens, tokens)
        buffers = _with_row(buffers, drawn, active, i)
        counts = counts + active
        stopped = jnp.any(drawn.tokens[:, None] == stop_ids, axis=1)
        active = active & ~stopped & (at + 1 < budgets)
        return i + 1, cache, tokens, counts, active, buffers

    state = (jnp.zeros((), jnp.int32), cache, tokens, jnp.zeros_like(generated), active, buffers)
    steps, cache, _, counts, active, buffers = jax.lax.while_loop(go_on, one_step, state)
    out = {**buffers, "counts": counts, "active": active, "steps": steps}
    return shard_cache(cache), jax.tree.map(constrain, out)  # whole on every device: each host reads all of it
