"""Stages of an experiment as trainables: what each trains, reads frozen, and how large it is."""

import functools
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from nexttok import experiment, flops
from nexttok.config import check
from nexttok.experiment import DRAFTER, Experiment
from nexttok.interop import dino, dinov2, lpips
from nexttok.mesh import param_shardings
from nexttok.rng import abstract_key, stream
from nexttok.tokens import Tokens
from nexttok.train import Task, loss_and_grad


def make_task(exp: Experiment, stage: str) -> Task:
    """The trainable of a stage; `frozen` holds what `frozen_for` returns."""
    asked = functools.partial(step_flops, exp, stage)
    if stage in ("latent", "tokenizer"):
        model = getattr(exp, stage)
        tokens = exp.tokenizer.spec.length if stage == "tokenizer" else 0
        return Task(
            stage, model.init, lambda p, f, b, k: model.loss({**p, **f}, b, k), tokens, asked
        )

    model = exp.drafter if stage == DRAFTER else exp.generator

    def loss(params, frozen, batch, key):
        if "ids" in batch or "values" in batch:
            tokens = Tokens(ids=batch.get("ids"), values=batch.get("values"))
        else:
            tokens = exp.tokenizer.encode(
                frozen["tokenizer"], batch["image"], stream(key, "posterior")
            )
        read = (params, frozen["generator"]) if stage == DRAFTER else (params,)
        return model.loss(*read, jax.lax.stop_gradient(tokens), batch["label"], key)

    return Task(stage, model.init, loss, exp.generator.spec.length, asked)


def step_flops(exp: Experiment, stage: str, params: Any, frozen: Any, batch: dict) -> float:
    """FLOPs of a stage's loss and gradient without rematerialization; arrays or shapes."""
    plain = make_task(experiment.resolve(experiment.without_remat(exp.config)), stage)
    batch = batch | {"step": jax.ShapeDtypeStruct((), jnp.int32)}

    def grad(params, frozen, batch, key):
        return loss_and_grad(plain, params, frozen, batch, key, 1)

    return flops.count(grad, params, frozen, batch, abstract_key())


FILES = {"perceptual": lpips, "judge": dino}  # how frozen parameters of losses are read


def checkpoints(exp: Experiment, stage: str) -> dict[str, str]:
    """Files of frozen parameters that a stage's loss reads, by the name of FILES."""
    model = {"latent": exp.latent, "tokenizer": exp.tokenizer}.get(stage)
    return getattr(model, "checkpoints", {})


def reads_features(exp: Experiment) -> bool:
    """Whether the tokenizer needs the feature provider after its training, too."""
    return getattr(exp.tokenizer, "reads_features", False)


def load_features(exp: Experiment) -> dict:
    """Parameters of the feature provider."""
    section = exp.config.features
    if section.name == "dinov2":
        return dinov2.load(section.checkpoint, section.preset)
    return exp.features.init(jax.random.key(0))


def frozen_for(exp: Experiment, stage: str, done: dict[str, Any]) -> dict:
    """Parameters that a stage reads and does not train: earlier stages', and loaded ones."""
    frozen = {}
    for name, path in checkpoints(exp, stage).items():
        frozen[name] = done.get(name) or FILES[name].load(path)
    if "latent" in done and stage != "latent":
        frozen["latent"] = done["latent"]
    if exp.features is not None and (stage == "tokenizer" or reads_features(exp)):
        frozen["features"] = done.get("features") or load_features(exp)
    if stage in ("generator", DRAFTER):
        read = {"generator": done["generator"]} if stage == DRAFTER else {}
        return {"tokenizer": {**done["tokenizer"], **frozen}, **read}
    return frozen


def abstract_params(exp: Experiment, stage: str, mesh=None) -> Any:
    """Shapes (and with a mesh, shardings) of a stage's parameters; nothing is computed."""
    shapes = jax.eval_shape(make_task(exp, stage).init, abstract_key())
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        shapes,
        param_shardings(mesh, shapes),
    )


def parameter_counts(exp: Experiment) -> dict[str, int]:
    """Parameters of every stage and of its parts, as {"stage/part": count}."""
    counts = {}
    for stage in exp.train:
        shapes = abstract_params(exp, stage)
        for part, tree in shapes.items():
            counts[f"{stage}/{part}"] = sum(math.prod(a.shape) for a in jax.tree.leaves(tree))
    return counts


def check_batches(exp: Experiment, mesh, stages: Collection[str] = ()) -> None:
    """Raises ConfigError unless the (micro-)batches of these stages, () for all, divide over the
    data and fsdp axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for stage in stages or exp.train:
        cfg = exp.train[stage]
        micro = cfg.batch_size // cfg.accumulate
        check(micro % ways == 0, f"train.{stage}.batch_size", cfg.batch_size,
              f"a multiple of accumulate x data x fsdp = {cfg.accumulate * ways}")  # fmt: skip
