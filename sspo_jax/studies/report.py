"""A study as Markdown, JSON and HTML: the same tables, the last with curves and the differences seed by seed."""

import dataclasses
import datetime
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sspo_jax.files import replace_text, write_json
from sspo_jax.report.page import embedded, library, style

_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A table with what is to be said of it."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_reports(found: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """report.md, report.json and report.html in a folder.

    Args:
      found: from `results`.
    """
    files = [folder / f"report.{suffix}" for suffix in ("md", "json", "html")]
    replace_text(files[0], markdown(found))
    write_json(files[1], found)
    replace_text(files[2], html(found))
    return files


def markdown(found: Mapping[str, Any]) -> str:
    """The report for a reader of text."""
    lines = [f"# {found['title']}", "", found["question"], "", *(f"- {fact}" for fact in facts(found))]
    for section in sections(found):
        lines += ["", f"## {section.title}", "", section.text, ""]
        if section.rows:
            marks = ["---", *["---:"] * (len(section.header) - 1)]
            lines += [_line(section.header), _line(marks), *map(_line, section.rows)]
    return "\n".join([*lines, ""])


def html(found: Mapping[str, Any]) -> str:
    """The report as one page that needs no network."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((_FOLDER / "study.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=found["title"],
        question=found["question"],
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        facts=facts(found),
        sections=list(sections(found)),
        style=style(),
        library=library(),
        data=embedded({key: found[key] for key in ("curves", "comparisons", "settings")}),
    )


def facts(found: Mapping[str, Any]) -> list[str]:
    """What was run, and what was not."""
    runs, machine = found["runs"], found["machine"]
    failed = runs["failed"]
    lines = [
        f"{runs['done']} of {runs['planned']} runs are done, {len(failed)} failed; base experiment {found['base']}",
        f"{_count(len(found['seeds']), 'seed')}, {_count(len(found['warm_starts']), 'warm start')}; all variants of a "
        "seed share warm start, problems, order and sampling noise",
        "every interval is a 95 % interval over seeds unless it says that it is over problems",
    ]
    lines += [f"failed: {name}: {own['last_line']}" for name, own in list(failed.items())[:10]]
    if machine["commit"]:
        lines.append("; ".join(f"{name} {', '.join(own)}" for name, own in machine.items()))
    return lines


def sections(found: Mapping[str, Any]) -> Iterator[Section]:
    """The tables in the order in which they are read."""
    yield from _comparisons(found)
    yield from _by_setting(found)
    yield from _boundaries(found)
    yield from _related(found)
    yield from _outcomes(found)
    yield from _held_out(found)
    yield from _matched(found)
    yield from _divergence(found)
    yield Section(
        title="Outcomes",
        text="As they were defined before the runs.",
        header=("outcome", "meaning"),
        rows=tuple((own["name"], own["meaning"]) for own in found["outcomes"]),
    )
    yield Section(
        title="Variants",
        text="What differs from the base experiment.",
        header=("variant", "changes"),
        rows=tuple(
            (own["name"], "; ".join(f"{key} = {value}" for key, value in own["changes"].items()))
            for own in found["variants"]
        ),
    )


def _comparisons(found: Mapping[str, Any]) -> Iterator[Section]:
    if not found["comparisons"]:
        return
    sizes = list(found["comparisons"][0]["seeds_needed"])
    rows = []
    for own in found["comparisons"]:
        scale = 100.0 if own["is_share"] else 1.0
        rows.append(
            (
                own["label"],
                str(own["seeds"]),
                f"{_number(own['value'], scale)} [{_number(own['low'], scale)}, {_number(own['high'], scale)}]",
                _p(own["p_value"]),
                _p(own["p_holm"]),
                *(str(own["seeds_needed"][size] or "-") for size in sizes),
            )
        )
    yield Section(
        title="Comparisons",
        text="First minus second, paired by seed; shares in points of 100. p: sign-flip test, then Holm's correction "
        f"over all {len(rows)} comparisons. The last columns: seeds with which a difference of that size (in the unit "
        "of the outcome, before the factor of 100) is found four times in five.",
        header=("comparison", "seeds", "difference", "p", "p, Holm", *(f"seeds for {size}" for size in sizes)),
        rows=tuple(rows),
    )


def _by_setting(found: Mapping[str, Any]) -> Iterator[Section]:
    if found["by_setting"]:
        settings = [own["name"] for own in found["settings"]]
        cells = {
            (own["first"], own["second"], own["setting"]): f"{_number(own['value'], 100.0)} "
            f"[{_number(own['low'], 100.0)}, {_number(own['high'], 100.0)}]"
            for own in found["by_setting"]
        }
        yield Section(
            title="The same pairs, setting by setting",
            text="Last score, first minus second, paired by seed, points of 100. To be read beside the comparisons: "
            "these were not asked beforehand, and their intervals are not corrected for their number.",
            header=("pair", *settings),
            rows=tuple(
                (f"{first} - {second}", *(cells.get((first, second, setting), "-") for setting in settings))
                for first, second in dict.fromkeys((own["first"], own["second"]) for own in found["by_setting"])
            ),
        )


def _related(found: Mapping[str, Any]) -> Iterator[Section]:
    if found["related"]:
        settings = [own["name"] for own in found["settings"]]
        cells = {(own["outcome"], own["setting"]): _correlation(own) for own in found["related"]}
        yield Section(
            title="What goes with the last score",
            text="Spearman's rank correlation over the variants of a setting (their number in brackets), between the "
            "mean of an outcome and that of the last score; intervals by resampling seeds. It says which outcome "
            "orders the variants as the score does, not what causes it.",
            header=("outcome", *settings),
            rows=tuple(
                (name, *(cells.get((name, setting), "-") for setting in settings))
                for name in dict.fromkeys(own["outcome"] for own in found["related"])
            ),
        )


def _correlation(own: Mapping[str, Any]) -> str:
    ends = [f"{own[end]:+.2f}" if own[end] is not None else "-" for end in ("value", "low", "high")]
    return f"{ends[0]} [{ends[1]}, {ends[2]}] ({own['variants']})"


def _boundaries(found: Mapping[str, Any]) -> Iterator[Section]:
    if not found["boundaries"]:
        return
    rows = []
    for own in found["boundaries"]:
        bound = "at most " * own["is_below"] + "at least " * own["is_above"]
        shares = ", ".join(f"{rate:g}: {share:.0%}" for rate, share in zip(own["rates"], own["failed"], strict=True))
        interval = f"[{_rate(own['low'])}, {_rate(own['high'])}]"
        rows.append((own["task"], own["variant"], str(own["seeds"]), f"{bound}{_rate(own['value'])}", interval, shares))
    yield Section(
        title="Stability boundary",
        text="The learning rate at which half of the seeds end below the passing score. An interval that ends at the "
        "lowest or the highest rate of the grid may reach beyond it.",
        header=("task", "variant", "seeds", "boundary", "interval", "seeds that fail, by rate"),
        rows=tuple(rows),
    )


def _outcomes(found: Mapping[str, Any]) -> Iterator[Section]:
    shares = {own["name"]: own["is_share"] for own in found["outcomes"]}
    for setting in found["settings"]:
        own = [row for row in found["table"] if row["setting"] == setting["name"]]
        names = [name for name in shares if any(name in row["outcomes"] for row in own)]
        if not own:
            continue
        yield Section(
            title=f"Setting {setting['name']}",
            text=f"Task {setting['task']}, learning rate {setting['rate']:g}: means over seeds.",
            header=("variant", "runs", *names),
            rows=tuple(
                (
                    row["variant"],
                    str(row["runs"]),
                    *(_cell(row["outcomes"].get(name), 100.0 if shares[name] else 1.0) for name in names),
                )
                for row in own
            ),
        )


def _held_out(found: Mapping[str, Any]) -> Iterator[Section]:
    scores, published = found["held_out"]["scores"], found["published"]
    if scores:
        settings = {row["setting"] for row in scores}
        rows = []
        for setting in dict.fromkeys(row["setting"] for row in scores):
            for variant in dict.fromkeys(row["variant"] for row in scores if row["setting"] == setting):
                own = [row for row in scores if (row["setting"], row["variant"]) == (setting, variant)]
                own = [*own, *_average(own)]
                for row in own:
                    sampled = f"{100 * row['avg']:.2f} (avg@{row['samples']})" if "avg" in row else "-"
                    greedy = f"{100 * row['greedy']:.2f}" if "greedy" in row else "-"
                    paper = f"{published[variant]:.2f}" if row["set"] == "average" and variant in published else "-"
                    name = f"{setting}, {variant}" if len(settings) > 1 else variant
                    rows.append((name, row["set"], sampled, greedy, *([paper] if published else [])))
        yield Section(
            title="Last held-out scores",
            text="Percent, mean over seeds." + " Published: what the paper reports." * bool(published),
            header=("variant", "set", "sampled", "greedy", *(["published"] if published else [])),
            rows=tuple(rows),
        )
    differences = found["held_out"]["differences"]
    if differences:
        yield Section(
            title="Differences on the same problems",
            text="First minus second, points of 100, mean over the sets. These intervals are over problems and samples "
            "of the policies that were trained, not over seeds.",
            header=("comparison", "sets", "difference", "p"),
            rows=tuple(
                (
                    f"{own['setting']}: {own['first']} - {own['second']}, {own['kind']}",
                    ", ".join(own["sets"]),
                    f"{_number(own['value'], 100.0)} [{_number(own['low'], 100.0)}, {_number(own['high'], 100.0)}]",
                    _p(own["p_value"]),
                )
                for own in differences
            ),
        )


def _average(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The unweighted mean over the sets, where there are several."""
    if len(rows) < 2:
        return []
    kinds = [kind for kind in ("avg", "greedy") if all(kind in row for row in rows)]
    means = {kind: sum(row[kind] for row in rows) / len(rows) for kind in kinds}
    return [{"set": "average", "samples": rows[0]["samples"], **means}]


def _matched(found: Mapping[str, Any]) -> Iterator[Section]:
    if found["matched"]:
        yield Section(
            title="Matched clips",
            text="Factor of both bounds found by pilot runs of another seed; the tables of the settings say what the "
            "runs of the study then came to.",
            header=("task", "variant", "factor", "matched", "in the nearest pilot", "wanted", "pilots"),
            rows=tuple(
                (
                    own["task"],
                    own["variant"],
                    f"{own['factor']:.4g}",
                    own["outcome"],
                    f"{own['reached']:.2%}" + ("" if own["is_near"] else " (not near)"),
                    f"{own['wanted']:.2%}",
                    str(own["pilots"]),
                )
                for own in found["matched"]
            ),
        )


def _divergence(found: Mapping[str, Any]) -> Iterator[Section]:
    if found["divergence"]:
        yield Section(
            title="Where pairs part",
            text="Until there both variants of a seed sampled the same: step, response and token of the first "
            "difference.",
            header=("setting", "seed", "pair", "step", "response", "token"),
            rows=tuple(
                (
                    own["setting"],
                    str(own["seed"]),
                    f"{own['first']}, {own['second']}",
                    *(str(own.get(key, "never")) for key in ("step", "response", "token")),
                )
                for own in found["divergence"]
            ),
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(interval: Mapping[str, Any] | None, scale: float) -> str:
    if interval is None:
        return "-"
    if interval["low"] is None:
        return f"{_digits(interval['value'], scale)}"
    ends = ", ".join(_digits(interval[end], scale) for end in ("low", "high"))
    return f"{_digits(interval['value'], scale)} [{ends}]"


def _digits(value: float, scale: float) -> str:
    return f"{scale * value:.1f}" if scale > 1 else f"{value:.3g}"


def _number(value: float | None, scale: float) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    return f"{scale * value:+.2f}" if scale > 1 else f"{value:+.3g}"


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{value:.2g}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
