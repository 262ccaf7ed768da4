"""Shapes of the models (known ones by name, any other from a checkpoint's config.json) and how they are computed.

`QwenConfig` is what a checkpoint is. `ComputeConfig` is how it is computed, which no checkpoint knows. `QwenModel` is
both in one record: a `QwenConfig` that every function of the model and of the sampler takes.

One decoder covers the families Qwen 2, 2.5, 3, 3-MoE, 3-Next and 3.5 (its text part) and Llama (SmolLM2 is one): they
differ in biases, norms of the heads, experts, the stretching of the rotary frequencies, and in which layers have the
gated delta rule in the place of attention, a sliding window, or one MLP in the place of experts; each of these is a
field. The names say Qwen for all.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from sspo_jax.files import read_json
from sspo_jax.models.attention import Implementation
from sspo_jax.models.end_tokens import declared_end_tokens
from sspo_jax.models.hf.files import has_tensor, instead
from sspo_jax.models.rotary import RopeScaling, rope_from_hf, scaling_from_hf, scaling_to_hf
from sspo_jax.ranges import from_record

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
"""Architectures that are read and written, by the `model_type` that stands for each."""

_WITH_VISION = {
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
}
_WITH_EXPERTS = ("Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM")
_WITH_DELTA = ("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
_WITH_DENSE_LAYERS = ("Qwen3MoeForCausalLM", "Qwen3NextForCausalLM")
LayerType = Literal["full_attention", "linear_attention"]

HYBRID_FIELDS = (
    "shared_expert_size", "layer_types", "rotary_fraction", "delta_key_heads", "delta_value_heads", "delta_key_dim",
    "delta_value_dim", "delta_taps", "delta_fused",
)  # fmt: skip
"""Fields of a `QwenConfig` that have other values than their defaults in models with the gated delta rule alone."""

LAYER_FIELDS = ("sliding_window", "sliding_layers", "dense_layers")
"""Fields of a `QwenConfig` that have other values than their defaults in models with a window, or with layers without
experts among layers with them."""

_NOT_ARCHITECTURE = ("max_positions", "init_scale", "eos_token_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model is computed: the same weights give the same function, up to rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; norms, softmax and logits are float32 in any case."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole layers, or all but matrix products."""
    attention: Implementation = "auto"
    """xla, cudnn (GPU, bfloat16), splash (TPU); auto takes the one for the platform where the shapes allow it."""
    num_tokens: int | None = None
    """Tokens of the tokenizer: rows of the embedding from there on are padding, with probability 0 when tokens are
    sampled and scored. None: all rows are tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """Shape of a Qwen 2, 2.5 or 3, Llama or SmolLM2 model, as its checkpoint says."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's size."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Inner width of the gated MLP."""
    num_layers: int
    """Transformer blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides num_heads."""
    head_dim: int
    """Width of one head."""
    attention_bias: bool = True
    """Bias on the query, key and value projections (Qwen2: yes; Qwen3 and Llama: no)."""
    qk_norm: bool = False
    """RMS norm on queries and keys, per head (Qwen3)."""
    output_bias: bool = False
    """Bias on the output projection of attention too (what a Qwen3 or Llama config means by attention_bias)."""
    tie_embeddings: bool = True
    """The output projection is the transposed embedding."""
    rope_theta: float = 1e6
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How the rotary frequencies are stretched to longer contexts; None: not."""
    norm_epsilon: float = 1e-6
    """Added to the mean square in RMS norms."""
    max_positions: int = 32768
    """Longest context, in tokens."""
    init_scale: float = 0.02
    """Standard deviation of random weights."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a text, as the checkpoint says; kept so that an export says the same."""
    num_experts: int = 0
    """Experts of each MLP (Qwen3-MoE); 0: one dense MLP."""
    experts_per_token: int = 0
    """Experts that a token is sent to."""
    expert_size: int = 0
    """Inner width of one expert's MLP."""
    normalize_experts: bool = True
    """The weights of a token's experts are divided by their sum."""
    shared_expert_size: int = 0
    """Inner width of the expert that every token goes through, with a gate of its own; 0: there is none."""
    layer_types: tuple[LayerType, ...] = ()
    """What mixes the tokens in each layer: attention, or the gated delta rule ("linear_attention"). Empty: attention
    everywhere. Otherwise, as in Qwen3-Next and Qwen3.5, attention has an output gate and norms are zero-centred."""
    rotary_fraction: float = 1.0
    """Part of a head that the rotary embedding turns."""
    delta_key_heads: int = 0
    """Key and query heads of the gated delta rule."""
    delta_value_heads: int = 0
    """Its value heads; a multiple of delta_key_heads."""
    delta_key_dim: int = 0
    """Width of one of its key heads."""
    delta_value_dim: int = 0
    """Width of one of its value heads."""
    delta_taps: int = 4
    """Tokens that its convolution reaches over."""
    delta_fused: bool = False
    """Its projections are stored as two matrices (Qwen3-Next), not as four (Qwen3.5)."""
    sliding_window: int = 0
    """Tokens that a layer of `sliding_layers` attends to at most, the token itself among them; 0: no layer has a
    window."""
    sliding_layers: tuple[int, ...] = ()
    """The layers with a sliding window, rising from 0; of a model with experts all or none."""
    dense_layers: tuple[int, ...] = ()
    """Of a model with experts, the layers that have one MLP of `intermediate_size` in their place, rising from 0."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, expected a multiple of num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; expected an even number: rotary embedding turns pairs")
        if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, expected 1 to num_experts = {self.num_experts}"
            )
        self._check_windows()
        self._check_dense_layers()
        if self.layer_types:
            self._check_layers()

    def _check_windows(self) -> None:
        if not self.sliding_window and not self.sliding_layers:
            return
        if self.sliding_window < 1 or not self.sliding_layers:
            raise ValueError(
                f"sliding_window is {self.sliding_window} with sliding_layers {list(self.sliding_layers)}; expected a "
                "window above 0 and the layers that have it, or neither"
            )
        self._check_places("sliding_layers")
        if self.layer_types:
            raise ValueError(
                "sliding_layers are given with layer_types, as Qwen3-Next and Qwen3.5 have them, which know no window: "
                "leave out one of them"
            )
        if self.num_experts and len(self.sliding_layers) < self.num_layers:
            raise ValueError(
                f"sliding_layers are {list(self.sliding_layers)}; expected all {self.num_layers} layers or none: "
                "Qwen3-MoE has one window for all"
            )
        if not self.qk_norm and (self.output_bias or not self.attention_bias):
            raise ValueError(
                "sliding_layers are given without qk_norm and with the biases of Llama, which has no window: expected "
                "qk_norm, or attention_bias without output_bias"
            )

    def _check_dense_layers(self) -> None:
        if not self.dense_layers:
            return
        self._check_places("dense_layers")
        if not self.num_experts or len(self.dense_layers) == self.num_layers:
            raise ValueError(
                f"dense_layers are {list(self.dense_layers)} of {self.num_layers} layers with num_experts "
                f"{self.num_experts}; expected some layers of a model whose other layers have experts"
            )
        if self.layer_types and not self.delta_fused:
            raise ValueError("dense_layers are given of a Qwen3.5 model, whose layers all have experts: leave them out")

    def _check_places(self, name: str) -> None:
        """Raises ValueError unless they are some layers, each once, in their order."""
        places = getattr(self, name)
        if places != tuple(i for i in range(self.num_layers) if i in places):
            raise ValueError(f"{name} is {list(places)}; expected numbers from 0 to {self.num_layers - 1}, rising")

    def _check_layers(self) -> None:
        if len(self.layer_types) != self.num_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, expected num_layers = {self.num_layers}"
            )
        if "linear_attention" not in self.layer_types:
            return
        if "full_attention" not in self.layer_types:
            raise ValueError("layer_types has no 'full_attention', expected at least one: all known models have some")
        sizes = (
            self.delta_key_heads,
            self.delta_value_heads,
            self.delta_key_dim,
            self.delta_value_dim,
            self.delta_taps,
        )
        if min(sizes) < 1 or self.delta_value_heads % self.delta_key_heads:
            raise ValueError(
                f"the gated delta rule has {self.delta_key_heads} key heads of {self.delta_key_dim} and "
                f"{self.delta_value_heads} value heads of {self.delta_value_dim}, over {self.delta_taps} tokens; "
                "expected sizes above 0 and a multiple of the key heads"
            )

    @property
    def is_hybrid(self) -> bool:
        """Whether it is of the kind of Qwen3-Next and Qwen3.5: output gates, zero-centred norms, gated delta rule."""
        return bool(self.layer_types)

    @property
    def delta_layers(self) -> tuple[int, ...]:
        """The layers with the gated delta rule."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "linear_attention")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers with attention."""
        return tuple(i for i in range(self.num_layers) if i not in self.delta_layers)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """The layers with experts."""
        return tuple(i for i in range(self.num_layers) if i not in self.dense_layers) if self.num_experts else ()

    @property
    def mlp_layers(self) -> tuple[int, ...]:
        """The layers with one MLP."""
        return self.dense_layers if self.num_experts else tuple(range(self.num_layers))

    @property
    def has_kinds(self) -> bool:
        """Whether layers may differ in their parameters, of which those of one kind are then stacked."""
        return self.is_hybrid or bool(self.dense_layers)

    @property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """Of each layer, what mixes the tokens and what follows: those of one kind have the same parameters."""
        mixers = self.layer_types or ("full_attention",) * self.num_layers
        return tuple((mixer, "experts" if i in self.expert_layers else "mlp") for i, mixer in enumerate(mixers))

    @property
    def turns(self) -> tuple[int, int, int]:
        """(first, size, count): from layer `first` on the kinds of `size` layers repeat, `count` times in all.

        The loop over the layers goes through these; it is chosen so that it and what is ahead and behind are the
        fewest layers to compile.
        """
        kinds, layers = self.kinds, self.num_layers
        found = []
        for size in range(1, layers + 1):
            for first in range(layers - size + 1):
                one, count = kinds[first : first + size], 1
                while kinds[first + count * size : first + (count + 1) * size] == one:
                    count += 1
                outside = layers - count * size
                found.append((outside + size, outside, first, size, count))
        return min(found)[2:]

    def window_of(self, layer: int) -> int | None:
        """Tokens that the layer attends to at most; None: all that precede."""
        return self.sliding_window if layer in self.sliding_layers else None

    def attended(self, context: float | int, *, last: bool = False) -> float | int:
        """Tokens that a token attends to, summed over the layers with attention.

        On average over a context of this length, half of which precedes a token; or of its last one alone.
        """
        window = min(self.sliding_window, context)
        near = window if last else window - window * window / (2 * max(context, 1))
        without = len(self.attention_layers) - len(self.sliding_layers)
        return without * (context if last else context / 2) + len(self.sliding_layers) * near

    @property
    def delta_group(self) -> int:
        """Value heads to a key head of the gated delta rule."""
        return self.delta_value_heads // max(self.delta_key_heads, 1)

    @property
    def delta_channels(self) -> int:
        """Query, key and values of a key head and its group: what the convolution takes."""
        return 2 * self.delta_key_dim + self.delta_group * self.delta_value_dim

    @property
    def delta_state_size(self) -> int:
        """Numbers that a sequence's state consists of in one layer, all heads together; float32."""
        return self.delta_value_heads * self.delta_key_dim * self.delta_value_dim

    @property
    def compute(self) -> ComputeConfig:
        """How it is computed: a shape alone says nothing about that, and gets the defaults."""
        return ComputeConfig()

    def computed(self, **how: Any) -> "QwenModel":
        """The model of this shape that is computed so.

        Args:
          how: fields of `ComputeConfig`; what is left out stays as it is.
        """
        return QwenModel(**_shape_of(self), how=dataclasses.replace(self.compute, **how))

    def with_tokens(self, count: int) -> "QwenModel":
        """The model that samples and scores `count` tokens; rows of the embedding from there on only pad it."""
        return self.computed(num_tokens=count if count < self.vocab_size else None)

    @property
    def shape(self) -> "QwenConfig":
        """The shape alone."""
        return QwenConfig(**_shape_of(self))

    def record(self) -> dict[str, Any]:
        """As a run's config.json holds it: the fields of the shape and those of the computation; see `from_record`."""
        return {**dataclasses.asdict(self.shape), **dataclasses.asdict(self.compute)}

    @property
    def num_tokens(self) -> int:
        """Tokens that can be sampled: rows of the embedding without those that pad it."""
        return min(self.compute.num_tokens or self.vocab_size, self.vocab_size)

    @property
    def architecture(self) -> dict[str, Any]:
        """As JSON holds it: what must be the same for weights to fit and to mean the same."""
        fields = json.loads(json.dumps(dataclasses.asdict(self.shape)))
        return {name: value for name, value in fields.items() if name not in _NOT_ARCHITECTURE}

    @property
    def num_parameters(self) -> int:
        """Weights of the model, tied embeddings counted once."""
        heads = self.num_heads * self.head_dim
        kv_heads = self.num_kv_heads * self.head_dim
        attention = 2 * self.hidden_size * (heads + kv_heads) + self.hidden_size * heads * self.is_hybrid
        attention += (heads + 2 * kv_heads) * self.attention_bias + 2 * self.head_dim * self.qk_norm
        attention += self.hidden_size * self.output_bias
        experts = (3 * self.expert_size + 1) * self.hidden_size * self.num_experts
        experts += (3 * self.shared_expert_size + 1) * self.hidden_size if self.shared_expert_size else 0
        mlp = 3 * self.hidden_size * self.intermediate_size
        values = self.delta_value_heads * self.delta_value_dim
        channels = self.delta_key_heads * self.delta_channels
        delta = self.hidden_size * (channels + 2 * values + 2 * self.delta_value_heads)
        delta += channels * self.delta_taps + 2 * self.delta_value_heads + self.delta_value_dim
        layers = len(self.attention_layers) * attention + len(self.delta_layers) * delta
        layers += len(self.expert_layers) * experts + len(self.mlp_layers) * mlp
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return layers + self.num_layers * 2 * self.hidden_size + embeddings + self.hidden_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenModel(QwenConfig):
    """A shape together with how it is computed: what `load_qwen` returns and a run resolves its options to."""

    how: ComputeConfig = ComputeConfig()
    """The computation; read it as `compute`, which every `QwenConfig` has."""

    @property
    def compute(self) -> ComputeConfig:
        """How it is computed."""
        return self.how

    @classmethod
    def from_record(cls, record: Any, where: str = "the model's record") -> "QwenModel":
        """The model that `record` described, read from JSON.

        Args:
          where: what is read; starts the error.

        Raises:
          ValueError: a field that is missing, of another type, or not of this version, by name.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"{where} is {record!r:.80}; expected an object with the fields of a model")
        fields, computed = dict(record), {field.name for field in dataclasses.fields(ComputeConfig)}
        how = {name: fields.pop(name) for name in computed if name in fields}
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = from_record(RopeScaling, fields["rope_scaling"], f"{where}.rope_scaling")
        shape = from_record(QwenConfig, fields, where)
        return cls(**_shape_of(shape), how=from_record(ComputeConfig, how, where))


def _shape_of(config: QwenConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(QwenConfig)}


def architecture_differences(theirs: Mapping[str, Any], ours: QwenConfig, *, whose: str) -> list[str]:
    """What two models differ in, as a reader is told: "num_layers 3, WHOSE 2".

    Args:
      theirs: an `architecture`, maybe of another version: fields that it lacks are not compared.
      whose: what `ours` is.
    """
    theirs = dict(theirs)
    if isinstance(stretched := theirs.get("rope_scaling"), Mapping):
        known = {field.name: field.default for field in dataclasses.fields(RopeScaling)}
        theirs["rope_scaling"] = known | dict(stretched)
    return [
        f"{name} {theirs[name]}, {whose} {value}"
        for name, value in ours.architecture.items()
        if theirs.get(name, value) != value
    ]


def _known(vocab: int, hidden: int, inter: int, layers: int, heads: int, kv_heads: int, **changes: Any) -> QwenConfig:
    return QwenConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inter,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        **{"head_dim": hidden // heads, **changes},
    )


def _qwen2(hidden: int, inter: int, layers: int, heads: int, kv_heads: int, vocab: int, **changes: Any) -> QwenConfig:
    return _known(vocab, hidden, inter, layers, heads, kv_heads, **changes)


def _qwen3(*sizes: int, **changes: Any) -> QwenConfig:
    own = {"head_dim": 128, "attention_bias": False, "qk_norm": True, "max_positions": 40960}
    return _known(151936, *sizes, **own, **changes)


def _qwen35(*sizes: int, **changes: Any) -> QwenConfig:
    """The text part of a dense Qwen3.5: three layers with the gated delta rule, then one with attention."""
    layers = sizes[2]
    delta = {"delta_key_heads": 16, "delta_value_heads": 32, "delta_key_dim": 128, "delta_value_dim": 128}
    own = {"head_dim": 256, "attention_bias": False, "qk_norm": True, "max_positions": 262144, "rope_theta": 1e7}
    kinds = ("linear_attention",) * 3 + ("full_attention",)
    return _known(248320, *sizes, rotary_fraction=0.25, layer_types=kinds * (layers // 4), **delta, **own, **changes)


def _llama(*sizes: int, stretched: float, **changes: Any) -> QwenConfig:
    """Llama 3.1 or 3.2.

    Args:
      stretched: longest context over the pretraining's 8,192, as its rotary scaling has it.
    """
    scaling = RopeScaling(kind="llama3", factor=stretched, original_max_positions=8192)
    own = {"attention_bias": False, "rope_theta": 5e5, "norm_epsilon": 1e-5, "max_positions": 131072}
    return _known(128256, *sizes, rope_scaling=scaling, **own, **changes)


def _smollm2(*sizes: int, **changes: Any) -> QwenConfig:
    own = {"attention_bias": False, "rope_theta": 1e5, "norm_epsilon": 1e-5, "max_positions": 8192}
    return _known(49152, *sizes, **(own | changes))


QWEN25_0P5B = _qwen2(896, 4864, 24, 14, 2, 151936)
QWEN25_1P5B = _qwen2(1536, 8960, 28, 12, 2, 151936)
QWEN25_3B = _qwen2(2048, 11008, 36, 16, 2, 151936)
QWEN25_7B = _qwen2(3584, 18944, 28, 28, 4, 152064, tie_embeddings=False)
QWEN25_14B = _qwen2(5120, 13824, 48, 40, 8, 152064, tie_embeddings=False, norm_epsilon=1e-5)
QWEN25_MATH_1P5B = dataclasses.replace(QWEN25_1P5B, rope_theta=1e4, max_positions=4096)
QWEN25_MATH_7B = dataclasses.replace(QWEN25_7B, rope_theta=1e4, max_positions=4096)
QWEN3_0P6B = _qwen3(1024, 3072, 28, 16, 8)
QWEN3_1P7B = _qwen3(2048, 6144, 28, 16, 8)
QWEN3_4B = _qwen3(2560, 9728, 36, 32, 8)
QWEN3_8B = _qwen3(4096, 12288, 36, 32, 8, tie_embeddings=False)
QWEN3_14B = _qwen3(5120, 17408, 40, 40, 8, tie_embeddings=False)
QWEN3_30B_A3B = _qwen3(
    2048, 6144, 48, 32, 4, tie_embeddings=False, num_experts=128, experts_per_token=8, expert_size=768
)
QWEN35_4B = _qwen35(2560, 9216, 32, 16, 4)
QWEN35_9B = _qwen35(4096, 12288, 32, 16, 4, tie_embeddings=False)
LLAMA32_1B = _llama(2048, 8192, 16, 32, 8, stretched=32.0)
LLAMA32_3B = _llama(3072, 8192, 28, 24, 8, stretched=32.0)
LLAMA31_8B = _llama(4096, 14336, 32, 32, 8, stretched=8.0, tie_embeddings=False)
SMOLLM2_135M = _smollm2(576, 1536, 30, 9, 3)
SMOLLM2_360M = _smollm2(960, 2560, 32, 15, 5)
SMOLLM2_1P7B = _smollm2(2048, 8192, 24, 32, 32, rope_theta=1.3e5)

_END_TOKENS = {
    128256: (128001, 128008, 128009),  # Llama 3: <|end_of_text|>, <|eom_id|>, <|eot_id|>
    248320: (248044, 248046),  # Qwen3.5: <|endoftext|>, <|im_end|>
    49152: (0, 2),  # SmolLM2: <|endoftext|>, <|im_end|>
}
_QWEN_END_TOKENS = (151643, 151645)  # <|endoftext|>, <|im_end|>

HUB_NAMES = {
    "Qwen/Qwen2.5-0.5B": QWEN25_0P5B,
    "Qwen/Qwen2.5-1.5B": QWEN25_1P5B,
    "Qwen/Qwen2.5-3B": QWEN25_3B,
    "Qwen/Qwen2.5-7B": QWEN25_7B,
    "Qwen/Qwen2.5-14B": QWEN25_14B,
    "Qwen/Qwen2.5-Math-1.5B": QWEN25_MATH_1P5B,
    "Qwen/Qwen2.5-Math-7B": QWEN25_MATH_7B,
    "Qwen/Qwen3-0.6B": QWEN3_0P6B,
    "Qwen/Qwen3-1.7B": QWEN3_1P7B,
    "Qwen/Qwen3-4B": QWEN3_4B,
    "Qwen/Qwen3-8B": QWEN3_8B,
    "Qwen/Qwen3-14B": QWEN3_14B,
    "Qwen/Qwen3-30B-A3B": QWEN3_30B_A3B,
    "Qwen/Qwen3.5-4B": QWEN35_4B,
    "Qwen/Qwen3.5-9B": QWEN35_9B,
    "meta-llama/Llama-3.2-1B": LLAMA32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA32_1B,
    "meta-llama/Llama-3.2-3B": LLAMA32_3B,
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA32_3B,
    "meta-llama/Llama-3.1-8B": LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA31_8B,
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M": SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-360M-Instruct": SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-1.7B": SMOLLM2_1P7B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": SMOLLM2_1P7B,
}
"""Shapes by the names of their checkpoints, for what needs no weights."""


def known_end_tokens(config: QwenConfig) -> tuple[int, ...]:
    """What ends a response of the model with this vocabulary that is known by name, for what needs no files."""
    ids = _END_TOKENS.get(config.vocab_size, _QWEN_END_TOKENS)
    return tuple(token for token in ids if token < config.vocab_size) or config.eos_token_ids


def config_from_hf(path: pathlib.Path) -> QwenConfig:
    """Reads the config.json of a Hugging Face checkpoint directory, and what ends a text from beside it.

    A Qwen2 checkpoint with weights but without biases of the queries has none, whatever its config says.

    Raises:
      FileNotFoundError: no config.json there.
      ValueError: an architecture or a feature that this model does not compute, by name.
    """
    path = pathlib.Path(path)
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no config.json in {path}: expected the directory of a Hugging Face checkpoint{instead(path)}"
        )
    hf = read_hf(file)
    if (generation := file.with_name("generation_config.json")).is_file():
        read_hf(generation)
    architecture = _architecture(hf)
    if architecture is None or architecture not in MODEL_TYPES.values():
        came = repr(architecture) if architecture else "none, and model_type " + repr(hf.get("model_type"))
        raise ValueError(f"{file}: architecture {came}, expected one of {', '.join(MODEL_TYPES.values())}")
    _check_computable(file, hf, architecture)
    theta, rope = rope_from_hf(str(file), hf)
    max_positions = _max_positions(hf, architecture)
    has_bias = bool(hf.get("attention_bias", architecture == "Qwen2ForCausalLM"))
    if has_bias and architecture == "Qwen2ForCausalLM":
        has_bias = has_tensor(path, "q_proj.bias") is not False
    is_qwen3 = architecture not in ("Qwen2ForCausalLM", "LlamaForCausalLM")
    fields = {
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "intermediate_size": hf.get("intermediate_size") or hf["moe_intermediate_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "attention_bias": has_bias,
        "output_bias": has_bias and architecture != "Qwen2ForCausalLM",
        "qk_norm": is_qwen3,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        "rope_theta": theta,
        "norm_epsilon": float(hf.get("rms_norm_eps", 1e-6)),
        "rope_scaling": scaling_from_hf(str(file), rope, max_positions, can_be_partial=architecture in _WITH_DELTA),
        "max_positions": max_positions,
        "init_scale": float(hf.get("initializer_range", 0.02)),
        "eos_token_ids": declared_end_tokens(path, hf),
    }
    if architecture in _WITH_DELTA:
        fields |= _delta_from_hf(hf, rope, is_fused=architecture == "Qwen3NextForCausalLM")
    fields |= _windows(str(file), hf, architecture)
    if fields.get("sliding_layers") and not has_bias and architecture == "Qwen2ForCausalLM":
        raise ValueError(
            f"{file}: a sliding window, and no biases of the queries beside it, which no family is written with: "
            "expected the biases of a Qwen2 model, or use_sliding_window false"
        )
    dense = _dense_layers(str(file), hf, architecture)
    if architecture in _WITH_EXPERTS and len(dense) < hf["num_hidden_layers"]:
        fields["dense_layers"] = dense
        fields["num_experts"] = _num_experts(hf)
        fields["experts_per_token"] = hf["num_experts_per_tok"]
        fields["expert_size"] = hf["moe_intermediate_size"]
        always = architecture == "Qwen3_5MoeForCausalLM" or hf.get("norm_topk_prob", architecture in _WITH_DELTA)
        fields["normalize_experts"] = bool(always)
        fields["shared_expert_size"] = hf["shared_expert_intermediate_size"] if architecture in _WITH_DELTA else 0
    return QwenConfig(**fields)


def _delta_from_hf(hf: dict[str, Any], rope: dict[str, Any], *, is_fused: bool) -> dict[str, Any]:
    """The fields of a model with the gated delta rule, with transformers' defaults."""
    layers, interval = hf["num_hidden_layers"], hf.get("full_attention_interval") or 4
    kinds = [("full" if (i + 1) % interval == 0 else "linear") + "_attention" for i in range(layers)]
    fraction = rope.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 0.25
    return {
        "layer_types": tuple(hf.get("layer_types") or kinds),
        "head_dim": hf.get("head_dim") or 256,
        "rotary_fraction": float(fraction),
        "delta_key_heads": hf.get("linear_num_key_heads") or 16,
        "delta_value_heads": hf.get("linear_num_value_heads") or 32,
        "delta_key_dim": hf.get("linear_key_head_dim") or 128,
        "delta_value_dim": hf.get("linear_value_head_dim") or 128,
        "delta_taps": hf.get("linear_conv_kernel_dim") or 4,
        "delta_fused": is_fused,
    }


def _architecture(hf: dict[str, Any]) -> str | None:
    """The first of the architectures, else the one that `model_type` stands for; None where neither is known."""
    return next(iter(hf.get("architectures") or ()), None) or MODEL_TYPES.get(hf.get("model_type") or "")


def _max_positions(hf: dict[str, Any], architecture: str) -> int:
    """The longest context; transformers' defaults where the config does not say it."""
    return hf.get("max_position_embeddings") or (2048 if architecture == "LlamaForCausalLM" else 32768)


def _check_computable(file: pathlib.Path, hf: dict[str, Any], architecture: str) -> None:
    """Raises ValueError where the config asks for what this model does not compute."""
    if quantization := hf.get("quantization_config"):
        method = quantization.get("quant_method", "?")
        raise ValueError(
            f"{file}: quantized weights ({method}) are not supported, expected float32, bfloat16 or float16"
        )
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{file}: hidden_act {hf['hidden_act']!r}, expected 'silu'")
    if architecture == "LlamaForCausalLM" and hf.get("mlp_bias"):
        raise ValueError(f"{file}: mlp_bias is not supported, expected false")


def _dense_layers(file: str, hf: dict[str, Any], architecture: str) -> tuple[int, ...]:
    """The layers of a model with experts that have one MLP, as transformers reads the config; Qwen3.5 has none."""
    if architecture not in _WITH_DENSE_LAYERS:
        return ()
    step, only = hf.get("decoder_sparse_step", 1), hf.get("mlp_only_layers") or ()
    if step is None or step < 1:
        raise ValueError(f"{file}: decoder_sparse_step is {step}; expected a number above 0: 1 where all have experts")
    layers = range(hf["num_hidden_layers"])
    return tuple(i for i in layers if i in only or (i + 1) % step or _num_experts(hf) == 0)


def _num_experts(hf: dict[str, Any]) -> int | None:
    """Under either of its names."""
    return hf.get("num_local_experts") if hf.get("num_experts") is None else hf["num_experts"]


def _windows(file: str, hf: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The fields of the layers that attend to less than the whole context, as transformers reads the config."""
    layers, types = hf["num_hidden_layers"], hf.get("layer_types")
    if architecture == "LlamaForCausalLM":  # reads none of this
        return {}
    known = ["full_attention", "linear_attention" if architecture in _WITH_DELTA else "sliding_attention"]
    if unknown := sorted(set(types or ()) - set(known)):
        raise ValueError(f"{file}: layer_types has {unknown[0]!r}, expected {' or '.join(map(repr, known))}")
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    if architecture in _WITH_DELTA:
        return {}
    if architecture == "Qwen3MoeForCausalLM" and window is not None:  # all, whatever the others of these fields say
        near = range(layers)
    elif types:
        near = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    else:
        near = range(layers if window is None else min(hf.get("max_window_layers", 28), layers), layers)
    if not near or (window is not None and window >= _max_positions(hf, architecture)):
        return {}
    if window is None:
        raise ValueError(
            f"{file}: layer_types has 'sliding_attention', but there is no window: expected use_sliding_window true "
            "and a sliding_window, or 'full_attention' alone"
        )
    if window < 1:
        raise ValueError(f"{file}: sliding_window is {window}; expected a number above 0, or use_sliding_window false")
    return {"sliding_window": window, "sliding_layers": tuple(near)}


_HF_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_HF_POSITIVE = (*_HF_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps")
_HF_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("architectures", "layer_types"), (list,)),
    **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config"), (dict,)),
    **dict.fromkeys(("rope_theta", "rms_norm_eps", "initializer_range"), (int, float)),
    **dict.fromkeys(("factor", "beta_fast", "beta_slow", "attention_factor"), (int, float)),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor"), (int, float)),
    **dict.fromkeys(("sliding_window", "max_window_layers", "decoder_sparse_step"), (int,)),
    "mlp_only_layers": (list,),
    **dict.fromkeys((*_HF_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"), (int,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"), (int,)),
    **dict.fromkeys(("rope_type", "type", "model_type"), (str,)),
    **dict.fromkeys(("shared_expert_intermediate_size", "full_attention_interval", "linear_conv_kernel_dim"), (int,)),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), (int,)),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), (int,)),
    **dict.fromkeys(("partial_rotary_factor",), (int, float)),
    "text_config": (dict,),
    "original_max_position_embeddings": (int, float),
    "eos_token_id": (int, list),
}


def read_hf(file: pathlib.Path) -> dict[str, Any]:
    """A config.json or generation_config.json of a Hugging Face checkpoint, its fields of the types that are read.

    Raises:
      ValueError: no JSON object, a size that is missing or not positive, or a field of another type; names the file.
    """
    hf = read_json(file)
    if not isinstance(hf, dict):
        raise ValueError(f"{file}: a {type(hf).__name__}; expected an object")
    hf = _text_part(hf)
    rope = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope |= {f"{name}.{key}": value for key, value in (hf.get(name) or {}).items()} if _is_object(hf, name) else {}
    for name, value in {**hf, **rope}.items():
        kinds = _HF_TYPES.get(name.rpartition(".")[2])
        if value is None or kinds is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{file}: {name} is {value!r:.80}; expected {expected}")
        if isinstance(value, int | float) and name in _HF_POSITIVE and not 0 < value < 2**31:
            raise ValueError(f"{file}: {name} is {value}; expected a number above 0")
        items = str if name in ("architectures", "layer_types") else int
        if isinstance(value, list) and not all(isinstance(one, items) for one in value):
            raise ValueError(f"{file}: {name} is {value!r:.80}; expected a list of {items.__name__}")
    for name in ("rope_scaling", "rope_parameters"):
        kind = rope.get(f"{name}.rope_type") or rope.get(f"{name}.type") or "default"
        if kind in ("yarn", "llama3", "linear") and not rope.get(f"{name}.factor"):
            raise ValueError(f"{file}: {name} has no factor; expected one with {kind!r}")
    _check_end_tokens(file, hf)
    if file.name == "config.json" and (missing := [name for name in _needed(hf) if hf.get(name) is None]):
        raise ValueError(f"{file}: no {missing[0]}; expected the config.json of a Hugging Face checkpoint")
    return hf


def _text_part(hf: dict[str, Any]) -> dict[str, Any]:
    """Of a model that also sees images, the config of the part that reads and writes text; else the config itself."""
    names = {"qwen3_5": "Qwen3_5ForConditionalGeneration", "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"}
    whole = next(iter(hf.get("architectures") or ()), None) or names.get(str(hf.get("model_type")))
    text = hf.get("text_config")
    if whole not in _WITH_VISION or not isinstance(text, dict):
        return hf
    shared = ("tie_word_embeddings", "eos_token_id", "quantization_config")
    outer = {name: hf[name] for name in shared if hf.get(name) is not None}
    return {**text, **outer, "architectures": [_WITH_VISION[whole]]}


def _check_end_tokens(file: pathlib.Path, hf: dict[str, Any]) -> None:
    """Raises ValueError where a text would end with what is no token; generation_config.json is beside config.json."""
    ids = hf.get("eos_token_id")
    ids = [ids] if isinstance(ids, int) else ids or []
    config = file.with_name("config.json")
    size = hf.get("vocab_size") if file == config else read_json(config).get("vocab_size") if config.is_file() else None
    beyond = [token for token in ids if token < 0 or (isinstance(size, int) and token >= size)]
    if beyond:
        known = f"0 to {size - 1}, the model's vocabulary" if isinstance(size, int) else "0 or more"
        raise ValueError(f"{file}: eos_token_id is {', '.join(map(str, beyond))}; expected {known}")


def _is_object(hf: dict[str, Any], name: str) -> bool:
    return isinstance(hf.get(name), dict)


def _needed(hf: dict[str, Any]) -> tuple[str, ...]:
    """The sizes without which there is no model; none where the architecture is refused anyhow."""
    architecture = _architecture(hf)
    has_experts = architecture in _WITH_EXPERTS and _num_experts(hf) != 0
    experts = ("num_experts_per_tok", "moe_intermediate_size") if has_experts else ()
    if experts and hf.get("num_experts") is None:
        experts = (*experts, "num_local_experts")
    if experts and architecture in _WITH_DELTA:
        experts = (*experts, "shared_expert_intermediate_size")
    without = "intermediate_size" if architecture == "Qwen3_5MoeForCausalLM" else None
    return (*(name for name in _HF_SIZES if name != without), *experts) if architecture in MODEL_TYPES.values() else ()


def config_to_hf(config: QwenConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json that transformers and vLLM read, with both spellings of the rotary base.

    The family is the one that has what the shape has: without biases and norms of the heads it is Llama's.
    """
    is_qwen3, is_qwen2 = config.qk_norm, config.attention_bias and not config.output_bias
    model_type = "qwen3_moe" if config.num_experts else "qwen3" if is_qwen3 else "qwen2" if is_qwen2 else "llama"
    if config.is_hybrid:
        model_type = "qwen3_5_moe_text" if config.num_experts else "qwen3_5_text"
        model_type = "qwen3_next" if config.delta_fused else model_type
    scaling = scaling_to_hf(config.rope_scaling)
    hf: dict[str, Any] = {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "rope_scaling": None if config.rope_scaling is None else scaling,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.init_scale,
        "tie_word_embeddings": config.tie_embeddings,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if is_qwen3 or config.head_dim * config.num_heads != config.hidden_size:
        hf["head_dim"] = config.head_dim
    if model_type != "qwen2":
        hf["attention_bias"] = config.attention_bias
    if model_type == "llama":
        del hf["use_sliding_window"]
        # transformers has other defaults for Llama: 1 and 2.
        hf |= {"mlp_bias": False, "bos_token_id": None, "eos_token_id": None}
    if config.num_experts:
        hf["num_experts"] = config.num_experts
        hf["num_experts_per_tok"] = config.experts_per_token
        hf["moe_intermediate_size"] = config.expert_size
        hf["norm_topk_prob"] = config.normalize_experts
        hf |= {"decoder_sparse_step": 1, "mlp_only_layers": list(config.dense_layers)}
    elif model_type == "qwen3_next":
        hf["num_experts"] = 0
    if near := config.sliding_layers:
        hf |= {"use_sliding_window": True, "sliding_window": config.sliding_window}
        if not config.num_experts:
            kinds = ["sliding" if i in near else "full" for i in range(config.num_layers)]
            hf["layer_types"] = [f"{kind}_attention" for kind in kinds]
        if near == tuple(range(near[0], config.num_layers)):
            hf["max_window_layers"] = near[0]
    return hf | _delta_to_hf(config) if config.is_hybrid else hf


def _delta_to_hf(config: QwenConfig) -> dict[str, Any]:
    """The entries that models with the gated delta rule have."""
    scaling = scaling_to_hf(config.rope_scaling) | {"partial_rotary_factor": config.rotary_fraction}
    hf: dict[str, Any] = {
        "layer_types": list(config.layer_types),
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "partial_rotary_factor": config.rotary_fraction,
        "linear_num_key_heads": config.delta_key_heads,
        "linear_num_value_heads": config.delta_value_heads,
        "linear_key_head_dim": config.delta_key_dim,
        "linear_value_head_dim": config.delta_value_dim,
        "linear_conv_kernel_dim": config.delta_taps,
    }
    return hf | ({"shared_expert_intermediate_size": config.shared_expert_size} if config.num_experts else {})
