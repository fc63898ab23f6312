"""Several processes as one: start-up, what they share, and what each does alone."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nexttok.config import check
from nexttok.mesh import MeshConfig, make_mesh, replicated, use_mesh

log = logging.getLogger("nexttok")


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the other processes of a run, before JAX touches any device.

    Explicitly, or where the surroundings tell: as a SLURM task among several, and on a Cloud TPU
    VM, whose metadata name the other hosts. Otherwise this process is alone.

    Args:
      coordinator: host:port of process 0; processes: how many; process: the number of this one.

    Raises:
      ConfigError: only some of the three, or a number out of range.
    """
    if coordinator or processes or process >= 0:
        check(":" in coordinator, "distributed.coordinator", coordinator, "host:port of process 0")
        check(processes >= 1, "distributed.processes", processes, "at least 1")
        allowed = f"0 .. {processes - 1}"
        check(0 <= process < processes, "distributed.process", process, allowed)
        jax.distributed.initialize(coordinator, processes, process)
    elif _among_slurm_tasks() or _on_tpu_vm():
        jax.distributed.initialize()
    if jax.process_count() > 1:
        log.info("process %d of %d, %d of %d devices", jax.process_index(), jax.process_count(),
                 jax.local_device_count(), jax.device_count())  # fmt: skip


def _among_slurm_tasks() -> bool:
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _on_tpu_vm() -> bool:
    devices = pathlib.Path("/dev")
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    return bool(chips) and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stopping(step: int, asked: bool) -> bool:
    """Whether to stop after this step, which every process must ask about: all say the same.

    One process is told by `asked`; of several, whichever got SIGTERM tells the others.
    """
    if jax.process_count() == 1:
        return asked
    return multihost_utils.reached_preemption_sync_point(step)


def on_this_host(tree: Any, mesh) -> Any:
    """The whole tree in this process's memory, where there are several; all must call this."""
    if jax.process_count() == 1:
        return tree
    gather = jax.jit(lambda x: x, out_shardings=replicated(mesh))
    return jax.tree.map(lambda x: np.asarray(gather(x).addressable_data(0)), tree)


def gather(array: np.ndarray) -> np.ndarray:
    """[processes, *shape]: the array of each, all of one shape; all must call this.

    Bytes travel, so that float64 stays itself.
    """
    if jax.process_count() == 1:
        return array[None]
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    found = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return found.view(array.dtype).reshape(jax.process_count(), *array.shape)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, of several processes each computes by itself, on its first device."""
    if jax.process_count() == 1:
        yield
    else:
        with use_mesh(make_mesh(MeshConfig(1, 1, 1, 1, 1), jax.local_devices()[:1])):
            yield
