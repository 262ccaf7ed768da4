"""A prompt once for a group: the same update, up to the order of sums, as with a prompt for each response."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.config import OptimizerConfig
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.losses import Sspo
from sspo_jax.models import QwenConfig, init_qwen
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import Params
from sspo_jax.runs.metrics_file import combine, host_value
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.batch import assign_rows, pack_rows
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import Rollout
from tests.trainer.conftest import one_device, small

MODEL = QwenConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    tie_embeddings=True,
    init_scale=0.2,
)
WINDOW = {"sliding_window": 6, "sliding_layers": (1,)}
GROUPS = [(9, (5, 12, 1, 8)), (1, (7, 7)), (14, (20, 3, 11, 2)), (6, (4,))]
"""Length of a prompt, lengths of the responses to it."""


def sampled(text: str) -> tuple[Rollout, np.ndarray]:
    """Responses cut out of a text, and advantages of both signs."""
    noise, tokens = np.random.default_rng(0), np.array(load_tokenizer("tiny").encode(text), np.int32)

    def cut(length: int) -> np.ndarray:
        return tokens[(start := noise.integers(0, len(tokens) - length)) : start + length]

    prompts = [cut(length) for length, _ in GROUPS]
    group_ids = np.repeat(np.arange(len(GROUPS)), [len(widths) for _, widths in GROUPS]).astype(np.int32)
    responses = tuple(cut(width) for _, widths in GROUPS for width in widths)
    rollout = Rollout(
        prompts=tuple(prompts[group] for group in group_ids),
        responses=responses,
        logprobs=tuple(np.zeros(len(response), np.float32) for response in responses),
        finish_reasons=np.ones(len(responses), np.int32),
        group_ids=group_ids,
        sample_ids=np.zeros(len(responses), np.int32),
    )
    return rollout, noise.choice([-1.0, 1.0, 0.5], len(responses)).astype(np.float32)


ROLLOUT, ADVANTAGES = sampled(
    "So Tom has 3 + 4 = 7 apples. He gives 2 away, and 7 - 2 = 5 are left; then he buys 6. " * 3
)


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update on everything came to."""

    tokens: dict[int, tuple[np.ndarray, ...]]  # of each response: cuts, log-probs, entropies
    gradients: Params
    metrics: dict[str, float]
    rows: int


def update(train: TrainPrograms, params: Params, base: Params | None, *, row_tokens: int, share: bool) -> Update:
    how: dict[str, Any] = {"row_tokens": row_tokens, "share_prompts": share}
    members = assign_rows(ROLLOUT, np.arange(len(ROLLOUT)), **how)
    cuts = pack_rows(ROLLOUT, ADVANTAGES, members, micro_rows=8, **how)
    gradients, parts, found = train.zero_gradients(), [], {}
    batches = []
    for batch in map(train.place, cuts):
        _, (logprobs, entropies, _), _ = train.micro_batch(params, train.zero_gradients(), batch, False, base)
        old = jnp.where(batch.mask, logprobs - 0.3 * (batch.tokens % 7 - 3), 0)  # so that ratios are not 1
        ids = train.segment(batch, train.scalar(0.0))
        batches.append(dataclasses.replace(batch, old_logprobs=old, entropies=entropies, subsentence_ids=ids))
    denominator = train.denominator(batches)
    for number, batch in enumerate(batches):
        batch = dataclasses.replace(batch, denominator=denominator)
        gradients, (logprobs, entropies, _), metrics = train.micro_batch(params, gradients, batch, True, base)
        parts.append(jax.device_get(metrics))
        arrays = jax.device_get((batch.mask, batch.segment_ids, batch.subsentence_ids, logprobs, entropies))
        for row, responses in enumerate(members[8 * number : 8 * number + 8]):
            for segment, response in enumerate(responses, 1):
                mask, segments, *values = (array[row] for array in arrays)
                ids, *rest = (each[mask & (segments == segment)] for each in values)
                found[response] = (ids - ids[0], *rest)
    values = {name: host_value(metric) for name, metric in combine(parts).items()}
    return Update(found, jax.device_get(gradients), values, len(members))


@pytest.mark.parametrize(
    ("mesh", "compute", "lora", "row_tokens"),
    [
        pytest.param(MeshConfig(fsdp=1), {}, None, 64, id="one-device"),
        pytest.param(MeshConfig(fsdp=1), WINDOW, None, 64, id="window", marks=pytest.mark.slow),
        pytest.param(
            MeshConfig(fsdp=2, context=2, tensor=2), WINDOW, None, 64, id="window-cut-in-time", marks=pytest.mark.slow
        ),
        pytest.param(
            MeshConfig(fsdp=1), {"attention": "splash"} | WINDOW, None, 128, id="window-splash", marks=pytest.mark.slow
        ),
        pytest.param(MeshConfig(fsdp=4, tensor=2), {}, None, 64, id="eight-devices", marks=pytest.mark.slow),
        pytest.param(MeshConfig(fsdp=1), {"remat": "full"}, LoraConfig(rank=2), 64, id="lora", marks=pytest.mark.slow),
        pytest.param(MeshConfig(fsdp=1), {"attention": "splash"}, None, 128, id="splash", marks=pytest.mark.slow),
        pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), {}, None, 64, id="cut-in-time", marks=pytest.mark.slow),
        pytest.param(
            MeshConfig(fsdp=2, context=2, tensor=2),
            {"attention": "splash"},
            None,
            256,
            id="splash-cut-in-time",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            MeshConfig(fsdp=4, tensor=2), {"attention": "splash"}, None, 128, id="splash-mesh", marks=pytest.mark.slow
        ),
    ],
)
def test_the_update_is_that_of_separate_prompts(
    mesh: MeshConfig, compute: dict[str, Any], lora: LoraConfig | None, row_tokens: int
):
    devices = make_mesh(mesh, jax.devices()[:1] if mesh.tensor == 1 else None)
    shape = dataclasses.replace(MODEL, head_dim=64) if "attention" in compute else MODEL
    shape = dataclasses.replace(shape, **{name: compute[name] for name in WINDOW if name in compute})
    compute = {name: value for name, value in compute.items() if name not in WINDOW}
    train = TrainPrograms(
        config=shape.computed(**({"dtype": "float32", "remat": "none"} | compute)),
        objective=Sspo.paper_like(),
        optimizer_config=OptimizerConfig(learning_rate=1e-3),
        segmenter=Segmenter.from_tokenizer(load_tokenizer("tiny"), min_tokens=2),
        mesh=devices,
        temperature=1.0,
        lora=lora,
    )
    with jax.set_mesh(devices):
        weights = init_qwen(train.config, jax.random.key(0), mesh=devices)
        params = train.trainable.start(weights, jax.random.key(1), devices)
        base = None
        if lora is not None:
            params, base = jax.tree.map(lambda x: x + 0.02, params), weights
        each = update(train, params, base, row_tokens=row_tokens, share=False)
        once = update(train, params, base, row_tokens=row_tokens, share=True)
    assert once.rows < each.rows or each.rows == 1
    assert each.tokens.keys() == once.tokens.keys() == set(range(len(ROLLOUT)))
    for response, (ids, logprobs, entropies) in each.tokens.items():
        assert len(logprobs) == len(ROLLOUT.responses[response])
        assert np.array_equal(once.tokens[response][0], ids)
        np.testing.assert_allclose(once.tokens[response][1], logprobs, atol=2e-5)
        np.testing.assert_allclose(once.tokens[response][2], entropies, atol=2e-5)
    norm = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(each.gradients))
    assert norm > 1e-3
    for first, second in zip(jax.tree.leaves(each.gradients), jax.tree.leaves(once.gradients), strict=True):
        np.testing.assert_allclose(second, first, atol=1e-5 * norm)
    assert each.metrics["ratio/clip_fraction"] > 0
    assert each.metrics.keys() == once.metrics.keys()
    for name, value in each.metrics.items():
        np.testing.assert_allclose(once.metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)


def test_a_model_with_the_delta_rule_is_refused(cache: pathlib.Path):
    """Its state cannot be handed from one prompt to several responses."""
    shape = small().model.shape
    assert shape is not None
    delta = {"delta_key_heads": 2, "delta_value_heads": 4, "delta_key_dim": 8, "delta_value_dim": 8}
    kinds = ("linear_attention", "full_attention")
    shape = dataclasses.replace(
        shape, attention_bias=False, qk_norm=True, layer_types=kinds, rotary_fraction=0.5, **delta
    )
    config = small(warm_start=None, model__shape=shape, update__share_prompts=True)
    with one_device(), pytest.raises(ValueError, match=r"--update\.share-prompts is on, and this model has layers"):
        check(config)
