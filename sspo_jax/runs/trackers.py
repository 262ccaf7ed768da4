"""Where the metrics of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio, MLflow, or one's own.

A tracker has two methods, `write` and `close`. `--log.trackers` names them, separated by commas; each package is
imported only where it is named. One of one's own is `module:name`, called as `name(run)` with a `TrackedRun`; in an
experiment file that defines it, `LogConfig(trackers=f"{__name__}:Name")`.
"""

import dataclasses
import importlib
import importlib.util
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

logger = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """What receives the metrics of each step, on process 0."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of a step, as in metrics.jsonl."""
        ...

    def close(self) -> None:
        """The run ends, or is interrupted."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of the run."""

    path: pathlib.Path
    """The run directory."""
    config: Mapping[str, Any]
    """The resolved configuration."""
    start: int
    """The first step that will be written; after a restart steps from here on come again."""

    @property
    def name(self) -> str:
        """Of the run directory."""
        return self.path.resolve().name


def find_trackers(names: str) -> dict[str, Callable[[TrackedRun], Tracker]]:
    """What opens each tracker, by name; called before a run starts, so that a missing one is no surprise later.

    Args:
      names: separated by commas; `none` or nothing: none.

    Raises:
      ValueError: an unknown name, or what it names cannot be imported.
    """
    found: dict[str, Callable[[TrackedRun], Tracker]] = {}
    for name in (name.strip() for name in names.split(",")):
        if name in ("", "none"):
            continue
        module, _, own = name.partition(":")
        if name in _TRACKERS:
            if name != "tensorboard" and importlib.util.find_spec(name) is None:
                raise ValueError(f"--log.trackers has {name}, which is not installed: pip install 'sspo-jax[{name}]'")
            found[name] = _TRACKERS[name]
        elif module and own:
            try:
                found[name] = getattr(importlib.import_module(module), own)
            except (Exception, SystemExit) as error:  # whatever a person's module can raise
                raise ValueError(
                    f"--log.trackers has {name}: {type(error).__name__}: {error}; expected module:name, importable "
                    "from the working directory"
                ) from error
        else:
            raise ValueError(
                f"--log.trackers has {name!r}; expected some of {', '.join(_TRACKERS)}, or module:name of your own, "
                "separated by commas, or none"
            )
    return found


def tracker_packages(names: str) -> set[str]:
    """Packages that the trackers of these names come from, but TensorBoard's, which has no threads."""
    return {name.strip().partition(":")[0].partition(".")[0] for name in names.split(",")} - {"", "none", "tensorboard"}


def open_trackers(names: str, run: TrackedRun) -> list[Tracker]:
    """The trackers of a run; all but TensorBoard's may fail without ending it.

    Raises:
      ValueError: as `find_trackers`.
    """
    trackers: list[Tracker] = []
    for name, make in find_trackers(names).items():
        trackers.append(make(run) if name == "tensorboard" else _Guarded(name, make, run))
    return trackers


class _Guarded:
    """A tracker that may fail: a warning, then silence, and the run goes on."""

    _tracker: Tracker | None
    _is_lost = False

    def __init__(self, name: str, make: Callable[[TrackedRun], Tracker], run: TrackedRun):
        self._name, self._tracker = name, None
        self._call(lambda: self._open(make, run))
        self._is_lost = self._tracker is None

    def _open(self, make: Callable[[TrackedRun], Tracker], run: TrackedRun) -> None:
        self._tracker = make(run)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call(lambda: self._opened().write(step, metrics))

    def close(self) -> None:
        self._call(lambda: self._opened().close())

    def _opened(self) -> Tracker:
        assert self._tracker is not None
        return self._tracker

    def _call(self, call: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            call()
        except (Exception, SystemExit) as error:  # whatever a library or a network can raise
            self._is_lost = True
            logger.warning("tracker %s is left out from here on: %s: %s", self._name, type(error).__name__, error)


class Events:
    """TensorBoard events without the thread and the queue of tensorboardX, whose end a run would wait for in vain.

    Written by the thread that calls, so that a disk that refuses is an error there.

    Args:
      folder: of the events; made when missing.
      start: events of this step and later ones that an earlier process wrote are hidden.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._proto: Any = event_pb2  # its classes are made at run time
        self._scalar = scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # Where a session starts at a step, TensorBoard hides what was written about that step and later ones before.
        session = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=start, session_log=session))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One event a metric, on the disk when this returns."""
        for name, value in metrics.items():
            event = self._proto.Event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class _Wandb:
    """Weights & Biases; WANDB_MODE=offline, WANDB_PROJECT and its other variables hold."""

    def __init__(self, run: TrackedRun):
        wandb: Any = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", "sspo_jax")
        self._run: Any = wandb.init(
            project=project,
            name=run.name,
            id=_safe(run.name),
            resume="allow",
            dir=str(run.path),
            config=dict(run.config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Trackio, which keeps its database on this machine unless told otherwise (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

    def __init__(self, run: TrackedRun):
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "sspo_jax"),
            name=run.name,
            resume="allow",
            config=dict(run.config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()


class _Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI; a restart is a run of its own there, with the same name."""

    def __init__(self, run: TrackedRun):
        mlflow: Any = importlib.import_module("mlflow")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sspo_jax")
        self._client: Any = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        self._client.log_dict(self._run, dict(run.config), "config.json")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        metric: Any = importlib.import_module("mlflow.entities").Metric
        now = int(1000 * time.time())
        values = [metric(_safe(name), float(value), now, step) for name, value in metrics.items()]
        for first in range(0, len(values), 1000):  # the most that one call takes
            self._client.log_batch(self._run, metrics=values[first : first + 1000])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _events(run: TrackedRun) -> Tracker:
    return Events(run.path / "tensorboard", run.start)


_TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _events,
    "wandb": _Wandb,
    "trackio": _Trackio,
    "mlflow": _Mlflow,
}


def _safe(name: str) -> str:
    """With the characters that ids and keys may have everywhere."""
    return "".join(character if character.isalnum() or character in "_-. /" else "_" for character in name)
