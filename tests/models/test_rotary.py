"""Rotary settings of config.json files, as people have them, against the frequencies that transformers computes."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from sspo_jax.models.configs import QwenConfig, architecture_differences, config_from_hf, config_to_hf
from sspo_jax.models.rotary import RopeScaling, rotary_frequencies
from tests.models.conftest import SHAPE

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}
BASE = {"rope_theta": 5e5}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_parameters": BASE | {"rope_type": "default"}},
    "yarn": {"rope_parameters": BASE | YARN},
    "yarn, all set": {"rope_parameters": BASE | YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}},
    "llama3": {"rope_parameters": BASE | LLAMA3},
    "linear": {"rope_parameters": BASE | LINEAR},
    "older spelling": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "oldest spelling": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "no original context": {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "no base": {"rope_scaling": LINEAR},
    "rope_scaling wins": {"rope_parameters": BASE | {"rope_type": "default"}, "rope_scaling": BASE | YARN},
    "rope_scaling wins over another": {"rope_theta": 5e5, "rope_parameters": BASE | LINEAR, "rope_scaling": YARN},
    "rope_scaling turns it off": {"rope_parameters": BASE | YARN, "rope_scaling": BASE | {"rope_type": "default"}},
    "empty rope_scaling": {"rope_parameters": BASE | YARN, "rope_scaling": {}},
    "null rope_scaling": {"rope_parameters": BASE | YARN, "rope_scaling": None},
    "base in both": {"rope_theta": 1e6, "rope_parameters": BASE | YARN},
}


def write(path: pathlib.Path, family: str, settings: dict[str, Any]) -> None:
    """A config.json of transformers with these entries in the place of its own."""
    import transformers

    config = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}[family](**SHAPE)
    config.architectures = ["Qwen2ForCausalLM" if family == "qwen2" else "LlamaForCausalLM"]
    config.save_pretrained(path)
    saved = json.loads((path / "config.json").read_text())
    saved.pop("rope_parameters")
    (path / "config.json").write_text(json.dumps(saved | settings))


def theirs(path: pathlib.Path) -> tuple[np.ndarray, float]:
    """Frequencies and the factor of cos and sin."""
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    config = transformers.AutoConfig.from_pretrained(path)
    module = (LlamaRotaryEmbedding if config.model_type == "llama" else Qwen2RotaryEmbedding)(config)
    return module.inv_freq.numpy(), module.attention_scaling


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("name", SETTINGS)
def test_frequencies_of_transformers(tmp_path, family, name):
    write(tmp_path, family, SETTINGS[name])
    frequencies, scale = theirs(tmp_path)
    config = config_from_hf(tmp_path)
    head_dim = config.head_dim
    np.testing.assert_allclose(
        rotary_frequencies(head_dim, config.rope_theta, config.rope_scaling), frequencies, rtol=3e-7
    )
    assert (1.0 if config.rope_scaling is None else config.rope_scaling.scale) == pytest.approx(scale, rel=1e-12)

    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config_to_hf(config, dtype="float32")))
    assert config_from_hf(out) == dataclasses.replace(config, eos_token_ids=())  # written by who saves the weights
    np.testing.assert_allclose(theirs(out)[0], frequencies, rtol=1e-12)


def test_a_base_that_transformers_would_lose(tmp_path):
    """YARN added to a checkpoint of transformers 5 as Qwen2.5's model card says it."""
    write(tmp_path, "qwen2", {"rope_parameters": BASE | {"rope_type": "default"}, "rope_scaling": YARN})
    with pytest.raises(ValueError, match=r"rope_theta of 500000 would be lost: transformers computes with 10000"):
        config_from_hf(tmp_path)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "scaling 'dynamic'.*'llama3' or 'linear'"),
        ({"rope_type": "llama3", "factor": 2.0, "high_freq_factor": 4.0}, "no low_freq_factor; expected one"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor 4.0 and high_freq_factor 4.0; expected the first below"),
        ({"rope_type": "llama3"}, "no factor; expected one with 'llama3'"),
        (YARN | {"mscale": 0.7}, "mscale = 0.7"),
        (YARN | {"truncate": False}, "truncate = false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"full_attention": YARN}, r"by kind of layer \(full_attention\)"),
    ],
)
def test_what_is_not_computed_is_named(tmp_path, rope, message):
    write(tmp_path, "llama", {"rope_parameters": BASE | rope})
    with pytest.raises(ValueError, match=message):
        config_from_hf(tmp_path)


def test_llama3_by_hand():
    """Turns 16, 2 and 1/2 in a context of 16 pi; kept from 4 on, divided by 8 below 1, at 2 one third of the way.

    Base 64 and head_dim 4 have frequencies 1 and 1/8, which turn 8 times and once: kept, and at the edge.
    """
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_positions=round(16 * np.pi))
    found = np.asarray(rotary_frequencies(4, 64.0, scaling))
    turns = scaling.original_max_positions / (2 * np.pi) / 8  # 0.9947, below 1
    assert turns < 1
    np.testing.assert_allclose(found, [1.0, 1 / 64], rtol=1e-6)
    wider = RopeScaling(kind="llama3", factor=8.0, original_max_positions=2 * scaling.original_max_positions)
    share = (2 * turns - 1) / 3
    np.testing.assert_allclose(rotary_frequencies(4, 64.0, wider), [1.0, (1 - share) / 64 + share / 8], rtol=1e-6)


def test_older_records_of_a_scaling_are_compared_as_they_were():
    """A run or a server of a version without the fields of llama3 has the same architecture."""
    config = QwenConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
        rope_scaling=RopeScaling(kind="yarn", factor=4.0),
    )  # fmt: skip
    older = config.architecture
    for name in ("low_freq_factor", "high_freq_factor"):
        del older["rope_scaling"][name]
    assert architecture_differences(older, config, whose="ours") == []
    older["rope_scaling"]["factor"] = 2.0
    assert len(architecture_differences(older, config, whose="ours")) == 1
