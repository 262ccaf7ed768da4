"""The run directory: what is in it, whose it is, and what happens when a run starts in one that exists.

config.json      the resolved configuration, with commit, package versions and data digests
metrics.jsonl    one object a step
checkpoints/     to resume from; in checkpoints/best the policy of the best evaluation, named by checkpoints/best.json
base/            the frozen weights of a LoRA run that started from none that are kept elsewhere
rollouts/        sampled texts with rewards and verdicts, one file a step
evaluations/     scores and responses of the evaluations inside the run
weights/         what a server of rollouts loads (--rollout.server), the latest only
tensorboard/     events
summary.json     written when the run is complete
"""

import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import IO, Any

import jax

from sspo_jax import __version__
from sspo_jax.distributed.processes import gather, is_main, on_main, together
from sspo_jax.files import read_json, step_files, write_json, write_json_lines
from sspo_jax.models.configs import QwenConfig
from sspo_jax.runs.metrics_file import read_metrics

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
    *("transformers", "tokenizers", "sympy", "numpy"),
)
# Of one run: where it is, what is shown, what it runs on.
_MAY_DIFFER = ("run_dir", "log", "mesh", "checkpoint", "distributed", "rollout.server")
_MIN_FREE_BYTES = 64 * 1024 * 1024


class RunDirectory:
    """Opens or creates the directory of a run and keeps other processes out of it.

    Args:
      path: of the directory; None makes a new one under runs/.
      resolved: the configuration as JSON holds it.
      experiment: name of the experiment, part of a new directory's name.
      model: the resolved shape of the model.
      provenance: what else must be the same when the run is resumed (digests of data, prompt and tokenizer).

    Raises:
      ValueError: the directory belongs to a run with another configuration (the fields that differ are named), or it
        holds files that are not of a run.
      OSError: another process is running there, it cannot be written to, or the disk is full.
    """

    def __init__(
        self,
        path: str | None,
        resolved: dict[str, Any],
        *,
        experiment: str,
        model: QwenConfig,
        provenance: dict[str, Any],
    ):
        self._lock: IO[str] | None = None
        _same_everywhere(resolved, provenance)
        self.path = pathlib.Path(on_main(lambda: self._claim(path, resolved, experiment, model, provenance)))
        together(self._check_shared)

    def _check_shared(self) -> None:
        if not (self.path / "config.json").exists():
            raise OSError(
                f"cannot see {self.path}, which process 0 has created: --run-dir must be on a file system that all "
                "hosts mount (NFS, Filestore, a bucket with gcsfuse)"
            )

    def _claim(
        self,
        path: str | None,
        resolved: dict[str, Any],
        experiment: str,
        model: QwenConfig,
        provenance: dict[str, Any],
    ) -> str:
        """Creates, locks and checks the directory, and records the run in it; on process 0."""
        self.path = pathlib.Path(path) if path else new_path(experiment)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot create the run directory {self.path}: {error.strerror}") from None
        _check_space(self.path)
        self._lock = _lock(self.path)
        try:
            self._adopt(resolved, experiment, model, provenance)
        except BaseException:
            self._lock.close()
            raise
        return str(self.path)

    def _adopt(self, resolved: dict[str, Any], experiment: str, model: QwenConfig, provenance: dict[str, Any]) -> None:
        record = {
            "experiment": experiment,
            "config": resolved,
            "model": model.record(),
            "provenance": provenance,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "commit": _commit(),
            "sspo_jax": __version__,
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "command": sys.argv,
        }
        file = self.path / "config.json"
        if not file.exists():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name != "lock"]
            if foreign:
                raise ValueError(
                    f"{self.path} is not empty ({', '.join(sorted(foreign)[:3])}) and holds no config.json of a run: "
                    "choose another --run-dir"
                )
            write_json(file, record)
            return
        before = read_json(file, advice="Restore it from a copy, or choose another --run-dir")
        differing = [
            f"{name}: {old!r} there, {new!r} here"
            for part in ("config", "provenance")
            for name, old, new in _differences(_comparable(before[part]), _comparable(record[part]))
            if part == "provenance" or not f"{name}.".startswith(tuple(f"{field}." for field in _MAY_DIFFER))
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration:\n  " + "\n  ".join(differing) + "\n"
                "To resume it, start it as it was; for another run choose another --run-dir"
            )

    @property
    def checkpoints(self) -> pathlib.Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    def rollouts(self, step: int) -> pathlib.Path:
        """The file of the sampled texts of a step."""
        return self.path / "rollouts" / f"step_{step:06d}.jsonl"

    def evaluation(self, step: int) -> pathlib.Path:
        """The scores of the evaluation after a step; the responses are beside it, with the suffix .jsonl."""
        return self.path / "evaluations" / f"step_{step:06d}.json"

    def is_recorded(self, step: int) -> bool:
        """Whether metrics.jsonl has the row of this step."""
        return any(row["step"] == step for row in read_metrics(self.metrics))

    def forget_after(self, step: int) -> None:
        """Removes what an interrupted run wrote about steps later than the checkpoint it resumes from."""
        if not is_main():
            return
        if self.metrics.exists():
            write_json_lines(self.metrics, (row for row in read_metrics(self.metrics) if row["step"] <= step))
        for folder, suffix in (("rollouts", ".jsonl"), ("evaluations", ".jsonl"), ("evaluations", ".json")):
            for number, file in step_files(self.path / folder, suffix).items():
                if number > step:
                    file.unlink()

    def close(self) -> None:
        """Lets other runs in."""
        if self._lock is not None:
            self._lock.close()


def _comparable(part: dict[str, Any]) -> dict[str, Any]:
    """Without what is done where a user's reward fails: after such an end the run may go on in another way."""
    users = part.get("reward", {}).get("user")
    if not users:
        return part
    kept = [{name: value for name, value in user.items() if name != "on_failure"} for user in users]
    return {**part, "reward": {**part["reward"], "user": kept}}


def _same_everywhere(resolved: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Raises ValueError on all processes, naming the fields, where one was started with another configuration."""
    mine = {"config": {**resolved, "distributed": None}, "provenance": provenance}
    first, *others = gather(json.loads(json.dumps(mine)))
    for process, other in enumerate(others, 1):
        differing = [f"{name}: {old!r} and {new!r}" for name, old, new in _differences(first, other)]
        if differing:
            raise ValueError(
                f"processes 0 and {process} were started differently:\n  " + "\n  ".join(differing) + "\n"
                "Start all with the same command, from the same version of the code and data"
            )


def new_path(experiment: str) -> pathlib.Path:
    """runs/<experiment>-<time>, with a number where that exists."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = pathlib.Path("runs") / f"{experiment}-{stamp}"
    number = 1
    while path.exists():
        number += 1
        path = pathlib.Path("runs") / f"{experiment}-{stamp}-{number}"
    return path


def _lock(path: pathlib.Path) -> IO[str]:
    stream = open(path / "lock", "a", encoding="utf-8")  # noqa: SIM115 (held as long as the run)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise OSError(f"{path} is in use by another process: wait for it, or choose another --run-dir") from None
    return stream


def _check_space(path: pathlib.Path) -> None:
    if not os.access(path, os.W_OK):
        raise OSError(f"cannot write to {path}: choose another --run-dir")
    free = shutil.disk_usage(path).free
    if free < _MIN_FREE_BYTES:
        raise OSError(f"{path} has {free / 1e6:.0f} MB free, want at least {_MIN_FREE_BYTES / 1e6:.0f}: free some")


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in dict.fromkeys([*old, *new])
            for difference in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [(name, old, new)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this package runs from, with `+` if it was changed; None outside a checkout."""
    root = pathlib.Path(__file__).parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        if head.returncode:
            return None
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
