"""Layers with a sliding window, and layers without experts among layers with them, as transformers reads and computes
them; what `test_families` does for a few of their patterns is here done for all that differ.
"""

import dataclasses
import functools
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import QwenConfig, apply_qwen, init_qwen, load_qwen, qwen, save_qwen
from sspo_jax.models.configs import config_from_hf
from sspo_jax.models.int8 import dense, is_int8, quantize
from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.models.qwen import hidden_states
from tests.models.conftest import VOCAB, Checkpoint
from tests.models.test_meshes import DENSE, SPARSE, WINDOW

TIME = 16
TOKENS = np.random.default_rng(2).integers(1, VOCAB, (2, TIME)).astype(np.int32)
SLIDING = {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
apply = jax.jit(apply_qwen, static_argnums=1)


def changed(checkpoint: Checkpoint, path: Any, **fields: Any) -> Any:
    """The directory of the same weights with another config.json."""
    shutil.copytree(checkpoint.path, path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return path


def theirs(path: Any) -> tuple[str, np.ndarray]:
    """What transformers makes of a directory: its class, and the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return type(model).__name__, model(torch.as_tensor(TOKENS).long()).logits.numpy()


@pytest.mark.parametrize(
    "window", [pytest.param(size, marks=[pytest.mark.slow] * (size not in (2, 15))) for size in (1, 2, 15, 16, 17)]
)
def test_the_edge_of_a_window(make_checkpoint, tmp_path, window):
    """A window of all but one token leaves out the first for the last token alone; one of all changes nothing."""
    checkpoint = make_checkpoint("qwen2")
    path = changed(checkpoint, tmp_path / "copy", **SLIDING, sliding_window=window)
    params, config = load_qwen(path)
    assert (config.sliding_window, config.sliding_layers) == (window, (0, 1))
    logits = apply(params, config, TOKENS)
    np.testing.assert_allclose(logits, theirs(path)[1], rtol=0, atol=2e-5)
    differs = np.abs(logits - checkpoint.logits(TOKENS)).max(axis=(0, 2)) > 1e-3
    assert differs.tolist() == [place >= window for place in range(TIME)]


@pytest.mark.parametrize(
    ("family", "fields", "expected"),
    [
        ("qwen2", {"sliding_window": 4, "max_window_layers": 1}, (1,)),
        ("qwen2", {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}, (1,)),
        ("qwen3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, (0,)),
        ("qwen3", {"sliding_window": 4, "max_window_layers": 0}, (0, 1)),
        ("qwen3", {"sliding_window": 4, "max_window_layers": 9}, ()),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 4}, ()),
        ("qwen3moe", {"sliding_window": 4, "max_window_layers": 1}, (0, 1)),
        ("qwen3moe", {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}, (0, 1)),
        ("qwen3moe", {"use_sliding_window": False, "layer_types": ["full_attention", "full_attention"]}, ()),
    ],
    ids=str,
)
def test_which_layers_slide(make_checkpoint, tmp_path, family, fields, expected):
    """What transformers computes with this config, it computes with the one that is written of what was read."""
    checkpoint = make_checkpoint(family)
    path = changed(checkpoint, tmp_path / "copy", **(SLIDING | fields))
    params, config = load_qwen(path)
    assert config.sliding_layers == expected
    save_qwen(tmp_path / "out", params, config, dtype="float32")
    assert config_from_hf(tmp_path / "out") == config.shape
    kind, logits = theirs(path)
    again, written = theirs(tmp_path / "out")
    assert kind == again
    np.testing.assert_array_equal(written, logits)
    assert (np.abs(logits - checkpoint.logits(TOKENS)).max() > 1e-2) == bool(expected)


@pytest.mark.parametrize(
    ("family", "fields", "expected"),
    [
        ("qwen3moe", {"num_hidden_layers": 5, "decoder_sparse_step": 2}, (0, 2, 4)),
        ("qwen3moe", {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1, 7]}, (0, 1, 2, 4)),
        ("qwen3next", {"decoder_sparse_step": 2}, (0,)),
    ],
    ids=str,
)
def test_which_layers_have_no_experts(make_checkpoint, family, fields, expected):
    config = config_from_hf(make_checkpoint(family, **fields).path)
    assert config.dense_layers == expected


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3moe", {"mlp_only_layers": [0, 1], "use_sliding_window": True, "sliding_window": 3}),
        ("qwen3moe", {"num_experts": 0}),
        pytest.param("qwen3next", {"decoder_sparse_step": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_model_with_experts_in_no_layer_is_a_dense_one(make_checkpoint, tmp_path, family, fields):
    checkpoint = make_checkpoint(family, **fields)
    params, config = load_qwen(checkpoint.path)
    assert (config.num_experts, config.dense_layers) == (0, ())
    expected = checkpoint.logits(TOKENS)
    np.testing.assert_allclose(apply(params, config, TOKENS), expected, rtol=0, atol=2e-5)
    save_qwen(tmp_path / "out", params, config, dtype="float32")
    kind, logits = theirs(tmp_path / "out")
    assert kind == ("Qwen3NextForCausalLM" if family == "qwen3next" else "Qwen3ForCausalLM")
    np.testing.assert_array_equal(logits, expected)
    assert load_qwen(tmp_path / "out")[1] == config


def test_a_window_reaches_into_a_shared_prompt_by_position():
    """A row with a prompt of 7 once and two responses of 6 and 4 beside it, against a row for each."""
    config = dataclasses.replace(WINDOW, sliding_window=5)
    params = init_qwen(config, jax.random.key(0))
    prompt, first, second = TOKENS[0, :7], TOKENS[1, :6], TOKENS[1, 6:10]
    tokens, segments, positions, prefixes = np.zeros((4, 3, 17), np.int32)
    tokens[0], segments[0], prefixes[0] = np.concatenate([prompt, first, second]), np.repeat([1, 2, 3], [7, 6, 4]), 1
    positions[0] = np.concatenate([np.arange(13), 7 + np.arange(4)])
    for row, response in ((1, first), (2, second)):
        size = 7 + len(response)
        tokens[row, :size], segments[row, :size], prefixes[row, :size] = np.concatenate([prompt, response]), 1, 1
        positions[row, :size] = np.arange(size)

    @functools.partial(jax.jit, static_argnums=0)
    def hidden(config: QwenConfig) -> jax.Array:
        arrays = {"segment_ids": segments, "positions": positions, "prefix_ids": prefixes}
        return hidden_states(params, config, jnp.asarray(tokens), **jax.tree.map(jnp.asarray, arrays)).hidden

    shared, *alone = np.asarray(hidden(config))
    np.testing.assert_allclose(shared[7:13], alone[0][7:13], rtol=0, atol=2e-5)
    np.testing.assert_allclose(shared[13:17], alone[1][7:11], rtol=0, atol=2e-5)
    without = hidden(dataclasses.replace(config, sliding_window=0, sliding_layers=()))
    assert np.abs(without[0, 7:] - shared[7:]).max(axis=-1).min() > 1e-2  # the window matters to each of them


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("eeee", (0, 1, 4)),
        ("deee", (1, 1, 3)),
        ("dedede", (0, 2, 3)),
        ("deded", (0, 2, 2)),
        ("ddeeeed", (2, 1, 4)),
        ("de", (0, 2, 1)),
    ],
)
def test_the_loop_over_layers_takes_the_longest_repetition(kinds, expected):
    dense_layers = tuple(i for i, kind in enumerate(kinds) if kind == "d")
    assert dataclasses.replace(SPARSE, num_layers=len(kinds), sliding_layers=(), sliding_window=0,
                               dense_layers=dense_layers).turns == expected  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "remat"), [("dee", "full"), pytest.param("dedede", "dots", marks=pytest.mark.slow),
                         pytest.param("ddeed", "none", marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_loop_changes_neither_experts_nor_gradients(kinds, remat, monkeypatch):
    """Experts of the layers that have some, in their order, whether chosen or given; against layer by layer."""
    layers = len(kinds)
    config = dataclasses.replace(
        SPARSE,
        num_layers=layers,
        sliding_layers=tuple(range(layers)),
        dense_layers=tuple(i for i, kind in enumerate(kinds) if kind == "d"),
    )
    params = init_qwen(config, jax.random.key(0))
    tokens = jnp.asarray(TOKENS)

    def found(config: QwenConfig, experts: Any = None) -> tuple[Any, Any]:
        def total(params: Any) -> tuple[Any, Any]:
            states = hidden_states(params, config, tokens, experts=experts)
            return jnp.sum(jnp.sin(states.hidden)), states.experts

        return jax.jit(jax.grad(total, has_aux=True))(params)

    monkeypatch.setattr(qwen, "UNROLLED_LAYERS", 0)
    gradients, experts = found(config.computed(remat=remat))
    assert experts.shape == (kinds.count("e"), *TOKENS.shape, 2)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))

    def by_hand(params: Any) -> Any:
        x, segments = qwen.embed(params, config, tokens), jnp.ones_like(tokens)
        positions = qwen.default_positions(segments)
        angles = qwen.rotary_angles(positions, config)
        mask = jnp.arange(TIME)[:, None] - jnp.arange(TIME)[None]
        mask = (mask >= 0) & (mask < config.sliding_window)
        for i in range(layers):
            block = qwen.layer_of(params["blocks"], config, i)
            assert ("gate" in block) == (kinds[i] == "d") != ("router" in block)
            query, key, value, gate = qwen.attention_inputs(block, config, x, angles)
            attended = jax.nn.dot_product_attention(query, key, value, mask=mask[None, None])
            x = x + qwen.attention_output(block, attended, gate)
            x = x + qwen.mlp(block, config, x)
        return jnp.sum(jnp.sin(qwen.norm(x, params["final_norm"], config)))

    expected = jax.jit(jax.grad(by_hand))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * largest), gradients, expected)
    other, again = found(config, jnp.where(experts >= 0, (experts + 1) % 8, experts))
    np.testing.assert_array_equal(experts[0], again[0])  # what the first router ranks highest depends on none before
    assert any(
        jnp.abs(x - y).max() > 1e-3 * largest for x, y in zip(*map(jax.tree.leaves, (gradients, other)), strict=True)
    )


@pytest.mark.slow
def test_adapters_and_int8_of_layers_without_experts():
    """Beside the weights as merged into them; rounded as the weights that they stand for."""
    lora = LoraConfig(rank=2, alpha=4.0)
    params = init_qwen(SPARSE, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.05, init_lora(SPARSE, lora, jax.random.key(1)))
    assert adapters["gate"]["a"].shape == (1, 32, 2)
    expected = apply(merge_lora(params, adapters, lora), SPARSE, TOKENS)
    np.testing.assert_allclose(apply(with_lora(params, adapters, lora), SPARSE, TOKENS), expected, rtol=0, atol=5e-5)
    rounded = {name: quantize(name, x, lead=1) for name, x in params["blocks"].items()}
    assert is_int8(rounded["gate"])
    assert is_int8(rounded["expert_gate"])
    ours = apply(params | {"blocks": rounded}, SPARSE, TOKENS)
    as_they_stand = apply(params | {"blocks": dense(rounded)}, SPARSE, TOKENS)
    np.testing.assert_allclose(ours, as_they_stand, rtol=0, atol=2e-5 * np.abs(as_they_stand).max())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (DENSE, {"sliding_window": 4}, "expected a window above 0 and the layers that have it"),
        (DENSE, {"sliding_layers": (0,)}, "sliding_window is 0 with sliding_layers"),
        (WINDOW, {"sliding_layers": (1, 0)}, r"sliding_layers is \[1, 0\]; expected numbers from 0 to 1, rising"),
        (WINDOW, {"sliding_layers": (2,)}, "expected numbers from 0 to 1"),
        (WINDOW, {"qk_norm": False, "attention_bias": False}, "biases of Llama, which has no window"),
        (SPARSE, {"sliding_layers": (0,)}, "expected all 3 layers or none"),
        (SPARSE, {"dense_layers": (0, 1, 2)}, "expected some layers of a model whose other layers have experts"),
        (DENSE, {"dense_layers": (0,)}, "with num_experts 0"),
        (SPARSE, {"dense_layers": (3,)}, "dense_layers is .*expected numbers from 0 to 2"),
    ],
    ids=str,
)
def test_what_no_family_has_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_a_qwen2_without_biases_has_no_window(make_checkpoint, tmp_path):
    path = changed(make_checkpoint("qwen2-no_bias"), tmp_path / "copy", **SLIDING, sliding_window=4)
    with pytest.raises(ValueError, match=r"config.json: a sliding window, and no biases of the queries"):
        load_qwen(path)
