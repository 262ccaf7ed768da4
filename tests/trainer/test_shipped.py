"""The warm start that comes with the package is taken where the configuration asks for just that one."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.models.configs import QwenConfig
from sspo_jax.runs.display import Display
from sspo_jax.trainer import shipped
from sspo_jax.trainer.setup import RunInputs, check
from sspo_jax.trainer.warm_start import warm_start, warm_start_key
from tests.trainer.conftest import one_device

SETTINGS = load_experiment("arithmetic_tiny").warm_start


@pytest.fixture(scope="module")
def inputs(cache: pathlib.Path) -> RunInputs:
    with one_device():
        return check(load_experiment("arithmetic_tiny"))


@pytest.fixture
def folder(inputs: RunInputs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A copy of the shipped folder, in place of the package's."""
    assert SETTINGS is not None
    key = warm_start_key(SETTINGS, inputs)
    assert (shipped.SHIPPED / key).is_dir(), "make warm-start ARGS='--out DIR' makes the one to ship"
    shutil.copytree(shipped.SHIPPED / key, tmp_path / key)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    return tmp_path / key


def test_the_default_experiment_starts_from_it(inputs: RunInputs, folder: pathlib.Path, monkeypatch, capsys):
    assert SETTINGS is not None
    monkeypatch.setenv("SSPO_CACHE_DIR", str(folder.parent / "cache"))
    params = warm_start(SETTINGS, inputs, Display(quiet=True))
    assert "800 updates that come with the package" in capsys.readouterr().out
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == inputs.model.num_parameters
    assert not (folder.parent / "cache").exists()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000


def test_nothing_else_does(inputs: RunInputs, folder: pathlib.Path):
    assert SETTINGS is not None
    for change in ({"seed": 1}, {"updates": 801}, {"learning_rate": 2e-3}, {"rows": 48}):
        key = warm_start_key(dataclasses.replace(SETTINGS, **change), inputs)
        assert shipped.shipped_folder(key) is None, change
    assert isinstance(inputs.model, QwenConfig)
    for change in ({"model": dataclasses.replace(inputs.model, rope_theta=2e4)}, {"provenance": other(inputs)}):
        key = warm_start_key(SETTINGS, dataclasses.replace(inputs, **change))
        assert shipped.shipped_folder(key) is None, change
    # Where it may come from is no part of what it is.
    assert warm_start_key(dataclasses.replace(SETTINGS, shipped=False), inputs) == folder.name


def other(inputs: RunInputs) -> dict:
    """Where the problems are other ones."""
    return inputs.provenance | {"data": {"arithmetic_train": "another digest"}}


def test_damaged_weights_are_refused(inputs: RunInputs, folder: pathlib.Path):
    assert SETTINGS is not None
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="their digest is not that of built"):
        warm_start(SETTINGS, inputs, Display(quiet=True, silent=True))


def test_what_it_was_made_on_is_compared():
    one = shipped.Built(sha256="1", jax="0.10.2", cores=2, processor="x86_64 avx2")
    assert one.differences(dataclasses.replace(one, sha256="2")) == []
    assert one.differences(dataclasses.replace(one, cores=1, jax="1")) == ["jax 0.10.2 / 1", "cores 2 / 1"]


@pytest.mark.slow
def test_it_is_made_again_bit_for_bit(inputs: RunInputs, folder: pathlib.Path):
    """Minutes on the two cores it is limited to; skipped where jax or the kind of processor is another."""
    built, here = shipped.read_built(folder), shipped.here("")
    unlike = [each for each in built.differences(here) if not each.startswith("cores")]
    if unlike or here.cores < built.cores:
        pytest.skip(f"made on something else: {', '.join(built.differences(here))}")
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "sspo_jax", "warm-start", "arithmetic_tiny"],
        env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "bit for bit" in result.stdout
