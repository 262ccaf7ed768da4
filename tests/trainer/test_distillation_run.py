"""On-policy distillation through the program: without any reward the student comes nearer to its teacher."""

import json
import pathlib

import numpy as np
import pytest

from tests.trainer.conftest import run_cli


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(tmp_path: pathlib.Path):
    options = ("--evaluation.sets", "none", "--log.quiet", "--log.trackers", "none")
    trained = run_cli("train", "hello", "--run-dir", "trained", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    exported = run_cli("export", "trained", "teacher", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    student = run_cli(
        "train", "hello", "--loss", "distill", "--loss.ratio-level", "subsentence", "--model.reference", "teacher",
        "--steps", "8", "--run-dir", "student", *options, cwd=tmp_path,
    )  # fmt: skip
    assert student.returncode == 0, student.stderr
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] > 0]
    gaps = [row["policy/kl_teacher"] for row in rows]
    assert np.mean(gaps[-3:]) < 0.5 * np.mean(gaps[:3])
    assert (
        rows[-1]["verify/correct_fraction"] > rows[0]["verify/correct_fraction"] + 0.2
    )  # what the teacher has learned
