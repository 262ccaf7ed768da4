"""Measures how long the routes through the package are, by running and reading the real code.

    python scripts/routes.py                 # the table of docs/architecture.md
    python scripts/routes.py --list          # ... and what was counted, by name
    python scripts/routes.py --json          # all of it for programs
    python scripts/routes.py --check         # exit code 1 if a measure is above its entry in TARGETS
    python scripts/routes.py --only static   # without the training step; also: step, types

Two measures come from one real training step on a CPU (`sspo train` on a model of 30 k parameters, random weights),
run under a profiler that sees every call of a function whose code lies in the package. Frames of jax and of the
standard library are not counted, comprehensions belong to the function they stand in.

frames to the ratio
    The stack at the first call of `losses.ratios.importance_ratio`, from `commands.main.main` to it, both included.

functions a sampled token passes
    A first step records the sampled responses. A second one, which draws the same tokens, looks at the arguments and
    the result of every call. A value holds sampled tokens if it is an integer array or a list with `WINDOW` successive
    tokens of a response in it, or a container or dataclass that holds such a value; inside jit, where arrays have no
    values, an array is followed from the field that held the tokens outside. A function is on the route if it

    - is handed sampled tokens, and returns them, stores them in another argument, or leads to the end of the route;
    - or is not handed them and returns them, which is how they go back up.

    The route begins with what the decoding program returned and ends at the first call into `logprobs.py`. Functions
    that are handed the tokens and keep them to themselves (grading, metrics, written samples) are side roads.
    Record types are the dataclasses of the package in which tokens were found on the route.

The others come from reading the source: functions with a parameter annotated `TrainConfig`; options in the help of
the shipped experiment that has most, and fields of their sections that are read nowhere in the package; lines of
functions (`def` to the last line); suppressions that basedpyright calls unnecessary; rings in the graph of imports
between the parts directly under the package, imports inside functions included.
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import inspect
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sspo_jax"
SMALL_EXPERIMENT = ROOT / "tests" / "trainer" / "small_experiment.py"
HANDED_ON_BY_NAME = ("Objective", "RolloutCorrection")
"""Classes whose fields are the keyword arguments of a function."""

TARGETS = {
    "frames to the importance ratio": 10,
    "files of these frames": 6,
    "functions a sampled token passes": 13,
    "files of these functions": 6,
    "record types it travels in": 3,
    "functions handed the whole TrainConfig": 6,
    "files of those functions": 3,
    "options of sspo train": 120,
    "options read nowhere": 0,
    "lines of the longest function": 80,
    "functions above 80 lines": 0,
    "stale type suppressions": 0,
    "rings of imports": 0,
    "modules that import commands": 0,
}
"""What a measure may be at most; `--check` compares. Measures without an entry are for information."""

WINDOW = 4
"""Successive tokens by which a response is recognised: by chance 1 in 7e10 with a vocabulary of 512."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    value: int
    details: list[str] = dataclasses.field(default_factory=list)
    """What was counted."""


def config() -> Any:
    """This file is also the experiment that is measured: one step of the tests' small one, without a warm start."""
    from sspo_jax.commands.experiments import load_experiment
    from sspo_jax.config import EvaluationConfig

    small = load_experiment(str(SMALL_EXPERIMENT))
    return dataclasses.replace(small, steps=1, warm_start=None, evaluation=EvaluationConfig())


# The training step


class Profile:
    """While active, calls `enter(frame)` and `leave(frame, result)` for every function of the package."""

    def __init__(self, package: pathlib.Path = PACKAGE):
        self.prefix = f"{package}{os.sep}"
        self._known: dict[types.CodeType, bool] = {}

    def counts(self, code: types.CodeType) -> bool:
        """Whether a frame of this code is counted: of the package, and no comprehension or module."""
        known = self._known.get(code)
        if known is None:
            is_function = code.co_name == "<lambda>" or not code.co_name.startswith("<")
            known = self._known[code] = code.co_filename.startswith(self.prefix) and is_function
        return known

    def enter(self, frame: types.FrameType) -> None:
        """A function is called; its arguments are in `frame.f_locals`."""

    def leave(self, frame: types.FrameType, result: Any) -> None:
        """It returned."""

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call" and self.counts(frame.f_code):
            self.enter(frame)
        elif event == "return" and self.counts(frame.f_code):
            self.leave(frame, argument)

    def __enter__(self) -> typing.Self:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def label(code: types.CodeType) -> str:
    """`trainer/loop.py Trainer.step`."""
    file = pathlib.Path(code.co_filename)
    path = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name
    return f"{path} {code.co_qualname.replace('<locals>.', '')}"


def files_of(labels: Iterable[str]) -> list[str]:
    """The distinct files of labels, in order."""
    return list(dict.fromkeys(each.split()[0] for each in labels))


class StackAt(Profile):
    """Keeps the stack of the package's frames at the first call of one function."""

    def __init__(self, code: types.CodeType):
        super().__init__()
        self.code = code
        self.stack: list[str] = []

    def enter(self, frame: types.FrameType) -> None:
        if frame.f_code is not self.code or self.stack:
            return
        at: types.FrameType | None = frame
        while at is not None:
            if self.counts(at.f_code):
                self.stack.insert(0, label(at.f_code))
            at = at.f_back


class SampledTokens:
    """Recognises the tokens of known responses in arrays, lists, records, and (by identity) in traced arrays."""

    def __init__(self, responses: Iterable[Iterable[int]], prompts: Iterable[Iterable[int]] = ()):
        self.windows = {window for response in responses for window in _windows(response)}
        self.windows -= {window for prompt in prompts for window in _windows(prompt)}
        self.traced: dict[int, Any] = {}
        """Traced arrays that stand for sampled tokens, by id."""
        self.places: set[tuple[type, str]] = set()
        """(dataclass, field) that held an array of sampled tokens outside jit."""
        self.records: set[type] = set()
        """Dataclasses that tokens were found in since this was last cleared."""

    def within(self, value: Any, depth: int = 4) -> int:
        """How many windows of sampled tokens are in a value; 0: it holds none."""
        import jax
        import numpy as np

        if isinstance(value, jax.core.Tracer):
            return int(id(value) in self.traced)
        if isinstance(value, np.ndarray | jax.Array):
            return self._in_array(value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], int | np.integer):
            return self._in_array(np.asarray(value)) if all(isinstance(x, int | np.integer) for x in value) else 0
        if depth == 0 or isinstance(value, type | str | bytes):
            return 0
        if isinstance(value, list | tuple):
            return sum(self.within(each, depth - 1) for each in value[:1024])
        if isinstance(value, dict):
            return sum(self.within(each, depth - 1) for each in value.values())
        if dataclasses.is_dataclass(value):
            found = self._in_record(value, depth)
            if found:
                self.records.add(type(value))
            return found
        return 0

    def _in_record(self, record: Any, depth: int) -> int:
        import jax

        found = 0
        for field in dataclasses.fields(record):
            part, place = getattr(record, field.name, None), (type(record), field.name)
            if isinstance(part, jax.core.Tracer) and place in self.places:
                self.traced[id(part)] = part
            inside = self.within(part, depth - 1)
            if inside and hasattr(part, "dtype"):
                self.places.add(place)
            found += inside
        return found

    def _in_array(self, array: Any) -> int:
        import numpy as np

        if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer) or array.size > 1 << 20:
            return 0
        if getattr(array, "is_deleted", bool)():  # donated to a program
            return 0
        array = np.atleast_2d(np.asarray(array))
        return sum(window in self.windows for lines in (array, array.T) for line in lines for window in _windows(line))

    def inside_of(self, value: Any, depth: int = 3) -> int:
        """As `within`, also through the attributes of ordinary objects of the package: what a method may store in."""
        found = self.within(value)
        if found or not depth:
            return found
        if isinstance(value, list | tuple):
            return sum(self.inside_of(part, depth - 1) for part in value[:1024])
        if type(value).__module__.split(".")[0] == PACKAGE.name and not dataclasses.is_dataclass(value):
            return sum(self.inside_of(part, depth - 1) for part in getattr(value, "__dict__", {}).values())
        return 0


def _windows(tokens: Iterable[int]) -> Iterator[tuple[int, ...]]:
    tokens = [int(token) for token in tokens]
    return (tuple(tokens[place : place + WINDOW]) for place in range(len(tokens) - WINDOW + 1))


@dataclasses.dataclass(frozen=True)
class _Call:
    """A function that was handed sampled tokens and has not returned."""

    frame: types.FrameType  # kept, so that its id stays its own
    arguments: list[Any]
    stored: int  # windows in the arguments and what they hold, when it was called
    records: set[type]  # dataclasses among the arguments that hold tokens


class TokenRoute(Profile):
    """Which functions sampled tokens pass on their way to the end."""

    def __init__(self, tokens: SampledTokens, *, package: pathlib.Path = PACKAGE, end: str = "logprobs.py"):
        super().__init__(package)
        self.tokens = tokens
        self.end = str(package / end)
        self.route: dict[str, str] = {}
        """Function to how it is on the route: `receives` or `hands back`."""
        self.records: set[str] = set()
        self.ended = False
        self._calls: dict[int, _Call] = {}

    def enter(self, frame: types.FrameType) -> None:
        if frame.f_code.co_filename == self.end:
            self._reached(frame)
            return
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        arguments = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        self.tokens.records.clear()
        given = [self.tokens.within(argument) for argument in arguments]
        records = set(self.tokens.records)
        if any(given):
            stored = sum(map(self.tokens.inside_of, arguments))
            self._calls[id(frame)] = _Call(frame, arguments, stored, records)

    def leave(self, frame: types.FrameType, result: Any) -> None:
        call = self._calls.pop(id(frame), None)
        self.tokens.records.clear()
        returned = bool(self.tokens.within(result))
        records = set(self.tokens.records)
        if self.ended:
            return
        if call is None:
            if returned:
                self._add(frame.f_code, "hands back", records)
        elif returned or sum(map(self.tokens.inside_of, call.arguments)) > call.stored:
            self._add(frame.f_code, "receives", records | call.records)

    def _reached(self, frame: types.FrameType) -> None:
        at: types.FrameType | None = frame.f_back
        calls = []
        while at is not None:
            if id(at) in self._calls:
                calls.insert(0, self._calls[id(at)])
            at = at.f_back
        if calls and not self.ended:
            for call in calls:
                self._add(call.frame.f_code, "receives", call.records)
            self.ended = True

    def _add(self, code: types.CodeType, how: str, records: set[type]) -> None:
        name = label(code)
        if self.route.get(name) != "receives":
            self.route[name] = how
        self.records |= {kind.__name__ for kind in records if kind.__module__.split(".")[0] == PACKAGE.name}


def train_once(profile: contextlib.AbstractContextManager[Any]) -> None:
    """One step through the command line, in this process."""
    from sspo_jax.commands.main import main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = ["train", __file__, "--run-dir", f"{folder}/run", "--log.quiet", "--log.trackers", "none"]
        with profile:
            code = main(arguments)
    if code != 0:
        raise SystemExit(f"routes: `sspo {' '.join(arguments)}` ended with code {code}; see the message above")


@contextlib.contextmanager
def recorded_rollouts() -> Iterator[list[Any]]:
    """The `Rollout`s that are made meanwhile."""
    from sspo_jax.types import Rollout

    made: list[Any] = []
    initialise = Rollout.__init__

    def recording(self: Any, *arguments: Any, **fields: Any) -> None:
        initialise(self, *arguments, **fields)
        made.append(self)

    Rollout.__init__ = recording  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Rollout.__init__ = initialise  # type: ignore[method-assign]


def measure_step() -> list[Measure]:
    """The two routes of a training step."""
    from sspo_jax.losses import ratios

    stack = StackAt(inspect.unwrap(ratios.importance_ratio).__code__)
    with recorded_rollouts() as rollouts:
        train_once(stack)
    tokens = SampledTokens(
        [row[mask] for each in rollouts for row, mask in zip(each.response_tokens, each.response_mask, strict=True)],
        [row[mask] for each in rollouts for row, mask in zip(each.prompt_tokens, each.prompt_mask, strict=True)],
    )
    route = TokenRoute(tokens)
    train_once(route)
    if not stack.stack or not route.ended:
        raise SystemExit("routes: the step did not come to importance_ratio or to logprobs.py: has one of them moved?")
    functions = [f"{name} ({how})" for name, how in route.route.items()]
    return [
        Measure("frames to the importance ratio", len(stack.stack), stack.stack),
        Measure("files of these frames", len(files_of(stack.stack)), files_of(stack.stack)),
        Measure("functions a sampled token passes", len(functions), functions),
        Measure("files of these functions", len(files_of(functions)), files_of(functions)),
        Measure("record types it travels in", len(route.records), sorted(route.records)),
    ]


# The source


def sources(package: pathlib.Path = PACKAGE) -> dict[str, ast.Module]:
    """Path inside the package to its syntax tree."""
    return {
        file.relative_to(package).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(package.rglob("*.py"))
    }


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, definition) of every function, methods and nested ones included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{within}{node.name}", node
            yield from functions(node, f"{within}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{within}{node.name}.")
        else:
            yield from functions(node, within)


def handed(trees: dict[str, ast.Module], record: str = "TrainConfig") -> list[str]:
    """Functions with a parameter annotated with a record, alone or in a union or a string."""
    found = []
    for file, tree in trees.items():
        for name, node in functions(tree):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            written = [ast.unparse(each.annotation) for each in parameters if each.annotation is not None]
            if any(re.search(rf"\b{record}\b", annotation) for annotation in written):
                found.append(f"{file} {name}")
    return found


def lengths(trees: dict[str, ast.Module]) -> list[tuple[int, int, str]]:
    """(lines, lines without the docstring, `file name`) of every function, longest first."""
    found = []
    for file, tree in trees.items():
        for name, node in functions(tree):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
            found.append((lines, lines - docstring, f"{file} {name}"))
    return sorted(found, reverse=True)


def imports(trees: dict[str, ast.Module], package: str = PACKAGE.name) -> dict[str, set[str]]:
    """Module (by path) to the modules and names of the package it imports anywhere, as dotted paths below it."""
    found: dict[str, set[str]] = {file: set() for file in trees}
    for file, tree in trees.items():
        here = pathlib.PurePosixPath(file).parent.parts
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = ".".join([package, *here[: len(here) - node.level + 1], *([base] if base else [])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            found[file] |= {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}
    return found


def rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node, each reachable from the others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for following in graph.get(waiting.pop(), set()) - seen:
                seen.add(following)
                waiting.append(following)
        return seen

    reach = {node: reachable(node) for node in graph}
    groups = {frozenset({node, *(other for other in reach[node] if node in reach.get(other, ()))}) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def measure_imports(trees: dict[str, ast.Module]) -> list[Measure]:
    """Rings between the parts directly under the package, who imports the commands, and modules in no room."""
    found = imports(trees)
    parts = {pathlib.PurePosixPath(file).parts[0].removesuffix(".py") for file in trees} - {"__init__"}
    graph: dict[str, set[str]] = collections.defaultdict(set)
    importing_commands = []
    for file, names in found.items():
        part = pathlib.PurePosixPath(file).parts[0].removesuffix(".py")
        targets = {name.split(".")[0] for name in names} & parts
        graph[part] |= targets - {part}
        if "commands" in targets and part not in ("commands", "__main__"):
            importing_commands.append(file)
    found_rings = rings(graph)
    alone = [file for file in trees if "/" not in file and not file.startswith("__")]
    return [
        Measure("rings of imports", len(found_rings), [", ".join(ring) for ring in found_rings]),
        Measure("modules that import commands", len(importing_commands), importing_commands),
        Measure("modules in no room", len(alone), alone),
    ]


def option_names(experiment: str) -> list[str]:
    """The options in `sspo train EXPERIMENT --help`; --name and --no-name are one."""
    from sspo_jax.commands.main import main

    text = io.StringIO()
    narrow = {"COLUMNS": "80", "NO_COLOR": "1"}  # one column of boxes, so that every option begins a line
    before = {name: os.environ.get(name) for name in narrow}
    os.environ |= narrow
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["train", experiment, "--help"])
    for name, value in before.items():
        os.environ.pop(name)
        os.environ |= {} if value is None else {name: value}
    return re.findall(r"^\W*(--[a-z][\w.-]*)", text.getvalue(), flags=re.MULTILINE)


def sections(config: Any) -> Iterator[type]:
    """The dataclasses of a configuration: of its values, and of sections that are off."""
    kinds = [type(config)]
    seen: set[type] = set()
    while kinds:
        kind = kinds.pop()
        if kind in seen or not dataclasses.is_dataclass(kind):
            continue
        seen.add(kind)
        yield kind
        hints = typing.get_type_hints(kind)
        values = [config] if type(config) is kind else []
        for field in dataclasses.fields(kind):
            present = [getattr(value, field.name) for value in values]
            if present and dataclasses.is_dataclass(present[0]):
                kinds.append(type(present[0]))
            else:
                kinds += [
                    each for each in (hints[field.name], *typing.get_args(hints[field.name])) if isinstance(each, type)
                ]


def unread(config: Any, trees: dict[str, ast.Module]) -> list[str]:
    """Fields of the sections that are read nowhere in the package.

    Read is an attribute of that name anywhere, or a string of it in the module that declares it (for `getattr`). An
    objective hands its fields on to its function by name: there a field is also read where a variable of its name is
    used in that module.
    """
    attributes = {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    found = []
    for kind in sections(config):
        declared = {base.__name__ for base in kind.__mro__}
        files = {base.__module__.partition(".")[2].replace(".", "/") + ".py" for base in kind.__mro__}
        own = [trees[file] for file in files if file in trees]
        nodes = [node for tree in own for node in ast.walk(tree)]
        names = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        if declared & set(HANDED_ON_BY_NAME):
            names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        found += [
            f"{kind.__name__}.{field.name}"
            for field in dataclasses.fields(kind)
            if field.name not in attributes and field.name not in names
        ]
    return found


def measure_source() -> list[Measure]:
    """What can be read from the source and from the help."""
    from sspo_jax.commands.experiments import experiments, load_experiment

    trees = sources()
    whole = handed(trees)
    options = max((option_names(name) for name in experiments()), key=len)
    configs = [load_experiment(name) for name in experiments()]
    ignored = list(dict.fromkeys(field for config in configs for field in unread(config, trees)))
    longest = lengths(trees)
    bare = sorted(longest, key=lambda each: -each[1])
    above = [f"{name}: {lines} lines" for lines, _, name in longest if lines > 80]
    return [
        Measure("functions handed the whole TrainConfig", len(whole), whole),
        Measure("files of those functions", len(files_of(whole)), files_of(whole)),
        Measure("options of sspo train", len(options), options),
        Measure("options read nowhere", len(ignored), ignored),
        Measure("lines of the longest function", longest[0][0], [longest[0][2]]),
        Measure("the same without docstrings", bare[0][1], [bare[0][2]]),
        Measure("functions above 80 lines", len(above), above),
        *measure_imports(trees),
    ]


def measure_types() -> list[Measure]:
    """Suppressions in the package, and those that suppress nothing, by basedpyright."""
    comment = re.compile(r"#\s*(?:type|pyright):\s*ignore")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if comment.search(line)
    ]
    settings = {
        "include": [str(PACKAGE)],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "venvPath": str(ROOT),
        "venv": pathlib.Path(sys.prefix).name,
        "extraPaths": [str(ROOT)],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "pyrightconfig.json"
        file.write_text(json.dumps(settings))
        checker = pathlib.Path(sys.executable).parent / "basedpyright"
        result = subprocess.run([checker, "--outputjson", "-p", file], capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    stale = [
        f"{pathlib.Path(each['file']).relative_to(ROOT)}:{each['range']['start']['line'] + 1}"
        for each in report["generalDiagnostics"]
        if each.get("rule") == "reportUnnecessaryTypeIgnoreComment"
    ]
    return [Measure("type suppressions", len(found), found), Measure("stale type suppressions", len(stale), stale)]


PARTS = {"step": measure_step, "static": measure_source, "types": measure_types}


def table(measures: Iterable[Measure]) -> str:
    """Markdown."""
    lines = ["| measure | now | at most |", "|---|---:|---:|"]
    lines += [f"| {each.name} | {each.value} | {TARGETS.get(each.name, '')} |" for each in measures]
    return "\n".join(lines)


def above(measures: Iterable[Measure]) -> list[str]:
    """What is above its target."""
    return [
        f"{each.name}: {each.value}, expected at most {TARGETS[each.name]}"
        for each in measures
        if each.value > TARGETS.get(each.name, each.value)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="print what was counted")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a measure is above its target")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="measure these parts only")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    measures = [measure for part in arguments.only or PARTS for measure in PARTS[part]()]
    if arguments.json:
        print(
            json.dumps([{**dataclasses.asdict(each), "target": TARGETS.get(each.name)} for each in measures], indent=2)
        )
    else:
        print(table(measures))
        for each in measures if arguments.list else ():
            print(f"\n{each.name}: {each.value}", *each.details, sep="\n  ")
    failed = above(measures)
    if arguments.check:
        print(*failed, sep="\n", file=sys.stderr)
    return int(arguments.check and bool(failed))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
