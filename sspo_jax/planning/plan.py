"""`sspo plan EXPERIMENT --topology v5e:2x4`: does a run fit on TPUs that this machine does not have?

The programs of a run (update, optimizer step, and the rollout's: prefill, insert, resize, decode) are compiled ahead of
time for the named topology, on a CPU host, by the compiler that TPUs use: bytes per chip and "does not fit" are its
verdict, not an estimate. Needs `pip install jax[tpu]`, which brings the compiler (libtpu); no TPU, no network, no
weights.
"""

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sspo_jax.config import TrainConfig
    from sspo_jax.models.configs import QwenConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What the vendor publishes about one chip; v3 and tpu7x show each of their two cores as a device."""

    memory_gib: float
    """Of which the compiler lets a program use a little less."""
    peak_tflops: float
    """bfloat16 matrix products."""
    bandwidth_gb: float
    """Of the chip's memory, GB (10^9) per second."""


CHIPS = {
    "v3": Chip(memory_gib=16.0, peak_tflops=61.0, bandwidth_gb=450.0),
    "v4": Chip(memory_gib=32.0, peak_tflops=275.0, bandwidth_gb=1228.0),
    "v5e": Chip(memory_gib=15.75, peak_tflops=197.0, bandwidth_gb=819.0),
    "v5p": Chip(memory_gib=95.0, peak_tflops=459.0, bandwidth_gb=2765.0),
    "v6e": Chip(memory_gib=31.25, peak_tflops=918.0, bandwidth_gb=1640.0),
    "tpu7x": Chip(memory_gib=94.75, peak_tflops=1153.0, bandwidth_gb=3690.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
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
        return self.arguments + self.temporaries + self.resident


def prepare_host() -> None:
    """Environment that lets libtpu compile without a TPU; before JAX is imported.

    Raises:
      ValueError: libtpu is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('planning needs the TPU compiler: pip install "jax[tpu]"')
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else two processes fight for a lock file
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    # Without these libtpu looks for a machine, does not find one and says so at length.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


def chip_of(topology: str) -> Chip:
    """Raises ValueError where the name before the colon is not a known generation."""
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise ValueError(f"topology {topology!r}: want one of {', '.join(CHIPS)}, then a shape, as in v5e:2x4")
    return CHIPS[generation]


def topology_devices(topology: str, slices: int) -> list[Any]:
    """The devices of a topology, which nobody has to own.

    Raises:
      ValueError: the compiler does not know the topology.
    """
    from jax.experimental import topologies

    chip_of(topology)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the compiler does not know the topology {topology!r}: {first}") from error


def plan(config: "TrainConfig", *, topology: str, slices: int = 1, report: Any = lambda line: None) -> list[Program]:
    """Compiles the programs of a run for a topology, reporting line by line.

    Raises:
      ValueError: unknown topology, or a mesh that divides neither devices nor model.
    """
    import jax

    from sspo_jax.models.qwen import qwen_shardings
    from sspo_jax.models.trainable import Trainable, count
    from sspo_jax.sampler.schedule import cache_columns
    from sspo_jax.sharding import batch_shards, make_mesh

    devices = topology_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    model = model_shape(config)
    qwen_shardings(model, mesh)
    rows, time_ = config.update.micro_rows, row_tokens(config)
    if rows % batch_shards(mesh):
        raise ValueError(
            f"--update.micro-rows is {rows}, want a multiple of the {batch_shards(mesh)} shards of the batch"
        )
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    report(f"{model.num_parameters / 1e9:.2f} B parameters on {topology} x {slices}: {len(devices)} devices, {sizes}")
    report(f"micro-batch {rows} x {time_} tokens, remat {model.remat}, {model.dtype}")
    if config.model.lora is not None:
        trained = count(Trainable(model, config.model.lora).abstract())
        report(f"LoRA of rank {config.model.lora.rank}: {trained / 1e6:.1f} M parameters are trained")
    slots = num_slots(config, batch_shards(mesh))
    buckets = cache_columns(config.rollout.max_prompt_tokens, config.rollout.max_new_tokens, count=None, on_cpu=False)
    columns = buckets[-1]
    lowerings = _lowerings(config, model, mesh, rows=rows, time_=time_, slots=slots, columns=buckets)
    programs = []
    for name, lower, resident in lowerings:
        with jax.set_mesh(mesh):  # around the compilation alone: nothing can be computed on a mesh of absent devices
            programs.append(_compile(name, lower, resident))
        report(_line(programs[-1], chip_of(topology)))
    report("scoring old log-probs runs the update program without its backward pass")
    for line in _figures(config, model, chip_of(topology), mesh, slots=slots, columns=columns):
        report(line)
    for line in verdict(programs, config, chip_of(topology), shards=batch_shards(mesh)):
        report(line)
    return programs


def model_shape(config: "TrainConfig") -> "QwenConfig":
    """The shape of the experiment's model: given, of a local checkpoint, or a known one of that name on the Hub."""
    import pathlib

    from sspo_jax.models.configs import HUB_NAMES, config_from_hf

    chosen = config.model
    computed: dict[str, Any] = {"dtype": chosen.dtype, "remat": chosen.remat, "attention": chosen.attention}
    if config.model.path is None:
        if config.model.shape is None:
            raise ValueError("no model: set --model.path to a checkpoint, or model.shape in the experiment file")
        return dataclasses.replace(config.model.shape, **computed)
    if pathlib.Path(config.model.path).is_dir():
        return config_from_hf(pathlib.Path(config.model.path), **computed)
    if config.model.path in HUB_NAMES:
        return dataclasses.replace(HUB_NAMES[config.model.path], **computed)
    raise ValueError(
        f"--model.path {config.model.path!r} is no directory, and the shape of that name is not known: want a "
        f"checkpoint's directory (its config.json is enough) or one of {', '.join(HUB_NAMES)}"
    )


def row_tokens(config: "TrainConfig") -> int:
    """Length of a training row: as set, else just the longest prompt and response."""
    return config.update.row_tokens or config.rollout.max_prompt_tokens + config.rollout.max_new_tokens


def num_slots(config: "TrainConfig", shards: int) -> int:
    """Responses decoded at once, as the sampler chooses them off a CPU."""
    slots = config.rollout.slots or min(256, config.rollout.prompts * config.rollout.group_size)
    return slots + -slots % shards


def _lowerings(
    config: "TrainConfig", model: "QwenConfig", mesh: Any, *, rows: int, time_: int, slots: int, columns: Sequence[int]
) -> list[tuple[str, Any, int]]:
    """(name, function that lowers it, bytes that the run keeps beside its arguments) of each program.

    `columns`: the sizes of the cache, rising. Decoding and inserting are planned with the largest; resizing, which
    holds two caches, with the growth to it.
    """
    import functools

    import jax
    import jax.numpy as jnp

    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.models.qwen import abstract_qwen, qwen_shardings
    from sspo_jax.optimizer import abstract_state
    from sspo_jax.sampler.decode import decode_block, prefill, ready_weights
    from sspo_jax.sampler.kv_cache import insert_prompts_everywhere, resize_cache
    from sspo_jax.sampler.sampler import UNROLL_LAYERS, usable_weights
    from sspo_jax.sampler.sampling import SamplingParams
    from sspo_jax.sampler.schedule import prefill_chunk, prefill_shape
    from sspo_jax.sharding import batch_shards, named_sharding
    from sspo_jax.subsentences import Segmenter
    from sspo_jax.trainer.step import TrainPrograms
    from sspo_jax.types import TrainBatch

    # The programs planned here do not segment; any tokenizer makes the object complete.
    train = TrainPrograms(
        config=model,
        objective=config.loss.with_budget(config.rollout.max_new_tokens, model.vocab_size),
        optimizer_config=config.optimizer,
        segmenter=Segmenter.from_tokenizer(load_tokenizer("tiny")),
        mesh=mesh,
        temperature=config.rollout.temperature,
        lora=config.model.lora,
    )
    state, base = abstract_state(model, mesh, lora=config.model.lora), train.trainable.abstract_base(mesh)
    params, optimizer = state["params"], state["optimizer"]

    def array(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes or (None,) * len(shape)))

    def per_row(dtype: Any) -> Any:
        return array((rows, time_), dtype, "batch", "time")

    floats = ("advantages", "old_logprobs", "entropies", "sampler_logprobs")
    ints = ("tokens", "positions", "segment_ids", "subsentence_ids")
    batch = TrainBatch(
        **{name: per_row(jnp.float32) for name in floats},
        **{name: per_row(jnp.int32) for name in ints},
        mask=per_row(jnp.bool_),
        ref_logprobs=per_row(jnp.float32) if config.loss.kl_coefficient else None,
        mean_entropy=array((), jnp.float32),
        denominator=array((), jnp.float32),
    )
    unrolled = model.num_layers <= UNROLL_LAYERS
    half = abstract_qwen(model, param_dtype=jnp.dtype(model.dtype))[0]
    weights = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        half,
        qwen_shardings(model, mesh),
    )
    lead: tuple[int, ...] = (model.num_layers,)
    if unrolled:

        def one_layer(leaf: Any) -> Any:
            spec = jax.sharding.PartitionSpec(*leaf.sharding.spec[1:])
            sharding = jax.sharding.NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)

        weights = {**weights, "blocks": (jax.tree.map(one_layer, weights["blocks"]),) * model.num_layers}
        lead = ()
    heads, dim, count = model.num_kv_heads, model.head_dim, model.num_layers if unrolled else 1

    def cache(rows: int, columns: int) -> Any:
        axes = (*(None for _ in lead), "batch", "kv_heads", None, None)
        dtype = weights["final_norm"].dtype
        return (
            (array((*lead, rows, heads, dim, columns), dtype, *axes),) * count,
            (array((*lead, rows, heads, columns, dim), dtype, *axes),) * count,
        )

    whole, smaller = cache(slots, columns[-1]), cache(slots, columns[-2] if len(columns) > 1 else columns[-1])
    sampling = SamplingParams(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        stop_token_ids=config.rollout.stop_token_ids,
    )
    max_steps = min(32, max(8, sampling.max_new_tokens // 8))
    decode = jax.jit(
        functools.partial(decode_block, config=model, sampling=sampling, max_steps=max_steps, unrolled=unrolled),
        donate_argnums=(1,),
    )
    rollout = config.rollout
    prompts, width = prefill_shape(
        rollout.max_prompt_tokens, rollout.prompts, slots, rollout.group_size, batch_shards(mesh)
    )
    fill = jax.jit(
        lambda weights, tokens, lengths: prefill(
            weights, model, tokens, lengths, chunk=prefill_chunk(width), dtype=jnp.dtype(model.dtype), unrolled=unrolled
        )
    )
    slot = [array((slots,), dtype) for dtype in (jnp.int32,) * 4 + (jnp.bool_,)]
    scalar = array((), jnp.int32)
    insert = jax.jit(insert_prompts_everywhere, donate_argnums=(0,))
    resize = jax.jit(functools.partial(resize_cache, columns=columns[-1]))

    def make_weights(params: Any, base: Any) -> Any:
        policy = train.trainable.policy(params, base)
        usable = usable_weights(policy, model, unrolled=unrolled)
        others = {name: leaf for name, leaf in policy.items() if name not in usable}
        return ready_weights(others, model, unrolled=unrolled)

    size = _bytes_per_device
    # The reference policy of a KL term is frozen where training began; with LoRA it is adapters of zeros.
    reference = size(params) if config.loss.kl_coefficient else 0
    usable = size(usable_weights(params if base is None else base, model, unrolled=unrolled))
    if base is not None and "blocks" in usable_weights(base, model, unrolled=unrolled):
        usable -= size(base["blocks"])  # adapters are folded into a copy
    # While responses are sampled no gradients are kept, and what the sampler takes as it is lies there once.
    beside = size((params, base, optimizer)) + reference - usable
    return [  # the update last: it compiles longest
        ("optimizer", lambda: train.apply_update.lower(params, optimizer, params), size(base) + reference),
        ("weights", lambda: jax.jit(make_weights).lower(params, base), size(optimizer) + reference + usable),
        (
            "prefill",
            lambda: fill.lower(weights, array((prompts, width), jnp.int32), array((prompts,), jnp.int32)),
            beside + size(whole),
        ),
        (
            "insert",
            lambda: insert.lower(whole, cache(prompts, width), scalar, array((slots,), jnp.bool_), slot[0]),
            beside + size(weights),
        ),
        ("resize", lambda: resize.lower(smaller, scalar), beside + size(weights)),
        (
            "decode",
            lambda: decode.lower(weights, whole, *slot, array((slots, 2), jnp.uint32), scalar, scalar, scalar),
            beside,
        ),
        (
            "update",
            lambda: train.micro_batch.lower(params, params, batch, array((), jnp.bool_), base),
            size(optimizer) + reference,
        ),
    ]


def _bytes_per_device(tree: Any) -> int:
    import math

    import jax

    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _compile(name: str, lower: Any, resident: int) -> Program:
    import jax

    start = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        return Program(
            name=name, arguments=0, temporaries=0, resident=resident, seconds=seconds, refusal=_refusal(str(error))
        )
    memory = compiled.memory_analysis()
    return Program(
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


def _line(program: Program, chip: Chip) -> str:
    if program.refusal:
        return f"  {program.name:<10} refused by the compiler after {program.seconds:.0f} s: {program.refusal}"
    return (
        f"  {program.name:<10} arguments {program.arguments / GIB:7.3f}  temporaries {program.temporaries / GIB:7.3f}  "
        f"beside it {program.resident / GIB:7.3f}  total {program.total / GIB:7.3f} of {chip.memory_gib} GiB a chip  "
        f"(compiled in {program.seconds:.0f} s)"
    )


def model_flops(model: "QwenConfig", context: int) -> float:
    """Of one token's forward pass: 2 a weight that multiplies it, and attention over half the context on average.

    2 (layers x matrices of a layer + hidden x vocab) + 4 layers x heads x head_dim x context / 2
    """
    embed, dim = model.hidden_size, model.head_dim
    attention = 2 * embed * dim * (model.num_heads + model.num_kv_heads)
    used = model.experts_per_token if model.num_experts else 1
    layer = attention + 3 * embed * model.mlp_size * used + embed * model.num_experts
    weights = model.num_layers * layer + embed * model.vocab_size
    return 2.0 * weights + 2.0 * model.num_layers * model.num_heads * dim * context


def step_flops(config: "TrainConfig", model: "QwenConfig") -> float:
    """Model FLOPs of a step whose responses are all at full length.

    Every token passes forward when it is sampled and when it is scored (twice with a reference policy), and each epoch
    forward and backward. A backward pass is two forward passes' worth, one for the gradients of activations and one
    for those of the weights; with LoRA the second is of the adapters alone, which the sampler has folded in.
    """
    from sspo_jax.models.trainable import Trainable, count

    length = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    tokens = length * config.rollout.prompts * config.rollout.group_size
    epochs, scorings = config.update.epochs, 2 if config.loss.kl_coefficient else 1
    forward, lora = model_flops(model, length), config.model.lora
    if lora is None:
        return tokens * forward * (1 + scorings + 3 * epochs)
    adapters = 2.0 * count(Trainable(model, lora).abstract())
    return tokens * (forward * (1 + scorings + 2 * epochs) + adapters * (scorings + 3 * epochs))


def _figures(
    config: "TrainConfig", model: "QwenConfig", chip: Chip, mesh: Any, *, slots: int, columns: int
) -> list[str]:
    """Model FLOPs of a step, and what bounds decoding."""
    import math

    samples = config.rollout.prompts * config.rollout.group_size
    total = step_flops(config, model)
    devices = math.prod(mesh.shape.values())
    seconds = total / (devices * chip.peak_tflops * 1e12)
    lines = [
        f"model FLOPs of a step, {samples} responses at full length: {total / 1e15:.3g} PFLOP, at the chips' peak "
        f"{seconds:.3g} s",
        decode_bound(model, chip, mesh, slots=slots, columns=columns),
    ]
    if mesh.shape["fsdp"] > 1:
        lines.append(
            "with fsdp each decoding step gathers the weights over the interconnect: the rate will be lower; "
            "--mesh.tensor keeps them in place"
        )
    return lines


def decode_bound(model: "QwenConfig", chip: Chip, mesh: Any, *, slots: int, columns: int) -> str:
    """What memory and arithmetic allow at most: every step reads all weights and the whole cache once."""
    import math

    from sspo_jax.sampler.kv_cache import cache_bytes

    devices = math.prod(mesh.shape.values())
    cache = cache_bytes(model, slots, columns, model.dtype)
    read = weight_bytes(model) * _copies(mesh) + cache
    flops = model_flops(model, 2 * columns) * slots  # a step attends to all columns, not to half of them on average
    memory, compute = read / (chip.bandwidth_gb * 1e9), flops / (chip.peak_tflops * 1e12)
    return (
        f"decoding {slots} slots x {columns} columns: KV cache {cache / devices / GIB:.2f} GiB a chip, intensity "
        f"{flops / read:.0f} FLOP/byte where the chip balances at {chip.peak_tflops * 1e3 / chip.bandwidth_gb:.0f}: "
        f"bound by {'memory' if memory >= compute else 'arithmetic'}, at most "
        f"{slots * devices / max(memory, compute):,.0f} tokens/s with a full cache"
    )


def weight_bytes(model: "QwenConfig") -> int:
    """Of the weights that a decoding step multiplies with: all but an embedding that is not also the unembedding."""
    rows_only = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    return (model.num_parameters - rows_only) * (2 if model.dtype == "bfloat16" else 4)


def _copies(mesh: Any) -> int:
    """How often the weights are read in one decoding step: once for each group of devices that shares them."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def verdict(programs: list[Program], config: "TrainConfig", chip: Chip, *, shards: int) -> list[str]:
    """Fits or not, by how much, and what to change."""
    limit = chip.memory_gib * GIB
    worst = max(programs, key=lambda program: (bool(program.refusal), program.total))
    if not worst.refusal and worst.total <= limit:
        return [f"FITS: {worst.name} leaves {(limit - worst.total) / GIB:.2f} GiB a chip free"]
    by = "" if worst.refusal else f" by {(worst.total - limit) / GIB:.2f} GiB a chip"
    advice = []
    if worst.name == "update" and config.update.micro_rows > shards:
        advice.append(f"--update.micro-rows {max(shards, config.update.micro_rows // 2)}")
    if worst.name == "update" and config.model.remat != "full":
        advice.append("--model.remat full")
    if worst.name in ("prefill", "insert", "resize", "decode"):
        advice.append(f"--rollout.slots {max(shards, num_slots(config, shards) // 2)}")
    advice.append("more shards of the parameters (--mesh.fsdp, --mesh.tensor) or more chips")
    if config.model.lora is None:
        advice.append("adapters instead of all weights (--model.lora.rank 16)")
    return [f"DOES NOT FIT: {worst.name} is over{by}; try {', or '.join(advice)}"]
