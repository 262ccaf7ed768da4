"""The container file: what it copies is there, no key is in it, and it ends in the suite."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [line for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", TEXT)).splitlines() if line.strip()]


def test_it_runs_the_suite_by_default():
    assert INSTRUCTIONS[0].startswith("FROM docker.io/library/python:3.1")
    assert INSTRUCTIONS[-1] == 'CMD ["make", "test"]'
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"\bmake ([a-z-]+)", TEXT)) <= set(targets)


def test_what_it_copies_is_there():
    for line in INSTRUCTIONS:
        if line.startswith("COPY"):
            *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line


def test_no_key_is_kept_in_an_image():
    for line in INSTRUCTIONS:
        assert not re.search(r"TOKEN|API_KEY|PASSWORD", line), line
    ignored = (ROOT / ".containerignore").read_text(encoding="utf-8").split()
    assert {".git", "scripts/tpu/tpu.env", "runs", ".venv*"} <= set(ignored)
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").split() == ignored
