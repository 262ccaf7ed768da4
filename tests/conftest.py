"""Set before JAX starts: eight fake CPU devices, strict promotion, and annotations checked at run time.

Programs are compiled quickly rather than well, in processes that tests start too: almost all of a test is compiling.
$SSPO_TESTS_OPTIMIZED compiles them as users get them, as `make test-all` does.
"""

import os
import pathlib

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One cache of compiled programs for all workers and for the processes that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if not os.environ.get("SSPO_TESTS_OPTIMIZED"):
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    if jaxlib.version.__version_info__ < (0, 11):  # the flag that saves most; later versions end at it
        flags += ["--xla_cpu_use_fusion_emitters=false"]
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))  # the workers of pytest-xdist inherit them

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
