"""LoRA adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

Tensors are named `base_model.model.` + the module's name in transformers + `.lora_A.weight` [rank, inputs] or
`.lora_B.weight` [outputs, rank], and the adapted layer is W x + (lora_alpha / r) B A x: W, A and B are the transposes
of ours.
"""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.layout import HF_NAMES, head_parts, to_hf
from sspo_jax.models.hf.save import move_into_place, unfinished
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params, layers_with


def peft_tensors(adapters: Params, config: QwenConfig) -> dict[str, np.ndarray]:
    """The adapters of this model under PEFT's names, in PEFT's layout, float32."""
    tensors = {}
    for target, adapter in adapters.items():
        template = HF_NAMES[f"blocks.{target}"][0].removesuffix(".weight")
        a, b = (np.asarray(jax.device_get(adapter[name]), np.float32) for name in ("a", "b"))
        rank, parts = a.shape[-1], head_parts(f"blocks.{target}", config)
        for place, layer in enumerate(layers_with(target, config)):
            name = f"base_model.model.{template.format(layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[place].reshape(-1, rank).T)
            outputs = to_hf(jnp.asarray(b[place]), (b[place].size // rank, rank), 1, parts)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(outputs)
    return tensors


def save_peft(
    path: str | os.PathLike[str], adapters: Params, lora: LoraConfig, *, base: str, config: QwenConfig
) -> None:
    """Writes adapters that `peft.PeftModel.from_pretrained(model, path)` and vLLM's LoRA support read.

    Args:
      path: directory to make; must not exist, or be empty.
      adapters: as `init_lora` gives them, trained.
      base: name or path of the checkpoint that they adapt.
      config: of the model.

    Raises:
      FileExistsError: `path` is not empty.
      ValueError: adapters of MLPs in a model with experts, which PEFT would look for in the experts.
    """
    beside = [name for name in lora.targets if name.removeprefix("shared_") in ("gate", "up", "down")]
    if config.num_experts and beside:
        raise ValueError(
            f"lora.targets {beside} are of MLPs beside the experts: PEFT gives adapters of these names to the experts "
            "and would leave these out. Export the merged checkpoint instead, without --adapters"
        )
    directory = pathlib.Path(path)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another path")
    modules = [HF_NAMES[f"blocks.{target}"][0].removesuffix(".weight").rpartition(".")[2] for target in lora.targets]
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    temporary = unfinished(directory, "writing")
    temporary.mkdir(parents=True)
    try:
        save_file(peft_tensors(adapters, config), temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        move_into_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
