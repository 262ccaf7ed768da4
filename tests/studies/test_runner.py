"""Cells run some at a time, what is done is skipped, and what fails is written down and ends nothing."""

import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import pytest
from rich.console import Console

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.commands.main import main
from sspo_jax.losses import Gspo
from sspo_jax.studies import Study, Variant
from sspo_jax.studies.cells import StudyFolder
from sspo_jax.studies.matching import Pilot
from sspo_jax.studies.runner import Runner, estimate
from tests.trainer.conftest import SMALL

STUDY = Study(
    title="T",
    question="?",
    base=str(SMALL),
    variants=(Variant(name="gspo", changes={"loss": Gspo()}, match_clip=0.02),),
    seeds=(0, 1, 2, 3),
    seconds_per_run=36.0,
)
NAMES = [cell.name for cell in STUDY.cells()]
# Stands for runs: the clip of a pilot falls with the square of its factor, the third cell fails.
CELL = """
import json, os, pathlib, re, sys
folder, names = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
for name in names:
    log = folder / "logs" / (name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.open("a").write(f"core {sorted(os.sched_getaffinity(0)) if len(sys.argv) < 4 else sys.argv[3]}\\n")
    if name.endswith("seed-0002") and not (folder / "mended").exists():
        log.open("a").write("sspo study: it broke\\n")
        sys.exit(1)
    path = folder / name
    (path / "evaluations").mkdir(parents=True, exist_ok=True)
    factor = float(re.search("x([0-9.e-]+)$", name)[1]) if "pilots" in name else 1.0
    clip = 0.3 / (1 + (factor / 0.5) ** 2)
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "ratio/clip_fraction_after_first": clip}) + "\\n")
    (path / "starts").open("a").write("x")
    (path / "process").write_text(str(os.getpid()))
    (path / "summary.json").write_text("{}")
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> StudyFolder:
    return StudyFolder(study=STUDY, name="t", path=tmp_path / "study", load=load_experiment)


def runner(folder: StudyFolder, *, jobs: int = 1) -> Runner:
    def command(names: Sequence[str], core: int | None) -> list[str]:
        pinned = [str(core)] if core is not None else []
        return [sys.executable, "-c", CELL, str(folder.path), ",".join(names), *pinned]

    return Runner(folder, command, jobs=jobs, console=Console(file=io.StringIO()))


def test_failures_are_recorded_and_the_rest_goes_on(folder: StudyFolder):
    names = [cell.name for cell in STUDY.cells()]
    assert runner(folder).run(names) == [names[2]]
    assert [folder.is_done(name) for name in names] == [True, True, False, True]
    failure = folder.failures()[names[2]]
    assert failure["code"] == 1
    assert failure["last_line"] == "sspo study: it broke"
    (folder.path / "mended").touch()
    assert runner(folder).run(names) == []
    assert folder.failures() == {}
    assert [(folder.path / name / "starts").read_text() for name in names] == ["x"] * 4  # the others were skipped
    processes = [(folder.path / name / "process").read_text() for name in names]
    assert processes[0] == processes[1] != processes[3]  # one goes on until it fails


@pytest.mark.slow
def test_a_cell_is_the_same_run_after_others_in_its_process(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    changes = {"warm_start.updates": 4, "warm_start.rows": 8, "steps": 2, "rollout.prompts": 4, "update.micro_rows": 8}
    plain = dataclasses.replace(STUDY, changes=changes, variants=(Variant(name="gspo", changes={"loss": Gspo()}),))
    one, two = (
        StudyFolder(study=plain, name="t", path=tmp_path / name, load=load_experiment) for name in ("one", "two")
    )
    assert one.run_cell(NAMES[1])
    standard = [os.dup(1), os.dup(2)]
    try:
        with capsys.disabled():
            assert two.run_cells(NAMES[:2])
    finally:
        for own, kept in zip((1, 2), standard, strict=True):
            os.dup2(kept, own)
            os.close(kept)

    def figures(folder: StudyFolder) -> list[dict[str, float]]:
        rows = map(json.loads, (folder.path / NAMES[1] / "metrics.jsonl").read_text().splitlines())
        timed = ("time/", "throughput/", "memory/", "compile/", "verify/")
        return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]

    assert figures(one) == figures(two)
    for name, other in (NAMES[:2], NAMES[1::-1]):
        assert name in two.log(name).read_text()
        assert other not in two.log(name).read_text()


def test_pilots_find_the_factor_and_are_not_run_again(folder: StudyFolder):
    runner(folder).match([])
    assert folder.matches() == []  # no cell needs it
    runner(folder).match(NAMES)
    (match,) = folder.matches()
    assert match.is_near
    assert match.factor == pytest.approx(0.5 * (0.3 / 0.02 - 1) ** 0.5, rel=0.1)
    assert folder.factors() == {("task", "gspo"): match.factor}
    config = folder.config_of("as-it-is/gspo/seed-0001")
    assert config.loss == Gspo(
        clip_low=float(f"{3e-4 * match.factor:.4g}"), clip_high=float(f"{4e-4 * match.factor:.4g}")
    )
    runner(folder).match(NAMES)
    starts = [file.read_text() for file in folder.path.glob("pilots/*/*/*/starts")]
    assert starts == ["x"] * match.pilots
    pilot = Pilot(task="task", variant=STUDY.variants[0], factor=2.0)
    assert folder.config_of(pilot.name).seed == STUDY.pilot_seed
    other = dataclasses.replace(folder, path=folder.path / "none")
    with pytest.raises(ValueError, match="no pilot run of gspo in task is done"):
        other.config_of("as-it-is/gspo/seed-0001")
    with pytest.raises(ValueError, match="a name is setting/variant/seed-0000"):
        folder.config_of("x/y/z")


def test_cells_of_another_study_are_not_taken_for_its_own(folder: StudyFolder):
    plain = dataclasses.replace(STUDY, variants=(Variant(name="gspo", changes={"loss": Gspo()}),))
    folder = dataclasses.replace(folder, study=plain)
    runner(folder).run(NAMES[:1])
    path = folder.path / NAMES[0] / "config.json"
    path.write_text(json.dumps({"config": folder.config_of(NAMES[0]).resolved()}))
    folder.check_done(NAMES)
    changed = dataclasses.replace(plain, changes={"rollout.prompts": 5})
    with pytest.raises(ValueError, match=r"was run with rollout.prompts = 4, the study now has 5"):
        dataclasses.replace(folder, study=changed).check_done(NAMES)


def test_running_cells_are_asked_to_stop(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    waits = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): pathlib.Path(sys.argv[1]).write_text('stopped'); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    note, log = folder.path.parent / "note", folder.path / "logs" / f"{NAMES[0]}.log"
    command = [sys.executable, "-c", waits, str(note)]
    waiting = Runner(folder, lambda names, core: command, jobs=1, console=Console(file=io.StringIO()))
    monkeypatch.setattr("time.sleep", lambda _: interrupted() if log.exists() and log.read_text() else None)
    with pytest.raises(KeyboardInterrupt):
        waiting.run(NAMES)
    assert note.read_text() == "stopped"
    assert folder.failures() == {}


def test_what_is_left(folder: StudyFolder):
    names = [cell.name for cell in STUDY.cells()]
    left = estimate(folder, names)
    assert (left.cells, left.done, left.most_pilots, left.is_measured) == (4, 0, 8, False)
    assert left.hours(2) == pytest.approx((4 * 36 / 2 / 3600, 12 * 36 / 2 / 3600))
    runner(folder).run(names)
    left = estimate(folder, names)
    assert (left.done, left.is_measured) == (3, True)
    assert left.seconds_per_run < 10


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_each_job_has_a_core(folder: StudyFolder):
    names = [cell.name for cell in STUDY.cells()]
    runner(folder, jobs=2).run(names)
    logs = [(folder.path / "logs" / f"{name}.log").read_text() for name in names]
    cores = {str(core) for core in sorted(os.sched_getaffinity(0))[:2]}
    assert {log.splitlines()[0].removeprefix("core ") for log in logs} == cores
    with pytest.raises(ValueError, match="--jobs is 1000; expected at most"):
        runner(folder, jobs=1000)


def test_the_command_says_what_a_study_takes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "own.py"
    file.write_text(
        "from sspo_jax.losses import Grpo\nfrom sspo_jax.studies import Study, Variant\n\n\n"
        "def study():\n    return Study(title='a', question='b', base='arithmetic_tiny', seeds=(0, 1, 2),\n"
        "                 variants=(Variant(name='x', changes={'loss': Grpo()}),), seconds_per_run=1200.0)\n"
    )
    arguments = ["study", str(file), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run", "--jobs", "2"]) == 0
    assert "own: 3 runs, 0 done, at most 0 pilots; 1200 s a run (as the study says), so 0.5" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--report"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["runs"]["planned"] == 3
    assert main(["study", str(file), "--jobs", "0"]) == 1


def test_a_study_is_a_frozen_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STUDY.seeds = ()  # pyright: ignore
