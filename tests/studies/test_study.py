"""A study is checked before it runs, and its cells differ in what they are to differ in."""

import dataclasses
import pathlib

import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.commands.study import known, load_study
from sspo_jax.config import WarmStartConfig
from sspo_jax.losses import Gspo, Sapo, Sspo
from sspo_jax.studies import Comparison, Setting, Study, Variant
from sspo_jax.studies.study import changed, scaled

TWO = Study(
    title="Two",
    question="?",
    base="arithmetic_tiny",
    settings=(Setting(name="slow", changes={"optimizer.learning_rate": 1e-5}), Setting(name="fast", seeds=1)),
    variants=(
        Variant(name="sspo", changes={"loss": Sspo(), "steps": 2}),
        Variant(name="gspo", changes={"loss": Gspo()}, match_clip=0.02),
    ),
    seeds=(5, 6, 7),
    warm_starts=(0, 9),
    changes={"steps": 3},
)


def test_cells_share_all_but_their_variant():
    TWO.check()
    cells = {cell.name: cell.config(TWO, load_experiment) for cell in TWO.cells()}
    assert len(cells) == 2 * 3 + 2 * 1
    one, two = cells["slow/sspo/seed-0006"], cells["slow/gspo/seed-0006"]
    assert (one.seed, one.steps, two.steps) == (6, 2, 3)
    assert one.optimizer.learning_rate == 1e-5
    assert isinstance(one.warm_start, WarmStartConfig)
    assert one.warm_start.seed == 9  # seeds take the warm starts in turn
    assert dataclasses.replace(one, loss=two.loss, steps=3) == two
    names = list(cells)
    assert all("seed-0005" in name for name in names[:4])  # seed by seed


def test_a_variant_may_be_in_some_settings_only():
    sspo, gspo = TWO.variants
    study = dataclasses.replace(TWO, variants=(sspo, dataclasses.replace(gspo, settings=("fast",))))
    study.check()
    names = [cell.name for cell in study.cells()]
    assert [name for name in names if "gspo" in name] == ["fast/gspo/seed-0005"]
    assert len(names) == 3 + 2 * 1
    assert study.matched(names[:1]) == []


def test_both_bounds_are_scaled():
    assert scaled(Gspo(), 2.5) == Gspo(clip_low=7.5e-4, clip_high=1e-3)
    with pytest.raises(ValueError, match="Sapo has no clip_low"):
        scaled(Sapo(), 2.0)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"seeds": (1, 1)}, "each seed once"),
        ({"variants": ()}, "variants are empty"),
        ({"variants": (Variant(name="a/b", changes={}),)}, "names a folder"),
        ({"variants": (Variant(name="a", changes={}, match_clip=0.02, match_mass=0.5),)}, "cannot match both"),
        ({"settings": (Setting(name="a"), Setting(name="a"))}, "each name once"),
        ({"variants": (Variant(name="a", changes={}, settings=("quick",)),)}, "a: no setting 'quick'; .* slow, fast"),
        ({"comparisons": (Comparison(first="sspo", second="grpo", outcome="final score"),)}, "no variant 'grpo'"),
        ({"comparisons": (Comparison(first="sspo", second="gspo", outcome="x"),)}, "no outcome 'x'"),
    ],
)
def test_what_no_study_can_be(changes: dict, wanted: str):
    with pytest.raises(ValueError, match=wanted):
        dataclasses.replace(TWO, **changes).check()


def test_fields_that_are_not_there():
    with pytest.raises(ValueError, match="TrainConfig has no field 'stpes'; expected one of steps"):
        changed(load_experiment("arithmetic_tiny"), {"stpes": 3})
    with pytest.raises(ValueError, match="set curriculum as a whole"):
        changed(load_experiment("arithmetic_tiny"), {"curriculum.floor": 0.1})


@pytest.mark.parametrize("name", [line.split()[0] for line in known().splitlines()])
def test_the_shipped_studies_can_be_run(name: str):
    study = load_study(name)
    for cell in study.cells():
        if cell.seed == study.seeds[0]:
            config = cell.config(study, load_experiment)
            config.check()
            assert config.warm_start is None or not config.warm_start.shipped  # made by the cell, on its own core
    for task, variant in study.matched():
        assert hasattr(variant.changes["loss"], "clip_low"), task


def test_an_unknown_study_lists_the_known(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="no study 'x'; expected the path of a file or one of:\n  clip_strength"):
        load_study("x")
    (tmp_path / "own.py").write_text("def study():\n    return 3\n")
    with pytest.raises(ValueError, match=r"expected a function study\(\) that returns a Study; there is one that"):
        load_study(str(tmp_path / "own.py"))
