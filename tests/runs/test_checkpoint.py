"""Checkpoints: what was saved comes back, and a flipped byte is found."""

import errno
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints, NoIntactCheckpointError, digest, steps_in


def state(scale: float):
    arrays = {
        "params": {"w": jnp.linspace(0, scale, 4096, dtype=jnp.float32).reshape(64, 64)},
        "optimizer": {"count": jnp.int32(3), "mu": jnp.full((64,), scale, jnp.bfloat16)},
    }
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)
    return arrays, like


def save(checkpoints: Checkpoints, step: int, scale: float) -> None:
    arrays, _ = state(scale)
    checkpoints.save(
        Checkpoint(params=arrays["params"], optimizer=arrays["optimizer"], step=step, data={"position": step})
    )
    checkpoints.wait()


def test_round_trip(tmp_path: pathlib.Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(checkpoints, step, float(step))
    assert checkpoints.steps == steps_in(tmp_path) == [2, 3]
    arrays, like = state(3.0)
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert restored is not None
    assert (restored.step, restored.data) == (3, {"position": 3})
    for saved, read in zip(
        jax.tree.leaves(arrays),
        jax.tree.leaves({"params": restored.params, "optimizer": restored.optimizer}),
        strict=True,
    ):
        assert saved.dtype == read.dtype
        assert np.array_equal(np.asarray(saved), np.asarray(read))


def test_a_reader_may_leave_the_optimizer_on_disk(tmp_path: pathlib.Path):
    """Whatever its shape is; a changed byte of what is read is still found."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, 1.0)
    checkpoints.close()
    arrays, like = state(1.0)
    reader = Checkpoints(tmp_path, keep=None, is_reader=True)
    restored = reader.restore({"params": like["params"]})
    assert restored is not None
    assert restored.optimizer is None
    np.testing.assert_array_equal(restored.params["w"], arrays["params"]["w"])
    assert restored.params["w"].sharding == like["params"]["w"].sharding
    reader.close()
    file = max((tmp_path / "1" / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    reader = Checkpoints(tmp_path, keep=None, is_reader=True)
    with pytest.raises(NoIntactCheckpointError):
        reader.restore({"params": like["params"]})
    reader.close()


@pytest.mark.parametrize("where", ["arrays", "meta"])
def test_a_changed_byte_is_found_and_the_step_before_is_used(tmp_path: pathlib.Path, where: str, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1, 1.0)
    save(checkpoints, 2, 2.0)
    checkpoints.close()
    if where == "arrays":  # the largest data file: the values themselves
        file = max((tmp_path / "2" / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
    else:
        file = next(path for path in (tmp_path / "2" / "meta").rglob("*") if b"position" in path.read_bytes())
        content = bytearray(file.read_bytes().replace(b'"position": 2', b'"position": 7'))
        assert content != file.read_bytes()
    file.write_bytes(content)
    checkpoints = Checkpoints(tmp_path, keep=3)
    restored = checkpoints.restore(state(1.0)[1])
    assert restored is not None
    assert restored.step == 1
    assert "checkpoint of step 2 cannot be used" in caplog.text
    assert (tmp_path / "damaged-2").is_dir()
    save(checkpoints, 2, 2.0)  # the run goes on and writes the step again
    assert checkpoints.steps == [1, 2]
    checkpoints.close()


def damage(folder: pathlib.Path, how: str) -> None:
    """Makes a checkpoint on disk unreadable."""
    files = sorted((folder / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    if how == "empty":
        files[-1].write_bytes(b"")
    elif how == "cut":
        files[-1].write_bytes(files[-1].read_bytes()[: files[-1].stat().st_size // 2])
    elif how == "missing":
        files[-1].unlink()
    elif how == "metadata":
        shutil.rmtree(folder / "meta")
    elif how == "nothing":
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("how", ["empty", "cut", "missing", "metadata", "nothing"])
def test_where_none_is_intact_nothing_is_changed(tmp_path: pathlib.Path, how: str):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        save(checkpoints, step, float(step))
    checkpoints.close()
    for step in (1, 2):
        damage(tmp_path / str(step), how)
    before = sorted(tmp_path.rglob("*"))
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(NoIntactCheckpointError, match=r"(?s)step 2: .*step 1: .*Nothing was changed.*to begin anew"):
        checkpoints.restore(state(1.0)[1])
    checkpoints.close()
    assert sorted(tmp_path.rglob("*")) == before
    for step in (1, 2):
        (tmp_path / str(step)).rename(tmp_path / f"damaged-{step}")
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(NoIntactCheckpointError, match=r"damaged-1: set aside by an earlier start"):
        checkpoints.restore(state(1.0)[1])
    checkpoints.close()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes"),
        ValueError("UNAVAILABLE: Error reading local file: Stale file handle"),
        ValueError('Error reading local file "d/0": Input/output error'),
    ],
)
def test_what_is_no_damage_goes_through(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        save(checkpoints, step, float(step))

    def read(step: int, like: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "_read", read)
    with pytest.raises(type(error)) as raised:
        checkpoints.restore(state(1.0)[1])
    assert raised.value is error
    checkpoints.close()
    assert steps_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob("damaged-*"))


def test_a_reader_renames_nothing(tmp_path: pathlib.Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        save(checkpoints, step, float(step))
    checkpoints.close()
    damage(tmp_path / "2", "cut")
    reader = Checkpoints(tmp_path, keep=None, is_reader=True)
    restored = reader.restore(state(1.0)[1])
    reader.close()
    assert restored is not None
    assert restored.step == 1
    assert steps_in(tmp_path) == [1, 2]


def test_an_empty_directory_is_not_a_checkpoint(tmp_path: pathlib.Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1, 1.0)
    checkpoints.close()
    (tmp_path / "8").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=3)
    restored = checkpoints.restore(state(1.0)[1])
    checkpoints.close()
    assert restored is not None
    assert restored.step == 1


def test_nothing_to_restore(tmp_path: pathlib.Path):
    checkpoints = Checkpoints(tmp_path / "new", keep=1)
    assert checkpoints.restore(state(1.0)[1]) is None
    checkpoints.close()


def test_digest_sees_every_bit_and_every_exchange():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000).astype(np.float32)
    before = digest({"w": jnp.asarray(values)})
    for _ in range(50):
        changed = values.copy()
        changed.view(np.uint32)[rng.integers(1000)] ^= np.uint32(1 << rng.integers(32))
        assert digest({"w": jnp.asarray(changed)}) != before
        i, j = rng.choice(1000, 2, replace=False)
        exchanged = values.copy()
        exchanged[[i, j]] = exchanged[[j, i]]
        assert digest({"w": jnp.asarray(exchanged)}) != before
