"""The life of a run on disk and on the terminal: directory, checkpoints, best policy, display, metrics, summary."""
