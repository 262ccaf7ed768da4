"""Does a run fit on TPUs that this machine does not have?

The programs of a run (update, optimizer step, and the rollout's: weights, prefill, insert, resize, decode) are compiled
ahead of time for the named topology, on a CPU host, by the compiler that TPUs use: bytes per chip and "does not fit"
are its verdict, not an estimate. They are traced by the trainer and the sampler themselves, as the run would call
them. Needs `pip install 'sspo-jax[train,tpu]'`, which brings the compiler (libtpu); no TPU, no network, no weights.
"""

from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from sspo_jax.config import EvaluationConfig, ModelConfig, RolloutConfig, TrainConfig
from sspo_jax.data.tokenizer import TINY, load_tokenizer
from sspo_jax.models.configs import QwenModel
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import qwen_shardings
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.planning.bounds import compare_layouts, figures, step_flops
from sspo_jax.planning.chips import GIB, chip_of, topology_devices
from sspo_jax.planning.programs import (
    ROLLOUT,
    PlannedProgram,
    compile_programs,
    residents,
    resolve_shape,
    rollout_programs,
    run_sampler,
    widest,
)
from sspo_jax.runs.roofline import Chip
from sspo_jax.sampler import Sampler
from sspo_jax.sampler.layout import DecodingLayout, possible_layouts
from sspo_jax.sampler.programs import TracedProgram
from sspo_jax.sharding import batch_shards, check_rows, make_mesh
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.rollout_engine import demand_of, run_layout
from sspo_jax.trainer.step import TrainPrograms


def plan(
    config: TrainConfig, *, topology: str, slices: int = 1, report: Callable[[str], None] = lambda line: None
) -> list[PlannedProgram]:
    """Compiles the programs of a run for a topology, reporting line by line.

    Raises:
      ValueError: unknown topology, or a mesh that divides neither devices nor model.
    """
    chip = chip_of(topology)
    config.check()
    if config.rollout.devices:
        raise ValueError(
            f"--rollout.devices is {config.rollout.devices}, but a plan has all devices sample and train in turn; "
            "expected 0: plan the devices that train and those that sample as two topologies"
        )
    devices = topology_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    model = resolve_shape(config.model)
    qwen_shardings(model, mesh)
    shards = batch_shards(mesh)
    check_rows(mesh, config.update.micro_rows, config.row_tokens)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    report(f"{model.num_parameters / 1e9:.2f} B parameters on {topology} x {slices}: {len(devices)} devices, {sizes}")
    for line in _settings(model, config.update.micro_rows, config.row_tokens, config.model.lora):
        report(line)
    lora, has_reference = config.model.lora, config.loss.reads_reference
    layout = layout_of(config, model, mesh, memory=chip.memory_gib * GIB)
    report(f"decoding: {layout.describe()}")
    sampler, sampling, training = traced(config, model, mesh, layout.mesh)
    rollout = widest(sampling.values())
    resident = residents(model, mesh, rollout, lora=lora, has_reference=has_reference)
    programs = []
    ordered = {"optimizer": training["optimizer"], **rollout, "update": training["update"]}  # it compiles longest
    for program in compile_programs(ordered, resident, mesh):
        programs.append(program)
        report(_line(program, chip))
    report("scoring old log-probs runs the update program without its backward pass")
    samples = config.rollout.prompts * config.rollout.group_size
    slots = sampler.num_slots(samples)
    if rollout:
        columns = rollout["decode"].arguments[1][0][0].shape[-1]
        epochs = config.update.epochs
        flops = step_flops(model, config.rollout, epochs=epochs, has_reference=has_reference, lora=lora)
        for line in figures(flops, samples, model, chip, layout.mesh, slots=slots, columns=columns):
            report(line)
        others = possible_layouts(
            model, mesh, demand_of(config.rollout, longest_response(config.rollout, config.evaluation)),
            training=layout.training, memory=layout.memory,
        )  # fmt: skip
        for line in compare_layouts(others, layout.mesh, model, chip, columns=columns):
            report(line)
    for line in verdict(programs, chip, config.model, micro_rows=config.update.micro_rows, shards=shards, slots=slots):
        report(line)
    return programs


def longest_response(rollout: RolloutConfig, evaluation: EvaluationConfig) -> int:
    """In tokens, of rollouts and evaluations."""
    return max(rollout.max_new_tokens, evaluation.max_new_tokens or 0)


def layout_of(config: TrainConfig, model: QwenModel, mesh: Mesh, *, memory: float | None) -> DecodingLayout:
    """How the run lays out the devices for decoding.

    Args:
      mesh: of training.
      memory: of a device, in bytes; None: not known.
    """
    return run_layout(
        config.rollout,
        model,
        mesh,
        lora=config.model.lora,
        has_reference=config.loss.reads_reference,
        longest_response=longest_response(config.rollout, config.evaluation),
        memory=memory,
    )


def traced(
    config: TrainConfig, model: QwenModel, mesh: Mesh, decoding: Mesh
) -> tuple[Sampler, dict[str, TracedProgram], dict[str, TracedProgram]]:
    """The run's sampler, the programs of a rollout, and those of training, traced as the run calls them.

    Args:
      mesh: of training.
      decoding: mesh of the rollouts.
    """
    lora = config.model.lora
    sampler = run_sampler(config.model.tokenizer or config.model.path or "", config.rollout, model, decoding)
    training = TrainPrograms(
        config=model,
        objective=config.objective(model.vocab_size),
        optimizer_config=config.settled_optimizer,
        segmenter=Segmenter.from_tokenizer(load_tokenizer(TINY)),  # segmenting is not planned: any tokenizer will do
        mesh=mesh,
        temperature=config.rollout.temperature,
        lora=lora,
        replay_routing=config.update.replay_routing,
    )
    return (
        sampler,
        rollout_programs(config.rollout, lora, sampler, mesh),
        training.programs_for(
            micro_rows=config.update.micro_rows,
            row_tokens=config.row_tokens,
            share_prompts=config.update.share_prompts,
        ),
    )


def _settings(model: QwenModel, micro_rows: int, row_tokens: int, lora: LoraConfig | None) -> list[str]:
    """What decides the size of the update, in words."""
    lines = [f"micro-batch {micro_rows} x {row_tokens} tokens, remat {model.compute.remat}, {model.compute.dtype}"]
    if lora is not None:
        trained = count(Trainable(model, lora).abstract())
        lines.append(f"LoRA of rank {lora.rank}: {trained / 1e6:.1f} M parameters are trained")
    return lines


def _line(program: PlannedProgram, chip: Chip) -> str:
    if program.refusal:
        return f"  {program.name:<10} refused by the compiler after {program.seconds:.0f} s: {program.refusal}"
    return (
        f"  {program.name:<10} arguments {program.arguments / GIB:7.3f}  temporaries {program.temporaries / GIB:7.3f}  "
        f"beside it {program.resident / GIB:7.3f}  total {program.total / GIB:7.3f} of {chip.memory_gib} GiB a chip  "
        f"(compiled in {program.seconds:.0f} s)"
    )


def fits(programs: Sequence[PlannedProgram], chip: Chip) -> bool:
    """Whether the compiler took every program, and none needs more than the chip has."""
    return all(not program.refusal and program.total <= chip.memory_gib * GIB for program in programs)


def verdict(
    programs: Sequence[PlannedProgram], chip: Chip, model: ModelConfig, *, micro_rows: int, shards: int, slots: int
) -> list[str]:
    """Fits or not, by how much, and what to change.

    Args:
      micro_rows: rows of a micro-batch.
      shards: of the batch.
      slots: responses decoded at once.
    """
    limit = chip.memory_gib * GIB
    worst = max(programs, key=lambda program: (bool(program.refusal), program.total))
    if fits(programs, chip):
        return [f"FITS: {worst.name} leaves {(limit - worst.total) / GIB:.2f} GiB a chip free"]
    by = "" if worst.refusal else f" by {(worst.total - limit) / GIB:.2f} GiB a chip"
    advice = []
    if worst.name == "update" and micro_rows > shards:
        advice.append(f"--update.micro-rows {max(shards, micro_rows // 2)}")
    if worst.name == "update" and model.remat != "full":
        advice.append("--model.remat full")
    if worst.name == "update" and micro_rows <= shards:
        advice.append("rows cut between devices (--mesh.context 2)")
    if worst.name in ROLLOUT and worst.name != "weights":
        advice.append(f"--rollout.slots {max(shards, slots // 2)}")
    advice.append("more shards of the parameters (--mesh.fsdp, --mesh.tensor) or more chips")
    if model.lora is None:
        advice.append("adapters instead of all weights (--model.lora.rank 16)")
    return [f"DOES NOT FIT: {worst.name} is over{by}; try {', or '.join(advice)}"]
