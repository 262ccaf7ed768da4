"""The best policy: kept whatever is rotated, known again after a restart, never lost between two files."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.runs.best import Best, BestPolicy, mean_score, open_best, read_best
from sspo_jax.runs.checkpoint import Checkpoints

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def params(value: float):
    return {"w": jnp.full((4,), value, jnp.float32)}


def scores(first: float, second: float):
    """Of two sets, sizes apart: the mean is of sets, not of problems."""
    return {
        "a": {"problems": 30, "greedy": {"value": first}, "avg": {"value": second}},
        "b": {"problems": 500, "greedy": {"value": second}, "avg": {"value": second}},
    }


def kept(folder: pathlib.Path) -> tuple[Best | None, list[int], float]:
    store = open_best(folder, is_reader=True)
    like = {"params": {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=SHARDING)}, "optimizer": {}}
    best = read_best(folder)
    assert best is not None
    restored = store.restore(like, only=best.step)
    steps = store.steps
    store.close()
    assert restored is not None
    assert restored.step == best.step
    return best, steps, float(np.asarray(restored.params["w"])[0])


def test_the_highest_mean_is_kept_and_of_equals_the_first(tmp_path: pathlib.Path):
    policy = BestPolicy(tmp_path, "greedy")
    assert read_best(tmp_path) is None
    offered = [(0, 0.25, 0.5), (2, 0.75, 0.25), (4, 0.5, 0.5), (6, 0.75, 0.0)]  # means 0.375, 0.5, 0.5, 0.375
    taken = [policy.offer(params(step), step, scores(*values)) for step, *values in offered]
    assert taken == [True, True, False, False]
    best, steps, value = kept(tmp_path)
    assert best == Best(step=2, metric="greedy", score=0.5)
    assert (steps, value) == ([2], 2.0)


def test_a_resumed_run_knows_it(tmp_path: pathlib.Path):
    BestPolicy(tmp_path, "avg").offer(params(8), 8, scores(0.0, 0.5))
    resumed = BestPolicy(tmp_path, "avg")  # from a checkpoint of step 6, say
    assert not resumed.offer(params(7), 7, scores(0.9, 0.5))  # avg of both sets: 0.5, as before
    assert resumed.offer(params(7), 7, scores(0.9, 0.6))  # better, and of an earlier step
    assert kept(tmp_path)[1:] == ([7], 7.0)


def test_killed_between_the_checkpoint_and_its_name(tmp_path: pathlib.Path, monkeypatch):
    BestPolicy(tmp_path, "greedy").offer(params(1), 1, scores(0.1, 0.1))
    with monkeypatch.context() as patch:
        patch.setattr("sspo_jax.runs.best.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            BestPolicy(tmp_path, "greedy").offer(params(2), 2, scores(0.9, 0.9))
    best, steps, value = kept(tmp_path)
    assert (best.step if best else None, steps, value) == (1, [1, 2], 1.0)
    assert BestPolicy(tmp_path, "greedy").offer(params(3), 2, scores(0.8, 0.8))  # the step again
    assert kept(tmp_path)[1:] == ([2], 3.0)


def test_the_rotation_of_the_others_leaves_it_alone(tmp_path: pathlib.Path):
    from tests.runs.test_checkpoint import save

    BestPolicy(tmp_path, "greedy").offer(params(1), 1, scores(0.1, 0.1))
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3):
        save(checkpoints, step, 1.0)
    assert checkpoints.steps == [3]
    checkpoints.close()
    assert kept(tmp_path)[1:] == ([1], 1.0)


def test_nothing_is_kept_without_sets_or_when_not_wanted(tmp_path: pathlib.Path):
    assert not BestPolicy(tmp_path, "none").offer(params(1), 1, scores(0.1, 0.1))
    assert not BestPolicy(tmp_path, "greedy").offer(params(1), 1, {})
    assert not (tmp_path / "best").exists()


def test_the_mean_by_hand():
    assert mean_score(scores(0.2, 0.6), "greedy") == pytest.approx(0.4)
