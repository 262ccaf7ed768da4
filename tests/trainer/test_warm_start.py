"""The warm start has a seed of its own, so that runs of different seeds can start from the same weights."""

import dataclasses
import inspect
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from sspo_jax.config import WarmStartConfig
from sspo_jax.data.sources import JsonlData
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import init_qwen
from sspo_jax.runs.display import Display
from sspo_jax.trainer.setup import RunInputs, check
from sspo_jax.trainer.warm_start import demonstration_rows, warm_start, warm_start_key
from tests.trainer.conftest import one_device, small


@pytest.fixture(scope="module")
def inputs(cache: pathlib.Path) -> RunInputs:
    with one_device():
        return check(small())


def test_only_its_own_seed_decides_it(inputs: RunInputs):
    settings = small().warm_start
    assert settings is not None
    other = dataclasses.replace(settings, seed=1)
    assert "seed" not in inspect.signature(warm_start).parameters
    assert warm_start_key(settings, inputs) != warm_start_key(other, inputs)
    rows = [next(demonstration_rows(inputs, each)).tokens for each in (settings, settings, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert any(one != two for one, two in itertools.zip_longest(rows[0].ravel(), rows[2].ravel()))


@pytest.mark.parametrize(("rate", "name"), [(1e30, "norm of the weights"), (math.nan, "loss")])
def test_one_that_ends_with_numbers_that_are_none_is_not_kept(
    inputs: RunInputs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rate: float, name: str
):
    """The loss of the last update is that of the weights before it: they are looked at too."""
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path))
    settings = WarmStartConfig(updates=2, rows=4, row_tokens=96, learning_rate=rate)
    with pytest.raises(ValueError, match=f"the {name} of the warm start is (inf|nan) after 2 .*nothing was kept"):
        warm_start(settings, inputs, Display(quiet=True, silent=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def from_checkpoint(inputs: RunInputs, tmp_path_factory) -> RunInputs:
    """A run from a checkpoint, whose data is a file of problems with worked solutions, one of them long."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with one_device():
        params = init_qwen(inputs.model, jax.random.key(5))
        save_qwen(folder / "model", params, inputs.model, dtype="float32", tokenizer=inputs.tokenizer)
        solutions = [f"{n} plus 1 is {n + 1}. The answer is \\boxed{{{n + 1}}}." for n in range(8)] + [
            "7 plus 1, " * 60
        ]
        rows = [
            {"id": str(n), "problem": f"{n} plus 1?", "answer": str(n + 1), "solution": solution}
            for n, solution in enumerate(solutions)
        ]
        (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        data = JsonlData(path=str(folder / "problems.jsonl"))
        return check(small(data=data, model__path=str(folder / "model"), model__shape=None, model__tokenizer=None))


def test_it_goes_on_from_a_checkpoint_with_real_demonstrations(
    from_checkpoint: RunInputs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path))
    settings = WarmStartConfig(updates=2, rows=4, row_tokens=96, learning_rate=1e-4, drop_long=True)
    with one_device():
        trained = warm_start(settings, from_checkpoint, Display(quiet=True, silent=True))
        before, _ = load_qwen(from_checkpoint.model_path)
        [kept] = (tmp_path / "warm_start").iterdir()
        after, _ = load_qwen(kept)
    moved = np.abs(np.asarray(trained["embedding"]) - np.asarray(before["embedding"])).max()
    assert 0 < moved < 1e-3  # two updates of at most 1e-4: from random weights of another seed it would be far
    np.testing.assert_array_equal(np.asarray(after["embedding"]), np.asarray(trained["embedding"]))


def test_the_checkpoint_is_part_of_the_key(from_checkpoint: RunInputs):
    settings = WarmStartConfig(updates=2)
    other = dataclasses.replace(from_checkpoint, provenance=from_checkpoint.provenance | {"model": {"x": "another"}})
    assert warm_start_key(settings, from_checkpoint) != warm_start_key(settings, other)


def test_a_demonstration_longer_than_a_row_stops_it_or_is_left_out(from_checkpoint: RunInputs):
    settings = WarmStartConfig(updates=2, rows=4, row_tokens=96)
    with pytest.raises(ValueError, match=r"problem '8' has \d+ tokens .*drop_long"):
        list(itertools.islice(demonstration_rows(from_checkpoint, settings), 50))
    dropping = dataclasses.replace(settings, drop_long=True)
    assert len(list(itertools.islice(demonstration_rows(from_checkpoint, dropping), 50))) == 50
    with pytest.raises(ValueError, match="found 1001 one after the other"):
        next(demonstration_rows(from_checkpoint, dataclasses.replace(dropping, row_tokens=12)))
