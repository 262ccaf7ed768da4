"""One judge: rewards, evaluations in a run, `sspo evaluate` and `sspo verify` give a response the same verdict."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from sspo_jax.checker import Verifier
from sspo_jax.commands.evaluate import EvaluateConfig, evaluate
from sspo_jax.commands.verify import main as verify
from sspo_jax.data.filters import ProblemFilter
from sspo_jax.data.problems import JsonlSource, NamedSource, Problem, ProblemSource, iterate
from sspo_jax.data.sources import JsonlData, MixtureData
from sspo_jax.evaluation.judging import Judge, gold_of, tolerances_of
from sspo_jax.evaluation.policy import evaluate_policy
from sspo_jax.evaluation.results import read_samples
from sspo_jax.files import read_json_lines, write_json_lines
from sspo_jax.rewards import Format, RewardConfig
from sspo_jax.trainer.grading import GradedRollout, Grader
from sspo_jax.types import FinishReason, Rollout

# set, its problems as (answer, extra, response, status)
CASES = {
    "minerva": [
        ("4.5e33", {}, r"\boxed{4.5001e33}", "correct"),
        ("4.5e33", {}, r"\boxed{4.51e33}", "wrong"),
        ("2.75", {}, r"\boxed{2.7501}", "correct"),
    ],
    "olympiadbench": [
        ("30", {"unit": "km"}, r"\boxed{30 \text{ kg}}", "wrong"),
        ("30", {"unit": "km"}, r"\boxed{30000 \text{ m}}", "correct"),
        ("30", {"unit": "km"}, r"\boxed{30}", "correct"),
        ("30", {}, r"\boxed{30}", "correct"),
        ("4.2", {"error": "1e-1"}, r"\boxed{4.25}", "correct"),
        ("4.2", {"error": "1e-1"}, r"\boxed{4.35}", "wrong"),
        ("4.2", {"error": "about 3"}, r"\boxed{4.25}", "wrong"),
    ],
    "elsewhere": [
        ("4.5e33", {}, r"\boxed{4.5001e33}", "wrong"),
        ("4.5e33", {}, "no idea", "unparsed"),
    ],
}
STATUSES = [case[3] for cases in CASES.values() for case in cases]


@pytest.fixture
def files(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """One file per set; nothing but its name says which set it is."""
    for name, cases in CASES.items():
        rows = [
            {"id": str(index), "problem": f"{name} {index}", "answer": answer, "level": 1, "extra": extra}
            for index, (answer, extra, _, _) in enumerate(cases)
        ]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    return [tmp_path / f"{name}.jsonl" for name in CASES]


def responses_to(problems: list[Problem]) -> list[str]:
    return [CASES[name][int(index)][2] for name, index in (problem.problem.split() for problem in problems)]


def rollout_of(texts: list[str], tokenizer) -> Rollout:
    """One response to each of as many prompts."""
    tokens = [tokenizer.encode(text) for text in texts]
    return Rollout(
        prompts=(np.zeros(1, np.int32),) * len(texts),
        responses=tuple(np.array(line, np.int32) for line in tokens),
        logprobs=tuple(np.zeros(len(line), np.float32) for line in tokens),
        finish_reasons=np.full(len(texts), FinishReason.STOP, np.int32),
        group_ids=np.arange(len(texts), dtype=np.int32),
        sample_ids=np.zeros(len(texts), np.int32),
    )


def graded(problems: list[Problem], tokenizer, **rewards: object) -> GradedRollout:
    """As a training step does it: each response when it has ended, then the rest."""
    texts = responses_to(problems)
    with Grader(RewardConfig(workers=1, **rewards), tokenizer) as grader:
        grading = grader.begin(problems, 1)
        for row, text in enumerate(texts):
            grading.finished(row, tokenizer.encode(text))
        rollout = rollout_of(texts, tokenizer)
        return GradedRollout(rollout=rollout, **vars(grading.result(rollout.lengths)))


def statuses_in_evaluation(source: ProblemSource, tokenizer) -> list[str]:
    """As an evaluation in a run does it."""

    def sample(prompts: list[list[int]], **_: object) -> Rollout:
        assert len(prompts) == len(source)
        return rollout_of(responses_to(list(iterate(source))), tokenizer)

    with Grader(RewardConfig(workers=1), tokenizer) as grader:
        _, rows = evaluate_policy(
            sample, source, prompts=lambda problem: [1], tokenizer=tokenizer, judge=grader.judge, sampling=None,
            group_size=1, seed=0,
        )  # fmt: skip
    return [row.status for row in rows]


def test_all_four_give_the_same_verdicts(files: list[pathlib.Path], tokenizer, tmp_path: pathlib.Path):
    sources = [JsonlSource(file) for file in files]
    problems = [problem for source in sources for problem in iterate(source)]
    rollout = graded(problems, tokenizer)
    assert [verdict.status for verdict in rollout.verdicts] == STATUSES
    assert rollout.rewards.tolist() == [float(status == "correct") for status in STATUSES]

    assert [status for source in sources for status in statuses_in_evaluation(source, tokenizer)] == STATUSES

    given = [
        {"set": source.name, "id": problem.id, "response": response}
        for source in sources
        for problem, response in zip(iterate(source), responses_to(list(iterate(source))), strict=True)
    ]
    write_json_lines(tmp_path / "given.jsonl", given)
    _, out = evaluate(
        EvaluateConfig(
            responses=str(tmp_path / "given.jsonl"),
            data=",".join(map(str, files)),
            out=str(tmp_path / "out"),
            workers=1,
        )
    )
    assert [row.status for row in read_samples(out)] == STATUSES

    rollout.write(tmp_path / "rollouts" / "step_000001.jsonl")
    arguments = [str(tmp_path / "rollouts" / "step_000001.jsonl"), "--output", str(tmp_path / "verdicts.jsonl")]
    assert verify([*arguments, "--workers", "1"]) == 0
    assert [row["status"] for _, row in read_json_lines(tmp_path / "verdicts.jsonl")] == STATUSES


def test_the_command_line_overrules_the_set(files: list[pathlib.Path], tmp_path: pathlib.Path):
    row = {"set": "minerva", "gold": "100", "response": r"\boxed{101}"}
    write_json_lines(tmp_path / "rows.jsonl", [row])
    for tolerance, status in (("0.1", "correct"), ("0.001", "wrong")):
        arguments = ["--relative-tolerance", tolerance, "--output", str(tmp_path / "verdicts.jsonl"), "--workers", "1"]
        assert verify([str(tmp_path / "rows.jsonl"), *arguments]) == 0
        assert [row["status"] for _, row in read_json_lines(tmp_path / "verdicts.jsonl")] == [status]
    write_json_lines(tmp_path / "rows.jsonl", [row | {"extra": "km"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: `extra` is 'km'; expected dict"):
        verify([str(tmp_path / "rows.jsonl")])


def test_the_set_of_a_problem_is_not_lost(files: list[pathlib.Path], tokenizer):
    """Mixtures, filters and parts of a source hand it on; the source that the data states is as good as a name."""
    mixture = MixtureData(
        parts=tuple(JsonlData(path=str(file), filter=ProblemFilter(levels=(1,)), first=20) for file in files)
    ).open()
    assert {problem.set for problem in iterate(mixture)} == set(CASES)
    assert [verdict.status for verdict in graded(list(iterate(mixture)), tokenizer).verdicts] == STATUSES
    problem = Problem(id="a", problem="p", answer="1")
    exact, relative = {}, {"relative_tolerance": 1e-4}
    assert tolerances_of(problem) == exact
    assert tolerances_of(dataclasses.replace(problem, set="minerva")) == relative
    assert tolerances_of(dataclasses.replace(problem, set="my_copy", source="minerva_math")) == relative
    assert tolerances_of(dataclasses.replace(problem, set="math500", source="minerva_math")) == exact
    assert {problem.set for problem in iterate(NamedSource(JsonlSource(files[0]), "other"))} == {"other"}


def test_a_problem_says_what_its_answer_is_of():
    def problem(**extra: object) -> Problem:
        return Problem(id="a", problem="p", answer="30", extra=extra)

    assert gold_of(problem(unit="$\\mathrm{km}$")) == "30 \\mathrm{km}"
    assert gold_of(problem(unit="km", is_multiple_answer=True)) == "30"
    assert gold_of(problem(unit=None)) == gold_of(problem()) == "30"
    for error in ("", None, "nan", "inf", "-1", "x", [1]):
        assert tolerances_of(problem(error=error)) == {}
    assert tolerances_of(problem(error="1e-1")) == tolerances_of(problem(error=0.1)) == {"absolute_tolerance": 0.1}


def test_as_many_problems_as_responses():
    with Verifier(workers=1) as verifier, pytest.raises(ValueError, match="1 responses and 0 problems"):
        Judge(verifier).verdicts(["1"], [])


def test_each_term_of_the_reward_is_logged_and_written(files: list[pathlib.Path], tokenizer, tmp_path: pathlib.Path):
    problems = [problem for file in files for problem in iterate(JsonlSource(file))]
    rollout = graded(problems, tokenizer, format=Format(weight=0.5))
    rollout = GradedRollout.concatenate([rollout.take(np.arange(5)), rollout.take(np.arange(5, len(rollout)))])
    correct, boxed = STATUSES.count("correct") / len(STATUSES), 1 - 1 / len(STATUSES)
    metrics = rollout.metrics()
    assert metrics["reward/correctness_mean"] == pytest.approx(correct)
    assert metrics["reward/format_mean"] == pytest.approx(boxed)
    assert metrics["reward/mean"] == pytest.approx(correct + 0.5 * boxed)
    assert metrics["reward/excluded_fraction"] == 0.0
    assert metrics["verify/correct_fraction"] == pytest.approx(correct)
    assert metrics["verify/seconds"] == pytest.approx(sum(verdict.seconds for verdict in rollout.verdicts))
    half = dataclasses.replace(rollout, is_judged=np.arange(len(rollout)) < 2)
    assert half.metrics()["reward/excluded_fraction"] == pytest.approx(1 - 2 / len(rollout))
    assert half.metrics()["reward/correctness_mean"] == 0.5
    rollout.write(tmp_path / "rollouts" / "step_000001.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000001.jsonl").read_text().split("\n")[:-1]]
    assert rows[0]["terms"] == {"correctness": 1.0, "format": 1.0}
    assert [row["terms"]["correctness"] + 0.5 * row["terms"]["format"] for row in rows] == [
        row["reward"] for row in rows
    ]
