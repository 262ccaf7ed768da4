"""Qwen3-Next and Qwen3.5 as people have them: beside a vision tower, experts in one tensor, bfloat16, adapters."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sspo_jax.models import apply_qwen, load_qwen, save_qwen
from sspo_jax.models.configs import config_from_hf
from sspo_jax.models.hf.layout import flatten, hf_tensors, to_hf
from sspo_jax.models.hf.peft import peft_tensors
from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.sampler.decode import ready_weights
from sspo_jax.sharding import MeshConfig, make_mesh
from tests.models.conftest import DELTA, SHAPE, VOCAB

TOKENS = np.random.default_rng(1).integers(1, VOCAB, (2, 12)).astype(np.int32)
apply = jax.jit(apply_qwen, static_argnums=1)


def changed(path: pathlib.Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_text_part_of_a_model_that_sees_images(tmp_path):
    """Names with a prefix, a config inside the config, rotary sections for images: the logits of text alone."""
    import torch
    import transformers

    text = SHAPE | DELTA | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                               "mrope_interleaved": True, "mrope_section": [1, 1, 0]}  # fmt: skip
    seen = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=seen, tie_word_embeddings=True)
    torch.manual_seed(0)
    whole = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"the text part alone is read; \d+ other tensors \(model.visual.\*\)"):
        params, ours = load_qwen(tmp_path)
    assert ours.tie_embeddings
    with torch.no_grad():
        theirs = whole(input_ids=torch.as_tensor(TOKENS).long()).logits.numpy()
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(apply(params, ours, TOKENS), theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_experts_of_a_layer_in_one_tensor(make_checkpoint, tmp_path):
    """As the models of this family are published: the same parameters, also where devices read parts of them."""
    checkpoint = make_checkpoint("qwen35moe")
    checkpoint.model.save_pretrained(tmp_path / "fused", save_original_format=False)
    names = safetensors.numpy.load_file(tmp_path / "fused" / "model.safetensors")
    assert names["model.layers.0.mlp.experts.gate_up_proj"].shape == (8, 32, 32)
    expected, config = load_qwen(checkpoint.path)
    for mesh in (None, make_mesh(MeshConfig(fsdp=2, tensor=2, expert=2))):
        found, other = load_qwen(tmp_path / "fused", mesh=mesh)
        assert other == config
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_decays_stay_float32(make_checkpoint, tmp_path):
    """In parameters of bfloat16, in what the sampler reads, and in files; computed in bfloat16 as transformers does."""
    import torch

    checkpoint = make_checkpoint("qwen35")
    exact, _ = load_qwen(checkpoint.path)
    params, config = load_qwen(checkpoint.path, dtype="bfloat16", param_dtype="bfloat16")
    ready = ready_weights(exact, config, unrolled=True)
    for name in ("delta_log_decay", "delta_step_bias"):
        np.testing.assert_array_equal(params["blocks"][name], exact["blocks"][name])
        np.testing.assert_array_equal(ready["blocks"][2][name], exact["blocks"][name][1])
    kept = {leaf.dtype for name, leaf in params["blocks"].items() if not name.startswith(("delta_log", "delta_step"))}
    assert kept == {jnp.dtype(jnp.bfloat16)}
    save_qwen(tmp_path / "out", exact, config, dtype="bfloat16")
    again, _ = load_qwen(tmp_path / "out")
    np.testing.assert_array_equal(again["blocks"]["delta_log_decay"], exact["blocks"]["delta_log_decay"])
    half = type(checkpoint.model).from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = half(torch.as_tensor(TOKENS).long()).logits.float().numpy()
    wanted = checkpoint.logits(TOKENS)
    ours = np.asarray(apply(params, config, TOKENS))
    assert np.sqrt(np.mean((ours - wanted) ** 2)) < 1.2 * np.sqrt(np.mean((theirs - wanted) ** 2))


@pytest.mark.slow
def test_remat_changes_no_gradient(make_checkpoint):
    params, config = load_qwen(make_checkpoint("qwen3next").path)

    def gradients(config: Any) -> Any:
        tokens = jnp.asarray(TOKENS)
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(apply_qwen(params, config, tokens)))))(params)

    expected = gradients(config)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for remat in ("full", "dots"):
        for name, found in gradients(config.computed(remat=remat))["blocks"].items():
            np.testing.assert_allclose(found, expected["blocks"][name], rtol=0, atol=1e-6 * largest, err_msg=name)


def test_what_is_not_computed_is_refused(make_checkpoint, tmp_path):
    for number, (family, fields, message) in enumerate(
        [
            ("qwen3next", {"mlp_only_layers": [1]}, "missing, 'model.layers.1.mlp.down_proj.weight'"),
            ("qwen3moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0; expected a number above 0"),
            ("qwen3moe", {"mlp_only_layers": 1}, r"mlp_only_layers is 1; expected list"),
            ("qwen3next", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
            ("qwen35", {"layer_types": ["linear_attention"] * 4}, "no 'full_attention', expected at least one"),
            (
                "qwen35",
                {"layer_types": ["sliding_attention", "full_attention"] * 2},
                "layer_types has 'sliding_attention', expected 'full_attention' or 'linear_attention'",
            ),
            ("qwen35", {"linear_num_value_heads": 6}, "a multiple of the key heads"),
            ("qwen35", {"architectures": ["Qwen3_5MoeForSequenceClassification"]}, "expected one of .*Qwen3_5Moe"),
        ]
    ):
        path = tmp_path / str(number)
        shutil.copytree(make_checkpoint(family).path, path)
        changed(path, **fields)
        with pytest.raises(ValueError, match=message):
            load_qwen(path)


def test_three_layers_of_one_kind_then_one_of_the_other_by_default(make_checkpoint, tmp_path):
    shutil.copytree(make_checkpoint("qwen35").path, tmp_path / "copy")
    changed(tmp_path / "copy", layer_types=None)
    config = config_from_hf(tmp_path / "copy")
    assert config.layer_types == ("linear_attention",) * 3 + ("full_attention",)
    assert (config.attention_layers, config.turns) == ((3,), (0, 1, 3))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        (
            "qwen35",
            ("query", "down", "delta_query_key_value", "delta_gate", "delta_rate", "delta_decay", "delta_output"),
        ),
        ("qwen3next", ("delta_query_key_value_gate", "delta_rate_decay", "delta_output", "shared_down")),
    ],
    ids=["qwen35", "qwen3next"],
)
def test_adapters_of_the_delta_rule(make_checkpoint, family, targets):
    """Merged they compute the same as beside; and PEFT's names and order of rows give transformers' merged weights."""
    params, config = load_qwen(make_checkpoint(family).path)
    lora = LoraConfig(rank=2, alpha=4.0, targets=targets)
    adapters = jax.tree.map(lambda x: x + 0.05, init_lora(config, lora, jax.random.key(0)))
    beside = apply(with_lora(params, adapters, lora), config, TOKENS)
    merged = merge_lora(params, adapters, lora)
    assert jnp.abs(beside - apply(params, config, TOKENS)).max() > 0.1
    np.testing.assert_allclose(apply(merged, config, TOKENS), beside, rtol=0, atol=5e-5)
    tensors = peft_tensors(adapters, config)
    plain, wanted = (_hf(tree, config) for tree in (params, merged))
    names = {name.rsplit(".lora_", 1)[0] for name in tensors}
    assert {f"{name.removeprefix('base_model.model.')}.weight" for name in names} == {
        name for name, x in wanted.items() if not np.array_equal(x, plain[name])
    }
    for name in names:
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        np.testing.assert_allclose(plain[weight] + 2.0 * product, wanted[weight], rtol=0, atol=1e-6, err_msg=weight)


def _hf(params: Any, config: Any) -> dict[str, np.ndarray]:
    """Under transformers' names, in its layout."""
    flat = flatten(params)
    return {
        tensor.name: np.asarray(to_hf(flat[path][tensor.index], tensor.shape, tensor.inputs, tensor.parts))
        for path, group in hf_tensors(config).items()
        for tensor in group
    }
