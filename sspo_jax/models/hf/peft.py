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
import numpy as np
from safetensors.numpy import save_file

from sspo_jax.models.hf.layout import HF_NAMES
from sspo_jax.models.hf.save import move_into_place, unfinished
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params


def peft_tensors(adapters: Params) -> dict[str, np.ndarray]:
    """The adapters under PEFT's names, in PEFT's layout, float32."""
    tensors = {}
    for target, adapter in adapters.items():
        template = HF_NAMES[f"blocks.{target}"][0].removesuffix(".weight")
        a, b = (np.asarray(jax.device_get(adapter[name]), np.float32) for name in ("a", "b"))
        layers, rank = a.shape[0], a.shape[-1]
        for layer in range(layers):
            name = f"base_model.model.{template.format(layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(rank, -1).T)
    return tensors


def save_peft(path: str | os.PathLike[str], adapters: Params, lora: LoraConfig, *, base: str) -> None:
    """Writes adapters that `peft.PeftModel.from_pretrained(model, path)` and vLLM's LoRA support read.

    Args:
      path: directory to make; must not exist, or be empty.
      adapters: as `init_lora` gives them, trained.
      base: name or path of the checkpoint that they adapt.

    Raises:
      FileExistsError: `path` is not empty.
    """
    directory = pathlib.Path(path)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another path")
    modules = [HF_NAMES[f"blocks.{target}"][0].removesuffix(".weight").rpartition(".")[2] for target in lora.targets]
    config = {
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
        save_file(peft_tensors(adapters), temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        move_into_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
