"""The device mesh and the one place that spells its axes.

Model and trainer name *logical* axes ("embed", "heads", "batch", ...); `RULES` maps them to the mesh axes:

- `data`: rows of the batch; parameters are replicated;
- `fsdp`: rows of the batch, and parameters sharded along their embedding axis (ZeRO-3);
- `context`: the time axis of training rows, and parameters sharded like those of `fsdp`;
- `tensor`: attention heads, the inner axis of the MLP, the vocabulary (Megatron);
- `expert`: the experts of a mixture-of-experts layer.

Axes are of type Auto: the compiler propagates shardings from the annotations given here.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sspo_jax.ranges import FileOnly, Range

Shards = Annotated[int, Range(1, besides=(-1,))]
MESH_AXES = ("data", "fsdp", "context", "tensor", "expert")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "time": "context",
    "tokens": ("data", "fsdp", "expert", "context"),  # rows and time in one
    "layers": None,
    "vocab": "tensor",
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "heads_of_all_time": ("tensor", "context"),  # where a layer needs a sequence whole
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "activation_embed": None,
    "embed_on_its_way": "context",  # from the shards of a parameter to whole embeddings, one mesh axis at a time
}
GPU = ("gpu", "cuda")
"""What `platform` says of an NVIDIA GPU: the first by default, the second of a mesh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (on one axis at most) takes what the others leave."""

    data: Shards = 1
    """Replicas of the parameters; each computes its own rows of the batch. 1 on several slices of TPUs: one in each."""
    fsdp: Shards = -1
    """Shards of parameters, gradients and optimizer state; each computes its own rows of the batch."""
    context: Shards = 1
    """Shards of a training row, for rows too long for one device: each computes its own tokens, which attend to the
    keys and values of all. Parameters are sharded along it as along `fsdp`."""
    tensor: Shards = 1
    """Shards of heads, MLP and vocabulary inside one layer."""
    expert: Shards = 1
    """Shards of the experts of a mixture-of-experts model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutMeshConfig(MeshConfig):
    """Devices along each mesh axis while sampling; -1 (on one axis at most) takes what the others leave."""

    data: Shards = -1
    """Groups of devices that hold all weights between them and decode slots of their own."""
    fsdp: Shards = 1
    """Shards of the weights that every decoding step gathers over the interconnect; 1 leaves them in place."""
    context: FileOnly[Annotated[int, Range(1, 1)]] = 1
    """Always 1: a step of decoding has one token of each slot."""
    tensor: Shards = 1
    """Devices that cut heads, MLP and vocabulary between them."""
    expert: Shards = 1
    """Devices that cut the experts of a mixture-of-experts model between them."""


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices (or those given).

    The links between slices of TPUs are slow, so only `data` goes over them, whose replicas exchange gradients alone; a
    `data` of 1 stands for one replica in each slice.

    Raises:
      ValueError: the axis sizes do not multiply to the number of devices, or slices would share a replica.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(devices)
    if len(slices) > 1:
        config = dataclasses.replace(config, data=len(slices) if config.data == 1 else config.data)
    shape = _axis_sizes(config, len(devices), option="--mesh")
    types = (AxisType.Auto,) * len(MESH_AXES)
    if len(slices) > 1:
        return Mesh(_over_slices(shape, slices), MESH_AXES, axis_types=types)
    if len(devices) == len(jax.devices()):  # lets JAX order the devices along the interconnect
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=types)


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice of TPUs, where they say which; all others are one."""
    if devices[0].platform != "tpu":
        return [list(devices)]
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [found[index] for index in sorted(found)]


def _over_slices(shape: list[int], slices: list[list[Any]]) -> np.ndarray:
    """The devices of a mesh whose first axis, `data`, goes through the slices one after the other."""
    sizes, replicas = [len(devices) for devices in slices], shape[0]
    if len({*sizes}) > 1 or replicas % len(slices):
        raise ValueError(
            f"--mesh.data is {replicas} on {len(slices)} slices of {', '.join(map(str, sizes))} devices; expected "
            "slices of one size and a multiple of their number, so that no replica goes over the links between them"
        )
    inner = (replicas // len(slices), *shape[1:])
    parts = [mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True) for part in slices]
    return np.concatenate(parts)


def rearranged(mesh: Mesh, config: MeshConfig) -> Mesh:
    """The devices of a mesh, in their order, along axes of other sizes.

    Arrays can then go from one to the other inside a program; with another order of the devices they could not.

    Raises:
      ValueError: the axis sizes do not multiply to the number of devices.
    """
    shape = _axis_sizes(config, mesh.size, option="--rollout.mesh")
    if shape == list(mesh.devices.shape):
        return mesh
    return Mesh(mesh.devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def layouts_in_place(devices: int, *, has_experts: bool) -> list[RolloutMeshConfig]:
    """Layouts that leave each weight where it lies, those that cut the weights between fewest devices first."""
    parts = [size for size in range(1, devices + 1) if devices % size == 0]
    pairs = [
        (experts, tensor)
        for experts in (parts if has_experts else [1])
        for tensor in parts
        if devices % (experts * tensor) == 0
    ]
    pairs.sort(key=lambda pair: (math.prod(pair), pair[1]))
    return [RolloutMeshConfig(tensor=tensor, expert=experts) for experts, tensor in pairs]


def cut_alike(one: Mesh, other: Mesh) -> bool:
    """Whether two meshes cut a layer alike between its heads and experts, and differ at most in replicas and shards."""
    return all(one.shape[axis] == other.shape[axis] for axis in ("tensor", "expert"))


def axes_of(mesh: Mesh) -> dict[str, int]:
    """The axes of a mesh that have more than one device, with their sizes."""
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


def _axis_sizes(config: MeshConfig, devices: int, *, option: str) -> list[int]:
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    given = dict(zip(MESH_AXES, sizes, strict=True))
    name = option.removeprefix("--")
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"{name} is {given}: sizes are positive, and -1 stands on one axis at most")
    known = math.prod(size for size in sizes if size != -1)
    if devices % known or (-1 not in sizes and known != devices):
        raise ValueError(
            f"{name} {given} needs {'a multiple of ' if -1 in sizes else ''}{known} devices, there are {devices}: "
            f"change {option}.data, {option}.fsdp, {option}.context or {option}.tensor"
        )
    return [devices // known if size == -1 else size for size in sizes]


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names (None: not sharded)."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in logical_axes))


def named_sharding(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    """How an array with these logical axes lies on the mesh."""
    return NamedSharding(mesh, partition_spec(logical_axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """A host array that every process holds, as one array over the mesh; a process sends its own parts only."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree: Any) -> Any:
    """NumPy arrays of whole arrays, on every process; all processes call it together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return x
    assert isinstance(x.sharding, NamedSharding)
    return _gatherer(x.sharding.mesh)(x)


@functools.cache
def _gatherer(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Tells the compiler how an intermediate lies on the mesh of `jax.set_mesh`; without one, nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes))


def after(flags: jax.Array, *others: Any) -> jax.Array:
    """The bools `flags`, known to the compiler only when all arrays of `others` are.

    Several processes on CPU need it between control flow and collectives that do not depend on it: there the runtime
    orders collectives by when they may start, and one inside a loop or branch may still be under way on one process
    when it is over on another, which mixes up their messages. Elsewhere the flags are returned as they are.
    """
    if jax.process_count() == 1 or platform() != "cpu":
        return flags
    counts = [jnp.sum(jnp.isnan(leaf), dtype=jnp.int32) for leaf in jax.tree.leaves(others)]
    return flags & (sum(counts, jnp.int32(0)) >= 0)


def platform() -> str:
    """What the program being traced is compiled for: that of the mesh of `jax.set_mesh`, else the default device's.

    The mesh may be of a machine that this one is not: `sspo plan` compiles for TPUs on a CPU host.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def is_one_cpu() -> bool:
    """Whether the program being traced is for a single CPU device, where some things pay that do not elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def shards(logical_axis: str, mesh: Mesh | None = None) -> int:
    """Into how many parts a mesh, by default that of `jax.set_mesh`, cuts a logical axis; 1 without a mesh."""
    chosen = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    axes = RULES[logical_axis]
    if chosen.empty or axes is None:
        return 1
    return math.prod(chosen.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes))


def part_of(logical_axis: str) -> jax.Array | int:
    """Which of its parts this device has, inside `jax.shard_map`; 0 where the axis is not cut."""
    axes = RULES[logical_axis]
    return 0 if axes is None or shards(logical_axis) == 1 else jax.lax.axis_index(axes)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    axes = RULES["batch"]
    assert isinstance(axes, tuple)
    return math.prod(mesh.shape[axis] for axis in axes)


def bytes_per_device(tree: Any) -> int:
    """What the arrays of a tree, or their shapes, take on one device; those without a sharding are whole on each."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, bool):
            total += 1
            continue
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def check_rows(mesh: Mesh, micro_rows: int, row_tokens: int) -> None:
    """Raises ValueError where the mesh does not divide the rows of a micro-batch, or a row."""
    if micro_rows % batch_shards(mesh):
        raise ValueError(
            f"--update.micro-rows is {micro_rows}; expected a multiple of the {batch_shards(mesh)} shards of the batch"
        )
    if row_tokens % shards("time", mesh):
        raise ValueError(
            f"a training row has {row_tokens} tokens; expected a multiple of --mesh.context = {shards('time', mesh)}: "
            "set --update.row-tokens"
        )


def check_divides(mesh: Mesh, shapes: Any, logical_axes: Any, *, option: str = "--mesh") -> None:
    """Raises ValueError, naming the parameter, where an axis is not divisible by its shards.

    Args:
      option: that sets the mesh.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    axes = jax.tree.leaves(logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for (path, leaf), names in zip(flat, axes, strict=True):
        for size, name in zip(leaf.shape, names, strict=True):
            mesh_axes = RULES[name] if name else None
            if mesh_axes is None:
                continue
            parts = math.prod(mesh.shape[axis] for axis in ([mesh_axes] if isinstance(mesh_axes, str) else mesh_axes))
            if size % parts:
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path)} has {size} along {name!r}, which mesh axis {mesh_axes!r} "
                    f"of size {parts} does not divide: choose a size that does ({option}.{mesh_axes})"
                )
