"""`generate`: the rollout engine as one function."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.sampler import KeptSamplers
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.types import Rollout

_KEPT = KeptSamplers()


def generate(
    params: Any,
    config: QwenConfig,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    seed: int,
    step: int = 0,
    group_size: int = 1,
    prompt_ids: Sequence[int] | None = None,
    budgets: Sequence[int] | None = None,
    slots: int | None = None,
    mesh: Mesh | None = None,
    decode: Callable[[list[int]], str] | None = None,
    on_finished: Callable[[int, list[int]], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Samples `group_size` responses to each prompt; rows are ordered by prompt, then by sample.

    The tokens of a row depend on (params, seed, step, prompt id, sample index) alone: not on batch order, padding,
    number of slots, group size or devices, up to ties within float rounding of the logits.

    Arguments are those of `Sampler` and `Sampler.generate`. Compiled programs are kept for the latest few
    combinations of config, sampling, slots, mesh and `decode`: a loop that wants to read compile times and
    statistics makes a `Sampler` of its own.
    """
    return _KEPT(config, sampling, slots=slots, mesh=mesh, decode=decode).generate(
        params,
        prompts,
        seed=seed,
        step=step,
        group_size=group_size,
        prompt_ids=prompt_ids,
        budgets=budgets,
        on_finished=on_finished,
        progress=progress,
    )
