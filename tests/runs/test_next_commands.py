"""The last line of a command can be copied into the terminal."""

import pathlib
import subprocess
import sys

import pytest

from sspo_jax.runs.next_commands import next_commands, program


def test_it_is_called_by_name_where_that_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    script = tmp_path / "sspo"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_commands("report run --open") == "next: sspo report run --open"
    assert next_commands("a", "b") == "next:\n  sspo a\n  sspo b"
    assert next_commands("train x", before="SSPO_DATA=d ") == "next: SSPO_DATA=d sspo train x"


def test_elsewhere_what_is_said_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([*program().split(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sspo_jax ")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))  # beside which is no script
    assert program() == f"{tmp_path}/bin/python -m sspo_jax"
    script = tmp_path / "bin" / "sspo"
    script.parent.mkdir()
    script.write_text("")
    script.chmod(0o755)
    assert program() == "bin/sspo"
