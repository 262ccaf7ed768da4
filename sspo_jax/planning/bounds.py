"""What arithmetic and memory allow at most: model FLOPs of a step, and the rate of decoding."""

from jax.sharding import Mesh

from sspo_jax.config import RolloutConfig
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.planning.chips import GIB
from sspo_jax.runs.roofline import Chip, model_flops, weight_bytes
from sspo_jax.sampler.kv_cache import cache_bytes
from sspo_jax.sharding import batch_shards, shards


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
      slots, columns: of the cache.
    """
    seconds = flops / (mesh.size * chip.peak_tflops * 1e12)
    lines = [
        f"model FLOPs of a step, {samples} responses at full length: {flops / 1e15:.3g} PFLOP, at the chips' peak "
        f"{seconds:.3g} s",
        decode_bound(model, chip, mesh, slots=slots, columns=columns),
    ]
    if shards("embed", mesh) > 1:
        lines.append(
            "with fsdp each decoding step gathers the weights over the interconnect: the rate will be lower; "
            "--mesh.tensor keeps them in place"
        )
    return lines


def decode_bound(model: QwenConfig, chip: Chip, mesh: Mesh, *, slots: int, columns: int) -> str:
    """What memory and arithmetic allow at most: every step reads all weights and the whole cache once."""
    cache = cache_bytes(model, slots, columns, model.compute.dtype)
    copies = batch_shards(mesh) // shards("experts", mesh)  # devices that cut the weights between them read one
    read = weight_bytes(model) * copies + cache
    flops = model_flops(model, 2 * columns) * slots  # a step attends to all columns, not to half of them on average
    memory, compute = read / (chip.bandwidth_gb * 1e9), flops / (chip.peak_tflops * 1e12)
    return (
        f"decoding {slots} slots x {columns} columns: KV cache {cache / mesh.size / GIB:.2f} GiB a chip, intensity "
        f"{flops / read:.0f} FLOP/byte where the chip balances at {chip.peak_tflops * 1e3 / chip.bandwidth_gb:.0f}: "
        f"{'memory' if memory >= compute else 'compute'}-bound, at most "
        f"{slots * mesh.size / max(memory, compute):,.0f} tokens/s with a full cache"
    )
