"""Released variants of the configs, resized: experiments, training steps and generations."""

import importlib
import math

import jax
import jax.numpy as jnp

from benchmarks.sizes import Size
from nexttok import train
from nexttok.experiment import Experiment, resolve
from nexttok.mesh import make_mesh
from nexttok.rng import stream
from nexttok.sampling import blank, sampler
from nexttok.stages import make_task

RELEASED = {
    "llamagen": "imagenet256_l",
    "var": "imagenet256_d16",
    "nbp": "imagenet256_base",
    "randar": "imagenet256_l",
    "arpg": "imagenet256_l",
    "maskgit": "imagenet256",
    "mar": "imagenet256_b",
    "givt": "imagenet256",
    "xar": "imagenet256_b",
}


def experiment(system: str, size: Size, unroll: int = 1) -> Experiment:
    """The released variant of a config in float32, resized."""
    config = importlib.import_module(f"configs.{system}").get_config(RELEASED[system])
    config.dtype = "float32"
    config.data.update(resolution=16 * size.side, num_classes=size.classes)
    backbone = config.generator.backbone
    two = backbone.decoder_depth > 0
    depth = size.depth // 2 if two else size.depth
    backbone.update(
        width=size.width, depth=depth, decoder_depth=depth if two else 0, head_dim=size.head_dim,
        mlp_hidden=size.gated_hidden if backbone.gated else 4 * size.width, remat=False,
        unroll=unroll, dropout=0.0 if system == "var" else size.dropout,
        dropout_on=tuple(place for place in backbone.dropout_on if place != "weights"),
    )  # fmt: skip
    config.train.generator.update(
        batch_size=size.batch, ema=0.0, learning_rate=1e-4, final_learning_rate=1e-4,
        schedule="constant", warmup=0,
    )  # fmt: skip
    if system in ("llamagen", "randar", "arpg", "nbp"):
        config.tokenizer.bottleneck.size = size.vocab
    elif system == "var":
        config.tokenizer.bottleneck.update(sides=size.scales, size=size.var_vocab)
        config.sample.top_k = min(config.sample.top_k, size.var_vocab // 2)
        backbone.drop_path = 0.1 * size.depth / 24
    elif system == "maskgit":
        config.tokenizer.bottleneck.size = size.maskgit_vocab
        config.generator.plan.steps = size.maskgit_steps
    elif system == "mar":
        backbone.prefix = size.mar_prefix
        config.generator.plan.steps = size.mar_steps
        config.generator.head.update(
            width=size.mar_head, depth=size.mar_layers, steps=size.mar_denoise
        )
    plan = config.generator.plan
    plan.steps = min(plan.steps, size.tokens)
    return resolve(config)


def parameters(exp: Experiment) -> dict:
    """Random {tokenizer, generator}; of the tokenizer only what a generation reads.

    Matrices that start at zero are drawn, so that classes and no class differ.
    """

    def drawn(path, x):
        key = stream(jax.random.key(1), jax.tree_util.keystr(path))
        return x if x.ndim < 2 or x.any() else 0.02 * jax.random.normal(key, x.shape)

    params = jax.jit(exp.generator.init)(jax.random.key(0))
    return {
        "tokenizer": pyramid(exp) if exp.generator.spec.scales else {},
        "generator": jax.tree_util.tree_map_with_path(drawn, params),
    }


def pyramid(exp: Experiment) -> dict:
    """Random codes and convolutions of a tokenizer with scales."""
    shapes = jax.eval_shape(exp.tokenizer.init, jax.random.key(0))["quantizer"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {"quantizer": jax.tree.unflatten(tree, drawn)}


def generation(exp: Experiment, size: Size):
    """The jitted sampler and its arguments."""
    label = jnp.arange(size.batch, dtype=jnp.int32) % size.classes
    return sampler(exp), (parameters(exp), label, jax.random.key(3), blank(exp, size.batch))


def training(exp: Experiment, size: Size):
    """The jitted step of a random batch, (state) -> (state, metrics), and the initial state."""
    spec, cfg, task = exp.generator.spec, exp.train["generator"], make_task(exp, "generator")
    rows, key = (size.batch, spec.length), jax.random.key(4)
    batch = {"label": jnp.arange(size.batch, dtype=jnp.int32) % size.classes}
    if spec.vocab:
        batch["ids"] = jax.random.randint(stream(key, "ids"), rows, 0, spec.vocab, jnp.int32)
    if spec.scales or not spec.vocab:
        batch["values"] = jax.random.normal(stream(key, "values"), (*rows, spec.channels))
    frozen, run = {"tokenizer": {}}, train.make_step(task, cfg)
    state = train.init_state(task, cfg, 0, train.abstract_state(task, cfg, make_mesh(exp.mesh)))
    return jax.jit(lambda state: run(state, frozen, batch), donate_argnums=0), state


def matmul_flops(fn, *args) -> int:
    """FLOPs of all matrix products of a call, from its jaxpr; loops count with their length.

    XLA's own analysis counts the body of a loop once. The body of a `while`, whose length nobody
    knows, is counted once here, too.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += times * sum(_flops(inner) for inner in jax.core.jaxprs_in_params(eqn.params))
    return total
