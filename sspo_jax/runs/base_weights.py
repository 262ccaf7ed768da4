"""The frozen weights of a LoRA run: where they are, that they are the right ones, and how they come back.

A run that starts from a checkpoint records its path and digest in config.json and reads it again when it is resumed
or exported. Weights that nothing else keeps (random ones, a warm start) are written to `base/` in the run directory
once, as a float32 Hugging Face checkpoint.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sspo_jax.distributed.processes import on_main
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.hub import fetch_model, model_digest
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.int8 import is_int8, quantize, sharded
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params
from sspo_jax.ranges import from_record


def frozen_weights(
    path: pathlib.Path, model: QwenConfig, mesh: Mesh, lora: LoraConfig, *, tokenizer: Any, first: Callable[[], Params]
) -> Params:
    """The base of a LoRA run in the dtype of the computation or in int8, on its mesh.

    Args:
      path: the checkpoint it starts from, or where the run keeps its base, on a disk that all processes share.
      first: makes the weights a run without a checkpoint starts from; called once in the life of a run.
    """
    if not on_main(path.is_dir):  # decided in one place: writing takes all processes
        save_qwen(path, first(), model, dtype="float32", tokenizer=tokenizer)
    return load_frozen(path, model, mesh, lora)


def load_frozen(path: pathlib.Path, model: QwenConfig, mesh: Mesh, lora: LoraConfig) -> Params:
    """The weights of a checkpoint as a LoRA run keeps them: one parameter at most is there in two forms."""
    each = _kept_as_int8 if lora.frozen == "int8" else None
    params, _ = load_qwen(path, mesh=mesh, param_dtype=model.compute.dtype, each=each)
    return params


def _kept_as_int8(name: str, parameter: jax.Array) -> Any:
    section, _, own = name.partition(".")
    if section != "blocks":
        return parameter
    make = functools.partial(quantize, own, lead=1)
    shapes = jax.eval_shape(make, parameter)
    if not is_int8(shapes):
        return parameter
    assert isinstance(parameter.sharding, NamedSharding)
    kept = jax.block_until_ready(jax.jit(make, out_shardings=sharded(shapes, parameter.sharding))(parameter))
    parameter.delete()
    return kept


def lora_of(record: Mapping[str, Any]) -> LoraConfig | None:
    """The adapters of a run, from its config.json; None where all weights are trained."""
    fields = record["config"]["model"].get("lora")
    return None if fields is None else from_record(LoraConfig, fields, "config.json: config.model.lora")


def base_directory(run: pathlib.Path, record: Mapping[str, Any], *, moved_to: str | None = None) -> pathlib.Path:
    """The Hugging Face checkpoint of the frozen weights of a LoRA run.

    Args:
      record: the run's config.json.
      moved_to: where the checkpoint is now, if not where it was.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: what is there is not what the run was trained on.
    """
    recorded = record["provenance"].get("model") or record["provenance"].get("base")  # as earlier versions call it
    if recorded is None or record.get("config", {}).get("warm_start") is not None:
        return run / "base"
    ((name, digest),) = recorded.items()
    path = fetch_model(moved_to or name)
    if model_digest(path) != digest:
        raise ValueError(
            f"the checkpoint {path} is not the one that {run} was trained on (config and weights have another digest): "
            "its adapters fit that one only; say with --base where it is"
        )
    return path
