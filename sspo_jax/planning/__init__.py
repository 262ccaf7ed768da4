"""Does a run fit on devices that are not here: its own programs, compiled ahead of time."""
