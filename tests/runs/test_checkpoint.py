"""Checkpoints: what was saved comes back, and a flipped byte is found."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints, digest, steps_in


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
