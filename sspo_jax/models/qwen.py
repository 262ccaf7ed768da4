"""Qwen 2, 2.5, 3, 3-MoE, 3-Next and 3.5, and Llama: one decoder block, scanned over stacked layers.

`Qwen` (Flax NNX) declares the parameters: names, shapes, logical axes, random init. Everything that computes is a pure
function of `(params, config, ...)`, where `params` is the declared tree as plain nested dicts of arrays.

The pieces of a block (`attention_inputs`, `attention_output`, `delta_rule`, `mlp`) are functions of their own, because
decoding with a cache (`sspo_jax.sampler`) puts another attention between them and must not repeat the rest.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.models import delta
from sspo_jax.models.attention import make_attention
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.cpu_kernels import FEW_ROWS, OutputMajor
from sspo_jax.models.experts import mixture_of_experts, route
from sspo_jax.models.int8 import Int8
from sspo_jax.models.rotary import rotary_table, rotate
from sspo_jax.sharding import check_divides, constrain, named_sharding, shards

Params = dict[str, Any]

UNROLLED_LAYERS = 8
"""Models of up to this many layers are compiled without a loop over them."""


class Qwen(nnx.Module):
    """The parameters of the model; those of the blocks are stacked on a leading axis of `num_layers`."""

    def __init__(self, config: QwenConfig, rngs: nnx.Rngs, *, param_dtype: Any = jnp.float32):
        layers, embed = config.num_layers, config.hidden_size
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim

        def normal(shape: tuple[int, ...], *axes: str | None) -> nnx.Param:
            value = jax.random.normal(rngs.params(), shape, jnp.float32) * config.init_scale
            return nnx.Param(value.astype(param_dtype), logical_axes=axes)

        def ones(shape: tuple[int, ...], *axes: str | None) -> nnx.Param:
            return nnx.Param(jnp.ones(shape, param_dtype), logical_axes=axes)

        def zeros(shape: tuple[int, ...], *axes: str | None) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, param_dtype), logical_axes=axes)

        norm = zeros if config.is_hybrid else ones
        some = len(config.attention_layers)
        gated = head_dim * (2 if config.is_hybrid else 1)
        blocks: dict[str, nnx.Param] = {"attention_norm": norm((layers, embed), "layers", None)}
        if some:
            blocks |= {
                "query": normal((some, embed, heads, gated), "layers", "embed", "heads", "head_dim"),
                "key": normal((some, embed, kv_heads, head_dim), "layers", "embed", "kv_heads", "head_dim"),
                "value": normal((some, embed, kv_heads, head_dim), "layers", "embed", "kv_heads", "head_dim"),
                "output": normal((some, heads, head_dim, embed), "layers", "heads", "head_dim", "embed"),
            }
        blocks["mlp_norm"] = norm((layers, embed), "layers", None)
        if count := len(config.expert_layers):
            experts, mlp = config.num_experts, config.expert_size
            blocks |= {
                "router": normal((count, embed, experts), "layers", None, None),
                "expert_gate": normal((count, experts, embed, mlp), "layers", "experts", "embed", "mlp"),
                "expert_up": normal((count, experts, embed, mlp), "layers", "experts", "embed", "mlp"),
                "expert_down": normal((count, experts, mlp, embed), "layers", "experts", "mlp", "embed"),
            }
            if shared := config.shared_expert_size:
                blocks |= {
                    "shared_router": normal((count, embed, 1), "layers", None, None),
                    "shared_gate": normal((count, embed, shared), "layers", "embed", "mlp"),
                    "shared_up": normal((count, embed, shared), "layers", "embed", "mlp"),
                    "shared_down": normal((count, shared, embed), "layers", "mlp", "embed"),
                }
        if count := len(config.mlp_layers):
            mlp = config.intermediate_size
            blocks |= {
                "gate": normal((count, embed, mlp), "layers", "embed", "mlp"),
                "up": normal((count, embed, mlp), "layers", "embed", "mlp"),
                "down": normal((count, mlp, embed), "layers", "mlp", "embed"),
            }
        if config.attention_bias and some:
            blocks["query_bias"] = zeros((some, heads, gated), "layers", "heads", "head_dim")
            blocks["key_bias"] = zeros((some, kv_heads, head_dim), "layers", "kv_heads", "head_dim")
            blocks["value_bias"] = zeros((some, kv_heads, head_dim), "layers", "kv_heads", "head_dim")
            if config.output_bias:
                blocks["output_bias"] = zeros((some, embed), "layers", None)
        if config.qk_norm and some:
            blocks["query_norm"] = norm((some, head_dim), "layers", None)
            blocks["key_norm"] = norm((some, head_dim), "layers", None)
        if config.delta_layers:
            blocks |= _delta_parameters(config, normal, ones)
        self.embedding = normal((config.vocab_size, embed), "vocab", "embed")
        self.blocks = nnx.Dict(blocks)
        self.final_norm = norm((embed,), None)
        if not config.tie_embeddings:
            self.unembedding = normal((embed, config.vocab_size), "embed", "vocab")


def _delta_parameters(config: QwenConfig, normal: Any, ones: Any) -> dict[str, nnx.Param]:
    """Those of the layers with the gated delta rule, stacked; a head's queries, keys and values lie together."""
    layers, embed, heads, group = (
        len(config.delta_layers),
        config.hidden_size,
        config.delta_key_heads,
        config.delta_group,
    )
    channels, values = config.delta_channels, group * config.delta_value_dim

    def projection(width: int) -> nnx.Param:
        return normal((layers, embed, heads, width), "layers", "embed", "kv_heads", None)

    def decay() -> nnx.Param:
        return nnx.Param(jnp.ones((layers, heads, group), jnp.float32), logical_axes=("layers", "kv_heads", None))

    if config.delta_fused:
        found = {"delta_query_key_value_gate": projection(channels + values), "delta_rate_decay": projection(2 * group)}
    else:
        found = {
            "delta_query_key_value": projection(channels),
            "delta_gate": projection(values),
            "delta_rate": projection(group),
            "delta_decay": projection(group),
        }
    return found | {
        "delta_convolution": normal((layers, heads, channels, config.delta_taps), "layers", "kv_heads", None, None),
        "delta_log_decay": decay(),
        "delta_step_bias": decay(),
        "delta_norm": ones((layers, config.delta_value_dim), "layers", None),
        "delta_output": normal((layers, heads, values, embed), "layers", "kv_heads", None, "embed"),
    }


_FLOAT32 = ("delta_log_decay", "delta_step_bias")


def kept_dtype(name: str, dtype: Any) -> Any:
    """The dtype of the parameter of this name where the others have `dtype`: those that decays are made of, whose
    errors add up over a sequence, stay float32.
    """
    return jnp.dtype(jnp.float32 if name in _FLOAT32 else dtype)


def cast_params(params: Params, dtype: Any) -> Params:
    """The parameters, or a part of them, in this dtype, but for those that stay float32."""

    def cast(path: tuple[Any, ...], x: Array) -> Array:
        return x.astype(kept_dtype(path[-1].key, dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


def layer_of(blocks: Params, config: QwenConfig, layer: int, *, first: int = 0) -> Params:
    """The parameters of one layer, of those that are stacked over all layers or over the layers of one kind.

    Args:
      first: layer that the stacks begin with.
    """
    found = {}
    for name, x in blocks.items():
        layers = [i for i in layers_with(name, config) if i >= first]
        if layer in layers:
            found[name] = jax.tree.map(operator.itemgetter(layers.index(layer)), x)
    return found


def _layers_from(blocks: Params, config: QwenConfig, first: int, end: int) -> Params:
    """Of each stack the part that is of the layers from `first` on and before `end`; without those that have none."""
    found = {}
    for name, x in blocks.items():
        layers = layers_with(name, config)
        start, count = sum(i < first for i in layers), sum(first <= i < end for i in layers)
        if count == len(layers):
            found[name] = x
        elif count:
            found[name] = jax.tree.map(operator.itemgetter(slice(start, start + count)), x)
    return found


def layers_with(name: str, config: QwenConfig) -> tuple[int, ...]:
    """The layers that have the parameter (or adapter) of this name."""
    kind = name.split("_")[0]
    if kind == "delta":
        return config.delta_layers
    if kind in ("query", "key", "value", "output"):
        return config.attention_layers
    if kind in ("router", "expert", "shared") or name == _RECORDED:
        return config.expert_layers
    if kind in ("gate", "up", "down"):
        return config.mlp_layers
    return tuple(range(config.num_layers))


def windows(config: QwenConfig) -> Int[Array, " layers"] | None:
    """`window_of` each layer, for a loop over them, 2^30 where it is None; None where no layer has a window."""
    if not config.sliding_layers:
        return None
    sizes = [config.window_of(layer) for layer in range(config.num_layers)]
    return jnp.asarray([2**30 if size is None else size for size in sizes], jnp.int32)


def _declared(model: Qwen) -> dict[str, Any]:
    """The parameters as nested dicts of NNX variables."""
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = variable
    return tree


def _map_variables(function: Any, tree: dict[str, Any]) -> Params:
    return {
        name: _map_variables(function, node) if isinstance(node, dict) else function(node)
        for name, node in tree.items()
    }


def abstract_qwen(config: QwenConfig, *, param_dtype: Any = jnp.float32) -> tuple[Params, Params]:
    """(`jax.ShapeDtypeStruct` of each parameter, its logical axes), without allocating any."""
    shapes, axes = _abstract(config, jnp.dtype(param_dtype))
    return _map_variables(lambda leaf: leaf, shapes), _map_variables(lambda leaf: leaf, axes)  # the caller's own


@functools.lru_cache(maxsize=32)
def _abstract(config: QwenConfig, param_dtype: np.dtype) -> tuple[Params, Params]:
    """Traced once: that takes longer than writing a small checkpoint does."""
    declared = _declared(nnx.eval_shape(lambda: Qwen(config, nnx.Rngs(0), param_dtype=param_dtype)))
    shapes = _map_variables(lambda variable: variable.get_value(), declared)
    axes = _map_variables(lambda variable: tuple(variable.get_metadata()["logical_axes"]), declared)
    return shapes, axes


def qwen_shardings(config: QwenConfig, mesh: Mesh, *, option: str = "--mesh") -> Params:
    """`NamedSharding` of each parameter on `mesh`. Raises ValueError where the mesh does not divide an axis.

    Args:
      option: that sets the mesh, for the error.
    """
    shapes, axes = abstract_qwen(config)
    check_divides(mesh, shapes, axes, option=option)
    return jax.tree.map(lambda names: named_sharding(mesh, names), axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def init_qwen(config: QwenConfig, key: Array, *, mesh: Mesh | None = None, param_dtype: Any = jnp.float32) -> Params:
    """Random parameters (normal, standard deviation `init_scale`), created on the devices that keep them."""
    shardings = None if mesh is None else qwen_shardings(config, mesh)

    def build(key: Array) -> Params:
        model = Qwen(config, nnx.Rngs(params=key), param_dtype=param_dtype)
        return _map_variables(lambda variable: variable.get_value(), _declared(model))

    return jax.jit(build, out_shardings=shardings)(key)


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, computed in float32, in the dtype of x."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return _broadcast(scale, x) * normed.astype(x.dtype)


def norm(x: Array, scale: Array, config: QwenConfig) -> Array:
    """`rms_norm`; with 1 + scale in the place of scale, and in float32 to the end, where norms are zero-centred."""
    if not config.is_hybrid:
        return rms_norm(x, scale, config.norm_epsilon)
    return rms_norm(x.astype(jnp.float32), 1 + scale.astype(jnp.float32), config.norm_epsilon).astype(x.dtype)


def _broadcast(parameter: Array, x: Array) -> Array:
    """The parameter with leading axes to broadcast against x, in its dtype: rank promotion is an error in the tests."""
    return jnp.expand_dims(parameter, tuple(range(x.ndim - parameter.ndim))).astype(x.dtype)


def rotary_angles(positions: Int[Array, "..."], config: QwenConfig) -> tuple[Array, Array]:
    """cos and sin of shape [..., 1, half of what is turned], float32; the singleton broadcasts over heads."""
    turned = int(config.head_dim * config.rotary_fraction)
    return rotary_table(positions, turned, config.rope_theta, config.rope_scaling)


def matmul(x: Array, kernel: Array | OutputMajor | Int8, *, summed: int = 1) -> Array:
    """Contracts the last `summed` axes of x with the first ones of the kernel, in the dtype of x.

    As a product of two matrices: XLA's CPU backend computes the weight gradient of a product with several leading axes
    at half the speed.
    """
    split = x.ndim - summed
    inputs = math.prod(x.shape[split:])
    if isinstance(kernel, OutputMajor):
        y = kernel.product(x.reshape(-1, inputs))
        return y.reshape(*x.shape[:split], *kernel.outputs)
    if isinstance(kernel, Int8):
        return kernel.product(x.reshape(-1, inputs)).reshape(*x.shape[:split], *kernel.shape[summed:])
    y = x.reshape(-1, inputs) @ kernel.reshape(inputs, -1).astype(x.dtype)
    return y.reshape(*x.shape[:split], *kernel.shape[summed:])


def _project(block: Params, name: str, x: Array, *, summed: int = 1) -> Array:
    """x times this weight of the block, plus its LoRA adapter and its bias where it has them."""
    y = matmul(x, block[name], summed=summed)
    if f"{name}_lora_a" in block:
        y = y + matmul(matmul(x, block[f"{name}_lora_a"], summed=summed), block[f"{name}_lora_b"])
    return y + _broadcast(block[f"{name}_bias"], y) if f"{name}_bias" in block else y


def attention_inputs(
    block: Params, config: QwenConfig, x: Float[Array, "... embed"], angles: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array | None]:
    """Norm, projections and rotary embedding: queries [..., heads, head_dim], keys and values [..., kv_heads, ...].

    And what `attention_output` takes as its gate, as wide as the queries; None where there is none.
    """
    x = norm(x, block["attention_norm"], config)

    gate = None
    if "query_key_value" in block:
        heads, kv_heads = config.num_heads, config.num_kv_heads
        query, key, value = jnp.split(_project(block, "query_key_value", x), (heads, heads + kv_heads), axis=-2)
    else:
        query, key, value = (_project(block, name, x) for name in ("query", "key", "value"))
    if config.is_hybrid:
        query, gate = jnp.split(query, 2, axis=-1)
    if config.qk_norm:
        query = norm(query, block["query_norm"], config)
        key = norm(key, block["key_norm"], config)
    return rotate(query, angles), rotate(key, angles), value, gate


def attention_output(
    block: Params, attended: Float[Array, "... heads head_dim"], gate: Float[Array, "... heads head_dim"] | None
) -> Array:
    """The output projection of what was attended to, times sigmoid(gate); [..., embed]."""
    if gate is not None:
        attended = attended * jax.nn.sigmoid(gate)
    return _project(block, "output", attended, summed=2)


class DeltaState(NamedTuple):
    """What a layer with the gated delta rule keeps of a sequence."""

    state: Float[Array, "batch K group*key_dim value_dim"]
    """float32."""
    inputs: Float[Array, "batch K taps_before channels"]
    """Of the convolution, for the last tokens; the latest last."""


def empty_delta_state(config: QwenConfig, batch: int, dtype: Any, *, lead: tuple[int, ...] = ()) -> DeltaState:
    """That of an empty sequence."""
    heads, group = config.delta_key_heads, config.delta_group
    return DeltaState(
        jnp.zeros((*lead, batch, heads, group * config.delta_key_dim, config.delta_value_dim), jnp.float32),
        jnp.zeros((*lead, batch, heads, config.delta_taps - 1, config.delta_channels), dtype),
    )


def delta_rule(
    block: Params,
    config: QwenConfig,
    x: Float[Array, "batch time embed"],
    before: DeltaState,
    *,
    is_token: Bool[Array, "batch time"] | None = None,
    runs: Int[Array, "batch time"] | None = None,
    padding: Int[Array, " batch"] | None = None,
) -> tuple[Array, DeltaState]:
    """Norm, projections, convolution, gated delta rule, gated norm and output projection; and what is kept.

    Args:
      is_token: false for padding, which changes nothing. None: there is none.
      runs: see `delta.chunked`.
      padding: see `delta.convolve`.
    """
    x = norm(x, block["attention_norm"], config)
    if is_token is not None:
        x = jnp.where(is_token[..., None], x, 0)
    channels, group = config.delta_channels, config.delta_group
    if config.delta_fused:
        mixed, gate = jnp.split(_project(block, "delta_query_key_value_gate", x), (channels,), axis=-1)
        rate, decay = jnp.split(_project(block, "delta_rate_decay", x), 2, axis=-1)
    else:
        names = ("delta_query_key_value", "delta_gate", "delta_rate", "delta_decay")
        mixed, gate, rate, decay = (_project(block, name, x) for name in names)
    mixed, rate, decay = (_whole_in_time(part, config.delta_key_heads) for part in (mixed, rate, decay))
    mixed, kept = delta.convolve(mixed, block["delta_convolution"], before.inputs, runs, padding)
    inputs = delta.delta_inputs(block, config, mixed, rate, decay)
    batch, heads = x.shape[0], config.delta_key_heads
    state = before.state.reshape(batch, heads, group, config.delta_key_dim, config.delta_value_dim)
    if is_token is not None:  # what padding projects to is 0, but the decay of 0 is not 1
        inputs = inputs._replace(log_decay=jnp.where(is_token[..., None, None], inputs.log_decay, 0))
    if x.shape[1] == 1 and runs is None:
        out, state = delta.one_step(delta.Inputs(*(part[:, 0] for part in inputs)), state)
        out = out[:, None]
    else:
        out, state = delta.chunked(inputs, state, runs)
        out = constrain(out, "batch", "time", "kv_heads", None, None)
    out = out.astype(x.dtype)
    gate = gate.reshape(out.shape).astype(jnp.float32)
    out = rms_norm(out, block["delta_norm"], config.norm_epsilon).astype(jnp.float32) * jax.nn.silu(gate)
    out = out.astype(x.dtype).reshape(*x.shape[:-1], heads, -1)
    state = state.reshape(before.state.shape)
    return _project(block, "delta_output", out, summed=2), DeltaState(state, kept.astype(before.inputs.dtype))


def _whole_in_time(x: Float[Array, "batch time heads width"], heads: int) -> Array:
    """Where rows are cut in time: cut by heads instead, as far as these go around, for what runs along a row."""
    if shards("time") == 1:
        return x
    axis = "kv_heads" if heads % shards("heads_of_all_time") else "heads_of_all_time"
    return constrain(x, "batch", None, axis, None)


def mlp(block: Params, config: QwenConfig, x: Float[Array, "... embed"]) -> Array:
    """Norm and the gated MLP: down(silu(gate(x)) * up(x)); of a layer with experts, that of the chosen ones."""
    if "router" in block:
        return expert_mlp(block, config, x)[0]
    x = norm(x, block["mlp_norm"], config)
    if "gate_up" not in block:
        gate, up = _project(block, "gate", x), _project(block, "up", x)
    elif x.ndim == 2 and x.shape[0] <= FEW_ROWS:  # no transposes in between
        gate, up = jnp.split(block["gate_up"].columns(x.T), 2)
        return block["down"].columns(jax.nn.silu(gate) * up).T
    else:
        gate, up = jnp.split(_project(block, "gate_up", x), 2, axis=-1)
    return _project(block, "down", jax.nn.silu(gate) * up)


def expert_mlp(
    block: Params,
    config: QwenConfig,
    x: Float[Array, "... embed"],
    recorded: Int[Array, "... chosen"] | None = None,
) -> tuple[Array, Int[Array, "... chosen"]]:
    """Norm and the MLPs of the chosen experts; plus, where there is a shared one, its MLP times sigmoid(router(x)).

    And the experts that the router ranks highest.

    Args:
      recorded: see `experts.route`.
    """
    x = norm(x, block["mlp_norm"], config)
    routing, own = route(block, config, x, recorded)
    y = mixture_of_experts(block, config, x, routing)
    if config.shared_expert_size:
        inner = jax.nn.silu(_project(block, "shared_gate", x)) * _project(block, "shared_up", x)
        y = y + jax.nn.sigmoid(_project(block, "shared_router", x)) * _project(block, "shared_down", inner)
    return y, own


def embed(params: Params, config: QwenConfig, tokens: Int[Array, "..."]) -> Array:
    """Rows of the embedding, [..., embed], in the computation's dtype."""
    return params["embedding"][tokens].astype(config.compute.dtype)


def unembedding(params: Params) -> Float[Array, "embed vocab"]:
    """The output projection; the transposed embedding where they are tied."""
    return params["unembedding"] if "unembedding" in params else params["embedding"].T


def without_padding(logits: Float[Array, "... vocab"], config: QwenConfig) -> Float[Array, "... vocab"]:
    """The logits with those of rows that are no tokens (`ComputeConfig.num_tokens`) at minus infinity."""
    if config.num_tokens == config.vocab_size:
        return logits
    is_token = jnp.expand_dims(jnp.arange(config.vocab_size) < config.num_tokens, tuple(range(logits.ndim - 1)))
    return jnp.where(is_token, logits, -jnp.inf)


def default_positions(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Positions that restart at 0 with each segment (runs of equal ids), whatever the side of the padding."""
    time = segment_ids.shape[1]
    index = jnp.arange(time)[None]
    starts = jnp.concatenate([jnp.ones_like(segment_ids[:, :1]), jnp.diff(segment_ids, axis=1)], axis=1) != 0
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


class HiddenStates(NamedTuple):
    """What a pass through all layers gives."""

    hidden: Float[Array, "batch time embed"]
    """The residual stream after the final norm."""
    cache: tuple[Array, Array] | None = None
    """Keys and values, each [layers, batch, time, kv_heads, head_dim], rotary applied."""
    experts: Int[Array, "layers batch time chosen"] | None = None
    """That each router ranks highest, of the layers that have one; None without experts."""


def hidden_states(
    params: Params,
    config: QwenConfig,
    tokens: Int[Array, "batch time"],
    *,
    positions: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    prefix_ids: Int[Array, "batch time"] | None = None,
    experts: Int[Array, "layers batch time chosen"] | None = None,
    return_cache: bool = False,
) -> HiddenStates:
    """All layers: the residual stream, and with `return_cache` the keys and values of every layer.

    Args:
      positions: of each token in its sequence, rising by one from token to token; by default counted within segments.
      segment_ids: which packed sequence a token belongs to, 0 for padding, which no other token attends to; by
        default a row is one sequence without padding.
      prefix_ids: see `attention.make_attention`; not of models with the gated delta rule.
      experts: to use in place of the router's choice, where not negative, of the layers that have experts; see
        `experts.route`.
      return_cache: also return keys and values; not of models with the gated delta rule.
    """
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = default_positions(segment_ids)
    how = config.compute
    attend = make_attention(
        segment_ids,
        prefix_ids,
        implementation=how.attention,
        dtype=how.dtype,
        head_dim=config.head_dim,
        positions=positions,
        window=config.sliding_window,
    )
    all_slide = len(config.sliding_layers) == config.num_layers
    angles = rotary_angles(positions, config)
    runs = delta.sequence_runs(segment_ids) if config.delta_layers else None

    if config.delta_layers and prefix_ids is not None:
        raise ValueError("prefix_ids are given, and layers with the gated delta rule know no prefix: leave them out")
    if config.delta_layers and return_cache:
        raise ValueError(
            "return_cache is set, and layers with the gated delta rule have no keys and values: leave it out"
        )

    def layer(x: Array, block: Params) -> tuple[Array, tuple[tuple[Array, Array] | None, Array | None]]:
        cache = chosen = None
        if "delta_output" in block:
            before = empty_delta_state(config, x.shape[0], x.dtype)
            mixed, _ = delta_rule(block, config, x, before, is_token=segment_ids > 0, runs=runs)
            x = x + mixed
        else:
            query, key, value, gate = attention_inputs(block, config, x, angles)
            attended = attend(query, key, value, block.get(_SLIDES, all_slide))
            x = x + attention_output(block, attended, gate)
            cache = (key, value) if return_cache else None
        if "router" in block:
            y, chosen = expert_mlp(block, config, x, block.get(_RECORDED))
            x, chosen = x + y, constrain(chosen, "batch", "time", None)
        else:
            x = x + mlp(block, config, x)
        return constrain(x, "batch", "time", "activation_embed"), (cache, chosen)

    if how.remat == "full":
        layer = jax.checkpoint(layer, prevent_cse=False)
    elif how.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    x = embed(params, config, tokens)
    if shards("time") > 1:
        x = constrain(x, "batch", None, "embed_on_its_way")
    x = constrain(x, "batch", "time", "activation_embed")
    blocks = params["blocks"] if experts is None else params["blocks"] | {_RECORDED: experts}
    if config.sliding_layers and not all_slide:
        blocks = blocks | {_SLIDES: jnp.asarray([i in config.sliding_layers for i in range(config.num_layers)])}
    if config.has_kinds:
        x, found = _scan_turns(layer, x, blocks, config)
    else:
        # A loop costs a copy of every layer's gradient; a deep model would take minutes to compile without it.
        x, found = jax.lax.scan(layer, x, blocks, unroll=config.num_layers <= UNROLLED_LAYERS)
    cache, chosen = found
    return HiddenStates(norm(x, params["final_norm"], config), cache, chosen)


_RECORDED, _SLIDES = "recorded_experts", "slides"
"""These go through the layers beside their parameters: experts to use, and whether a layer has the sliding window."""


def _scan_turns(layer: Any, x: Array, blocks: Params, config: QwenConfig) -> tuple[Array, Any]:
    """The layers one after the other, in a loop over the turns of their kinds (three of one, one of the other)."""
    first, size, count = config.turns

    def some(x: Array, blocks: Params, layers: range) -> tuple[Array, Any]:
        found = []
        for i in layers:
            x, own = layer(x, layer_of(blocks, config, i, first=layers.start))
            found.append(own)
        return x, _joined(found, jnp.stack)

    def beside(x: Array, layers: range) -> tuple[Array, Any]:
        return some(x, _layers_from(blocks, config, layers.start, layers.stop), layers)

    end = first + count * size
    by_turn = jax.tree.map(
        lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), _layers_from(blocks, config, first, end)
    )
    x, ahead = beside(x, range(first))
    turn = functools.partial(some, layers=range(first, first + size))
    x, found = jax.lax.scan(turn, x, by_turn, unroll=config.num_layers <= UNROLLED_LAYERS)
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    x, behind = beside(x, range(end, config.num_layers))
    return x, _joined([ahead, found, behind], jnp.concatenate)


def _joined(found: list[tuple[Any, Any]], join: Any) -> tuple[Any, Any]:
    """What layers gave beside the residual stream, caches and experts, each of those that gave some; else None."""

    def one(parts: list[Any]) -> Any:
        parts = [part for part in parts if part is not None]
        return jax.tree.map(lambda *own: join(own), *parts) if parts else None

    return one([cache for cache, _ in found]), one([chosen for _, chosen in found])


def apply_qwen(
    params: Params,
    config: QwenConfig,
    tokens: Int[Array, "batch time"],
    *,
    positions: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time vocab"]:
    """Logits in float32; position t predicts token t + 1. Arguments as for `hidden_states`.

    Of all rows of the embedding, as transformers gives them, also of those that only pad it.

    Training and sampling never call this: they need a few positions or a few entries of the vocabulary
    (`sspo_jax.logprobs`), and [batch, time, vocab] is the largest array there is.
    """
    hidden = hidden_states(params, config, tokens, positions=positions, segment_ids=segment_ids).hidden
    table = unembedding(params).astype(hidden.dtype)
    return jnp.einsum("btd,dv->btv", hidden, table, preferred_element_type=jnp.float32)
