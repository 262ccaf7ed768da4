"""The mixture of experts of Qwen3-MoE: each token goes through the few experts that its router ranks highest.

No capacity and no dropped tokens: the rows (token, expert) are sorted by expert, and one grouped product
(`jax.lax.ragged_dot`) multiplies each run of rows with its expert's matrix. On a mesh, the experts are split over the
`expert` axis: each device gathers the tokens of its expert group, computes the rows of its own experts, and the sums
go back to where the tokens live.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sharding import RULES, partition_spec

Weights = tuple[Array, Array, Array]  # gate and up [experts, embed, mlp], down [experts, mlp, embed]


class Routing(NamedTuple):
    """Which experts each token goes through."""

    weights: Float[Array, "... chosen"]
    """float32."""
    chosen: Int[Array, "... chosen"]


def route(
    block: dict[str, Any],
    config: QwenConfig,
    x: Float[Array, "... embed"],
    recorded: Int[Array, "... chosen"] | None = None,
) -> tuple[Routing, Int[Array, "... chosen"]]:
    """The experts to use and their weights in the router's softmax over all experts; and those that it ranks highest.

    Args:
      x: after the norm of the MLP.
      recorded: the experts to use instead, where not negative ("routing replay" of GSPO, arXiv 2507.18071 section
        5.3). Their weights are the present router's.
    """
    logits = (x.reshape(-1, x.shape[-1]) @ block["router"].astype(x.dtype)).astype(jnp.float32)
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, own = jax.lax.top_k(probabilities, config.experts_per_token)
    chosen = own
    if recorded is not None:
        recorded = recorded.reshape(own.shape).astype(own.dtype)
        chosen = jnp.where(recorded >= 0, recorded, own)
        weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
    if config.normalize_experts:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    shape = (*x.shape[:-1], config.experts_per_token)
    return Routing(weights.reshape(shape), chosen.reshape(shape)), own.reshape(shape)


def expert_loads(
    chosen: Int[Array, "layers batch time chosen"], mask: Bool[Array, "batch time"], num_experts: int
) -> Float[Array, "layers experts"]:
    """How many of the tokens in the mask each expert of each layer was chosen for."""
    layers = chosen.shape[0]
    first = jnp.arange(layers)[:, None, None, None] * num_experts
    counted = jnp.broadcast_to(mask[None, :, :, None], chosen.shape).astype(jnp.float32)
    loads = jax.ops.segment_sum(counted.reshape(-1), (first + chosen).reshape(-1), num_segments=layers * num_experts)
    return loads.reshape(layers, num_experts)


def mixture_of_experts(
    block: dict[str, Any], config: QwenConfig, x: Float[Array, "... embed"], routing: Routing
) -> Array:
    """sum over the chosen experts e of w_e down_e(silu(gate_e(x)) * up_e(x)).

    Args:
      x: after the norm of the MLP.
      routing: see `route`.
    """
    flat = x.reshape(-1, x.shape[-1])
    weights, chosen = (part.reshape(flat.shape[0], -1) for part in routing)
    gate, up, down = (block[f"expert_{name}"].astype(flat.dtype) for name in ("gate", "up", "down"))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        y = _experts(flat, weights.astype(flat.dtype), chosen, (gate, up, down), first_expert=0)
        return y.reshape(x.shape)
    rows = partition_spec(("tokens", None))
    expert_axis, tensor_axis = RULES["experts"], RULES["mlp"]

    def local(x: Array, weights: Array, chosen: Array, gate: Array, up: Array, down: Array) -> Array:
        x, weights, chosen = (jax.lax.all_gather(part, expert_axis, tiled=True) for part in (x, weights, chosen))
        first = jax.lax.axis_index(expert_axis) * gate.shape[0]
        y = _experts(x, weights, chosen, (gate, up, down), first_expert=first)
        y = jax.lax.psum(y, tensor_axis)  # each device has some columns of gate and up
        return jax.lax.psum_scatter(y, expert_axis, tiled=True)

    # Without "embed", so the compiler gathers the fsdp shards of the weights first.
    wide, narrow = partition_spec(("experts", None, "mlp")), partition_spec(("experts", "mlp", None))
    # Rows are the flattened batch and time; where the mesh does not divide them (a short prompt), they are padded.
    size = 1
    for axis in RULES["tokens"] or ():
        size *= mesh.shape[axis]
    padding = -flat.shape[0] % size

    def pad(part: Array) -> Array:
        return jnp.pad(part, ((0, padding), (0, 0)))

    y = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, rows, wide, wide, narrow), out_specs=rows, check_vma=False
    )(pad(flat), pad(weights.astype(flat.dtype)), pad(chosen), gate, up, down)
    return y[: flat.shape[0]].reshape(x.shape)


def _experts(
    x: Float[Array, "rows embed"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    matrices: Weights,
    *,
    first_expert: Array | int,
) -> Float[Array, "rows embed"]:
    """The part of the sum that the experts from `first_expert` on, as many as there are matrices, contribute."""
    gate, up, down = matrices
    num_experts = gate.shape[0]
    expert = chosen.reshape(-1) - first_expert
    is_ours = (expert >= 0) & (expert < num_experts)
    expert = jnp.where(is_ours, expert, num_experts)  # those of other devices sort to the end, outside all groups
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=num_experts + 1)[:num_experts].astype(jnp.int32)
    token = order // chosen.shape[1]
    rows = x[token]
    inner = jax.nn.silu(jax.lax.ragged_dot(rows, gate, sizes)) * jax.lax.ragged_dot(rows, up, sizes)
    outer = jax.lax.ragged_dot(inner, down, sizes)
    weight = jnp.where(is_ours[order], weights.reshape(-1)[order], 0)[:, None]
    # Rows outside all groups hold nothing meaningful.
    outer = jnp.where(weight == 0, 0, outer) * weight
    return jnp.zeros_like(x).at[token].add(outer)
