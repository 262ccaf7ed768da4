"""What a report says is what the run's files say, and it is one file of a bounded size that needs no network."""

import dataclasses
import json
import logging
import pathlib
import re
import shutil

import numpy as np
import pytest

from sspo_jax.commands.main import main
from sspo_jax.evaluation.intervals import paired_difference
from sspo_jax.losses.diagnostics import LOG_RATIO_EDGES
from sspo_jax.report.clauses import logged_steps
from sspo_jax.report.curves import _quantile, events
from sspo_jax.report.findings import findings
from sspo_jax.report.page import RunReport, html
from sspo_jax.report.reader import RunReader
from tests.report.conftest import make_run, row, token_log


def data_of(page: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_page_has_the_numbers_of_the_run(run: pathlib.Path):
    (shown,) = data_of(html([RunReader(run).read()]))["runs"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert shown["steps"] == [each["step"] for each in rows]
    for name in ("reward/mean", "ratio/clip_fraction", "update/3/clip_fraction"):
        expected = [each.get(name) for each in rows]
        assert shown["series"][name] == [None if value is None else float(f"{value:.5g}") for value in expected]
    assert {event["kind"] for event in shown["events"]} == {"evaluated", "skipped"}
    assert [log["step"] for log in shown["tokens"]] == [5, 10]
    clause = shown["tokens"][1]["responses"][1]["clauses"][0][1]
    assert clause[:2] == [6, 12]
    assert clause[2] == pytest.approx(0.12, rel=1e-4)
    assert clause[8:] == ["high", 6, 0, 6, 0]  # grpo would have kept exp(0.12); gspo clips exp(0.06)
    assert shown["roofline"]["stages"][0]["share"] == 0.25
    problems = shown["problems"]
    assert problems["shares"]["always"][-1] == 1.0
    assert problems["unread"][0]["status"] == "unparsed"


def test_the_answers(run: pathlib.Path, other: pathlib.Path):
    one, two = (data_of(html([RunReader(path).read()]))["runs"][0]["findings"] for path in (run, other))
    learned, active, clipped = one
    assert learned["verdict"] == "Yes"
    assert "25.0 % before, 75.0 % after" in learned["answer"]
    assert two[0]["verdict"] == "Not for sure"  # 10 and 12 of 40
    assert active["verdict"] == "Yes"
    assert "GSPO 40.00 %" in active["answer"]
    assert clipped["clause"] == " so it is </script>5."
    assert clipped["place"] == {"step": 10, "response": 1, "epoch": 0, "start": 6}
    assert "ratio 1.127 where 0.980 to 1.020 is allowed, clipped high" in clipped["answer"]
    assert "GSPO would have clipped it too" in clipped["answer"]


def test_several_runs_are_compared_on_the_same_problems(run: pathlib.Path, other: pathlib.Path):
    found = data_of(html([RunReader(run).read(), RunReader(other).read()]))["differences"]
    greedy = next(each for each in found if each["kind"] == "greedy")
    expected = paired_difference(*(np.arange(40)[:, None] < solved for solved in (12, 30)))
    assert (greedy["run"], greedy["difference"]) == ("two", expected.value)
    assert (greedy["low"], greedy["high"]) == (expected.low, expected.high)
    assert {each["kind"] for each in found} == {"greedy", "samples"}


def test_runs_of_the_same_name_are_told_apart(tmp_path: pathlib.Path):
    paths = [make_run(tmp_path / name / "same", steps=2) for name in "abc"]
    data = data_of(html([RunReader(path).read() for path in paths]))
    assert [run["name"] for run in data["runs"]] == [str(path) for path in paths]
    assert [each["run"] for each in data["differences"]] == [str(path) for path in paths[1:] for _ in range(2)]


def test_the_clause_of_the_answer_is_on_the_page_however_little_fits(run: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(run, tmp_path / "run")
    for step in (5, 10):  # the furthest one is the second response of the first step, not of the last
        log = dataclasses.replace(token_log(15 - step), step=step)
        (tmp_path / "run" / "tokens" / f"step_{step:06d}.npz").write_bytes(log.to_bytes())
    read = RunReader(tmp_path / "run").read()
    answer = findings(read)[2]
    steps = logged_steps(read, 1, answer["place"])
    assert [step["step"] for step in steps] == [answer["place"]["step"]]
    assert [response["number"] for response in steps[0]["responses"]] == [answer["place"]["response"]] == [1]


def test_the_answer_about_the_clause_names_the_ratio_that_was_clipped(run: pathlib.Path):
    """At the level of tokens the mean of a clause may lie within the bounds while one of its tokens does not."""
    read = RunReader(run).read()
    one = read.tokens[10].responses[1]
    ratio = np.ones((1, 12), np.float32)
    ratio[0, 8], clipped = 1.5, np.zeros((1, 12), np.int8)
    clipped[0, 8] = 1
    wide = {"ratio": ratio, "clipped": clipped, "low": 0 * ratio + 0.8, "high": 0 * ratio + 1.2}
    log = dataclasses.replace(read.tokens[10], responses=(dataclasses.replace(one, arrays={**one.arrays, **wide}),))
    answer = findings(dataclasses.replace(read, tokens={10: log}))[2]["answer"]
    assert "ratio 1.500 of one of its tokens where 0.800 to 1.200 is allowed, clipped high" in answer


def test_restarts_are_marked_also_those_with_the_same_settings(run: pathlib.Path):
    read = RunReader(run).read()
    rows = [{**row, "time/started_unix_seconds": 1.7e9 + 50 * (row["step"] > 6)} for row in read.rows]
    found = [event for event in events(dataclasses.replace(read, rows=rows)) if event["kind"] == "restarted"]
    assert found == [{"step": 7, "kind": "restarted", "text": "restarted before step 7"}]


def test_a_run_before_its_first_step_is_not_said_to_lack_what_comes_later(run: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("rollouts", "tokens"):
        shutil.rmtree(tmp_path / "run" / name)
    (shown,) = data_of(html([RunReader(tmp_path / "run").read()]))["runs"]
    assert "yet; they are kept every 2 steps" in shown["findings"][2]["answer"]
    assert "log.rollouts_every" in shown["problems"]["none"]
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "eval/held/accuracy": 0.25}\n')
    (shown,) = data_of(html([RunReader(tmp_path / "run").read()]))["runs"]
    assert shown["findings"][2]["answer"] == shown["problems"]["none"] == "No step is done yet."


def test_token_logs_without_a_finite_entropy_are_shown(run: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(run, tmp_path / "run")
    log = dataclasses.replace(token_log(10), mean_entropy=float("nan"))
    (tmp_path / "run" / "tokens" / "step_000010.npz").write_bytes(log.to_bytes())
    (shown,) = data_of(html([RunReader(tmp_path / "run").read()]))["runs"]
    assert [step["mean_entropy"] for step in shown["tokens"]] == [0.5, None]


def test_nothing_is_fetched_and_nothing_escapes(run: pathlib.Path):
    page = html([RunReader(run).read()])
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page)
    assert page.count("</script>") == 3  # those of the page, none of a response
    assert "\\u003c/script>" in page


@pytest.mark.slow
def test_a_long_run_stays_below_five_megabytes(tmp_path: pathlib.Path):
    path = make_run(tmp_path / "long", steps=500, tokens_every=100, responses=16, response_tokens=2000)
    with open(path / "metrics.jsonl", "a") as stream:  # as many keys as a real run has
        for step in range(501, 510):
            stream.write(
                json.dumps({"step": step, **row(step, 500), **{f"more/{n}": 0.123456789 for n in range(60)}}) + "\n"
            )
    run = RunReader(path).read()
    assert len(html([run]).encode()) < 5e6
    steps = logged_steps(run)
    assert [log["step"] for log in steps][-1] == 500
    assert steps[0]["step"] == 100
    assert sum(len(log["responses"]) for log in steps) + sum(log["left_out"] for log in steps) < 16 * 5


def test_quantiles_are_read_off_the_histogram():
    edges = np.array(LOG_RATIO_EDGES)
    values = np.random.default_rng(0).normal(0, 0.05, 200_000)
    shares = (np.histogram(values, [-np.inf, *edges, np.inf])[0] / len(values)).tolist()
    for quantile in (0.05, 0.5, 0.95):
        exact = np.quantile(values, quantile)
        around = edges[max(0, np.searchsorted(edges, exact) - 1) : np.searchsorted(edges, exact) + 1]
        assert around.min() <= _quantile(shares, quantile) <= around.max()
    assert _quantile([0.0] * 13, 0.5) == 0.0


def test_a_report_that_fails_ends_nothing(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert RunReport(tmp_path).refresh() is None
    assert "no report: FileNotFoundError" in caplog.text


def test_a_refresh_reads_finished_steps_once(tmp_path: pathlib.Path, run: pathlib.Path):
    shutil.copytree(run, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    first = reader.read()
    second = reader.read()
    assert all(second.problems[step] is rates for step, rates in first.problems.items())
    assert all(second.tokens[step] is log for step, log in first.tokens.items())


def test_the_command(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(tmp_path)]) == 1
    assert "no config.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "misspelt")]) == 1
    assert "no config.json" in capsys.readouterr().err  # not that its directory should be made first
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "b.html")]) == 1
    assert "is named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("metrics.jsonl", '{"step": 1, "reward/mean": "high"}\n', "metrics.jsonl:1: reward/mean is 'high'"),
        ("metrics.jsonl", '{"step": 1, "reward/mean": {}}\n', "metrics.jsonl:1: reward/mean is {}"),
        ("rollouts/step_000010.jsonl", "[1]\n", "step_000010.jsonl:1: a list; expected an object"),
        ("rollouts/step_000010.jsonl", '{"id": "a"}\n', "step_000010.jsonl:1: no sample"),
        ("evaluations/step_000012.json", "[1]", "step_000012.json: a list; expected an object"),
        ("evaluations/step_000012.json", '{"held": {}}', "step_000012.json, held: no problems"),
        ("evaluations/step_000012.jsonl", "{}\n", "step_000012.jsonl:1: no set"),
        ("tokens/step_000010.npz", "{}", "step_000010.npz: not a file of per-token data"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    expected: str,
):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    commands = [["report", str(tmp_path / "run")]]
    if not file.startswith("evaluations"):
        commands.append(["inspect", str(tmp_path / "run"), "--step", "10"])
    for command in commands:
        assert main(command) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["", "nowhere/x.html"])
def test_a_page_that_has_no_place_is_refused_before_the_work(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], name: str
):
    assert main(["report", str(run), "--out", str(tmp_path / name)]) == 1
    assert "a directory; expected the name of a file" in (error := capsys.readouterr().err) or "make it first" in error
    assert not list(tmp_path.parent.glob("*.part"))
