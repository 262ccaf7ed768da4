"""Directories as people have them: what does no harm is passed over, what is no checkpoint is named."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.models import load_qwen, model_digest
from sspo_jax.models.configs import config_from_hf
from sspo_jax.models.hf.files import weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 988097824\n"


@pytest.fixture
def copy(make_checkpoint, tmp_path):
    """A checkpoint of two layers to change."""
    shutil.copytree(make_checkpoint("qwen2").path, tmp_path / "copy")
    return tmp_path / "copy"


def change(path: pathlib.Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rename(path: pathlib.Path, new_name: Any) -> None:
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    safetensors.numpy.save_file({new_name(name): x for name, x in tensors.items()}, path / "model.safetensors")


def test_other_files_beside_the_weights(copy):
    """An adapter, the weights in another layout, a file for the tokenizer: read and digested is the model alone."""
    params, config = load_qwen(copy)
    digest = model_digest(copy)
    for name in ("adapter_model", "consolidated", "consolidated.00", "another"):
        safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, copy / f"{name}.safetensors")
    again, config_again = load_qwen(copy)
    assert config_again == config
    assert model_digest(copy) == digest
    jax.tree.map(np.testing.assert_array_equal, again, params)
    (copy / "another.safetensors").unlink()
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    assert weight_files(copy) == [copy / "weights.safetensors"]


def test_one_file_counts_before_an_index(copy):
    """As in transformers: an index that was left over names files that are gone."""
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    load_qwen(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00002.safetensors is missing"):
        load_qwen(copy)
    (copy / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_qwen(copy)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen2", {"architectures": None}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2, "layer_types": None}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0, "layer_types": None}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 2}),
        ("qwen3moe", {"use_sliding_window": True, "sliding_window": 4096}),
        ("llama", {"use_sliding_window": True, "sliding_window": 8}),
        ("llama", {"architectures": []}),
        ("llama", {"hidden_act": "swish"}),
    ],
    ids=str,
)
def test_harmless_settings(make_checkpoint, tmp_path, family, fields):
    """What transformers makes of the changed config computes the same logits; so it is the same model to us."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = make_checkpoint(family)
    shutil.copytree(checkpoint.path, tmp_path / "copy")
    change(tmp_path / "copy", **fields)
    assert config_from_hf(tmp_path / "copy") == config_from_hf(checkpoint.path)
    changed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "copy", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(0).integers(1, 96, (1, 100))
    with torch.no_grad():
        logits = changed(torch.as_tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(logits, checkpoint.logits(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("_orig_mod.", "begin with '_orig_mod.', as those of a wrapped model do"),
        ("base_model.model.", "begin with 'base_model.model.'"),
        ("module.", "begin with 'module.'"),
    ],
)
def test_names_with_something_before_them(copy, prefix, message):
    rename(copy, lambda name: prefix + name)
    with pytest.raises(ValueError, match=f"tensors that config.json asks for are missing.*{message}"):
        load_qwen(copy)


def test_names_that_lack_a_part(copy):
    rename(copy, lambda name: name.removeprefix("model."))
    with pytest.raises(ValueError, match=r"the names there lack 'model.'.*save it as AutoModelForCausalLM"):
        load_qwen(copy)


def test_float64(make_checkpoint):
    with pytest.raises(ValueError, match=r"has dtype F64, expected one of F32, F16, BF16: save it again as float32"):
        load_qwen(make_checkpoint("qwen2", dtype="float64").path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointers(copy, name):
    (copy / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name}.*Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_tokenizer(str(copy)) if name.startswith("tokenizer") else load_qwen(copy)


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.Q4_K_M.gguf", "", "it holds model.Q4_K_M.gguf, in the format of llama.cpp. Convert it first"),
        (
            "adapter_config.json",
            '{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}',
            "it holds a PEFT adapter of Qwen/Qwen2.5-0.5B. Merge it first",
        ),
        ("adapter_config.json", "[]", "it holds a PEFT adapter of its base. Merge it first"),
        ("pytorch_model.bin", "", "it holds pytorch_model.bin. Convert it with transformers first"),
        ("consolidated.safetensors", "", "it holds consolidated.safetensors, in another layout"),
    ],
    ids=["gguf", "adapter", "odd adapter", "torch", "consolidated"],
)
def test_what_is_there_instead(copy, name, content, message, with_config):
    (copy / "model.safetensors").unlink()
    if not with_config:
        (copy / "config.json").unlink()
    (copy / name).write_text(content)
    expected = "no model.safetensors in" if with_config else "no config.json in"
    with pytest.raises(FileNotFoundError, match=f"{expected}.*{message}"):
        load_qwen(copy)


def test_a_run_says_the_same(copy):
    from sspo_jax.config import ModelConfig
    from sspo_jax.trainer.setup import resolve_model

    (copy / "model.safetensors").rename(copy / "model.gguf")
    with pytest.raises(FileNotFoundError, match=r"in the format of llama.cpp"):
        resolve_model(ModelConfig(path=str(copy)))


@pytest.mark.parametrize("split", [False, True])
def test_a_qwen2_without_biases(make_checkpoint, tmp_path, split):
    """Its weights decide; a config alone is believed, and has biases unless it says otherwise."""
    save = {"max_shard_size": "20KB"} if split else {}
    path = tmp_path / "copy"
    shutil.copytree(make_checkpoint("qwen2-tied", save=save).path, path)
    assert config_from_hf(path).attention_bias
    for file in path.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        kept = {name: x for name, x in tensors.items() if not name.endswith("_proj.bias")}
        safetensors.numpy.save_file(kept, file)
    index = path / "model.safetensors.index.json"
    assert index.is_file() == split
    if split:
        weight_map = json.loads(index.read_text())["weight_map"]
        kept = {name: file for name, file in weight_map.items() if not name.endswith("_proj.bias")}
        index.write_text(json.dumps({"weight_map": kept}))
    params, config = load_qwen(path)
    assert not config.attention_bias
    assert "query_bias" not in params["blocks"]
    for file in path.glob("*.safetensors*"):
        file.unlink()
    assert config_from_hf(path) == dataclasses.replace(config, attention_bias=True).shape
    change(path, attention_bias=False)
    assert config_from_hf(path) == config.shape


def test_end_tokens_of_the_generation_config(copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 200]}))
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id is 200; expected 0 to 95"):
        config_from_hf(copy)
