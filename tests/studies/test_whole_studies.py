"""Studies end to end: a small one of a tiny model, and the table of the paper with nothing replaced but sizes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.trainer.conftest import SMALL

REAL_DATA = pathlib.Path(os.environ.get("SSPO_DATA", "nowhere")).resolve()
ROOT = pathlib.Path(__file__).resolve().parents[2]


def sspo(*arguments: str, cwd: pathlib.Path, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sspo_jax", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
def test_a_small_study_goes_on_where_it_was(tmp_path: pathlib.Path):
    shutil.copy(SMALL, tmp_path / "small.py")
    (tmp_path / "own.py").write_text(f"""
from sspo_jax.losses import Grpo, Sspo
from sspo_jax.studies import Comparison, Study, Variant
from sspo_jax.studies.outcomes import CLIP, FINAL


def study():
    return Study(
        title="Own", question="?", base={str(tmp_path / "small.py")!r}, seeds=(0, 1), outcomes=(FINAL, CLIP),
        changes={{"steps": 2, "log.report_every": 0, "optimizer.learning_rate": 1e-2}},
        variants=(Variant(name="grpo", changes={{"loss": Grpo()}}),
                  Variant(name="broken", changes={{"loss": Sspo(), "segmenter.rule": "nonsense"}})),
        comparisons=(Comparison(first="grpo", second="broken", outcome="final score"),),
    )
""")
    cache = {"SSPO_CACHE_DIR": str(tmp_path / "cache")}
    arguments = ["study", "own.py", "--out", "out"]
    first = sspo(*arguments, "--only", "seed-0000", cwd=tmp_path, **cache)
    assert first.returncode == 1, first.stderr  # one cell failed
    assert "as-it-is/broken/seed-0000: failed with code 1: sspo study: " in " ".join(first.stdout.split())
    cell = tmp_path / "out" / "as-it-is" / "grpo" / "seed-0000"
    before = (cell / "metrics.jsonl").read_text()
    assert not (cell / "checkpoints").exists()
    second = sspo(*arguments, "--jobs", "1", cwd=tmp_path, **cache)
    assert second.returncode == 1
    assert (cell / "metrics.jsonl").read_text() == before
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["runs"]["done"] == 2
    assert len(found["runs"]["failed"]) == 2
    configs = [
        json.loads((tmp_path / "out" / "as-it-is" / "grpo" / f"seed-000{seed}" / "config.json").read_text())["config"]
        for seed in (0, 1)
    ]
    assert [config["seed"] for config in configs] == [0, 1]
    assert len(list((tmp_path / "cache" / "warm_start").iterdir())) == 1  # both seeds start from the same weights


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "qwen2.5-tokenizer").is_dir(), reason="needs the data that CONTRIBUTING.md lists")
def test_the_table_of_the_paper_with_other_sizes(tmp_path: pathlib.Path):
    """The real vocabulary, prompts, problems and sets; a model of 10 M parameters, 2 steps, 2 problems a set."""
    from tests.smoke_real import random_checkpoint

    random_checkpoint(tmp_path / "model", REAL_DATA / "qwen2.5-tokenizer")
    shutil.copy(ROOT / "studies" / "paper_table.py", tmp_path)
    (tmp_path / "tiny.py").write_text(f"""
import dataclasses

from . import paper_table


def study():
    study = paper_table.study()
    sizes = {{
        "model.path": {str(tmp_path / "model")!r}, "data.path": {str(REAL_DATA / "train" / "math_lvl3to5_8k.jsonl")!r},
        "steps": 2, "rollout.prompts": 4, "rollout.group_size": 2, "rollout.max_new_tokens": 24, "rollout.slots": 8,
        "rollout.max_prompt_tokens": 400, "update.row_tokens": 512, "update.micro_rows": 2, "evaluation.problems": 2,
        "evaluation.samples": 2,
    }}
    return dataclasses.replace(study, changes={{**study.changes, **sizes}})
""")
    done = sspo("study", "tiny.py", "--out", "out", cwd=tmp_path, timeout=1800, SSPO_DATA=str(REAL_DATA / "eval"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["runs"]["done"] == 3
    sets = {row["set"] for row in found["held_out"]["scores"]}
    assert {row["variant"] for row in found["held_out"]["scores"]} == {"GRPO", "GSPO", "SSPO"}
    assert len(sets) >= 2
    assert all({"avg", "greedy"} <= set(row) for row in found["held_out"]["scores"])
    assert {each["kind"] for each in found["held_out"]["differences"]} == {"avg", "greedy"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(published in text for published in ("43.01", "44.42", "46.72"))
