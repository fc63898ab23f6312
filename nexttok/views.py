"""Trained generators as samplers see them (causal.py)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.causal import Causal, Masked, ancestry
from nexttok.contexts.mask import canvas
from nexttok.generator import Generator
from nexttok.heads import guidance
from nexttok.nn.cache import Cache, move, ragged, take_rows
from nexttok.nn.slots import Slots, class_slots
from nexttok.plans import Plan
from nexttok.steps import At


def causal(
    gen: Generator,
    params: dict,
    label: Int[Array, "B"],
    plan: Plan,
    scale: Callable[[At], Array] | None = None,
    mix: Callable[[Array, Array], Array] | None = None,
    halves: bool = False,
) -> Causal:
    """The generator as samplers of one token a step see it (causal.py).

    Args:
      gen: of discrete tokens, context shift and head categorical; see `causal_refusal`.
      params, label, plan, scale: as of `Generator.step`; scale takes places [B, S] in At.
      mix: see heads/draw.py.
      halves: hidden states of a guided call are those with and without a class, side by side
        [B, S, 2 D]; else those with it.
    """
    prefix, n = gen.backbone.prefix, plan.length
    net = reader(gen, params, label, scale)

    def twice(x):
        return x if scale is None else jnp.concatenate([x, x])

    def start(batch, room):
        rows = batch * (1 if scale is None else 2)
        cache = gen.kind.init_cache(gen.backbone, rows, prefix + n + room, gen.dtype)
        if prefix:
            _, cache = net(class_slots(jnp.zeros((batch, 1), jnp.int32), prefix), cache)
        return ragged(cache)

    def score(tokens, parents, length, cache):
        slots, at = window(gen, plan, tokens, parents, length)
        hidden, cache = net(slots, cache)
        logits = predicted(gen, params, hidden, at, n, scale, mix)
        return logits, beside(hidden, scale) if halves else hidden[: len(tokens)], cache

    def keep(cache, length, path):
        target = length[:, None] + 1 + jnp.arange(path.shape[1])[None]
        source = jnp.where(path < 0, target, length[:, None] + path)
        return move(cache, prefix + twice(source), prefix + twice(target))

    def select(cache, rows):
        return rows_of(cache, rows, scale is not None)

    return Causal(n, gen.spec.vocab, start, score, keep, select)


def reader(
    gen: Generator,
    params: dict,
    label: Int[Array, "B"],
    scale: Callable[[At], Array] | None,
    network: Any = None,
) -> Callable[[Slots, Any], tuple[Array, Any]]:
    """(slots of B rows, cache) -> (hidden states, cache), by a network or the generator's own; with
    a scale of 2B rows, the second half without a class."""
    labels = label if scale is None else jnp.concatenate([label, jnp.full_like(label, -1)])
    network = gen.network if network is None else network

    def read(slots, cache):
        slots = slots if scale is None else slots.twice()
        return network.apply({"params": params["backbone"]}, slots, labels, cache)

    return read


def window(
    gen: Generator,
    plan: Plan,
    tokens: Int[Array, "B S"],
    parents: Int[Array, "B S"] | None,
    length: Int[Array, "B"] | Int[Array, "B S"],
) -> tuple[Slots, Int[Array, "B S"]]:
    """Slots of a window that is written into a cache, and the tokens that they predict; arguments
    are those of `Causal.score`."""
    among, written = None, length
    if length.ndim == 1:
        written = length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    at = written
    if parents is not None:
        depth, among = ancestry(parents)
        at = length[:, None] + depth
    prefix = gen.backbone.prefix
    # what is left of a tree is of later steps than the slots that follow it
    slots = gen.context.window(plan, tokens, at, prefix)
    return slots.replace(steps=written, written=prefix + written, among=among), at


def predicted(
    gen: Generator,
    params: dict,
    hidden: Float[Array, "R S D"],
    at: Int[Array, "B S"],
    tokens: int,
    scale: Callable[[At], Array] | None = None,
    mix: Callable[[Array, Array], Array] | None = None,
) -> Float[Array, "B S V"]:
    """Guided logits of tokens `at` of so many, from what a `reader` gives."""
    every = gen.head.outputs(gen.head_params(params), hidden)
    return _guided(every, jnp.minimum(at, tokens - 1), tokens, scale, mix)


def beside(
    hidden: Float[Array, "R S D"], scale: Callable[[At], Array] | None
) -> Float[Array, "B S F"]:
    """States of both halves of a guided batch, side by side."""
    return hidden if scale is None else jnp.concatenate(jnp.split(hidden, 2), axis=-1)


def masked(
    gen: Generator,
    params: dict,
    label: Int[Array, "B"],
    plan: Plan,
    scale: Callable[[At], Array] | None = None,
    mix: Callable[[Array, Array], Array] | None = None,
) -> Masked:
    """The generator, of context mask and head categorical, as samplers of their own order see it.

    Arguments are those of `causal`; scale takes numbers of known tokens [B] in At.
    """
    labels = label if scale is None else jnp.concatenate([label, jnp.full_like(label, -1)])
    weights, prefix, n = gen.head_params(params), gen.backbone.prefix, plan.length

    def run(tokens, hidden, noted):
        slots = canvas(jnp.where(hidden, 0, tokens), hidden, prefix)
        slots = slots if scale is None else slots.twice()
        read = {"params": params["backbone"]}, slots, labels
        (states, _), found = gen.network.apply(*read, mutable=noted)
        known = (~hidden).sum(1).astype(jnp.int32)
        logits = gen.head.outputs(weights, states[:, prefix:])
        return _guided(logits, known, n, scale, mix), found

    def watch(tokens, hidden):
        logits, found = run(tokens, hidden, ["attention"])
        # [layers, B, slots] of every stack that sees all slots
        maps = [x for x in jax.tree.leaves(found) if x.shape[-1] == prefix + n]
        received = jnp.concatenate(maps).mean(0)
        return logits, received[: len(tokens), prefix:]

    return Masked(n, gen.spec.vocab, lambda *args: run(*args, [])[0], watch)


def _guided(logits, known, n, scale, mix):
    """Logits [B, S, V] of a conditional and an unconditional half, mixed, or guided as where
    `known` tokens [B] or [B, S] of n are known; without a scale they are what they are."""
    if scale is None:
        return logits
    if mix is not None:
        return mix(*jnp.split(logits, 2))
    one = jnp.ones((), jnp.int32)
    strength = scale(At(known, known, one, one, 1, 1, 0, n))
    if strength.ndim:
        strength = strength.reshape(*strength.shape, *[1] * (logits.ndim - strength.ndim))
    return guidance.cfg(*jnp.split(logits, 2), strength)


def rows_of(cache: Cache, rows: Int[Array, "b"], guided: bool) -> Cache:
    """The cache of these samples, each of which has a second row in the other half if guided."""
    half = cache.keys.shape[1] // 2
    return take_rows(cache, jnp.concatenate([rows, half + rows]) if guided else rows)


def shallow(gen: Generator, params: dict, layers: tuple[int, ...]) -> tuple[Generator, dict]:
    """The generator of some of the layers of a decoder's trunk, with their parameters."""
    few = dataclasses.replace(gen, backbone=dataclasses.replace(gen.backbone, depth=len(layers)))
    backbone, trunk = params["backbone"], params["backbone"]["trunk"]
    blocks = jax.tree.map(lambda x: x[jnp.asarray(layers)], trunk["blocks"])
    return few, params | {"backbone": backbone | {"trunk": trunk | {"blocks": blocks}}}


def masked_refusal(gen: Generator) -> str:
    """Why a generator does not predict masked discrete tokens, as `causal_refusal` says it."""
    masks = type(gen.context).__name__ == "Mask" and gen.spec.vocab > 0
    return "" if masks else "the model does not predict masked discrete tokens"


def causal_refusal(gen: Generator) -> str:
    """Why a generator cannot be seen as causal, in the words that follow "as"; "" where it can."""
    context, head = (type(x).__name__.lower() for x in (gen.context, gen.head))
    if context != "shift":
        return f"context {context} does not draw one token after another"
    if gen.plan.given:
        return "the plan gives steps"
    return "" if head == "categorical" else f"head {head} draws continuous tokens"
