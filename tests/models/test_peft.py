"""Adapters as PEFT writes them, and merged exports, against transformers: the logits of base and adapters."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import QwenConfig, apply_qwen, init_qwen, load_qwen, save_qwen
from sspo_jax.models.hf.peft import save_peft
from sspo_jax.models.lora import LoraConfig, Target, init_lora, merge_lora, with_lora

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = QwenConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
                    head_dim=8, init_scale=0.3)  # fmt: skip
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = np.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, np.ndarray, np.ndarray]:
    """A folder with base/, merged/ and adapters/, and our logits with and without adapters."""
    folder = tmp_path_factory.mktemp("peft")
    params = init_qwen(CONFIG, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.1, init_lora(CONFIG, LORA, jax.random.key(1)))
    save_qwen(folder / "base", params, CONFIG, dtype="float32")
    save_qwen(folder / "merged", merge_lora(params, adapters, LORA), CONFIG, dtype="float32")
    save_peft(folder / "adapters", adapters, LORA, base=str(folder / "base"), config=CONFIG)
    apply = jax.jit(apply_qwen, static_argnums=1)
    adapted = apply(with_lora(params, adapters, LORA), CONFIG, jnp.asarray(TOKENS))
    plain = apply(params, CONFIG, jnp.asarray(TOKENS))
    assert jnp.abs(adapted - plain).max() > 1.0
    return folder, np.asarray(adapted), np.asarray(plain)


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def load(path: pathlib.Path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def test_the_merged_checkpoint_in_transformers(written):
    folder, adapted, plain = written
    np.testing.assert_allclose(logits(load(folder / "base")), plain, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits(load(folder / "merged")), adapted, rtol=0, atol=2e-5)


def test_the_adapters_by_pefts_formula(written):
    """W + (lora_alpha / r) B A for the module of each tensor's name, as PEFT's documentation states it."""
    from safetensors.torch import load_file

    folder, adapted, _ = written
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    tensors = load_file(folder / "adapters" / "adapter_model.safetensors")
    model = load(folder / "base")
    names = {name.rsplit(".lora_", 1)[0] for name in tensors}
    assert len(names) == 2 * 7
    for name in names:
        module = model.get_submodule(name.removeprefix("base_model.model."))
        product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        module.weight.data += config["lora_alpha"] / config["r"] * product
    np.testing.assert_allclose(logits(model), adapted, rtol=0, atol=2e-5)


def test_the_adapters_in_peft(written):
    peft = pytest.importorskip("peft")
    folder, adapted, _ = written
    model = peft.PeftModel.from_pretrained(load(folder / "base"), folder / "adapters")
    np.testing.assert_allclose(logits(model), adapted, rtol=0, atol=2e-5)
    assert not [name for name, x in model.state_dict().items() if "lora" in name and not x.any()]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3next-dense", "qwen3moe-window", "qwen35"])
def test_layers_of_several_kinds_in_peft(family, make_checkpoint, tmp_path):
    """The gated delta rule, experts, and layers without experts among those with them."""
    peft = pytest.importorskip("peft")
    checkpoint = make_checkpoint(family)
    params, config = load_qwen(checkpoint.path)
    targets: tuple[Target, ...] = ("query", "key", "value", "output")
    targets += ("delta_output",) if config.is_hybrid else ()
    targets += () if config.num_experts else ("gate", "up", "down")
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    adapters = jax.tree.map(lambda x: x + 0.05, init_lora(config, lora, jax.random.key(1)))
    save_peft(tmp_path, adapters, lora, base=str(checkpoint.path), config=config)
    adapted = jax.jit(apply_qwen, static_argnums=1)(with_lora(params, adapters, lora), config, jnp.asarray(TOKENS))
    assert np.abs(logits(load(checkpoint.path)) - adapted).max() > 0.1
    model = peft.PeftModel.from_pretrained(load(checkpoint.path), tmp_path)
    assert not [name for name, x in model.state_dict().items() if "lora" in name and not x.any()]
    np.testing.assert_allclose(logits(model), adapted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("target", ["gate", "shared_down"])
def test_adapters_that_peft_would_leave_out_are_refused(target, tmp_path):
    config = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2, expert_size=8)
    with pytest.raises(ValueError, match=f"'{target}'.*without --adapters"):
        save_peft(tmp_path / "adapters", {}, LoraConfig(targets=("query", target)), base="", config=config)
    assert not [*tmp_path.iterdir()]


def test_a_directory_in_use_is_left_alone(written):
    folder, _, _ = written
    with pytest.raises(FileExistsError, match="not empty"):
        save_peft(folder / "base", {}, LORA, base="", config=CONFIG)
