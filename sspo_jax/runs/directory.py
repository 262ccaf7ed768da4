"""The run directory: what is in it, whose it is, and what happens when a run starts in one that exists.

config.json      the resolved configuration, with commit, package versions, digests, and what a restart changed
metrics.jsonl    one object a step
checkpoints/     to resume from; in checkpoints/best the policy of the best evaluation, named by checkpoints/best.json
base/            the frozen weights of a LoRA run that started from none that are kept elsewhere
rollouts/        sampled texts with rewards and verdicts, one file a step
tokens/          per-token data of the updates of some steps (--log.tokens-every); see runs/token_log.py
evaluations/     scores and responses of the evaluations inside the run
weights/         what a server of rollouts loads (--rollout.server), the latest only
tensorboard/     events
report.html      the run as a page
profile/         traces of some steps, and what share of the roofline they reached (--log.profile-steps)
summary.json     written when the run is complete
earlier-N/       what was there when a run began anew in this directory

Nothing here is deleted but what a resumed run does again: the rows, texts and scores of the steps after its checkpoint.
"""

import dataclasses
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

import jax

from sspo_jax import __version__
from sspo_jax.distributed.processes import gather, is_main, on_main, together
from sspo_jax.files import (
    DiskFullError,
    check_writable_name,
    read_json,
    replace_bytes,
    step_files,
    write_json,
    write_json_lines,
)
from sspo_jax.models.configs import QwenConfig
from sspo_jax.runs.metrics_file import read_metrics
from sspo_jax.runs.token_log import TokenLog

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
    *("transformers", "tokenizers", "sympy", "numpy"),
)
# Of one run: where it is, what is shown, what it runs on, and how it fits there.
_MAY_DIFFER = (
    *("run_dir", "log", "mesh", "checkpoint", "distributed", "rollout.server", "rollout.slots"),
    *("rollout.mesh", "rollout.devices", "update.micro_rows"),
    *("model.remat", "model.attention", "reward.workers", "reward.timeout_seconds", "reward.memory_limit_gib"),
)
_OF_THE_STEPS = (
    *("metrics.jsonl", "rollouts", "tokens", "evaluations", "tensorboard", "summary.json", "report.html", "profile"),
)
_STEP_FILES = (("rollouts", ".jsonl"), ("tokens", ".npz"), ("evaluations", ".jsonl"), ("evaluations", ".json"))
_OF_A_START = ("base", "weights", "exported", "checkpoints")
_MIN_FREE_BYTES = 64 * 1024 * 1024


class RunDirectory:
    """Opens or creates the directory of a run and keeps other processes out of it.

    Args:
      path: of the directory; None makes a new one under runs/.
      resolved: the configuration as JSON holds it.
      experiment: name of the experiment, part of a new directory's name.
      model: the resolved shape of the model.
      provenance: what else must be the same when the run is resumed (digests of data, prompt and tokenizer).
      completed: fills what an earlier version did not record of a configuration, `TrainConfig.completed`.

    Raises:
      ValueError: the directory belongs to a run with another configuration (the fields that differ are named), it
        holds files that are not of a run, or its name is a URL.
      OSError: another process is running there, or it cannot be written to.
      DiskFullError: there is hardly any space left.
    """

    def __init__(
        self,
        path: str | None,
        resolved: dict[str, Any],
        *,
        experiment: str,
        model: QwenConfig,
        provenance: dict[str, Any],
        completed: Callable[[dict[str, Any]], dict[str, Any]] = lambda recorded: recorded,
    ):
        check_writable_name("--run-dir", path)
        self._completed = completed
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
        self._refuse_foreign()
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
            self._refuse_foreign()
            write_json(file, record)
            return
        before = read_json(file, advice="Restore it from a copy, or choose another --run-dir")
        changes = _changes(self._as_recorded_now(before, file), record)
        refused = [change for change in changes if not change.may_differ]
        refused += self._too_few_steps(changes)
        if refused and not self.is_begun():
            self._move_aside(
                (*_OF_THE_STEPS, *_OF_A_START)
            )  # of a start that was refused, or ended before its first step
            write_json(file, record)
        elif refused:
            raise ValueError(
                f"{self.path} holds a run with another configuration:\n  " + "\n  ".join(map(str, refused)) + "\n"
                "To resume it, start it as it was; for another run choose another --run-dir"
            )
        elif changes:
            write_json(file, record | {"history": [*before.get("history", []), _entry(before, changes)]})

    def _as_recorded_now(self, before: Any, file: pathlib.Path) -> dict[str, Any]:
        """The record of a run, of an earlier version perhaps, in today's words.

        Raises:
          ValueError: the record is not one of a run.
        """
        for part in ("config", "provenance"):
            if not isinstance(before, dict) or not isinstance(before.get(part), dict):
                raise ValueError(
                    f"{file}: no `{part}`, so it does not say which run this is. Restore it from a copy, or choose "
                    "another --run-dir"
                )
        # digests of the model were once recorded as `base`
        provenance = {"model" if name == "base" else name: value for name, value in before["provenance"].items()}
        return before | {"config": self._completed(before["config"]), "provenance": provenance}

    def _refuse_foreign(self) -> None:
        """Raises ValueError where there are files that are not of a run; nothing is written beside them, no lock."""
        found = {entry.name for entry in self.path.iterdir()}
        foreign = found - {"lock", "config.json.part"}  # a process that is killed may leave both
        if foreign and "config.json" not in found:
            raise ValueError(
                f"{self.path} is not empty ({', '.join(sorted(foreign)[:3])}) and holds no config.json of a run: "
                "choose another --run-dir"
            )

    def is_begun(self) -> bool:
        """Whether there is anything here that a run has come to: a checkpoint, metrics, or an evaluation."""
        checkpoints = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return (
            any(entry.name.isdigit() or entry.name.startswith(("damaged-", "best.json")) for entry in checkpoints)
            or bool(read_metrics(self.metrics))
            or bool(step_files(self.path / "evaluations", ".json"))
        )

    def _too_few_steps(self, changes: list["_Change"]) -> list["_Change"]:
        """The change of `steps`, where the run has done more already."""
        done = max((row["step"] for row in read_metrics(self.metrics)), default=0)
        done = max([done, *(int(entry.name) for entry in self.checkpoints.glob("*") if entry.name.isdigit())])
        return [
            dataclasses.replace(change, note=f" (step {done} is done: expected at least {done})")
            for change in changes
            if change.name == "steps" and change.new < done
        ]

    def _move_aside(self, names: tuple[str, ...]) -> None:
        """What another start has left goes to `earlier-N/`, under its own names."""
        found = [self.path / name for name in names if (self.path / name).exists()]
        if not found:
            return
        number = 1
        while (self.path / f"earlier-{number}").exists():
            number += 1
        aside = self.path / f"earlier-{number}"
        aside.mkdir()
        for entry in found:
            entry.rename(aside / entry.name)

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

    def tokens(self, step: int) -> pathlib.Path:
        """The file of the per-token data of a step."""
        return self.path / "tokens" / f"step_{step:06d}.npz"

    def write_tokens(self, log: TokenLog) -> None:
        """Writes the per-token data of a step."""
        file = self.tokens(log.step)
        file.parent.mkdir(exist_ok=True)
        replace_bytes(file, log.to_bytes())

    def evaluation(self, step: int) -> pathlib.Path:
        """The scores of the evaluation after a step; the responses are beside it, with the suffix .jsonl."""
        return self.path / "evaluations" / f"step_{step:06d}.json"

    def is_recorded(self, step: int) -> bool:
        """Whether metrics.jsonl has the row of this step."""
        return any(row["step"] == step for row in read_metrics(self.metrics))

    def forget_after(self, step: int) -> None:
        """Removes what an interrupted run wrote of the steps after the checkpoint it resumes from, which come again."""
        if not is_main():
            return
        if self.metrics.exists():
            write_json_lines(self.metrics, (row for row in read_metrics(self.metrics) if row["step"] <= step))
        for folder, suffix in _STEP_FILES:
            for number, file in step_files(self.path / folder, suffix).items():
                if number > step:
                    file.unlink()

    def keep_summary(self, step: int) -> None:
        """Renames the summary of a run that was complete after `step` and goes on to more steps."""
        if is_main() and (self.path / "summary.json").exists():
            (self.path / "summary.json").rename(self.path / f"summary_step_{step:06d}.json")

    def begin_anew(self) -> None:
        """Moves what an earlier start wrote before its first checkpoint to `earlier-N/`.

        The frozen weights of a LoRA run stay: they are what it starts from.
        """
        if is_main() and (read_metrics(self.metrics) or any(map(self._has_steps, ("rollouts", "evaluations")))):
            self._move_aside(_OF_THE_STEPS)

    def _has_steps(self, folder: str) -> bool:
        return bool(step_files(self.path / folder, ".jsonl") or step_files(self.path / folder, ".json"))

    def close(self) -> None:
        """Lets other runs in."""
        if self._lock is not None:
            self._lock.close()


@dataclasses.dataclass(frozen=True)
class _Change:
    """A field that is not what it was when the run was started."""

    name: str
    old: Any
    new: Any
    may_differ: bool
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.old!r} there, {self.new!r} here{self.note}"


def _changes(before: dict[str, Any], record: dict[str, Any]) -> list[_Change]:
    """What differs between the record of a run and that of this start."""
    changes = []
    for part in ("config", "provenance"):
        for name, old, new in _differences(before[part], record[part]):
            if name == "run_dir":  # another spelling of where it is
                continue
            note = " (digest of config and weights: another model)" if name.startswith("model.") else ""
            note = note if part == "provenance" else ""
            changes.append(_Change(name, old, new, _may_differ(part, name, old, new), note))
    return changes


def _may_differ(part: str, name: str, old: Any, new: Any) -> bool:
    if part == "provenance":
        return name == "model" and old is None  # recorded of all runs only since there are digests of whole models
    within = tuple(f"{field}." for field in _MAY_DIFFER)
    return name == "steps" or f"{name}.".startswith(within) or _is_the_same_reward(name, old, new)


def _is_the_same_reward(name: str, old: Any, new: Any) -> bool:
    """Whether only how a user's reward is called is another, and what is done where it fails: a run may go on so."""
    if name != "reward.user" or not (isinstance(old, list) and isinstance(new, list)):
        return False
    # Earlier versions recorded neither factors of terms nor a concurrency.
    free = {"on_failure": None, "timeout_seconds": None, "concurrency": None}
    old, new = ([{"weights": {}, **user, **free} for user in users] for users in (old, new))
    return old == new


def _entry(before: dict[str, Any], changes: list[_Change]) -> dict[str, Any]:
    """What config.json keeps of a start that goes on with other settings."""
    return {
        "until": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "changed": {change.name: [change.old, change.new] for change in changes},
        **{name: before.get(name) for name in ("commit", "sspo_jax", "devices", "processes", "command")},
    }


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
        raise DiskFullError(
            f"{os.strerror(errno.ENOSPC)} in {path}: {free / 1e6:.0f} MB free, expected at least "
            f"{_MIN_FREE_BYTES / 1e6:.0f}: free some"
        )


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
