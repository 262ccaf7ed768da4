"""`sspo inspect RUN`: what a run directory holds and how the run went."""

import dataclasses
import pathlib
from collections.abc import Sequence

import tyro

from sspo_jax.files import read_json_lines, step_files
from sspo_jax.ranges import Whole

_SHOWN = (
    "reward/mean",
    "ratio/clip_fraction",
    "counterfactual/grpo_clip_fraction",
    "counterfactual/gspo_clip_fraction",
    "counterfactual/sspo_clip_fraction",
    "policy/entropy",
    "policy/kl_old",
    "response/length_mean",
    "response/truncated_fraction",
    "optim/grad_norm",
    "sampler/logprob_gap_max",
    "throughput/rollout_tokens_per_second",
)
_BARS = "▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Prints the state of a run, its metrics over time, and sampled responses of a step."""

    run: tyro.conf.Positional[str]
    """Run directory."""
    metrics: tuple[str, ...] = ()
    """Metrics to show, by the start of their names; none: the usual ones."""
    step: Whole | None = None
    """Also print responses of this step."""
    responses: Whole = 4
    """Responses to print."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo inspect`."""
    from sspo_jax.commands.options import parse

    show(parse(InspectConfig, arguments, prog="sspo inspect"))
    return 0


def show(config: InspectConfig) -> None:
    """Prints the run.

    Raises:
      FileNotFoundError: no run there, or no rollout of that step.
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
    names = [name for row in rows for name in row if name != "step"]
    wanted = config.metrics or (*_SHOWN, "eval/")
    lines = []
    for name in dict.fromkeys(names):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and name.startswith(wanted):
            lines.append((name, f"{sparkline(values)}  {values[0]:.4g} -> {values[-1]:.4g}"))
    display.table("first to last step", sorted(lines))
    if config.step is not None:
        file = step_files(path / "rollouts", ".jsonl").get(config.step)
        if file is None:
            raise FileNotFoundError(f"no rollout of step {config.step} in {path}, the run is at step {last}")
        samples = [row for _, row in read_json_lines(file)]
        Display(quiet=False).samples(config.step, samples[: config.responses])


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
