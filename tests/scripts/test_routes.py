"""scripts/routes.py counts what it says it counts, on sources and calls small enough to count by hand."""

import ast
import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from sspo_jax.commands.experiments import experiments, load_experiment

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "routes.py"


@pytest.fixture(scope="module")
def routes() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("routes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["routes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trees(routes) -> dict[str, ast.Module]:
    """Of the package; parsing it takes seconds."""
    return routes.sources()


def test_functions_handed_a_record(routes):
    tree = ast.parse(
        "def a(config: TrainConfig): ...\n"
        "def b(section: RolloutConfig, *, config: 'TrainConfig | None' = None):\n"
        "    def inner(config: TrainConfig): ...\n"
        "class C:\n"
        "    config: TrainConfig\n"
        "    def d(self) -> TrainConfig: ...\n"
        "    def e(self, make: MyTrainConfigs): ...\n"
    )
    assert routes.handed({"x.py": tree}) == ["x.py a", "x.py b", "x.py b.inner"]


def test_lengths_with_and_without_docstring(routes):
    tree = ast.parse('def a():\n    """Two\n    lines."""\n    return 1\n\n\ndef b():\n    x = 1\n    return x\n')
    assert routes.lengths({"x.py": tree}) == [(4, 2, "x.py a"), (3, 3, "x.py b")]


def test_rings_and_imports_inside_functions(routes):
    trees = {
        "a/one.py": ast.parse("from pkg.b import two\nimport pkg.c.three"),
        "b/two.py": ast.parse("def f():\n    from pkg import a"),
        "c/three.py": ast.parse("import os\nfrom . import other"),
    }
    found = routes.imports(trees, "pkg")
    assert found == {"a/one.py": {"b.two", "c.three"}, "b/two.py": {"a"}, "c/three.py": {"c.other"}}
    assert routes.rings({"a": {"b", "c"}, "b": {"a"}, "c": set(), "d": {"d"}}) == [["a", "b"]]


@dataclasses.dataclass
class Record:
    """Stands for a rollout."""

    tokens: np.ndarray
    rewards: list[float]


def test_tokens_are_recognised_in_arrays_lists_and_records(routes):
    tokens = routes.SampledTokens([[1, 2, 3, 4, 5]], prompts=[[2, 3, 4, 5]])
    assert tokens.windows == {(1, 2, 3, 4)}
    assert tokens.within([0, 1, 2, 3, 4])
    assert tokens.within(np.array([[9, 9, 9, 9, 9], [1, 2, 3, 4, 0]]))
    assert tokens.within(np.array([[1, 2, 3, 4]]).T)  # positions by slots
    assert tokens.within({"rollout": Record(np.array([[1, 2, 3, 4]]), [1.0])})
    assert tokens.records == {Record}
    assert not tokens.within([2, 3, 4, 5])  # of the prompt
    assert not tokens.within(np.array([1.0, 2.0, 3.0, 4.0]))
    assert not tokens.within("1 2 3 4")


ROUTE = """
class Store:
    def __init__(self):
        self.kept = []

    def collect(self, tokens):
        self.kept.append(list(tokens))


def decode():
    return [1, 2, 3, 4]


def look(tokens):
    return len(tokens)


def pad(tokens):
    return [*tokens, 0]


def score(rows, final):
    return final(rows[0])


def step(final):
    store = Store()
    tokens = decode()
    store.collect(tokens)
    look(tokens)
    return score([pad(tokens) for tokens in store.kept], final)
"""


def test_the_route_leaves_out_side_roads(routes, tmp_path):
    spaces = []
    for name, text in (("steps.py", ROUTE), ("logprobs.py", "def final(tokens):\n    return float(sum(tokens))\n")):
        (tmp_path / name).write_text(text)
        spaces.append({"__name__": "sspo_jax.steps"})  # what an object of the package keeps is looked at
        exec(compile(text, str(tmp_path / name), "exec"), spaces[-1])
    route = routes.TokenRoute(routes.SampledTokens([[1, 2, 3, 4]]), package=tmp_path)
    with route:
        spaces[0]["step"](spaces[1]["final"])
    assert route.ended
    assert route.route == {
        "steps.py decode": "hands back",
        "steps.py Store.collect": "receives",
        "steps.py pad": "receives",
        "steps.py score": "receives",
    }


def test_frames_are_counted_from_the_first_call_on(routes, tmp_path):
    text = "def ratio():\n    pass\n\n\ndef loss():\n    [ratio() for _ in range(2)]\n\n\ndef main():\n    loss()\n"
    space: dict = {}
    exec(compile(text, str(tmp_path / "x.py"), "exec"), space)
    stack = routes.StackAt(space["ratio"].__code__)
    stack.prefix = str(tmp_path)
    with stack:
        space["main"]()
    assert stack.stack == ["x.py main", "x.py loss", "x.py ratio"]


@pytest.mark.parametrize("name", sorted(experiments()))
def test_every_option_is_read_somewhere(routes, trees, name):
    assert not routes.unread(load_experiment(name), trees)


@dataclasses.dataclass
class Section:
    """Stands for a section of the configuration."""

    read: int = 0
    left: int = 0


@dataclasses.dataclass
class Options:
    """Stands for the configuration; `off` is a section that is switched on by its options."""

    section: Section
    off: Section | None = None


def test_an_option_that_is_read_nowhere_is_found(routes):
    trees = {"x.py": ast.parse("def f(options):\n    options.off\n    return options.section.read")}
    assert routes.unread(Options(Section()), trees) == ["Section.left"]


def test_nothing_is_above_what_is_reached(routes, trees):
    """Rings, and a command line below the library, do not come back."""
    measures = {each.name: each.value for each in routes.measure_imports(trees)}
    assert measures["rings of imports"] == 0
    assert measures["modules that import commands"] == 0
    assert routes.above([routes.Measure("rings of imports", 1)]) == ["rings of imports: 1, expected at most 0"]


def test_imports_point_one_way(routes, trees):
    """The order in docs/architecture.md: every part of the package stands in it and imports only from its left."""
    page = (SCRIPT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    (line,) = [part for part in page.split("\n\n") if part.startswith("`types,")]
    order = [re.findall(r"\w+", group) for group in line.split("←")]
    place = {name: number for number, group in enumerate(order) for name in group}
    found = routes.imports(trees)
    parts = {file: file.split("/")[0].removesuffix(".py") for file in found if not file.startswith("__")}
    assert set(parts.values()) == set(place) - {"experiments"}
    backwards = [
        f"{file} imports {name}"
        for file, part in parts.items()
        for name in found[file]
        if name.split(".")[0] not in ("__version__", part) and place[name.split(".")[0]] >= place[part]
    ]
    assert not backwards


@pytest.mark.slow
def test_a_real_step_is_measured():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--only", "step", "--json"], capture_output=True, text=True, timeout=600, check=True
    )
    measures = {each["name"]: each for each in json.loads(result.stdout)}
    frames = measures["frames to the importance ratio"]["details"]
    assert frames[0] == "commands/main.py main"
    assert frames[-1] == "losses/ratios.py importance_ratio"
    assert any(name.startswith("sampler/") for name in measures["functions a sampled token passes"]["details"])
    assert {"Rollout", "TrainBatch"} <= set(measures["record types it travels in"]["details"])
