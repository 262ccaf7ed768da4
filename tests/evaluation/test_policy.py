"""Sampling, judging and scoring of a set: the right response meets the right gold, and blocks resume exactly."""

import numpy as np
import pytest

from sspo_jax.data.problems import ListSource, Problem
from sspo_jax.data.prompts import NONE, PromptTokenizer
from sspo_jax.evaluation.policy import evaluate_policy
from sspo_jax.evaluation.scoring import score_set


@pytest.fixture
def run(source, tokenizer, judge, make_sampler):
    def evaluate(is_right, group_size=4, **changes):
        sampler = make_sampler(is_right)
        arguments = {
            "prompts": PromptTokenizer(NONE, tokenizer),
            "tokenizer": tokenizer,
            "judge": judge,
            "sampling": None,
            "group_size": group_size,
            "seed": 1,
            "problems_at_once": 3,
        }
        scores, rows = evaluate_policy(sampler, source, **{**arguments, **changes})
        return scores, rows, sampler

    return evaluate


def test_scores_are_those_of_the_responses(run):
    scores, rows, sampler = run(lambda number, sample: number % 2 == 0 and sample < 3)
    np.testing.assert_array_equal(scores.correct, [[index % 2 == 0] * 3 + [False] for index in range(10)])
    assert scores.problem_ids == tuple(f"n{index}" for index in range(10))
    assert scores.accuracy.value == pytest.approx(0.5 * 0.75)
    assert scores.metrics["pass@1"].value == pytest.approx(0.5 * 0.75)
    assert scores.metrics["pass@4"].value == 0.5
    assert scores.metrics["maj@4"].value == 0.5
    assert scores.metrics["truncated_fraction"].value == 0.25
    assert scores.metrics["unparsed_fraction"].value == 0.0
    assert {key: (count, value.value) for key, (count, value) in scores.by_subject.items()} == {
        "Even": (5, 0.75),
        "Odd": (5, 0.0),
    }
    assert set(scores.by_level) == {"1", "2"}
    assert [count for _, count in sampler.calls] == [3, 3, 3, 1]
    assert len({seed for seed, _ in sampler.calls}) == 4
    assert [(row.id, row.sample) for row in rows] == [
        (f"n{index}", sample) for index in range(10) for sample in range(4)
    ]


def test_lengths_count_the_tokens_of_the_mask(run, tokenizer):
    scores, rows, _ = run(lambda number, sample: True, group_size=1)
    lengths = [len(tokenizer.encode(row.response)) for row in rows]
    assert [row.tokens for row in rows] == lengths
    assert scores.metrics["length_mean"].value == pytest.approx(np.mean(lengths))
    assert "pass@1" not in scores.metrics  # one sample: nothing to add to avg@1


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(run):
    written = []

    class StopError(Exception):
        pass

    def stop_after_two(rows):
        written.extend(rows)
        if len(written) >= 24:
            raise StopError

    whole, rows, _ = run(lambda number, sample: sample == 0)
    with pytest.raises(StopError):
        run(lambda number, sample: sample == 0, on_rows=stop_after_two)
    torn = written[:-1]  # the second block was not written to its end
    again, resumed, sampler = run(lambda number, sample: sample == 0, done=torn)
    assert resumed == rows
    assert [count for _, count in sampler.calls] == [3, 3, 1]
    np.testing.assert_array_equal(again.correct, whole.correct)
    assert again.metrics == whole.metrics


def test_another_seed_or_set_gives_other_samples(run, source):
    seeds = [
        [seed for seed, _ in run(lambda number, sample: True, **changes)[2].calls]
        for changes in ({}, {"seed": 2}, {"name": "other"})
    ]
    assert len({tuple(line) for line in seeds}) == 3


def test_every_prompt_is_made_before_anything_is_sampled(source, tokenizer, judge, make_sampler):
    sampler = make_sampler(lambda number, sample: True)
    with pytest.raises(ValueError, match="'n0' has"):
        evaluate_policy(
            sampler, source, prompts=PromptTokenizer(NONE, tokenizer, max_tokens=3), tokenizer=tokenizer,
            judge=judge, sampling=None, group_size=1, seed=0,
        )  # fmt: skip
    assert sampler.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "responses are missing"),
        (lambda rows: [*rows, rows[0]], "is there twice"),
    ],
)
def test_an_incomplete_set_is_not_scored(run, source, change, message):
    _, rows, _ = run(lambda number, sample: True, group_size=2)
    problems = [source[index] for index in range(len(source))]
    with pytest.raises(ValueError, match=message):
        score_set("numbers", "d", problems, change(rows), equivalent=str.__eq__)
    with pytest.raises(ValueError, match="not in the set"):
        score_set("numbers", "d", problems[1:], rows, equivalent=str.__eq__)


def test_a_source_of_one_problem_scores(run, tokenizer, judge, make_sampler):
    one = ListSource([Problem(id="a", problem="number 7", answer="7")], name="one")
    scores, _ = evaluate_policy(
        make_sampler(lambda number, sample: True), one, prompts=PromptTokenizer(NONE, tokenizer),
        tokenizer=tokenizer, judge=judge, sampling=None, group_size=1, seed=0,
    )  # fmt: skip
    assert scores.accuracy.value == 1.0
    assert scores.by_subject == {}
