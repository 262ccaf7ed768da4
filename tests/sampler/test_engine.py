"""The same tokens whatever the layout; log-probabilities of a full forward pass; stops, budgets and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.qwen import apply_qwen
from sspo_jax.sampler import Sampler, SamplingParams, generate
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.types import FinishReason, Rollout

SAMPLING = SamplingParams(max_new_tokens=20, stop_token_ids=(5, 6))


def responses(rollout: Rollout) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollout.response_tokens, rollout.response_mask, strict=True)]


@pytest.fixture(scope="module")
def reference(tiny, prompts) -> Rollout:
    """Every sample has a slot of its own from the start."""
    config, params = tiny
    return generate(params, config, prompts, SAMPLING, group_size=3, seed=11, step=4)


def forward_logprobs(params, config, prompt: list[int], response: list[int]) -> np.ndarray:
    """Log-probability of every response token by one pass over the whole sequence."""
    logits = apply_qwen(params, config, jnp.asarray([prompt + response]))[0]
    logprobs = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
    return np.asarray(logprobs)[np.arange(len(response)), response]


def test_rows_are_ordered_by_prompt_then_sample_and_padded_at_the_right(reference, prompts):
    assert reference.group_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert reference.sample_ids.tolist() == [0, 1, 2] * 6
    for row, group in enumerate(reference.group_ids):
        assert reference.prompt_tokens[row][reference.prompt_mask[row]].tolist() == prompts[group]
    for mask in (reference.prompt_mask, reference.response_mask):
        assert (np.diff(mask.astype(int), axis=1) <= 0).all()
    assert not reference.response_tokens[~reference.response_mask].any()
    assert not reference.sampler_logprobs[~reference.response_mask].any()
    assert reference.sampler_logprobs.dtype == np.float32


def test_logprobs_are_those_of_a_full_forward_pass(reference, prompts, tiny):
    config, params = tiny
    for row, response in enumerate(responses(reference)):
        want = forward_logprobs(params, config, prompts[reference.group_ids[row]], response)
        got = reference.sampler_logprobs[row][: len(response)]
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_samples_of_a_group_differ_and_stops_end_responses(reference):
    texts = responses(reference)
    assert len({tuple(text) for text in texts}) >= 15
    reasons = set()
    for text, reason in zip(texts, reference.finish_reasons, strict=True):
        reasons.add(int(reason))
        stops = [token in SAMPLING.stop_token_ids for token in text]
        assert not any(stops[:-1])
        assert stops[-1] == (reason == FinishReason.STOP)
        assert stops[-1] or len(text) == SAMPLING.max_new_tokens
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 4, "cache_buckets": 3},
        {"slots": 5, "block_steps": 3, "cache_buckets": 3},
        {"slots": 1, "block_steps": 7},
        {"unrolled": False},
        {"unrolled": False, "slots": 4, "cache_buckets": 3},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_slots_blocks_buckets_or_scanning(changes, reference, tiny, prompts):
    config, params = tiny
    sampler = Sampler(config, SAMPLING, **changes)
    rollout = sampler.generate(params, prompts, group_size=3, seed=11, step=4)
    assert responses(rollout) == responses(reference)
    np.testing.assert_allclose(rollout.sampler_logprobs, reference.sampler_logprobs, atol=2e-5)
    if "slots" in changes:
        assert sampler.stats.refills == 18 - changes["slots"]
    grows = any(name.startswith("resize") for name in sampler.programs.names)
    assert grows == ("cache_buckets" in changes)


def test_tokens_do_not_depend_on_order_group_size_or_company(reference, tiny, prompts):
    config, params = tiny
    want = responses(reference)
    order = [4, 2, 0, 5]
    rollout = generate(
        params,
        config,
        [prompts[i] for i in order],
        SAMPLING,
        group_size=2,
        seed=11,
        step=4,
        prompt_ids=order,
        slots=3,
    )
    assert responses(rollout) == [want[3 * i + j] for i in order for j in range(2)]


@pytest.mark.parametrize("changes", [{"seed": 12}, {"step": 5}, {"prompt_ids": [7, 8, 9, 10, 11, 12]}], ids=str)
def test_seed_step_and_prompt_id_give_fresh_noise(changes, reference, tiny, prompts):
    config, params = tiny
    rollout = generate(params, config, prompts, SAMPLING, group_size=3, **{"seed": 11, "step": 4, **changes})
    same = [got == want for got, want in zip(responses(rollout), responses(reference), strict=True)]
    assert sum(same) <= 4


def test_repeated_calls_are_bit_identical(tiny, prompts):
    config, params = tiny
    sampler = Sampler(config, SAMPLING, slots=4)
    first = sampler.generate(params, prompts, group_size=3, seed=11)
    programs = len(sampler.programs)
    second = sampler.generate(params, prompts, group_size=3, seed=11)
    for got, want in zip(jax.tree.leaves(second), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(got, want)
    assert len(sampler.programs) == programs
    assert sampler.stats.compile_seconds == 0


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=4, tensor=2)], ids=["fsdp8", "fsdp4-tensor2"])
def test_eight_devices_give_the_tokens_of_one(mesh, reference, tiny, prompts):
    config, params = tiny
    sampler = Sampler(config, SAMPLING, slots=8, mesh=make_mesh(mesh), cache_buckets=2)
    rollout = sampler.generate(params, prompts, group_size=3, seed=11, step=4)
    assert responses(rollout) == responses(reference)
    np.testing.assert_allclose(rollout.sampler_logprobs, reference.sampler_logprobs, atol=2e-5)


def test_budgets_of_single_rows_truncate(reference, tiny, prompts):
    config, params = tiny
    budgets = [1 + row % 7 for row in range(18)]
    rollout = generate(params, config, prompts, SAMPLING, group_size=3, seed=11, step=4, budgets=budgets, slots=4)
    for got, want, budget, reason in zip(
        responses(rollout), responses(reference), budgets, rollout.finish_reasons, strict=True
    ):
        assert got == want[:budget]
        assert (reason == FinishReason.STOP) == (got[-1] in SAMPLING.stop_token_ids)


def test_greedy_takes_the_most_probable_token(tiny, prompts):
    config, params = tiny
    sampling = SamplingParams(max_new_tokens=8, temperature=0)
    rollout = generate(params, config, prompts, sampling, seed=0)
    for prompt, response in zip(prompts, responses(rollout), strict=True):
        logits = apply_qwen(params, config, jnp.asarray([prompt + response]))[0]
        assert response == np.argmax(logits, axis=-1)[len(prompt) - 1 : -1].tolist()


def test_a_minimum_length_keeps_stop_tokens_away(tiny, prompts):
    config, params = tiny
    sampling = SamplingParams(max_new_tokens=12, min_new_tokens=6, stop_token_ids=tuple(range(4, 60)))
    rollout = generate(params, config, prompts, sampling, group_size=3, seed=1)
    lengths = rollout.response_mask.sum(axis=1)
    assert lengths.min() == 7  # the first stop token that may be drawn
    assert (rollout.finish_reasons == FinishReason.STOP).all()
    row = int(np.argmin(lengths))
    want = forward_logprobs(params, config, prompts[rollout.group_ids[row]], responses(rollout)[row])
    np.testing.assert_allclose(rollout.sampler_logprobs[row, :7], want, atol=2e-5)


def test_finished_samples_are_announced_while_others_decode(reference, tiny, prompts):
    config, params = tiny
    announced, progress = {}, []
    rollout = generate(
        params,
        config,
        prompts,
        SAMPLING,
        group_size=3,
        seed=11,
        step=4,
        slots=4,
        on_finished=lambda row, tokens: announced.update({row: (tokens, len(progress))}),
        progress=progress.append,
    )
    assert {row: tokens for row, (tokens, _) in announced.items()} == dict(enumerate(responses(rollout)))
    assert len({block for _, block in announced.values()}) > 3
    assert progress == sorted(progress)
    assert progress[-1] == rollout.response_mask.sum()


def test_an_interrupt_between_blocks_leaves_the_sampler_usable(reference, tiny, prompts):
    config, params = tiny
    sampler = Sampler(config, SAMPLING, slots=4)

    def interrupt(tokens: int) -> None:
        if tokens > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.generate(params, prompts, group_size=3, seed=11, step=4, progress=interrupt)
    rollout = sampler.generate(params, prompts, group_size=3, seed=11, step=4)
    assert responses(rollout) == responses(reference)


def test_heavy_tailed_lengths_keep_the_slots_busy(tiny):
    """Log-normal lengths, a tenth of those in docs/benchmarks.md: 128 samples, 16 slots."""
    config, params = tiny
    rng = np.random.default_rng(0)
    lengths = np.clip(30 * np.exp(rng.standard_normal(128) * np.log(10) / 2.3263), 1, 240).astype(int)
    sampler = Sampler(config, SamplingParams(max_new_tokens=240), slots=16, block_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 16)
        rollout = sampler.generate(params, [[4, 5]], group_size=128, seed=0, budgets=lengths.tolist())
    assert rollout.response_mask.sum(axis=1).tolist() == lengths.tolist()
    fixed = sum(16 * lengths[i : i + 16].max() for i in range(0, 128, 16))
    assert lengths.sum() / fixed < 0.4
    assert sampler.stats.useful_fraction > 0.85


def test_prompts_are_prefilled_once_and_chunks_change_nothing(tiny, monkeypatch):
    config, params = tiny
    prompts = [[(5 * j + i) % 90 + 4 for j in range(60 + 30 * i)] for i in range(3)]
    sampling = SamplingParams(max_new_tokens=6)
    sampler = Sampler(config, sampling, slots=4)
    whole = sampler.generate(params, prompts, group_size=4, seed=2)
    assert sampler.stats.prompt_tokens == 59 + 89 + 119
    monkeypatch.setattr("sspo_jax.sampler.schedule.PREFILL_CHUNK", 16)
    chunked = generate(params, config, prompts, sampling, group_size=4, seed=2, slots=4)
    assert responses(chunked) == responses(whole)
    for row, response in enumerate(responses(whole)):
        want = forward_logprobs(params, config, prompts[row // 4], response)
        np.testing.assert_allclose(whole.sampler_logprobs[row], want, atol=2e-5)


@pytest.mark.parametrize("slots", [2, 8])
def test_equal_prompts_are_prefilled_once_and_keep_their_own_noise(slots, tiny, prompts):
    config, params = tiny
    order = [2, 3, 2, 0, 3, 2]
    sampler = Sampler(config, SAMPLING, slots=slots, block_steps=4)
    rollout = sampler.generate(params, [prompts[i] for i in order], seed=3, prompt_ids=[10, 11, 12, 13, 14, 15])
    assert sampler.stats.prompt_tokens == sum(len(prompts[i]) - 1 for i in {*order})
    for row, i in enumerate(order):
        alone = generate(params, config, [prompts[i]], SAMPLING, seed=3, prompt_ids=[10 + row])
        assert responses(rollout)[row] == responses(alone)[0]
    assert rollout.group_ids.tolist() == [0, 1, 2, 3, 4, 5]


def test_slots_are_given_up_when_few_long_samples_remain(tiny, monkeypatch):
    config, params = tiny
    monkeypatch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 8)
    prompts = [[4 + i, 9, 8] for i in range(16)]
    budgets = [2] * 15 + [60]
    sampling = SamplingParams(max_new_tokens=60)
    sampler = Sampler(config, sampling, block_steps=4, cache_buckets=2)
    rollout = sampler.generate(params, prompts, seed=5, budgets=budgets)
    alone = generate(params, config, prompts[15:], sampling, seed=5, prompt_ids=[15])
    assert responses(rollout)[15] == responses(alone)[0]
    assert sampler.stats.slot_steps < 16 * 4 + 4 * 60
    assert sampler.stats.tokens == sum(budgets)


@pytest.mark.parametrize(("long", "unrolled", "fewest"), [((3, 9, 14), False, 4), ((0, 1, 2, 3, 4), True, 16)], ids=str)
def test_on_a_mesh_samples_stay_on_their_device_when_slots_are_given_up(long, unrolled, fewest, tiny, monkeypatch):
    """Rows 0 to 7 lie on the first of two devices: five long ones there do not fit into half of its slots."""
    config, params = tiny
    monkeypatch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 8)
    prompts = [[4 + i, 9, 8] for i in range(16)]
    budgets = [40 if row in long else 2 for row in range(16)]
    sampling = SamplingParams(max_new_tokens=40)
    alone = generate(params, config, prompts, sampling, seed=5, budgets=budgets)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    sampler = Sampler(config, sampling, block_steps=4, mesh=mesh, unrolled=unrolled, cache_buckets=2)
    assert responses(sampler.generate(params, prompts, seed=5, budgets=budgets)) == responses(alone)
    decoded = [int(name.split()[1]) for name in sampler.programs.names if name.startswith("decode")]
    assert min(decoded) == fewest


def test_a_bfloat16_cache_is_close(reference, tiny, prompts):
    config, params = tiny
    sampling = SamplingParams(max_new_tokens=1, stop_token_ids=(5, 6))
    rollout = Sampler(config, sampling, cache_dtype="bfloat16").generate(params, prompts, group_size=3, seed=11, step=4)
    first = reference.sampler_logprobs[:, 0]
    same = rollout.response_tokens[:, 0] == reference.response_tokens[:, 0]
    assert same.sum() >= 16
    np.testing.assert_allclose(rollout.sampler_logprobs[same, 0], first[same], atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"prompts": [[4], []]}, "prompt 1 is empty"),
        ({"prompts": [[4, 96]]}, "expected 0 to 95"),
        ({"prompts": [[4] * 240]}, "more than the model's 256 positions"),
        ({"group_size": 0}, "group_size is 0"),
        ({"prompt_ids": [1, 2]}, "prompt_ids has 2 entries, expected 1"),
        ({"budgets": [21]}, "budget of row 0 is 21, expected 1 to max_new_tokens = 20"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_anything_is_computed(arguments, message, tiny):
    config, params = tiny
    sampler = Sampler(config, SAMPLING)
    with pytest.raises(ValueError, match=message):
        sampler.generate(params, **{"prompts": [[4, 5]], "seed": 0, **arguments})
    assert len(sampler.programs) == 0


def test_a_sampler_refuses_what_it_cannot_do(tiny):
    config, _ = tiny
    with pytest.raises(ValueError, match="outside the vocabulary of 96"):
        Sampler(config, SamplingParams(max_new_tokens=4, stop_token_ids=(96,)))
    with pytest.raises(ValueError, match="need decode="):
        Sampler(config, SamplingParams(max_new_tokens=4, stop_strings=("x",)))
    with pytest.raises(ValueError, match="slots is 0"):
        Sampler(config, SAMPLING, slots=0)


def test_a_bfloat16_model_samples_with_float32_logprobs(tiny, prompts):
    config, params = tiny
    config = config.computed(dtype="bfloat16")
    for slots in (8, 40):  # few rows and many
        rollout = generate(params, config, prompts * 3, SAMPLING, group_size=3, seed=11, slots=slots)
        assert rollout.sampler_logprobs.dtype == np.float32
        near = forward_logprobs(params, tiny[0], prompts[0], responses(rollout)[0])
        error = rollout.sampler_logprobs[0][: len(near)] - near
        assert np.sqrt(np.mean(error**2)) < 0.12  # logits reach 20, a bfloat16 there is within 0.06


@pytest.mark.parametrize("unrolled", [True, False])
def test_weights_made_ready_ahead_sample_the_same_and_can_replace_the_parameters(tiny, unrolled):
    config, params = tiny
    config = config.computed(dtype="bfloat16")
    params = jax.tree.map(jnp.copy, params)
    sampler = Sampler(config, SAMPLING, slots=8, unrolled=unrolled)
    prompts = [[5, 6, 7], [8, 9]]
    want = sampler.generate(params, prompts, group_size=4, seed=1)
    kept = sampler.ready(params)
    released = sampler.ready(params, release=True)
    for ready in (kept, released):
        got = sampler.generate(ready, prompts, group_size=4, seed=1)
        np.testing.assert_array_equal(got.response_tokens, want.response_tokens)
        np.testing.assert_array_equal(got.sampler_logprobs, want.sampler_logprobs)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # bfloat16: every one was converted


def test_a_response_that_goes_on_with_its_key_and_place_is_the_one_without_a_break(reference, prompts, tiny):
    """Broken off after any number of tokens, those of a group at different ones."""
    config, params = tiny
    sampler = Sampler(config, SAMPLING, slots=4)
    whole = responses(reference)
    rows = [row for row, response in enumerate(whole) if len(response) > 3]
    places = [1 + row % (len(whole[row]) - 1) for row in rows]
    keys = np.concatenate([row_keys(11, 4, [reference.group_ids[row]], [reference.sample_ids[row]]) for row in rows])
    begun = [[*prompts[reference.group_ids[row]], *whole[row][:place]] for row, place in zip(rows, places, strict=True)]
    budgets = [20 - place for place in places]
    rest = sampler.generate(params, begun, seed=0, keys=keys, places=places, budgets=budgets)
    assert responses(rest) == [whole[row][place:] for row, place in zip(rows, places, strict=True)]
    assert rest.finish_reasons.tolist() == reference.finish_reasons[rows].tolist()
    with pytest.raises(ValueError, match="place 3 of prompt 0, expected 0 to 2"):
        sampler.generate(params, [[1, 2, 3]], seed=0, places=[3])
    with pytest.raises(ValueError, match="places has 2 entries, expected 1"):
        sampler.generate(params, [[1, 2, 3]], seed=0, places=[1, 2])
