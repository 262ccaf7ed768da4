"""Experiments: one file per run worth naming. `config()` returns its TrainConfig; `sspo train NAME` runs it.

A variant imports the experiment it differs from with `from . import NAME`.
"""
