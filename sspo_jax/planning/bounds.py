"""What arithmetic and memory allow at most: model FLOPs of a step, and the rate of decoding."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from sspo_jax.config import RolloutConfig
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.planning.chips import GIB
from sspo_jax.runs.roofline import Chip, model_flops, weight_bytes
from sspo_jax.sampler.kv_cache import cache_bytes, delta_state_bytes, layer_column_bytes
from sspo_jax.sampler.layout import DecodingLayout
from sspo_jax.sharding import axes_of, batch_shards, shards

HELD = 0.2
"""Part of the cache's columns that samples hold where lengths are log-normal up to 3,072 tokens."""


def step_flops(
    model: QwenConfig, rollout: RolloutConfig, *, epochs: int, has_reference: bool, lora: LoraConfig | None
) -> float:
    """Model FLOPs of a step whose responses are all at full length.

    Every token passes forward when it is sampled and when it is scored (twice with a reference policy), and each epoch
    forward and backward. A backward pass is two forward passes' worth, one for the gradients of activations and one
    for those of the weights; with LoRA the second is of the adapters alone, which the sampler has folded in.
    """
    length = rollout.max_prompt_tokens + rollout.max_new_tokens
    tokens = length * rollout.prompts * rollout.group_size
    forward, scorings = model_flops(model, length), 2 if has_reference else 1
    if lora is None:
        return tokens * forward * (1 + scorings + 3 * epochs)
    adapters = 2.0 * count(Trainable(model, lora).abstract())
    return tokens * (forward * (1 + scorings + 2 * epochs) + adapters * (scorings + 3 * epochs))


def figures(
    flops: float, samples: int, model: QwenConfig, chip: Chip, mesh: Mesh, *, slots: int, columns: int
) -> list[str]:
    """Model FLOPs of a step, and what bounds decoding.

    Args:
      flops: of a step, by `step_flops`.
      samples: responses of a step.
      mesh: of decoding.
      slots, columns: of the cache.
    """
    seconds = flops / (mesh.size * chip.peak_tflops * 1e12)
    return [
        f"model FLOPs of a step, {samples} responses at full length: {flops / 1e15:.3g} PFLOP, at the chips' peak "
        f"{seconds:.3g} s",
        decode_bound(model, chip, mesh, slots=slots, columns=columns),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingStep:
    """What one device does in one decoding step of all slots, at least."""

    memory: float
    """Bytes read: weights and cache; and states of the gated delta rule, read and written."""
    gathered: float
    """Bytes of weights received over links, which may go on while something else is computed."""
    exchanged: float
    """Bytes of activations received over links, for which the computation waits; their latency is not counted."""
    flops: float

    def seconds(self, chip: Chip) -> float:
        """How long it takes at least; links count where their bandwidth is known."""
        links = float("inf") if chip.link_gb is None else chip.link_gb * 1e9
        busy = max(self.memory / (chip.bandwidth_gb * 1e9), self.flops / (chip.peak_tflops * 1e12))
        return max(busy, self.gathered / links) + self.exchanged / links


def decoding_step(model: QwenConfig, mesh: Mesh, *, slots: int, columns: int, held: float = 1.0) -> DecodingStep:
    """One step on a mesh.

    Args:
      mesh: of decoding.
      slots, columns: of the cache.
      held: the part of the columns that the samples hold: all that attention reads.
    """
    width = jnp.dtype(model.compute.dtype).itemsize
    copies = batch_shards(mesh) // shards("experts", mesh)  # devices that cut the weights between them read one
    dtype = model.compute.dtype
    read = model.attended(columns * held, last=True) * layer_column_bytes(model, dtype)
    cache = slots * (read + 2 * delta_state_bytes(model, dtype))
    weights = weight_bytes(model) * copies / mesh.size
    fsdp, tensor, experts = shards("embed", mesh), shards("heads", mesh), shards("experts", mesh)
    rows, row = slots / batch_shards(mesh), model.hidden_size * width
    # Of each layer two sums over the devices that cut it, and the logits once, in float32; the rows of the other
    # devices go to where the experts are, and come back.
    sums = 2 * model.num_layers * 2 * (tensor - 1) / tensor * rows * row
    logits = (tensor - 1) / tensor * rows * model.vocab_size * 4
    moved = 2 * len(model.expert_layers) * (experts - 1) * rows * row
    return DecodingStep(
        memory=weights + cache / mesh.size,
        gathered=weights * (fsdp - 1) / fsdp,
        exchanged=sums + logits + moved,
        flops=model_flops(model, round(columns * held), last=True) * slots / mesh.size,
    )


def decode_bound(model: QwenConfig, chip: Chip, mesh: Mesh, *, slots: int, columns: int) -> str:
    """What memory, links and arithmetic allow at most: every step reads all weights and the whole cache once.

    Of the cache of a layer with a window, what is inside.
    """
    cache = cache_bytes(model, slots, columns, model.compute.dtype)
    kept = slots * delta_state_bytes(model, model.compute.dtype) / mesh.size / GIB
    states = f", {kept:.2f} of it states of the gated delta rule" if kept else ""
    step = decoding_step(model, mesh, slots=slots, columns=columns)
    times = {"memory": step.memory / (chip.bandwidth_gb * 1e9), "compute": step.flops / (chip.peak_tflops * 1e12)}
    if chip.link_gb is not None:
        times["link"] = step.gathered / (chip.link_gb * 1e9)
    bound = max(times, key=lambda name: times[name])
    return (
        f"decoding {slots} slots x {columns} columns: KV cache {cache / mesh.size / GIB:.2f} GiB a chip{states}, "
        f"intensity {step.flops / step.memory:.0f} FLOP/byte where the chip balances at "
        f"{chip.peak_tflops * 1e3 / chip.bandwidth_gb:.0f}: {bound}-bound, at most "
        f"{slots / step.seconds(chip):,.0f} tokens/s with a full cache"
    )


def compare_layouts(
    layouts: Sequence[DecodingLayout], chosen: Mesh, model: QwenConfig, chip: Chip, *, columns: int
) -> list[str]:
    """A table of layouts: what a chip holds, what it reads and receives in a step, and the rate that allows at most.

    Args:
      chosen: mesh that the run decodes on.
      columns: of the cache at its longest.
    """
    lines = [
        "layouts for decoding, a chip: GiB held, MB a step read from memory with a full cache and over links, and "
        f"tokens/s at most, with a full cache and with {HELD:.0%} of its columns held"
    ]
    for layout in layouts:
        mesh, slots = layout.mesh, layout.slots
        full, part = (decoding_step(model, mesh, slots=slots, columns=columns, held=held) for held in (1.0, HELD))
        held = (layout.weights + layout.cache + layout.training) / GIB
        links = "unknown" if chip.link_gb is None else f"{(full.gathered + full.exchanged) / 1e6:,.0f}"
        lines.append(
            f"  {_words(mesh):<20} {held:6.2f} of {layout.memory / GIB:.4g}{'' if layout.fits else ', too much':<10} "
            f"memory {full.memory / 1e6:8,.0f}  links {links:>7}  {slots / full.seconds(chip):10,.0f} "
            f"{slots / part.seconds(chip):10,.0f}{'  recommended' if mesh == chosen else ''}"
        )
    return lines


def _words(mesh: Mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in axes_of(mesh).items()) or "one device"
