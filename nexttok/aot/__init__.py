"""Ahead-of-time compilation: an experiment's real programs, for the devices here or a TPU slice
that is described, not owned; what each costs, and how fast it can be at best."""

import dataclasses
import json
import logging
import os
import pathlib
import time

import jax

from nexttok import experiment
from nexttok.aot import programs, report, suggest
from nexttok.config import ConfigError, check
from nexttok.evals.results import write_text
from nexttok.experiment import Experiment
from nexttok.mesh import make_mesh, use_mesh

log = logging.getLogger("nexttok")


@dataclasses.dataclass(frozen=True)
class Request:
    """What `--mode=compile` is asked for.

    Attributes:
      topologies: TPU slices such as "v5p:2x2x1" (libtpu is needed); () for the devices here.
      slices: how many such slices are joined.
      programs: names of what is compiled, such as "generator" and "sampler"; () for everything.
      per_device: examples of a step for every device, in place of the config's batch; 0 for that.
      suggest: search meshes, ZeRO stages, rematerialization and micro-batches of the last stage.
    """

    topologies: tuple[str, ...] = ()
    slices: int = 1
    programs: tuple[str, ...] = ()
    per_device: int = 0
    suggest: bool = False

    def __post_init__(self):
        check(self.slices >= 1, "compile.slices", self.slices, "at least 1")
        check(self.per_device >= 0, "compile.per_device", self.per_device, "at least 0")


def run_compile(exp: Experiment, request: Request, workdir: str) -> list[dict]:
    """Compiles every stage's training step and the sampler; prints a table of each and writes
    `<workdir>/compile.json`, one entry per topology (or "here") and program.

    Raises:
      ConfigError: an unknown topology or program, or a mesh or batch that does not fit.
    """
    path = pathlib.Path(workdir) / "compile.json"
    found = []
    for topology in request.topologies or ("",):
        where = topology_devices(topology, request.slices) if topology else jax.devices()
        name = topology or "here"
        name += f" x {request.slices}" if request.slices > 1 else ""
        rows = _suggested(exp, where, name) if request.suggest else _rows(exp, request, where, name)
        found += rows
        known = json.loads(path.read_text()) if path.is_file() else {}
        old = [row for row in known.get(name, []) if row["program"] not in
               {row["program"] for row in rows}]  # fmt: skip
        os.makedirs(workdir, exist_ok=True)
        write_text(str(path), json.dumps(known | {name: old + rows}, indent=2) + "\n")
    log.info("written to %s", path)
    return found


def _rows(exp, request, devices, name):
    """Rows of the programs asked for, on one slice."""
    if request.per_device:
        exp = with_batch(exp, request.per_device * len(devices))
    mesh = make_mesh(exp.mesh, devices)
    rows = []
    for program in programs.of(exp, mesh, request.programs):
        rows.append(measure(program, mesh, name))
        log.info("%s", report.table(rows[-1]))
    return rows


def _suggested(exp, devices, name):
    """The best row of the search, printed with all others."""
    stage = list(exp.train)[-1]
    rows = suggest.search(exp, stage, devices, lambda p, mesh: measure(p, mesh, name))
    check(bool(rows), "mesh", dict(exp.config.mesh), f"one that divides {len(devices)} devices")
    log.info("of %d candidates the best: %s", len(rows), report.line(rows[0]))
    print(" ".join(rows[0]["flags"]))
    return rows[:1]


def with_batch(exp: Experiment, size: int) -> Experiment:
    """The experiment with another batch in every stage."""
    config = exp.config.copy_and_resolve_references()
    for stage in exp.train:
        config.train[stage].batch_size = size
    return experiment.resolve(config)


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


def topology_devices(topology: str, slices: int = 1):
    """Devices of TPU slices that are described, not owned.

    Raises:
      ConfigError: no such topology, or no libtpu.
    """
    from jax.experimental import topologies  # needs libtpu only when asked for

    # libtpu must neither ask the machine's metadata server who it is, nor lock out other programs
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", "v5p-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology = {topology!r}: expected a TPU topology such as v5p:2x2x1, and "
            f"libtpu, pip install '.[tpu]' ({str(error).splitlines()[0]})"
        ) from error
