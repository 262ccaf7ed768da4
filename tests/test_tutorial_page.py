"""docs/tutorial.md and the notebook: what they show is what happens."""

import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = re.compile(r"^`([\w/]+\.py)`\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOTEBOOK = ROOT / "notebooks" / "ratio_levels.ipynb"
SMALL = (
    "--steps 1 --warm-start.updates 20 --rollout.prompts 2 --rollout.group-size 2 --update.per-rollout 1 "
    "--update.micro-rows 2 --evaluation.problems 1 --evaluation.samples 0 --mesh.fsdp 1 --log.trackers none"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A checkout with the files of the page, its problems made."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    files = dict(FILE.findall(page))
    assert sorted(files) == ["mine/largest.py", "mine/make_problems.py", "mine/rewards.py"]
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "mine/make_problems.py"], cwd=folder, check=True)
    return folder


def sspo(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script, which unlike `python -m` has no working directory to import from."""
    start = "import sys; from sspo_jax.commands.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "SSPO_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_the_experiment_is_found_and_its_problems_are_apart(folder):
    shown = sspo(folder, "train", "mine/largest.py", "--steps", "0")
    assert "--steps is 0" in shown.stderr, shown.stderr  # the file was imported, with what it imports
    found = sspo(folder, "data", "overlap", "mine/largest.jsonl", "mine/largest_held_out.jsonl")
    assert "0 of 4000 problems" in found.stdout, found.stdout + found.stderr


@pytest.mark.slow
def test_it_trains_with_the_reward(folder):
    done = sspo(
        folder,
        "train",
        "mine/largest.py",
        "--reward.user",
        "mine.rewards:shows_work",
        "--reward.shows_work.weight",
        "0.2",
        *SMALL.split(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (folder / "runs").glob("*/metrics.jsonl")
    assert "shows_work_mean" in metrics.read_text(encoding="utf-8")


def test_the_notebook_was_run_as_it_stands():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
def test_the_notebook_runs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    shown = kinds(book)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert kinds(book) == shown


def kinds(book: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell shows, but for warnings."""
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return [[out.output_type for out in cell.outputs if out.get("name") != "stderr"] for cell in cells]
