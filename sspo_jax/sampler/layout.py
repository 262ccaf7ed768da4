"""How the devices are laid out for decoding, which need not be how they are laid out for training.

A decoding step reads every weight once and computes little with it. Where the weights are cut as training cuts them
(`fsdp`), each step gathers all of them over the interconnect; where every device holds them whole, it reads its own
memory, which is ten times as fast. So the weights are cut between as few devices as they need to fit, beside the
state of training and the cache, and the slots are spread over the rest.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import abstract_qwen, qwen_shardings
from sspo_jax.sampler.kv_cache import cache_bytes
from sspo_jax.sampler.schedule import cache_columns, has_one_shape, slots_for
from sspo_jax.sharding import (
    RolloutMeshConfig,
    axes_of,
    batch_shards,
    bytes_per_device,
    layouts_in_place,
    rearranged,
    shards,
)

GIB = 2**30
UNKNOWN_GIB = 4.0
"""Memory that a device counts as having where nobody says how much it has: a CPU's devices share its memory."""
_USABLE = 0.95  # of the memory: logits, prefilled prompts and what the allocator cannot use take the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """What one call of the sampler is to hold: the longest and the most of it that a run asks for."""

    samples: int
    """Responses of a call."""
    slots: int | None
    """Decoded at once, at most; None: as `Sampler` has it by default."""
    prompt_tokens: int
    """Of the longest prompt."""
    new_tokens: int
    """Of the longest response."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingLayout:
    """A mesh for decoding, and what its devices then hold, in bytes each."""

    mesh: Mesh
    weights: int
    """In the dtype of the computation."""
    cache: int
    """At its largest: while it grows to its full length, both sizes are held."""
    training: int
    """What training keeps there meanwhile: parameters, optimizer, frozen weights."""
    memory: float
    """Of a device."""
    slots: int
    """Decoded at once, on all devices together."""
    reason: str
    """Why this one, in words."""

    @property
    def fits(self) -> bool:
        """Whether all of it is in the memory at once, with some left for what a step computes."""
        return self.weights + self.cache + self.training <= _USABLE * self.memory

    def describe(self) -> str:
        """One line for the table that a run prints before it starts."""
        mesh, gathered = self.mesh, shards("embed", self.mesh)
        copies = batch_shards(mesh) // shards("experts", mesh) // gathered
        if mesh.size == 1:
            return "on one device"
        where = "whole on every device" if copies == mesh.size else f"cut between {mesh.size // copies} devices each"
        if copies == 1:
            where = f"cut between all {mesh.size} devices"
        if gathered > 1:
            where += ", gathered again at every step"
        return (
            f"mesh {axes_of(mesh)}: weights {where}; {self.slots} slots over {batch_shards(mesh)}; a device holds "
            f"{self.weights / GIB:.3g} GiB of weights, {self.cache / GIB:.3g} of cache, {self.training / GIB:.3g} of "
            f"training, of {self.memory / GIB:.4g}; {self.reason}"
        )


def decoding_layout(
    given: RolloutMeshConfig | None,
    model: QwenConfig,
    mesh: Mesh,
    demand: Demand,
    *,
    training: int = 0,
    memory: float | None = None,
) -> DecodingLayout:
    """The layout that was asked for, else the one that cuts the weights between fewest devices and fits.

    Args:
      given: by the user.
      mesh: of training, or of all devices.
      training: bytes that training keeps on a device.
      memory: of a device, in bytes; None: not known, then it counts as `UNKNOWN_GIB`.

    Raises:
      ValueError: the sizes of `given` do not multiply to the number of devices, or do not divide the model.
    """
    stated = "" if memory is not None else f", counting {UNKNOWN_GIB:g} GiB a device, whose memory is not known"

    def layout(config: RolloutMeshConfig | None, reason: str) -> DecodingLayout:
        chosen = mesh if config is None else rearranged(mesh, config)
        return measured(model, chosen, demand, training=training, memory=memory, reason=reason)

    if given is not None:
        return layout(given, "as given")
    if mesh.size == 1:
        return layout(None, "one device")
    for config in layouts_in_place(mesh.size, has_experts=bool(model.num_experts)):
        try:
            found = layout(config, f"the fewest devices that hold them{stated}")
        except ValueError:
            continue  # it does not divide the model
        if found.fits:
            return found
    return layout(None, f"as for training: no other one fits, fewer --rollout.slots leave room{stated}")


def possible_layouts(
    model: QwenConfig, mesh: Mesh, demand: Demand, *, training: int, memory: float | None
) -> list[DecodingLayout]:
    """That of training, and those that leave the weights in place and divide the model; see `decoding_layout`."""
    settings: dict[str, Any] = {"training": training, "memory": memory, "reason": ""}
    found = [measured(model, mesh, demand, **settings)]
    for config in layouts_in_place(mesh.size, has_experts=bool(model.num_experts)):
        other = rearranged(mesh, config)
        if other == mesh:
            continue
        with contextlib.suppress(ValueError):  # it does not divide the model
            found.append(measured(model, other, demand, **settings))
    return found


def measured(
    model: QwenConfig, mesh: Mesh, demand: Demand, *, training: int, memory: float | None, reason: str
) -> DecodingLayout:
    """What the devices hold where this mesh decodes. Raises ValueError where it does not divide the model."""
    slots = slots_for(demand.samples, limit=demand.slots, mesh=mesh)
    return DecodingLayout(
        mesh=mesh,
        weights=weight_bytes_of(model, mesh),
        cache=widest_cache(model, demand, slots, mesh),
        training=training,
        memory=UNKNOWN_GIB * GIB if memory is None else memory,
        slots=slots,
        reason=reason,
    )


def weight_bytes_of(model: QwenConfig, mesh: Mesh) -> int:
    """Bytes of the weights on a device, in the dtype of the computation.

    Raises:
      ValueError: the mesh does not divide the model.
    """
    shapes, _ = abstract_qwen(model, param_dtype=model.compute.dtype)
    shardings = qwen_shardings(model, mesh, option="--rollout.mesh")
    return bytes_per_device(
        jax.tree.map(lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes, shardings)
    )


def widest_cache(model: QwenConfig, demand: Demand, slots: int, mesh: Mesh) -> int:
    """Bytes of the cache on a device at the moment when it is largest: if it grows, before and after the last time."""
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    sizes = functools.partial(cache_columns, demand.prompt_tokens, demand.new_tokens, on_cpu=is_cpu)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        is_one = has_one_shape(model, slots, sizes(count=1)[0], model.compute.dtype)
    columns = sizes(count=1 if is_one else None)
    held = sum(cache_bytes(model, slots, count, model.compute.dtype) for count in columns[-2:])
    return held // batch_shards(mesh) // shards("kv_heads", mesh)
