"""Hugging Face checkpoints in and out: sharded safetensors, without torch, one tensor at a time.

`HF_NAMES` is the whole correspondence between the two layouts. A checkpoint holds one matrix [outputs, inputs] per
layer; our tree holds [layers, inputs, outputs], with heads as an axis of their own. Each tensor is read (only the part
that this process keeps), put on the devices in the checkpoint's dtype and layout, and transposed, converted and written
into its layer of the stacked array there; saving goes the same way back.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from sspo_jax.models.configs import QwenConfig, config_from_hf, config_to_hf
from sspo_jax.models.qwen import Params, abstract_qwen, qwen_shardings
from sspo_jax.sharding import named_sharding, replicated

HF_NAMES: dict[str, tuple[str, int | None]] = {
    # ours: (theirs, how many of our axes a matrix sums over; 0: a vector, flattened; None: the same shape)
    "embedding": ("model.embed_tokens.weight", None),
    "final_norm": ("model.norm.weight", 0),
    "unembedding": ("lm_head.weight", 1),
    "blocks.attention_norm": ("model.layers.{0}.input_layernorm.weight", 0),
    "blocks.query": ("model.layers.{0}.self_attn.q_proj.weight", 1),
    "blocks.query_bias": ("model.layers.{0}.self_attn.q_proj.bias", 0),
    "blocks.query_norm": ("model.layers.{0}.self_attn.q_norm.weight", 0),
    "blocks.key": ("model.layers.{0}.self_attn.k_proj.weight", 1),
    "blocks.key_bias": ("model.layers.{0}.self_attn.k_proj.bias", 0),
    "blocks.key_norm": ("model.layers.{0}.self_attn.k_norm.weight", 0),
    "blocks.value": ("model.layers.{0}.self_attn.v_proj.weight", 1),
    "blocks.value_bias": ("model.layers.{0}.self_attn.v_proj.bias", 0),
    "blocks.output": ("model.layers.{0}.self_attn.o_proj.weight", 2),
    "blocks.output_bias": ("model.layers.{0}.self_attn.o_proj.bias", 0),
    "blocks.mlp_norm": ("model.layers.{0}.post_attention_layernorm.weight", 0),
    "blocks.gate": ("model.layers.{0}.mlp.gate_proj.weight", 1),
    "blocks.up": ("model.layers.{0}.mlp.up_proj.weight", 1),
    "blocks.down": ("model.layers.{0}.mlp.down_proj.weight", 1),
    "blocks.router": ("model.layers.{0}.mlp.gate.weight", 1),
    "blocks.expert_gate": ("model.layers.{0}.mlp.experts.{1}.gate_proj.weight", 1),
    "blocks.expert_up": ("model.layers.{0}.mlp.experts.{1}.up_proj.weight", 1),
    "blocks.expert_down": ("model.layers.{0}.mlp.experts.{1}.down_proj.weight", 1),
}

_DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_MAX_MAPPED_BYTES = 2**28  # read through one mapping of a file before it is dropped: mapped pages count as our memory
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")  # a base Qwen ends on the second, after chat training on the first

DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of the checkpoint and its place in our tree."""

    name: str  # theirs
    shape: tuple[int, ...]  # theirs
    path: str  # ours, dotted
    index: tuple[int, ...]  # the layer (and the expert), () where nothing is stacked
    part_shape: tuple[int, ...]  # ours, of one layer (and expert)
    part_axes: tuple[str | None, ...]  # logical axes of the same
    inputs: int | None  # see HF_NAMES


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        flat |= _flat(node, f"{prefix}{name}.") if isinstance(node, dict) else {f"{prefix}{name}": node}
    return flat


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = leaf
    return tree


def _tensors(config: QwenConfig) -> dict[str, list[_Tensor]]:
    """The tensors that a checkpoint of this shape consists of, by our dotted name."""
    shapes, axes = abstract_qwen(config)
    flat_axes = _flat(axes)
    found: dict[str, list[_Tensor]] = {}
    for path, leaf in _flat(shapes).items():
        template, inputs = HF_NAMES[path]
        stacked = template.count("{")
        part_shape, part_axes = leaf.shape[stacked:], flat_axes[path][stacked:]
        shape = part_shape
        if inputs is not None:
            shape = (math.prod(part_shape[inputs:]),) + ((math.prod(part_shape[:inputs]),) if inputs else ())
        found[path] = [
            _Tensor(template.format(*index), shape, path, index, part_shape, part_axes, inputs)
            for index in np.ndindex(*leaf.shape[:stacked])
        ]
    return found


def _hf_axes(tensor: _Tensor) -> tuple[str | None, ...]:
    """Logical axes in the checkpoint's layout; a merged axis is sharded as its first part is."""
    if tensor.inputs is None:
        return tensor.part_axes
    return (tensor.part_axes[tensor.inputs],) + ((tensor.part_axes[0],) if tensor.inputs else ())


def _from_hf(x: jax.Array, part_shape: tuple[int, ...], inputs: int | None) -> jax.Array:
    return (x.T if inputs else x).reshape(part_shape)


def _to_hf(x: jax.Array, shape: tuple[int, ...], inputs: int | None) -> jax.Array:
    return x.reshape(shape[::-1]).T if inputs else x.reshape(shape)


class _Reader:
    """Parts of named tensors in the safetensors files of a directory."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.files = self._weight_map()
        self._open_file: pathlib.Path | None = None
        self._handle: Any = None
        self._mapped_bytes = 0

    def _weight_map(self) -> dict[str, pathlib.Path]:
        """The file of each tensor, from the index where there is one, else from the files' own headers."""
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            for file in sorted(set(weight_map.values())):
                if not (self.directory / file).is_file():
                    names = [name for name, at in weight_map.items() if at == file]
                    raise FileNotFoundError(
                        f"{self.directory / file} is missing; {index.name} places {len(names)} tensors in it, "
                        f"{names[0]!r} first: download it again"
                    )
            return {name: self.directory / file for name, file in weight_map.items()}
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            others = sorted(file.name for file in self.directory.glob("*.bin"))
            raise FileNotFoundError(
                f"no *.safetensors in {self.directory}"
                + (f" (there is {', '.join(others)}: convert it with transformers first)" if others else "")
            )
        found: dict[str, pathlib.Path] = {}
        for file in files:
            for name in _open(file).keys():  # noqa: SIM118 (a handle is no mapping)
                if name in found:
                    raise ValueError(f"tensor {name!r} is in both {found[name]} and {file}: remove one of them")
                found[name] = file
        return found

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, without reading it."""
        part = self._slice(name)
        return tuple(part.get_shape()), part.get_dtype()

    def read(self, name: str, index: tuple[slice, ...] | None) -> np.ndarray:
        """This part of the tensor (None: all of it), in the file's dtype."""
        index = index or (slice(None),) * len(self.header(name)[0])
        part = np.ascontiguousarray(self._slice(name)[index])
        self._mapped_bytes += part.nbytes
        if self._mapped_bytes > _MAX_MAPPED_BYTES:
            self._handle, self._open_file, self._mapped_bytes = None, None, 0
        return part

    def _slice(self, name: str) -> Any:
        file = self.files[name]
        if file != self._open_file:
            self._handle, self._open_file, self._mapped_bytes = _open(file), file, 0
        try:
            return self._handle.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{file}: no tensor {name!r}, where the index says it is: download both again") from error


def _open(file: pathlib.Path) -> Any:
    try:
        return safe_open(str(file), framework="np")
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is truncated or no safetensors file: {error}; "
            "download or export it again"
        ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check(reader: _Reader, wanted: dict[str, _Tensor], config: QwenConfig) -> None:
    """Raises ValueError, before anything is read, where the tensors are not those of the config."""
    where = reader.directory
    extra = [name for name in reader.files if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if config.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        _check_tied(reader)
    missing = [name for name in wanted if name not in reader.files]
    if missing:
        hint = ": set tie_word_embeddings in its config.json" if missing == ["lm_head.weight"] else ""
        raise ValueError(
            f"{where}: {len(missing)} tensors that config.json asks for are missing, {_some(missing)}{hint}"
        )
    if extra:
        raise ValueError(f"{where}: {len(extra)} tensors that its config.json does not know, {_some(sorted(extra))}")
    for name, tensor in wanted.items():
        shape, dtype = reader.header(name)
        if shape != tensor.shape:
            raise ValueError(
                f"{reader.files[name]}: tensor {name!r} has shape {shape}, config.json wants {tensor.shape}"
            )
        if dtype not in _DTYPES:
            raise ValueError(
                f"{reader.files[name]}: tensor {name!r} has dtype {dtype}, want one of {', '.join(_DTYPES)}: "
                "quantized checkpoints are not read"
            )


def _check_tied(reader: _Reader) -> None:
    """A checkpoint that says its embeddings are tied may hold both; they must be equal."""
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    shape, _ = reader.header(head)
    same_shape = shape == reader.header(table)[0]
    for start in range(0, shape[0], 4096):
        index = (slice(start, min(start + 4096, shape[0])), slice(None))
        if not same_shape or not np.array_equal(reader.read(head, index), reader.read(table, index)):
            raise ValueError(
                f"{reader.files[head]}: tensor {head!r} differs from {table!r}, but config.json says they are tied: "
                "set tie_word_embeddings to false there"
            )


def load_qwen(
    path: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    param_dtype: DType = "float32",
    **changes: Any,
) -> tuple[Params, QwenConfig]:
    """Reads a Hugging Face checkpoint directory (config.json and safetensors) onto the devices that keep it.

    Host memory stays below the largest tensor of the checkpoint; with several processes each reads its own parts.

    Args:
      mesh: where the parameters go; without one, the default device.
      dtype: of the computation (`config.dtype`).
      param_dtype: of the parameters, whatever the checkpoint's is.
      changes: further fields of the config to set, such as `remat`.

    Raises:
      FileNotFoundError: a file is missing, by name.
      ValueError: the architecture is not one of ours, a file is truncated, or a tensor is missing, unknown or has
        another shape than config.json says; tensor and file are named.
    """
    directory = pathlib.Path(path)
    config = config_from_hf(directory, dtype=dtype, **changes)
    tensors = _tensors(config)
    reader = _Reader(directory)
    _check(reader, {tensor.name: tensor for group in tensors.values() for tensor in group}, config)
    shapes = _flat(abstract_qwen(config, param_dtype=jnp.dtype(param_dtype))[0])
    shardings = None if mesh is None else _flat(qwen_shardings(config, mesh))
    flat = {
        path: _load_parameter(reader, group, shapes[path], mesh, None if shardings is None else shardings[path])
        for path, group in tensors.items()
    }
    return _nested(flat), config


def _load_parameter(
    reader: _Reader, group: list[_Tensor], target: jax.ShapeDtypeStruct, mesh: Mesh | None, sharding: Any
) -> jax.Array:
    """Reads the tensors of one stacked parameter, one after the other."""

    def on_device(tensor: _Tensor) -> jax.Array:
        read = functools.partial(reader.read, tensor.name)
        if mesh is None:
            return jnp.asarray(read(None))
        dtype = _DTYPES[reader.header(tensor.name)[1]]  # a process that keeps no part of it must know it too
        return jax.make_array_from_callback(tensor.shape, named_sharding(mesh, _hf_axes(tensor)), read, dtype=dtype)

    first = group[0]
    if not first.index:
        return _converter(first.part_shape, first.inputs, target.dtype, sharding)(on_device(first))
    insert = _inserter(first.part_shape, first.inputs, sharding)
    stack = jnp.zeros(target.shape, target.dtype, device=sharding)
    for tensor in group:
        stack = insert(stack, on_device(tensor), tuple(np.int32(i) for i in tensor.index))
        stack.block_until_ready()  # else the host reads ahead of the devices, and tensors pile up
    return stack


# Cached, so that a second checkpoint of the same shape compiles nothing.
@functools.cache
def _converter(part_shape: tuple[int, ...], inputs: int | None, dtype: Any, sharding: Any) -> Any:
    return jax.jit(lambda x: _from_hf(x, part_shape, inputs).astype(dtype), out_shardings=sharding)


@functools.cache
def _inserter(part_shape: tuple[int, ...], inputs: int | None, sharding: Any) -> Any:
    def insert(stack: jax.Array, x: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        part = _from_hf(x, part_shape, inputs).astype(stack.dtype)
        part = part.reshape((1,) * len(index) + part.shape)
        return jax.lax.dynamic_update_slice(stack, part, (*index, *([0] * len(part_shape))))

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _extractor(shape: tuple[int, ...], inputs: int | None, dtype: Any, sharding: Any) -> Any:
    def extract(stack: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        return _to_hf(stack[index] if index else stack, shape, inputs).astype(dtype)

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
      dtype: of the weights in the files.
      tokenizer: a transformers tokenizer, or the directory of one, saved along. Its end tokens, and those of the
        config, become `eos_token_id` of the generation config.
      max_shard_bytes: a file holds at most this much, or one tensor.
      overwrite: replace what `path` holds.

    Raises:
      FileExistsError: `path` is not empty and `overwrite` is not set.
      ValueError: a parameter does not have the shape that the config says.
    """
    directory = pathlib.Path(path)
    if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another path or set overwrite")
    shapes, flat = _flat(abstract_qwen(config)[0]), _flat(params)
    if set(shapes) != set(flat):
        raise ValueError(f"parameters are {sorted(flat)}, the config wants {sorted(shapes)}")
    for name, leaf in flat.items():
        if leaf.shape != shapes[name].shape:
            raise ValueError(f"parameter {name!r} has shape {leaf.shape}, the config wants {shapes[name].shape}")

    is_writer = jax.process_index() == 0
    temporary = directory.parent / f".{directory.name}.writing-{os.getpid()}"
    if is_writer:
        temporary.mkdir(parents=True, exist_ok=False)
    try:
        # Every process walks the same tensors, because gathering one takes all of them.
        ordered = [tensor for group in _tensors(config).values() for tensor in group]
        _write_shards(temporary if is_writer else None, ordered, flat, dtype, max_shard_bytes)
        if is_writer:
            eos = _end_token_ids(tokenizer, config)
            hf_config = config_to_hf(config, dtype=dtype) | ({"eos_token_id": eos[0]} if eos else {})
            _write_json(temporary / "config.json", hf_config)
            generation = {"eos_token_id": eos, "pad_token_id": eos[-1], "do_sample": True} if eos else {}
            _write_json(temporary / "generation_config.json", generation)
            _save_tokenizer(temporary, tokenizer)
            _move_into_place(temporary, directory)
    finally:
        if is_writer:
            shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_qwen {directory}")


def _gather(stack: jax.Array, tensor: _Tensor, dtype: DType) -> np.ndarray:
    """Brings one tensor to the host of every process, in the checkpoint's layout and dtype."""
    mesh = getattr(stack.sharding, "mesh", None)
    whole = None if mesh is None else replicated(mesh)
    extract = _extractor(tensor.shape, tensor.inputs, dtype, whole)
    return np.asarray(extract(stack, tuple(np.int32(i) for i in tensor.index)).addressable_data(0))


def _write_shards(
    directory: pathlib.Path | None,
    tensors: list[_Tensor],
    flat: dict[str, jax.Array],
    dtype: DType,
    max_shard_bytes: int,
) -> None:
    """Writes the tensors in files of at most `max_shard_bytes`, and the index where there are several."""
    itemsize = jnp.dtype(dtype).itemsize
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        size = itemsize * sum(math.prod(other.shape) for other in (*shards[-1], tensor))
        if shards[-1] and size > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = sorted(shard, key=lambda tensor: tensor.name)  # the order in which the safetensors library writes
        arrays = (_gather(flat[tensor.path], tensor, dtype) for tensor in shard)
        if directory is None:
            for _ in arrays:
                pass
        else:
            _write_safetensors(directory / name, shard, arrays, dtype)
            weight_map |= {tensor.name: name for tensor in shard}
    if directory is not None and len(shards) > 1:
        total = itemsize * sum(math.prod(tensor.shape) for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(directory / "model.safetensors.index.json", index)


def _write_safetensors(file: pathlib.Path, tensors: list[_Tensor], arrays: Iterator[np.ndarray], dtype: DType) -> None:
    """The bytes that `safetensors.numpy.save_file` would write, without holding all tensors of the file at once."""
    code = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * jnp.dtype(dtype).itemsize
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


def _end_token_ids(tokenizer: Any, config: QwenConfig) -> list[int]:
    """Ids at which generation ends: the tokenizer's own end first, then the config's, then Qwen's usual ones."""
    found: list[int] = []
    if isinstance(tokenizer, (str, os.PathLike)):
        file = pathlib.Path(tokenizer) / "tokenizer.json"
        added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens", []) if file.is_file() else []
        ids = {token["content"]: token["id"] for token in added}
    else:
        if getattr(tokenizer, "eos_token_id", None) is not None:
            found.append(tokenizer.eos_token_id)
        ids = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    found += [*config.eos_token_ids, *(ids[token] for token in _END_TOKENS if token in ids)]
    return list(dict.fromkeys(found))


def _save_tokenizer(directory: pathlib.Path, tokenizer: Any) -> None:
    if isinstance(tokenizer, (str, os.PathLike)):
        present = [pathlib.Path(tokenizer) / name for name in _TOKENIZER_FILES]
        present = [file for file in present if file.is_file()]
        if not present:
            raise FileNotFoundError(f"no tokenizer in {tokenizer}: want its directory, with tokenizer.json")
        for file in present:
            shutil.copy(file, directory)
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(directory))


def _move_into_place(temporary: pathlib.Path, directory: pathlib.Path) -> None:
    """Renames the finished directory; an old one is moved aside first, so no moment has a mixture of both."""
    old = directory.parent / f".{directory.name}.old-{os.getpid()}"
    if directory.exists():
        os.rename(directory, old)
    os.rename(temporary, directory)
    if old.is_dir():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()
