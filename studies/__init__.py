"""Studies: one file per question. `study()` returns its Study; `sspo study NAME` runs it.

A variant imports the study it differs from with `from . import NAME`.
"""
