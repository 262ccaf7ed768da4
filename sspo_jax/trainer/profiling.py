"""What the profiler of a run is told: the stages of its steps, and what each step consisted of."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sspo_jax.models.configs import QwenModel
from sspo_jax.models.lora import LoraConfig
from sspo_jax.runs.profile import Profiler
from sspo_jax.runs.roofline import Counts, Work, peak_of, stage_works
from sspo_jax.types import Rollout


def open_profiler(
    path: pathlib.Path,
    steps: range,
    model: QwenModel,
    mesh: Mesh,
    decoding: Mesh,
    *,
    epochs: int,
    has_reference: bool,
    lora: LoraConfig | None,
    say: Callable[[str], None],
) -> Profiler:
    """The profiler of a run.

    Args:
      path: of the run directory.
      steps: to be traced.
      mesh: of training.
      decoding: mesh of the rollouts.
      epochs: times a rollout is gone through.
      has_reference: whether a reference policy scores as well.
      say: prints a line.
    """

    def works(counts: Counts) -> dict[str, tuple[Work, ...]]:
        return stage_works(
            counts, model, mesh, epochs=epochs, has_reference=has_reference, lora=lora, decoding=decoding
        )

    return Profiler(path, steps, peak=lambda: peak_of(mesh, model.compute.dtype), works=works, say=say)


def step_counts(
    sampled: Rollout,
    trained: Rollout,
    minibatches: list[list[Any]],
    *,
    epochs: int,
    slots: int | None,
    share_prompts: bool = False,
    backward: float = 1.0,
) -> Counts:
    """What a step consisted of.

    Args:
      sampled: all responses, those that dynamic sampling dropped too.
      trained: those of the updates.
      minibatches: micro-batches of each update of an epoch.
      slots: responses decoded at once; None: a server's, and nothing of the sampling is counted.
      share_prompts: a prompt counts once for its group, and the attention of its responses to it not at all.
      backward: share of the micro-batches that had a gradient.
    """
    is_here = slots is not None
    _, first = np.unique(sampled.group_ids, return_index=True)
    lengths = [(len(prompt), len(own)) for prompt, own in zip(sampled.prompts, sampled.responses, strict=True)]
    packed = [len(prompt) + len(own) for prompt, own in zip(trained.prompts, trained.responses, strict=True)]
    if share_prompts:
        own = {int(group): len(prompt) - 1 for group, prompt in zip(trained.group_ids, trained.prompts, strict=True)}
        packed = [*(1 + len(response) for response in trained.responses), *own.values()]
    return Counts(
        prompts=[len(sampled.prompts[row]) for row in first] if is_here else [],
        sampled=lengths if is_here else [],
        trained=packed,
        micro_batches=sum(map(len, minibatches)),
        updates=epochs * len(minibatches),
        slots=slots or 1,
        backward=backward,
    )
