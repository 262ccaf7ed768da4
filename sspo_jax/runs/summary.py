"""The plan printed before a run and the summary after it."""

import dataclasses
import pathlib
import resource
from typing import Any

import jax
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sspo_jax.files import write_json
from sspo_jax.runs.display import Display
from sspo_jax.runs.next_commands import next_commands


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to; `summary.json` holds it.

    The intervals of its scores are over problems and samples of this one run: another seed may differ by more.
    """

    experiment: str
    steps: int  # done
    is_complete: bool  # false where the run was asked to stop before its end
    before: dict[str, dict[str, Any]]  # set -> scores of the model that reinforcement learning started from
    after: dict[str, dict[str, Any]]
    best: dict[str, Any] | None  # `best.Best`: step, metric and score of the best evaluation, whose policy is kept
    metrics: dict[str, float]  # of the last step
    seconds: dict[str, float]  # per stage
    rates: dict[str, float]  # tokens and updates per second, medians over steps
    programs: int  # compiled
    compile_seconds: float
    peak_memory_bytes: int  # of this process, or of the fullest accelerator
    examples: list[dict[str, Any]]  # a few responses before and after
    shortened: tuple[str, ...] = ()  # in which options the run is smaller than its experiment

    def write(self, file: pathlib.Path) -> None:
        """As JSON."""
        write_json(file, dataclasses.asdict(self))


def peak_memory_bytes() -> int:
    """The most memory used so far: of the fullest accelerator where that is known, else of this process."""
    on_device = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(on_device) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show_summary(display: Display, summary: Summary, path: pathlib.Path) -> None:
    """Scores before and after, times, and a few responses of both."""
    table = Table(
        title=f"{summary.experiment}: {summary.steps} steps{_less(summary.shortened)}",
        title_justify="left",
        caption="95 % intervals over problems and samples, not over seeds: other seeds may differ by more (sspo study)",
        caption_justify="left",
    )
    table.add_column("set")
    table.add_column("score")
    table.add_column("before RL", justify="right")
    table.add_column("after", justify="right")
    for name, after in summary.after.items():
        for score in ("greedy", "avg"):
            if score in after:
                before = summary.before.get(name, {}).get(score)
                table.add_row(
                    name,
                    "greedy" if score == "greedy" else f"avg@{after['samples']}",
                    _percent(before) if before else "-",
                    _percent(after[score]),
                )
        before_length = summary.before.get(name, {}).get("length_mean")
        table.add_row(
            name,
            "mean response tokens",
            f"{before_length:.1f}" if before_length is not None else "-",
            f"{after['length_mean']:.1f}",
        )
    if summary.after:
        display.console.print(table)
    for example in summary.examples:
        body = Text()
        body.append(example["problem"] + "\n", style="dim")
        for when in ("before", "after"):
            body.append(f"\n{when} ({example[when]['status']}): ", style="bold")
            body.append(example[when]["response"])
        panel = Panel(body, title=f"gold {example['gold']}", title_align="left", width=min(100, display.console.width))
        display.console.print(panel)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.seconds.items())
    display.table(
        "this run",
        [
            ("stages", stages),
            ("sampler", f"{summary.rates.get('rollout_tokens_per_second', 0):,.0f} tokens/s"),
            ("update", f"{summary.rates.get('update_seconds', 0):.2f} s"),
            ("compiled", f"{summary.programs} programs in {summary.compile_seconds:.0f} s"),
            ("peak memory", f"{summary.peak_memory_bytes / 2**30:.2f} GiB"),
            *([("shortened", ", ".join(summary.shortened))] if summary.shortened else []),
            ("best policy", _best(summary.best)),
            ("written to", str(path)),
        ],
    )
    following = next_commands(f"report {path} --open", f"inspect {path}", f"export {path} DIRECTORY")
    display.console.print(following, soft_wrap=True, highlight=False, markup=False)


def _less(shortened: tuple[str, ...]) -> str:
    """For the title of the scores: they are not those of the experiment."""
    return f" (SHORTENED: {', '.join(shortened)})" if shortened else ""


def _best(best: dict[str, Any] | None) -> str:
    if best is None:
        return "none kept"
    return f"of step {best['step']}, {best['metric']} {100 * best['score']:.1f} % on average over the held-out sets"


def _percent(score: dict[str, float]) -> str:
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
