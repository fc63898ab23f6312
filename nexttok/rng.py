"""Named randomness: a key is folded from names and numbers, never split along a loop."""

import zlib

import jax
from jaxtyping import Array


def stream(key: Array, *names: str | int | Array) -> Array:
    """Folds names (by their CRC-32) and integers (also traced ones) into a typed key."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key


def abstract_key() -> jax.ShapeDtypeStruct:
    """The shape of a key, to trace with where nothing may run."""
    return jax.eval_shape(jax.random.key, 0)
