"""`sspo data overlap TRAIN EVAL ...` and `sspo data audit FILE`."""

import sys
from collections.abc import Sequence

_USAGE = """usage: sspo data COMMAND ... (`sspo data COMMAND --help` for its options)

  overlap TRAIN EVAL [EVAL ...]   training problems that are, exactly or nearly, in evaluation sets
  audit FILE                      golds that cannot be read, are ambiguous, or do not match themselves"""


def main(arguments: Sequence[str]) -> int:
    """Runs one of them; exit code 2 for another word."""
    command, *rest = arguments or [""]
    if command == "overlap":
        from sspo_jax.data.overlap import main as overlap

        return overlap(rest)
    if command == "audit":
        from sspo_jax.data.audit import main as audit

        return audit(rest)
    is_help = command in ("-h", "--help")
    print(_USAGE, file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2
