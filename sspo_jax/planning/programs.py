"""The programs of a run, traced by the code that runs them, and what the compiler says about each."""

import dataclasses
import pathlib
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from sspo_jax.config import ModelConfig, RolloutConfig
from sspo_jax.data.tokenizer import TINY, load_tokenizer
from sspo_jax.models.configs import HUB_NAMES, QwenModel, config_from_hf, known_end_tokens
from sspo_jax.models.end_tokens import end_tokens
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable
from sspo_jax.optimizer import abstract_state
from sspo_jax.sampler import LocalEngine, Sampler
from sspo_jax.sampler.hand_over import lies_elsewhere
from sspo_jax.sampler.programs import TracedProgram
from sspo_jax.sharding import bytes_per_device
from sspo_jax.trainer.rollout_engine import rollout_sampling

ROLLOUT = ("weights", "prefill", "insert", "resize", "decode")
"""Kinds of programs of the rollout that are planned, each with the widest that a step meets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedProgram:
    """One compiled program, bytes per chip."""

    name: str
    arguments: int
    """Inputs and outputs, those that share memory counted once."""
    temporaries: int
    """Scratch memory while it runs."""
    resident: int
    """What else the run keeps on the chip meanwhile."""
    seconds: float
    """To compile."""
    refusal: str = ""
    """What the compiler said, where it refused."""

    @property
    def total(self) -> int:
        """Bytes on the chip while it runs."""
        return self.arguments + self.temporaries + self.resident


def resolve_shape(chosen: ModelConfig) -> QwenModel:
    """The experiment's model without its weights: given, of a local checkpoint, or a known name on the Hub.

    Raises:
      ValueError: none of these.
    """
    if chosen.path is None:
        if chosen.shape is None:
            raise ValueError("no model: set --model.path to a checkpoint, or model.shape in the experiment file")
        return chosen.computed(chosen.shape)
    if pathlib.Path(chosen.path).is_dir():
        return chosen.computed(config_from_hf(pathlib.Path(chosen.path)))
    if chosen.path in HUB_NAMES:
        return chosen.computed(HUB_NAMES[chosen.path])
    raise ValueError(
        f"--model.path {chosen.path!r} is no directory, and the shape of that name is not known: expected a "
        f"checkpoint's directory (its config.json is enough) or one of {', '.join(HUB_NAMES)}"
    )


def run_sampler(spec: str, rollout: RolloutConfig, model: QwenModel, mesh: Mesh) -> Sampler:
    """The sampler of the run's rollouts.

    Args:
      spec: directory or name of the tokenizer; one on the Hub is not fetched: its end tokens are taken from the shape.
    """
    is_here = spec == TINY or (pathlib.Path(spec) / "tokenizer.json").is_file()
    declared = model.eos_token_ids if is_here else known_end_tokens(model)
    ends = end_tokens(load_tokenizer(spec) if is_here else None, declared, own=rollout.stop_token_ids)
    engine = LocalEngine(model, slots=rollout.slots, mesh=mesh, int8=rollout.weights == "int8")
    return engine.sampler(rollout_sampling(rollout, ends))


def rollout_programs(
    rollout: RolloutConfig, lora: LoraConfig | None, sampler: Sampler, mesh: Mesh
) -> dict[str, TracedProgram]:
    """All that a step's rollout compiles with prompts and responses at full length; none where a server samples."""
    if rollout.server is not None:
        return {}
    model = sampler.config
    assert isinstance(model, QwenModel)
    return sampler.programs_for(
        Trainable(model, lora).abstract_policy(mesh),
        num_prompts=rollout.prompts,
        prompt_tokens=rollout.max_prompt_tokens,
        group_size=rollout.group_size,
    )


def widest(programs: Iterable[TracedProgram]) -> dict[str, TracedProgram]:
    """For each kind in `ROLLOUT`, the program with the most bytes of arguments and results."""
    found: dict[str, TracedProgram] = {}
    for program in programs:
        other = found.get(program.kind)
        if program.kind in ROLLOUT and (other is None or _bytes(program) > _bytes(other)):
            found[program.kind] = program
    return {kind: found[kind] for kind in ROLLOUT if kind in found}


def _bytes(program: TracedProgram) -> int:
    return bytes_per_device((program.arguments, program.results))


def residents(
    model: QwenModel,
    mesh: Mesh,
    rollout: dict[str, TracedProgram],
    *,
    lora: LoraConfig | None,
    has_reference: bool,
) -> dict[str, int]:
    """Bytes per device that the run keeps beside the arguments of each program.

    Args:
      rollout: the widest programs of the rollout.
    """
    state, base = abstract_state(model, mesh, lora=lora), Trainable(model, lora).abstract_base
    params, optimizer, frozen = state["params"], bytes_per_device(state["optimizer"]), base(mesh)
    size = bytes_per_device
    # The reference policy of a KL term is frozen where training began; with LoRA it is adapters of zeros.
    reference = size(params) if has_reference else 0
    found = {"optimizer": size(frozen) + reference, "update": optimizer + reference}
    if "decode" not in rollout:
        return found
    weights, cache = (size(tree) for tree in rollout["decode"].arguments[:2])
    if lies_elsewhere(rollout["decode"].arguments[0], mesh):  # laid out anew: nothing is taken as it is
        beside = size((params, frozen)) + optimizer + reference
        moving = beside + weights - size(rollout["weights"].arguments)
        return found | {
            "weights": moving, "prefill": beside + cache, "insert": beside + weights, "resize": beside + weights,
            "decode": beside,
        }  # fmt: skip
    passed = size(_passed_through(params if frozen is None else frozen, rollout))
    # While responses are sampled no gradients are kept, and what the sampler takes as it is lies there once.
    beside = size((params, frozen)) + optimizer + reference - passed
    return found | {
        "weights": optimizer + reference + passed,
        "prefill": beside + cache,
        "insert": beside + weights,
        "resize": beside + weights,
        "decode": beside,
    }


def _passed_through(params: Any, rollout: dict[str, TracedProgram]) -> Any:
    """The parameters that the sampler takes as they are: those that it makes no other weights of."""
    if "weights" not in rollout:
        return params
    made = rollout["weights"].results
    return {name: leaf for name, leaf in params.items() if name not in made}


def compile_programs(
    programs: dict[str, TracedProgram], resident: dict[str, int], mesh: Mesh
) -> Iterator[PlannedProgram]:
    """Compiles one after the other; what the compiler refuses for its size is planned all the same."""
    for name, program in programs.items():
        with jax.set_mesh(mesh):  # around the compilation alone: nothing can be computed on a mesh of absent devices
            yield compile_program(name, program, resident[name])


def compile_program(name: str, program: TracedProgram, resident: int) -> PlannedProgram:
    """What the compiler says of one program; under the mesh that it was traced for."""
    start = time.perf_counter()
    lowered = program.traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, refusal = time.perf_counter() - start, _refusal(str(error))
        return PlannedProgram(
            name=name, arguments=0, temporaries=0, resident=resident, seconds=seconds, refusal=refusal
        )
    memory = compiled.memory_analysis()
    return PlannedProgram(
        name=name,
        arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        resident=resident,
        seconds=time.perf_counter() - start,
    )


def _refusal(message: str) -> str:
    """The sentence of the compiler that says how much was wanted."""
    found = re.search(
        r"[^.]*?(Used [\d.]+\w+ of [\d.]+\w+ hbm[^.]*\.[\d]*\w*|[\d.]+G exceeds [^.]*[\d.]+G\)?)", message
    )
    return (found.group(1) if found else message.splitlines()[0])[:200]
