"""Hugging Face checkpoints in: sharded safetensors, without torch, one tensor at a time.

Each tensor is read (only the part that this process keeps), put on the devices in the checkpoint's dtype and layout,
and transposed, converted and written into its layer of the stacked array there.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError

from sspo_jax.models.attention import Implementation
from sspo_jax.models.configs import QwenConfig, QwenModel, config_from_hf
from sspo_jax.models.hf.files import file_of_each_tensor, open_weights
from sspo_jax.models.hf.layout import DType, HfTensor, flatten, from_hf, hf_axes, hf_tensors, nest
from sspo_jax.models.qwen import Params, abstract_qwen, qwen_shardings
from sspo_jax.sharding import named_sharding

_DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NOT_TEXT = ("model.visual.", "mtp.")  # images; the prediction of further tokens
_FUSED_EXPERTS = {".experts.gate_up_proj": ("gate_proj", "up_proj"), ".experts.down_proj": ("down_proj",)}
"""Tensors of all experts of a layer, by how their names end; what each expert has in them, one after the other."""
_MAX_MAPPED_BYTES = 2**28  # read through one mapping of a file before it is dropped: mapped pages count as our memory


@dataclasses.dataclass(frozen=True)
class _OfExpert:
    """A matrix of one expert in a tensor [experts, outputs, inputs] of all experts of a layer."""

    tensor: str
    expert: int
    rows: range  # of the outputs


class _Reader:
    """Parts of named tensors in the safetensors files of a directory.

    Where the experts of a layer are in one tensor (`experts.gate_up_proj`, `experts.down_proj`), their matrices have
    the names that they have in a file of their own.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        found = file_of_each_tensor(directory)
        self.names = {_text_name(name): name for name in found}
        self.files = {_text_name(name): file for name, file in found.items()}
        self._open_file: pathlib.Path | None = None
        self._handle: Any = None
        self._mapped_bytes = 0
        self._experts: dict[str, _OfExpert] = {}
        for name in [name for name in self.files if name.endswith(tuple(_FUSED_EXPERTS))]:
            self._split_experts(name)

    def _split_experts(self, fused: str) -> None:
        layer, _, last = fused.rpartition(".")
        shape, _ = self.header(fused)
        parts = _FUSED_EXPERTS[f".experts.{last}"]
        if len(shape) != 3 or shape[1] % len(parts):
            return  # not of the kind that this model knows: it stays what it is, an unknown tensor
        file, rows = self.files.pop(fused), shape[1] // len(parts)
        for expert, (place, part) in itertools.product(range(shape[0]), enumerate(parts)):
            name = f"{layer}.{expert}.{part}.weight"
            self.files[name] = file
            self._experts[name] = _OfExpert(fused, expert, range(place * rows, (place + 1) * rows))

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, without reading it."""
        if (one := self._experts.get(name)) is not None:
            part = self._slice(one.tensor, self.files[name])
            return (len(one.rows), part.get_shape()[2]), part.get_dtype()
        part = self._slice(name, self.files[name])
        return tuple(part.get_shape()), part.get_dtype()

    def read(self, name: str, index: tuple[slice, ...] | None) -> np.ndarray:
        """This part of the tensor (None: all of it), in the file's dtype."""
        index = index or (slice(None),) * len(self.header(name)[0])
        if (one := self._experts.get(name)) is not None:
            rows = one.rows[index[0]]
            here = one.expert, slice(rows.start, rows.stop), index[1]
            part = np.ascontiguousarray(self._slice(one.tensor, self.files[name])[here])
        else:
            part = np.ascontiguousarray(self._slice(name, self.files[name])[index])
        self._mapped_bytes += part.nbytes
        if self._mapped_bytes > _MAX_MAPPED_BYTES:
            self._handle, self._open_file, self._mapped_bytes = None, None, 0
        return part

    def _slice(self, name: str, file: pathlib.Path) -> Any:
        if file != self._open_file:
            self._handle, self._open_file, self._mapped_bytes = open_weights(file), file, 0
        try:
            return self._handle.get_slice(self.names[name])
        except SafetensorError as error:
            raise ValueError(f"{file}: no tensor {name!r}, where the index says it is: download both again") from error


def _text_name(name: str) -> str:
    """The name that a tensor of a model that also sees images has in the model of its text part."""
    return name.replace("model.language_model.", "model.", 1) if name.startswith("model.language_model.") else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check(reader: _Reader, wanted: dict[str, HfTensor], config: QwenConfig) -> None:
    """Raises ValueError, before anything is read, where the tensors are not those of the config."""
    where = reader.directory
    extra = [name for name in reader.files if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if config.is_hybrid and (ignored := [name for name in extra if name.startswith(_NOT_TEXT)]):
        extra = [name for name in extra if name not in ignored]
        kinds = sorted({next(start for start in _NOT_TEXT if name.startswith(start)) + "*" for name in ignored})
        warnings.warn(
            f"{where}: the text part alone is read; {len(ignored)} other tensors ({', '.join(kinds)}) are left out, "
            "and an export will not have them",
            stacklevel=3,
        )
    if config.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        _check_tied(reader)
    missing = [name for name in wanted if name not in reader.files]
    if missing:
        hint = ": set tie_word_embeddings in its config.json" if missing == ["lm_head.weight"] else ""
        hint = hint or _renamed(extra, missing)
        raise ValueError(
            f"{where}: {len(missing)} tensors that config.json asks for are missing, {_some(missing)}{hint}"
        )
    if extra:
        raise ValueError(f"{where}: {len(extra)} tensors that its config.json does not know, {_some(sorted(extra))}")
    for name, tensor in wanted.items():
        shape, dtype = reader.header(name)
        if shape != tensor.shape:
            raise ValueError(
                f"{reader.files[name]}: tensor {name!r} has shape {shape}, config.json expects {tensor.shape}"
            )
        if dtype not in _DTYPES:
            hint = "quantized checkpoints are not read"
            if dtype == "F64":
                hint = "save it again as float32 (model.float().save_pretrained)"
            raise ValueError(
                f"{reader.files[name]}: tensor {name!r} has dtype {dtype}, expected one of {', '.join(_DTYPES)}: {hint}"
            )


def _renamed(extra: list[str], missing: list[str]) -> str:
    """What to do where the missing tensors are there under names with something before them, or without a part."""
    for name in extra:
        longer = [name.removesuffix(other) for other in missing if name.endswith("." + other)]
        if longer:
            return (
                f": the names there begin with {longer[0]!r}, as those of a wrapped model do; save the model inside it "
                "(torch.compile: model._orig_mod, DDP: model.module, PEFT: merge_and_unload)"
            )
        shorter = [other.removesuffix(name) for other in missing if other.endswith("." + name)]
        if shorter:
            return (
                f": the names there lack {shorter[0]!r}, as those of the model without its output layer do; save it "
                "as AutoModelForCausalLM"
            )
    return ""


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
    remat: Literal["none", "full", "dots"] = "none",
    attention: Implementation = "auto",
    each: Callable[[str, jax.Array], Any] | None = None,
) -> tuple[Params, QwenModel]:
    """Reads a Hugging Face checkpoint directory (config.json and safetensors) onto the devices that keep it.

    Host memory stays below the largest tensor of the checkpoint; with several processes each reads its own parts.

    Args:
      mesh: where the parameters go; without one, the default device.
      dtype, remat, attention: of the computation; see `ComputeConfig`. The config that is returned carries them.
      param_dtype: of the parameters, whatever the checkpoint's is.
      each: what is kept of each parameter, of its dotted name and its array; called before the next one is read.

    Raises:
      FileNotFoundError: a file is missing, by name.
      ValueError: the architecture is not one of ours, a file is truncated, or a tensor is missing, unknown or has
        another shape than config.json says; tensor and file are named.
    """
    directory = pathlib.Path(path)
    config = config_from_hf(directory).computed(dtype=dtype, remat=remat, attention=attention)
    tensors = hf_tensors(config)
    reader = _Reader(directory)
    _check(reader, {tensor.name: tensor for group in tensors.values() for tensor in group}, config)
    shapes = flatten(abstract_qwen(config, param_dtype=jnp.dtype(param_dtype))[0])
    shardings = None if mesh is None else flatten(qwen_shardings(config, mesh))
    flat: dict[str, Any] = {}
    for path, group in tensors.items():
        loaded = _load_parameter(reader, group, shapes[path], mesh, None if shardings is None else shardings[path])
        flat[path] = loaded if each is None else each(path, loaded)
        del loaded
    return nest(flat), config


def _load_parameter(
    reader: _Reader, group: list[HfTensor], target: jax.ShapeDtypeStruct, mesh: Mesh | None, sharding: Any
) -> jax.Array:
    """Reads the tensors of one stacked parameter, one after the other."""

    def on_device(tensor: HfTensor) -> jax.Array:
        read = functools.partial(reader.read, tensor.name)
        if mesh is None:
            return jnp.asarray(read(None))
        dtype = _DTYPES[reader.header(tensor.name)[1]]  # a process that keeps no part of it must know it too
        return jax.make_array_from_callback(tensor.shape, named_sharding(mesh, hf_axes(tensor)), read, dtype=dtype)

    first = group[0]
    if not first.index:
        return _converter(first.part_shape, first.inputs, first.parts, target.dtype, sharding)(on_device(first))
    insert = _inserter(first.part_shape, first.inputs, first.parts, sharding)
    stack = jnp.zeros(target.shape, target.dtype, device=sharding)
    for tensor in group:
        stack = insert(stack, on_device(tensor), tuple(np.int32(i) for i in tensor.index))
        stack.block_until_ready()  # else the host reads ahead of the devices, and tensors pile up
    return stack


# Cached, so that a second checkpoint of the same shape compiles nothing.
@functools.cache
def _converter(
    part_shape: tuple[int, ...], inputs: int | None, parts: tuple[int, ...], dtype: Any, sharding: Any
) -> Any:
    return jax.jit(lambda x: from_hf(x, part_shape, inputs, parts).astype(dtype), out_shardings=sharding)


@functools.cache
def _inserter(part_shape: tuple[int, ...], inputs: int | None, parts: tuple[int, ...], sharding: Any) -> Any:
    def insert(stack: jax.Array, x: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        part = from_hf(x, part_shape, inputs, parts).astype(stack.dtype)
        part = part.reshape((1,) * len(index) + part.shape)
        return jax.lax.dynamic_update_slice(stack, part, (*index, *([0] * len(part_shape))))

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)
