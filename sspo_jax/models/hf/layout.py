"""The two layouts of a checkpoint: `HF_NAMES` is the whole correspondence between Hugging Face's and ours.

A checkpoint holds one matrix [outputs, inputs] per layer; our tree holds [layers, inputs, outputs], with heads as an
axis of their own.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import abstract_qwen, layers_with

DType = Literal["float32", "bfloat16", "float16"]
"""The types that weights have in files."""

HF_NAMES: dict[str, tuple[str, int | None]] = {
    # ours: (theirs, how many of our axes a matrix sums over; 0: a vector, flattened; None: the same shape)
    "embedding": ("model.embed_tokens.weight", None),
    "final_norm": ("model.norm.weight", 0),
    "unembedding": ("lm_head.weight", 1),
    "blocks.attention_norm": ("model.layers.{0}.input_layernorm.weight", 0),
    "blocks.query": ("model.layers.{0}.self_attn.q_proj.weight", 1),
    "blocks.query_bias": ("model.layers.{0}.self_attn.q_proj.bias", 0),
    "blocks.query_norm": ("model.layers.{0}.self_attn.q_norm.weight", 0),
    "blocks.key": ("model.layers.{0}.self_attn.k_proj.weight", 1),
    "blocks.key_bias": ("model.layers.{0}.self_attn.k_proj.bias", 0),
    "blocks.key_norm": ("model.layers.{0}.self_attn.k_norm.weight", 0),
    "blocks.value": ("model.layers.{0}.self_attn.v_proj.weight", 1),
    "blocks.value_bias": ("model.layers.{0}.self_attn.v_proj.bias", 0),
    "blocks.output": ("model.layers.{0}.self_attn.o_proj.weight", 2),
    "blocks.output_bias": ("model.layers.{0}.self_attn.o_proj.bias", 0),
    "blocks.mlp_norm": ("model.layers.{0}.post_attention_layernorm.weight", 0),
    "blocks.gate": ("model.layers.{0}.mlp.gate_proj.weight", 1),
    "blocks.up": ("model.layers.{0}.mlp.up_proj.weight", 1),
    "blocks.down": ("model.layers.{0}.mlp.down_proj.weight", 1),
    "blocks.router": ("model.layers.{0}.mlp.gate.weight", 1),
    "blocks.expert_gate": ("model.layers.{0}.mlp.experts.{1}.gate_proj.weight", 1),
    "blocks.expert_up": ("model.layers.{0}.mlp.experts.{1}.up_proj.weight", 1),
    "blocks.expert_down": ("model.layers.{0}.mlp.experts.{1}.down_proj.weight", 1),
    "blocks.shared_router": ("model.layers.{0}.mlp.shared_expert_gate.weight", 1),
    "blocks.shared_gate": ("model.layers.{0}.mlp.shared_expert.gate_proj.weight", 1),
    "blocks.shared_up": ("model.layers.{0}.mlp.shared_expert.up_proj.weight", 1),
    "blocks.shared_down": ("model.layers.{0}.mlp.shared_expert.down_proj.weight", 1),
    "blocks.delta_query_key_value_gate": ("model.layers.{0}.linear_attn.in_proj_qkvz.weight", 1),
    "blocks.delta_rate_decay": ("model.layers.{0}.linear_attn.in_proj_ba.weight", 1),
    "blocks.delta_query_key_value": ("model.layers.{0}.linear_attn.in_proj_qkv.weight", 1),
    "blocks.delta_gate": ("model.layers.{0}.linear_attn.in_proj_z.weight", 1),
    "blocks.delta_rate": ("model.layers.{0}.linear_attn.in_proj_b.weight", 1),
    "blocks.delta_decay": ("model.layers.{0}.linear_attn.in_proj_a.weight", 1),
    "blocks.delta_convolution": ("model.layers.{0}.linear_attn.conv1d.weight", None),
    "blocks.delta_log_decay": ("model.layers.{0}.linear_attn.A_log", 0),
    "blocks.delta_step_bias": ("model.layers.{0}.linear_attn.dt_bias", 0),
    "blocks.delta_norm": ("model.layers.{0}.linear_attn.norm.weight", 0),
    "blocks.delta_output": ("model.layers.{0}.linear_attn.out_proj.weight", 2),
}


@dataclasses.dataclass(frozen=True)
class HfTensor:
    """One tensor of the checkpoint and its place in our tree."""

    name: str  # theirs
    shape: tuple[int, ...]  # theirs
    path: str  # ours, dotted
    index: tuple[int, ...]  # the layer (and the expert), () where nothing is stacked
    part_shape: tuple[int, ...]  # ours, of one layer (and expert)
    part_axes: tuple[str | None, ...]  # logical axes of the same
    inputs: int | None  # see HF_NAMES
    parts: tuple[int, ...] = ()  # of a head, which lie together with us and are stored one for all heads after another


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        flat |= flatten(node, f"{prefix}{name}.") if isinstance(node, dict) else {f"{prefix}{name}": node}
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = leaf
    return tree


def hf_tensors(config: QwenConfig) -> dict[str, list[HfTensor]]:
    """The tensors that a checkpoint of this shape consists of, by our dotted name."""
    shapes, axes = abstract_qwen(config)
    flat_axes = flatten(axes)
    found: dict[str, list[HfTensor]] = {}
    for path, leaf in flatten(shapes).items():
        template, inputs = HF_NAMES[path]
        stacked = template.count("{")
        part_shape, part_axes = leaf.shape[stacked:], flat_axes[path][stacked:]
        shape = part_shape
        if inputs is not None:
            shape = (math.prod(part_shape[inputs:]),) + ((math.prod(part_shape[:inputs]),) if inputs else ())
        if path == "blocks.delta_convolution":
            shape = (math.prod(part_shape[:2]), 1, part_shape[2])
        parts = head_parts(path, config)
        layers = layers_with(path.removeprefix("blocks."), config)
        found[path] = [
            HfTensor(_hf_name(template, index, layers), shape, path, index, part_shape, part_axes, inputs, parts)
            for index in np.ndindex(*leaf.shape[:stacked])
        ]
    return found


def _hf_name(template: str, index: tuple[int, ...], layers: tuple[int, ...]) -> str:
    return template.format(layers[index[0]], *index[1:]) if index else template


def head_parts(path: str, config: QwenConfig) -> tuple[int, ...]:
    """The widths of what lies together in each head with us, where checkpoints hold all heads of the first before the
    second; () where the order is the same.
    """
    if path not in ("blocks.delta_query_key_value", "blocks.delta_convolution"):
        return ()
    return config.delta_key_dim, config.delta_key_dim, config.delta_group * config.delta_value_dim


def hf_axes(tensor: HfTensor) -> tuple[str | None, ...]:
    """Logical axes in the checkpoint's layout; a merged axis is sharded as its first part is."""
    if tensor.inputs is None:
        return tensor.part_axes
    return (tensor.part_axes[tensor.inputs],) + ((tensor.part_axes[0],) if tensor.inputs else ())


def from_hf(x: jax.Array, part_shape: tuple[int, ...], inputs: int | None, parts: tuple[int, ...] = ()) -> jax.Array:
    """A tensor of the checkpoint in our layout; arguments as in `HfTensor`."""
    if parts:
        heads = x.shape[0] // sum(parts)
        ends = [heads * sum(parts[: i + 1]) for i in range(len(parts) - 1)]
        split = [piece.reshape(heads, -1, *x.shape[1:]) for piece in jnp.split(x, ends)]
        x = jnp.concatenate(split, axis=1).reshape(x.shape)
    return (x.T if inputs else x).reshape(part_shape)


def to_hf(x: jax.Array, shape: tuple[int, ...], inputs: int | None, parts: tuple[int, ...] = ()) -> jax.Array:
    """The inverse of `from_hf`."""
    x = x.reshape(shape[::-1]).T if inputs else x.reshape(shape)
    if not parts:
        return x
    by_head = x.reshape(-1, sum(parts), *shape[1:])
    ends = [sum(parts[: i + 1]) for i in range(len(parts) - 1)]
    return jnp.concatenate([piece.reshape(-1, *shape[1:]) for piece in jnp.split(by_head, ends, axis=1)])
