"""One answer to what ends a response, for everyone who asks."""

import dataclasses
import json
import shutil

import jax
import pytest

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.models import QwenConfig, init_qwen, load_qwen, save_qwen
from sspo_jax.models.configs import QwenModel, config_from_hf
from sspo_jax.models.end_tokens import end_tokens

TINY_SHAPE = QwenConfig(
    vocab_size=512, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4
)
ENDOFTEXT, IM_END = 151643, 151645


@pytest.fixture(params=["tiny", "tiny, declared", "qwen, <|endoftext|>", "qwen, <|im_end|>"])
def checkpoint(request, tmp_path):
    """(directory of a checkpoint with its tokenizer, what ends a response)."""
    path, (kind, _, declared) = tmp_path / "checkpoint", request.param.partition(", ")
    if kind == "tiny":
        save_qwen(path, init_qwen(TINY_SHAPE, jax.random.key(0)), TINY_SHAPE, tokenizer=load_tokenizer("tiny"))
        if declared:
            (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
        return path, {2, 7} if declared else {2}
    source = request.getfixturevalue("real_data") / "qwen2.5-tokenizer"
    shape = dataclasses.replace(TINY_SHAPE, vocab_size=151936)
    save_qwen(path, init_qwen(shape, jax.random.key(0)), shape)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "vocab", "merges")):
            shutil.copy(file, path)
    only = ENDOFTEXT if declared == "<|endoftext|>" else IM_END
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": only}))
    return path, {ENDOFTEXT, IM_END}


def test_training_evaluation_export_and_serving_agree(checkpoint, tmp_path, monkeypatch):
    from sspo_jax.config import ModelConfig
    from sspo_jax.evaluation.presets import PAPER_GREEDY
    from sspo_jax.evaluation.subjects import PolicySubject
    from sspo_jax.serving.service import CompletionService
    from sspo_jax.trainer.setup import resolve_model

    path, expected = checkpoint
    tokenizer = load_tokenizer(str(path))
    model, _ = resolve_model(ModelConfig(path=str(path)))
    assert set(end_tokens(tokenizer, model.eos_token_ids)) == expected

    params, loaded = load_qwen(path)
    save_qwen(tmp_path / "exported", params, loaded, tokenizer=tokenizer)
    exported = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert set(exported["eos_token_id"]) == expected
    again = load_tokenizer(str(tmp_path / "exported"))
    assert set(end_tokens(again, config_from_hf(tmp_path / "exported").eos_token_ids)) == expected

    service = CompletionService(params, loaded, tokenizer=tokenizer)
    assert set(service.codec.end_tokens) == expected

    asked = []

    class Recorder:
        def __init__(self, config, sampling, **settings):
            asked.append(sampling)

        def ready(self, params, **settings):
            return params

    monkeypatch.setattr("sspo_jax.sampler.Sampler", Recorder)
    preset = dataclasses.replace(PAPER_GREEDY, max_new_tokens=4)
    how = {"step": None, "prompt": "chat", "tokenizer": None, "dtype": "float32", "seed": 0, "slots": 1}
    assert PolicySubject(str(path), preset, {}, problems_at_once=1, **how)._sample is not None
    assert set(asked[0].stop_token_ids) == expected


def test_own_tokens_come_last_and_nothing_twice():
    assert end_tokens(load_tokenizer("tiny"), (7, 2), own=(9, 7)) == (2, 7, 9)
    assert end_tokens(None, (7,)) == (7,)


def test_a_recorded_model_reads_back_with_its_computation():
    """Flat, as runs have always recorded it; a field of another version is named."""
    model = dataclasses.replace(TINY_SHAPE, eos_token_ids=(2,)).computed(dtype="bfloat16", remat="full")
    record = json.loads(json.dumps(model.record()))
    assert (record["dtype"], record["remat"], record["attention"], record["num_layers"]) == (
        "bfloat16",
        "full",
        "auto",
        1,
    )
    assert QwenModel.from_record(record) == model
    with pytest.raises(ValueError, match="unknown field 'num_towers'"):
        QwenModel.from_record(record | {"num_towers": 2})


def test_the_computation_of_a_loaded_model_is_what_was_asked_for(tmp_path):
    save_qwen(tmp_path / "m", init_qwen(TINY_SHAPE, jax.random.key(0)), TINY_SHAPE)
    _, config = load_qwen(tmp_path / "m", dtype="bfloat16")
    assert config.compute.dtype == "bfloat16"
    assert config.shape == TINY_SHAPE
