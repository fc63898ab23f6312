"""Named randomness: a key is folded from names and numbers, never split along a loop."""

import math
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def stream(key: Array, *names: str | int | Array) -> Array:
    """Folds names (by their CRC-32) and integers (also traced ones) into a typed key."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key


def abstract_key() -> jax.ShapeDtypeStruct:
    """The shape of a key, to trace with where nothing may run."""
    return jax.eval_shape(jax.random.key, 0)


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
