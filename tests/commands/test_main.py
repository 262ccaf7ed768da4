"""Sections that an experiment leaves out are switched on by any of their options."""

import dataclasses
import importlib
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from sspo_jax.commands.main import COMMANDS, main, pass_over_closed_loops
from sspo_jax.commands.options import parse, switch_on
from sspo_jax.config import TrainConfig
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.data.sources import JsonlData
from sspo_jax.ranges import file_only
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


def optional_sections(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, class) of every section that may be left out, of those sections too that are."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if field.name in file_only(config):
            continue
        kinds = [kind for kind in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(kind)]
        if type(None) in typing.get_args(hints[field.name]) and len(kinds) == 1:
            yield name, kinds[0]
        elif dataclasses.is_dataclass(value):
            yield from optional_sections(value, f"{name}.")


SECTIONS = {name: kind for name, kind in optional_sections(PLAIN) if name != "model.shape"}


def test_the_optional_sections_are_known():
    known = {"model.lora", "curriculum", "rollout.server", "reward.format", "reward.overlong", "reward.length"}
    assert known | {"warm_start"} <= set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_any_option_of_a_section_is_enough(name: str):
    """What the section needs besides has a default, or is settled by the run."""
    fields = [field for field in dataclasses.fields(SECTIONS[name]) if type(field.default) in (int, float)]
    assert fields, "no number in it: extend this test"
    for field in fields:
        if f"{name}.{field.name}" in file_only(switch_on(PLAIN, [f"--{name}."])):
            continue
        config = parsed(f"--{name}.{field.name.replace('_', '-')}", str(field.default))
        config.check()
        section: Any = config
        for part in name.split("."):
            section = getattr(section, part)
        assert type(section) is SECTIONS[name]
        assert getattr(section, field.name) == field.default


def test_names_of_fields_are_given_on_the_command_line():
    on_file = dataclasses.replace(PLAIN, data=JsonlData(path="rows.jsonl"))
    options = ("--data.path", "other.jsonl", "--data.fields", "id=number", "answer=solution")
    config = parse(TrainConfig, options, prog="sspo train", default=on_file)
    assert config.data == JsonlData(path="other.jsonl", fields=("id=number", "answer=solution"))


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("report", "RUN [RUN ...]"),
        ("inspect", "RUN"),
        ("export", "RUN DIRECTORY"),
        ("plan", "EXPERIMENT"),
        ("study", "STUDY"),
        ("data overlap", "TRAIN EVAL [EVAL ...]"),
        ("data audit", "FILE"),
    ],
)
def test_help_names_what_a_command_takes(command: str, usage: str, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert f" {usage}" in capsys.readouterr().out.partition("\n\n")[0]


def test_without_a_command_it_says_how_to_begin(capsys):
    assert main([]) == 2
    assert "`sspo train hello`" in capsys.readouterr().out


def test_an_error_of_the_system_names_the_file_and_no_number(capsys):
    assert main(["segment", "nowhere.txt", "--tokenizer", "tiny"]) == 1
    assert capsys.readouterr().err == "sspo segment: nowhere.txt: No such file or directory\n"


def test_a_reader_that_has_enough_is_no_error():
    """As in `sspo train hello --help | head -1`."""
    command = [sys.executable, "-c", "import sys; from sspo_jax.commands.main import main; sys.exit(main(['--help']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
