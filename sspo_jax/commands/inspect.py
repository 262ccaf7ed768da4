"""`sspo inspect RUN`: what a run directory holds and how the run went."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro
from rich.text import Text

from sspo_jax.files import step_files
from sspo_jax.ranges import Whole
from sspo_jax.runs.metric_table import reading_order
from sspo_jax.runs.next_commands import next_commands
from sspo_jax.runs.records import read_rollout
from sspo_jax.runs.token_log import LoggedResponse, TokenLog, read_token_log

_SHOWN = (
    *("eval/", "reward/", "verify/correct_fraction", "response/", "ratio/clip_fraction"),
    *("ratio/clip_fraction_low", "ratio/clip_fraction_high", "ratio/max"),
    *("counterfactual/grpo_clip_fraction", "counterfactual/gspo_clip_fraction", "counterfactual/sspo_clip_fraction"),
    *("policy/", "sampler/logprob_gap_max", "subsentence/count_mean", "subsentence/length_mean", "optim/"),
    *("time/rollout_seconds", "time/update_seconds", "throughput/"),
)
_SIDE_STYLES = {"": "", "low": "bold blue", "high": "bold red", "dual": "bold magenta"}
_MARKS = {"": "", "low": "▼", "high": "▲", "dual": "◆"}
_BARS = "▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Prints the state of a run, its metrics over time, sampled responses of a step, and one cut into its clauses."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    metrics: tuple[str, ...] = ()
    """Metrics to show, by the start of their names; none: the usual ones."""
    step: Whole | None = None
    """Also print responses of this step, and the clauses of one; None: clauses of the last step that has them."""
    responses: Whole = 4
    """Responses to print; 0: none, and no clauses."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo inspect`."""
    from sspo_jax.commands.options import parse

    show(parse(InspectConfig, arguments, prog="sspo inspect"))
    return 0


def show(config: InspectConfig) -> None:
    """Prints the run.

    Raises:
      FileNotFoundError: no run there, or no rollout of that step.
      ValueError: no metric begins as `metrics` says, or a file of the run is damaged.
    """
    from sspo_jax.runs.best import read_best
    from sspo_jax.runs.checkpoint import steps_in
    from sspo_jax.runs.display import Display
    from sspo_jax.runs.metrics_file import read_metrics
    from sspo_jax.runs.policy import read_record

    path = pathlib.Path(config.run)
    record = read_record(path)
    rows = read_metrics(path / "metrics.jsonl")
    best = read_best(path / "checkpoints")
    display = Display(quiet=True)
    total, lora = record["config"]["steps"], record["config"]["model"].get("lora")
    last = rows[-1]["step"] if rows else 0
    state = "complete" if (path / "summary.json").exists() else f"step {last} of {total}"
    display.table(
        str(path),
        [
            ("experiment", f"{record['experiment']}, {record['config']['loss']['objective']}"),
            *([("adapters", f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}")] if lora else []),
            ("state", state),
            ("checkpoints", ", ".join(map(str, steps_in(path / "checkpoints"))) or "none"),
            ("best", f"{best.metric} {100 * best.score:.1f} % after step {best.step}" if best else "none kept"),
            ("commit", str(record["commit"])),
            ("devices", record["devices"]),
        ],
    )
    curves = list(_curves(rows, config.metrics))
    if config.metrics and not curves:
        raise ValueError(
            f"--metrics is {' '.join(config.metrics)}, and no metric begins so, or all that do are 0 throughout; "
            "docs/metrics.md lists them"
        )
    display.table("first to last step: minimum, maximum", curves)
    if config.step is not None:
        file = step_files(path / "rollouts", ".jsonl").get(config.step)
        if file is None:
            raise FileNotFoundError(f"no rollout of step {config.step} in {path}, the run is at step {last}")
        Display(quiet=False).samples(config.step, read_rollout(file)[: config.responses])
    logs = step_files(path / "tokens", ".npz")
    step = config.step if config.step in logs else max(logs, default=None)
    if step is not None and config.responses:
        log = read_token_log(logs[step])
        display.console.print(clauses(log))
    display.console.print(next_commands(f"report {path} --open"), soft_wrap=True, highlight=False, markup=False)


def _curves(rows: Sequence[Mapping[str, Any]], starts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Name and picture of each series, in reading order, without those that are 0 throughout.

    Args:
      rows: of metrics.jsonl.
      starts: what the names begin with; none: the usual ones.
    """
    usual = tuple(name for name in _SHOWN if name.endswith("/"))
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if (name.startswith(starts) if starts else name in _SHOWN or name.startswith(usual))
    ]
    for name in reading_order(names):
        values = [row[name] for row in rows if row.get(name) is not None]
        if any(values):
            ends = f"{values[0]:.4g} -> {values[-1]:.4g}"
            yield name, f"{sparkline(values):<40}  {ends:<22}  [{min(values):.4g}, {max(values):.4g}]"


def clauses(log: TokenLog) -> Text:
    """The logged response of which most was clipped, its clauses in turn plain and underlined, the clipped ones marked.

    Args:
      log: of a step.
    """

    def share(response: LoggedResponse) -> float:
        return max(float((codes != 0).mean()) for codes in response.arrays["clipped"])

    if not log.responses:
        return Text(f"step {log.step}: no response is logged")
    response = max(log.responses, key=share)
    epoch = max(range(len(response.updates)), key=lambda number: int((response.arrays["clipped"][number] != 0).sum()))
    about, parts = response.about, response.subsentences(epoch)
    text = Text(
        f"\nstep {log.step}, {about['id']} sample {about['sample']}, {about['status']}, reward {about['reward']:g}, "
        f"advantage {response.advantage:+.2f}, update {response.updates[epoch]}\n",
        style="dim",
    )
    for number, part in enumerate(parts):
        style = f"{_SIDE_STYLES[part.clipped]}{' underline' if number % 2 else ''}".strip()
        text.append(part.text, style=style or "none")
        text.append(_MARKS[part.clipped], style="bold")
    text.append("\n\n  k  tokens  log s_k    H_k    low   high\n", style="dim")
    for number, part in enumerate(parts, 1):
        verdict = f"clipped {part.clipped} {_MARKS[part.clipped]}; GSPO {'too' if part.others['gspo'] else 'keeps it'}"
        text.append(
            f"{number:>3}  {part.tokens:>6}  {part.log_ratio:+.4f}  {part.entropy:.3f}  {part.low:.3f}  {part.high:.3f}"
            f"  {verdict if part.clipped else ''}\n"
        )
    return text


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as a row of bars, averaged down to `width`.

    >>> sparkline([0.0, 1.0, 2.0, 3.0])
    '▁▃▆█'
    """
    size = max(1, -(-len(values) // width))
    means = [
        sum(values[first : first + size]) / len(values[first : first + size]) for first in range(0, len(values), size)
    ]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
