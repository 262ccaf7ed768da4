"""Checkpoints: orbax, asynchronous, atomic, every item under a digest that is verified when it is read back.

Orbax writes to a temporary name and renames, so a killed process leaves the previous checkpoint. It does not notice a
byte that flipped on disk, nor an empty directory that looks like a step; the digests do. A step that fails them is
left where it is under another name and the one before it is used, with a warning.
"""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt

from sspo_jax.distributed.processes import any_process, gather, is_main

logger = logging.getLogger(__name__)


class CorruptCheckpointError(RuntimeError):
    """A checkpoint on disk is not what was saved."""


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
        """Starts writing; the arrays may be donated as soon as this returns."""
        arrays = {"params": checkpoint.params, "optimizer": checkpoint.optimizer}
        meta = {"step": checkpoint.step, "data": checkpoint.data, "digest": digest(arrays)}
        if checkpoint.unrecorded is not None:
            meta["unrecorded"] = checkpoint.unrecorded
        meta["digest"]["meta"] = _meta_digest(meta)
        self._manager.save(
            checkpoint.step,
            args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
            force=True,
        )

    def delete(self, step: int) -> None:
        """Removes a checkpoint that is on disk."""
        self._manager.delete(step)

    def wait(self) -> None:
        """Returns when everything started is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def restore(self, like: dict[str, Any], *, only: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is intact; None if there is none.

        Args:
          like: {"params": ..., "optimizer": ...} of `jax.ShapeDtypeStruct` with shardings: where arrays shall lie.
          only: read this step or none.
        """
        for step in reversed(self.steps if only is None else [only]):
            checkpoint, problem = None, None
            try:
                checkpoint = self._read(step, like)
            except Exception as error:
                # Whatever orbax or tensorstore make of a damaged file, the run goes on from the step before.
                problem = _brief(error)
            problems = [other for other in gather(problem) if other is not None]
            if not problems:
                return checkpoint
            logger.warning("checkpoint of step %d cannot be used, trying the one before: %s", step, problems[0])
            self._set_aside(step)
        return None

    def _read(self, step: int, like: dict[str, Any]) -> Checkpoint:
        restored = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        )
        arrays, meta = restored["arrays"], restored["meta"]
        expected = dict(meta["digest"])
        if expected.pop("meta") != _meta_digest(meta):
            raise CorruptCheckpointError(f"metadata of step {step} changed on disk")
        for path, value in digest(arrays).items():
            if expected.get(path) != value:
                raise CorruptCheckpointError(f"{path} of step {step} changed on disk")
        return Checkpoint(
            params=arrays["params"],
            optimizer=arrays["optimizer"],
            step=meta["step"],
            data=meta["data"],
            unrecorded=meta.get("unrecorded"),
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
        """Waits for what is being written and frees the threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _meta_digest(meta: dict[str, Any]) -> int:
    import zlib

    digests = {path: value for path, value in meta["digest"].items() if path != "meta"}
    content = [meta["step"], meta["data"], digests, *([meta["unrecorded"]] if "unrecorded" in meta else [])]
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _brief(error: Exception) -> str:
    """The first line: tensorstore explains a damaged file over several thousand characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
