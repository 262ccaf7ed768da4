"""What a kill or a disk leaves in a run directory neither stops the next start nor is taken for something else."""

import json
import pathlib

import pytest

from sspo_jax.commands.main import main
from sspo_jax.runs.best import read_best
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.metrics_file import read_metrics
from sspo_jax.runs.policy import read_record
from tests.trainer.conftest import small


@pytest.fixture
def run(tmp_path: pathlib.Path) -> RunDirectory:
    """A directory with what two steps write, without the run."""
    directory = object.__new__(RunDirectory)
    directory.path = tmp_path
    directory._lock = None
    for step in (1, 2):
        for file in (
            directory.rollouts(step),
            directory.evaluation(step),
            directory.evaluation(step).with_suffix(".jsonl"),
        ):
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}\n")
    directory.metrics.write_text('{"step": 0, "reward/mean": 0.1}\n{"step": 1}\n{"step": 2}\n{"step": 3, "rewa')
    return directory


def test_left_over_parts_are_passed_over(run: RunDirectory):
    for name in ("evaluations/step_000002.json.part", "rollouts/step_000002.jsonl.part", "rollouts/step_x.jsonl"):
        (run.path / name).touch()
    run.forget_after(1)
    assert sorted(entry.name for entry in (run.path / "evaluations").iterdir()) == [
        "step_000001.json", "step_000001.jsonl", "step_000002.json.part"
    ]  # fmt: skip
    assert not run.rollouts(2).exists()
    assert run.rollouts(1).exists()


def test_a_cut_row_of_metrics_is_dropped_and_a_damaged_one_named(run: RunDirectory):
    assert [row["step"] for row in read_metrics(run.metrics)] == [0, 1, 2]
    assert run.is_recorded(2)
    assert not run.is_recorded(3)
    run.forget_after(1)
    assert run.metrics.read_text() == '{"step": 0, "reward/mean": 0.1}\n{"step": 1}\n'
    run.metrics.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        run.forget_after(1)
    assert run.metrics.read_text() == '{"step": 0}\n{"st\n{"step": 2}\n'  # nothing is deleted


def test_damaged_records_name_themselves_and_the_way_on(tmp_path: pathlib.Path):
    for content in ("{", "[1]", '{"step": 1}'):
        (tmp_path / "best.json").write_text(content)
        with pytest.raises(ValueError, match=r"best\.json.*Remove it"):
            read_best(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON.*Restore it from a copy"):
        read_record(tmp_path)


def test_sampled_texts_with_line_separators_are_shown(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    record = {
        "experiment": "e", "commit": None, "devices": "1 x cpu", "model": {}, "provenance": {},
        "config": small().resolved(),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "rollouts").mkdir()
    row = {
        "id": "a", "sample": 0, "problem": "1+1?", "response": "two\u2028\u2029\u0085lines", "gold": "2",
        "status": "wrong", "extracted": None, "reason": "", "reward": 0.0, "tokens": 3, "finish": "stop",
    }  # fmt: skip
    (tmp_path / "rollouts" / "step_000001.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert main(["inspect", str(tmp_path), "--step", "1"]) == 0
    assert "two" in capsys.readouterr().out
