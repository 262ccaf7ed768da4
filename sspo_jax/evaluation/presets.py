"""Protocols by name, and what is special about each set.

A score means something only together with how it was sampled; the two presets are never put into one table.
"""

import dataclasses

from sspo_jax.data.problems import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How responses are sampled for an evaluation."""

    name: str
    """What reports call it."""
    temperature: float
    """Temperature of the softmax; 0 is greedy."""
    top_p: float
    """Nucleus mass; 1 is off."""
    max_new_tokens: int = 3_000
    """Longest response, in tokens."""
    samples: int | None = None
    """Responses per problem; None: as the set says (`SetFacts.samples`)."""

    @property
    def is_greedy(self) -> bool:
        """Whether responses are deterministic."""
        return self.temperature == 0.0


PAPER_GREEDY = Preset(name="paper-greedy", temperature=0.0, top_p=1.0, samples=1)
AVERAGE_AT_K = Preset(name="avg@k", temperature=0.6, top_p=0.95)
PRESETS = (PAPER_GREEDY, AVERAGE_AT_K)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What an evaluation must know about a set besides its problems."""

    name: str
    """As in `--data` and in the name of its file."""
    sources: tuple[str, ...] = ()
    """What else data files call it in the field `source` of its problems."""
    title: str
    """As in tables."""
    size: int | None = None
    """Problems of the whole set; another number in a report is marked."""
    samples: int = 8
    """Responses per problem under avg@k: more where problems are few."""
    relative_tolerance: float | None = None
    """Numbers within this share of the gold count as equal; None compares exactly."""
    note: str = ""
    """What a reader must know before comparing with numbers from elsewhere."""


SETS = (
    SetFacts(name="aime24", title="AIME 2024", size=30, samples=32),
    SetFacts(name="aime25", title="AIME 2025", size=30, samples=32),
    SetFacts(
        name="amc23",
        title="AMC 2023 (40)",
        size=40,
        samples=32,
        note="the 40 problems of Qwen2.5-Math's evaluation; the 83-problem AMC of other papers is another set",
    ),
    SetFacts(name="math500", title="MATH-500", size=500),
    SetFacts(
        name="minerva",
        sources=("minerva_math",),
        title="Minerva",
        size=272,
        # Golds are rounded numbers such as 4.5e33. This is the tolerance of Qwen2.5-Math's evaluation code, which the
        # published numbers come from.
        relative_tolerance=1e-4,
        note="numbers within a relative 1e-4 of the gold count as equal, as in Qwen2.5-Math's evaluation",
    ),
    SetFacts(
        name="olympiadbench",
        title="OlympiadBench",
        size=675,
        note="the 675 text-only English open-ended maths problems; several answers may come in any order",
    ),
    SetFacts(name="gsm8k", title="GSM8K", size=1319),
)
_BY_NAME = {facts.name: facts for facts in SETS}
_BY_SOURCE = {source: facts for facts in SETS for source in (facts.name, *facts.sources)}
PAPER_SETS = ("aime24", "amc23", "math500", "minerva", "olympiadbench")
"""The five sets of the paper's average."""


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
      ValueError: there is none; the known ones are listed.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    raise ValueError(f"preset {name!r}; expected {' or '.join(preset.name for preset in PRESETS)}")


def facts_of(name: str) -> SetFacts:
    """What is known of a set; nothing special for an unknown one."""
    return _BY_NAME.get(name) or SetFacts(name=name, title=name)


def facts_for(problem: Problem) -> SetFacts:
    """What is known of the set a problem belongs to: by the name of its set, else by the source that the data states.

    So a problem of Minerva is one of Minerva also in a mixture, behind a filter, or in a file of another name.
    """
    known = _BY_NAME.get(problem.set) or _BY_SOURCE.get(problem.source)
    return known or SetFacts(name=problem.set, title=problem.set)
