"""Planning for TPUs: the figures by hand, and one real compilation where libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import TrainConfig
from sspo_jax.models import configs
from sspo_jax.models.lora import LoraConfig
from sspo_jax.planning import bounds, chips
from sspo_jax.planning import plan as planning
from sspo_jax.planning.programs import PlannedProgram, resolve_shape
from sspo_jax.sampler import kv_cache
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig, axes_of, make_mesh, rearranged
from tests.trainer.conftest import small

CHIP = chips.CHIPS["v5e"]


def program(name: str, gib: float, refusal: str = "") -> PlannedProgram:
    size = int(gib * chips.GIB)
    return PlannedProgram(name=name, arguments=size, temporaries=0, resident=0, seconds=0.0, refusal=refusal)


def test_model_flops_by_hand():
    """One layer, width 4, 2 query heads and 1 key head of 2, MLP 8, vocabulary 10, context 6.

    Weights: query and output 4*4 each, key and value 4*2 each: 48; MLP 3*4*8 = 96; unembedding 40. 2 * 184 = 368.
    Attention: 2 products of 2 FLOPs, 2 heads of 2, over 6 / 2 tokens: 2 * 2 * 4 * 3 = 48.
    """
    model = configs.QwenConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2
    )
    assert bounds.model_flops(model, 6) == 368 + 48
    # Two of four experts of width 3, and the router: 2 * (48 + 2 * 36 + 16 + 40) + 48.
    experts = dataclasses.replace(model, num_experts=4, experts_per_token=2, expert_size=3)
    assert bounds.model_flops(experts, 6) == 2 * (48 + 72 + 16 + 40) + 48


def test_the_gated_delta_rule_by_hand():
    """The model above with a gate, and before it a layer with the rule: 1 key head of 2, 2 value heads of 3.

    Attention 48 and its gate 16. The rule: 2 * 2 + 6 = 10 channels, 4 * (10 + 2 * 6 + 2 * 2) = 104, convolution of 4
    taps 40. MLP twice 96, unembedding 40: 2 * 440. Attention over 3 tokens 48. The state has 12 numbers: 6 * 12 = 72.
    A slot keeps the state, 48 bytes, and the 3 last inputs of 10 channels, in bfloat16 60.
    """
    model = configs.QwenConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2,
        layer_types=("linear_attention", "full_attention"),
        delta_key_heads=1, delta_value_heads=2, delta_key_dim=2, delta_value_dim=3,
    )  # fmt: skip
    assert bounds.model_flops(model, 6) == 2 * (48 + 16 + 104 + 40 + 2 * 96 + 40) + 48 + 72
    assert kv_cache.delta_state_bytes(model, "bfloat16") == 48 + 60
    assert kv_cache.cache_bytes(model, 8, 6, "bfloat16") == 8 * (6 * 2 * 2 * 2 + 108)
    step = bounds.decoding_step(model.computed(dtype="bfloat16"), make_mesh(MeshConfig(), jax.devices()[:1]),
                                slots=8, columns=6, held=0.5)  # fmt: skip
    assert step.memory == 2 * model.num_parameters + 8 * (3 * 8 + 2 * 108)


def test_windows_and_layers_without_experts_by_hand():
    """The first model with three layers. Two with windows of 2: a token of 6 sees 6 / 2, of a window 2 - 4 / 12 = 5 / 3
    on average, and the last one 6 and 2. With experts in the last layer alone, two of four of width 3 and the router.
    """
    model = configs.QwenConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2,
    )  # fmt: skip
    window = dataclasses.replace(model, sliding_window=2, sliding_layers=(0, 2))
    weights = 2 * (3 * (48 + 96) + 40)
    assert bounds.model_flops(window, 6) == pytest.approx(weights + 16 * (3 + 2 * 5 / 3))
    assert bounds.model_flops(window, 6, last=True) == weights + 16 * (6 + 2 * 2)
    assert bounds.model_flops(window, 1) == bounds.model_flops(model, 1)
    on_one = make_mesh(MeshConfig(), jax.devices()[:1])
    step = bounds.decoding_step(window.computed(dtype="bfloat16"), on_one, slots=8, columns=6)
    assert step.memory == 2 * model.num_parameters + 8 * (6 + 2 * 2) * 8
    assert kv_cache.cache_bytes(window, 8, 6, "bfloat16") == 8 * 6 * 3 * 8  # a window keeps as many
    sparse = dataclasses.replace(model, num_experts=4, experts_per_token=2, expert_size=3, dense_layers=(0, 1))
    assert bounds.model_flops(sparse, 6) == 2 * (3 * 48 + 2 * 96 + 72 + 16 + 40) + 3 * 48
    assert sparse.num_parameters == model.num_parameters - 96 + 4 * (36 + 4)


def test_the_bound_of_decoding_by_hand():
    """The model above, untied, 8 slots of 6 columns in float32, on a chip of 1 GB/s and 1 TFLOP/s.

    Weights read: 48 + 8 of biases + 96 + 8 of norms + 40 of the unembedding + 4 of the last norm = 204, 816 bytes.
    Cache: 8 * 6 * 2 * 2 * 4 bytes = 768. A token: 368 + 2 * 2 * 4 * 6 = 464 FLOPs; 8 * 464 / 1584 = 2.3 FLOPs a byte.
    1,584 bytes take 1.584 us: 8 / 1.584e-6 = 5,050,505 tokens a second. Two devices of fsdp read the weights twice.
    """
    model = configs.QwenConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        tie_embeddings=False,
    )
    tied = dataclasses.replace(model, tie_embeddings=True)
    assert bounds.weight_bytes(model) == 4 * 204
    assert bounds.weight_bytes(tied.computed(dtype="bfloat16")) == 2 * 204
    chip = chips.Chip(memory_gib=1.0, peak_tflops=1.0, bandwidth_gb=1.0)

    def bound(devices: int, chip: chips.Chip) -> str:
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        return bounds.decode_bound(model, chip, mesh, slots=8, columns=6)

    assert "intensity 2 FLOP/byte where the chip balances at 1000: memory-bound, at most 5,050,505 " in bound(1, chip)
    assert f"at most {16 / 2.4e-6:,.0f} tokens/s" in bound(2, chip)
    slow = dataclasses.replace(chip, peak_tflops=1e-3)
    assert f"balances at 1: compute-bound, at most {1e9 / 464:,.0f} tokens/s" in bound(1, slow)


def tiny(**model: object) -> TrainConfig:
    """4 prompts x 4 samples of 40 + 16 tokens."""
    return small(warm_start=None, **{f"model__{name}": value for name, value in model.items()})


# Of rank 2: query and output 32 x 32, key and value 32 x 16, MLP 3 of 32 x 64; inputs and outputs added, 2 layers.
ADAPTERS = 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))


def test_step_flops_by_hand():
    """896 tokens, one epoch. All weights: sampled, scored, and 3 forward passes' worth: 5. With adapters the backward
    pass has no gradients of the weights: 4; and 2 FLOPs for each of an adapter's, scored once and 3 in the update.
    """
    config = tiny()
    model = resolve_shape(config.model)
    forward = bounds.model_flops(model, 56)

    def flops(*, has_reference: bool = False, lora: LoraConfig | None = None) -> float:
        epochs = config.update.epochs
        return bounds.step_flops(model, config.rollout, epochs=epochs, has_reference=has_reference, lora=lora)

    assert flops() == 896 * 5 * forward
    assert flops(has_reference=True) == 896 * 6 * forward
    assert flops(lora=LoraConfig(rank=2)) == 896 * (4 * forward + 4 * 2 * ADAPTERS)


MEASURE = """
import dataclasses, json
import jax
from sspo_jax.models.lora import LoraConfig
from sspo_jax.planning import programs as planning
from sspo_jax.planning.plan import traced
from sspo_jax.sharding import MeshConfig, make_mesh
from tests.trainer.conftest import small

found = {}
mesh = make_mesh(MeshConfig(fsdp=1))
plain = small(warm_start=None)
for name, config, compiled in (
    ("lora", small(warm_start=None, model__lora=LoraConfig(rank=2), model__dtype="bfloat16"), ("optimizer", "weights")),
    ("plain", plain, ()),
    ("penalised", dataclasses.replace(plain, loss=dataclasses.replace(plain.loss, kl_coefficient=0.1)), ("update",)),
):
    model = planning.resolve_shape(config.model)
    update = dataclasses.replace(config.update, micro_rows=8, row_tokens=64)
    _, rollout, training = traced(dataclasses.replace(config, update=update), model, mesh, mesh)
    rollout = planning.widest(rollout.values())
    has_reference = bool(config.loss.kl_coefficient)
    resident = planning.residents(model, mesh, rollout, lora=config.model.lora, has_reference=has_reference)
    with jax.set_mesh(mesh):
        found[name] = {
            kind: [
                resident[kind],
                planning.compile_program(kind, program, 0).arguments if kind in compiled else None,
            ]
            for kind, program in {**rollout, **training}.items()
        }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, list[int]]]:
    """{configuration: {program: [bytes beside it, bytes of its arguments]}}, on one CPU device, so that bytes can be
    counted by hand; in a process of its own, where batches of abstract arrays pass."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_with_lora_the_optimizer_is_of_the_adapters_and_the_weights_are_kept_in_bfloat16(measured):
    """4 bytes of an adapter's weight, 8 of its moments, 2 of a frozen weight."""
    lora = measured["lora"]
    adapters = 4 * ADAPTERS
    base = 2 * resolve_shape(tiny().model).num_parameters
    state = 2 * adapters + 8  # and the counts of Adam and of the schedule
    usable = 2 * (512 * 32 + 32)  # the embedding and the last norm: the sampler takes them as they are
    assert {name: beside for name, (beside, _) in lora.items()} == {
        "optimizer": base,
        "weights": state + usable,
        "decode": base + adapters + state - usable,
        "prefill": base
        + adapters
        + state
        - usable
        + 2 * 2 * 2 * 16 * 64 * 16,  # and the cache: 2 layers, keys, values, 16 slots, 64 columns, a head of 16
        "insert": base + adapters + state - usable + base,
        "update": state,
    }
    figures = 8  # gradient norm and learning rate
    assert 0 <= lora["optimizer"][1] - (adapters + state + adapters + figures) < 4096  # alignment and pointers
    assert 0 <= lora["weights"][1] - (adapters + 2 * (base - usable)) < 4096


def test_a_reference_policy_takes_its_place(measured):
    """Float32 weights once more beside every program; the loss finds its log-probs in the batch."""
    weights = 4 * resolve_shape(tiny().model).num_parameters
    for name, (beside, _) in measured["penalised"].items():
        assert beside - measured["plain"][name][0] == weights, name
    assert measured["penalised"]["update"][1] > 2 * weights


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("case", ["kl", "16x8-slots384", "25x4", "40x5", "lora", "layers"])
def test_what_is_planned_is_what_a_step_compiles(case, devices):
    """The same programs with the same arguments: trees, shapes, dtypes, and the part on a device where it is known."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.planning.real_run", case, str(devices)],
        capture_output=True, text=True, env=environment, cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    planned, run = found["planned"], found["run"]
    assert set(planned) <= set(run)
    assert {name.split()[0] for name in run} == {name.split()[0] for name in planned}
    for name, arguments in planned.items():
        assert [leaf[:3] for leaf in arguments] == [leaf[:3] for leaf in run[name]], name
        for ours, theirs in zip(arguments, run[name], strict=True):
            assert ours[3] in (None, theirs[3]), (name, ours, theirs)


def test_verdict_names_what_is_free_or_missing():
    model = load_experiment("qwen25_math_1p5b_sspo").model

    def lines(*programs: PlannedProgram, shards: int = 4) -> list[str]:
        return planning.verdict(programs, CHIP, model, micro_rows=8, shards=shards, slots=384)

    assert lines(program("update", 12.0), program("decode", 3.0)) == ["FITS: update leaves 3.75 GiB a chip free"]
    (line,) = lines(program("update", 17.0), program("decode", 3.0))
    assert line.startswith("DOES NOT FIT: update is over by 1.25 GiB a chip; try --update.micro-rows 4,")
    (line,) = lines(program("update", 12.0), program("decode", 17.0))
    assert "decode is over by 1.25 GiB a chip; try --rollout.slots 192" in line
    (line,) = lines(program("update", 0.0, "exceeds"), program("decode", 15.0), shards=8)
    assert line.startswith("DOES NOT FIT: update is over; try rows cut between devices (--mesh.context 2), or more")


def test_known_names_need_no_files():
    config = load_experiment("qwen25_math_1p5b_sspo")
    shape = resolve_shape(config.model)
    assert (shape.num_layers, shape.compute.remat, shape.compute.dtype) == (28, "full", "bfloat16")
    unknown = dataclasses.replace(config.model, path="Qwen/Unknown")
    with pytest.raises(ValueError, match=r"'Qwen/Unknown' is no directory.*Qwen/Qwen2.5-Math-1.5B"):
        resolve_shape(unknown)


def test_unknown_topology():
    with pytest.raises(ValueError, match=r"topology 'v9:2x4': expected one of v3, v4"):
        chips.chip_of("v9:2x4")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-m", "sspo_jax", "plan", *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_it_says_what_to_install():
    result = run("arithmetic_tiny")
    assert result.returncode != 0
    assert 'pip install "sspo-jax[train,tpu]"' in result.stderr


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs jax[tpu]")


@pytest.mark.slow
@needs_libtpu
def test_tiny_run_on_eight_chips():
    result = run("arithmetic_tiny", "--topology", "v5e:2x4", "--update.micro-rows", "8", "--mesh.tensor", "2")
    assert result.returncode == 0, result.stderr
    for name in ("optimizer", "prefill", "insert", "decode", "update"):  # one size of cache: it is not resized
        assert f"\n  {name}" in result.stdout
    assert "fsdp 4, tensor 2" in result.stdout
    assert "FITS" in result.stdout


@pytest.mark.slow
@needs_libtpu
def test_adapters_of_a_tiny_run():
    options = ("--update.micro-rows", "8", "--model.lora.rank", "4")
    result = run("arithmetic_tiny", "--topology", "v5e:2x4", *options)
    assert result.returncode == 0, result.stderr
    assert "LoRA of rank 4" in result.stdout
    assert "\n  weights" in result.stdout
    assert "FITS" in result.stdout


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_is_refused():
    result = run("qwen25_math_7b_sspo", "--topology", "v5e:1x1", "--update.micro-rows", "8")
    assert result.returncode == 3, result.stderr
    assert "DOES NOT FIT" in result.stdout


ROLLOUT_PROGRAMS = """
import dataclasses, json, sys
from sspo_jax.planning import chips, programs as planning
chips.prepare_host()
import jax
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.kv_cache import cache_bytes
from sspo_jax.sharding import MeshConfig, make_mesh
shape = QwenConfig(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=int(sys.argv[1]), num_heads=8, num_kv_heads=2,
    head_dim=128,
)
config = load_experiment("qwen25_math_1p5b_sspo")
rollout = dataclasses.replace(
    config.rollout, slots=64, max_prompt_tokens=512, max_new_tokens=1536, stop_token_ids=()
)
model = dataclasses.replace(config.model, path=None, shape=shape, tokenizer="tiny")
config = dataclasses.replace(config, model=model, rollout=rollout)
mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), chips.topology_devices("v5e:2x2", 1))
sizes = {"cache": cache_bytes(shape, 64, 2048, "bfloat16") / 4}
computed = planning.resolve_shape(config.model)
sampler = planning.run_sampler("tiny", config.rollout, computed, mesh)
traced = planning.rollout_programs(config.rollout, None, sampler, mesh)
for name, program in planning.widest(traced.values()).items():
    if name in ("insert", "resize", "decode"):
        with jax.set_mesh(mesh):
            found = planning.compile_program(name, program, 0)
        sizes[name] = [found.arguments, found.temporaries]
print(json.dumps(sizes))
"""


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("layers", [2, 10], ids=["unrolled", "scanned"])
def test_no_rollout_program_copies_the_cache(layers):
    """Beside cache, weights and prompts less than one layer; than half of it where the cache is donated."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", ROLLOUT_PROGRAMS, str(layers)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout.splitlines()[-1])
    cache = sizes.pop("cache")
    assert sorted(sizes) == ["decode", "insert", "resize"]
    for name, (arguments, temporaries) in sizes.items():
        caches = 1.75 if name == "resize" else 1  # 1,536 columns grow to 2,048
        assert caches * cache <= arguments < (caches + 0.1) * cache, name
        assert temporaries < cache / layers / (1 if name == "resize" else 2), name


WINDOW_PROGRAM = """
import sys
from sspo_jax.planning import chips
chips.prepare_host()
import jax, jax.numpy as jnp
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import apply_qwen
from sspo_jax.optimizer import abstract_state
from sspo_jax.sharding import MeshConfig, make_mesh, named_sharding
model = QwenConfig(
    vocab_size=1024, hidden_size=512, intermediate_size=1024, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=64,
    sliding_window=512, sliding_layers=(1,),
).computed(dtype="bfloat16", attention="splash", remat="none")
mesh = make_mesh(MeshConfig(fsdp=-1), chips.topology_devices(sys.argv[1], 1))
params = abstract_state(model, mesh)["params"]
tokens = jax.ShapeDtypeStruct((4, 2048), jnp.int32, sharding=named_sharding(mesh, ("batch", "time")))
def loss(params, tokens, segments):
    return apply_qwen(params, model, tokens, segment_ids=segments).astype(jnp.float32).mean()
with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile().as_text()
print("kernels", text.count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_kernels_with_a_window_compile_for_tpus(topology):
    """Forward and both backward kernels, with a window and without one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", WINDOW_PROGRAM, topology], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "kernels 6"


def compiled_layout(topology: str, experiment: str, layout: str) -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.planning.compiled_layout", topology, experiment, layout],
        capture_output=True, text=True, env=environment, cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "experiment", "mesh"),
    [
        ("v5e:2x4", "qwen25_math_1p5b_sspo", {"data": 8}),
        ("v5e:4x4", "qwen25_math_1p5b_sspo", {"data": 16}),
        ("v5p:2x2x1", "qwen25_math_1p5b_sspo", {"data": 4}),
        ("v6e:2x4", "qwen25_math_1p5b_sspo", {"data": 8}),
        ("v5e:4x4", "qwen25_math_7b_sspo", {"data": 4, "tensor": 4}),
    ],
    ids=["v5e-8", "v5e-16", "v5p-8", "v6e-8", "v5e-16-7B"],
)
def test_no_weight_is_sent_between_chips_while_decoding(topology, experiment, mesh):
    """Nor is more read of the cache than what is held: the kernel is in the program. Handing over takes the room of
    little more than one layer besides."""
    found = compiled_layout(topology, experiment, "chosen")
    assert found["mesh"] == mesh
    assert found["of_weights"] == []
    assert found["fits"]
    assert found["kernel"]
    assert found["scratch_in_layers"] < 1.5


@pytest.mark.slow
@needs_libtpu
def test_the_layout_of_training_sends_all_of_them():
    found = compiled_layout("v5e:2x4", "qwen25_math_1p5b_sspo", "trained")
    assert len(found["of_weights"]) >= 7  # of a layer: four kernels of attention, three of the MLP


def test_a_decoding_step_by_hand():
    """The model above on eight devices, tied, 16 slots of 6 columns, float32.

    816 bytes of weights; the cache of a slot 96, of all 1,536. Gathered: 7 of 8 parts. Cut in two: half of the weights
    a device; 4 slots in each of 4 groups; two sums of 4 rows of 4 floats, each device receives 2 * 1 / 2 of 64 bytes;
    half of the logits, 4 rows of 10 floats.
    """
    model = configs.QwenConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=2
    )
    weights, cache = bounds.weight_bytes(model), 16 * 6 * 2 * 2 * 2 * 4
    trained = make_mesh(MeshConfig(fsdp=8))
    whole, cut = (rearranged(trained, RolloutMeshConfig(tensor=tensor)) for tensor in (1, 2))
    step = bounds.decoding_step(model, trained, slots=16, columns=6)
    assert (step.memory, step.gathered, step.exchanged) == (weights + cache / 8, weights * 7 / 8, 0)
    step = bounds.decoding_step(model, whole, slots=16, columns=6)
    assert (step.memory, step.gathered, step.exchanged) == (weights + cache / 8, 0, 0)
    step = bounds.decoding_step(model, cut, slots=16, columns=6, held=0.5)
    assert (step.memory, step.gathered) == (weights / 2 + cache / 16, 0)
    assert step.exchanged == 2 * 64 + 0.5 * 4 * 10 * 4
    chip = chips.Chip(memory_gib=1.0, peak_tflops=1e3, bandwidth_gb=1.0, link_gb=0.1)
    assert step.seconds(chip) == pytest.approx((weights / 2 + cache / 16) / 1e9 + step.exchanged / 1e8)
    gathered = bounds.decoding_step(model, trained, slots=16, columns=6)
    assert gathered.seconds(chip) == pytest.approx(weights * 7 / 8 / 1e8)


def test_the_bound_of_1p5b_on_eight_v5e_is_two_and_a_half_times_that_of_the_gathered_layout():
    """Where a fifth of the columns is held, as with lengths of a long tail: 3.09 GB of weights and 1.13 of cache."""
    config = load_experiment("qwen25_math_1p5b_sspo")
    model, mesh = resolve_shape(config.model), make_mesh(MeshConfig(fsdp=8))
    layout = planning.layout_of(config, model, mesh, memory=CHIP.memory_gib * chips.GIB)
    assert axes_of(layout.mesh) == {"data": 8}

    def rate(mesh: object, held: float) -> float:
        return 384 / bounds.decoding_step(model, mesh, slots=384, columns=4096, held=held).seconds(CHIP)

    assert rate(layout.mesh, bounds.HELD) > 2.5 * rate(mesh, bounds.HELD)
    assert rate(layout.mesh, 1.0) == pytest.approx(36_047, rel=1e-3)
    lines = bounds.compare_layouts([layout], layout.mesh, model, CHIP, columns=4096)
    assert "data 8" in lines[1]
    assert lines[1].endswith("recommended")
