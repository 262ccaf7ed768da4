"""Every family against transformers, by one suite over random tiny checkpoints that transformers saved.

One compiled program on one device gives the logits and the gradients of a batch that holds what rows can hold: a full
row, packed sequences, padding on either side. The same on eight devices; decoding against it; and what is written is
read by transformers again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sspo_jax.models import QwenModel, apply_qwen, load_qwen, qwen, save_qwen
from sspo_jax.models.hf.layout import flatten, hf_tensors, to_hf
from sspo_jax.models.lora import LoraConfig, init_lora, lora_shardings, merge_lora, with_lora
from sspo_jax.models.qwen import Params, qwen_shardings
from sspo_jax.sampler.decode import decode_logits, prefill, ready_weights
from sspo_jax.sampler.kv_cache import KEY_COLUMNS, VALUE_COLUMNS, Cache
from sspo_jax.sharding import MeshConfig, make_mesh, named_sharding
from tests.models.conftest import FAMILIES, VOCAB, Checkpoint

TOLERANCE = 2e-5  # of logits, absolute; they are of order 1 to 10 here
TIME = 16
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (4, TIME)).astype(np.int32)
SEGMENTS = np.zeros((4, TIME), np.int32)
SEGMENTS[0] = 1
SEGMENTS[1, :14] = np.repeat([1, 2, 3], [5, 6, 3])
SEGMENTS[2, 6:] = 1
SEGMENTS[3, :2] = 1
SEQUENCES = [(0, 0, 16), (1, 0, 5), (1, 5, 11), (1, 11, 14), (2, 6, 16), (3, 0, 2)]  # (row, start, end)


def loss(params: Params, config: QwenModel, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minus the summed log-probabilities of what follows within its sequence; and the logits."""
    logits = apply_qwen(params, config, tokens, segment_ids=segments)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    is_next = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -jnp.sum(jnp.where(is_next, chosen, 0)), logits


# What differs from another in nothing but a combination of the same features is for the slow tests.
SLOW = ("qwen2", "qwen3-bias", "llama-bias", "qwen35-untied", "qwen35moe", "qwen3-window", "qwen3moe-sparse",
        "qwen3next-dense")  # fmt: skip
SUITE = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]

step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)


@dataclasses.dataclass
class Case:
    """A checkpoint and what one device makes of it."""

    family: str
    checkpoint: Checkpoint
    params: Params
    config: QwenModel
    logits: np.ndarray
    gradients: Params


@pytest.fixture(scope="module", params=SUITE)
def case(request, make_checkpoint) -> Iterator[Case]:
    checkpoint = make_checkpoint(request.param)
    params, config = load_qwen(checkpoint.path)
    unrolled, qwen.UNROLLED_LAYERS = qwen.UNROLLED_LAYERS, 0  # a loop over the layers compiles faster
    gradients, logits = step(params, config, TOKENS, SEGMENTS)
    yield Case(request.param, checkpoint, params, config, np.asarray(logits), gradients)
    qwen.UNROLLED_LAYERS = unrolled


def test_logits_and_gradients(case):
    """Packed, padded left and right, against each sequence alone in transformers; every parameter's gradient."""
    import torch

    model = case.checkpoint.model
    model.zero_grad()
    total = torch.zeros(())
    for row, start, end in SEQUENCES:
        tokens = torch.as_tensor(TOKENS[row : row + 1, start:end]).long()
        theirs = model(input_ids=tokens).logits
        ours = case.logits[row, start:end]
        assert theirs.abs().max() > 0.5  # else a bound on the difference would say little
        np.testing.assert_allclose(ours, theirs[0].detach().numpy(), rtol=0, atol=TOLERANCE)
        total = total + torch.nn.functional.cross_entropy(theirs[0, :-1], tokens[0, 1:], reduction="sum")
    total.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    ours = flatten(case.gradients)
    compared = 0
    for path, group in hf_tensors(case.config).items():
        for tensor in group:
            if tensor.name in expected:  # transformers keeps the experts of a layer in one array
                gradient = to_hf(ours[path][tensor.index], tensor.shape, tensor.inputs, tensor.parts)
                np.testing.assert_allclose(gradient, expected.pop(tensor.name), rtol=0, atol=1e-5 * largest)
                compared += 1
    left = [name for name in expected if "experts" not in name]
    assert left == [n for n in left if case.family == "qwen2-no_bias" and n.endswith("_proj.bias")]
    assert compared >= 9 * case.config.num_layers


def test_eight_devices_with_adapters(case):
    """On a mesh with adapters beside the weights, against one device with the weights they are merged to.

    A weight's gradient is the same in both; with W + s A B an adapter's follows from it: s G B' and s A' G.
    """
    lora = LoraConfig(rank=2, alpha=6.0, targets=("query", "key", "value", "output"))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, expert=2))
    rows = named_sharding(mesh, ("batch", "time"))
    adapters = jax.tree.map(lambda x: x + 0.05, init_lora(case.config, lora, jax.random.key(0)))
    on_one, expected = step(merge_lora(case.params, adapters, lora), case.config, TOKENS, SEGMENTS)
    assert np.abs(expected - case.logits).max() > 0.05
    with jax.set_mesh(mesh):
        placed = jax.device_put(case.params, qwen_shardings(case.config, mesh))
        beside = with_lora(placed, jax.device_put(adapters, lora_shardings(case.config, lora, mesh)), lora)
        gradients, logits = step(beside, case.config, jax.device_put(TOKENS, rows), jax.device_put(SEGMENTS, rows))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(on_one))
    ours, one = flatten(gradients), flatten(on_one)
    for name, gradient in one.items():
        np.testing.assert_allclose(ours.pop(name), gradient, rtol=0, atol=2e-5 * largest, err_msg=name)
    assert len(ours) == 2 * len(lora.targets)
    for target in lora.targets:
        a, b = adapters[target]["a"], adapters[target]["b"] * 3.0
        matrices = one[f"blocks.{target}"].reshape(len(a), -1, b[0, 0].size)
        by_a = matrices @ b.reshape(*b.shape[:2], -1).swapaxes(1, 2)
        by_b = a.reshape(len(a), -1, 2).swapaxes(1, 2) @ matrices
        for part, by_hand in (("a", by_a), ("b", by_b)):
            found = ours[f"blocks.{target}_lora_{part}"].reshape(by_hand.shape)
            np.testing.assert_allclose(found, by_hand, rtol=0, atol=5e-5 * np.abs(by_hand).max(), err_msg=target)


def decoded(weights: Any, config: QwenModel, prompts: Any, lengths: Any, following: Any) -> jax.Array:
    """Logits [steps, slots, vocab] of decoding after prompts aligned at the right."""
    unrolled = isinstance(weights["blocks"], tuple)
    time, steps = prompts.shape[1], following.shape[0]
    cache = prefill(weights, config, prompts, lengths, chunk=time // 2, dtype=jnp.float32, unrolled=unrolled)

    def room(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, steps if place == x.ndim + axis else 0) for place in range(x.ndim)])

    keys, values, deltas = cache
    cache = Cache(tuple(room(x, KEY_COLUMNS) for x in keys), tuple(room(x, VALUE_COLUMNS) for x in values), deltas)

    def one(cache: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        index, tokens = inputs
        positions = lengths + index
        angles = qwen.rotary_angles(positions, config)
        logits, cache = decode_logits(
            weights, config, cache, tokens, positions, angles, time + index, unrolled=unrolled
        )
        return cache, logits

    return jax.lax.scan(one, cache, (jnp.arange(steps), following))[1]


run_decoded = jax.jit(decoded, static_argnums=1)


def test_prefill_and_decode(case):
    """Two sequences of the batch, one shorter; layers stacked, of one family in arrays of their own."""
    unrolled = case.family == "llama" or case.config.has_kinds
    weights = ready_weights(case.params, case.config, unrolled=unrolled)
    lengths, steps = np.array([8, 5], np.int32), 5
    prompts = np.stack([TOKENS[0, :8], np.pad(TOKENS[2, 6:11], (3, 0))])
    following = np.stack([TOKENS[0, 8 : 8 + steps], TOKENS[2, 11 : 11 + steps]], axis=1)
    logits = run_decoded(weights, case.config, prompts, lengths, following)
    expected = np.stack([case.logits[0, 8 : 8 + steps], case.logits[2, 11 : 11 + steps]], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def tensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in path.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def test_transformers_reads_what_is_written(case, tmp_path):
    """In several files; the same tensors bit for bit, as a model of the same class, and as ours again."""
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    model = dataclasses.replace(case.config, eos_token_ids=(5,))
    save_qwen(out, case.params, model, dtype="float32", max_shard_bytes=20_000)
    assert (out / "model.safetensors.index.json").is_file()
    ours, theirs = tensors_of(out), tensors_of(case.checkpoint.path)
    assert {name: (x.dtype, x.shape, x.tobytes()) for name, x in ours.items()} == {
        name: (x.dtype, x.shape, x.tobytes()) for name, x in theirs.items()
    }
    loaded, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    written_as = "LlamaForCausalLM" if case.family == "qwen2-no_bias" else type(case.checkpoint.model).__name__
    assert type(loaded).__name__ == written_as
    with torch.no_grad():
        again = loaded.eval()(torch.as_tensor(TOKENS).long()).logits.numpy()
    np.testing.assert_array_equal(again, case.checkpoint.logits(TOKENS))
    assert loaded.generation_config.eos_token_id == [5]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 5
    params, config = load_qwen(out)
    assert config == model
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


def test_parameters_are_counted(case):
    assert case.config.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(case.params))
