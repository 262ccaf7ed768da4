"""Tables, comparisons and reports of a study, from run directories with made-up numbers."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.losses import Grpo, Gspo
from sspo_jax.studies import Comparison, Setting, Study, Variant
from sspo_jax.studies.cells import StudyFolder
from sspo_jax.studies.outcomes import AREA, CLIP, FINAL, collapsed, mean_of, read_cell, stable, steps_to
from sspo_jax.studies.report import markdown, write_reports
from sspo_jax.studies.results import _related, results
from sspo_jax.studies.statistics import holm, mean_interval, paired_difference, rank_correlation, seeds_needed
from tests.report.conftest import make_run
from tests.trainer.conftest import SMALL

RATES = (1e-4, 2e-4)
SEEDS = (3, 4, 5, 6)
STUDY = Study(
    title="Levels",
    question="Which is better?",
    base=str(SMALL),
    settings=tuple(Setting(name=f"rate-{rate:g}", changes={"optimizer.learning_rate": rate}) for rate in RATES),
    variants=(
        Variant(name="grpo", changes={"loss": Grpo()}),
        Variant(name="gspo", changes={"loss": Gspo()}),
        Variant(name="other", changes={"loss": Gspo(clip_low=0.1)}),
    ),
    seeds=SEEDS,
    outcomes=(FINAL, AREA, CLIP, stable({"held": 0.6}), collapsed(0.2), steps_to(0.5)),
    comparisons=(
        Comparison(first="grpo", second="gspo", outcome="final score", task="task"),
        Comparison(first="grpo", second="gspo", outcome="area under curve", settings=("rate-0.0002",)),
        Comparison(first="grpo", second="other", outcome="final score"),
    ),
    passing_score={"task": 0.6},
    published={"grpo": 43.01},
)


def score(setting: int, variant: str, seed: int) -> float:
    """GRPO's falls with the rate; GSPO's is 0.1 below it and a little more with the seed."""
    own = 0.8 - 0.3 * setting * (seed % 2) + 0.01 * seed
    return own - (0.1 + 0.001 * seed) * (variant == "gspo")


def make_cell(path: pathlib.Path, final: float, *, shift: float = 0.0) -> None:
    make_run(path)
    entry = {"held": {"problems": 40, "length_mean": 3.0, "samples": 2}}
    interval = {"value": final, "low": final, "high": final}
    entry["held"] |= {"avg": interval, "greedy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    (path / "evaluations" / "step_000012.json").write_text(json.dumps(entry))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row["ratio/clip_fraction_after_first"] = 0.02
        row["verify/correct_fraction"] += shift
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    path = tmp_path_factory.mktemp("study")
    for cell in STUDY.cells():
        if cell.variant.name == "other":
            continue
        place = [setting.name for setting in STUDY.settings].index(cell.setting.name)
        final = score(place, cell.variant.name, cell.seed)
        make_cell(path / cell.name, final, shift=0.01 * cell.seed * (cell.variant.name == "gspo"))
    file = path / "rate-0.0001" / "gspo" / "seed-0003" / "rollouts" / "step_000002.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["response"] = rows[2]["response"].replace("is 2", "is 7")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = StudyFolder(study=STUDY, name="levels", path=path, load=load_experiment)
    made.record_failure("rate-0.0001/other/seed-0003", {"code": 1, "last_line": "out of memory", "log": "x"})
    return made


@pytest.fixture(scope="module")
def found(folder: StudyFolder) -> dict:
    return results(folder)


def test_comparisons_are_paired_by_seed_over_the_settings(found: dict):
    first, second = found["comparisons"]  # of the third no cell is done
    sides = [[np.mean([score(s, who, seed) for s in (0, 1)]) for seed in SEEDS] for who in ("grpo", "gspo")]
    expected = paired_difference(*sides)
    assert first["differences"] == pytest.approx(expected.differences)
    assert (first["value"], first["low"], first["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert first["seeds_needed"]["0.02"] == seeds_needed(expected.deviation, 0.02)
    assert second["differences"] == pytest.approx([-0.01 * seed for seed in SEEDS])
    assert [each["p_holm"] for each in (first, second)] == holm([first["p_value"], second["p_value"]])


def test_the_pairs_setting_by_setting(found: dict):
    rows = {(own["first"], own["second"], own["setting"]): own for own in found["by_setting"]}
    assert list(rows) == [("grpo", "gspo", f"rate-{rate:g}") for rate in RATES]  # once, though compared twice
    expected = mean_interval([score(1, "grpo", seed) - score(1, "gspo", seed) for seed in SEEDS])
    own = rows["grpo", "gspo", "rate-0.0002"]
    assert (own["value"], own["low"], own["high"]) == pytest.approx((expected.value, expected.low, expected.high))


def test_which_outcomes_go_with_the_score():
    """Three variants, one seed without a value of the outcome: it is left out for all."""
    study = dataclasses.replace(STUDY, related=("area under curve",))
    numbers = np.random.default_rng(1).normal(size=(3, 2, len(SEEDS)))
    values = {
        ("rate-0.0001", variant.name, seed): dict(zip(("final score", "area under curve"), column, strict=True))
        for variant, own in zip(study.variants, numbers, strict=True)
        for seed, column in zip(SEEDS, own.T, strict=True)
    }
    values["rate-0.0001", "gspo", SEEDS[2]]["area under curve"] = None
    kept = np.delete(numbers, 2, axis=2)
    (found,) = _related(study, values)
    expected = rank_correlation(kept[:, 1], kept[:, 0])
    assert (found["setting"], found["outcome"], found["variants"], found["seeds"]) == (
        "rate-0.0001", "area under curve", 3, 3,
    )  # fmt: skip
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    text = markdown({**results_of_nothing(study), "related": [found]})
    assert f"| area under curve | {expected.value:+.2f} [" in text
    with pytest.raises(ValueError, match="related: no outcome 'x'; expected some of final score"):
        dataclasses.replace(STUDY, related=("x",)).check()


def results_of_nothing(study: Study) -> dict:
    return results(StudyFolder(study=study, name="levels", path=pathlib.Path("none"), load=load_experiment))


def test_the_table_and_what_was_not_run(folder: StudyFolder, found: dict):
    assert found["runs"] == {"planned": 24, "done": 16, "failed": folder.failures()}
    row = found["table"][0]
    assert (row["setting"], row["variant"], row["runs"]) == ("rate-0.0001", "grpo", 4)
    assert row["outcomes"]["final score"]["value"] == pytest.approx(np.mean([score(0, "grpo", s) for s in SEEDS]))
    assert row["outcomes"]["clip fraction"]["value"] == pytest.approx(0.02)
    grpo, gspo = found["boundaries"]
    assert grpo["failed"] == [0.0, 0.5]  # odd seeds fall to .53 and .55 at the higher rate
    assert grpo["value"] == pytest.approx(2e-4)
    assert gspo["failed"] == [0.0, 0.5]


def test_where_the_first_pair_parts(found: dict):
    found = found["divergence"]
    assert {key: found[0][key] for key in ("setting", "seed", "step", "response")} == {
        "setting": "rate-0.0001",
        "seed": 3,
        "step": 2,
        "response": 3,
    }
    assert found[0]["token"] == 4  # "I", "t", " is", " 2"
    assert "step" not in found[1]  # never


def test_pairs_whose_samples_were_not_kept_are_not_said_to_part(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sspo_jax.studies.results.step_files", lambda *_: {})
    assert results(folder)["divergence"] == []


def test_outcomes_of_a_cell(tmp_path: pathlib.Path):
    make_cell(tmp_path / "cell", 0.7)
    run = read_cell(tmp_path / "cell")
    assert run is not None
    shares = np.arange(1, 13) / 12
    trailing = [shares[max(0, step - 2) : step + 1].mean() for step in range(12)]
    np.testing.assert_allclose(run.curve(), trailing, rtol=1e-12)
    assert FINAL.measure(run) == 0.7
    assert AREA.measure(run) == pytest.approx(shares.mean())
    assert steps_to(0.5).measure(run) == 7  # (5 + 6 + 7) / 36 = 0.5
    assert steps_to(2.0).measure(run) == 13
    assert collapsed(0.2).measure(run) == 0
    for row in run.rows[-3:]:
        row["verify/correct_fraction"] = 0.1
    assert collapsed(0.2).measure(run) == 1
    assert stable({"held": 0.7}).measure(run) == 1
    assert stable({"held": 0.71}).measure(run) == 0
    assert stable({"another": 0.9}).measure(run) == 1
    assert mean_of("policy/entropy", "", weight="optim/skipped_updates").measure(run) == 0.75  # step 3 alone
    assert mean_of("policy/entropy", "", weight="none").measure(run) is None
    assert read_cell(tmp_path) is None


def test_the_reports_say_the_same(folder: StudyFolder, found: dict):
    files = write_reports(found, folder.path)
    text = files[0].read_text(encoding="utf-8")
    assert text == markdown(found)
    assert "16 of 24 runs are done, 1 failed" in text
    assert "failed: rate-0.0001/other/seed-0003: out of memory" in text
    assert re.search(r"\| final score: grpo - gspo \(task\) \| 4 \| \+10\.45 \[", text)
    assert json.loads(files[1].read_text()) == json.loads(json.dumps(found))
    page = files[2].read_text(encoding="utf-8")
    assert page.count("</script>") == 3
    for title in ("Comparisons", "Stability boundary", "Where pairs part", "Last held-out scores"):
        assert f"## {title}" in text
        assert f"<h2>{title}</h2>" in page
    assert text.count("rate-0.0001: grpo - gspo, avg") == 1  # compared in two outcomes, the same problems
    assert "| other | loss = Gspo(clip_low=0.1) |" in text  # what is at its default is not told
    assert "| 43.01 |" not in text  # the paper's is beside an average over sets, of which there is one here
