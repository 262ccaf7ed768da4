"""What is installed: the wheel's packages and experiments, and one list of development tools."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from sspo_jax.commands.experiments import experiments, load_experiment
from sspo_jax.commands.main import COMMANDS, PACKAGES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    """Of the packages in requirements such as `a-b>=1.0; python_version < "3.12"`."""
    return {re.split(r"[^\w.-]", each.strip(), maxsplit=1)[0].lower().replace("_", "-") for each in requirements}


def pins(file: str) -> dict[str, str]:
    """Package to line of a requirements file, without comments and includes."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith(("#", "-r"))]
    return {name: line for line in lines for name in names([line])}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The unpacked wheel, built from a copy of the checkout: building leaves folders behind."""
    copy, out, site = (tmp_path_factory.mktemp(name) for name in ("copy", "out", "site"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("sspo_jax", "experiments", "studies"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "-w", out, copy], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_has_one_top_level_package(site):
    assert sorted(re.sub("-.*", "", path.name) for path in site.iterdir()) == ["sspo_jax", "sspo_jax"]
    (information,) = site.glob("*.dist-info")
    assert (information / "top_level.txt").read_text().split() == ["sspo_jax"]


def test_the_wheel_has_every_module_and_data_file(site):
    kept = {".py", ".json", ".jinja", ".typed", ".css", ".js", ".txt", ".safetensors"}
    expected = {path.relative_to(ROOT) for path in (ROOT / "sspo_jax").rglob("*") if path.suffix in kept}
    expected |= {"sspo_jax" / path.relative_to(ROOT) for path in (ROOT / "experiments").glob("*.py")}
    expected |= {
        pathlib.Path("sspo_jax", "experiments") / path.relative_to(ROOT) for path in (ROOT / "studies").glob("*.py")
    }
    found = {path.relative_to(site) for path in (site / "sspo_jax").rglob("*") if path.is_file()}
    assert found == expected


def test_an_installed_package_finds_its_experiments(site, tmp_path):
    """Outside a checkout `sspo train NAME` knows the shipped experiments, variants included."""
    script = (
        "import sspo_jax, sys\n"
        f"assert sspo_jax.__file__.startswith({str(site)!r}), sspo_jax.__file__\n"
        "from sspo_jax.commands.experiments import experiments, load_experiment\n"
        "print(*sorted(experiments()))\n"
        "print(load_experiment('arithmetic_tiny_grpo').loss)\n"
        "assert 'experiments' not in sys.modules\n"
    )
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{script}"]
    result = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    listed, loss = result.stdout.splitlines()
    assert set(listed.split()) == {path.stem for path in (ROOT / "experiments").glob("[!_]*.py")}
    assert loss.startswith("Grpo(")


def test_a_variant_imports_the_experiment_beside_it(tmp_path):
    for folder, steps in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(
            f"from tests.trainer.conftest import small\n\ndef config():\n    return small(steps={steps})\n"
        )
        (tmp_path / folder / "variant.py").write_text(
            "import dataclasses\n\nfrom . import base\n\ndef config():\n"
            "    return dataclasses.replace(base.config(), steps=10 * base.config().steps)\n"
        )
    before = list(sys.path)
    assert load_experiment(str(tmp_path / "one" / "variant.py")).steps == 10
    assert load_experiment(str(tmp_path / "two" / "variant.py")).steps == 20
    assert sys.path == before
    edited = "from tests.trainer.conftest import small\n\ndef config():\n    return small(steps=3)\n"
    (tmp_path / "one" / "variant.py").write_text(edited)
    assert load_experiment(str(tmp_path / "one" / "variant.py")).steps == 3  # an edited file is read anew
    assert "arithmetic_tiny" in experiments()


def test_one_list_of_development_tools():
    needed_by_openai = {"jiter", "sniffio"}
    docs, (included, *dev) = (PROJECT["dependency-groups"][name] for name in ("docs", "dev"))
    assert included == {"include-group": "docs"}
    assert set(pins("requirements-docs.txt")) == names(docs)
    assert set(pins("requirements-dev.txt")) - needed_by_openai == names(dev)
    for file in ("requirements-docs.txt", "requirements-dev.txt"):
        assert all("==" in line for line in pins(file).values())


def required(extra: str) -> set[str]:
    """Packages of an extra and of those that it names."""
    found = names(PROJECT["project"]["dependencies"])
    for requirement in PROJECT["project"]["optional-dependencies"][extra]:
        others = re.fullmatch(r"sspo-jax\[([\w,]+)\]", requirement)
        found |= set().union(*map(required, others[1].split(","))) if others else names([requirement])
    return found


def test_every_dependency_is_pinned():
    assert required("all") <= set(pins("requirements.txt"))


def test_all_is_everything_but_accelerators_and_trackers():
    extras = PROJECT["project"]["optional-dependencies"]
    others = {"rewards", "tpu", "cuda12", "cuda13", "wandb", "trackio", "mlflow"}
    assert set(extras) == {"checker", "train", "serve", "tfds", "all"} | others
    assert required("all") == set().union(*(required(extra) for extra in set(extras) - others))
    assert required("checker") < required("train") < required("serve")


IMPORTED_AS = {
    "importlib-resources": "importlib_resources",
    "ml-dtypes": "ml_dtypes",
    "orbax-checkpoint": "orbax",
    "tensorboardx": "tensorboardX",
    "tensorflow-datasets": "tensorflow_datasets",
}


def test_a_command_knows_which_extra_brings_a_package():
    base = names(PROJECT["project"]["dependencies"])
    before = set()
    for extra, packages in PACKAGES.items():
        expected = {IMPORTED_AS.get(name, name) for name in required(extra) - base - before}
        assert set(packages) == expected
        before |= required(extra)


def other_packages() -> set[str]:
    """Names under which packages are imported that `pip install sspo-jax` does not bring."""
    todo, base = names(PROJECT["project"]["dependencies"]), {"sspo-jax"}
    while todo:
        base.add(name := todo.pop())
        lines = [line for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
        todo |= names(lines) - base
    imported = importlib.metadata.packages_distributions().items()
    return {name for name, distributions in imported if not names(distributions) & base}


ONLY_THE_BASE = """
import importlib.machinery, sys

blocked = set(sys.argv[1].split(","))

class PathFinder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path = [PathFinder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]

import jax.numpy as jnp
from sspo_jax import advantages, logprobs, losses
from sspo_jax.subsentences import Segmenter

ones = jnp.ones((2, 6))
ids = Segmenter(table=None, rule="fixed(3)")(ones.astype(int), ones > 0)
loss, metrics = losses.sspo_loss(0 * ones, 0 * ones, ones, ones > 0, ids)
print(ids[0].tolist(), round(float(loss), 4))
from sspo_jax.commands.main import COMMANDS, main
print(*(main([command, "--help"]) for command in COMMANDS))
"""


def test_the_losses_need_the_base_alone(tmp_path):
    """Where everything else is missing they run, and each command says in a line what to install."""
    blocked = other_packages()
    assert {name for packages in PACKAGES.values() for name in packages} - blocked == {"ml_dtypes"}  # jax brings it
    run = [sys.executable, "-c", ONLY_THE_BASE, ",".join(blocked)]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[0, 0, 0, 1, 1, 1] -1.0", " ".join("1" * len(COMMANDS))]
    extras = {"verify": "checker", "serve": "serve"}
    line = r"^sspo ([a-z-]+): needs \w+: pip install 'sspo-jax\[(\w+)\]'$"
    told = dict(re.findall(line, result.stderr, re.MULTILINE))
    assert told == {command: extras.get(command, "train") for command in COMMANDS}
    assert len(result.stderr.splitlines()) == len(COMMANDS)


def test_the_makefile_calls_tools_of_the_list():
    called = set(re.findall(r"\$\(BIN\)/(\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))) - {"python"}
    assert called == {"ruff", "basedpyright"}
    assert called <= set(pins("requirements-dev.txt"))
