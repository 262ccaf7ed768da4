"""What a command says last: the commands that come next, as they can be typed here."""

import os
import pathlib
import shutil
import sys


def program() -> str:
    """How `sspo` is called in this terminal: by its name where that is found, else as the script beside this Python."""
    if shutil.which("sspo"):
        return "sspo"
    script = pathlib.Path(sys.executable).with_name("sspo")
    if not os.access(script, os.X_OK):
        return f"{sys.executable} -m sspo_jax"
    here = pathlib.Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def next_commands(*commands: str, before: str = "") -> str:
    """One line for one command, or a line for each, so that every one can be copied.

    Args:
      commands: without the name of the program.
      before: what stands before the name of the program, such as a variable and a space.
    """
    lines = [f"{before}{program()} {command}".rstrip() for command in commands]
    return f"next: {lines[0]}" if len(lines) == 1 else "\n  ".join(["next:", *lines])
