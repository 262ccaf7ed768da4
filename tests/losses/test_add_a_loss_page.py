"""docs/add_a_loss.md, done: its blocks put into a copy of the project, tested there, and trained with."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r"^`([\w/]+\.py)`[^\n]*\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ONE_STEP = (
    "--steps 1 --warm-start.updates 30 --rollout.prompts 2 --rollout.group-size 2 --update.per-rollout 2 "
    "--update.micro-rows 2 --evaluation.problems 1 --evaluation.samples 0 --mesh.fsdp 1"
)
SMALL = '''"""As arithmetic_tiny_penalty, smaller."""

import dataclasses

from . import arithmetic_tiny_penalty


def config():
    base = arithmetic_tiny_penalty.config()
    shape = dataclasses.replace(base.model.shape, hidden_size=48, num_layers=1, intermediate_size=64)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, shape=shape))
'''

# Most of the time is compiling.


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project to which the page has been applied."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("sspo_jax", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "docs" / "add_a_loss.md").read_text(encoding="utf-8"))
    assert len(blocks) == 4
    for file, text in blocks:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text, encoding="utf-8")
            continue
        imports, names = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^from .*\n", r"^    .*\n"))
        before, middle, after = path.read_text(encoding="utf-8").partition("\n__all__ = [\n")
        path.write_text("".join([before, *imports, middle, *names, after]), encoding="utf-8")
    return folder


def run(project, *command):
    environment = {"PYTHONPATH": str(project), "SSPO_CACHE_DIR": str(project / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_its_tests_pass(project):
    done = run(project, "pytest", "-q", "--doctest-modules", "tests/losses", "sspo_jax/losses/penalty.py")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.slow
def test_its_experiment_trains(project):
    (project / "experiments" / "small_penalty.py").write_text(SMALL, encoding="utf-8")
    done = run(project, "sspo_jax", "train", "small_penalty", *ONE_STEP.split(), "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((project / "run" / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["loss"]["objective"] == "Penalty"


def test_its_name_is_known_on_the_command_line(project):
    done = run(project, "sspo_jax", "train", "arithmetic_tiny", "--loss", "penalty", "--loss.penalty", "0.5", "--help")
    assert done.returncode == 0, done.stderr
    assert "Price of half the squared log-ratio" in done.stdout
