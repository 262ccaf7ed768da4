"""Runs to one HTML file."""

import datetime
import functools
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from sspo_jax.files import replace_text, to_json
from sspo_jax.report.clauses import BUDGET_BYTES, logged_steps
from sspo_jax.report.curves import charts, events, intervals, series_of
from sspo_jax.report.findings import differences, findings, warnings_of
from sspo_jax.report.problems import problem_page
from sspo_jax.report.reader import RunData, RunReader

logger = logging.getLogger(__name__)

_FOLDER = pathlib.Path(__file__).parent
_MOST_RUNS = 8  # colours


def write_report(readers: Sequence[RunReader], file: pathlib.Path) -> pathlib.Path:
    """Reads the runs and writes their report.

    Raises:
      FileNotFoundError, ValueError: a run is not there, or damaged; or there are more than the page has colours for.
      OSError: the file cannot be written.
    """
    if len(readers) > _MOST_RUNS:
        raise ValueError(f"{len(readers)} runs; expected at most {_MOST_RUNS} on one page")
    replace_text(file, html([reader.read() for reader in readers]))
    return file


class RunReport:
    """The report of a run that goes on: what goes wrong is a warning, never the end of the run.

    Args:
      path: of the run directory.
    """

    def __init__(self, path: pathlib.Path):
        self._reader = RunReader(path)

    def refresh(self) -> pathlib.Path | None:
        """Writes report.html; returns None where that failed."""
        try:
            return write_report([self._reader], self._reader.path / "report.html")
        except Exception as error:  # whatever it is: a picture of the run is not the run
            logger.warning("no report: %s: %s", type(error).__name__, error)
            return None


def html(runs: Sequence[RunData]) -> str:
    """The page."""
    names = _names(runs)
    shown = charts(runs)
    used = {line["name"] for chart in shown for line in chart["lines"]}
    data = {
        "charts": shown,
        "differences": [{**found, "run": names[found["run"]]} for found in differences(runs)],
        "runs": [_run(run, name, used, BUDGET_BYTES // len(runs)) for run, name in zip(runs, names, strict=True)],
    }
    return _template().render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        style=style(),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        library=library(),
        data=embedded(data),
    )


def _run(run: RunData, name: str, used: set[str], budget: int) -> dict[str, Any]:
    series = series_of(run)
    bounds = intervals(run)
    answers = findings(run)
    wanted = next((answer["place"] for answer in answers if "place" in answer), None)
    return {
        "name": name,
        "path": str(run.path),
        "about": _about(run),
        "findings": answers,
        "warnings": warnings_of(run),
        "scores": _scores(run),
        "steps": [row["step"] for row in run.rows],
        "times": [row.get("time/unix_seconds") for row in run.rows],
        "series": {key: values for key, values in series.items() if key in used},
        "intervals": {key: [[step, *ends] for step, ends in own.items()] for key, own in bounds.items() if key in used},
        "events": events(run),
        "tokens": logged_steps(run, budget, wanted),
        "problems": problem_page(run),
        "roofline": run.roofline,
    }


def _about(run: RunData) -> list[tuple[str, str]]:
    """What the run was."""
    record, config, model = run.record, run.record["config"], run.record["model"]
    rollout, update = config.get("rollout", {}), config.get("update", {})
    done = max((row["step"] for row in run.rows), default=0)
    state = "complete" if run.is_complete else f"step {done} of {config['steps']}"
    size = " x ".join(
        f"{model[key]} {word}" for key, word in (("num_layers", "layers"), ("hidden_size", "wide")) if key in model
    )
    loss = {key: value for key, value in config["loss"].items() if key in ("clip_low", "clip_high", "length_reference")}
    packages = record.get("packages", {})
    facts = [
        ("experiment", record["experiment"]),
        ("state", state),
        ("objective", f"{config['loss']['objective']} {', '.join(f'{key} {value}' for key, value in loss.items())}"),
        ("model", f"{config['model'].get('path') or 'random weights'}, {size}, {config['model']['dtype']}"),
        ("data", _name_of_data(config.get("data"))),
        (
            "a step",
            f"{rollout.get('prompts')} x {rollout.get('group_size')} responses, {run.updates_per_step} updates",
        ),
        ("learning rate", str(config.get("optimizer", {}).get("learning_rate"))),
        ("segmenter", str(config.get("segmenter", {}).get("rule"))),
        ("devices", record["devices"]),
        ("commit", str(record.get("commit"))[:12]),
        ("versions", f"sspo_jax {record.get('sspo_jax')}, jax {packages.get('jax')}, Python {record.get('python')}"),
    ]
    if update.get("epochs", 1) > 1:
        facts.append(("epochs", str(update["epochs"])))
    return facts


def _name_of_data(data: Any) -> str:
    if not isinstance(data, dict):
        return str(data)
    return ", ".join(f"{key} {value}" for key, value in data.items() if value not in (None, "", [], {}))[:160]


def _scores(run: RunData) -> list[dict[str, Any]]:
    """The held-out scores before and after, with their intervals."""
    steps = sorted(run.scores)
    if not steps:
        return []
    found = []
    for name, last in run.scores[steps[-1]].items():
        for kind, label in (("greedy", "greedy"), ("avg", f"mean of {last.get('samples')} samples")):
            if kind in last:
                first = run.scores[steps[0]].get(name, {}).get(kind) if len(steps) > 1 else None
                found.append(
                    {"set": name, "kind": label, "first": first, "last": last[kind], "steps": [steps[0], steps[-1]]}
                )
    return found


def _names(runs: Sequence[RunData]) -> list[str]:
    """Short and different ones."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def embedded(data: Any) -> str:
    """JSON for a script element, which a "<" in a text must not end."""
    return to_json(json.loads(to_json(data))).replace("<", "\\u003c")


@functools.cache
def style() -> str:
    """The style sheet of every page."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


@functools.cache
def library() -> str:
    """plotly.js."""
    return (_FOLDER / "plotly-basic.min.js").read_text(encoding="utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string((_FOLDER / "page.html.jinja").read_text(encoding="utf-8"))
