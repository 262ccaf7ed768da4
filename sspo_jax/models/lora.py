"""Low-rank adapters (LoRA, arXiv:2106.09685): W + (alpha / rank) A B, where only A and B are trained.

`with_lora` puts adapters beside the weights of the blocks, and the forward pass adds (x A) B to x W: training never
forms the sum of the two matrices. `fold_lora` forms it, for the sampler (which copies the weights in any case) and
`merge_lora` for export. A loss sees no difference: differentiate with respect to the adapters through `with_lora`.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.int8 import SUMMED_AXES, dense
from sspo_jax.models.qwen import Params, abstract_qwen
from sspo_jax.ranges import Count, FileOnly, Positive
from sspo_jax.sharding import check_divides, named_sharding

Target = Literal[
    "query", "key", "value", "output", "gate", "up", "down",
    "delta_query_key_value", "delta_gate", "delta_rate", "delta_decay", "delta_output",
    "delta_query_key_value_gate", "delta_rate_decay",
    "shared_gate", "shared_up", "shared_down",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which weights are adapted, and how."""

    rank: Count = 16
    """Columns of A and rows of B."""
    alpha: Positive = 32.0
    """The product is scaled with alpha / rank."""
    targets: FileOnly[tuple[Target, ...]] = get_args(Target)[:7]
    """Weights of a block that get an adapter: of attention and MLP, of the gated delta rule (of Qwen3.5
    delta_query_key_value, delta_gate, delta_rate, delta_decay; of Qwen3-Next delta_query_key_value_gate,
    delta_rate_decay; of both delta_output), and of the expert that all tokens go through."""
    frozen: Literal["computation", "int8"] = "computation"
    """How the weights under the adapters are kept: as they are computed with, or the matrices of the blocks in int8
    with a scale for each output, 1 byte a weight. What is trained, and exported, is then a policy over the rounded
    weights."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank is {self.rank} with {len(self.targets)} targets; expected at least 1 of each")


def lora_shapes(config: QwenConfig, lora: LoraConfig) -> tuple[Params, Params]:
    """(`jax.ShapeDtypeStruct`, logical axes) of the adapters, float32.

    {target: {"a": [layers, inputs..., rank], "b": [layers, rank, outputs...]}}

    A is sharded like the weight's inputs and B like its outputs; the rank is whole everywhere.

    Raises:
      ValueError: a target that this model does not have (as the MLP of a mixture of experts).
    """
    shapes, axes = (tree["blocks"] for tree in abstract_qwen(config))
    missing = [target for target in lora.targets if target not in shapes]
    if missing:
        raise ValueError(f"targets {missing} are not weights of this model's blocks: leave them out of lora.targets")
    found_shapes, found_axes = {}, {}
    for target in lora.targets:
        split = 1 + SUMMED_AXES[target]
        shape, names = shapes[target].shape, axes[target]
        pair = {"a": (*shape[:split], lora.rank), "b": (shape[0], lora.rank, *shape[split:])}
        found_shapes[target] = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in pair.items()}
        found_axes[target] = {"a": (*names[:split], None), "b": (names[0], None, *names[split:])}
    return found_shapes, found_axes


def lora_shardings(config: QwenConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """`NamedSharding` of each adapter on `mesh`. Raises ValueError where the mesh does not divide an axis."""
    shapes, axes = lora_shapes(config, lora)
    check_divides(mesh, shapes, axes)
    return jax.tree.map(lambda names: named_sharding(mesh, names), axes, is_leaf=_is_tuple)


def init_lora(config: QwenConfig, lora: LoraConfig, key: Array, *, mesh: Mesh | None = None) -> Params:
    """Adapters that change nothing yet: A normal with variance 1 / inputs, B zero; float32."""
    shapes, _ = lora_shapes(config, lora)
    shardings = None if mesh is None else lora_shardings(config, lora, mesh)

    def build(key: Array) -> Params:
        adapters: Params = {}
        for target, subkey in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
            a, b = (shapes[target][name].shape for name in ("a", "b"))
            scale = math.prod(a[1:-1]) ** -0.5
            adapters[target] = {"a": jax.random.normal(subkey, a, jnp.float32) * scale, "b": jnp.zeros(b, jnp.float32)}
        return adapters

    return jax.jit(build, out_shardings=shardings)(key)


def with_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Parameters for every function of `sspo_jax.models.qwen` and for the sampler, adapters applied on the way."""
    scale = lora.alpha / lora.rank
    scaled = {target: {"a": pair["a"], "b": pair["b"] * scale} for target, pair in adapters.items()}
    return beside_weights(params, scaled)


def beside_weights(params: Params, scaled: Params) -> Params:
    """The parameters with adapters, or their shapes, beside the weights of the blocks."""
    beside = {f"{target}_lora_{name}": x for target, pair in scaled.items() for name, x in pair.items()}
    return {**params, "blocks": {**params["blocks"], **beside}}


def merge_lora(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Parameters of the plain model that computes the same, in the dtype they have: W + (alpha / rank) A B."""
    return fold_lora(with_lora(params, adapters, lora))


def has_lora(params: Params) -> bool:
    """Whether there are adapters beside the weights."""
    return any(name.endswith("_lora_a") for name in params["blocks"])


def fold_lora(params: Params) -> Params:
    """The same from parameters that have adapters beside the weights; without any, `params` as they are.

    Weights in int8 become those that they stand for. The sampler does this once per rollout, while it copies the
    weights anyway: a decoding step then costs what it costs without adapters. The sum is formed in float32.
    """
    if not has_lora(params):
        return params
    blocks = params["blocks"]
    targets = [name.removesuffix("_lora_a") for name in blocks if name.endswith("_lora_a")]
    folded = {name: x for name, x in blocks.items() if not name.endswith(("_lora_a", "_lora_b"))}
    for target in targets:
        weight, a, b = blocks[target], blocks[f"{target}_lora_a"], blocks[f"{target}_lora_b"]
        layers, rank = weight.shape[0], a.shape[-1]
        a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        product = jnp.einsum("lir,lro->lio", a, b, precision="highest").reshape(weight.shape)
        folded[target] = (weight.astype(jnp.float32) + product).astype(weight.dtype)
    return {**params, "blocks": dense(folded)}


def _is_tuple(node: Any) -> bool:
    return isinstance(node, tuple)
