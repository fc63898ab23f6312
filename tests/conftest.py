"""Strict mode: warnings are errors (pyproject), promotions are refused, shapes are checked."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

# Most of the suite's time is compilation of what runs once: LLVM need not optimize it.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# and what one process of a test run has compiled, its other processes, which inherit this, need not
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nexttok-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # a thousand of 30 ms are 30 s

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # the hook finds its checker among the loaded modules

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("nexttok", f"{tests.typecheck.__name__}.check")

MAPS = pathlib.Path("/proc/self/maps")
MOST = 25_000  # of the 65,530 memory maps that Linux grants a process; a compiled program takes 4


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees the compiled programs of a long test run: beyond the last memory map XLA crashes."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST:
        jax.clear_caches()
        gc.collect()
