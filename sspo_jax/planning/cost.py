"""How long a run takes, what it costs and what it writes, from published figures of the chips; nothing is compiled."""

import math

from sspo_jax.config import CheckpointConfig, RolloutConfig
from sspo_jax.models.configs import QwenModel
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.planning.bounds import step_flops
from sspo_jax.runs.roofline import DEVICES, Chip, weight_bytes
from sspo_jax.sampler.kv_cache import delta_state_bytes, layer_column_bytes

REACHED = 0.3
"""Of what memory and arithmetic allow at most, what a run is expected to reach: about what decoding and an update of a
1.5B model reached on an H100 (docs/benchmarks.md). Not measured on TPUs."""
GPUS = {
    "a100": DEVICES["NVIDIA A100-SXM4-80GB"],
    "h100": DEVICES["NVIDIA H100 80GB HBM3"],
    "h200": DEVICES["NVIDIA H200"],
}
"""By the name in `--topology NAME:COUNT`."""


def gpus_of(topology: str) -> tuple[Chip, int] | None:
    """(chip, how many) of a topology such as h100:8; None where it names no GPU.

    Raises:
      ValueError: no number of GPUs.
    """
    name, _, number = topology.partition(":")
    if name not in GPUS:
        return None
    if not number.isdigit() or not int(number):
        raise ValueError(f"topology {topology!r}: expected a number of GPUs after the colon, as in {name}:8")
    return GPUS[name], int(number)


def cost(floor: tuple[float, float], *, steps: int, samples: int, chips: int, price: float | None = None) -> list[str]:
    """Hours and cost of a run whose responses are all at full length, line by line.

    Args:
      floor: of a step, as `step_floor` gives it.
      steps: of the run.
      samples: responses of a step.
      chips: how many there are.
      price: of one chip for an hour, in any currency; None: no cost.
    """
    seconds = sum(floor) / REACHED
    hours = steps * seconds / 3600
    return [
        f"a step of {samples:,} responses at full length: at least {floor[0]:.3g} s of decoding and "
        f"{floor[1]:.3g} s of scoring and updating; at {REACHED:.0%} of what the chips allow {seconds:.3g} s",
        f"{steps:,} steps: {hours:.3g} hours, {hours * chips:,.3g} chip hours"
        + (f", {hours * chips * price:,.0f} at {price:g} per chip hour" if price is not None else "")
        + "; about in proportion less where responses are shorter; evaluations, start and waiting come on top",
    ]


def step_floor(
    model: QwenModel,
    rollout: RolloutConfig,
    chip: Chip,
    chips: int,
    *,
    epochs: int,
    has_reference: bool,
    lora: LoraConfig | None,
) -> tuple[float, float]:
    """(seconds of decoding, seconds of scoring and updating) of a step at full length, if nothing but memory counts for
    the first and nothing but arithmetic for the second.

    Args:
      model, rollout, epochs, lora: of the run.
      chip, chips: what it runs on, and how many.
      has_reference: whether the loss has a KL term.
    """
    samples, length = rollout.prompts * rollout.group_size, rollout.max_prompt_tokens + rollout.max_new_tokens
    slots = min(samples, rollout.slots or 256)
    # On average half of the columns are filled; all devices together read the weights once. States are written too.
    dtype = model.compute.dtype
    cache = slots * (model.attended(length) * layer_column_bytes(model, dtype) + 2 * delta_state_bytes(model, dtype))
    read = weight_bytes(model) + cache
    decoding = math.ceil(samples / slots) * rollout.max_new_tokens * read / (chips * chip.bandwidth_gb * 1e9)
    flops = step_flops(model, rollout, epochs=epochs, has_reference=has_reference, lora=lora)
    return decoding, flops / (chips * chip.peak_tflops * 1e12)


def disk(
    model: QwenModel, checkpoint: CheckpointConfig, *, lora: LoraConfig | None, keeps_best: bool, response_tokens: int
) -> str:
    """Bytes that a run writes, in words: checkpoints of weights and two moments, the best policy, sampled texts.

    Args:
      model, checkpoint, lora: of the run.
      keeps_best: whether the best policy is kept.
      response_tokens: of all responses whose texts are written, at full length.
    """
    trained = model.num_parameters if lora is None else count(Trainable(model, lora).abstract())
    saved, best = 12 * trained, 4 * trained if keeps_best else 0
    at_once = checkpoint.keep + 1  # one is being written while the others are kept
    texts = response_tokens * 4  # about four characters a token
    whole = at_once * saved + 2 * best + texts
    return (
        f"disk: a checkpoint {_size(saved)}, {at_once} of them at once; the best policy {_size(best)}; sampled "
        f"texts up to {_size(texts)}: {_size(whole)} in all; an export {_size(2 * model.num_parameters)}"
    )


def _size(count: float | int) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
