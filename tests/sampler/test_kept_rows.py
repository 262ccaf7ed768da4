"""Rows that go on where they lie: tokens and log-probs of a prompt that is prefilled again, whoever has ended when."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from sspo_jax.models.qwen import Params, init_qwen
from sspo_jax.sampler import KeepingEngine, LocalEngine, Sampler, SamplingParams
from sspo_jax.sampler.kept_rows import KeptRows
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.sharding import MeshConfig, make_mesh
from tests.sampler.conftest import TINY

SAMPLING = SamplingParams(max_new_tokens=110, stop_token_ids=tuple(range(5, 96, 11)), entropies=True)
PROMPTS = [[(7 * i + 3 * j * j + j) % 90 + 4 for j in range(n)] for i, n in enumerate((5, 1, 19, 12, 12, 2, 33, 7))]
PROMPTS[4] = PROMPTS[3]
TURNS = 4
LAST = (3, 3, 1, 3, 2, 3, 3, 0)
"""The last turn of a row, if it comes so far."""
SHORT = 24
"""Budget of row 6, which the others' is not."""


@dataclasses.dataclass
class Said:
    """What a few conversations have come to."""

    tokens: list[list[int]]
    logprobs: list[np.ndarray]
    turns: list[int]
    prefilled: list[int]
    """Tokens, by turn."""
    found: list[int]
    slots: list[int]


def converse(
    engine: Any, params: Params, *, keep: bool, rows: int = 8, sampling: SamplingParams = SAMPLING, kept: Any = None
) -> Said:
    """Conversations with one who answers at random, at random length, and at some point no more."""
    if kept is None and keep:
        kept = engine.keep(rows, prompt_tokens=max(map(len, PROMPTS[:rows])))
        assert kept is not None
    contexts, going = [list(prompt) for prompt in PROMPTS[:rows]], [*range(rows)]
    said = Said(list(map(list, contexts)), [np.zeros(0, np.float32)] * rows, [0] * rows, [], [], [])
    noise = [np.random.default_rng(row) for row in range(rows)]
    budgets = [SHORT if row == 6 else sampling.max_new_tokens for row in range(rows)]
    for turn in range(TURNS):
        how = {"kept": kept, "names": going} if keep else {}
        rollout = engine.generate(
            params,
            [contexts[row] for row in going],
            seed=3,
            step=2,
            budgets=[budgets[row] - len(contexts[row]) + len(PROMPTS[row]) for row in going],
            keys=row_keys(3, 2, np.array(going), np.full(len(going), turn * 1000)),
            **how,
        )
        assert engine.extras["entropies"].shape == rollout.sampler_logprobs.shape
        still = []
        for place, row in enumerate(going):
            answer = rollout.responses[place].tolist()
            contexts[row] += answer
            said.logprobs[row] = np.concatenate([said.logprobs[row], rollout.logprobs[place]])
            said.turns[row] += 1
            heard = noise[row].integers(4, 96, noise[row].integers(1, 21)).tolist()
            room = budgets[row] - len(contexts[row]) + len(PROMPTS[row]) - len(heard)
            if rollout.finish_reasons[place] and room > 0 and turn < LAST[row]:
                contexts[row] += heard
                still.append(row)
        said.prefilled.append(engine.stats.prompt_tokens)
        said.found.append(engine.stats.kept_tokens)
        if kept is not None:
            said.slots.append(kept.cache.values[0].shape[-4])
        going = still
        if not going:
            break
    said.tokens = contexts
    return said


def same(one: Said, two: Said) -> None:
    assert one.tokens == two.tokens
    for mine, other in zip(one.logprobs, two.logprobs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.fixture(scope="module")
def again(tiny) -> Said:
    config, params = tiny
    return converse(Sampler(config, SAMPLING), params, keep=False)


@pytest.mark.parametrize(
    "changes",
    [{}, {"unrolled": False}, pytest.param({"block_steps": 3, "cache_buckets": 1}, marks=pytest.mark.slow)],
    ids=str,
)
def test_tokens_and_logprobs_are_those_of_prefilling_again(changes, tiny, again):
    config, params = tiny
    sampler = Sampler(config, SAMPLING, **changes)
    kept = converse(sampler, params, keep=True)
    same(kept, again)
    assert {*again.turns} == {1, 2, 3, 4}
    assert len(again.tokens[6]) == len(PROMPTS[6]) + SHORT
    assert len(again.found) == TURNS
    assert not any(again.found)
    assert kept.found[0] == 0 < min(kept.found[1:])
    assert [a + b for a, b in zip(kept.prefilled, kept.found, strict=True)][1:] == again.prefilled[1:]
    assert kept.slots[-1] < kept.slots[0] == 8
    programs = len(sampler.programs)
    same(converse(sampler, params, keep=True), again)
    assert len(sampler.programs) == programs


@pytest.mark.slow
def test_the_gated_delta_rule_goes_on_too(hybrid):
    config, params = hybrid
    again = converse(Sampler(config, SAMPLING), params, keep=False)
    same(converse(Sampler(config, SAMPLING), params, keep=True), again)
    cut = dataclasses.replace(SAMPLING, stop_strings=("x",))
    assert Sampler(config, cut, decode=str).keep(8, prompt_tokens=30) is None


@pytest.mark.parametrize("unrolled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_layers_with_a_window_go_on_too(unrolled, tiny):
    """One layer sees six tokens, so the window ends inside what is held, and inside what is fed on."""
    config, params = dataclasses.replace(tiny[0], sliding_window=6, sliding_layers=(1,)), tiny[1]
    again = converse(Sampler(config, SAMPLING, unrolled=unrolled), params, keep=False)
    kept = converse(Sampler(config, SAMPLING, unrolled=unrolled), params, keep=True)
    same(kept, again)
    assert max(kept.found) > 6


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        pytest.param("tiny", MeshConfig(fsdp=4, tensor=2), id="tiny-fsdp4-tensor2"),
        pytest.param("tiny", MeshConfig(), id="tiny-fsdp8", marks=pytest.mark.slow),
        pytest.param("hybrid", MeshConfig(fsdp=4, tensor=2), id="hybrid-fsdp4-tensor2", marks=pytest.mark.slow),
        pytest.param("hybrid", MeshConfig(), id="hybrid-fsdp8", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_tokens_of_one(mesh, kind, request):
    config, params = request.getfixturevalue(kind)
    again = converse(Sampler(config, SAMPLING), params, keep=False)
    sampler = Sampler(config, SAMPLING, mesh=make_mesh(mesh))
    kept = converse(sampler, params, keep=True)
    same(kept, again)
    assert kept.found[-1] > 0


def test_a_row_does_not_depend_on_its_neighbours(tiny, again):
    config, params = tiny
    few = converse(Sampler(config, SAMPLING), params, keep=True, rows=3)
    assert few.tokens == again.tokens[:3]
    for one, two in zip(few.logprobs, again.logprobs, strict=False):
        np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("kind", ["tiny", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_what_is_prefilled_in_pieces_is_the_same(kind, request, monkeypatch):
    config, params = request.getfixturevalue(kind)
    whole = converse(Sampler(config, SAMPLING), params, keep=True)
    monkeypatch.setattr("sspo_jax.sampler.kept_rows.PREFILL_TOKENS", 32)
    same(converse(Sampler(config, SAMPLING), params, keep=True), whole)


@pytest.mark.slow
def test_stop_strings_take_back_what_was_sampled_beyond_them(tiny):
    def text(tokens: list[int]) -> str:
        return "".join(chr(97 + token % 26) for token in tokens)

    config, params = tiny
    sampling = SamplingParams(max_new_tokens=60, stop_strings=("e", "ab"), entropies=True)
    again = converse(Sampler(config, sampling, decode=text), params, keep=False, sampling=sampling)
    kept = converse(Sampler(config, sampling, decode=text), params, keep=True, sampling=sampling)
    same(kept, again)
    assert max(again.turns) > 1


def test_rows_that_are_not_there_are_prefilled(tiny):
    """Others, ones with another beginning, ones that were given up, and all after a release."""
    config, params = tiny
    sampler = Sampler(config, dataclasses.replace(SAMPLING, max_new_tokens=8))
    kept = sampler.keep(4, prompt_tokens=19)
    assert kept is not None

    def call(names: list[int], added: int, changed: int | None = None) -> tuple[int, int]:
        prompts = [[*PROMPTS[name], *range(30, 30 + added)] for name in names]
        if changed is not None:
            prompts[0][changed] = 90
        one = sampler.generate(
            params, prompts, seed=1, prompt_ids=names, budgets=[2] * len(names), kept=kept, names=names
        )
        stats = sampler.stats.prompt_tokens, sampler.stats.kept_tokens
        two = sampler.generate(params, prompts, seed=1, prompt_ids=names, budgets=[2] * len(names))
        assert [row.tolist() for row in one.responses] == [row.tolist() for row in two.responses]
        for mine, other in zip(one.logprobs, two.logprobs, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)
        return stats

    assert call([0, 2], 0) == (4 + 18, 0)
    tokens = {name: row.tokens for name, row in kept.rows.items()}
    # What was sampled is not in the next prompt, which makes it another beginning.
    assert call([0, 2, 3], 3) == (7 + 21 + 14, 0)
    assert len(tokens[0]) == 6
    kept.release()
    assert call([2, 0], 0) == (4 + 18, 0)
    with pytest.raises(ValueError, match="there are 5 rows of at most 20 tokens, expected at most 4 of"):
        call([0, 1, 2, 3, 4], 0)
    with pytest.raises(ValueError, match=r"names are \[0, 0\], expected 2 different ones"):
        call([0, 0], 0)


def test_the_engine_keeps_rows_until_the_weights_change(tiny):
    config, params = tiny
    engine = LocalEngine(config, slots=4)
    assert isinstance(engine, KeepingEngine)
    assert engine.keep(SAMPLING, 5, prompt_tokens=5) is None  # more than slots
    other = init_qwen(TINY, jax.random.key(9))
    engine.sync(params, 1)
    kept = engine.keep(SAMPLING, 2, prompt_tokens=12)
    assert kept is not None

    def turn(prompts: list[list[int]], kept: KeptRows | None = kept) -> list[list[int]]:
        how: dict[str, Any] = {} if kept is None else {"kept": kept}
        rollout = engine.generate(prompts, SAMPLING, seed=0, budgets=[9, 9], **how)
        return [row.tolist() for row in rollout.responses]

    stats = engine.sampler(SAMPLING)
    first = [[*prompt, *said, 40, 41] for prompt, said in zip(PROMPTS[3:5], turn(PROMPTS[3:5]), strict=True)]
    second = turn(first)
    assert stats.stats.kept_tokens == sum(map(len, first)) - 2 * 3
    assert second == turn(first, None)
    for change in (lambda: engine.sync(other, 2), lambda: (engine.release(), engine.sync(params, 3))):
        assert kept.cache is not None
        change()
        assert kept.cache is None
        assert turn(first) == turn(first, None)
        turn(first)
    later = engine.keep(SAMPLING, 2, prompt_tokens=12)
    assert kept.cache is None
    assert later is not None
    with pytest.raises(ValueError, match="kept is of an earlier call of keep"):
        turn(first)
    with later:
        turn(first, later)
        assert later.cache is not None
    assert later.cache is None


def test_a_call_that_fails_keeps_nothing(tiny, again):
    config, params = tiny
    sampler = Sampler(config, SAMPLING)
    kept = sampler.keep(8, prompt_tokens=33)
    assert kept is not None

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    sampler.generate(params, PROMPTS, seed=0, kept=kept)
    with pytest.raises(KeyboardInterrupt):
        sampler.generate(params, PROMPTS, seed=0, kept=kept, progress=interrupt)
    assert kept.cache is None
    same(converse(sampler, params, keep=True, kept=kept), again)
