"""One evaluation from its options to its directory: the sets, how they are sampled, and what is written.

A run is evaluated with its own sets, prompt, response length and dtype, each unless the options say otherwise.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal

from sspo_jax.data.problems import NamedSource, ProblemSource, iterate
from sspo_jax.data.prompts import load_template
from sspo_jax.evaluation.judging import Judge
from sspo_jax.evaluation.presets import Preset, facts_of, preset_named
from sspo_jax.evaluation.results import Evaluation, SampleFile, write_results
from sspo_jax.evaluation.scoring import SampleRow, SetScores
from sspo_jax.evaluation.subjects import GivenResponses, PolicySubject, is_run
from sspo_jax.ranges import Count, Positive, Seed, Whole, Workers, check

FIVE_SETS = "aime24,amc23,math500,minerva,olympiadbench"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of a model on problem sets, as a directory with results.json, samples.jsonl, report.md and report.html."""

    model: str | None = None
    """Hugging Face checkpoint (directory or name on the Hub), or the directory of a run."""
    step: Whole | Literal["best"] | None = None
    """Checkpoint of a run to score: its step, or `best` of the evaluations in training; not set: the newest."""
    data: str | None = None
    """Sets, comma-separated: names of files in the data folder, .jsonl paths, tfds:NAME, hf:NAME, arithmetic:held_out.
    `math500[:100]` takes the first 100; `math500=FILE.jsonl` says which set a source is. Not set: the held-out sets of
    the run, else aime24,amc23,math500,minerva,olympiadbench."""
    data_dir: str | None = None
    """Folder of the sets called by name; none: $SSPO_DATA, then data/."""
    preset: Literal["paper-greedy", "avg@k"] = "paper-greedy"
    """Protocol: one greedy response, or k responses at temperature 0.6, top-p 0.95 (32 for AIME and AMC, else 8)."""
    samples: Count | None = None
    """Responses per problem instead of the preset's."""
    max_new_tokens: Count | None = None
    """Longest response, in tokens; not set: as in the run, else the preset's 3,000."""
    prompt: str | None = None
    """Prompt template: chat, qwen-math, qwen-boxed, r1, none, or a Jinja file; not set: the run's, else qwen-math."""
    out: str | None = None
    """Where the results go; none: evaluations/<model>-<preset>. Finished samples in it are kept and continued."""
    seed: Seed = 0
    """Seed of the sampling and of the bootstrap."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the computation; not set: as in the run, else bfloat16."""
    tokenizer: str | None = None
    """Tokenizer, where it is not in the checkpoint; `tiny` is the shipped one."""
    problems_at_once: Count = 64
    """Problems sampled together and then written; part of what decides the samples."""
    slots: Count = 64
    """Responses decoded at the same time; more is faster until memory runs out, and changes no response."""
    workers: Workers | None = None
    """Processes of the checker; none: one per core."""
    timeout_seconds: Positive = 5.0
    """Limit of one check."""
    responses: str | None = None
    """Judge the responses of this file instead of sampling: JSON lines of id, response, and (where needed) set, sample,
    tokens, truncated."""
    compare: tuple[str, str] | None = None
    """Compare two evaluations (their directories) instead of making one."""


def evaluate(config: EvaluateConfig) -> tuple[Evaluation, pathlib.Path]:
    """Evaluates and writes the directory; returns the evaluation and the directory.

    Raises:
      ValueError, FileNotFoundError: before anything is sampled; states the value, what was expected and the fix.
    """
    from rich.console import Console
    from rich.progress import Progress

    from sspo_jax.evaluation.report import write_report

    check(config)
    if config.model is None and config.responses is None:
        raise ValueError("nothing to evaluate: give --model (a checkpoint or a run) or --responses (a file)")
    started = time.monotonic()
    record = _record_of(config.model)
    sources = _open_sets(config, record)
    config = _as_in_run(config, record)
    preset = None if config.responses is not None else _preset(config)
    if config.out is not None and os.path.exists(config.out) and not os.path.isdir(config.out):
        raise ValueError(f"--out is {config.out}, a file; expected a directory, which may be new")
    if config.prompt is not None:
        load_template(config.prompt)  # refused before anything is read or written
    subject = _subject(config, preset, sources)
    protocol = {
        **subject.protocol,
        **_protocol_of(preset),
        "seed": config.seed,
        "checker": _checker_version(),
        "timeout_seconds": config.timeout_seconds,
        "data": {name: source.digest for name, source in sources.items()},
    }
    directory = pathlib.Path(config.out or _default_out(config, protocol["preset"]))
    samples = SampleFile(directory, protocol)
    scores: list[SetScores] = []
    rows: list[SampleRow] = []
    with _verifier(config) as verifier, Progress(console=Console(stderr=True)) as bars:
        judge = Judge(verifier)
        for name, source in sources.items():
            bar = bars.add_task(facts_of(name).title, total=len(source))

            def written(block: list[SampleRow], bar: Any = bar) -> None:
                samples.append(block)
                bars.advance(bar, len({row.id for row in block}))

            set_scores, set_rows = subject.score(name, source, judge, samples.rows_of(name), written)
            bars.update(bar, completed=len(source), description=f"{facts_of(name).title} {set_scores.accuracy}")
            scores.append(set_scores)
            rows += set_rows
    samples.rewrite(rows)
    evaluation = Evaluation(
        protocol=protocol,
        about={
            **_versions(),
            "seconds": round(time.monotonic() - started, 1),
            "tokens": sum(max(row.tokens, 0) for row in rows),
        },
        sets=tuple(scores),
    )
    write_results(directory, evaluation)
    write_report(directory, evaluation, rows, {name: list(iterate(source)) for name, source in sources.items()})
    return evaluation, directory


def _record_of(model: str | None) -> dict[str, Any] | None:
    """The configuration of a run; None where the model is a checkpoint."""
    if model is None or not is_run(model):
        return None
    from sspo_jax.runs.policy import read_record

    return read_record(pathlib.Path(model))["config"]


def _as_in_run(config: EvaluateConfig, record: dict[str, Any] | None) -> EvaluateConfig:
    """The options, with those that are not given taken from the run."""
    if record is None:
        return config
    length = record["evaluation"].get("max_new_tokens") or record["rollout"]["max_new_tokens"]
    return dataclasses.replace(
        config,
        max_new_tokens=length if config.max_new_tokens is None else config.max_new_tokens,
        prompt=config.prompt or record["prompt"],
        dtype=config.dtype or record["model"]["dtype"],
    )


def _subject(
    config: EvaluateConfig, preset: Preset | None, sources: dict[str, ProblemSource]
) -> PolicySubject | GivenResponses:
    """Whose responses are scored; reads the config and tokenizer of a checkpoint, not yet its weights."""
    if config.responses is not None:
        if config.model is not None:
            raise ValueError("--model and --responses are both given: give one, to sample or to judge what was sampled")
        return GivenResponses(config.responses, sources, prompt=config.prompt, seed=config.seed)
    if config.model is None or preset is None:
        raise ValueError("nothing to evaluate: give --model (a checkpoint or a run) or --responses (a file)")
    return PolicySubject(
        config.model,
        preset,
        sources,
        step=config.step,
        prompt=config.prompt or "qwen-math",
        tokenizer=config.tokenizer,
        dtype=config.dtype or "bfloat16",
        seed=config.seed,
        problems_at_once=config.problems_at_once,
        slots=config.slots,
    )


def _preset(config: EvaluateConfig) -> Preset:
    """The preset, with what the options change in it said in its name: such numbers are another protocol."""
    preset = preset_named(config.preset)
    given = {key: getattr(config, key) for key in ("samples", "max_new_tokens") if getattr(config, key) is not None}
    changes = {key: value for key, value in given.items() if value != getattr(preset, key)}
    if not changes:
        return preset
    if preset.is_greedy and changes.get("samples", 1) > 1:
        raise ValueError("--samples above 1 with the greedy preset would repeat one response: use --preset avg@k")
    listed = ", ".join(f"{key}={value}" for key, value in changes.items())
    return dataclasses.replace(preset, name=f"{preset.name} ({listed})", **changes)


def _protocol_of(preset: Preset | None) -> dict[str, Any]:
    """What the preset says about the sampling; of given responses nothing is known."""
    names = ("temperature", "top_p", "max_new_tokens")
    if preset is None:
        return {"preset": "given responses", **dict.fromkeys(names)}
    return {"preset": preset.name, **{name: getattr(preset, name) for name in names}}


def _open_sets(config: EvaluateConfig, record: dict[str, Any] | None) -> dict[str, ProblemSource]:
    """The sets by name, each problem as one of its set."""
    sources: dict[str, ProblemSource] = {}
    for name, source in _sets_of_run(record, config) if config.data is None and record else _sets_of_options(config):
        if name in sources:
            raise ValueError(f"there are two sets called {name}: name one of them, as in --data other=FILE.jsonl")
        sources[name] = source
    return sources


def _sets_of_options(config: EvaluateConfig) -> Iterator[tuple[str, ProblemSource]]:
    from sspo_jax.data.sources import open_problems

    specs = [spec.strip() for spec in (FIVE_SETS if config.data is None else config.data).split(",") if spec.strip()]
    if not specs:
        raise ValueError("--data is empty; expected sets such as aime24,math500")
    for spec in specs:
        name, _, rest = spec.rpartition("=")
        source = open_problems(rest, data_dir=config.data_dir)
        yield (name, NamedSource(source, name)) if name else (source.name, source)


def _sets_of_run(record: dict[str, Any], config: EvaluateConfig) -> Iterator[tuple[str, ProblemSource]]:
    """The held-out sets of a run, as many problems of each as it evaluated; the five sets where it has none."""
    from sspo_jax.data.filters import SubsetSource
    from sspo_jax.data.sources import data_from_record
    from sspo_jax.data.tokenizer import load_tokenizer

    settings = record["evaluation"]
    if not settings["data"]:
        yield from _sets_of_options(config)
        return
    tokenizer = load_tokenizer(record["model"]["tokenizer"] or record["model"]["path"])
    for entry in settings["data"]:
        source = data_from_record(entry).open(tokenizer)
        count = settings.get("problems")
        if count is not None and count < len(source):
            source = SubsetSource(source, range(count))
        yield source.name, source


def _verifier(config: EvaluateConfig) -> Any:
    from sspo_jax.checker import Verifier

    return Verifier(workers=config.workers or os.cpu_count() or 1, timeout_seconds=config.timeout_seconds)


def _checker_version() -> int:
    from sspo_jax.checker.verdict import VERSION

    return VERSION


def _default_out(config: EvaluateConfig, preset_name: str) -> str:
    subject = pathlib.Path(config.model or str(config.responses)).name
    if config.step is not None:
        subject += f"-step-{config.step}"
    name = f"{subject}-{preset_name}".replace("@", "-at-")
    return os.path.join("evaluations", "".join(c if c.isalnum() or c in "-_." else "_" for c in name))


def _versions() -> dict[str, str]:
    import importlib.metadata
    import platform

    from sspo_jax import __version__

    packages = ("jax", "transformers", "tokenizers", "sympy", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"sspo_jax": __version__, "python": platform.python_version(), **found}
