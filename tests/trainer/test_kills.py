"""SIGKILL at random moments of training, export and evaluation: what is left goes on, and ends bit-equal."""

import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

from sspo_jax.evaluation.results import read_results, to_json
from tests.trainer.conftest import SMALL, run_cli
from tests.trainer.test_resume import same_as, start, wait_for_step

pytestmark = pytest.mark.slow


def killed_after(seconds: float, cwd: pathlib.Path, *arguments: str) -> int:
    """Runs a command and kills it after so long; its exit code if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sspo_jax", *arguments],
        cwd=cwd,
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
    """Four kills of the training, three of an export, three of an evaluation; each left-over is met by the next."""
    train = ("train", str(SMALL), "--log.quiet", "--evaluation.every", "1", "--run-dir")
    evaluate = ("evaluate", "--workers", "1", "--model")
    started = time.monotonic()
    assert run_cli(*train, "whole", cwd=tmp_path).returncode == 0
    whole, rng = time.monotonic() - started, random.Random(0)
    for step in (0, 1, 2, 3):  # a checkpoint, an evaluation and a row are written within a moment of each other
        process = start(tmp_path / "run", tmp_path, "--evaluation.every", "1")
        wait_for_step(tmp_path / "run", step, process)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
    again = run_cli(*train, "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    same_as(tmp_path / "run", tmp_path / "whole")
    for part in (0.2, 0.3, 0.4):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        killed_after(part * whole, tmp_path, "export", "run", "out")
    for run, out in (("run", "out"), ("whole", "expected")):
        if not (tmp_path / out).is_dir() or not any((tmp_path / out).iterdir()):
            done = run_cli("export", run, out, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    for part in (0.3, 0.4, 0.5):
        killed_after(part * whole, tmp_path, *evaluate, "run", "--out", "scores")
    for run, out in (("run", "scores"), ("whole", "wanted")):
        done = run_cli(*evaluate, run, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    scores, wanted = (to_json(read_results(tmp_path / name))["sets"] for name in ("scores", "wanted"))
    assert scores == wanted
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "expected")]
    assert weights[0] == weights[1]
    same_as(tmp_path / "run", tmp_path / "whole")
