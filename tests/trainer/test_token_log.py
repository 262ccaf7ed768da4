"""The token log holds the numbers of the updates: its counts are the metrics', and its files read back as written."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.losses import Sspo
from sspo_jax.runs.token_log import TokenLog, read_token_log
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.trainer.loop import Trainer
from sspo_jax.trainer.token_record import TokenRecord, piece_texts
from sspo_jax.types import TrainBatch

EPOCHS = 2


@dataclasses.dataclass
class Logged:
    """A log of every response of a step, and what it must agree with."""

    log: TokenLog
    small: TokenLog
    metrics: dict[str, float]
    minibatches: list[list[TrainBatch]]
    groups: GradedRollout


@pytest.fixture(scope="module")
def logged(trainer: Trainer, groups: GradedRollout) -> Logged:
    before = trainer.programs, trainer.state.params, trainer.state.optimizer, trainer.config
    objective = Sspo.calibrated(clip_low=1e-3, clip_high=1e-3)  # so narrow that the second update clips
    trainer.programs = dataclasses.replace(trainer.programs, objective=objective)
    update = dataclasses.replace(trainer.config.update, epochs=EPOCHS)
    trainer.config = dataclasses.replace(trainer.config, loss=objective, update=update)
    trainer.state.params = jax.tree.map(jnp.copy, before[1])
    trainer.state.optimizer = jax.tree.map(jnp.copy, before[2])
    advantages = trainer.advantages(groups)
    minibatches, _ = trainer.score(groups, advantages)
    trainer.record = TokenRecord(1000)
    metrics = trainer.update(minibatches)
    log = trainer.log_tokens(7, trainer.record, minibatches, groups, advantages)
    trainer.record._count = 5
    small = trainer.log_tokens(7, trainer.record, minibatches, groups, advantages)
    trainer.record = None
    trainer.programs, trainer.state.params, trainer.state.optimizer, trainer.config = before
    return Logged(log, small, metrics, minibatches, groups)


def test_counts_are_those_of_the_metrics(logged: Logged):
    responses = logged.log.responses
    assert len(responses) == len(logged.groups)
    tokens = sum(len(response.pieces) for response in responses)
    assert tokens == logged.groups.rollout.lengths.sum()
    for name, key in (
        ("clipped", "ratio/clip_fraction"),
        *((f"clipped_{method}", f"counterfactual/{method}_clip_fraction") for method in ("grpo", "gspo", "sspo")),
    ):
        clipped = sum(int(np.count_nonzero(response.arrays[name])) for response in responses)
        assert clipped / (EPOCHS * tokens) == pytest.approx(logged.metrics[key], rel=1e-6), name
    assert logged.metrics["ratio/clip_fraction"] > 0.05
    log_ratios = np.concatenate([response.log_ratios(epoch) for response in responses for epoch in range(EPOCHS)])
    kl = np.mean(np.expm1(log_ratios) - log_ratios)
    assert kl == pytest.approx(logged.metrics["policy/kl_old"], rel=1e-3)
    of_second = [response for response in responses if response.updates[0] == 2]
    ours = np.concatenate([response.arrays["clipped"][0] for response in of_second])
    assert (ours != 0).mean() == pytest.approx(logged.metrics["update/2/clip_fraction"], rel=1e-6)


def test_the_first_update_has_the_old_log_probs_exactly(logged: Logged):
    first = [response for response in logged.log.responses if response.updates[0] == 1]
    assert first
    for response in first:
        assert np.array_equal(response.arrays["logprobs"][0], response.arrays["old_logprobs"])
        assert (response.arrays["ratio"][0] == 1).all()
        assert not response.arrays["clipped"][0].any()
    assert {tuple(response.updates.tolist()) for response in logged.log.responses} == {(1, 3), (2, 4)}


def test_each_response_is_the_one_it_says(logged: Logged):
    rollout = logged.groups.rollout
    for row, response in enumerate(logged.log.responses):
        assert np.array_equal(response.arrays["tokens"], rollout.responses[row])
        assert np.array_equal(response.arrays["sampler_logprobs"], rollout.logprobs[row])
        assert (response.about["id"], response.about["sample"]) == (
            logged.groups.problems[row].id,
            rollout.sample_ids[row],
        )
        assert response.about["reward"] == logged.groups.rewards[row]


def test_a_subsentence_states_its_ratio_and_bounds(logged: Logged):
    mean = logged.log.mean_entropy
    for response in logged.log.responses:
        parts = response.subsentences(1)
        assert "".join(part.text for part in parts) == response.text
        assert parts[0].start == 0
        assert parts[-1].end == len(response.pieces)
        for part in parts:
            ratio = response.arrays["ratio"][1, part.start : part.end]
            assert np.all(ratio == ratio[0])
            assert np.exp(part.log_ratio) == pytest.approx(ratio[0], rel=1e-5)
            scale = np.clip((part.entropy / mean) ** 0.5, 0.5, 2.0)
            assert part.entropy_scale == pytest.approx(scale, rel=1e-4)
            length = np.clip((10 / part.tokens) ** 0.5, 0.25, 4.0)
            assert part.length_scale == pytest.approx(length, rel=1e-5)
            assert part.high - 1 == pytest.approx(1e-3 * scale * length, rel=1e-3)
            if part.clipped:
                assert part.clipped_tokens == part.tokens
                assert (ratio[0] > part.high) if part.clipped == "high" else (ratio[0] < part.low)


def test_a_file_reads_back_as_written(logged: Logged, tmp_path: pathlib.Path):
    file = tmp_path / "step_000007.npz"
    file.write_bytes(logged.log.to_bytes())
    read = read_token_log(file)
    assert (read.step, read.objective, read.mean_entropy) == (7, "Sspo", logged.log.mean_entropy)
    for ours, theirs in zip(logged.log.responses, read.responses, strict=True):
        assert (ours.pieces, dict(ours.about), ours.advantage) == (theirs.pieces, theirs.about, theirs.advantage)
        assert np.array_equal(ours.updates, theirs.updates)
        for name, values in ours.arrays.items():
            assert np.array_equal(values, theirs.arrays[name]), name
    for content in (b"", b"PK\x03\x04", file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"step_000007\.npz: not a file of per-token data"):
            read_token_log(file)


def test_a_sample_is_spread_and_has_the_most_clipped(logged: Logged):
    chosen = [response.about["chosen"] for response in logged.small.responses]
    assert sorted(chosen) == ["clipped"] * 2 + ["spread"] * 3

    def share(response):
        return (response.arrays["clipped"] != 0).mean()

    most = max(map(share, logged.log.responses))
    assert max(map(share, logged.small.responses)) == most


def test_characters_of_several_tokens():
    class Tokenizer:
        all_special_ids = (3,)

        def convert_ids_to_tokens(self, token: int) -> str:
            return "<end>"

    pieces = piece_texts([b"a", "é".encode()[:1], "é".encode()[1:], b" "], Tokenizer())
    assert pieces(np.array([0, 1, 2, 3])) == ("a", "", "é", "<end>")
    assert pieces(np.array([1])) == ("\ufffd",)
    assert pieces(np.array([], int)) == ()
