"""The real sets end to end with canned answers: the gold is always right, another problem's gold hardly ever."""

import dataclasses
import json

import pytest

from sspo_jax.commands.evaluate import EvaluateConfig, evaluate, evaluate_command, main
from sspo_jax.data.problems import JsonlSource, iterate

SETS = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675}


@pytest.fixture
def judge_answers(real_data, tmp_path):
    def run(pick, name):
        """Evaluates one response to each problem, boxing the answer `pick(problems, index)`."""
        lines = []
        for set_name in SETS:
            problems = list(iterate(JsonlSource(real_data / "eval" / f"{set_name}.jsonl")))
            for index, problem in enumerate(problems):
                response = f"After some thought, the answer is $\\boxed{{{pick(problems, index)}}}$."
                lines.append(json.dumps({"set": set_name, "id": problem.id, "response": response}))
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        return evaluate(
            EvaluateConfig(responses=str(path), data=",".join(SETS), data_dir=str(real_data), out=str(tmp_path / name))
        )

    return run


def test_the_gold_answers_are_right_on_every_problem(judge_answers):
    evaluation, directory = judge_answers(lambda problems, index: problems[index].answer, "gold")
    assert {scores.name: scores.problems for scores in evaluation.sets} == SETS
    wrong = [
        ident
        for scores in evaluation.sets
        for ident, verdicts in zip(scores.problem_ids, scores.correct, strict=True)
        if not verdicts.all()
    ]
    assert wrong == []
    assert evaluation.average[1].value == 1.0
    assert sorted(path.name for path in directory.iterdir()) == [
        "report.html", "report.md", "results.json", "samples.jsonl"
    ]  # fmt: skip


def test_the_gold_of_another_problem_is_wrong(judge_answers):
    same_text = 0

    def another(problems, index):
        nonlocal same_text
        other = problems[(index + 11) % len(problems)].answer
        same_text += other == problems[index].answer
        return other

    evaluation, _ = judge_answers(another, "shifted")
    right = sum(int(scores.correct.sum()) for scores in evaluation.sets)
    # Two problems may well have the same answer: those are right. What is right besides is by chance, or a mistake.
    assert right >= same_text
    assert right - same_text <= 0.005 * sum(SETS.values())


def test_two_evaluations_are_compared(judge_answers, capsys, tmp_path):
    _, gold = judge_answers(lambda problems, index: problems[index].answer, "gold")
    _, half = judge_answers(lambda problems, index: problems[index].answer if index % 2 else "no idea", "half")
    assert main(["--compare", str(gold), str(half)]) == 0
    table = capsys.readouterr().out
    assert "| average of 5 | 100.0% | 50.0% | +50.0 |" in table
    assert (gold / "compared-with-half.md").read_text().endswith(table[table.index("| set") : table.index("\nwritten")])


def test_units_that_the_data_states_are_looked_at(real_data, tmp_path):
    problems = [
        problem
        for problem in iterate(JsonlSource(real_data / "eval" / "olympiadbench.jsonl"))
        if problem.extra.get("unit") == "minutes"
    ]
    assert [problem.answer for problem in problems] == ["50"]
    source = tmp_path / "olympiadbench.jsonl"
    source.write_text(json.dumps(dataclasses.asdict(problems[0])))
    answers = ["50", r"50\text{ min}", r"3000\text{ s}", r"50\text{ seconds}", "51"]
    given = tmp_path / "given.jsonl"
    lines = [json.dumps({"id": problems[0].id, "response": f"\\boxed{{{answer}}}"}) for answer in answers]
    given.write_text("\n".join(lines))
    (scores,) = evaluate(EvaluateConfig(responses=str(given), data=str(source), out=str(tmp_path / "o")))[0].sets
    assert scores.correct.tolist() == [[True, True, True, False, False]]


def test_a_source_can_be_said_to_be_a_set(real_data, tmp_path):
    """The name decides tolerances and notes, so a copy that does not state its source needs to say what it is."""
    problem = JsonlSource(real_data / "eval" / "minerva.jsonl")[0]  # gold 1.6
    copy = tmp_path / "copy.jsonl"
    copy.write_text(json.dumps({"id": problem.id, "problem": problem.problem, "answer": problem.answer}))
    near = tmp_path / "near.jsonl"
    near.write_text(json.dumps({"id": problem.id, "response": f"\\boxed{{{float(problem.answer) * 1.00005}}}"}))
    for spec, right in (("copy", 0), ("minerva=copy", 1)):
        config = EvaluateConfig(
            responses=str(near), data=f"{spec}.jsonl[:1]".replace("copy", str(tmp_path / "copy")),
            out=str(tmp_path / str(right)),
        )  # fmt: skip
        (scores,) = evaluate(config)[0].sets
        assert scores.correct.sum() == right


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ValueError, "nothing to evaluate"),
        ({"data": "math600", "model": "m"}, FileNotFoundError, "no problems called 'math600'"),
        ({"data": "math500", "responses": "none.jsonl"}, FileNotFoundError, r"none\.jsonl: no such file"),
        ({"data": "math500,math500", "model": "m"}, ValueError, "two sets called math500"),
        ({"samples": 4, "model": "m"}, ValueError, "would repeat one response"),
        ({"max_new_tokens": 0, "model": "m"}, ValueError, "--max-new-tokens is 0"),
        ({"model": "no/such/model"}, FileNotFoundError, "not a directory and could not be downloaded"),
        ({"compare": ("a", "b")}, FileNotFoundError, r"no results\.json in a"),
    ],
)
def test_mistakes_are_named_before_anything_is_done(real_data, tmp_path, changes, error, message):
    config = EvaluateConfig(**{"data": "aime24", "data_dir": str(real_data), "out": str(tmp_path / "o"), **changes})
    with pytest.raises(error, match=message):
        evaluate_command(config)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"id": "aime24-I-01"}', "expected an object with `id` and `response`"),
        ('{"id": "x", "response": ""}', "'x' is in 0 of the sets aime24"),
    ],
)
def test_a_bad_line_of_responses_is_named(real_data, tmp_path, line, message):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: .*" + message):
        evaluate(EvaluateConfig(responses=str(path), data="aime24", data_dir=str(real_data), out=str(tmp_path / "o")))
