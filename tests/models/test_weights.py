"""Checkpoints in and out: the same bytes both ways, onto any mesh, and errors that name tensor and file."""

import dataclasses
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sspo_jax.models import apply_qwen, init_qwen, load_qwen, model_digest, save_qwen
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.save import unfinished
from sspo_jax.models.qwen import qwen_shardings
from sspo_jax.sharding import MeshConfig, make_mesh

MESHES = {"8x1": (8, 1), "2x4": (2, 4)}


def tensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in path.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def assert_same_bytes(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_round_trip_in_bfloat16_is_byte_identical(make_checkpoint, tmp_path, family):
    checkpoint = make_checkpoint(family, dtype="bfloat16")
    params, config = load_qwen(checkpoint.path, param_dtype="bfloat16")
    save_qwen(tmp_path / "out", params, config, dtype="bfloat16")
    assert_same_bytes(tensors_of(tmp_path / "out"), tensors_of(checkpoint.path))
    assert sorted(os.listdir(tmp_path)) == ["out"]  # nothing is left of the temporary directory


def test_files_are_those_of_the_safetensors_library(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("qwen2")
    params, config = load_qwen(checkpoint.path)
    save_qwen(tmp_path / "out", params, config, dtype="float32")
    ours = tmp_path / "out" / "model.safetensors"
    expected = safetensors.numpy.save(safetensors.numpy.load_file(ours), metadata={"format": "pt"})
    assert ours.read_bytes() == expected


@pytest.mark.parametrize("shape", MESHES)
def test_sharded_files_onto_a_mesh(make_checkpoint, tmp_path, shape):
    """Several files, a vocabulary that the mesh divides; every parameter lies as `qwen_shardings` says."""
    checkpoint = make_checkpoint("qwen3-bias", num_key_value_heads=8, save={"max_shard_size": "30KB"})
    assert len(list(checkpoint.path.glob("*.safetensors"))) > 2
    fsdp, tensor = MESHES[shape]
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor))
    params, config = load_qwen(checkpoint.path, mesh=mesh)
    jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(f"{leaf.sharding}"),
                 params, qwen_shardings(config, mesh))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, params, load_qwen(checkpoint.path)[0])
    save_qwen(tmp_path / "out", params, config, dtype="float32")
    assert_same_bytes(tensors_of(tmp_path / "out"), tensors_of(checkpoint.path))


def test_dtypes_convert_by_rounding_to_nearest(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("qwen2-tied")
    exact = tensors_of(checkpoint.path)
    params, config = load_qwen(checkpoint.path, param_dtype="bfloat16")
    save_qwen(tmp_path / "half", params, config, dtype="bfloat16")
    assert_same_bytes(tensors_of(tmp_path / "half"), {k: v.astype(ml_dtypes.bfloat16) for k, v in exact.items()})
    save_qwen(tmp_path / "f16", params, config, dtype="float16")
    wide = {k: v.astype(ml_dtypes.bfloat16).astype(np.float16) for k, v in exact.items()}
    assert_same_bytes(tensors_of(tmp_path / "f16"), wide)
    back, _ = load_qwen(tmp_path / "f16", param_dtype="float32")
    assert back["embedding"].dtype == jnp.float32


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    start, host = ".out.writing-", platform.node()
    for name in (f"{start}{host}-{dead.pid}", f"{start}{host}-{os.getppid()}", f"{start}elsewhere-{dead.pid}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    made = unfinished(tmp_path / "out", "writing")
    assert made.name == f"{start}{host}-{os.getpid()}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        (f"{start}{host}-{os.getppid()}", f"{start}elsewhere-{dead.pid}")  # of a live process, and of another host
    )


def test_existing_output_is_not_overwritten_unless_asked(make_checkpoint, tmp_path):
    params, config = load_qwen(make_checkpoint("qwen2").path)
    save_qwen(tmp_path / "out", params, config)
    first = model_digest(tmp_path / "out")
    with pytest.raises(FileExistsError, match="not empty"):
        save_qwen(tmp_path / "out", params, config)
    changed = params | {"final_norm": params["final_norm"] + 1}
    save_qwen(tmp_path / "out", changed, config, overwrite=True)
    assert model_digest(tmp_path / "out") != first
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_save_that_fails_leaves_the_old_checkpoint(make_checkpoint, tmp_path):
    params, config = load_qwen(make_checkpoint("qwen2").path)
    save_qwen(tmp_path / "out", params, config)
    digest = model_digest(tmp_path / "out")

    class BrokenTokenizer:
        def save_pretrained(self, path: str) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_qwen(tmp_path / "out", params, config, tokenizer=BrokenTokenizer(), overwrite=True)
    assert model_digest(tmp_path / "out") == digest
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_tokenizer_and_end_tokens(real_data, make_checkpoint, tmp_path):
    from transformers import AutoTokenizer

    params, config = load_qwen(make_checkpoint("qwen2").path)
    config = dataclasses.replace(config, eos_token_ids=(151643,))
    path = real_data / "qwen2.5-tokenizer"
    for tokenizer in (path, AutoTokenizer.from_pretrained(path)):
        save_qwen(tmp_path / "out", params, config, tokenizer=tokenizer, overwrite=True)
        generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert sorted(generation["eos_token_id"]) == [151643, 151645]
        text = "Hence $x = 3.14$。\n\n"
        saved = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert saved(text)["input_ids"] == AutoTokenizer.from_pretrained(path)(text)["input_ids"]


@pytest.fixture
def broken(make_checkpoint, tmp_path):
    """A copy to damage."""
    shutil.copytree(make_checkpoint("qwen2").path, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(path: pathlib.Path, change) -> None:
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    safetensors.numpy.save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})


WINDOW = {"use_sliding_window": True, "sliding_window": 64, "layer_types": None, "max_window_layers": 0}
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != NAME}, rf"missing, '{NAME}'"),
        (lambda t: t | {"model.layers.9.mlp.up_proj.weight": t[NAME]}, r"does not know, 'model.layers.9"),
        (
            lambda t: t | {NAME: t[NAME].T.copy()},
            rf"model.safetensors: tensor '{NAME}' has shape \(32, 48\).*\(48, 32\)",
        ),
        (lambda t: t | {NAME: t[NAME].astype(np.int8)}, rf"tensor '{NAME}' has dtype I8"),
    ],
)
def test_wrong_tensors_are_named(broken, change, message):
    rewrite(broken, change)
    with pytest.raises(ValueError, match=message):
        load_qwen(broken)


def test_truncated_file_is_named(broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors \(\d+ bytes\) is truncated"):
        load_qwen(broken)


def test_missing_shard_is_named(make_checkpoint, tmp_path):
    shutil.copytree(make_checkpoint("qwen2", save={"max_shard_size": "30KB"}).path, tmp_path / "copy")
    sorted((tmp_path / "copy").glob("*.safetensors"))[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-\d+.safetensors is missing.*download"):
        load_qwen(tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture 'GemmaForCausalLM', expected one of LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gemma"}, "architecture none, and model_type 'gemma', expected one of"),
        ({"architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "mlp_bias is not supported"),
        (WINDOW | {"sliding_window": 0}, "sliding_window is 0; expected a number above 0"),
        ({"eos_token_id": 96}, "config.json: eos_token_id is 96; expected 0 to 95"),
        ({"eos_token_id": [5, 151645]}, "eos_token_id is 151645; expected 0 to 95"),
        ({"eos_token_id": -1}, "eos_token_id is -1; expected 0 to 95"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "there is no window: expected use_sliding_window true",
        ),
        (
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types has 'chunked_attention', expected 'full",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "scaling 'dynamic'.*'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"tie_word_embeddings": True}, "lm_head.weight' differs.*tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized.*awq"),
    ],
)
def test_wrong_config_is_refused(broken, change, message):
    file = broken / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_qwen(broken)


def test_untied_checkpoint_without_head(make_checkpoint, tmp_path):
    shutil.copytree(make_checkpoint("qwen2-tied").path, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=r"'lm_head.weight': set tie_word_embeddings"):
        load_qwen(tmp_path / "copy")


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_qwen(tmp_path)


def test_parameters_that_do_not_fit_the_config(tmp_path):
    config = QwenConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
                        head_dim=4)  # fmt: skip
    params = init_qwen(config, jax.random.key(0))
    with pytest.raises(ValueError, match=r"'final_norm' has shape \(7,\), the config expects \(8,\)"):
        save_qwen(tmp_path / "out", params | {"final_norm": params["final_norm"][:7]}, config)
    assert not any(tmp_path.iterdir())
    assert apply_qwen(params, config, jnp.zeros((1, 3), jnp.int32)).shape == (1, 3, 16)
