"""Which mesh, ZeRO stage, rematerialization and micro-batch let a step fit, and run best."""

import itertools
import logging
from collections.abc import Iterator

from ml_collections import ConfigDict

from nexttok import experiment
from nexttok.aot import programs, report
from nexttok.config import ConfigError
from nexttok.experiment import Experiment
from nexttok.mesh import make_mesh
from nexttok.nn.stack import ZERO

log = logging.getLogger("nexttok")

MESHES = (  # data and fsdp share what tensor leaves
    dict(data=-1, fsdp=1, tensor=1),
    dict(data=1, fsdp=-1, tensor=1),
    dict(data=-1, fsdp=16, tensor=1),
    dict(data=1, fsdp=-1, tensor=4),
)
ACCUMULATE = (1, 2, 4, 8)  # tried in turn until something fits


def candidates(
    config: ConfigDict, stage: str, accumulate: int
) -> Iterator[tuple[list, ConfigDict]]:
    """(command-line flags, config) of every mesh, with and without rematerialization, and of both
    stages of ZeRO where parameters are divided."""
    remats, zeros = (list(keys_named(name, config[stage], stage)) for name in ("remat", "zero"))
    choices = itertools.product(
        MESHES, (False, True) if remats else (None,), reversed(ZERO) if zeros else (None,)
    )
    for mesh, remat, zero in choices:
        if zero == 2 and mesh["fsdp"] == 1:
            continue
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        changes |= {key: remat for key in remats} | {key: zero for key in zeros}
        changes[f"train.{stage}.accumulate"] = accumulate
        found = config.copy_and_resolve_references()
        found.mesh.update(sequence=1, expert=1)
        for path, value in changes.items():
            *parents, last = path.split(".")
            section = found
            for name in parents:
                section = section[name]
            section[last] = value
        yield [f"--config.{path}={value}" for path, value in changes.items()], found


def keys_named(last: str, section: ConfigDict, path: str) -> Iterator[str]:
    """Paths of the keys of this name in a section."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            yield from keys_named(last, value, f"{path}.{name}")
        elif name == last:
            yield f"{path}.{name}"


def search(exp: Experiment, stage: str, devices, measure) -> list[dict]:
    """Rows of `measure` for the candidates of a stage that are legal, the best first: what fits,
    then what could be fastest. More micro-batches are tried only where nothing fits.

    Args:
      exp: the experiment.
      stage: whose step is compiled.
      devices: of the slice, None for those here.
      measure: (program, mesh) -> row.
    """
    rows: list[dict] = []
    for accumulate in ACCUMULATE:
        for flags, config in candidates(exp.config, stage, accumulate):
            try:
                found = experiment.resolve(config)
                mesh = make_mesh(found.mesh, devices)
                program = programs.training(found, stage, mesh)
            except ConfigError as error:
                log.info("%s: %s", " ".join(flags), error)
                continue
            rows.append({"flags": flags} | measure(program, mesh))
            log.info("%s: %s", " ".join(flags), report.line(rows[-1]))
        if any(row.get("fits", True) for row in rows):
            break
    return sorted(rows, key=rank)


def rank(row: dict) -> tuple:
    """What fits first, then the faster at best; of what does not fit, the smaller."""
    fits = row.get("fits", True)
    return not fits, row.get("seconds", 0.0) if fits else row["bytes"]
