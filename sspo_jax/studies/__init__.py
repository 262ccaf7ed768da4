"""Studies: many runs that answer a question, with intervals over seeds; see docs/study.md.

study.py       what a study is: variants, settings, seeds, outcomes, comparisons
outcomes.py    what is measured of a run
matching.py    pilot runs that give every variant the same clip fraction
cells.py       the run directories of a study, and one of them run in this process
runner.py      all of them, some at a time, each on a core of its own
statistics.py  differences paired by seed, intervals, p-values
results.py     the numbers of a study; report.py: the same as Markdown, JSON and HTML
"""

from sspo_jax.studies.study import Comparison, Setting, Study, Variant

__all__ = ["Comparison", "Setting", "Study", "Variant"]
