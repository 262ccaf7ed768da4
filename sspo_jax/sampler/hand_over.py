"""Weights from the layout of training to that of decoding, once for each version of them.

Each parameter is cast first and then sent, so that half the bytes travel, and the blocks go one layer at a time: beside
the parameters and the weights that they become, never more than one layer is held.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.cpu_kernels import OutputMajor
from sspo_jax.models.int8 import SUMMED_AXES, dense, is_int8, sharded
from sspo_jax.models.lora import fold_lora, has_lora
from sspo_jax.models.qwen import Params, kept_dtype, layers_with, qwen_shardings
from sspo_jax.sampler.decode import Weights, quantized_block, ready_block
from sspo_jax.sharding import cut_alike, replicated


def lies_elsewhere(params: Params, mesh: Mesh | None) -> bool:
    """Whether the parameters lie on another mesh than this one."""
    placed = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    return mesh is not None and any(isinstance(one, NamedSharding) and one.mesh != mesh for one in placed)


def hand_over(
    params: Params, config: QwenConfig, mesh: Mesh, programs: Any, *, unrolled: bool, int8: bool = False
) -> Weights:
    """The weights as the programs of decoding read them, laid out on `mesh`; see `decode.ready_weights`.

    Args:
      params: on a mesh of the same devices in the same order; adapters beside them are folded in.
      programs: `CompiledPrograms` or what stands for it: one for each parameter outside the blocks, one for all layers.
      int8: quantize the matrices of the blocks, where they have arrived.
    """
    dtype, targets = jnp.dtype(config.compute.dtype), qwen_shardings(config, mesh)
    weights: Weights = {}
    for name, leaf in params.items():
        if name != "blocks":
            move = functools.partial(_sent, source=leaf.sharding, target=targets[name], dtype=dtype)
            weights[name] = _done(programs(("weights", name), move, leaf, out_shardings=targets[name]))
    blocks = params["blocks"]
    sources = {name: x.sharding for name, x in blocks.items()}

    def layer(blocks: Params, places: dict[str, Array] | Array) -> Params:
        """One layer, its leading axis of length one; `places`: where it lies in each stack, or in all of them."""
        own = {name: _slice(x, places[name] if isinstance(places, dict) else places) for name, x in blocks.items()}
        folded = dense(fold_lora({"blocks": own})["blocks"])
        return {
            name: _sent(x, source=sources[name], target=targets["blocks"][name], dtype=kept_dtype(name, dtype))
            for name, x in folded.items()
        }

    if unrolled:
        weights["blocks"] = _layers(blocks, layer, targets["blocks"], config, programs, int8=int8)
    else:
        weights["blocks"] = _stack(blocks, layer, targets["blocks"], config.num_layers, programs, int8=int8)
    return weights


def send(params: Params, config: QwenConfig, mesh: Mesh) -> Params:
    """The parameters, adapters folded in, in the computation's dtype on a mesh of other devices of this process.

    Each is cast where it lies and then sent, one at a time.
    """
    dtype, targets = jnp.dtype(config.compute.dtype), qwen_shardings(config, mesh)
    plain = jax.jit(fold_lora)(params) if has_lora(params) else dense(params)

    def one(name: str, leaf: Array, target: NamedSharding) -> Array:
        wanted = kept_dtype(name, dtype)
        cast = leaf if leaf.dtype == wanted else jax.jit(lambda x: x.astype(wanted))(leaf)
        return jax.block_until_ready(jax.device_put(cast, target))

    blocks = {name: one(name, leaf, targets["blocks"][name]) for name, leaf in plain["blocks"].items()}
    return {name: blocks if name == "blocks" else one(name, leaf, targets[name]) for name, leaf in plain.items()}


def _sent(x: Array, *, source: Any, target: NamedSharding, dtype: Any) -> Array:
    """Cast where it lies, then sent to where it is wanted."""
    x = jax.lax.with_sharding_constraint(x, source)
    if x.dtype != dtype:
        # The barrier keeps the compiler from sending the wider type and casting afterwards.
        x = jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(x.astype(dtype)), source)
    assert isinstance(source.mesh, Mesh)
    assert isinstance(target.mesh, Mesh)
    if not cut_alike(source.mesh, target.mesh):  # the compiler would copy it to all devices too, and say so at length
        x = jax.lax.with_sharding_constraint(x, replicated(target.mesh))
    return jax.lax.with_sharding_constraint(x, target)


def _layers(
    blocks: Params, layer: Callable[..., Params], targets: Params, config: QwenConfig, programs: Any, *, int8: bool
) -> tuple[Weights, ...]:
    """Each layer in arrays of its own; one program for each kind of layer."""

    def one(blocks: Params, places: dict[str, Array]) -> Params:
        return ready_block({name: x[0] for name, x in layer(blocks, places).items()}, int8=int8)

    layers = []
    for index in range(config.num_layers):
        stacks = {name: layers_with(name, config) for name in blocks}
        places = {name: np.int32(own.index(index)) for name, own in stacks.items() if index in own}
        own = {name: blocks[name] for name in places}
        placed = {
            name: _placed(name, kernel, targets[name]) for name, kernel in jax.eval_shape(one, own, places).items()
        }
        kind = config.kinds[index] if config.has_kinds else ()
        layers.append(_done(programs(("weights", "layer", *kind), one, own, places, out_shardings=placed)))
    return tuple(layers)


def _placed(name: str, kernel: Any, stacked: NamedSharding) -> Any:
    """How one layer of a stacked array lies; of a kernel stored by outputs, how its matrix does."""
    axes = stacked.spec[1:]
    if is_int8(kernel):
        return sharded(kernel, NamedSharding(stacked.mesh, PartitionSpec(*axes)))
    if not isinstance(kernel, OutputMajor):
        return NamedSharding(stacked.mesh, PartitionSpec(*axes))
    matrix = PartitionSpec(axes[SUMMED_AXES[name]], axes[0])
    return dataclasses.replace(kernel, weight=NamedSharding(stacked.mesh, matrix))


def _slice(x: Any, index: Array) -> Any:
    """One layer of a stack, its leading axis of length one."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), x)


def _stack(
    blocks: Params, layer: Callable[..., Params], targets: Params, count: int, programs: Any, *, int8: bool
) -> Weights:
    """The layers in stacked arrays, which are filled one layer after the other."""

    def one(blocks: Params, index: Array) -> Params:
        own = layer(blocks, index)
        return quantized_block(own, lead=1) if int8 else own

    shapes = jax.eval_shape(one, blocks, np.int32(0))

    def empty() -> Params:
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), shapes)

    def write(stack: Params, blocks: Params, index: Array) -> Params:
        own = one(blocks, index)
        return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, index, axis=0), stack, own)

    placed = {name: sharded(x, targets[name]) if is_int8(x) else targets[name] for name, x in shapes.items()}
    stack = programs(("empty weights",), empty, out_shardings=placed)
    for index in range(count):
        args = stack, blocks, np.int32(index)
        stack = _done(programs(("weights", "layer"), write, *args, donate=(0,), out_shardings=placed))
    return stack


def _done(weights: Any) -> Any:
    """Waits, so that no two parameters are on their way at once; shapes of weights are there already."""
    return weights if isinstance(jax.tree.leaves(weights)[0], jax.ShapeDtypeStruct) else jax.block_until_ready(weights)
