"""How near a step came to what its chips could do: arithmetic and memory traffic of its stages against published peaks.

A stage cannot be faster than its model FLOPs at the peak of matrix products, nor than the bytes that it must read and
write at the bandwidth of the memory; the larger of the two is its bound (Williams et al., "Roofline", CACM 2009), and
its share of the roofline is the bound over the seconds it took. Only real tokens count: padding, recomputation and
waiting make the share smaller, as they should. `sspo plan` bounds a run at full length by the same functions.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable, count
from sspo_jax.sampler.kv_cache import delta_state_bytes, layer_column_bytes
from sspo_jax.sharding import shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What the vendor publishes about one chip; v3 and tpu7x show each of their two cores as a device."""

    memory_gib: float
    """Memory of a chip, of which the compiler lets a program use a little less."""
    peak_tflops: float
    """bfloat16 matrix products."""
    bandwidth_gb: float
    """Bandwidth of the chip's memory, GB (10^9) per second."""
    link_gb: float | None = None
    """What the links to other chips carry to a device, all of them together, GB per second in one direction: half of
    the bidirectional interconnect bandwidth that Google Cloud's page on each TPU states (docs.cloud.google.com/tpu).
    None: not stated."""


CHIPS = {
    "v3": Chip(memory_gib=16.0, peak_tflops=61.0, bandwidth_gb=450.0),
    "v4": Chip(memory_gib=32.0, peak_tflops=275.0, bandwidth_gb=1228.0, link_gb=300.0),
    "v5e": Chip(memory_gib=15.75, peak_tflops=197.0, bandwidth_gb=819.0, link_gb=200.0),
    "v5p": Chip(memory_gib=95.0, peak_tflops=459.0, bandwidth_gb=2765.0, link_gb=600.0),
    "v6e": Chip(memory_gib=31.25, peak_tflops=918.0, bandwidth_gb=1640.0, link_gb=400.0),
    "tpu7x": Chip(memory_gib=94.75, peak_tflops=1153.0, bandwidth_gb=3690.0),
}
"""TPUs by the name of their topologies."""

DEVICES = {
    "TPU v3": CHIPS["v3"],
    "TPU v4": CHIPS["v4"],
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5e": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v5p": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU v6e": CHIPS["v6e"],
    "TPU7x": CHIPS["tpu7x"],
    # Dense bfloat16; NVIDIA's data sheets.
    "NVIDIA A100-SXM4-40GB": Chip(memory_gib=40.0, peak_tflops=312.0, bandwidth_gb=1555.0),
    "NVIDIA A100-SXM4-80GB": Chip(memory_gib=80.0, peak_tflops=312.0, bandwidth_gb=2039.0),
    "NVIDIA H100 80GB HBM3": Chip(memory_gib=79.6, peak_tflops=989.0, bandwidth_gb=3350.0),
    "NVIDIA H200": Chip(memory_gib=140.4, peak_tflops=989.0, bandwidth_gb=4800.0),
}
"""Chips by `device_kind`, as JAX names the devices at hand."""


def memory_of(mesh: Mesh) -> float | None:
    """Bytes of memory that a program may use of a device: as published, or less where JAX allots itself less.

    None where neither is known, as of a CPU's devices, which share theirs.
    """
    published = DEVICES.get(mesh.devices.flat[0].device_kind)
    allotted = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    known = [] if published is None else [published.memory_gib * 2**30]
    known += [] if allotted is None else [float(allotted)]
    return min(known, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """What all devices of a run can do together."""

    flops: float
    """Per second, in matrix products."""
    bandwidth: float
    """Bytes of memory read or written per second."""
    source: str
    """Where the two come from, in words."""


def peak_of(mesh: Mesh, dtype: str) -> Peak:
    """Published figures of the devices of a mesh; of a device that has none here, measured in about a second.

    Args:
      dtype: of the matrix products that are measured.
    """
    kind, size = mesh.devices.flat[0].device_kind, mesh.size
    if kind in DEVICES:
        chip = DEVICES[kind]
        figures = f"{chip.peak_tflops:g} TFLOP/s in bfloat16 and {chip.bandwidth_gb:g} GB/s each"
        source = f"{size} x {kind}: {figures}, as published"
        return Peak(flops=1e12 * size * chip.peak_tflops, bandwidth=1e9 * size * chip.bandwidth_gb, source=source)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    flops, bandwidth = _measured(mesh.local_devices[0], dtype, size=1024 if is_cpu else 8192)
    copies = jax.process_count() if is_cpu else size  # the devices of a CPU share its cores
    source = (
        f"{size} x {kind}: no published figures are known here; measured {flops / 1e12:.3g} TFLOP/s in {dtype} and "
        f"{bandwidth / 1e9:.3g} GB/s for {'the machine' if is_cpu else 'each'}, in one matrix product and one copy"
    )
    return Peak(flops=flops * copies, bandwidth=bandwidth * copies, source=source)


def _measured(device: Any, dtype: str, *, size: int) -> tuple[float, float]:
    """(FLOPs a second of a product of square matrices, bytes a second of adding one to an array in place)."""
    # Entries of 1 / size: a product of such squares is the same square again.
    square = jax.device_put(np.full((size, size), 1 / size, jnp.dtype(dtype)), device)
    array = jax.device_put(np.ones(64 * size * size // 4, np.float32), device)  # 64 MiB on a CPU
    moved = 2 * array.nbytes
    product = _seconds(lambda x: x @ x, square)
    addition = _seconds(lambda x: x + 1, array)
    return 2 * size**3 / product, moved / addition


def _seconds(function: Callable[[Any], Any], argument: Any) -> float:
    """The best of ten, each on the result of the one before, whose memory it takes over."""
    run = jax.jit(function, donate_argnums=0)
    best = float("inf")
    for _ in range(11):  # the first compiles
        start = time.perf_counter()
        argument = jax.block_until_ready(run(argument))
        best = min(best, time.perf_counter() - start)
    return best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a part of a stage has to compute, and to read and write, on all devices together."""

    flops: float | int
    bytes: float | int

    def bound(self, peak: Peak) -> float:
        """Seconds that it takes at least."""
        return max(self.flops / peak.flops, self.bytes / peak.bandwidth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step consisted of."""

    prompts: Sequence[int]
    """Tokens of each problem's prompt, which is computed once for its whole group."""
    sampled: Sequence[tuple[int, int]]
    """(prompt, response) tokens of each sampled response."""
    trained: Sequence[int]
    """Tokens of each sequence that is scored and trained on: prompt and response."""
    micro_batches: int
    """Packed micro-batches of the step, as often as they are scored."""
    updates: int
    """Updates of the parameters, all epochs together."""
    slots: int
    """Responses decoded at once, at most."""
    backward: float = 1.0
    """Share of the micro-batches that have a gradient, which alone run backward."""


def stage_works(
    counts: Counts,
    model: QwenConfig,
    mesh: Mesh,
    *,
    epochs: int,
    has_reference: bool,
    lora: LoraConfig | None,
    decoding: Mesh | None = None,
) -> dict[str, tuple[Work, ...]]:
    """The stages of a step that compute on the devices, each as parts that follow each other.

    Args:
      mesh: of training.
      decoding: mesh of the rollout; None: that of training.
    """
    weights, scorings = _weights_read(model, mesh), 2 if has_reference else 1
    forward = sum(length * model_flops(model, length) for length in counts.trained)
    trained = count(Trainable(model, lora).abstract())
    adapters = 2.0 * sum(counts.trained) * trained if lora else 0.0
    back = counts.backward  # takes the time of two forward passes, or with adapters on frozen weights of one
    update = epochs * ((1 + (back if lora else 2 * back)) * forward + (1 + 2 * back) * adapters)
    # A micro-batch reads the weights forward and backward and adds to a gradient; AdamW reads parameters, gradient and
    # two moments and writes all but the gradient; float32.
    moved = epochs * counts.micro_batches * (weights + back * (weights + 8 * trained)) + counts.updates * 28 * trained
    sampled = _weights_read(model, decoding or mesh)
    rollout = (_prefill(counts, model, sampled), _decoding(counts, model, sampled)) if counts.sampled else ()
    return {
        "rollout": rollout,  # none where a server samples
        "score": (Work(flops=scorings * (forward + adapters), bytes=scorings * counts.micro_batches * weights),),
        "update": (Work(flops=update, bytes=moved),),
    }


def _weights_read(model: QwenConfig, mesh: Mesh) -> int:
    """Bytes that all devices together read of the weights: devices that cut them between them read one copy."""
    return weight_bytes(model) * (shards("tokens", mesh) // shards("experts", mesh))


def _prefill(counts: Counts, model: QwenConfig, weights: int) -> Work:
    """The prompts; the unembedding of their last token alone."""
    unembedding = 2.0 * model.hidden_size * model.vocab_size
    flops = sum(length * model_flops(model, length) - max(length - 1, 0) * unembedding for length in counts.prompts)
    return Work(flops=flops, bytes=weights)


def _decoding(counts: Counts, model: QwenConfig, weights: int) -> Work:
    """Responses with full slots to the end: each step reads the weights, each token the cache of what precedes it.

    And where there are layers with the gated delta rule it reads and writes their states.
    """
    flops = sum(
        (prompt + response) * model_flops(model, prompt + response) - prompt * model_flops(model, prompt)
        for prompt, response in counts.sampled
    )
    tokens = sum(response for _, response in counts.sampled)
    steps = max(-(-tokens // max(counts.slots, 1)), max((response for _, response in counts.sampled), default=0))
    windows = [model.window_of(layer) for layer in model.attention_layers]
    columns = sum(
        windows.count(window)
        * sum(_seen(prompt + response, window) - _seen(prompt, window) for prompt, response in counts.sampled)
        for window in set(windows)
    )
    dtype = model.compute.dtype
    cache = columns * layer_column_bytes(model, dtype) + 2 * tokens * delta_state_bytes(model, dtype)
    return Work(flops=flops, bytes=steps * weights + cache)


def _seen(tokens: int, window: int | None) -> int:
    """Tokens that all of a sequence attend to together, each itself among them."""
    near = tokens if window is None else min(window, tokens)
    return near * (near + 1) // 2 + (tokens - near) * near


def shares(
    steps: Sequence[tuple[Counts, Mapping[str, float]]], peak: Peak, works: Callable[[Counts], Any]
) -> list[Any]:
    """One row a stage, over all steps: seconds, FLOPs, bytes, the bound in seconds, and the share reached.

    Args:
      steps: what each consisted of, and the seconds of its stages.
      works: `stage_works` of the run; stages that it does not name have no roofline.
    """
    done = [(works(counts), seconds) for counts, seconds in steps]
    names = dict.fromkeys(name for _, seconds in done for name in seconds)
    rows = []
    for name in names:
        parts = [part for work, _ in done for part in work.get(name, ())]
        took = sum(seconds.get(name, 0.0) for _, seconds in done)
        row: dict[str, Any] = {"stage": name, "seconds": took}
        if parts:
            bound = sum(part.bound(peak) for part in parts)
            flops, moved = sum(part.flops for part in parts), sum(part.bytes for part in parts)
            limit = "compute" if flops / peak.flops >= moved / peak.bandwidth else "memory"
            row |= {"flops": flops, "bytes": moved, "bound_seconds": bound, "bound_by": limit}
            row["share"] = bound / took if took else 0.0
        rows.append(row)
    return rows


def model_flops(model: QwenConfig, context: int, *, last: bool = False) -> float:
    """FLOPs of one token's forward pass: 2 a weight that multiplies it, and attention over half the context on average.

    2 (matrices of all layers + hidden x vocab) + 4 layers with attention x heads x head_dim x context / 2

    Of a layer with a window, the average of what its tokens attend to takes the place of half the context. A layer with
    the gated delta rule has, in place of attention, its own matrices, its convolution, and for each number of its state
    3 products of 2 FLOPs, whatever the context: read by the key, written, read by the query.

    Args:
      last: of the last token of the context, which attends to all of it, not on average.
    """
    embed, dim = model.hidden_size, model.head_dim
    attention = (
        2 * embed * dim * (model.num_heads + model.num_kv_heads) + embed * dim * model.num_heads * model.is_hybrid
    )
    channels, values = model.delta_key_heads * model.delta_channels, model.delta_value_heads * model.delta_value_dim
    delta = embed * (channels + 2 * values + 2 * model.delta_value_heads) + channels * model.delta_taps
    experts = 3 * embed * model.expert_size * model.experts_per_token + embed * model.num_experts
    experts += (3 * model.shared_expert_size + 1) * embed if model.shared_expert_size else 0
    mlp = 3 * embed * model.intermediate_size
    with_attention, with_delta = len(model.attention_layers), len(model.delta_layers)
    weights = with_attention * attention + with_delta * delta + embed * model.vocab_size
    weights += len(model.expert_layers) * experts + len(model.mlp_layers) * mlp
    states = 6.0 * with_delta * model.delta_state_size
    return 2.0 * weights + 4.0 * model.num_heads * dim * model.attended(context, last=last) + states


def weight_bytes(model: QwenConfig) -> int:
    """Bytes of the weights that a decoding step multiplies with: all but an embedding that is not the unembedding."""
    rows_only = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    return (model.num_parameters - rows_only) * (2 if model.compute.dtype == "bfloat16" else 4)
