"""SIGKILL at random moments of training, export and evaluation: what is left goes on, and ends bit-equal."""

import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from sspo_jax.evaluation.results import read_results
from tests.trainer.conftest import SMALL, run_cli
from tests.trainer.test_resume import same_as

pytestmark = pytest.mark.slow
KILLS = 8


def killed_after(seconds: float, cwd: pathlib.Path, *arguments: str) -> int:
    """Runs a command and kills it after so long; its exit code if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sspo_jax", *arguments],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -9
    assert process.returncode == 0, errors
    return 0


def test_random_kills_lose_nothing(cache: pathlib.Path, tmp_path: pathlib.Path):
    """The warm start is made by the uninterrupted run; kills are spread over the time that it takes."""
    train = ("train", str(SMALL), "--log.quiet", "--evaluation.every", "1", "--run-dir")
    evaluate = ("evaluate", "--workers", "1", "--model")
    assert run_cli(*train, "first", cwd=tmp_path).returncode == 0
    started = time.monotonic()
    assert run_cli(*train, "whole", cwd=tmp_path).returncode == 0
    whole, rng = time.monotonic() - started, random.Random(0)
    kills = sum(killed_after(rng.uniform(0.3, 1.0) * whole, tmp_path, *train, "run") != 0 for _ in range(KILLS - 3))
    again = run_cli(*train, "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    same_as(tmp_path / "run", tmp_path / "whole")
    assert kills > 0
    for seconds in (0.4, 0.7, 0.9):
        killed_after(seconds * whole / 2, tmp_path, "export", "run", "out")
    for run, out in (("run", "out"), ("whole", "expected")):
        if not (tmp_path / out).is_dir() or not any((tmp_path / out).iterdir()):
            done = run_cli("export", run, out, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    for seconds in (0.4, 0.7, 0.9):
        killed_after(seconds * whole / 2, tmp_path, *evaluate, "run", "--out", "scores")
    for run, out in (("run", "scores"), ("whole", "wanted")):
        done = run_cli(*evaluate, run, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert read_results(tmp_path / "scores").sets == read_results(tmp_path / "wanted").sets
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "expected")]
    assert weights[0] == weights[1]
    same_as(tmp_path / "run", tmp_path / "whole")
