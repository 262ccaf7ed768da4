"""The directory of an evaluation: written, read back, continued, refused, compared, and turned into reports."""

import dataclasses
import json

import numpy as np
import pytest

from sspo_jax.evaluation.comparison import compare, comparison_table
from sspo_jax.evaluation.report import html, markdown, summary_table, write_report
from sspo_jax.evaluation.results import (
    SampleFile,
    read_results,
    read_samples,
    to_json,
    write_results,
)


def test_results_come_back_as_they_were_written(tmp_path, made_up):
    evaluation, *_ = made_up.evaluation_of({"aime24": made_up.draw(0, 30), "math500": made_up.draw(1, 50, 1)})
    write_results(tmp_path, evaluation)
    again = read_results(tmp_path)
    assert to_json(again) == to_json(evaluation)
    np.testing.assert_array_equal(again.sets[0].correct, evaluation.sets[0].correct)
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        read_results(tmp_path / "none")


def test_the_average_is_of_the_papers_five_where_all_are_there(made_up):
    five = {name: made_up.draw(index, 20, 1) for index, name in
            enumerate(("aime24", "amc23", "math500", "minerva", "olympiadbench"))}  # fmt: skip
    evaluation, *_ = made_up.evaluation_of({**five, "gsm8k": np.ones((10, 1), bool)})
    title, average = evaluation.average
    assert title == "average of the five sets"
    assert average.value == pytest.approx(np.mean([correct.mean() for correct in five.values()]))
    fewer, *_ = made_up.evaluation_of({"aime24": five["aime24"], "gsm8k": np.ones((10, 1), bool)})
    assert fewer.average[0] == "average of 2 sets"
    assert fewer.average[1].value == pytest.approx((five["aime24"].mean() + 1) / 2)


def test_samples_are_kept_and_continued(tmp_path, made_up):
    problems = made_up.problems_of("a", 3)
    rows = made_up.rows_of("a", problems, made_up.draw(0, 3))
    SampleFile(tmp_path, made_up.PROTOCOL).append(rows[:2])
    second = SampleFile(tmp_path, made_up.PROTOCOL)
    assert second.rows_of("a") == rows[:2]
    second.append(rows[2:])
    assert read_samples(tmp_path) == rows
    SampleFile(tmp_path, made_up.PROTOCOL).rewrite(rows[1:])
    assert SampleFile(tmp_path, made_up.PROTOCOL).rows == read_samples(tmp_path) == rows[1:]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_by_a_crash_is_dropped(tmp_path, cut, made_up):
    rows = made_up.rows_of("a", made_up.problems_of("a", 2), made_up.draw(0, 2))
    samples = SampleFile(tmp_path, made_up.PROTOCOL)
    samples.append(rows)
    raw = samples.path.read_bytes()
    samples.path.write_bytes(raw[:-cut])
    again = SampleFile(tmp_path, made_up.PROTOCOL)
    assert again.rows == rows[:-1]
    again.append(rows[-1:])
    assert samples.path.read_bytes() == raw


def test_samples_of_another_protocol_are_refused_by_name(tmp_path, made_up):
    SampleFile(tmp_path, made_up.PROTOCOL)
    with pytest.raises(ValueError, match=r"seed was 0 and is 1; top_p was 0\.95 and is 1\.0\. Give another --out"):
        SampleFile(tmp_path, {**made_up.PROTOCOL, "seed": 1, "top_p": 1.0})


def test_a_comparison_says_what_differs_on_the_same_problems(made_up):
    better, *_ = made_up.evaluation_of({"aime24": made_up.draw(0, 30, 8, 0.7), "math500": made_up.draw(1, 200, 4, 0.8)})
    worse, *_ = made_up.evaluation_of(
        {"aime24": made_up.draw(2, 30, 8, 0.4), "math500": made_up.draw(3, 200, 4, 0.4), "gsm8k": made_up.draw(4, 9)}
    )
    found = compare(better, worse)
    assert set(found.sets) == {"aime24", "math500"}
    one, two, difference = found.sets["math500"]
    assert difference.value == pytest.approx(one.value - two.value)
    assert difference.low > 0
    assert difference.p_value < 0.01
    assert found.average.value == pytest.approx(np.mean([part[2].value for part in found.sets.values()]))
    assert found.remarks == ("only one of them has gsm8k: left out",)
    table = comparison_table(found, ("better", "worse"))
    assert table.count("\n|") == 4
    assert f"{100 * difference.value:+.1f}" in table


@pytest.mark.parametrize(
    ("changes", "sets", "message"),
    [
        (
            {"preset": "paper-greedy", "temperature": 0.0},
            {"a": 10},
            "preset is 'avg@k' and 'paper-greedy'; temperature",
        ),
        ({"max_new_tokens": 16_000}, {"a": 10}, "max_new_tokens is 3000 and 16000"),
        ({}, {"a": 11}, "the problems are not the same"),
        ({}, {"b": 10}, "no set in common"),
    ],
)
def test_what_is_not_comparable_is_refused(changes, sets, message, made_up):
    first, *_ = made_up.evaluation_of({"a": made_up.draw(0, 10)})
    second, *_ = made_up.evaluation_of({name: made_up.draw(1, count) for name, count in sets.items()}, **changes)
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def test_other_data_under_the_same_name_is_refused(made_up):
    first, *_ = made_up.evaluation_of({"a": made_up.draw(0, 10)})
    changed = dataclasses.replace(first.sets[0], digest="other")
    with pytest.raises(ValueError, match="the problems are not the same"):
        compare(first, dataclasses.replace(first, sets=(changed,)))


def test_another_prompt_is_remarked(made_up):
    first, *_ = made_up.evaluation_of({"a": made_up.draw(0, 10)})
    second, *_ = made_up.evaluation_of({"a": made_up.draw(0, 10)}, prompt="r1")
    assert compare(first, second).remarks == ("other prompts: chat and r1",)


def test_the_reports_hold_the_numbers(tmp_path, made_up):
    evaluation, rows, problems = made_up.evaluation_of(
        {"amc23": made_up.draw(0, 40), "math500": made_up.draw(1, 50, 2, 0.2)}
    )
    write_report(tmp_path, evaluation, rows, problems)
    text = (tmp_path / "report.md").read_text()
    score = f"{100 * evaluation.sets[0].accuracy.value:.1f}"
    assert score in text
    assert "the 83-problem AMC of other papers is another set" in text
    assert "MATH-500 [50 of 500]" in text
    assert "by subject" in text
    assert "by level" not in text  # there is one level only: the table would repeat the score
    assert score in summary_table(evaluation)
    page = (tmp_path / "report.html").read_text()
    assert score in page
    assert page.count("<i style=") == 90
    assert "math500-3" in page


def test_the_html_is_one_file_and_escapes_what_a_model_wrote(made_up):
    evaluation, rows, problems = made_up.evaluation_of({"a": made_up.draw(0, 10, 2, 0.1)})
    page = html(evaluation, rows, problems)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;0&lt;/b&gt; &amp; so on" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page


def test_long_responses_are_cut_in_the_middle(made_up):
    evaluation, rows, problems = made_up.evaluation_of({"a": np.zeros((2, 1), bool)})
    rows = [dataclasses.replace(row, response="x" * 5_000 + "END") for row in rows]
    page = html(evaluation, rows, problems)
    assert "1003 characters left out" in page
    assert "xEND" in page


def test_markdown_repeats_the_protocol(made_up):
    evaluation, *_ = made_up.evaluation_of({"a": made_up.draw(0, 10)})
    text = markdown(evaluation)
    assert all(f"{key}: {value}" in text for key, value in made_up.PROTOCOL.items())


def test_results_json_is_strict_json(tmp_path, made_up):
    evaluation, *_ = made_up.evaluation_of({"a": np.ones((3, 1), bool)})
    write_results(tmp_path, evaluation)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
