"""The warm start has a seed of its own, so that runs of different seeds can start from the same weights."""

import dataclasses
import inspect
import itertools
import pathlib

import numpy as np
import pytest

from sspo_jax.trainer.setup import RunInputs, check
from sspo_jax.trainer.warm_start import _key, demonstration_rows, warm_start
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
    assert _key(settings, inputs) != _key(other, inputs)
    rows = [next(demonstration_rows(inputs, each)).tokens for each in (settings, settings, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert any(one != two for one, two in itertools.zip_longest(rows[0].ravel(), rows[2].ravel()))
