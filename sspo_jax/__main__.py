"""`python -m sspo_jax` is the console script `sspo`."""

import sys

from sspo_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
