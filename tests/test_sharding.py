"""Where the devices of a mesh lie."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from sspo_jax import sharding
from sspo_jax.sharding import MeshConfig, axes_of, make_mesh


@pytest.fixture
def two_slices(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Eight devices, of which every other one is in the second slice."""
    devices = jax.devices()
    monkeypatch.setattr(sharding, "_slices", lambda devices: [devices[::2], devices[1::2]])
    return devices


@pytest.mark.parametrize(
    ("config", "axes"),
    [
        (MeshConfig(), {"data": 2, "fsdp": 4}),
        (MeshConfig(tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
        (MeshConfig(data=4), {"data": 4, "fsdp": 2}),
        (MeshConfig(data=-1, fsdp=1), {"data": 8}),
    ],
    ids=str,
)
def test_only_replicas_go_over_the_links_between_slices(config, axes, two_slices):
    mesh = make_mesh(config)
    assert axes_of(mesh) == axes
    first, second = (half.flatten().tolist() for half in np.split(mesh.devices, 2))
    assert {*first} == {*two_slices[::2]}
    assert {*second} == {*two_slices[1::2]}


@pytest.mark.usefixtures("two_slices")
def test_a_replica_that_would_go_over_them_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"needs a multiple of 3 devices"):
        make_mesh(MeshConfig(data=3))
    monkeypatch.setattr(sharding, "_slices", lambda devices: [devices[:2], devices[2:4], devices[4:6], devices[6:]])
    with pytest.raises(ValueError, match=r"--mesh.data is 2 on 4 slices of 2, 2, 2, 2 devices"):
        make_mesh(MeshConfig(data=2))
    monkeypatch.setattr(sharding, "_slices", lambda devices: [devices[:2], devices[2:]])
    with pytest.raises(ValueError, match=r"on 2 slices of 2, 6 devices; expected slices of one size"):
        make_mesh(MeshConfig())


def test_tpus_know_their_slice_and_all_else_is_one():
    tpus = [types.SimpleNamespace(platform="tpu", slice_index=index) for index in (1, 0, 1, 0)]
    assert sharding._slices(tpus) == [[tpus[1], tpus[3]], [tpus[0], tpus[2]]]
    assert sharding._slices(tpus[:1]) == [tpus[:1]]
    one = [types.SimpleNamespace(platform="tpu")] * 4  # of a topology that is a single slice
    assert sharding._slices(one) == [one]
    assert sharding._slices(jax.devices()) == [jax.devices()]
    assert axes_of(make_mesh(MeshConfig())) == {"fsdp": 8}
