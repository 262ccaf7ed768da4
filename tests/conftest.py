"""Set before JAX starts: eight fake CPU devices, strict promotion, and annotations checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

install_import_hook("sspo_jax", "beartype.beartype")

REAL_DATA_FOLDERS = ("train", "eval", "qwen2.5-tokenizer")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets, $SSPO_DATA; tests that need it are skipped where it is not set."""
    folder = pathlib.Path(os.environ.get("SSPO_DATA") or "(SSPO_DATA is not set)")
    missing = [name for name in REAL_DATA_FOLDERS if not (folder / name).is_dir()]
    if missing:
        pytest.skip(
            f"needs real data, and {folder} has no {', '.join(missing)}: set SSPO_DATA to the folder described in "
            "CONTRIBUTING.md"
        )
    return folder
