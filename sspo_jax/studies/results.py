"""The numbers of a study, from the run directories that are there: one JSON document."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.evaluation.intervals import paired_average_difference
from sspo_jax.files import read_json_lines, step_files
from sspo_jax.report.reader import read_held_out
from sspo_jax.studies.cells import StudyFolder
from sspo_jax.studies.outcomes import FINAL, CellRun
from sspo_jax.studies.statistics import (
    PairedDifference,
    holm,
    mean_interval,
    paired_difference,
    rank_correlation,
    seeds_needed,
    stability_boundary,
)
from sspo_jax.studies.study import Cell, Comparison, Study

Values = Mapping[tuple[str, str, int], Mapping[str, float | None]]
"""(setting, variant, seed) to the outcomes by name."""


def results(folder: StudyFolder) -> dict[str, Any]:
    """Everything that a report shows; not-a-number is None."""
    study = folder.study
    runs = {(cell.setting.name, cell.variant.name, cell.seed): run for cell, run in folder.runs()}
    values: Values = {key: {own.name: own.measure(run) for own in study.outcomes} for key, run in runs.items()}
    cells = list(study.cells())
    return _plain(
        {
            "name": folder.name,
            "title": study.title,
            "question": study.question,
            "base": study.base,
            "machine": _machine(folder, runs),
            "runs": {"planned": len(cells), "done": len(runs), "failed": folder.failures()},
            "seeds": list(study.seeds),
            "warm_starts": list(study.warm_starts),
            "outcomes": [
                {"name": own.name, "meaning": own.meaning, "is_share": own.is_share} for own in study.outcomes
            ],
            "variants": [_variant(folder, own.name) for own in study.variants],
            "settings": [{"name": own.name, "task": own.task, "rate": _rate(folder, own)} for own in study.settings],
            "matched": [vars(match) for match in folder.matches()],
            "table": _table(study, values),
            "comparisons": _comparisons(study, values),
            "by_setting": _by_setting(study, values),
            "related": _related(study, values),
            "boundaries": _boundaries(folder, runs),
            "held_out": _held_out(study, runs),
            "published": dict(study.published),
            "curves": _curves(study, runs),
            "divergence": _divergence(folder, runs),
            "cells": [
                {"setting": key[0], "variant": key[1], "seed": key[2], **own} for key, own in sorted(values.items())
            ],
        }
    )


def _machine(folder: StudyFolder, runs: Mapping[Any, CellRun]) -> dict[str, list[str]]:
    """What the runs say they were made with; more than one of anything is worth knowing."""
    from sspo_jax.runs.policy import read_record

    found: dict[str, dict[str, None]] = {"commit": {}, "devices": {}, "jax": {}, "sspo_jax": {}}
    for run in runs.values():
        record = read_record(run.path)
        for name in ("commit", "devices", "sspo_jax"):
            found[name][str(record.get(name))] = None
        found["jax"][str(record.get("packages", {}).get("jax"))] = None
    return {name: list(own) for name, own in found.items()}


def _variant(folder: StudyFolder, name: str) -> dict[str, Any]:
    variant = next(own for own in folder.study.variants if own.name == name)
    changes = {key: _brief(value) for key, value in variant.changes.items()}
    return {"name": name, "changes": changes, "match_clip": variant.match_clip, "match_mass": variant.match_mass}


def _brief(value: Any) -> str:
    """A value in a line: of a record, the fields that are not at their defaults."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    plain = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(value)
    }
    told = ", ".join(f"{name}={_brief(inner)}" for name, inner in own.items() if inner != plain.get(name))
    return f"{type(value).__name__}({told})"


def _rate(folder: StudyFolder, setting: Any) -> float:
    cell = Cell(setting=setting, variant=folder.study.variants[0], seed=folder.study.seeds[0])
    return cell.config(folder.study, folder.load).optimizer.learning_rate


def _table(study: Study, values: Values) -> list[dict[str, Any]]:
    """Mean of every outcome with its interval over seeds, by setting and variant."""
    rows = []
    for setting in study.settings:
        for variant in study.variants:
            own = [found for (where, who, _), found in values.items() if (where, who) == (setting.name, variant.name)]
            outcomes = {}
            for outcome in study.outcomes:
                known = [found[outcome.name] for found in own if found[outcome.name] is not None]
                if known:
                    outcomes[outcome.name] = vars(mean_interval([float(value) for value in known if value is not None]))
            if own:
                rows.append({"setting": setting.name, "variant": variant.name, "runs": len(own), "outcomes": outcomes})
    return rows


def _comparisons(study: Study, values: Values) -> list[dict[str, Any]]:
    """Each with its interval over seeds, and p-values that hold for all of them together."""
    found: list[tuple[Comparison, PairedDifference]] = []
    for comparison in study.comparisons:
        pairs = paired_values(study, comparison, values)
        if pairs:
            found.append((comparison, paired_difference([one for one, _ in pairs], [two for _, two in pairs])))
    adjusted = holm([difference.p_value for _, difference in found])
    shares = {own.name: own.is_share for own in study.outcomes}
    return [
        {
            "label": comparison.label,
            "first": comparison.first,
            "second": comparison.second,
            "outcome": comparison.outcome,
            "is_share": shares[comparison.outcome],
            **vars(difference),
            "p_holm": p,
            "seeds_needed": {
                str(size): seeds_needed(difference.deviation, size) for size in study.differences_of_interest
            },
        }
        for (comparison, difference), p in zip(found, adjusted, strict=True)
    ]


def _by_setting(study: Study, values: Values) -> list[dict[str, Any]]:
    """The last score of every pair that is compared, in each setting; no p-value, since none of these was asked for."""
    if len(study.settings) < 2:
        return []
    found = []
    for first, second in dict.fromkeys((own.first, own.second) for own in study.comparisons):
        for setting in study.settings:
            one = Comparison(first=first, second=second, outcome=FINAL.name, settings=(setting.name,))
            pairs = paired_values(study, one, values)
            if pairs:
                interval = mean_interval([first - second for first, second in pairs])
                found.append({"setting": setting.name, "first": first, "second": second, **vars(interval)})
    return found


def _related(study: Study, values: Values) -> list[dict[str, Any]]:
    """Rank correlation of outcomes with the last score over the variants of a setting, seeds that have all of them."""
    found = []
    for setting in study.settings:
        for name in study.related:
            variants = [
                own.name for own in study.variants if any(key[:2] == (setting.name, own.name) for key in values)
            ]
            rows = [[values.get((setting.name, variant, seed), {}) for variant in variants] for seed in study.seeds]
            whole = [row for row in rows if all(own.get(key) is not None for own in row for key in (name, FINAL.name))]
            if len(variants) < 3 or not whole:
                continue
            sides = [np.array([[own[key] for own in row] for row in whole], float).T for key in (name, FINAL.name)]
            interval = vars(rank_correlation(*sides))
            found.append({"setting": setting.name, "outcome": name, "variants": len(variants), **interval})
    return found


def paired_values(study: Study, comparison: Comparison, values: Values) -> list[tuple[float, float]]:
    """(first, second) of each seed: means over the settings of the comparison.

    A seed counts where both variants are done, with a value, in all of these settings.
    """
    settings = [
        setting
        for setting in study.settings
        if (comparison.task is None or setting.task == comparison.task)
        and (comparison.settings is None or setting.name in comparison.settings)
    ]
    pairs = []
    for number, seed in enumerate(study.seeds):
        due = [setting.name for setting in settings if setting.seeds is None or number < setting.seeds]
        if len(due) < len(settings):  # a mean over fewer settings would be of another thing
            continue
        sides = [
            [values.get((setting, who, seed), {}).get(comparison.outcome) for setting in due]
            for who in (comparison.first, comparison.second)
        ]
        if all(value is not None for side in sides for value in side):
            first, second = (float(np.mean([value for value in side if value is not None])) for side in sides)
            pairs.append((first, second))
    return pairs


def _boundaries(folder: StudyFolder, runs: Mapping[tuple[str, str, int], CellRun]) -> list[dict[str, Any]]:
    """The learning rate at which half of the seeds fail, by task and variant."""
    study, found = folder.study, []
    for task, passing in study.passing_score.items():
        settings = sorted(
            (setting for setting in study.settings if setting.task == task), key=lambda own: _rate(folder, own)
        )
        rates = [_rate(folder, setting) for setting in settings]
        if len(set(rates)) < 2 or len(set(rates)) < len(rates):
            continue
        for variant in study.variants:
            failed = np.full((len(study.seeds), len(rates)), math.nan)
            for place, seed in enumerate(study.seeds):
                for column, setting in enumerate(settings):
                    run = runs.get((setting.name, variant.name, seed))
                    final = FINAL.measure(run) if run is not None else None
                    if final is not None:
                        failed[place, column] = final < passing
            failed = failed[~np.isnan(failed).all(axis=1)]
            if len(failed) and (~np.isnan(failed)).any(axis=0).all():
                shares = np.nanmean(failed, axis=0)
                boundary = vars(stability_boundary(failed, rates))
                found.append(
                    {"task": task, "variant": variant.name, "rates": rates, "failed": shares.tolist(), **boundary}
                )
    return found


def _held_out(study: Study, runs: Mapping[tuple[str, str, int], CellRun]) -> dict[str, Any]:
    """Last scores set by set, and differences of the comparisons on the same problems, seeds taken as more samples.

    The intervals are over problems, for one trained policy a seed: what a study of one seed can say.
    """
    rows, differences = [], []
    for setting in study.settings:
        verdicts: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        for variant in study.variants:
            own = [run for (where, who, _), run in sorted(runs.items()) if (where, who) == (setting.name, variant.name)]
            scores = [run.sets[max(run.sets)] for run in own if run.sets]
            for name in scores[0] if scores else ():
                kinds = [kind for kind in ("avg", "greedy") if all(kind in score[name] for score in scores)]
                means = {kind: float(np.mean([score[name][kind]["value"] for score in scores])) for kind in kinds}
                samples = scores[0][name].get("samples")
                rows.append(
                    {"setting": setting.name, "variant": variant.name, "set": name, "samples": samples, **means}
                )
            verdicts[variant.name] = _verdicts(own)
        pairs_compared = [
            (own.first, own.second) for own in study.comparisons_of(list(verdicts)) if own.outcome == FINAL.name
        ]
        for first, second in dict.fromkeys(pairs_compared):
            one, two = verdicts[first], verdicts[second]
            for kind in ("avg", "greedy"):
                pairs = {
                    name: (one[kind][name], two[kind][name])
                    for name in one.get(kind, {})
                    if name in two.get(kind, {}) and len(one[kind][name]) == len(two[kind][name])
                }
                if pairs:
                    entry = vars(paired_average_difference(pairs))
                    who = {"first": first, "second": second}
                    differences.append({"setting": setting.name, "kind": kind, "sets": list(pairs), **who, **entry})
    return {"scores": rows, "differences": differences}


def _verdicts(runs: Sequence[CellRun]) -> dict[str, dict[str, np.ndarray]]:
    """avg and greedy, by set: [problems, samples of all seeds]."""
    found: dict[str, dict[str, list[np.ndarray]]] = {"avg": {}, "greedy": {}}
    for run in runs:
        files = step_files(run.path / "evaluations", ".jsonl")
        if not files:
            continue
        for name, held in read_held_out(files[max(files)]).items():
            for kind, own in (("avg", held.sampled), ("greedy", held.greedy)):
                if own is not None:
                    found[kind].setdefault(name, []).append(own)
    return {kind: {name: np.concatenate(own, axis=1) for name, own in sets.items()} for kind, sets in found.items()}


def _curves(study: Study, runs: Mapping[tuple[str, str, int], CellRun]) -> list[dict[str, Any]]:
    """Trailing mean of the share of correct responses, by setting and variant, with intervals over seeds."""
    curves = []
    for setting in study.settings:
        for variant in study.variants:
            own = [run.curve() for (where, who, _), run in runs.items() if (where, who) == (setting.name, variant.name)]
            if not own:
                continue
            length = min(map(len, own))
            points = [mean_interval([float(curve[step]) for curve in own]) for step in range(length)]
            curves.append(
                {
                    "setting": setting.name,
                    "variant": variant.name,
                    "steps": list(range(1, length + 1)),
                    **{key: [getattr(point, key) for point in points] for key in ("value", "low", "high")},
                }
            )
    return curves


def _divergence(folder: StudyFolder, runs: Mapping[tuple[str, str, int], CellRun]) -> list[dict[str, Any]]:
    """Where the first pair of samples of two variants differs, which are the same before.

    Of the first seed that is done and whose samples were kept; a pair without such a seed is left out.
    """
    from sspo_jax.data.tokenizer import load_tokenizer

    study, found = folder.study, []
    pairs = dict.fromkeys((comparison.first, comparison.second) for comparison in study.comparisons)
    for first, second in pairs:
        for setting in study.settings:
            for seed in study.seeds:
                one, two = (runs.get((setting.name, who, seed)) for who in (first, second))
                if (
                    one is None
                    or two is None
                    or not all(step_files(run.path / "rollouts", ".jsonl") for run in (one, two))
                ):
                    continue
                config = next(
                    cell for cell in study.cells() if cell.setting is setting and cell.variant.name == first
                ).config(study, folder.load)
                tokenizer = load_tokenizer(config.model.tokenizer or config.model.path or "")
                place = first_divergence(one, two, lambda text, t=tokenizer: t.encode(text, add_special_tokens=False))
                found.append({"setting": setting.name, "seed": seed, "first": first, "second": second, **(place or {})})
                break
    return found


def first_divergence(one: CellRun, two: CellRun, encode: Any) -> dict[str, Any] | None:
    """Step, sample and token (from 1, of the texts encoded again) at which two runs first sampled differently.

    None where they never did, or kept no rollouts.
    """
    files = [step_files(run.path / "rollouts", ".jsonl") for run in (one, two)]
    for step in sorted(set(files[0]) & set(files[1])):
        rows = [[row for _, row in read_json_lines(own[step])] for own in files]
        for number, (left, right) in enumerate(zip(*rows, strict=False), 1):
            if left["response"] != right["response"]:
                tokens = [encode(row["response"]) for row in (left, right)]
                same = next(
                    (place for place, pair in enumerate(zip(*tokens, strict=False)) if pair[0] != pair[1]),
                    min(map(len, tokens)),
                )
                return {"step": step, "response": number, "token": same + 1}
    return None


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
