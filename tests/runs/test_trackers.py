"""Trackers by name, with the real packages where they are installed, and one's own."""

import logging
import pathlib
from collections.abc import Mapping

import pytest

from sspo_jax.runs.trackers import Events, TrackedRun, Tracker, find_trackers, open_trackers

METRICS = {"reward/mean": 0.5, "eval/a[:2]/accuracy": 0.25}


class Own:
    """A tracker of one's own."""

    opened: list["Own"] = []  # noqa: RUF012 (of a test)

    def __init__(self, run: TrackedRun):
        self.rows: list[tuple[int, float]] = []
        self.is_closed = False
        self.run = run
        self.opened.append(self)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise ConnectionError("gone")
        self.rows.append((step, metrics["reward/mean"]))

    def close(self) -> None:
        self.is_closed = True


def broken(run: TrackedRun) -> Tracker:
    raise RuntimeError("no server")


@pytest.fixture
def run(tmp_path: pathlib.Path) -> TrackedRun:
    return TrackedRun(path=tmp_path / "run-1", config={"steps": 3, "loss": {"clip_low": 0.2}}, start=1)


def test_one_of_ones_own_and_what_it_may_do(run: TrackedRun, caplog: pytest.LogCaptureFixture):
    (tracker,) = open_trackers(f" {__name__}:Own ,", run)
    own = Own.opened[-1]
    assert own.run is run
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            tracker.write(step, METRICS)
        tracker.close()
        (lost,) = open_trackers(f"{__name__}:broken", run)
        lost.write(1, METRICS)
        lost.close()
    assert own.rows == [(1, 0.5), (2, 0.5)]  # after a failure it is left alone
    assert [record.getMessage() for record in caplog.records] == [
        f"tracker {__name__}:Own is left out from here on: ConnectionError: gone",
        f"tracker {__name__}:broken is left out from here on: RuntimeError: no server",
    ]


def test_names(run: TrackedRun, monkeypatch: pytest.MonkeyPatch):
    assert find_trackers("none") == find_trackers("") == {}
    assert isinstance(open_trackers("tensorboard", run)[0], Events)
    with pytest.raises(ValueError, match="has 'tensorbord'; expected some of tensorboard, wandb, trackio, mlflow"):
        find_trackers("tensorbord")
    with pytest.raises(ValueError, match="no_such_module"):
        find_trackers("no_such_module:Tracker")
    (run.path.parent / "raises_at_once.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(run.path.parent)
    with pytest.raises(ValueError, match="raises_at_once:Tracker: SystemExit: 3; expected module:name"):
        find_trackers("raises_at_once:Tracker")
    with pytest.raises(ValueError, match="no attribute 'Nobody'"):
        find_trackers(f"{__name__}:Nobody")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb, which is not installed: pip install 'sspo-jax\[wandb\]'"):
        find_trackers("wandb")


def tracked(name: str, run: TrackedRun, caplog: pytest.LogCaptureFixture) -> None:
    run.path.mkdir()
    with caplog.at_level(logging.WARNING):
        (tracker,) = open_trackers(name, run)
        for step in (1, 2):
            tracker.write(step, METRICS)
        tracker.close()
    assert "left out" not in caplog.text


@pytest.mark.slow
def test_wandb_offline(run: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked("wandb", run, caplog)
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_mlflow_on_this_machine(run: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((run.path.parent / "mlruns").as_uri())
    tracked("mlflow", run, caplog)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("sspo_jax").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run-1", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "reward/mean")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.5), (2, 0.5)]


@pytest.mark.slow
def test_trackio_on_this_machine(run: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("TRACKIO_DIR", str(run.path.parent / "trackio"))
    pytest.importorskip("trackio")
    tracked("trackio", run, caplog)
    assert list((run.path.parent / "trackio").glob("*.db"))
