"""Experiments: one file per run worth naming. `config()` returns its TrainConfig; `sspo train NAME` runs it."""
