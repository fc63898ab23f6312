"""Seconds to compile a whole generation of every system, at the size of benchmarks/sizes.py.

    python -m benchmarks.compile_time [system ...]

Guided where the release is, of the batch and (as far as the table of sizes says nothing else) of
the steps of the released variant. Tracing and XLA are added up; nothing is run, and no cache is
read.
"""

import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from benchmarks import ours
from benchmarks.sizes import FULL, Size


def compile_seconds(system: str, size: Size) -> tuple[float, float]:
    """Seconds to trace a generation, and to compile it."""
    exp = ours.experiment(system, size)
    sample, args = ours.generation(exp, size)
    start = time.perf_counter()
    lowered = sample.lower(*args)
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - traced


def main(systems: list[str]) -> None:
    """Prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{'system':10}{'trace s':>10}{'compile s':>11}{'total s':>9}")
    for system in systems or ours.RELEASED:
        trace, build = compile_seconds(system, FULL)
        row = f"{system:10}{trace:10.1f}{build:11.1f}{trace + build:9.1f}"
        print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
