"""Checkpoints: orbax, asynchronous, atomic, every item under a digest that is verified when it is read back.

Orbax writes to a temporary name and renames, so a killed process leaves the previous checkpoint. It does not notice a
byte that flipped on disk, nor an empty directory that looks like a step; the digests do. A step that fails them is
left where it is under another name and the one before it is used, with a warning. An error that says nothing about
the files (a disk that does not answer, memory that runs out) is no damage: it ends the start, and nothing is changed.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import logging
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt

from sspo_jax.distributed.processes import any_process, gather, is_main
from sspo_jax.files import DiskFullError, is_disk_full

logger = logging.getLogger(__name__)


def _is_told_once(record: logging.LogRecord) -> bool:
    """False for a traceback of an error that orbax logs and then raises, or of a full disk that it leaves in a task."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not ("orbax" in record.pathname or (record.name == "asyncio" and is_disk_full(error)))


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_told_once)


class CorruptCheckpointError(RuntimeError):
    """A checkpoint on disk is not what was saved."""


class NoIntactCheckpointError(ValueError):
    """There are checkpoints, and none of them can be used."""


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """The state of the loop after `step` steps; nothing else survives a restart.

    The loop changes it in place; its arrays are donated to the next update.
    """

    params: Any
    optimizer: Any
    step: int
    data: dict[str, Any]  # the data cursor after this step, ProblemStream.state()
    unrecorded: dict[str, float] | None = None  # metrics of this step whose evaluation is still to come
    ahead: dict[str, Any] | None = None  # what was sampled for later steps, Schedule.state()
    entropy_coefficient: float | None = None  # of the next step, where it follows the entropy
    reference: Any = None  # parameters of the reference policy, where it moves


_WHERE_THERE_IS_ANY = ("unrecorded", "ahead", "entropy_coefficient")
"""Fields of a checkpoint that are not written where they are None."""


def steps_in(directory: pathlib.Path) -> list[int]:
    """Steps on disk, oldest first, without opening them."""
    return sorted(int(entry.name) for entry in directory.glob("*") if entry.name.isdigit())


def _leaf_digest(x: Array) -> UInt[Array, ""]:
    """A 32-bit hash of the bits of an array in which each position has a weight of its own; independent of its mesh."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
    index = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    # Odd weights: a change of one word by d changes the sum by d * odd, never by 0 modulo 2^32.
    return jnp.sum((bits + 1) * (2 * index + 1) * jnp.uint32(2654435761), dtype=jnp.uint32)


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(_leaf_digest, tree)


def digest(tree: Any) -> dict[str, int]:
    """{path of the leaf: 32-bit hash}."""
    flat, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(_digests(tree)))
    return {jax.tree_util.keystr(path): int(value) for path, value in flat}


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      directory: where they are; created when missing.
      keep: newest checkpoints that are kept; None keeps all.
      is_reader: leave alone what is half written: the run that writes it may be going on.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int | None, is_reader: bool = False):
        self._directory = directory.absolute()
        self._keep = keep
        self._is_reader = is_reader
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not self._is_reader,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts writing; the arrays may be donated as soon as this returns.

        Raises:
          DiskFullError: there is no space left for it, or for the one before it.
        """
        arrays = {"params": checkpoint.params, "optimizer": checkpoint.optimizer}
        if checkpoint.reference is not None:
            arrays["reference"] = checkpoint.reference
        meta = {"step": checkpoint.step, "data": checkpoint.data, "digest": digest(arrays)}
        for name in _WHERE_THERE_IS_ANY:
            if getattr(checkpoint, name) is not None:
                meta[name] = getattr(checkpoint, name)
        meta["digest"]["meta"] = _meta_digest(meta)
        with self._explained():
            self._manager.save(
                checkpoint.step,
                args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
                force=True,
            )

    def delete(self, step: int) -> None:
        """Removes a checkpoint that is on disk."""
        self._manager.delete(step)

    def wait(self) -> None:
        """Returns when everything started is on disk; raises what went wrong there, as `save`."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Orbax and tensorstore report a full disk in many ways; they become one."""
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise DiskFullError(f"no space left for a checkpoint in {self._directory}") from error

    def reopen(self) -> None:
        """Gives up what is being written, removes what is half written, and can be used again."""
        with contextlib.suppress(Exception):  # what went wrong was raised by `save` or `wait`
            self._manager.close()
        self._manager = self._open()

    def restore(self, like: dict[str, Any], *, only: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is intact; None if there is no checkpoint at all.

        Newer ones that are damaged are renamed, once an intact one is found; a reader leaves them alone.

        Args:
          like: {"params": ..., "optimizer": ...} of `jax.ShapeDtypeStruct` with shardings: where arrays shall lie. A
            reader may leave the optimizer out: it is then not read.
          only: read this step or none.

        Raises:
          NoIntactCheckpointError: there are checkpoints, and all are damaged; nothing was changed.
          OSError: on another process a checkpoint could not be read, though it is not damaged. An error that this
            process met goes through as it is.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps if only is None else [only]):
            checkpoint, problem = self._read_together(step, like)
            if checkpoint is not None:
                for other, reason in damaged.items():
                    logger.warning("checkpoint of step %d cannot be used, trying the one before: %s", other, reason)
                    if not self._is_reader:
                        self._set_aside(other)
                return checkpoint
            damaged[step] = problem
        if self._is_reader and only is None and set(steps_in(self._directory)) - set(damaged):
            self.reopen()  # the run goes on: it has replaced what was to be read
            return self.restore(like)
        earlier = sorted(entry.name for entry in self._directory.glob("damaged-*")) if only is None else []
        if not damaged and not earlier:
            return None
        found = [f"step {step}: {reason}" for step, reason in damaged.items()]
        found += [f"{name}: set aside by an earlier start" for name in earlier]
        raise NoIntactCheckpointError(
            f"{self._directory} has checkpoints, but no intact one:\n  " + "\n  ".join(found) + "\n"
            "Nothing was changed. Restore one from a copy; or, to begin anew on purpose, choose another --run-dir, or "
            f"move {self._directory} to another place"
        )

    def _read_together(self, step: int, like: dict[str, Any]) -> tuple[Checkpoint | None, str]:
        """(checkpoint, "") where it is intact on all processes, else (None, what is damaged)."""
        checkpoint, problem, other = None, None, None
        try:
            checkpoint = self._read(step, like)
        except Exception as error:
            problem = _brief(error)
            other = None if is_damage(error) else error
        if problem is not None:
            _collect_silently()
        reports = gather([problem, other is not None])
        if other is not None:
            raise other
        for process, (reason, is_other) in enumerate(reports):
            if is_other:
                raise OSError(f"process {process} cannot read the checkpoint of step {step}: {reason}")
        problems = [reason for reason, _ in reports if reason is not None]
        return (None, problems[0]) if problems else (checkpoint, "")

    def _read(self, step: int, like: dict[str, Any]) -> Checkpoint:
        wanted = ocp.args.StandardRestore(like)
        if "optimizer" not in like:  # the moments, two thirds of the bytes, stay on disk
            placed = ocp.checkpoint_utils.construct_restore_args(like)
            wanted = ocp.args.PyTreeRestore(like, restore_args=placed, partial_restore=True)
        restored = self._manager.restore(step, args=ocp.args.Composite(arrays=wanted, meta=ocp.args.JsonRestore()))
        arrays, meta = restored["arrays"], restored["meta"]
        expected = dict(meta["digest"])
        if expected.pop("meta") != _meta_digest(meta):
            raise CorruptCheckpointError(f"metadata of step {step} changed on disk")
        for path, value in digest(arrays).items():
            if expected.get(path) != value:
                raise CorruptCheckpointError(f"{path} of step {step} changed on disk")
        return Checkpoint(
            params=arrays["params"],
            optimizer=arrays.get("optimizer"),
            reference=arrays.get("reference"),
            step=meta["step"],
            data=meta["data"],
            **{name: meta.get(name) for name in _WHERE_THERE_IS_ANY},
        )

    def _set_aside(self, step: int) -> None:
        """Renames a damaged step, so that it is neither taken for a checkpoint again nor lost."""
        self._manager.close()
        source = self._directory / str(step)
        target = self._directory / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self._directory / f"damaged-{step}-{number}"
        if is_main() and source.exists():
            source.rename(target)
        any_process(False)  # until the step is out of the way, no process looks again
        self._manager = self._open()

    def close(self) -> None:
        """Waits for what is being written and frees the threads; raises as `wait`."""
        with self._explained():
            self._manager.close()


def is_damage(error: BaseException) -> bool:
    """Whether an error in reading a checkpoint says that its files are not what was written.

    That is so where a digest differs, or a file is missing or malformed. Errors of the system (input and output,
    permissions, memory) are none; tensorstore has kinds of its own for them, which it names in the text. Orbax wraps
    both alike, so what counts is the error that the others came from.
    """
    if any(sign in str(error) for sign in _NOT_DAMAGE):
        return False
    if error.__cause__ is not None:
        return is_damage(error.__cause__)
    malformed = (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError)
    return isinstance(error, (CorruptCheckpointError, *malformed))


_NOT_DAMAGE = (
    *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "CANCELLED"),
    *(os.strerror(number) for number in (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
    *(os.strerror(number) for number in (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)),
)


def _meta_digest(meta: dict[str, Any]) -> int:
    digests = {path: value for path, value in meta["digest"].items() if path != "meta"}
    content = [meta["step"], meta["data"], digests, *(meta[name] for name in _WHERE_THERE_IS_ANY if name in meta)]
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _collect_silently() -> None:
    """Frees the reads that a failed one leaves undone: each would print the traceback of an error that is known."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _brief(error: BaseException) -> str:
    """The first line of where it came from: tensorstore explains a damaged file over several thousand characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
