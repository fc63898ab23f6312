"""How a head draws; the sampling options that it reads are named by its `reads`."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampling options.

    Attributes:
      warp: logits -> logits: temperature and truncation of discrete tokens.
      temperature: of continuous tokens: what noise or standard deviations are multiplied by.
    """

    warp: Callable[[Array], Array]
    temperature: float


def categorical(rng: Array, logits: Float[Array, "*n V"]) -> Int[Array, "*n"]:
    """Draws from softmax(logits) by inversion, with one random number per draw.

    Gumbel-max takes one per entry, and those are most of its cost. The entry is found in two
    levels, by the cumulative sums of blocks and then of the entries of one block.
    """
    probs = jnp.exp((logits - logits.max(-1, keepdims=True)).astype(jnp.float32))
    side = math.isqrt(logits.shape[-1] - 1) + 1
    probs = jnp.pad(probs, [(0, 0)] * (probs.ndim - 1) + [(0, -probs.shape[-1] % side)])
    probs = probs.reshape(*probs.shape[:-1], -1, side)
    sums = jnp.cumsum(probs.sum(-1), axis=-1)
    point = jax.random.uniform(rng, (*sums.shape[:-1], 1)) * sums[..., -1:]
    block = _first_above(sums, point)
    below = jnp.take_along_axis(jnp.pad(sums, [(0, 0)] * (sums.ndim - 1) + [(1, 0)]), block, -1)
    inside = jnp.take_along_axis(probs, block[..., None], axis=-2)[..., 0, :]
    entry = _first_above(jnp.cumsum(inside, axis=-1), point - below)
    return (block * side + entry)[..., 0].astype(jnp.int32)


def _first_above(sums, point):
    """Index [..., 1] of the first cumulative sum above the point: an entry that adds something."""
    point = jnp.minimum(point, jnp.nextafter(sums[..., -1:], jnp.zeros_like(point)))
    return jnp.argmax(sums > point, axis=-1, keepdims=True)
