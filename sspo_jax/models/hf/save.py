"""Checkpoints out, as transformers and vLLM read them: sharded safetensors, without torch, one tensor at a time."""

import functools
import json
import math
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.models.configs import QwenConfig, config_to_hf
from sspo_jax.models.end_tokens import end_tokens
from sspo_jax.models.hf.layout import DType, HfTensor, flatten, hf_tensors, to_hf
from sspo_jax.models.qwen import Params, abstract_qwen, kept_dtype
from sspo_jax.sharding import replicated

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@functools.cache
def _extractor(shape: tuple[int, ...], inputs: int | None, parts: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    def extract(stack: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        return to_hf(stack[index] if index else stack, shape, inputs, parts).astype(dtype)

    return jax.jit(extract, out_shardings=sharding)


def save_qwen(
    path: str | os.PathLike[str],
    params: Params,
    config: QwenConfig,
    *,
    dtype: DType = "bfloat16",
    tokenizer: Any = None,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that transformers and vLLM read: safetensors, config, generation config, tokenizer.

    It is written beside `path` and moved there when complete, so `path` never holds a part of a checkpoint. With
    several processes all of them call this, and process 0 writes.

    Args:
      dtype: of the weights in the files; those that decays of the gated delta rule are made of stay float32.
      tokenizer: a transformers tokenizer, or the directory of one, saved along. What ends a response (`end_tokens`)
        becomes `eos_token_id` of the generation config.
      max_shard_bytes: a file holds at most this much, or one tensor.
      overwrite: replace what `path` holds.

    Raises:
      FileExistsError: `path` is not empty and `overwrite` is not set.
      ValueError: a parameter does not have the shape that the config says.
    """
    directory = pathlib.Path(path)
    if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another path")
    shapes, flat = flatten(abstract_qwen(config)[0]), flatten(params)
    if set(shapes) != set(flat):
        raise ValueError(f"parameters are {sorted(flat)}, the config expects {sorted(shapes)}")
    for name, leaf in flat.items():
        if leaf.shape != shapes[name].shape:
            raise ValueError(f"parameter {name!r} has shape {leaf.shape}, the config expects {shapes[name].shape}")

    is_writer = jax.process_index() == 0
    temporary = unfinished(directory, "writing")
    if is_writer:
        temporary.mkdir(parents=True, exist_ok=False)
    try:
        # Every process walks the same tensors, because gathering one takes all of them.
        ordered = [tensor for group in hf_tensors(config).values() for tensor in group]
        _write_shards(temporary if is_writer else None, ordered, flat, dtype, max_shard_bytes)
        if is_writer:
            eos = list(end_tokens(_loaded(tokenizer), config.eos_token_ids))
            hf_config = config_to_hf(config, dtype=dtype) | ({"eos_token_id": eos[0]} if eos else {})
            _write_json(temporary / "config.json", hf_config)
            generation = {"eos_token_id": eos, "pad_token_id": eos[-1], "do_sample": True} if eos else {}
            _write_json(temporary / "generation_config.json", generation)
            _save_tokenizer(temporary, tokenizer)
            move_into_place(temporary, directory)
    finally:
        if is_writer:
            shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_qwen {directory}")


def _dtype(tensor: HfTensor, dtype: DType) -> Any:
    """What the tensor is written in where `dtype` is wanted."""
    return kept_dtype(tensor.path.rpartition(".")[2], dtype)


def _bytes(tensor: HfTensor, dtype: DType) -> int:
    return math.prod(tensor.shape) * _dtype(tensor, dtype).itemsize


def _gather(stack: jax.Array, tensor: HfTensor, dtype: Any) -> np.ndarray:
    """Brings one tensor to the host of every process, in the checkpoint's layout and dtype."""
    mesh = getattr(stack.sharding, "mesh", None)
    whole = None if mesh is None else replicated(mesh)
    extract = _extractor(tensor.shape, tensor.inputs, tensor.parts, dtype, whole)
    return np.asarray(extract(stack, tuple(np.int32(i) for i in tensor.index)).addressable_data(0))


def _write_shards(
    directory: pathlib.Path | None,
    tensors: list[HfTensor],
    flat: dict[str, jax.Array],
    dtype: DType,
    max_shard_bytes: int,
) -> None:
    """Writes the tensors in files of at most `max_shard_bytes`, and the index where there are several."""
    shards: list[list[HfTensor]] = [[]]
    for tensor in tensors:
        size = sum(_bytes(other, dtype) for other in (*shards[-1], tensor))
        if shards[-1] and size > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = sorted(shard, key=lambda tensor: tensor.name)  # the order in which the safetensors library writes
        arrays = (_gather(flat[tensor.path], tensor, _dtype(tensor, dtype)) for tensor in shard)
        if directory is None:
            for _ in arrays:
                pass
        else:
            write_safetensors(directory / name, shard, arrays, dtype)
            weight_map |= {tensor.name: name for tensor in shard}
    if directory is not None and len(shards) > 1:
        total = sum(_bytes(tensor, dtype) for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(file: pathlib.Path, tensors: list[HfTensor], arrays: Iterator[np.ndarray], dtype: DType) -> None:
    """The bytes that `safetensors.numpy.save_file` would write, without holding all tensors of the file at once."""
    codes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end, code = offset + _bytes(tensor, dtype), codes[_dtype(tensor, dtype).name]
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data
    with open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in arrays:
            stream.write(np.ascontiguousarray(array).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _loaded(tokenizer: Any) -> Any:
    """The tokenizer itself; read from its directory where it is given as that."""
    if not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    directory = pathlib.Path(tokenizer)
    return load_tokenizer(str(directory)) if (directory / "tokenizer.json").is_file() else None


def _save_tokenizer(directory: pathlib.Path, tokenizer: Any) -> None:
    if isinstance(tokenizer, (str, os.PathLike)):
        present = [pathlib.Path(tokenizer) / name for name in _TOKENIZER_FILES]
        present = [file for file in present if file.is_file()]
        if not present:
            raise FileNotFoundError(f"no tokenizer in {tokenizer}: expected its directory, with tokenizer.json")
        for file in present:
            shutil.copy(file, directory)
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(directory))


def unfinished(directory: pathlib.Path, what: str) -> pathlib.Path:
    """The name beside `directory` under which this process makes it; what dead processes have left is removed.

    Names say the host too: of a process elsewhere, on a shared disk, nobody here knows whether it lives.
    """
    start = f".{directory.name}.{what}-{platform.node()}-"
    for entry in directory.parent.iterdir() if directory.parent.is_dir() else ():
        number = entry.name.removeprefix(start)
        if entry.name.startswith(start) and number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(entry, ignore_errors=True)
    return directory.parent / f"{start}{os.getpid()}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def move_into_place(temporary: pathlib.Path, directory: pathlib.Path) -> None:
    """Renames the finished directory; an old one is moved aside first, so no moment has a mixture of both."""
    old = unfinished(directory, "old")
    if directory.exists():
        os.rename(directory, old)
    os.rename(temporary, directory)
    if old.is_dir():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()
