"""The checker imports nothing of the package around it, so that its folder could be a distribution of its own."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

import sspo_jax.checker

FOLDER = pathlib.Path(sspo_jax.checker.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
OUTSIDE = {"mpmath", "sympy"}
ORDER = ("", "parse", "evaluate", "compare", "extract", "workers")
MAY_IMPORT = {
    "parse": {"parse"},
    "evaluate": {"evaluate"},
    "compare": {"parse", "evaluate", "compare"},
    "extract": {"extract"},
}  # of the other folders; every one may import the modules beside them


def imports(path: pathlib.Path) -> list[tuple[int, str]]:
    """(level, module) of every import of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_stay_inside(path: pathlib.Path):
    depth = len(path.relative_to(FOLDER).parts)
    for level, module in imports(path):
        if level == 0:
            assert module.split(".")[0] in sys.stdlib_module_names | OUTSIDE, module
        else:
            assert level <= depth, f"{'.' * level}{module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_folders_import_one_way(path: pathlib.Path):
    parts = path.relative_to(FOLDER).parts
    if len(parts) < 2 or parts[0] not in MAY_IMPORT:
        return
    for level, module in imports(path):
        first = module.split(".")[0]
        if level == 2 and first in ORDER:
            assert first in MAY_IMPORT[parts[0]], f"{parts[0]} imports {first}"
        assert not (level == 2 and first in ("decide", "verifier")), module


def test_under_another_name_and_without_the_package(tmp_path: pathlib.Path):
    shutil.copytree(FOLDER, tmp_path / "answer_checker", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            r"""
            import sys
            from answer_checker import is_correct, verify
            print(is_correct(r"\boxed{\frac{2}{4}}", "0.5"))
            print(verify(r"\boxed{\lim_{x \to 0} \frac{\sin x}{x}}", "1", timeout_seconds=60).status)
            print("sspo_jax" in sys.modules)
            """
        ),
        encoding="utf-8",
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert run.stdout.split() == ["True", "correct", "False"]
