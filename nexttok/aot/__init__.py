"""Ahead-of-time compilation: an experiment's real programs, for the devices here or a TPU slice
that is described, not owned; what each costs, and how fast it can be at best."""

import json
import logging
import os
import pathlib
import time

import jax

from nexttok.aot import programs, report
from nexttok.config import ConfigError
from nexttok.evals.results import write_text
from nexttok.experiment import Experiment
from nexttok.mesh import make_mesh, use_mesh
from nexttok.stages import check_batches

log = logging.getLogger("nexttok")


def run_compile(exp: Experiment, topology: str, workdir: str) -> list[dict]:
    """Compiles every stage's training step and the sampler; prints a table of each and writes
    `<workdir>/compile.json`, one entry per topology (or "here") and program.

    Args:
      exp: what to compile.
      topology: a TPU topology such as "v5p:2x2x1" (needs libtpu), or "" for the devices here.
      workdir: of the results.

    Raises:
      ConfigError: an unknown topology, or a mesh or batch that does not fit it.
    """
    devices = topology_devices(topology) if topology else None
    mesh = make_mesh(exp.mesh, devices)
    check_batches(exp, mesh)
    rows = []
    for program in programs.of(exp, mesh):
        rows.append(measure(program, mesh, topology))
        log.info("%s", report.table(rows[-1]))
    path = pathlib.Path(workdir) / "compile.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    os.makedirs(workdir, exist_ok=True)
    write_text(str(path), json.dumps(known | {topology or "here": rows}, indent=2) + "\n")
    log.info("written to %s", path)
    return rows


def measure(program: programs.Program, mesh, topology: str) -> dict:
    """Compiles one program and reports on it."""
    start = time.perf_counter()
    head = {
        "program": program.name, "topology": topology, "devices": mesh.size,
        "kind": mesh.devices.flat[0].device_kind, "batch": program.batch,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "parameters": program.parameters,
    }  # fmt: skip
    with use_mesh(mesh):
        lowered = program.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            excess = report.excess(str(error))
            if excess is None:
                raise
            return head | {"fits": False} | excess
    seconds = {"compile_seconds": round(time.perf_counter() - start, 1)}
    return head | report.of(compiled, mesh, program.model_flops()) | seconds


def topology_devices(topology: str):
    """Devices of a TPU slice that is described, not owned.

    Raises:
      ConfigError: no such topology, or no libtpu.
    """
    from jax.experimental import topologies  # needs libtpu only when asked for

    # libtpu asks the machine's metadata server who it is, and must not here
    for name, value in (("SKIP_MDS_QUERY", "1"), ("ACCELERATOR_TYPE", "v5p-8"),
                        ("WORKER_HOSTNAMES", "localhost")):  # fmt: skip
        os.environ.setdefault(f"TPU_{name}", value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology = {topology!r}: expected a TPU topology such as v5p:2x2x1, and "
            f"libtpu, pip install '.[tpu]' ({str(error).splitlines()[0]})"
        ) from error
