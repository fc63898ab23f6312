"""The programs of an experiment that run on accelerators, as shapes on a mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from nexttok import flops, sampling, token_files, train
from nexttok.config import check
from nexttok.evals import classifier
from nexttok.experiment import DRAFTER, Experiment
from nexttok.mesh import batch_sharding, replicated, use_mesh
from nexttok.rng import abstract_key
from nexttok.samplers.options import TRAINED
from nexttok.stages import FILES, abstract_params, check_batches, checkpoints, frozen_for, make_task


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function and the shapes it is compiled for.

    Attributes:
      name: "<stage> step" or "sampler".
      batch: examples of one run, of all devices.
      parameters: trained ones of a step, all that are read of the sampler.
      lower: () -> the lowered function, on the mesh that is in use.
      model_flops: () -> FLOPs that the model asks for in one run, of all devices: the gradient of
        a step without rematerialization and without its optimizer, the sampler as it is.
    """

    name: str
    batch: int
    parameters: int
    lower: Callable[[], Any]
    model_flops: Callable[[], float]


def of(exp: Experiment, mesh, names: tuple[str, ...] = ()) -> Iterator[Program]:
    """Every stage's training step, and the sampler where there is a generator.

    Args:
      exp, mesh: of what, and where.
      names: of stages, and "sampler", to leave out all others; () for everything.

    Raises:
      ConfigError: a name of nothing.
    """
    known = (*exp.train, *(("sampler",) if exp.generator is not None else ()))
    check(set(names) <= set(known), "compile.programs", names, ", ".join(known))
    for name in names or known:
        yield sampler(exp, mesh) if name == "sampler" else training(exp, name, mesh)


def training(exp: Experiment, stage: str, mesh) -> Program:
    """One stage's step with its real batch: tokens, where a generator trains from files of them."""
    check_batches(exp, mesh, (stage,))
    cfg, task = exp.train[stage], make_task(exp, stage)
    with use_mesh(mesh):
        state = train.abstract_state(task, cfg, mesh)
        frozen = frozen_for(exp, stage, _done(exp, stage, mesh))
    arrays = {"image": jax.ShapeDtypeStruct(exp.image_shape, jnp.float32)}
    if stage == "generator" and (exp.config.token_dataset or exp.config.cached_passes):
        arrays = token_files.fields(exp, frozen["tokenizer"])
    arrays = arrays | {"label": jax.ShapeDtypeStruct((), jnp.int32)}
    batch = {
        name: jax.ShapeDtypeStruct(
            (cfg.batch_size, *a.shape), a.dtype, sharding=batch_sharding(mesh)
        )
        for name, a in arrays.items()
    }

    def lower():
        return train.jitted_step(task, cfg, state).lower(state, frozen, batch)

    def asked():
        return task.flops(state.params, frozen, batch)

    return Program(f"{stage} step", cfg.batch_size, _size(state.params), lower, asked)


def sampler(exp: Experiment, mesh) -> Program:
    """Tokens of at least eval.batch_size samples, as many as divide over the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = -(-exp.eval.batch_size // ways) * ways
    with use_mesh(mesh):
        params = {s: abstract_params(exp, s, mesh) for s in ("tokenizer", "generator")}
        if exp.sampler.name in TRAINED:
            params["drafter"] = abstract_params(exp, DRAFTER, mesh)
        elif exp.draft is not None:
            params["drafter"] = abstract_params(exp.draft, "generator", mesh)
    made = jax.eval_shape(functools.partial(sampling.tables, exp), params["tokenizer"])
    params |= jax.tree.map(lambda x: x.update(sharding=replicated(mesh)), made)
    if exp.sampler.judged:
        judge = classifier.shapes(exp.image_shape, exp.data.num_classes)
        params["judge"] = jax.tree.map(lambda x: x.update(sharding=replicated(mesh)), judge)
    rows = batch_sharding(mesh)
    spec = exp.generator.spec
    kind = (jnp.int32, ()) if spec.vocab else (jnp.float32, (spec.channels,))
    given = jax.ShapeDtypeStruct((batch, spec.length, *kind[1]), kind[0], sharding=rows)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    key = abstract_key()
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    sample = sampling.sampler(exp)
    args = (params, label, key, given)
    size = _size(params["generator"])
    return Program(
        "sampler", batch, size, lambda: sample.lower(*args), lambda: flops.count(sample, *args)
    )


def _done(exp, stage, mesh):
    """Shapes of what the other stages and the files of losses hold."""
    done = {s: abstract_params(exp, s, mesh) for s in exp.train if s != stage}
    if exp.features is not None:
        done["features"] = jax.eval_shape(exp.features.init, abstract_key())
    return done | {name: FILES[name].shapes() for name in checkpoints(exp, stage)}


def _size(tree):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))
