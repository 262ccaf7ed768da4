"""Sections that an experiment leaves out are switched on by any of their options."""

import dataclasses
import importlib
import sys
import types

import pytest

from sspo_jax.commands.main import COMMANDS, pass_over_closed_loops
from sspo_jax.commands.options import parse, switch_on
from sspo_jax.config import TrainConfig
from sspo_jax.data.curriculum import CurriculumConfig
from tests.trainer.conftest import small

PLAIN = dataclasses.replace(small(), warm_start=None)


def parsed(*arguments: str) -> TrainConfig:
    return parse(TrainConfig, arguments, prog="sspo train", default=PLAIN)


def test_reads_of_a_damaged_checkpoint_end_without_a_traceback(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    pass_over_closed_loops()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), OSError("Event loop is closed")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in seen] == ["another", "Event loop is closed"]


def test_an_option_of_a_section_switches_it_on():
    assert PLAIN.curriculum is None
    assert parsed("--steps", "3").curriculum is None
    assert parsed("--curriculum.floor", "0.2").curriculum == CurriculumConfig(floor=0.2)
    config = parsed("--curriculum.memory=0.25", "--warm-start.updates", "9")
    assert config.curriculum == CurriculumConfig(memory=0.25)
    assert config.warm_start is not None
    assert config.warm_start.updates == 9


def test_nothing_else_changes():
    on = switch_on(PLAIN, ["--curriculum.floor", "0.2", "--model.dtype", "float32"])
    assert dataclasses.replace(on, curriculum=None) == PLAIN


def test_a_misspelt_option_of_it_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--curriculum.flor", "0.2")
    assert "flor" in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there(name: str):
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
