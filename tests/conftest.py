"""Set before JAX starts: eight fake CPU devices, strict promotion, and annotations checked at run time."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One cache of compiled programs for all workers and for the processes that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("sspo_jax", "beartype.beartype")

REAL_DATA_FOLDERS = ("train", "eval", "qwen2.5-tokenizer")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets, $SSPO_DATA; tests that need it are skipped where it is not set."""
    named = os.environ.get("SSPO_DATA")
    if not named:
        pytest.skip("needs real data: set SSPO_DATA to a folder as CONTRIBUTING.md describes it")
    missing = [name for name in REAL_DATA_FOLDERS if not (pathlib.Path(named) / name).is_dir()]
    if missing:
        pytest.skip(
            f"needs real data: SSPO_DATA={named} has no {', '.join(missing)}; CONTRIBUTING.md says what it needs"
        )
    return pathlib.Path(named)
