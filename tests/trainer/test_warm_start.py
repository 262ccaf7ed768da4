"""The warm start has a seed of its own, so that runs of different seeds can start from the same weights."""

import dataclasses
import inspect
import itertools
import math
import pathlib

import numpy as np
import pytest

from sspo_jax.config import WarmStartConfig
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
