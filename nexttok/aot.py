"""Ahead-of-time compilation of the real training steps, for the devices here or a TPU described."""

import json
import logging

import jax
import jax.numpy as jnp

from nexttok import train
from nexttok.config import ConfigError
from nexttok.experiment import Experiment
from nexttok.mesh import batch_sharding, make_mesh, use_mesh
from nexttok.stages import (
    FILES,
    abstract_params,
    check_batches,
    checkpoints,
    frozen_for,
    make_task,
)

log = logging.getLogger("nexttok")


def run_compile(exp: Experiment, topology: str) -> list[dict]:
    """Compiles every stage's real training step and prints memory and FLOPs per device.

    Args:
      exp: what to compile.
      topology: a TPU topology such as "v5p:2x2x1" (needs libtpu), or "" for the devices here.
    """
    devices = topology_devices(topology) if topology else None
    mesh = make_mesh(exp.mesh, devices)
    check_batches(exp, mesh)
    rows = []
    with use_mesh(mesh):
        for stage in exp.train:
            rows.append({"stage": stage} | compile_stage(exp, stage, mesh))
            log.info("%s", json.dumps(rows[-1]))
    return rows


def topology_devices(topology: str):
    """Devices of a TPU slice that is described, not owned."""
    from jax.experimental import topologies  # needs libtpu only when asked for

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology = {topology!r}: expected a TPU topology such as v5p:2x2x1, with the "
            f"libtpu package installed ({str(error).splitlines()[0]})"
        ) from error


def compile_stage(exp: Experiment, stage: str, mesh) -> dict:
    """Bytes and FLOPs per device of one stage's compiled step."""
    cfg, task = exp.train[stage], make_task(exp, stage)
    state = train.abstract_state(task, cfg, mesh)
    done = {s: abstract_params(exp, s, mesh) for s in exp.train if s != stage}
    if exp.features is not None:
        done["features"] = jax.eval_shape(exp.features.init, jax.random.key(0))
    done |= {name: FILES[name].shapes() for name in checkpoints(exp, stage)}
    frozen = frozen_for(exp, stage, done)
    rows = batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct(
            (cfg.batch_size, *exp.image_shape), jnp.float32, sharding=rows
        ),
        "label": jax.ShapeDtypeStruct((cfg.batch_size,), jnp.int32, sharding=rows),
    }
    step = jax.jit(train.make_step(task, cfg), donate_argnums=0)
    compiled = step.lower(state, frozen, batch).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "devices": mesh.size,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes": total + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "flops": float(cost["flops"]),
    }
